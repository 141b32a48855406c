"""Training with transformers' Trainer: the set-up, the training clock, `--resume`."""

import copy
import gc
import json
import math
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import torch
import transformers
from transformers.trainer_pt_utils import LengthGroupedSampler

import utils
from harness.evaluation import evaluate, metrics
from harness.models import loading, memory_forecast, scoring
from harness.training import collators


def check_device(args, device):
    """UserError for flags that this device cannot take."""
    if device == "cpu" and args.fp16:
        raise utils.UserError("--fp16 needs a CUDA GPU; on a CPU leave it out, or use --bf16")
    if device == "cpu" and ("8bit" in args.optim or "paged" in args.optim):
        raise utils.UserError(f"--optim {args.optim} needs a CUDA GPU; on a CPU use adamw_torch")


def load_base(args, task, tokenizer, device, precision, name=None):
    """The model that is to be trained, --model or `name`: with a classification head, or as the language model that it is."""
    head = task.kind == "classification"
    return loading.load_model(
        name or args.model,
        "classifier" if head else "auto",
        labels=task.labels if head else None,
        precision=precision,
        device=device,
        pad_token_id=tokenizer.pad_token_id,
        trust_remote_code=args.trust_remote_code,
        attention=args.attn_implementation,
    )


def load_columns(load, given):
    """The load cells of the row. Of several runs in one process none knows what the memory was before the model: it stays empty."""
    return {**load.load_columns(), **({"start_rss_gb": None} if given.repeats > 1 else {})}


def own_copy(base, args, given):
    """A copy of the loaded model where more runs will begin from it, itself for the last one. given: main's own arguments."""
    gc.collect()  # what the run before held
    return base if args.data_seed == given.data_seed + given.repeats - 1 else copy.deepcopy(base)


def uses_chat(args, task, tokenizer):
    """Are examples written in the tokenizer's chat template?"""
    return task.kind != "classification" and loading.uses_chat(args.prompt_format, tokenizer)


def score(model, tokenizer, task, args, run, chat, other):
    """Score the trained model as prompt_eval.py would."""
    if task.kind == "classification":
        evaluate.evaluate_classifier(
            model, tokenizer, task, run, args.batch_size, args.latency_runs, args.max_length, other
        )
    else:
        evaluate.evaluate_answers(
            model, tokenizer, task, run, "auto", args.latency_runs, chat, answer_length(args, task)
        )
        run.row["batch_size"] = args.batch_size  # that of training


def answer_length(args, task):
    """Most new tokens of an answer: --max_new_tokens, or 256 for instructions and 32 for questions."""
    return args.max_new_tokens or (256 if task.kind == "instruction" else 32)


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
    raise utils.UserError(f"--resume: no unfinished run with these flags in {where}; run without --resume to begin one")


def last_checkpoint(folder):
    """The newest complete checkpoint in a run folder, or None. trainer_state.json is what the Trainer writes last."""
    found = [path.parent for path in Path(folder).glob("checkpoints/checkpoint-*/trainer_state.json")]
    return max(found, key=lambda path: int(path.name.split("-")[-1]), default=None)


def n_steps(n_examples, args):
    """Optimizer steps of a training run, as the Trainer counts them."""
    batches = math.ceil(n_examples / args.batch_size / utils.world()[1])
    return args.max_steps or math.ceil(args.epochs * max(math.ceil(batches / args.gradient_accumulation), 1))


