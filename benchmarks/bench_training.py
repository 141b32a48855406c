"""How fast is training? Ours, transformers' Trainer and TRL's SFTTrainer, on the same examples for whole epochs.

All train on the same answers (the loss is on the responses), with the same model, seed, batch size, learning rate,
optimizer, precision and number of epochs, each run in a process of its own, in turns, forwards and backwards. What
differs is which rows share a batch, and at how many positions the logits are computed:

    ours              rows of similar length together; logits at the last columns only, as many as the longest answer
    ours_shuffled     ablation: rows shuffled, padded to the longest of the batch
    ours_full_head    ablation: logits at every position
    trainer           transformers' Trainer: rows shuffled, padded to the longest of the batch; logits at every position
    trainer_grouped   the same with train_sampling_strategy="group_by_length"
    trl_grouped       SFTTrainer with group_by_length, without gradient checkpointing; logits at the answers' positions
    trl_checkpointed  the same with gradient checkpointing, its default, which costs time and saves memory

It is checked that all do the same work: each epoch sees every example once, and the loss of the first step is that of a
plain forward pass over the examples of that step, one by one. The tokens that go through the layers (with padding) and
the positions that go through the head are counted.

    pip install -r benchmarks/requirements.txt -c constraints.txt
    OMP_NUM_THREADS=2 python benchmarks/bench_training.py --readme docs/speed.md     # 6 minutes on two cores
    OMP_NUM_THREADS=2 python benchmarks/bench_training.py --subjects ours trl_checkpointed --output checkpointed.json
    OMP_NUM_THREADS=2 python benchmarks/bench_training.py --methods full --output full.json
    python benchmarks/bench_training.py --n 8 --batch_size 4 --repeats 1 --output try.json            # a trial
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import common
import peft
import torch
import transformers

import utils
from harness import flags
from harness.data import tasks
from harness.data.prompts import render
from harness.models import layers, properties, scoring
from harness.training import collators, loop, trainer

SUBJECTS = ("ours", "ours_shuffled", "ours_full_head", "trainer", "trainer_grouped", "trl_grouped", "trl_checkpointed")
RATES = {"lora": 5e-4, "full": 5e-5}
LOSS_TOLERANCE = 1e-3  # of the first step's loss, relative; fp32
N_VALIDATION = 16


def parse_args():
    parser = flags.ArgumentParser(__doc__)
    common.add_model_args(parser)
    parser.add_argument(
        "--dataset", default="assets/data/openbookqa", help="question answering or instructions (default: %(default)s)"
    )
    parser.add_argument("--methods", nargs="+", choices=tuple(RATES), default=["lora"], help="(default: lora)")
    parser.add_argument(
        "--subjects",
        nargs="+",
        choices=SUBJECTS,
        default=list(SUBJECTS[:-1]),
        help="(default: all but trl_checkpointed)",
    )
    parser.add_argument("--n", type=flags.positive_int, default=48, help="training examples (default: %(default)s)")
    parser.add_argument("--epochs", type=flags.positive_int, default=1, help="(default: %(default)s)")
    parser.add_argument("--batch_size", type=flags.positive_int, default=4, help="(default: %(default)s)")
    parser.add_argument("--max_length", type=flags.positive_int, default=256, help="tokens (default: %(default)s)")
    parser.add_argument("--repeats", type=flags.positive_int, default=2, help="turns (default: %(default)s)")
    common.add_output_args(parser)
    parser.add_argument("--child", choices=(*SUBJECTS, "reference"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.child and "ours" not in args.subjects:
        parser.error("--subjects needs ours, which the others are compared with")
    return args


# ------------------------------------------------------------------------------------------------------------ one run


class Folder:
    """As much of a results.run.Run as trainer.fit uses: a folder and a row."""

    main, resumed, id = False, False, "benchmark"

    def __init__(self, folder):
        self.dir, self.row = folder, {"precision": "fp32"}

    def path(self, name):
        return Path(self.dir, name)

    def note(self, text):
        pass


class Batches:
    """A collator that counts what it makes of the training rows."""

    def __init__(self, collate, rows, answers_only=False):
        self.collate, self.made, self.answers_only = collate, [], answers_only
        self.index = {tuple(row["input_ids"]): i for i, row in enumerate(rows)}

    def __getattr__(self, name):  # trainer.fit asks the collator for partial_head
        return getattr(self.collate, name)

    def __call__(self, rows):
        batch = self.collate(rows)
        ids, head = [self.index[tuple(row["input_ids"])] for row in rows], batch["labels"].numel()
        if self.answers_only:
            head = int((batch["labels"] != -100).sum())
        elif "logits_to_keep" in batch:
            head = len(rows) * batch["logits_to_keep"]
        self.made.append({"ids": ids, "tokens": batch["input_ids"].numel(), "head": head})
        return batch


class FirstLoss(transformers.TrainerCallback):
    """Logs the first step and keeps its loss."""

    loss = None

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= state.global_step == 1

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.loss = logs.get("loss") if self.loss is None else self.loss


def settings(args, method):
    """The training flags at their defaults, with the benchmark's."""
    parser = argparse.ArgumentParser()
    flags.add_training_args(parser)
    changes = {"epochs": args.epochs, "batch_size": args.batch_size, "max_length": args.max_length, "seed": 0}
    return argparse.Namespace(**{**vars(parser.parse_args([])), **changes, "learning_rate": RATES[method]})


