"""Training, shared by the scripts that train: the flags, the data, the Trainer's set-up, the training clock, `--resume`.

It stands between the scripts and inference.py, and imports heavy libraries only where they are used. The scripts differ in
what they let the optimizer change, not in how they train: full fine-tuning and adapters get the same batches, schedule,
checkpoint choice and clock.

The trainer is transformers' Trainer, for heads and answers alike, and not TRL's SFTTrainer, which computes its own loss from the
base model (so that AdaLoRA's regulariser, which peft adds to the model's loss, is lost), projects every position on a CPU, and
leaves a changed forward on the model. benchmarks/bench_training.py compares the two.
"""

import argparse
import copy
import gc
import json
import math
from dataclasses import dataclass
from pathlib import Path

import metrics
import tasks
import utils
from utils import UserError

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit")


def add_training_args(parser, resume=True, padding_free=True):
    """The flags of every training script; resume, padding_free: those that not every one has."""
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=utils.positive, default=3, help="passes over the training examples (default: %(default)s)")
    group.add_argument("--max_steps", type=utils.positive_int, help="stop after so many optimizer steps, instead of --epochs")
    group.add_argument("--learning_rate", type=utils.positive, help="peak learning rate (default: by method and data, see above)")
    group.add_argument("--warmup", type=utils.fraction, default=0.06, help="share of the steps that warm up (default: %(default)s)")
    group.add_argument("--lr_scheduler", choices=("linear", "cosine", "constant_with_warmup"), default="linear", help="(default: linear)")
    group.add_argument("--weight_decay", type=utils.non_negative, default=0.01, help="of the optimizer (default: %(default)s)")
    group.add_argument("--optim", choices=OPTIMIZERS, default="adamw_torch", help="8bit and paged ones are bitsandbytes', on CUDA only")
    group.add_argument("--gradient_accumulation", type=utils.positive_int, default=1, metavar="N", help="batches of one optimizer step")
    group.add_argument("--gradient_checkpointing", action="store_true", help="compute activations again in the backward pass: less memory")
    group.add_argument("--early_stopping", type=utils.positive_int, metavar="N", help="stop after N checkpoints that were no better")
    group.add_argument("--save_steps", type=utils.positive_int, metavar="N", help="a checkpoint each N steps, instead of each epoch")
    group.add_argument(
        "--max_length",
        type=utils.number_type(int, "a whole number of at least 8", lambda value: value >= 8),
        help="tokens an example is cut to (default: 512, or what the model takes)",
    )
    mixed = group.add_mutually_exclusive_group()
    mixed.add_argument("--fp16", action="store_true", help="mixed precision with float16 (CUDA only)")
    mixed.add_argument("--bf16", action="store_true", help="mixed precision with bfloat16: computes in it, the weights stay --weights")
    group.add_argument("--weights", choices=("fp32", "bf16"), default="fp32",
                       help="of the model in memory, 4 or 2 bytes a parameter; AdamW adds 12 or 6 for each trained one "
                       "(default: %(default)s)")  # fmt: skip
    group.add_argument("--attn_implementation", choices=("sdpa", "eager", "flash_attention_2"), help="(default: the model's own)")
    if resume:
        group.add_argument("--resume", nargs="?", const="auto", metavar="RUN_DIR",
                           help="go on from a cut-off run's last checkpoint: the newest run with these flags, or RUN_DIR")  # fmt: skip
    group = parser.add_argument_group("answers (question answering and instructions)")
    group.add_argument("--prompt_format", choices=("plain", "chat", "auto"), default="auto",
                       help="chat uses the tokenizer's template, auto does where there is one (default: %(default)s)")  # fmt: skip
    group.add_argument("--max_new_tokens", type=utils.positive_int, help="of an evaluation answer (default: 32, 256 for instructions)")
    if padding_free:
        group.add_argument("--padding_free", action="store_true",
                           help="a batch is one row without padding; for causal models, fast with flash_attention_2")  # fmt: skip
    group = parser.add_argument_group("study")
    group.add_argument("--repeats", type=utils.positive_int, default=1, metavar="N",
                       help="runs over N data seeds from --data_seed on, a row each, the model read once (default: 1)")  # fmt: skip
    group.add_argument("--eval_ood", metavar="DATASET", help="score out of domain too: a data set of the same labels, or HANS for MNLI")


