"""peft adapters: loading, merging, whether they change anything."""

import re
from collections import Counter
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file

import utils
from harness import inputs
from harness.models import folder, new_layers

WANTED = ["adapter_*", "labels.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*"]
WANTED += ["merges.txt", "chat_template*", "head.json"]  # of an adapter on the hub
TASKS_BY_NUMBER = ("MULTITASK_PROMPT_TUNING", "POLY")
NOT_MERGED = ("ADAPTION_PROMPT", "BEFT", "LILY", "SHADOW")  # peft has no merge of these (0.21)
HEADS = ("classifier", "pre_classifier", "score", "lm_head")  # never quantized: a head is trained, or decides the label


def adapter_folder(adapter):
    """The local folder of an adapter. adapter: a folder or a hub name; UserError where there is no such adapter."""
    path = Path(adapter).expanduser()
    if path.exists():
        return path
    try:
        return Path(snapshot_download(adapter, allow_patterns=WANTED))
    except (OSError, ValueError) as error:
        raise utils.UserError(
            f"--adapter {adapter}: no such folder, and the hub does not give it ({str(error).splitlines()[0]})"
        ) from None


def adapter_config(adapter):
    """The adapter's adapter_config.json as a dict; UserError without one."""
    path = adapter_folder(adapter) / "adapter_config.json"
    if not path.is_file():
        inside = sorted(path.parent.glob("*/adapter_config.json"))
        hint = f"; give {inside[0].parent}" if inside else "; give the folder that peft saved"
        hint = "; it is a whole model, for --model" if (path.parent / "config.json").is_file() else hint
        raise utils.UserError(f"--adapter {adapter}: no adapter_config.json there{hint}")
    config = inputs.read_json(path, dict, "--adapter")
    if not isinstance(config.get("peft_type"), str):
        raise utils.UserError(f"{path} names no peft_type; give the folder that peft saved")
    return config


def check_base(adapter, name):
    """UserError where an adapter names another base model than `name`, by its last part: the same shapes do not make
    the same weights.
    """
    base = str(adapter_config(adapter).get("base_model_name_or_path") or name)
    if Path(base).name != Path(name).name:
        raise utils.UserError(
            f"--adapter {adapter} was made for another base ({base}) than {name}; load that base, or correct "
            "base_model_name_or_path in adapter_config.json if it has a new name"
        )


def head_labels(name, adapter, labels, trust_remote_code=False):
    """(labels, remark): the task's labels in the order of a trained head, and a remark for the row where it is assumed.

    An adapter names them in labels.json, a checkpoint in its configuration; a head without names (LABEL_0, ...) is
    taken to be in the task's order. UserError for a head with other names.
    """
    names = None
    if adapter:
        file = adapter_folder(adapter) / "labels.json"
        names = [str(label) for label in inputs.read_json(file, list, "--adapter")] if file.is_file() else None
    else:
        names = _names_of_head(folder.configuration(name, trust_remote_code), len(labels))
    if names is None:
        return list(labels), f"the head names no labels, assumed in the data's order: {', '.join(labels)}"
    task_names = {label.lower(): label for label in labels}
    if sorted(name.lower() for name in names) != sorted(task_names):
        raise utils.UserError(
            f"{adapter or name} was trained for the labels {', '.join(names)}; the data have {', '.join(labels)}"
        )
    return [task_names[name.lower()] for name in names], None


def _names_of_head(config, n_labels):
    """[L] names of a head's labels in its order; None where they are numbers."""
    names = [str(config.id2label[i]) for i in sorted(config.id2label)]  # some count from 1
    return None if all(name.startswith("LABEL_") for name in names) and len(names) == n_labels else names


def labels_to_train(name, labels, trust_remote_code=False):
    """[L] the task's labels in the order that the head of a checkpoint has them in, where it has just these; else in
    their own order, for a new head.
    """
    config = folder.configuration(name, trust_remote_code)
    names = _names_of_head(config, len(labels)) if folder.kind_of(config) == "classifier" else None
    places = {name.lower(): i for i, name in enumerate(names or ())}
    if len(places) != len(labels) or set(places) != {label.lower() for label in labels}:
        return list(labels)
    return sorted(labels, key=lambda label: places[label.lower()])


def head_pooling(adapter):
    """What the head of an adapter reads, of its head.json: mean, or None for what its architecture reads."""
    file = adapter_folder(adapter) / "head.json"
    return inputs.read_json(file, dict, "--adapter").get("pooling") if file.is_file() else None