def their_arguments(args, given, folder):
    """What Trainer and SFTTrainer are given, the same as ours."""
    grouped = args.child.endswith("grouped") or args.child == "trl_checkpointed"
    return {
        "output_dir": folder,
        "num_train_epochs": args.epochs,
        "per_device_train_batch_size": args.batch_size,
        "seed": given.seed,
        "learning_rate": given.learning_rate,
        "warmup_steps": given.warmup,
        "weight_decay": given.weight_decay,
        "optim": given.optim,
        "lr_scheduler_type": given.lr_scheduler,
        "train_sampling_strategy": "group_by_length" if grouped else "random",
        "use_cpu": args.device == "cpu",
        "bf16": False,
        "save_strategy": "epoch",  # ours saves once, too
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": args.device == "cuda",
    }


def fit(args, model, tokenizer, data, given, folder):
    """Train the subject --child. Returns (seconds, the Batches, the first step's loss)."""
    first = FirstLoss()
    if args.child.startswith("ours"):
        if args.child == "ours_shuffled":
            loop.Trainer._get_train_sampler = transformers.Trainer._get_train_sampler
        data.collate.partial_head = data.collate.partial_head and args.child != "ours_full_head"
        data.collate, run = Batches(data.collate, data.train), Folder(folder)
        trainer.fit(model, tokenizer, data, given, run, args.device, given.learning_rate, [first])
        return run.row["train_seconds"], data.collate, first.loss
    options = {"model": model, "train_dataset": data.train, "processing_class": tokenizer, "callbacks": [first]}
    arguments = their_arguments(args, given, folder)
    if args.child.startswith("trainer"):
        arguments = transformers.TrainingArguments(**arguments)
        collate = transformers.DataCollatorForSeq2Seq(tokenizer)  # DataCollatorWithPadding that pads the labels, too
        theirs = transformers.Trainer(args=arguments, data_collator=collate, **options)
    else:
        import trl  # only here: the memory of the other subjects is measured without it

        arguments.update(gradient_checkpointing=args.child == "trl_checkpointed", max_length=args.max_length)
        theirs = trl.SFTTrainer(args=trl.SFTConfig(**arguments), **options)
    theirs.data_collator = Batches(theirs.data_collator, data.train, args.child.startswith("trl"))
    with utils.measure() as spent:
        theirs.train()
    return spent.seconds, theirs.data_collator, first.loss


def reference(model, rows):
    """[n] of (summed negative log-likelihood of the answer's tokens, their number): a forward pass for each row."""
    sums = []
    for row in rows:
        ids, labels = (torch.tensor([row[name]], device=model.device) for name in ("input_ids", "labels"))
        with torch.inference_mode():
            logits = model(ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[0, :-1].float(), labels[0, 1:], reduction="sum")
        sums.append((float(loss), int((labels[:, 1:] != -100).sum())))
    return sums


def validation_loss(model, tokenizer, task, chat):
    """Per token, of the first answers of the validation split."""
    examples = task.validation[:N_VALIDATION]
    properties.base_model(model.eval()).__dict__.pop("forward", None)  # TRL leaves its own forward on the model
    rendered = [render(task, ex, (), tokenizer if chat else None) for ex in examples]
    targets = [[separator + task.target(ex)] for (_, separator), ex in zip(rendered, examples)]
    scores = scoring.score_labels(model, tokenizer, [prompt for prompt, _ in rendered], targets, 8, not chat)
    return -scores.total.sum() / int(scores.n_tokens.sum())


def child(args):
    """Train one subject and print what was seen as JSON."""
    (method,) = args.methods
    utils.set_seed(0)
    model, tokenizer = common.load(args)
    task = tasks.load_task(args.dataset, max_train_samples=args.n)
    given, chat = settings(args, method), bool(tokenizer.chat_template)
    data = collators.answer_data(model, tokenizer, task, given, chat)
    data.validation = None
    if args.child == "reference":
        n_tokens = sum(len(row["input_ids"]) for row in data.train)
        return print(json.dumps({"tokens": n_tokens, "losses": reference(model, data.train)}))
    if method == "lora":
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=layers.target_modules(model))
        model = peft.get_peft_model(model, config)
    with tempfile.TemporaryDirectory() as folder:
        seconds, batches, first_loss = fit(args, model, tokenizer, data, given, folder)
    found = {"seconds": seconds, "peak_gb": common.peak_memory_gb(args.device), "first_loss": first_loss}
    print(json.dumps({**found, "batches": batches.made, "loss": validation_loss(model, tokenizer, task, chat)}))