def check_training_args(parser, args):
    """Cross-checks that need no library. Returns args."""
    if args.repeats > 1 and getattr(args, "resume", None):
        parser.error("--resume goes on with one run; leave out --repeats")
    if args.max_steps and args.epochs != parser.get_default("epochs"):
        parser.error("--max_steps stands instead of --epochs; give one of them")
    if args.fp16 and args.weights == "bf16":
        parser.error("--fp16 scales gradients of fp32 weights; with --weights bf16 take --bf16 or neither")
    return args


def repeats(args):
    """The arguments of each of --repeats runs: data seeds that follow each other."""
    for i in range(args.repeats):
        yield argparse.Namespace(**{**vars(args), "data_seed": args.data_seed + i})


def check_device(args, device):
    """UserError for flags that this device cannot take."""
    if device == "cpu" and args.fp16:
        raise UserError("--fp16 needs a CUDA GPU; on a CPU leave it out, or use --bf16")
    if device == "cpu" and ("8bit" in args.optim or "paged" in args.optim):
        raise UserError(f"--optim {args.optim} needs a CUDA GPU; on a CPU use adamw_torch")


def out_of_domain(args, task):
    """The tasks.OutOfDomain that --eval_ood names, or None."""
    if not args.eval_ood:
        return None
    tasks.require_kind(task, "classification", "--eval_ood")
    return tasks.out_of_domain(args.eval_ood, task, args.max_eval_samples)


def load_base(args, task, tokenizer, device, precision, name=None):
    """The model that is to be trained, --model or `name`: with a classification head, or as the language model that it is."""
    import models

    head = task.kind == "classification"
    return models.load_model(
        name or args.model, "classifier" if head else "auto", labels=task.labels if head else None, precision=precision, device=device,
        pad_token_id=tokenizer.pad_token_id, trust_remote_code=args.trust_remote_code, attention=args.attn_implementation,
    )  # fmt: skip


def load_columns(loading, given):
    """The load cells of the row. Of several runs in one process none knows what the memory was before the model: it stays empty."""
    return {**loading.load_columns(), **({"start_rss_gb": None} if given.repeats > 1 else {})}


def own_copy(base, args, given):
    """A copy of the loaded model where more runs will begin from it, itself for the last one. given: main's own arguments."""
    gc.collect()  # what the run before held
    return base if args.data_seed == given.data_seed + given.repeats - 1 else copy.deepcopy(base)


def uses_chat(args, task, tokenizer):
    """Are examples written in the tokenizer's chat template?"""
    import models

    return task.kind != "classification" and models.uses_chat(args.prompt_format, tokenizer)


def evaluate(model, tokenizer, task, args, run, chat, other):
    """Score the trained model as prompt_eval.py would."""
    import evaluation

    if task.kind == "classification":
        evaluation.evaluate_classifier(model, tokenizer, task, run, args.batch_size, args.latency_runs, args.max_length, other)
    else:
        evaluation.evaluate_answers(model, tokenizer, task, run, "auto", args.latency_runs, chat, answer_length(args, task))
        run.row["batch_size"] = args.batch_size  # that of training


def answer_length(args, task):
    """Most new tokens of an answer: --max_new_tokens, or 256 for instructions and 32 for questions."""
    return args.max_new_tokens or (256 if task.kind == "instruction" else 32)


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


# -------------------------------------------------------------------------------------------------------------------- data


@dataclass
class Data:
    """What a Trainer needs besides the model."""

    train: object  # datasets.Dataset of token ids and labels
    validation: object  # the same, None without validation examples
    collate: object
    note: str | None = None


def classification_data(model, tokenizer, task, args, device):
    """Token ids and labels for a classification head, tokenized in batches; padded to the longest row of a batch."""
    from datasets import Dataset
    from transformers import DataCollatorWithPadding

    import inference

    limit = inference.classifier_length(model, tokenizer, args.max_length)

    def encode(examples):
        if not examples:
            return None
        data = Dataset.from_dict({"text": [ex.text for ex in examples], "text_pair": [ex.text_pair for ex in examples],
                                  "labels": [ex.label for ex in examples]})  # fmt: skip

        def tokenize(batch):
            pairs = None if batch["text_pair"][0] is None else batch["text_pair"]
            return tokenizer(batch["text"], pairs, truncation=True, max_length=limit)

        return data.map(tokenize, batched=True, remove_columns=["text", "text_pair"])

    collate = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if device == "cuda" else None)
    return Data(encode(task.train), encode(task.validation), collate)


