"""Training, shared by the scripts that train: the flags, the Trainer's set-up, the training clock, the curves, `--resume`.

It stands between the scripts and inference.py, and imports heavy libraries only where they are used. The scripts differ in
what they let the optimizer change, not in how they train: full fine-tuning and adapters get the same batches, schedule,
checkpoint choice and clock.
"""

import json
from pathlib import Path

import metrics
import utils
from utils import UserError


def add_training_args(parser, learning_rate):
    """The flags of every training script."""
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=utils.positive, default=3, help="passes over the training examples (default: %(default)s)")
    group.add_argument("--max_steps", type=utils.positive_int, help="stop after so many optimizer steps, instead of --epochs")
    group.add_argument("--learning_rate", type=utils.positive, default=learning_rate, help="peak learning rate (default: %(default)s)")
    group.add_argument("--warmup", type=utils.fraction, default=0.06, help="share of the steps that warm up (default: %(default)s)")
    group.add_argument("--weight_decay", type=utils.non_negative, default=0.01, help="of AdamW (default: %(default)s)")
    group.add_argument(
        "--max_length",
        type=utils.number_type(int, "a whole number of at least 8", lambda value: value >= 8),
        help="tokens an input is cut to (default: 512, or what the model takes)",
    )
    mixed = group.add_mutually_exclusive_group()
    mixed.add_argument("--fp16", action="store_true", help="mixed precision with float16 (CUDA only)")
    mixed.add_argument("--bf16", action="store_true", help="mixed precision with bfloat16")
    group.add_argument("--resume", nargs="?", const="auto", metavar="RUN_DIR",
                       help="go on from a cut-off run's last checkpoint: the newest run with these flags, or RUN_DIR")  # fmt: skip


def mixed_precision(args, device):
    """'fp16', 'bf16' or 'fp32' for the row; UserError for fp16 on a CPU."""
    if args.fp16 and device == "cpu":
        raise UserError("--fp16 needs a CUDA GPU; on a CPU leave it out, or use --bf16")
    return "fp16" if args.fp16 else "bf16" if args.bf16 else "fp32"


# ------------------------------------------------------------------------------------------------------------------ resume


def find_resumable(args, script):
    """The run folder that --resume means, None without the flag; UserError where there is none to go on from."""
    if args.resume is None:
        return None
    wanted = {key: value for key, value in vars(args).items() if key != "resume"}
    folders = [Path(args.resume)]
    if args.resume == "auto":
        folders = sorted(Path(args.runs_dir).glob(f"*-{Path(script).stem}-*"), reverse=True)
    for folder in folders:
        try:
            had = json.loads((folder / "args.json").read_text())
            ended = json.loads((folder / "row.json").read_text())["status"] if (folder / "row.json").exists() else None
        except (OSError, ValueError):  # no run folder, or cut off before it was whole
            continue
        if ended in ("ok", "degenerate"):
            continue
        if {key: value for key, value in had.items() if key != "resume"} == wanted:
            return folder
    where = args.runs_dir if args.resume == "auto" else args.resume
    raise UserError(f"--resume: no unfinished run with these flags in {where}; run without --resume to begin one")


def last_checkpoint(folder):
    """The newest complete checkpoint in a run folder, or None. trainer_state.json is what the Trainer writes last."""
    found = [path.parent for path in Path(folder).glob("checkpoints/checkpoint-*/trainer_state.json")]
    return max(found, key=lambda path: int(path.name.split("-")[-1]), default=None)


# ---------------------------------------------------------------------------------------------------------- classification


def encode(tokenizer, examples, max_length):
    """Examples -> a datasets.Dataset of token ids and labels, tokenized in batches, not padded."""
    from datasets import Dataset

    data = Dataset.from_dict({"text": [ex.text for ex in examples], "text_pair": [ex.text_pair for ex in examples],
                              "labels": [ex.label for ex in examples]})  # fmt: skip

    def tokenize(batch):
        pairs = None if batch["text_pair"][0] is None else batch["text_pair"]
        return tokenizer(batch["text"], pairs, truncation=True, max_length=max_length)

    return data.map(tokenize, batched=True, remove_columns=["text", "text_pair"])


def train_classifier(model, tokenizer, task, args, run, device):
    """Train with the Hugging Face Trainer and leave the best checkpoint, by validation accuracy, in `model`.

    Batches are grouped by length and padded to their longest row. Fills in the row's n_train and train_seconds, which
    leave the evaluations out, and writes training_history.json and training_curves.png.
    """
    import transformers

    import inference

    if len(task.train) < 2:
        raise UserError(f"{task.name} has {len(task.train)} training examples; fine-tuning needs at least two")
    max_length = inference.classifier_length(model, tokenizer, args.max_length)
    choose = bool(task.validation)
    when = "epoch" if choose else "no"
    arguments = transformers.TrainingArguments(
        output_dir=str(run.path("checkpoints")), num_train_epochs=args.epochs, max_steps=args.max_steps or -1,
        per_device_train_batch_size=args.batch_size, per_device_eval_batch_size=4 * args.batch_size,
        learning_rate=args.learning_rate, warmup_steps=args.warmup, weight_decay=args.weight_decay, fp16=args.fp16, bf16=args.bf16,
        train_sampling_strategy="group_by_length", eval_strategy=when, save_strategy="epoch", save_total_limit=2,
        load_best_model_at_end=choose, metric_for_best_model="accuracy" if choose else None, logging_steps=10, seed=args.seed,
        use_cpu=device == "cpu", dataloader_pin_memory=device == "cuda", report_to="none", label_names=["labels"],
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=arguments, processing_class=tokenizer, train_dataset=encode(tokenizer, task.train, max_length),
        eval_dataset=encode(tokenizer, task.validation, max_length) if choose else None,
        data_collator=transformers.DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if device == "cuda" else None),
        compute_metrics=lambda out: {"accuracy": metrics.accuracy(out.predictions.argmax(-1), out.label_ids)},
    )  # fmt: skip
    checkpoint = last_checkpoint(run.dir) if run.resumed else None
    if run.resumed:
        run.note(f"resumed from {checkpoint.name if checkpoint else 'the start'}; train_seconds count the last process only")
    with utils.measure() as spent:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    history = trainer.state.log_history
    evaluating = sum(entry.get("eval_runtime", 0.0) for entry in history if entry["step"] > (0 if not checkpoint else step_of(checkpoint)))
    run.row.update(n_train=len(task.train), train_seconds=spent.seconds - evaluating, **spent.memory_columns())
    save_history(run, history)
    return model.eval()


def step_of(checkpoint):
    """checkpoint-63 -> 63."""
    return int(checkpoint.name.split("-")[-1])


def save_history(run, history):
    """training_history.json and training_curves.png: training loss, validation loss and accuracy over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    run.path("training_history.json").write_text(json.dumps(history, indent=2) + "\n")
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for key, label in (("loss", "training loss"), ("eval_loss", "validation loss"), ("eval_accuracy", "validation accuracy")):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(*zip(*points), marker="o" if len(points) < 20 else None, label=label)
    axes.set(xlabel="optimizer step", title=run.id)
    axes.legend()
    figure.savefig(run.path("training_curves.png"), dpi=120)
    plt.close(figure)
