"""How fast is training? Our LoRA and full fine-tuning, the plain Trainer and TRL's SFTTrainer, on the same data and
steps.

All train on the same answers (the loss is on the responses), with the same model, seed, batch size, learning rate,
optimizer, precision and number of steps, each in a process of its own, in turns; validation loss is computed afterwards
by one function over the same examples. What differs is how batches are made and what is projected and kept:

    ours             rows of similar length together, padded to the longest, the head on response positions only
    trainer          every row padded to --max_length, shuffled: what a plain recipe with Trainer does
    trl              SFTTrainer's defaults (padded to the longest row, shuffled, gradient checkpointing), in fp32
    trl_no_ckpt      the same without gradient checkpointing, which costs time and saves memory

    pip install -r benchmarks/requirements.txt -c constraints.txt
    OMP_NUM_THREADS=2 python benchmarks/bench_training.py --steps 6 --repeats 1 --readme docs/speed.md   # 8 minutes
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from common import add_model_args, load, machine, markdown, measured_at, model_name, peak_memory_gb, publish, run_child

import utils
from harness import flags
from harness.data import tasks
from harness.data.prompts import render
from harness.models import layers, loading, scoring
from harness.training import collators, trainer

SUBJECTS = ("ours", "trainer", "trl", "trl_no_ckpt")
RATES = {"lora": 5e-4, "full": 5e-5}


def parse_args():
    parser = flags.ArgumentParser(__doc__)
    add_model_args(parser)
    parser.add_argument(
        "--dataset", default="assets/data/openbookqa", help="question answering or instructions (default: %(default)s)"
    )
    parser.add_argument("--methods", nargs="+", choices=tuple(RATES), default=list(RATES), help="(default: lora full)")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), help="(default: all)")
    parser.add_argument(
        "--steps", type=flags.positive_int, default=8, help="optimizer steps of a run (default: %(default)s)"
    )
    parser.add_argument("--batch_size", type=flags.positive_int, default=8, help="(default: %(default)s)")
    parser.add_argument("--max_length", type=flags.positive_int, default=256, help="tokens (default: %(default)s)")
    parser.add_argument("--repeats", type=flags.positive_int, default=2, help="turns (default: %(default)s)")
    parser.add_argument("--readme", metavar="FILE", help="put the table between its marks there")
    parser.add_argument("--child", choices=SUBJECTS, help=argparse.SUPPRESS)
    return parser.parse_args()


# --------------------------------------------------------------------------------------------------- one subject, timed


class Folder:
    """As much of a results.run.Run as trainer.fit uses: a folder and a row."""

    main, resumed, id = True, False, "benchmark"

    def __init__(self, folder):
        self.dir, self.row = folder, {"precision": "fp32"}

    def path(self, name):
        return Path(self.dir, name)

    def note(self, text):
        pass

    def write_json(self, name, value):
        pass


def settings(args, method, **changes):
    """training.py's flags at their defaults, with the benchmark's."""
    parser = argparse.ArgumentParser()
    flags.add_training_args(parser)
    given = vars(parser.parse_args([]))
    return argparse.Namespace(
        **{
            **given,
            "max_steps": args.steps,
            "batch_size": args.batch_size,
            "max_length": args.max_length,
            "learning_rate": RATES[method],
            "seed": 0,
            **changes,
        }
    )


def common_arguments(args, method, folder):
    """What the plain Trainer and TRL are given, the same as ours."""
    given = settings(args, method)
    return {
        "output_dir": folder,
        "max_steps": args.steps,
        "per_device_train_batch_size": args.batch_size,
        "seed": given.seed,
        "learning_rate": given.learning_rate,
        "warmup_steps": given.warmup,
        "weight_decay": given.weight_decay,
        "optim": given.optim,
        "lr_scheduler_type": given.lr_scheduler,
        "use_cpu": args.device == "cpu",
        "bf16": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": args.device == "cuda",
    }


def child(args):
    """Train one subject and print seconds, peak memory and the validation loss as JSON."""
    import peft
    import transformers
    from datasets import Dataset

    (method,) = args.methods
    utils.set_seed(0)
    model, tokenizer = load(args)
    task = tasks.load_task(args.dataset)
    chat = bool(tokenizer.chat_template)
    if method == "lora":
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=layers.target_modules(model))
        model = peft.get_peft_model(model, config)
    given = settings(args, method)
    with tempfile.TemporaryDirectory() as folder:
        if args.child == "ours":
            data = collators.answer_data(model, tokenizer, task, given, chat)
            data.validation = None
            run = Folder(folder)
            trainer.fit(model, tokenizer, data, given, run, args.device, given.learning_rate)
            seconds = run.row["train_seconds"]
        else:
            rows = collators.answer_data(model, tokenizer, task, given, chat).train
            if args.child == "trainer":

                def collate(batch):
                    short = transformers.DataCollatorForSeq2Seq(
                        tokenizer, padding="max_length", max_length=args.max_length
                    )
                    return short([{**row, "attention_mask": [1] * len(row["input_ids"])} for row in batch])

                arguments = transformers.TrainingArguments(
                    **common_arguments(args, method, folder), remove_unused_columns=False
                )
                theirs = transformers.Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
            else:
                import trl

                rows = Dataset.from_dict({"input_ids": rows["input_ids"], "labels": rows["labels"]})
                extra = {} if args.child == "trl" else {"gradient_checkpointing": False}
                arguments = trl.SFTConfig(**common_arguments(args, method, folder), max_length=args.max_length, **extra)
                theirs = trl.SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
            with utils.measure() as spent:
                theirs.train()
            seconds = spent.seconds
    peak, examples = peak_memory_gb(args.device), task.validation[:64]
    loading.base_model(model.eval()).__dict__.pop("forward", None)  # TRL leaves its own forward on the model
    rendered = [render(task, ex, (), tokenizer if chat else None) for ex in examples]
    targets = [[separator + task.target(ex)] for (_, separator), ex in zip(rendered, examples)]
    scores = scoring.score_labels(model, tokenizer, [prompt for prompt, _ in rendered], targets, 8, not chat)
    print(json.dumps({"seconds": seconds, "peak_gb": peak, "loss": -scores.total.sum() / int(scores.n_tokens.sum())}))


# -------------------------------------------------------------------------------------------------------- all, compared


def compare(args, method):
    """All subjects for one method: medians of seconds, peaks, validation losses."""
    runs = {subject: [] for subject in args.subjects}
    for _ in range(args.repeats):
        for subject, found in runs.items():
            flags = [
                "--child",
                subject,
                "--methods",
                method,
                "--model",
                args.model,
                "--dataset",
                args.dataset,
                "--steps",
                args.steps,
                "--batch_size",
                args.batch_size,
                "--max_length",
                args.max_length,
                "--precision",
                args.precision,
                "--device",
                args.device,
                *(["--random_llama", args.random_llama] if args.random_llama else []),
            ]
            seen, _ = run_child(__file__, *flags)
            if seen is None:
                sys.exit(f"{subject} ran out of memory")
            print(
                f"  {method} {subject}: {seen['seconds']:.1f} s, {seen['peak_gb']:.2f} GB, loss {seen['loss']:.4f}",
                file=sys.stderr,
            )
            found.append(seen)
    row = {"method": method}
    for subject, found in runs.items():
        row[f"{subject}_seconds"] = statistics.median(run["seconds"] for run in found)
        row[f"{subject}_all_seconds"] = [run["seconds"] for run in found]
        row[f"{subject}_peak_gb"] = max(run["peak_gb"] for run in found)
        row[f"{subject}_loss"] = found[0]["loss"]
    return {**row, **measured_at()}


def section(args, rows):
    """The README's text."""
    turns = f"Medians of {args.repeats} runs in turns" if args.repeats > 1 else "One run each"
    begin = (
        f"Training {model_name(args)} in {args.precision}, {args.steps} steps of {args.batch_size} examples of "
        f"{args.dataset.rstrip('/').split('/')[-1]}, at most {args.max_length} tokens, on "
        f"{machine(args.device, 'trl', 'peft')}. "
        f"{turns}; loss is that of 64 validation answers, per token, after training."
    )
    table = []
    for row in rows:
        for subject in args.subjects:
            seconds = row[f"{subject}_seconds"]
            table.append(
                [
                    row["method"],
                    subject,
                    f"{seconds:.1f}",
                    f"{seconds / row['ours_seconds']:.2f}",
                    f"{row[f'{subject}_peak_gb']:.2f}",
                    f"{row[f'{subject}_loss']:.3f}",
                ]
            )
    return f"{begin}\n\n{markdown(['method', 'by', 'seconds', 'times ours', 'peak GB', 'loss'], table)}"


def main():
    args = parse_args()
    if args.child:
        return child(args)
    rows = []
    for method in args.methods:
        rows.append(compare(args, method))
    name = "bench_training" + ("_gpu" if args.device == "cuda" else "")
    setting = {
        "machine": machine(args.device, "trl", "peft"),
        "model": model_name(args),
        "precision": args.precision,
        "steps": args.steps,
        "batch_size": args.batch_size,
        "max_length": args.max_length,
        "repeats": args.repeats,
    }
    publish(name, section(args, rows), {"setting": setting, "rows": rows}, args.readme)


if __name__ == "__main__":
    main()