def answer_data(model, tokenizer, task, args, chat):
    """Prompts with their answers, as prompt_eval.py prompts, the loss on the answers and their ends only.

    Prompt and answer are tokenized together. What is too long loses the beginning of its prompt, and then the end of its answer.
    """
    import models
    from shared_prefix import common_prefix, learns_prompt, takes

    if args.padding_free and not (takes(model, "position_ids") and takes(model, "logits_to_keep") and not learns_prompt(model)):
        raise UserError("--padding_free is for causal models that take position_ids, and not for learned prompts")
    limit = min(args.max_length or 512, models.context_length(model) or args.max_length or 512)
    seq2seq, cut = model.config.is_encoder_decoder, 0
    end = tokenizer(tasks.answer_end(tokenizer, chat), add_special_tokens=False).input_ids

    def encode(examples):
        nonlocal cut
        if not examples:
            return None
        rendered = [(*tasks.render(task, ex, (), tokenizer if chat else None), task.target(ex)) for ex in examples]
        prompts = tokenizer([prompt for prompt, _, _ in rendered], add_special_tokens=not chat, verbose=False).input_ids
        if seq2seq:
            cut += sum(len(ids) > limit for ids in prompts)
            targets = tokenizer(text_target=[target for _, _, target in rendered], truncation=True, max_length=limit).input_ids
            return _dataset([ids[-limit:] for ids in prompts], targets)
        ids, labels = [], []
        whole = tokenizer(["".join(parts) for parts in rendered], add_special_tokens=not chat, verbose=False).input_ids
        for prompt, row in zip(prompts, whole):
            row = row if row[-len(end) :] == end else row + end
            start = max(1, common_prefix([prompt, row]))
            excess = min(max(len(row) - limit, 0), start - 1)
            cut += len(row) > limit
            ids.append(row[excess:][:limit])
            labels.append(([-100] * (start - excess) + row[start:])[:limit])
        return _dataset(ids, labels)

    train, validation = encode(task.train), encode(task.validation)
    if seq2seq:
        from transformers import DataCollatorForSeq2Seq

        collate = DataCollatorForSeq2Seq(tokenizer, model)
    else:
        collate = Responses(tokenizer.pad_token_id, args.padding_free, positions=takes(model, "position_ids"),
                            partial_head=takes(model, "logits_to_keep") and not learns_prompt(model))  # fmt: skip
    return Data(train, validation, collate, f"{cut} training or validation examples were cut to {limit} tokens" if cut else None)


def _dataset(ids, labels):
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": ids, "labels": labels})


@dataclass
class Responses:
    """Collates prompts with their responses so that the language-model head projects few positions but the responses'.

    Rows are padded on the left and so end together: only the last columns, as many as the longest response has, go through
    the head, whose logits are most of the memory of a small model. padding_free: the rows of a batch follow each other in one,
    position 0 begins the next (without a cache transformers keeps their attention apart), and exactly the responses' positions
    are projected.
    positions: does the model take position_ids; partial_head: may the head project some positions only?
    """

    pad_id: int
    padding_free: bool = False
    positions: bool = True
    partial_head: bool = True

    def __call__(self, rows):
        import torch

        import inference

        if self.padding_free:
            ids, labels = (torch.tensor([token for row in rows for token in row[name]]) for name in ("input_ids", "labels"))
            kept = (labels[1:] != -100).nonzero()[:, 0]
            return {"input_ids": ids[None], "position_ids": torch.cat([torch.arange(len(row["input_ids"])) for row in rows])[None],
                    "labels": labels[None], "shift_labels": labels[kept + 1][None], "logits_to_keep": kept,
                    "use_cache": False}  # fmt: skip
        left = self.partial_head
        ids, mask = inference.pad_rows([row["input_ids"] for row in rows], self.pad_id, "cpu", left)
        labels, _ = inference.pad_rows([row["labels"] for row in rows], -100, "cpu", left)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        if left:
            kept = 1 + int((labels != -100).sum(1).max())  # the position before the response predicts its first token
            following = torch.cat([labels[:, 1:], torch.full((len(rows), 1), -100)], 1)
            batch.update(logits_to_keep=kept, shift_labels=following[:, -kept:].contiguous())
        if left and self.positions:
            batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        return batch


# ------------------------------------------------------------------------------------------------------------------ Trainer


def n_steps(n_examples, args):
    """Optimizer steps of a training run, as the Trainer counts them."""
    batches = math.ceil(n_examples / args.batch_size / utils.world()[1])
    return args.max_steps or math.ceil(args.epochs * max(math.ceil(batches / args.gradient_accumulation), 1))


