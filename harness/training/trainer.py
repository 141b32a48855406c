"""Training with transformers' Trainer: the same batches, schedule, checkpoint choice and clock for every training
script.

The scripts differ in what they let the optimizer change, not in how they train. TRL's SFTTrainer is not used: it
computes its own loss from the base model (so AdaLoRA's regulariser, which peft adds to the model's loss, is lost), and
leaves a changed forward on the model. benchmarks/bench_training.py compares the two.
"""

import argparse
import contextlib
import itertools
import math

import torch
import transformers

import utils
from harness.arguments import MOST_CHECKS, auto_epochs
from harness.evaluation import metrics
from harness.flags import FLASH
from harness.models import adapters, folder, loading, memory_forecast, properties, scoring
from harness.training import collators, curves, loop, one_device, resume, sharding

WIDTH = 384  # hidden size of MiniLM, on which the rates of heads were searched


def check_device(args, device):
    """UserError for flags that this device cannot take."""
    if device == "cpu" and args.fp16:
        raise utils.UserError("--fp16 needs a CUDA GPU; on a CPU leave it out, or use --bf16")
    if device == "cpu" and ("8bit" in args.optim or "paged" in args.optim):
        raise utils.UserError(f"--optim {args.optim} needs a CUDA GPU; on a CPU use adamw_torch_fused")
    sharding.check(args)


def load_base(args, task, tokenizer, device, precision, name=None, to_share=False):
    """The model to train, `name` or --model: with a new classification head, or as the language model that it is.

    to_share: FSDP may share its weights out before anything else reads them.
    """
    head, by_one = task.kind == "classification", to_share and sharding.read_by_one(args, task, precision)
    options = {"precision": precision, "trust_remote_code": args.trust_remote_code}
    options["attention"] = scoring_attention(args, precision)
    if by_one and utils.world()[0]:
        model = sharding.without_weights(args.model, **options)
    else:
        model = loading.load_model(
            name or args.model,
            "classifier" if head else "auto",
            labels=adapters.labels_to_train(name or args.model, task.labels, args.trust_remote_code) if head else None,
            device="cpu" if by_one else device,
            pad_token_id=tokenizer.pad_token_id,
            head_reads=args.head_reads,
            **options,
        )
    model.read_by_one = by_one
    pack_4bit(model, False)
    try:
        with training_attention(model, args):
            pass
    except (ImportError, ValueError) as error:  # it is not installed, or not for this model
        raise utils.UserError(f"--attn_implementation {args.attn_implementation}: {folder.first_line(error)}") from None
    return model


def scoring_attention(args, precision):
    """The attn_implementation before and after training: flash attention takes fp32 weights only under the autocast of
    training.
    """
    return "sdpa" if args.attn_implementation == FLASH and precision == "fp32" else args.attn_implementation


@contextlib.contextmanager
def training_attention(model, args):
    """Within it the model has the attention of the flags, where it was loaded with another one to score."""
    base = properties.base_model(model)
    usual = base.config._attn_implementation
    if args.attn_implementation in (None, usual):
        yield
        return
    base.set_attn_implementation(args.attn_implementation)
    try:
        yield
    finally:
        base.set_attn_implementation(usual)


def pack_4bit(model, allowed):
    """Whether 4-bit layers on a CPU may be packed in the next pass in eval mode: faster, but without a gradient.

    bitsandbytes (0.50) does so on processors with AVX512-BF16, and training cannot go on then.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            able = module.__dict__.setdefault("able_to_pack", module.support_avx512bf16_for_cpu)
            module.support_avx512bf16_for_cpu = allowed and able


def uses_chat(args, task, tokenizer):
    """True if the examples are rendered with the tokenizer's chat template; classification heads read plain text."""
    return task.kind != "classification" and loading.uses_chat(args.prompt_format, tokenizer)


def learning_rate(args, task, rate):
    """--learning_rate; by default `rate`, for a head of a model wider than WIDTH that times WIDTH / hidden size.

    Adam's best rate falls with the width (muP: Yang et al. 2022, arXiv:2203.03466). Rates for answers stay as they are.
    """
    if args.learning_rate or rate is None or task.kind != "classification":
        return args.learning_rate or rate
    config = folder.configuration(args.model, args.trust_remote_code).get_text_config()
    return float(f"{rate * min(1.0, WIDTH / getattr(config, 'hidden_size', WIDTH)):.2g}")