def train(
    model, tokenizer, task, args, run, device, learning_rate, chat=False, callbacks=(), reload=None, keep_last=False
):
    """Train on the task's training examples; the best checkpoint is that of the highest validation accuracy, or the lowest loss.

    reload: folder -> model, for weights that FSDP or DeepSpeed keep in pieces.
    """
    if len(task.train) < 2:
        raise utils.UserError(f"{task.name} has {len(task.train)} training examples; fine-tuning needs at least two")
    run.row["n_train"] = len(task.train)
    if task.kind == "classification":
        data = collators.classification_data(model, tokenizer, task, args, device)
        if args.max_length:  # saved with the tokenizer, so that whoever loads it cuts inputs alike
            tokenizer.model_max_length = scoring.classifier_length(model, tokenizer, args.max_length)
        return fit(
            model,
            tokenizer,
            data,
            args,
            run,
            device,
            learning_rate,
            callbacks,
            reload=reload,
            keep_last=keep_last,
            best="accuracy",
            compute_metrics=lambda out: {
                "accuracy": metrics.accuracy(first_output(out.predictions).argmax(-1), out.label_ids)
            },
        )
    data = collators.answer_data(model, tokenizer, task, args, chat)
    if data.note:
        print(data.note)
        run.note(data.note)
    return fit(model, tokenizer, data, args, run, device, learning_rate, callbacks, reload=reload, keep_last=keep_last)


def first_output(predictions):
    """BART's classifier returns its encoder's states besides."""
    return predictions[0] if isinstance(predictions, tuple) else predictions