def train(model, tokenizer, task, args, run, device, learning_rate, chat=False, callbacks=(), reload=None, keep_last=False):
    """Train on the task's training examples; the best checkpoint is that of the highest validation accuracy, or the lowest loss.

    reload: folder -> model, for weights that FSDP or DeepSpeed keep in pieces.
    """
    import inference

    if len(task.train) < 2:
        raise UserError(f"{task.name} has {len(task.train)} training examples; fine-tuning needs at least two")
    run.row["n_train"] = len(task.train)
    if task.kind == "classification":
        data = classification_data(model, tokenizer, task, args, device)
        if args.max_length:  # saved with the tokenizer, so that whoever loads it cuts inputs alike
            tokenizer.model_max_length = inference.classifier_length(model, tokenizer, args.max_length)
        return fit(
            model, tokenizer, data, args, run, device, learning_rate, callbacks, reload=reload, keep_last=keep_last, best="accuracy",
            compute_metrics=lambda out: {"accuracy": metrics.accuracy(_logits(out.predictions).argmax(-1), out.label_ids)},
        )  # fmt: skip
    data = answer_data(model, tokenizer, task, args, chat)
    if data.note:
        print(data.note)
        run.note(data.note)
    return fit(model, tokenizer, data, args, run, device, learning_rate, callbacks, reload=reload, keep_last=keep_last)


def _logits(predictions):
    """BART's classifier returns its encoder's states besides."""
    return predictions[0] if isinstance(predictions, tuple) else predictions