def n_steps(n_examples, args):
    """Optimizer steps of a training run, as the Trainer counts them."""
    batches = math.ceil(n_examples / args.batch_size / utils.world()[1])
    return args.max_steps or math.ceil(args.epochs * max(math.ceil(batches / args.gradient_accumulation), 1))


def with_epochs(args, n_examples, kind):
    """`args` with a number in place of --epochs auto, and as few validations (--save_steps) as MOST_CHECKS allows."""
    if args.epochs != "auto":
        return args
    examples = args.batch_size * args.gradient_accumulation * utils.world()[1]  # of an optimizer step
    passes = auto_epochs(n_examples, examples, kind)
    length = argparse.Namespace(**{**vars(args), "epochs": passes})
    if passes > MOST_CHECKS and not args.max_steps and not args.save_steps:
        length.save_steps = n_steps(n_examples, length) * math.ceil(passes / MOST_CHECKS) // passes
    return length


def train(
    model,
    tokenizer,
    task,
    args,
    run,
    device,
    learning_rate,
    chat=False,
    callbacks=(),
    reload=None,
    keep_last=False,
    measure=None,
):
    """Train on the task's training examples. Returns the model with its best checkpoint (see `fit`).

    The best checkpoint has the highest validation accuracy (a head) or the lowest validation loss (answers).
    reload: folder -> model, for weights that FSDP or DeepSpeed keep in shards; measure: (model, tokenizer) -> None,
    called before the first step, once the data are found to be right.
    """
    if len(task.train) < 2:
        raise utils.UserError(f"{task.name} has {len(task.train)} training examples; fine-tuning needs at least two")
    run.row["n_train"] = len(task.train)
    run.use_labels(task.train)
    if not keep_last:
        run.use_labels(task.validation)  # they choose the checkpoint
    data, options = prepare(model, tokenizer, task, args, device, chat)
    options.update(reload=reload, keep_last=keep_last)
    if measure:
        measure(model, tokenizer)
    return fit(model, tokenizer, data, args, run, device, learning_rate, callbacks, **options)


def prepare(model, tokenizer, task, args, device, chat):
    """(collators.Data, options of `fit`: the validation metric) for a head or for answers."""
    if task.kind != "classification":
        return collators.answer_data(model, tokenizer, task, args, chat), {}
    data = collators.classification_data(model, tokenizer, task, args, device)
    if args.max_length:  # saved with the tokenizer, so that whoever loads it cuts inputs alike
        tokenizer.model_max_length = scoring.classifier_length(model, tokenizer, args.max_length)
    return data, {"best": "accuracy", "compute_metrics": validation_accuracy}


def first_batches(model, tokenizer, task, args, n):
    """The first n batches of the training examples, in their order, padded."""
    padded = argparse.Namespace(**{**vars(args), "padding_free": False})
    data, _ = prepare(model, tokenizer, task, padded, model.device.type, uses_chat(args, task, tokenizer))
    loader = torch.utils.data.DataLoader(data.train, args.batch_size, collate_fn=data.collate)
    return list(itertools.islice(loader, n))


def trial(model, tokenizer, task, args, run, device, chat, callbacks=()):
    """Train on the task's training examples and return how the model does on its N validation examples: {"loss"}, of a
    head also {"accuracy", "right": [N] of 0 and 1}.

    Nothing is kept: no checkpoint, no cell of the row.
    """
    data, options = prepare(model, tokenizer, task, args, device, chat)
    compute = options.get("compute_metrics")
    settings = training_arguments(args, run, data, device, args.learning_rate, None, compute, keep=False)
    trainer = loop.Trainer(
        model=model,
        args=settings,
        processing_class=tokenizer,
        train_dataset=data.train,
        eval_dataset=data.validation,
        data_collator=data.collate,
        callbacks=list(callbacks),
        compute_metrics=compute,
        loraplus_ratio=getattr(args, "loraplus_ratio", None),
    )
    trainer.train()
    if compute is None:
        return {"loss": trainer.evaluate()["eval_loss"]}
    output = trainer.predict(data.validation)
    right = (predicted(output) == output.label_ids).astype(float)
    return {"loss": output.metrics["test_loss"], "accuracy": float(right.mean()), "right": right}


def predicted(output):
    """[N] class indices of the Trainer's output. BART's classifier returns its encoder's states besides its logits."""
    logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
    return logits.argmax(-1)


