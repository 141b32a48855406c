"""The Trainer's optimizer steps: which batches, which loss, and what happens after each."""

import time

import torch
import transformers
from peft.optimizers import create_loraplus_optimizer
from torch.nn.functional import cross_entropy
from transformers.trainer_pt_utils import LengthGroupedSampler

import utils


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


def peft_configs(model):
    return getattr(model, "peft_config", {}).values()


class Trainer(transformers.Trainer):
    """transformers' Trainer, stopped when the loss is no longer a number, with the same batches after a restart.

    The loss of an optimizer step is the mean over all its targets (labels of a head, tokens of answers), however they
    are split into batches and over processes. transformers leaves that to the model's loss, and takes it for done with
    every model whose forward has **kwargs; heads and encoder-decoders have them and average each batch nonetheless. So
    here every loss is a mean over its batch, and is weighted by the batch's share of the step's targets.

    own_loss: None for the model's loss, or a function of (model, batch) that returns a mean over the rows of "labels".
    loraplus_ratio: LoRA's B matrices learn at this many times the learning rate (LoRA+: Hayou et al. 2024).
    """

    def __init__(self, *args, own_loss=None, loraplus_ratio=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.own_loss, self.loraplus_ratio = own_loss, loraplus_ratio
        self.model_accepts_loss_kwargs = False  # the model averages its batch
        self.loss_is_scaled_for_ga = True  # in compute_loss
        self.saving = 0.0  # seconds of checkpoints
        self.narrow = self.is_deepspeed_enabled or next(self.model.parameters()).dtype != torch.float32

    def n_targets(self, inputs):
        """How many targets the loss of a batch is the mean of. The first token of a row is never a target."""
        return len(inputs["labels"]) if self.own_loss else int((inputs["labels"] != -100).sum())

    def _get_num_items_in_batch(self, batch_samples, device):
        """The targets [] of batches that belong together, those of all processes."""
        mine = torch.tensor(sum(self.n_targets(batch) for batch in batch_samples), device=device)
        return self.accelerator.gather(mine.view(1)).sum() if self.accelerator.num_processes > 1 else mine

    def create_optimizer(self, *args, **kwargs):
        if self.loraplus_ratio and self.optimizer is None:
            make, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            options.update(loraplus_lr_ratio=self.loraplus_ratio, loraplus_weight_decay=self.args.weight_decay)
            self.optimizer = create_loraplus_optimizer(self.model, make, **options)
        return super().create_optimizer(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        mine, targets = self.n_targets(inputs), self.targets(inputs)
        if self.own_loss:
            loss, outputs = self.own_loss(model, inputs), {}
        elif targets is None:
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        else:
            outputs = model(**{name: x for name, x in inputs.items() if name not in ("labels", "shift_labels")})
            loss = cross_entropy(outputs["logits"].float().flatten(0, -2), targets.flatten())
        if mine == 0:  # nothing but padding, whose mean is not a number
            loss = 0 * outputs["logits"].float().sum()
        elif num_items_in_batch is not None:  # gradients are averaged over the processes, so each counts as often
            loss = loss * (self.accelerator.num_processes * mine / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def targets(self, inputs):
        """The token or class of each logit of a model that gives its loss in 16 bits: of what FSDP shards, and of heads
        and encoder-decoders in 16 bits. None where the model's own loss is in fp32, and of AdaLoRA, which adds to it.
        """
        one_each = self.model.config.is_encoder_decoder or inputs["labels"].dim() == 1  # or shifted by one
        narrow = self.is_fsdp_enabled or (one_each and self.narrow)
        if not narrow or any(hasattr(some, "orth_reg_weight") for some in peft_configs(self.model)):
            return None
        return inputs["labels"] if one_each else inputs.get("shift_labels")

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
        regularised = [config for config in peft_configs(self.model) if hasattr(config, "orth_reg_weight")]
        weights = [config.orth_reg_weight for config in regularised]
        for config in regularised:
            config.orth_reg_weight = 0.0
        scores = super().evaluate(*args, **kwargs)
        for config, weight in zip(regularised, weights):
            config.orth_reg_weight = weight
        return scores

    def _save_checkpoint(self, *args, **kwargs):
        start = time.perf_counter()
        super()._save_checkpoint(*args, **kwargs)
        self.saving += time.perf_counter() - start

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        everywhere = self.accelerator.gather(loss.detach().view(1)) if self.accelerator.num_processes > 1 else loss
        if not torch.isfinite(everywhere).all():  # all processes stop together
            raise utils.RunFailed(
                f"the training loss is {loss.item()} at step {self.state.global_step + 1}; try a lower "
                "--learning_rate, or --bf16 instead of --fp16"
            )
        return loss


class Clock(transformers.TrainerCallback):
    """preparing: seconds from its making to the first step, in which DeepSpeed compiles its optimizer."""

    def __init__(self):
        self.made, self.preparing = time.perf_counter(), 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        utils.synchronize()
        self.preparing = time.perf_counter() - self.made


class AllocateRanks(transformers.TrainerCallback):
    """Lets AdaLoRA move its ranks after every optimizer step; nothing else does (peft issue 1801)."""

    def __init__(self, model):
        self.model = model

    def on_optimizer_step(self, args, state, control, **kwargs):  # before the gradients, which it reads, are cleared
        self.model.base_model.update_and_allocate(state.global_step + 1)