def fit(model, tokenizer, data, args, run, device, learning_rate, callbacks=(), best="loss", compute_metrics=None, loss=None,
        reload=None, keep_last=False):  # fmt: skip
    """Train with the Hugging Face Trainer and leave the best checkpoint in `model`, by a validation metric.

    Batches are of rows of about one length. loss: None for the model's own, or a function of (model, batch), whose batches have
    their targets under "labels". keep_last: the last checkpoint stays, whatever its validation metric. Fills in the row's
    train_seconds, which leave the evaluations out, and writes training_history.json and training_curves.png. utils.RunFailed
    where the loss is no longer a number.
    """
    import transformers

    choose = data.validation is not None
    best_stays = choose and not keep_last
    if args.early_stopping and not choose:
        raise UserError("--early_stopping needs validation examples, and there are none")
    # without validation the epochs mean nothing to checkpoints, and those of a few examples would be written at every step
    every = args.save_steps or (None if choose else max(50, math.ceil(n_steps(len(data.train), args) / max(args.epochs, 1))))
    when, classes = "steps" if every else "epoch", compute_metrics is not None
    options = {}
    if args.gradient_checkpointing:
        new = "activation_checkpointing"  # the name from transformers 5.2x on
        name = new if new in transformers.TrainingArguments.__dataclass_fields__ else "gradient_checkpointing"
        options = {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    arguments = transformers.TrainingArguments(
        output_dir=str(run.path("checkpoints")), num_train_epochs=args.epochs, max_steps=args.max_steps or -1,
        per_device_train_batch_size=args.batch_size, per_device_eval_batch_size=4 * args.batch_size if classes else args.batch_size,
        gradient_accumulation_steps=args.gradient_accumulation, optim=args.optim,
        learning_rate=learning_rate, lr_scheduler_type=args.lr_scheduler, warmup_steps=args.warmup, weight_decay=args.weight_decay,
        fp16=args.fp16, bf16=args.bf16, eval_strategy=when if choose else "no",
        save_strategy=when, save_steps=every or 500, eval_steps=every, save_total_limit=2,
        load_best_model_at_end=best_stays, metric_for_best_model=best if best_stays else None,
        greater_is_better=best != "loss" if best_stays else None, restore_callback_states_from_checkpoint=True,
        logging_steps=max(1, min(10, n_steps(len(data.train), args) // 10)),
        logging_nan_inf_filter=False, seed=args.seed, use_cpu=device == "cpu", prediction_loss_only=not classes,
        dataloader_pin_memory=device == "cuda", remove_unused_columns=classes, report_to="none", label_names=["labels"], **options,
    )  # fmt: skip
    if args.gradient_checkpointing and hasattr(model, "enable_input_require_grads"):
        model.enable_input_require_grads()  # a frozen base's embeddings have no gradient to go on from (peft)
    stopping = [transformers.EarlyStoppingCallback(args.early_stopping)] if args.early_stopping else []
    trainer = _trainer_class(loss, args.seed)(
        model=model, args=arguments, processing_class=tokenizer, train_dataset=data.train, eval_dataset=data.validation,
        data_collator=data.collate, callbacks=[*stopping, *callbacks], compute_metrics=compute_metrics,
    )  # fmt: skip
    if loss:
        trainer.model_accepts_loss_kwargs = False  # a mean over its batch, which the Trainer is to divide by --gradient_accumulation
    if choose:
        run.note(f"{len(data.validation)} validation examples" + (" chose the checkpoint" if best_stays else ", the last checkpoint kept"))
    if trainer.args.fp16 or trainer.args.bf16:
        run.note(f"trained in {'fp16' if trainer.args.fp16 else 'bf16'} mixed precision")
    run.note(f"learning rate {learning_rate:g}")
    checkpoint = last_checkpoint(run.dir) if run.resumed else None
    if run.resumed:
        run.note(f"resumed from {checkpoint.name if checkpoint else 'the start'}; train_seconds count the last process only")
    predict(run, model, data, args, device)
    with utils.measure() as spent:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    history = trainer.state.log_history
    evaluating = sum(entry.get("eval_runtime", 0.0) for entry in history if entry["step"] > (0 if not checkpoint else step_of(checkpoint)))
    run.row.update(train_seconds=spent.seconds - evaluating, **spent.memory_columns())
    save_history(run, history)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:  # each process goes on with a whole model of its own
        trainer.save_model(str(run.path("checkpoints") / "whole"))
        trainer.accelerator.wait_for_everyone()
        return reload(run.path("checkpoints") / "whole").eval()
    # without the autocast that mixed precision leaves on the model: it is scored as it will be loaded again
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()


def predict(run, model, data, args, device):
    """predicted_gb: the forecast of this training's peak, from the configuration and the longest batch."""
    import forecast

    rows, precision = data.train, run.row["precision"]
    labels = [row["labels"] for row in rows if isinstance(row.get("labels"), list)]  # of answers; distillation has targets of its own
    responses = [sum(label != -100 for label in some) for some in labels]
    shape = forecast.Shape(
        batch_size=min(args.batch_size, len(rows)), seq_len=max(len(row["input_ids"]) for row in rows),
        head_tokens=1 + max(responses) if responses and getattr(data.collate, "partial_head", True) else 0,
    )  # fmt: skip
    adapter = next(iter(getattr(model, "peft_config", {}).values()), None)
    forecast.record(
        run, forecast.training, model.config, forecast.kind_of(model), shape, precision=precision, peft_config=adapter,
        optimizer=args.optim, mixed=args.fp16 or args.bf16, checkpointing=args.gradient_checkpointing,
        attention=args.attn_implementation or "sdpa", accumulation=args.gradient_accumulation, device=device,
    )  # fmt: skip


def _trainer_class(own_loss, seed):
    import torch
    import transformers
    from transformers.trainer_pt_utils import LengthGroupedSampler

    class EpochSampler(LengthGroupedSampler):
        """Rows of about one length together, in an order that depends on seed and epoch alone, as a resumed run needs it."""

        def __init__(self, batch_size, dataset):
            super().__init__(batch_size, lengths=[len(row["input_ids"]) for row in dataset], generator=torch.Generator())
            self.epoch = 0

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            self.generator.manual_seed(seed + self.epoch)
            return super().__iter__()

    class Trainer(transformers.Trainer):
        """The Trainer, stopped where the loss is no number any more, its batches by length the same after a restart."""

        def _get_train_sampler(self, train_dataset=None):
            return EpochSampler(self.args.train_batch_size * self.args.gradient_accumulation_steps, train_dataset or self.train_dataset)

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
                raise utils.RunFailed(f"the training loss is {loss.item()} at step {self.state.global_step + 1}; try a lower "
                                      "--learning_rate, or --bf16 instead of --fp16")  # fmt: skip
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
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if not run.main:
        return
    run.write_json("training_history.json", history)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for key, label in (("loss", "training loss"), ("eval_loss", "validation loss"), ("eval_accuracy", "validation accuracy")):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(*zip(*points), marker="o" if len(points) < 20 else None, label=label)
    axes.set(xlabel="optimizer step", title=run.id)
    axes.legend()
    figure.savefig(run.path("training_curves.png"), dpi=120)
    plt.close(figure)
