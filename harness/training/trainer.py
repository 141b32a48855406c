"""Training with transformers' Trainer: the same batches, schedule, checkpoint choice and clock for every training
script.

The scripts differ in what they let the optimizer change, not in how they train. TRL's SFTTrainer is not used: it
computes its own loss from the base model (so AdaLoRA's regulariser, which peft adds to the model's loss, is lost),
projects every position on a CPU, and leaves a changed forward on the model. benchmarks/bench_training.py compares the
two.
"""

import math

import torch
import transformers
from transformers.trainer_pt_utils import LengthGroupedSampler

import utils
from harness.evaluation import metrics
from harness.models import loading, memory_forecast, scoring
from harness.training import collators, curves, resume


def check_device(args, device):
    """UserError for flags that this device cannot take."""
    if device == "cpu" and args.fp16:
        raise utils.UserError("--fp16 needs a CUDA GPU; on a CPU leave it out, or use --bf16")
    if device == "cpu" and ("8bit" in args.optim or "paged" in args.optim):
        raise utils.UserError(f"--optim {args.optim} needs a CUDA GPU; on a CPU use adamw_torch")


def load_base(args, task, tokenizer, device, precision, name=None):
    """The model to train, `name` or --model: with a new classification head, or as the language model that it is."""
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


def uses_chat(args, task, tokenizer):
    """True if the examples are rendered with the tokenizer's chat template; classification heads read plain text."""
    return task.kind != "classification" and loading.uses_chat(args.prompt_format, tokenizer)


def n_steps(n_examples, args):
    """Optimizer steps of a training run, as the Trainer counts them."""
    batches = math.ceil(n_examples / args.batch_size / utils.world()[1])
    return args.max_steps or math.ceil(args.epochs * max(math.ceil(batches / args.gradient_accumulation), 1))


def train(
    model, tokenizer, task, args, run, device, learning_rate, chat=False, callbacks=(), reload=None, keep_last=False
):
    """Train on the task's training examples. Returns the model with its best checkpoint (see `fit`).

    The best checkpoint has the highest validation accuracy (a head) or the lowest validation loss (answers).
    reload: folder -> model, for weights that FSDP or DeepSpeed keep in shards.
    """
    if len(task.train) < 2:
        raise utils.UserError(f"{task.name} has {len(task.train)} training examples; fine-tuning needs at least two")
    run.row["n_train"] = len(task.train)
    options = {"reload": reload, "keep_last": keep_last}
    if task.kind == "classification":
        data = collators.classification_data(model, tokenizer, task, args, device)
        if args.max_length:  # saved with the tokenizer, so that whoever loads it cuts inputs alike
            tokenizer.model_max_length = scoring.classifier_length(model, tokenizer, args.max_length)
        options.update(best="accuracy", compute_metrics=validation_accuracy)
    else:
        data = collators.answer_data(model, tokenizer, task, args, chat)
        if data.note:
            print(data.note)
            run.note(data.note)
    return fit(model, tokenizer, data, args, run, device, learning_rate, callbacks, **options)


def validation_accuracy(output):
    """The Trainer's compute_metrics of a head. BART's classifier returns its encoder's states besides its logits."""
    logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
    return {"accuracy": metrics.accuracy(logits.argmax(-1), output.label_ids)}


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
    """Train on a collators.Data and return the model, in eval mode, with the checkpoint that is best on the validation
    rows.

    Rows of similar length share a batch. best: the validation metric; loss: None for the model's own, or a function of
    (model, batch) whose batches have their targets under "labels"; keep_last: keep the last checkpoint instead of the
    best. Fills in the row's train_seconds (evaluations left out) and memory, and writes training_history.json and
    training_curves.png. RunFailed if the loss is no longer a number.
    """
    choose = data.validation is not None
    if args.early_stopping and not choose:
        raise utils.UserError("--early_stopping needs validation examples, and there are none")
    if args.gradient_checkpointing and hasattr(model, "enable_input_require_grads"):
        model.enable_input_require_grads()  # a frozen base's embeddings have no gradient to go on from (peft)
    stopping = [transformers.EarlyStoppingCallback(args.early_stopping)] if args.early_stopping else []
    trainer = Trainer(
        model=model,
        args=training_arguments(args, run, data, device, learning_rate, None if keep_last else best, compute_metrics),
        processing_class=tokenizer,
        train_dataset=data.train,
        eval_dataset=data.validation,
        data_collator=data.collate,
        callbacks=[*stopping, *callbacks],
        compute_metrics=compute_metrics,
        own_loss=loss,
    )
    if choose:
        used = ", the last checkpoint kept" if keep_last else " chose the checkpoint"
        run.note(f"{len(data.validation)} validation examples{used}")
    if args.fp16 or args.bf16:
        run.note(f"trained in {'fp16' if args.fp16 else 'bf16'} mixed precision")
    run.note(f"learning rate {learning_rate:g}")
    checkpoint = resume.last_checkpoint(run.dir) if run.resumed else None
    if run.resumed:
        begin = checkpoint.name if checkpoint else "the start"
        run.note(f"resumed from {begin}; train_seconds count the last process only")
    memory_forecast.predict_training(run, model, data, args, device)
    with utils.measure() as spent:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    history, first = trainer.state.log_history, resume.step_of(checkpoint) if checkpoint else 0
    evaluating = sum(entry.get("eval_runtime", 0.0) for entry in history if entry["step"] > first)
    run.row.update(train_seconds=spent.seconds - evaluating, **spent.memory_columns())
    save_history(run, history)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:  # each process goes on with a whole model of its own
        trainer.save_model(str(run.path("checkpoints") / "whole"))
        trainer.accelerator.wait_for_everyone()
        return reload(run.path("checkpoints") / "whole").eval()
    # without the autocast that mixed precision leaves on the model: it is scored as it will be loaded again
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()


