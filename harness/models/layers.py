"""The layers that a new adapter adapts, by the names that architectures give them."""

import torch
from peft import LoraConfig, get_peft_model
from transformers.pytorch_utils import Conv1D

import utils
from harness.models.adapters import HEADS

# the projections that LoRA (Hu et al. 2022) adapts by default, query and value, under the names of the architectures
ATTENTION_PROJECTIONS = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("q_lin", "v_lin"),
    ("q", "v"),
    ("query_proj", "value_proj"),
    ("c_attn",),
    ("query_key_value",),
    ("qkv_proj",),
    ("Wqkv",),
    ("qkv",),
    ("q_b_proj", "kv_b_proj"),  # DeepSeek's latent attention
    ("q_proj", "kv_b_proj"),
    ("in_proj", "x_proj"),  # Mamba, which has no attention
    ("in_proj",),  # Mamba-2
)
# what peft does not adapt of state-space models: their kernels read these weights past the layer
MAMBA_LIKE = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
NOT_IN_MAMBA = {"out_proj", "conv1d"}


def linear_names(model):
    """The last parts of the names of the model's linear layers that can be adapted, sorted, without heads."""
    return sorted({path.split(".")[-1] for path in _linear_paths(model)} - set(HEADS))


def _linear_paths(model):
    """Full names of the linear layers that peft adapts: Linear and its kin of bitsandbytes, GPT-2's Conv1D."""
    beyond = NOT_IN_MAMBA if model.config.model_type in MAMBA_LIKE else set()
    layers = [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
    return [name for name in layers if name.split(".")[-1] not in beyond]


def layer_paths(model, attention):
    """Full names of the linear layers in the repeated layers: those of attention blocks, or all others (the MLPs)."""

    def repeated(path):
        return any(part.isdigit() for part in path.split(".")) and path.split(".")[-1] not in HEADS

    def attends(path):  # T5: block.0.layer.0.SelfAttention.q
        return any("attn" in part.lower() or "attention" in part.lower() for part in path.split(".")[:-1])

    return [path for path in _linear_paths(model) if repeated(path) and attends(path) == attention]


def target_modules(model, wanted="auto"):
    """The layers that an adapter adapts: a list of names of linear layers, or peft's own "all-linear".

    wanted: auto is the query and value projections (all-linear if there are none of a known name), attention all
    projections of the attention blocks, mlp the other linear layers, all-linear all of them; else names with commas.
    UserError, with the names that exist, where a name matches nothing.
    """
    existing, architecture = linear_names(model), model.config.model_type
    if wanted == "all-linear":
        return existing if architecture in MAMBA_LIKE or expert_parameters(model) else wanted
    if wanted == "auto":
        projections = next((names for names in ATTENTION_PROJECTIONS if set(names) <= set(existing)), None)
        return list(projections) if projections else target_modules(model, "all-linear")
    if wanted in ("attention", "mlp"):
        paths = layer_paths(model, wanted == "attention")
        if not paths and not (wanted == "mlp" and expert_parameters(model)):
            hint = f"no such layers found in {architecture}; name them: {', '.join(existing)}"
            raise utils.UserError(f"--target_modules {wanted}: {hint}")
        return paths
    names = [name.strip() for name in wanted.split(",")]
    unknown = [name for name in names if name not in existing]
    if unknown:
        hint = f"no such linear layer; {architecture} has {', '.join(existing)}"
        raise utils.UserError(f"--target_modules {','.join(unknown)}: {hint}")
    return names


def expert_parameters(model):
    """The weights [experts, rows, columns] of a mixture of experts, named as peft does: experts.down_proj, .."""
    names = [name.split(".") for name, weight in model.named_parameters() if weight.dim() == 3]
    return sorted({".".join(parts[-2:]) for parts in names if len(parts) > 1 and parts[-2].endswith("experts")})


def add_lora(model, wanted, make=LoraConfig, **options):
    """(PeftModel, remark for the row): a model with a new LoRA, or one of its kin, on the layers that `wanted` names.

    mlp and all-linear reach the experts of a mixture as well, with plain LoRA and without dropout, which is all that
    peft can do there. UserError where peft refuses the layers.
    """
    experts = expert_parameters(model) if wanted in ("mlp", "all-linear") else []
    options["target_modules"] = target_modules(model, wanted)
    remark = None
    if experts and (make is not LoraConfig or options.get("use_dora")):
        remark = "the experts are not adapted: peft does that with plain LoRA only"
        if not options["target_modules"]:
            raise utils.UserError(f"--target_modules {wanted}: {remark}; take --method lora")
    elif experts:
        options.update(target_parameters=experts, lora_dropout=0.0)
        remark = "the experts are adapted too, all without dropout (peft has none for them)"
    linear = options["target_modules"] if isinstance(options["target_modules"], list) else []
    wanted_paths = {path for path in _linear_paths(model) if any(f".{path}".endswith(f".{name}") for name in linear)}
    try:
        adapted = get_peft_model(model, make(**options))
    except ValueError as error:
        if utils.is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
        raise utils.UserError(f"--target_modules {wanted}: peft cannot adapt these layers: {reason}") from None
    left = wanted_paths - {name for name in adapted.targeted_module_names if name in wanted_paths}
    if experts and left:  # peft reads gate_proj, .. as the experts' and passes over layers of that name beside them
        names = ", ".join(sorted({path.split(".")[-1] for path in left}))
        remark += f"; peft leaves {names} beside the experts as they are"
    return adapted, remark