# -------------------------------------------------------------------------------------------------------- all, compared


def start(args, subject, method):
    """What the process of one subject prints."""
    sizes = [(f"--{name}", getattr(args, name)) for name in ("dataset", "n", "epochs", "batch_size", "max_length")]
    given = [word for pair in sizes for word in pair]
    seen = common.run_child(__file__, "--child", subject, "--methods", method, *given, *common.model_flags(args))
    if seen is None:
        sys.exit(f"{subject} ran out of memory")
    return seen


def first_loss_error(args, run, losses):
    """Relative difference of the first step's loss from that of a plain forward pass. Ends where the work differs."""
    seen = sorted(i for batch in run["batches"] for i in batch["ids"])
    if seen != sorted(list(range(len(losses))) * args.epochs):
        sys.exit(f"not every example was trained on {args.epochs} times: {seen}")
    sums, counts = zip(*(losses[i] for i in run["batches"][0]["ids"]))
    return abs(run["first_loss"] / (sum(sums) / sum(counts)) - 1)


def compare(args, method):
    """A row for each subject of one method, measured in turns."""
    plain = start(args, "reference", method)
    runs = {subject: [] for subject in args.subjects}
    for repeat in range(args.repeats):
        for subject in args.subjects if repeat % 2 == 0 else args.subjects[::-1]:
            run = start(args, subject, method)
            runs[subject].append(run)
            print(f"  {method} {subject}: {run['seconds']:.1f} s, {run['peak_gb']:.2f} GB", file=sys.stderr, flush=True)
    rows = []
    for subject, same in runs.items():
        seconds, batches = [run["seconds"] for run in same], same[0]["batches"]
        row = {"method": method, "by": subject, "seconds": seconds, "loss": same[0]["loss"]}
        row["times_ours"] = common.ratio([run["seconds"] for run in runs["ours"]], seconds)
        row["peak_gb"] = max(run["peak_gb"] for run in same)
        row["first_loss_error"] = max(first_loss_error(args, run, plain["losses"]) for run in same)
        if args.precision == "fp32" and row["first_loss_error"] > LOSS_TOLERANCE:
            sys.exit(f"{subject}: the first loss is off by {row['first_loss_error']:.1e}, so it is not the same work")
        tokens, head = (sum(batch[name] for batch in batches) for name in ("tokens", "head"))
        row.update(tokens=tokens, padding=1 - args.epochs * plain["tokens"] / tokens, head_positions=head)
        rows.append(row)
    return rows


def section(args, rows):
    """The text of docs/speed.md."""
    begin = (
        f"Training {common.model_name(args)} in {args.precision} on {args.n} examples of {Path(args.dataset).name}, "
        f"{args.epochs} epoch{'s' * (args.epochs > 1)} in batches of {args.batch_size}, at most {args.max_length} "
        f'tokens, on {common.machine(args.device, "trl", "peft")}. {args.repeats} turns of each; "times ours" compares '
        f"within a turn. Loss is that of {N_VALIDATION} validation answers, per token, after training. The first "
        "step's loss differs from that of a plain forward pass over the same examples by at most "
        f"{max(row['first_loss_error'] for row in rows):.0e} of it."
    )
    header = [
        "method",
        "by",
        "median s",
        "least s",
        "times ours (range)",
        "peak GB",
        "padding",
        "head positions",
        "loss",
    ]
    table = []
    for row in rows:
        times = "{median:.2f} ({low:.2f}-{high:.2f})".format(**row["times_ours"])
        cells = [row["method"], row["by"], f"{statistics.median(row['seconds']):.1f}", f"{min(row['seconds']):.1f}"]
        cells += [times, f"{row['peak_gb']:.2f}", f"{row['padding']:.0%}", row["head_positions"], f"{row['loss']:.3f}"]
        table.append(cells)
    return f"{begin}\n\n{common.markdown(header, table)}"


def main():
    args = parse_args()
    if args.child:
        return child(args)
    name = "bench_training" + ("_gpu" if args.device == "cuda" else "")
    setting = {
        "machine": common.machine(args.device, "trl", "peft"),
        "model": common.model_name(args),
        "dataset": Path(args.dataset).name,
        **{key: getattr(args, key) for key in ("precision", "n", "epochs", "batch_size", "max_length", "repeats")},
        **common.measured_at(),
    }
    rows = [row for method in args.methods for row in compare(args, method)]
    common.publish(name, section(args, rows), {"setting": setting, "rows": rows}, args.readme, args.output)


if __name__ == "__main__":
    main()