def validation_accuracy(output):
    """The Trainer's compute_metrics of a head."""
    return {"accuracy": metrics.accuracy(predicted(output), output.label_ids)}


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
    if data.note:
        print(data.note)
        run.note(data.note)
    choose = data.validation is not None
    if args.early_stopping and not choose:
        raise utils.UserError("--early_stopping needs validation examples, and there are none")
    if args.gradient_checkpointing and hasattr(model, "enable_input_require_grads"):
        model.enable_input_require_grads()  # a frozen base's embeddings have no gradient to go on from (peft)
    stopping = [transformers.EarlyStoppingCallback(args.early_stopping)] if args.early_stopping else []
    trainer = loop.Trainer(
        model=model,
        args=training_arguments(args, run, data, device, learning_rate, None if keep_last else best, compute_metrics),
        processing_class=tokenizer,
        train_dataset=data.train,
        eval_dataset=data.validation,
        data_collator=data.collate,
        callbacks=[*stopping, *callbacks],
        compute_metrics=compute_metrics,
        own_loss=loss,
        loraplus_ratio=getattr(args, "loraplus_ratio", None),
    )
    if choose:
        used = ", the last checkpoint kept" if keep_last else " chose the checkpoint"
        run.note(f"{len(data.validation)} validation examples{used}")
    mixed = trainer.accelerator.mixed_precision  # of the flags, or of accelerate's configuration
    if mixed != "no":
        run.note(f"trained in {mixed} mixed precision")
    run.note(f"learning rate {learning_rate:g}, {n_steps(len(data.train), args)} steps")
    checkpoint = resume.last_checkpoint(run.dir) if run.resumed else None
    if run.resumed:
        begin = checkpoint.name if checkpoint else "the start"
        run.note(f"resumed from {begin}; train_seconds count the last process only")
    if run.main:
        resume.hold(run.path("checkpoints").parent)  # --resume of a run that goes on is refused
    memory_forecast.predict_training(run, model, data, args, device)
    sharding.prepare(trainer)
    with utils.measure() as spent, training_attention(model, args):
        clock = loop.Clock()
        trainer.add_callback(clock)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    history, first = trainer.state.log_history, resume.step_of(checkpoint) if checkpoint else 0
    evaluating = sum(entry.get("eval_runtime", 0.0) for entry in history if entry["step"] > first)
    apart = clock.preparing + trainer.saving + evaluating
    before = run.row.get("train_seconds") or 0.0  # of the trials and the start of the head
    run.row.update(train_seconds=before + spent.seconds - apart, **spent.memory_columns())
    if clock.preparing > 1:
        run.note(f"{clock.preparing:.0f} s before the first step, for optimizer and sharding, are in no column")
    save_history(run, history)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:  # each process goes on with a whole model of its own
        return sharding.whole(trainer, reload, run).eval()
    pack_4bit(model, True)
    # without the autocast that mixed precision leaves on the model: it is scored as it will be loaded again
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()


def training_arguments(args, run, data, device, learning_rate, best, compute_metrics, keep=True):
    """transformers.TrainingArguments from the flags. best: the validation metric that chooses the checkpoint, None: the
    last; keep: False for no checkpoints and no validation on the way.
    """
    steps, classes = n_steps(len(data.train), args), compute_metrics is not None
    choose = keep and data.validation is not None
    # without validation no epoch needs a checkpoint; with few examples there would be one at every step
    every = args.save_steps or (None if choose else max(50, math.ceil(steps / max(args.epochs, 1))))
    when, best = "steps" if every else "epoch", best if choose else None
    options = {}
    if args.gradient_checkpointing:
        new = "activation_checkpointing"  # the name from transformers 5.2x on
        name = new if new in transformers.TrainingArguments.__dataclass_fields__ else "gradient_checkpointing"
        options = {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    return one_device.arguments(
        transformers.TrainingArguments,
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
        save_strategy=when if keep else "no",
        save_steps=every or 500,
        eval_steps=every,
        save_total_limit=2,
        load_best_model_at_end=best is not None and not sharding.used(),  # see sharding.whole
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


def save_history(run, history):
    """training_history.json and training_curves.png: training loss, validation loss and accuracy over the steps."""
    if run.main:
        run.write_json("training_history.json", history)
        curves.training_curves(history, run.path("training_curves.png"), run.id)