def training_arguments(args, run, data, device, learning_rate, best, compute_metrics):
    """transformers.TrainingArguments from the flags. best: the validation metric that chooses the checkpoint, None: the
    last.
    """
    steps, choose, classes = n_steps(len(data.train), args), data.validation is not None, compute_metrics is not None
    # without validation no epoch needs a checkpoint; with few examples there would be one at every step
    every = args.save_steps or (None if choose else max(50, math.ceil(steps / max(args.epochs, 1))))
    when, best = "steps" if every else "epoch", best if choose else None
    options = {}
    if args.gradient_checkpointing:
        new = "activation_checkpointing"  # the name from transformers 5.2x on
        name = new if new in transformers.TrainingArguments.__dataclass_fields__ else "gradient_checkpointing"
        options = {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    return transformers.TrainingArguments(
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
        load_best_model_at_end=best is not None,
        metric_for_best_model=best,
        greater_is_better=None if best is None else best != "loss",
        restore_callback_states_from_checkpoint=True,
        logging_steps=max(1, min(10, steps // 10)),
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


class EpochSampler(LengthGroupedSampler):
    """Rows of similar length together, in an order that depends on seed and epoch alone, as a resumed run needs it."""

    def __init__(self, batch_size, dataset, seed):
        super().__init__(batch_size, lengths=[len(row["input_ids"]) for row in dataset], generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        self.generator.manual_seed(self.seed + self.epoch)
        return super().__iter__()


class Trainer(transformers.Trainer):
    """transformers' Trainer, stopped when the loss is no longer a number, with the same batches after a restart.

    The loss of an optimizer step is the mean over all its targets (labels of a head, tokens of answers), however they
    are split into batches and over processes. transformers leaves that to the model's loss, and takes it for done with
    every model whose forward has **kwargs; heads and encoder-decoders have them and average each batch nonetheless. So
    here every loss is a mean over its batch, and is weighted by the batch's share of the step's targets.

    own_loss: None for the model's loss, or a function of (model, batch) that returns a mean over the rows of "labels".
    """

    def __init__(self, *args, own_loss=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.own_loss = own_loss
        self.model_accepts_loss_kwargs = False  # the model averages its batch
        self.loss_is_scaled_for_ga = True  # in compute_loss

    def n_targets(self, inputs):
        """How many targets the loss of a batch is the mean of. The first token of a row is never a target."""
        return len(inputs["labels"]) if self.own_loss else int((inputs["labels"] != -100).sum())

    def _get_num_items_in_batch(self, batch_samples, device):
        """The targets [] of batches that belong together, those of all processes."""
        mine = torch.tensor(sum(self.n_targets(batch) for batch in batch_samples), device=device)
        return self.accelerator.gather(mine.view(1)).sum() if self.accelerator.num_processes > 1 else mine

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        mine = self.n_targets(inputs)
        if self.own_loss:
            loss, outputs = self.own_loss(model, inputs), {}
        else:
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if mine == 0:  # nothing but padding, whose mean is not a number
            loss = 0 * outputs["logits"].sum()
        elif num_items_in_batch is not None:  # gradients are averaged over the processes, so each counts as often
            loss = loss * (self.accelerator.num_processes * mine / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model, inputs, *args, **kwargs):
        """The loss of a batch over all processes; examples that only fill up the last one do not count."""
        state, size = self.accelerator.gradient_state, len(inputs["input_ids"])
        if self.accelerator.num_processes > 1 and state.end_of_dataloader and state.remainder > 0 and not self.own_loss:
            real = max(0, state.remainder - size * self.accelerator.process_index)
            for name in {"labels", "shift_labels"} & set(inputs):
                inputs[name] = inputs[name].clone()
                inputs[name][real:] = -100
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if self.accelerator.num_processes > 1:
            loss = self.accelerator.reduce(loss, "mean")
        return loss, logits, labels

    def _get_train_sampler(self, train_dataset=None):
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return EpochSampler(batch, train_dataset or self.train_dataset, self.args.seed)

    def evaluate(self, *args, **kwargs):
        """Without AdaLoRA's regulariser, which peft adds to every loss."""
        configs = getattr(self.model, "peft_config", {}).values()
        regularised = [config for config in configs if hasattr(config, "orth_reg_weight")]
        weights = [config.orth_reg_weight for config in regularised]
        for config in regularised:
            config.orth_reg_weight = 0.0
        scores = super().evaluate(*args, **kwargs)
        for config, weight in zip(regularised, weights):
            config.orth_reg_weight = weight
        return scores

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        everywhere = self.accelerator.gather(loss.detach().view(1)) if self.accelerator.num_processes > 1 else loss
        if not torch.isfinite(everywhere).all():  # all processes stop together
            raise utils.RunFailed(
                f"the training loss is {loss.item()} at step {self.state.global_step + 1}; try a lower "
                "--learning_rate, or --bf16 instead of --fp16"
            )
        return loss


class AllocateRanks(transformers.TrainerCallback):
    """Lets AdaLoRA move its ranks after every optimizer step; nothing else does (peft issue 1801)."""

    def __init__(self, model):
        self.model = model

    def on_optimizer_step(self, args, state, control, **kwargs):  # before the gradients, which it reads, are cleared
        self.model.base_model.update_and_allocate(state.global_step + 1)


def save_history(run, history):
    """training_history.json and training_curves.png: training loss, validation loss and accuracy over the steps."""
    if run.main:
        run.write_json("training_history.json", history)
        curves.training_curves(history, run.path("training_curves.png"), run.id)
