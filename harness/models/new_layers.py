"""The layers of a classification head that its checkpoint does not have: they are random, and are trained whole."""

import torch

PEFT_HEADS = ("classifier", "score")  # the names that peft trains and saves for a classification task by itself


def find(model, missing):
    """Names of the outermost modules that a checkpoint lacks, sorted. missing: the names of the weights that it lacks.

    A module some of whose weights are there counts if one of its own is missing: adapters save whole modules.
    """
    missing, found = set(missing), []
    for name, module in model.named_modules():  # outer modules come first
        if not name or any(name.startswith(f"{outer}.") for outer in found):
            continue
        own = {f"{name}.{part}" for part, _ in module.named_parameters(recurse=False)}
        inner = {f"{name}.{part}" for part, _ in module.named_parameters()}
        if inner and (inner <= missing or own & missing):
            found.append(name)
    return sorted(found)


def keep_unquantized(model, names):
    """Put plain linear layers, as new as they are, in place of the quantized ones of new layers: those are trained."""
    for name in names:
        for path, module in list(model.get_submodule(name).named_modules(prefix=name)):
            if type(module).__module__.startswith("bitsandbytes"):
                plain = torch.nn.Linear(module.in_features, module.out_features, module.bias is not None)
                model._init_weights(plain)  # as transformers does
                parent, _, last = path.rpartition(".")
                setattr(model.get_submodule(parent), last, plain.to(module.weight.device))


def compute_in_fp32(model, names):
    """Hold the weights of a head, which are trained, in 32 bits, also on a body that computes in 16: else the optimizer
    would round them away, and a gradient scaler refuses them. What they read is cast.
    """
    for path, module in list(model.named_modules()):
        if path and path.rpartition(".")[2] in names or path in getattr(model, "new_layers", []):
            module.float().register_forward_pre_hook(_cast_inputs)


def _cast_inputs(module, inputs):
    dtype = next(module.parameters()).dtype
    return tuple(x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs)


def to_save(model):
    """peft's modules_to_save: the new layers but those that peft names itself."""
    return [name for name in getattr(model, "new_layers", []) if name not in PEFT_HEADS]


def unsaved(model, saved):
    """The new layers of a base that an adapter does not bring: they would be random. saved: the adapter's weights."""
    return [name for name in getattr(model, "new_layers", []) if not any(f".{name}." in key for key in saved)]
