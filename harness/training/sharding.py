"""Training whose weights, gradients or optimizer states lie in pieces on several GPUs: FSDP and DeepSpeed.

FSDP needs to know which modules are units, and one module for one embedding.
"""

import os
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import nn

import utils
from harness.models import folder, loading, precisions, properties


def check(args):
    """UserError for a DeepSpeed configuration of accelerate's whose precision is not that of the flags."""
    wanted = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    given = wanted == "no" or getattr(args, wanted, False)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" and not given:
        raise utils.UserError(f"accelerate's configuration lets DeepSpeed compute in {wanted}; give --{wanted}")


def used():
    """True under accelerate's configuration of FSDP or DeepSpeed."""
    return "true" in (os.environ.get("ACCELERATE_USE_FSDP"), os.environ.get("ACCELERATE_USE_DEEPSPEED"))


def read_by_one(args, task, precision):
    """True if nothing needs the weights before FSDP shares them out, so that the first process alone reads them: no new
    head that starts on the features, no score before, no --init by the weights, no 4-bit weights.
    """
    untouched = not getattr(args, "forgetting", False) and not getattr(args, "init", None) and not args.tune
    sharded = os.environ.get("ACCELERATE_USE_FSDP") == "true" and utils.world()[1] > 1
    return sharded and untouched and task.kind != "classification" and precision not in ("int8", "nf4")


def without_weights(name, *, precision="fp32", trust_remote_code=False, attention=None):
    """A language model whose weights are never written, and so take no memory; its buffers have their values."""
    loading.quiet()
    checkpoint = folder.configuration(name, trust_remote_code)
    options = {"dtype": precisions.torch_dtype(precision), "trust_remote_code": trust_remote_code}
    options.update({"attn_implementation": attention} if attention else {})
    with init_empty_weights(include_buffers=False):
        model = loading.LOADERS[folder.kind_of(checkpoint)].from_config(checkpoint, **options)
    for module in model.modules():
        for key, weight in module.named_parameters(recurse=False):
            setattr(module, key, torch.nn.Parameter(torch.empty_like(weight, device="cpu"), weight.requires_grad))
    model.tie_weights()
    return model.eval()


def whole(trainer, reload, run):
    """The best checkpoint, or the last weights where none was chosen, as a whole model of each process' own.

    It is read from its folder: pieces of 4-bit weights could not be filled again. Where DeepSpeed trained all weights
    the model is in the 16 bits that it held them in. reload: folder -> model.
    """
    best, mixed = trainer.state.best_model_checkpoint, trainer.accelerator.mixed_precision
    if best is None:
        best = str(run.path("checkpoints") / "whole")
        trainer.save_model(best)
    trainer.accelerator.wait_for_everyone()
    model = reload(Path(best))
    if trainer.is_deepspeed_enabled and mixed != "no" and not hasattr(model, "peft_config"):
        run.row["precision"] = mixed
        return model.to(precisions.torch_dtype(mixed))
    return model


def prepare(trainer):
    """Before `train`: of a Trainer that shards by FSDP; nothing of others."""
    if trainer.is_fsdp_enabled:
        model, plugin = properties.base_model(trainer.model), trainer.accelerator.state.fsdp_plugin
        share_embedding(model)
        plugin.transformer_cls_names_to_wrap = layer_classes(model)
        plugin.cpu_ram_efficient_loading = model.read_by_one


def layer_classes(model):
    """Names of the classes whose modules are units of their own: the layers.

    transformers' _no_split_modules has the embeddings of encoders besides; accelerate makes a unit of the input
    embedding itself, and a parameter cannot be of two units.
    """
    embedding = model.get_input_embeddings()
    names = {type(module).__name__ for module in model.modules() if type(module).__name__ in model._no_split_modules}
    outer = {type(module).__name__ for module in model.modules() if any(part is embedding for part in module.modules())}
    return sorted(names - outer)


def share_embedding(model):
    """The input embedding in the place of others with its weight (those of T5's stacks), which are no modules any more:
    a parameter cannot be of two units.
    """
    embedding = model.get_input_embeddings()
    for module in list(model.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, nn.Embedding) and part is not embedding and part.weight is embedding.weight:
                delattr(module, name)
                vars(module)[name] = embedding  # as an attribute, without a name in the state dict