def fit(
    model,
    tokenizer,
    data,
    args,
    run,
    device,
    learning_rate,
    callbacks=(),
    best="loss",
    compute_metrics=None,
    loss=None,
    reload=None,
    keep_last=False,
):
    """Train with the Hugging Face Trainer and leave the best checkpoint in `model`, by a validation metric.

    Batches are of rows of about one length. loss: None for the model's own, or a function of (model, batch), whose batches have
    their targets under "labels". keep_last: the last checkpoint stays, whatever its validation metric. Fills in the row's
    train_seconds, which leave the evaluations out, and writes training_history.json and training_curves.png. utils.RunFailed
    where the loss is no longer a number.
    """
    choose = data.validation is not None
    best_stays = choose and not keep_last
    if args.early_stopping and not choose:
        raise utils.UserError("--early_stopping needs validation examples, and there are none")
    # without validation the epochs mean nothing to checkpoints, and those of a few examples would be written at every step
    every = args.save_steps or (
        None if choose else max(50, math.ceil(n_steps(len(data.train), args) / max(args.epochs, 1)))
    )
    when, classes = "steps" if every else "epoch", compute_metrics is not None
    options = {}
    if args.gradient_checkpointing:
        new = "activation_checkpointing"  # the name from transformers 5.2x on
        name = new if new in transformers.TrainingArguments.__dataclass_fields__ else "gradient_checkpointing"
        options = {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    arguments = transformers.TrainingArguments(
        output_dir=str(run.path("checkpoints")),
        num_train_epochs=args.epochs,
        max_steps=args.max_steps or -1,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=4 * args.batch_size if classes else args.batch_size,
        gradient_accumulation_steps=args.gradient_accumulation,
        optim=args.optim,
        learning_rate=learning_rate,
        lr_scheduler_type=args.lr_scheduler,
        warmup_steps=args.warmup,
        weight_decay=args.weight_decay,
        fp16=args.fp16,
        bf16=args.bf16,
        eval_strategy=when if choose else "no",
        save_strategy=when,
        save_steps=every or 500,
        eval_steps=every,
        save_total_limit=2,
        load_best_model_at_end=best_stays,
        metric_for_best_model=best if best_stays else None,
        greater_is_better=best != "loss" if best_stays else None,
        restore_callback_states_from_checkpoint=True,
        logging_steps=max(1, min(10, n_steps(len(data.train), args) // 10)),
        logging_nan_inf_filter=False,
        seed=args.seed,
        use_cpu=device == "cpu",
        prediction_loss_only=not classes,
        dataloader_pin_memory=device == "cuda",
        remove_unused_columns=classes,
        report_to="none",
        label_names=["labels"],
        **options,
    )
    if args.gradient_checkpointing and hasattr(model, "enable_input_require_grads"):
        model.enable_input_require_grads()  # a frozen base's embeddings have no gradient to go on from (peft)
    stopping = [transformers.EarlyStoppingCallback(args.early_stopping)] if args.early_stopping else []
    trainer = _trainer_class(loss, args.seed)(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=data.train,
        eval_dataset=data.validation,
        data_collator=data.collate,
        callbacks=[*stopping, *callbacks],
        compute_metrics=compute_metrics,
    )
    if loss:
        trainer.model_accepts_loss_kwargs = (
            False  # a mean over its batch, which the Trainer is to divide by --gradient_accumulation
        )
    if choose:
        run.note(
            f"{len(data.validation)} validation examples"
            + (" chose the checkpoint" if best_stays else ", the last checkpoint kept")
        )
    if trainer.args.fp16 or trainer.args.bf16:
        run.note(f"trained in {'fp16' if trainer.args.fp16 else 'bf16'} mixed precision")
    run.note(f"learning rate {learning_rate:g}")
    checkpoint = last_checkpoint(run.dir) if run.resumed else None
    if run.resumed:
        run.note(
            f"resumed from {checkpoint.name if checkpoint else 'the start'}; train_seconds count the last process only"
        )
    memory_forecast.predict_training(run, model, data, args, device)
    with utils.measure() as spent:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    history = trainer.state.log_history
    evaluating = sum(
        entry.get("eval_runtime", 0.0)
        for entry in history
        if entry["step"] > (0 if not checkpoint else step_of(checkpoint))
    )
    run.row.update(train_seconds=spent.seconds - evaluating, **spent.memory_columns())
    save_history(run, history)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:  # each process goes on with a whole model of its own
        trainer.save_model(str(run.path("checkpoints") / "whole"))
        trainer.accelerator.wait_for_everyone()
        return reload(run.path("checkpoints") / "whole").eval()
    # without the autocast that mixed precision leaves on the model: it is scored as it will be loaded again
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()


def _trainer_class(own_loss, seed):
    class EpochSampler(LengthGroupedSampler):
        """Rows of about one length together, in an order that depends on seed and epoch alone, as a resumed run needs it."""

        def __init__(self, batch_size, dataset):
            super().__init__(
                batch_size, lengths=[len(row["input_ids"]) for row in dataset], generator=torch.Generator()
            )
            self.epoch = 0

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            self.generator.manual_seed(seed + self.epoch)
            return super().__iter__()

    class Trainer(transformers.Trainer):
        """The Trainer, stopped where the loss is no number any more, its batches by length the same after a restart."""

        def _get_train_sampler(self, train_dataset=None):
            return EpochSampler(
                self.args.train_batch_size * self.args.gradient_accumulation_steps, train_dataset or self.train_dataset
            )

        def evaluate(self, *args, **kwargs):
            """Without AdaLoRA's regulariser, which peft adds to every loss."""
            regularised = [c for c in getattr(self.model, "peft_config", {}).values() if hasattr(c, "orth_reg_weight")]
            weights = [config.orth_reg_weight for config in regularised]
            for config in regularised:
                config.orth_reg_weight = 0.0
            found = super().evaluate(*args, **kwargs)
            for config, weight in zip(regularised, weights):
                config.orth_reg_weight = weight
            return found

        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            everywhere = self.accelerator.gather(loss.detach().view(1)) if self.accelerator.num_processes > 1 else loss
            if not torch.isfinite(everywhere).all():  # all processes stop together
                raise utils.RunFailed(
                    f"the training loss is {loss.item()} at step {self.state.global_step + 1}; try a lower "
                    "--learning_rate, or --bf16 instead of --fp16"
                )
            return loss

        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            if own_loss is None:
                return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
            loss = own_loss(model, inputs)
            return (loss, {}) if return_outputs else loss

    return Trainer


def step_of(checkpoint):
    """checkpoint-63 -> 63."""
    return int(checkpoint.name.split("-")[-1])


def save_history(run, history):
    """training_history.json and training_curves.png: training loss, validation loss and accuracy over the steps."""
    matplotlib.use("Agg")
    if not run.main:
        return
    run.write_json("training_history.json", history)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for key, label in (
        ("loss", "training loss"),
        ("eval_loss", "validation loss"),
        ("eval_accuracy", "validation accuracy"),
    ):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(*zip(*points), marker="o" if len(points) < 20 else None, label=label)
    axes.set(xlabel="optimizer step", title=run.id)
    axes.legend()
    figure.savefig(run.path("training_curves.png"), dpi=120)
    plt.close(figure)
