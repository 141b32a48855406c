"""peft adapters: which layers they adapt, loading, merging, whether they change anything."""

import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

import utils

HEADS = ("classifier", "pre_classifier", "score", "lm_head")  # never quantized: a head is trained, or decides the label


# the projections that LoRA (Hu et al. 2022) adapts by default, query and value, under the names that architectures give them
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
)


def adapter_folder(adapter):
    """The local folder of an adapter, which may be a hub name; UserError where there is none."""
    path = Path(adapter).expanduser()
    if path.exists():
        return path
    try:
        return Path(snapshot_download(adapter, allow_patterns=["adapter_*", "labels.json"]))
    except (OSError, ValueError) as error:
        raise utils.UserError(
            f"--adapter {adapter}: not a folder, and not to be had from the hub ({str(error).splitlines()[0]})"
        ) from None


def adapter_config(adapter):
    """The adapter's adapter_config.json as a dict; UserError where there is none."""
    path = adapter_folder(adapter) / "adapter_config.json"
    if not path.is_file():
        raise utils.UserError(f"--adapter {adapter}: no adapter_config.json there; give the folder that peft saved")
    return json.loads(path.read_text())


def other_base(adapter, name):
    """The base that an adapter names, if its last part is another than that of `name`; None otherwise."""
    base = adapter_config(adapter).get("base_model_name_or_path") or name
    return None if Path(base).name == Path(name).name else base


def head_labels(name, adapter, labels):
    """The task's labels in the order of a trained head, that of an adapter (labels.json) or a checkpoint (its configuration).

    Heads without names (LABEL_0, ...) are taken to be in the task's order. UserError where the names are others.
    """
    if adapter:
        file = adapter_folder(adapter) / "labels.json"
        names = json.loads(file.read_text()) if file.is_file() else list(labels)
    else:
        by_index = AutoConfig.from_pretrained(name).id2label
        names = [str(by_index[i]) for i in range(len(by_index))]
        if all(n.startswith("LABEL_") for n in names) and len(names) == len(labels):
            names = list(labels)
    task_names = {label.lower(): label for label in labels}
    if sorted(n.lower() for n in names) != sorted(task_names):
        raise utils.UserError(
            f"{adapter or name} was trained for the labels {', '.join(names)}; the data have {', '.join(labels)}"
        )
    return [task_names[n.lower()] for n in names]


def load_adapter(model, adapter, trainable=False):
    """Put a saved peft adapter on a loaded base; UserError unless every weight of the one has its place in the other."""
    adapter, base = adapter_folder(adapter), adapter_config(adapter).get("base_model_name_or_path")
    wrong = f"--adapter {adapter} was made for another base ({base}) than {model.config._name_or_path}"
    if other_base(adapter, model.config._name_or_path):  # the same shapes do not make the same weights
        raise utils.UserError(
            f"{wrong}; load that base, or correct base_model_name_or_path in adapter_config.json if only its name has changed"
        )
    weights = Path(adapter) / "adapter_model.safetensors"
    if not weights.is_file():
        raise utils.UserError(
            f"--adapter {adapter}: no adapter_model.safetensors there (pickled adapters are not read)"
        )
    try:
        adapted = PeftModel.from_pretrained(model, adapter, is_trainable=trainable)
    except (ValueError, RuntimeError) as error:
        if utils.is_out_of_memory(error):
            raise
        raise utils.UserError(f"{wrong}: {str(error).splitlines()[0]}") from None
    with safe_open(weights, "pt") as file:
        saved = set(file.keys())
    wanted = set(get_peft_model_state_dict(adapted))
    if saved != wanted:
        raise utils.UserError(
            f"{wrong}: {len(saved - wanted)} of its weights have no place here, {len(wanted - saved)} are missing"
        )
    return adapted


def merge_adapter(model, wanted=None):
    """Fold an adapter's weights into its base, so that it costs no time. Returns (model, a remark for the row).

    wanted: None merges where that changes no output, that is, not into int8 or nf4 weights, which are rounded again (peft
    issue 1043); True insists, with a UserError for adapters that have nothing to fold in (learned prompts).
    """
    if not hasattr(model, "merge_and_unload"):
        return model, None
    foldable = not any(config.is_prompt_learning for config in model.peft_config.values())
    if wanted and not foldable:
        raise utils.UserError(
            "--merge_adapter: a learned prompt stands before the text and cannot be merged into the weights"
        )
    quantized = getattr(model.get_base_model(), "is_quantized", False)
    if wanted is False or not foldable or (quantized and not wanted):
        return model, "timed with the adapter unmerged"
    return model.merge_and_unload(), "adapter merged before timing" + (
        " into quantized weights, which rounds them again" if quantized else ""
    )


def linear_names(model):
    """The last parts of the names of the model's linear layers (Linear, GPT-2's Conv1D, bitsandbytes'), heads left out, sorted."""
    names = {
        name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))
    }
    return sorted(names - set(HEADS))


def layer_paths(model, attention):
    """Full names of the linear layers within attention blocks, or of the others in the model's repeated layers (the MLPs)."""
    paths = [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
    layers = [
        path for path in paths if any(part.isdigit() for part in path.split(".")) and path.split(".")[-1] not in HEADS
    ]

    def attends(path):  # T5: block.0.layer.0.SelfAttention.q
        return any("attn" in part.lower() or "attention" in part.lower() for part in path.split(".")[:-1])

    return [path for path in layers if attends(path) == attention]


def target_modules(model, wanted="auto"):
    """What an adapter adapts: a list of names of linear layers, or peft's own 'all-linear'.

    wanted: 'auto' looks for the query and value projections, 'attention' takes all projections of the attention blocks, 'mlp'
    the layers' other linear ones; else a list of names. UserError, listing the names there are, where a name matches nothing.
    """
    if wanted == "all-linear":
        return wanted
    there = linear_names(model)
    if wanted == "auto":
        found = next((names for names in ATTENTION_PROJECTIONS if set(names) <= set(there)), None)
        return list(found) if found else "all-linear"
    if wanted in ("attention", "mlp"):
        found = layer_paths(model, wanted == "attention")
        if not found:
            raise utils.UserError(
                f"--target_modules {wanted}: no such layers found in {model.config.model_type}; name them: {', '.join(there)}"
            )
        return found
    names = [name.strip() for name in wanted.split(",")]
    lost = [name for name in names if name not in there]
    if lost:
        raise utils.UserError(
            f"--target_modules {','.join(lost)}: no such linear layer; {model.config.model_type} has {', '.join(there)}"
        )
    return names


def changes_outputs(model, tokenizer):
    """Does the adapter of a PeftModel change what its base computes for a text?"""
    ids = tokenizer("The quick brown fox jumps over the lazy dog.", return_tensors="pt").input_ids.to(model.device)
    options = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}

    @torch.inference_mode()
    def states():
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, **options)
        return (out.decoder_hidden_states if options else out.hidden_states)[-1][:, -1]

    adapted = states()
    with model.disable_adapter():
        return not torch.equal(adapted, states())