def load_adapter(model, adapter, trainable=False):
    """Put a saved peft adapter on a loaded base, with as many token embeddings as the adapter was saved with.

    UserError unless each of its weights has its place in the model; RunFailed if one is no number.
    """
    adapter, name = adapter_folder(adapter), model.config._name_or_path
    check_base(adapter, name)
    wrong = f"--adapter {adapter} is damaged or was made for another base than {name}"
    shapes = saved_weights(adapter)
    resize_embeddings(model, shapes)
    try:
        config = PeftConfig.from_pretrained(adapter)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # values of other types, an unknown method
        reason = " ".join(str(error).split())
        raise utils.UserError(f"--adapter {adapter}: peft cannot read its adapter_config.json ({reason})") from None
    if getattr(config, "alora_invocation_tokens", None):  # labels are scored, and texts cached, in parts
        raise utils.UserError(f"--adapter {adapter}: an activated LoRA needs each text in one piece, not done here")
    method = adapter_config(adapter)["peft_type"]
    if method in TASKS_BY_NUMBER:
        raise utils.UserError(f"--adapter {adapter}: {method} needs the number of a task with each text, not done here")
    try:
        adapted = PeftModel.from_pretrained(model, adapter, config=config, is_trainable=trainable)
    except (*folder.BROKEN_FILE, re.error) as error:  # re.error: target_modules may be a pattern
        if utils.is_out_of_memory(error):
            raise
        raise utils.UserError(f"{wrong}: {folder.first_line(error)}") from None
    needed = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    may = needed | set(get_peft_model_state_dict(adapted, save_embedding_layers=True))  # as trl saves new tokens
    if not needed <= set(shapes) <= may:
        counts = f"{len(set(shapes) - may)} of its weights have no place here, {len(needed - set(shapes))} are missing"
        raise utils.UserError(f"{wrong}: {counts}")
    random = new_layers.unsaved(model, shapes)
    if random:
        raise utils.UserError(
            f"--adapter {adapter}: neither it nor its base has weights for {', '.join(random)}, which would be random; "
            "train it again with peft_finetune.py, or with these layers in modules_to_save"
        )
    return answers_in_its_dtype(adapted)


def answers_in_its_dtype(model):
    """A PeftModel whose (IA)3 layers on quantized weights answer in the dtype of what they read, as the layers beside
    them; peft's answer in fp32, which attention in 16 bits does not take. Returns it.
    """
    for module in model.modules():
        if type(module).__module__ == "peft.tuners.ia3.bnb":
            module.register_forward_hook(lambda module, inputs, output: output.to(inputs[0].dtype))
    return model


def saved_weights(adapter):
    """{name: shape} of an adapter's weights. UserError without a readable file, RunFailed for one that is no number."""
    file = Path(adapter) / "adapter_model.safetensors"
    if not file.is_file():
        raise utils.UserError(
            f"--adapter {adapter}: no adapter_model.safetensors there (pickled adapters are not read)"
        )
    try:
        weights = load_file(file)
    except SafetensorError as error:
        raise utils.UserError(f"{file} is damaged ({error}); save the adapter again") from None
    broken = [name for name, weight in weights.items() if not torch.isfinite(weight.float()).all()]
    if broken:
        raise utils.RunFailed(f"--adapter {adapter}: {len(broken)} of its weights are NaN or infinite: {broken[0]}, ..")
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def embedding_rows(adapter):
    """The most rows of a matrix that an adapter brings whole, as it does embeddings of added tokens; 0 for none."""
    shapes = saved_weights(adapter).items()
    return max((shape[0] for name, shape in shapes if len(shape) == 2 and "lora_" not in name), default=0)


def resize_embeddings(model, shapes):
    """Give the base as many token embeddings as an adapter brings whole, as for tokens that were added in training."""
    place = next((name for name, layer in model.named_modules() if layer is model.get_input_embeddings()), None)
    rows = next((shape[0] for name, shape in shapes.items() if name.endswith(f".{place}.weight")), None)
    if rows and rows != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)


def merges(model):
    """True if merge_adapter folds the model's adapter into its base without being asked to."""
    if not hasattr(model, "merge_and_unload"):
        return False
    return _foldable(model) and not getattr(model.get_base_model(), "is_quantized", False)


def _foldable(model):
    configs = model.peft_config.values()
    return not any(config.is_prompt_learning or str(config.peft_type.value) in NOT_MERGED for config in configs)


def merge_adapter(model, wanted=None):
    """(model, remark for the row): an adapter's weights folded into its base, so that it costs no time.

    wanted: None merges where no output changes, so not into int8 or nf4 weights, which would be rounded again (peft
    issue 1043); True always merges, with a UserError for a learned prompt, which has nothing to fold in; False never.
    """
    if not hasattr(model, "merge_and_unload"):
        return model, None
    if wanted and not _foldable(model):
        kinds = ", ".join(str(config.peft_type.value) for config in model.peft_config.values())
        raise utils.UserError(f"--merge_adapter: an adapter of {kinds} cannot be merged into the weights")
    quantized = getattr(model.get_base_model(), "is_quantized", False)
    if wanted is False or not (wanted or merges(model)):
        return model, "timed with the adapter unmerged"
    rounding = " into quantized weights, which rounds them again" if quantized else ""
    untie(model)
    return model.merge_and_unload(), f"adapter merged before timing{rounding}"


def untie(model):
    """Give each adapted layer whose weight another shares (a tied head) its own copy: merging changes one of them."""
    uses = Counter(id(weight) for layer in model.modules() for weight in layer._parameters.values())
    for layer in model.modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        base = layer.get_base_layer()
        for name, weight in list(base._parameters.items()):
            if weight is not None and uses[id(weight)] > 1:
                setattr(base, name, torch.nn.Parameter(weight.detach().clone(), weight.requires_grad))
                model.get_base_model().config.tie_word_embeddings = False


def changes_outputs(model, tokenizer):
    """True if the adapter of a PeftModel changes the hidden states of its base for a text and the tokens that it
    trains.
    """
    trained = [i for config in model.peft_config.values() for i in getattr(config, "token_indices", None) or ()]
    ids = tokenizer("The quick brown fox jumps over the lazy dog.").input_ids
    ids = torch.tensor([[*trained, *ids]], device=model.device)
    options = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}

    @torch.inference_mode()
    def states():
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, **options)
        return (out.decoder_hidden_states if options else out.hidden_states)[-1][:, -1]

    adapted = states()
    with model.disable_adapter():
        return not torch.equal(adapted, states())
