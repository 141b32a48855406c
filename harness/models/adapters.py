"""peft adapters: loading, merging, whether they change anything."""

import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoConfig

import utils
from harness.models import new_layers

HEADS = ("classifier", "pre_classifier", "score", "lm_head")  # never quantized: a head is trained, or decides the label


def adapter_folder(adapter):
    """The local folder of an adapter. adapter: a folder or a hub name; UserError where there is no such adapter."""
    path = Path(adapter).expanduser()
    if path.exists():
        return path
    try:
        return Path(snapshot_download(adapter, allow_patterns=["adapter_*", "labels.json"]))
    except (OSError, ValueError) as error:
        raise utils.UserError(
            f"--adapter {adapter}: no such folder, and the hub does not give it ({str(error).splitlines()[0]})"
        ) from None


def adapter_config(adapter):
    """The adapter's adapter_config.json as a dict; UserError without one."""
    path = adapter_folder(adapter) / "adapter_config.json"
    if not path.is_file():
        raise utils.UserError(f"--adapter {adapter}: no adapter_config.json there; give the folder that peft saved")
    return json.loads(path.read_text())


def other_base(adapter, name):
    """The base model that an adapter names, None if its last part is that of `name`."""
    base = adapter_config(adapter).get("base_model_name_or_path") or name
    return None if Path(base).name == Path(name).name else base


def head_labels(name, adapter, labels):
    """The task's labels in the order of a trained head: of an adapter (labels.json) or a checkpoint (configuration).

    A head without names (LABEL_0, ...) is taken to be in the task's order. UserError for a head with other names.
    """
    if adapter:
        file = adapter_folder(adapter) / "labels.json"
        names = json.loads(file.read_text()) if file.is_file() else list(labels)
    else:
        by_index = AutoConfig.from_pretrained(name).id2label
        names = [str(by_index[i]) for i in range(len(by_index))]
        if all(name.startswith("LABEL_") for name in names) and len(names) == len(labels):
            names = list(labels)
    task_names = {label.lower(): label for label in labels}
    if sorted(name.lower() for name in names) != sorted(task_names):
        raise utils.UserError(
            f"{adapter or name} was trained for the labels {', '.join(names)}; the data have {', '.join(labels)}"
        )
    return [task_names[name.lower()] for name in names]


def load_adapter(model, adapter, trainable=False):
    """Put a saved peft adapter on a loaded base. UserError unless each of its weights has its place in the model."""
    adapter, base = adapter_folder(adapter), adapter_config(adapter).get("base_model_name_or_path")
    wrong = f"--adapter {adapter} was made for another base ({base}) than {model.config._name_or_path}"
    if other_base(adapter, model.config._name_or_path):  # the same shapes do not make the same weights
        raise utils.UserError(
            f"{wrong}; load that base, or correct base_model_name_or_path in adapter_config.json if it has a new name"
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
    needed = set(get_peft_model_state_dict(adapted))
    if saved != needed:
        counts = f"{len(saved - needed)} of its weights have no place here, {len(needed - saved)} are missing"
        raise utils.UserError(f"{wrong}: {counts}")
    random = new_layers.unsaved(model, saved)
    if random:
        raise utils.UserError(
            f"--adapter {adapter}: neither it nor its base has weights for {', '.join(random)}, which would be random; "
            "train it again with peft_finetune.py, or with these layers in modules_to_save"
        )
    return adapted


def merge_adapter(model, wanted=None):
    """(model, remark for the row): an adapter's weights folded into its base, so that it costs no time.

    wanted: None merges where no output changes, so not into int8 or nf4 weights, which would be rounded again (peft
    issue 1043); True always merges, with a UserError for a learned prompt, which has nothing to fold in; False never.
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
    rounding = " into quantized weights, which rounds them again" if quantized else ""
    return model.merge_and_unload(), f"adapter merged before timing{rounding}"


def changes_outputs(model, tokenizer):
    """True if the adapter of a PeftModel changes the hidden states of its base for a text."""
    ids = tokenizer("The quick brown fox jumps over the lazy dog.", return_tensors="pt").input_ids.to(model.device)
    options = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}

    @torch.inference_mode()
    def states():
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, **options)
        return (out.decoder_hidden_states if options else out.hidden_states)[-1][:, -1]

    adapted = states()
    with model.disable_adapter():
        return not torch.equal(adapted, states())
