"""A model's local folder, looked at before anything is loaded from it: configuration, weights, what is not a model.

The libraries answer a broken file with whatever its first use raises; here it is one line that names the file.
"""

from pathlib import Path

import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, AutoConfig

import utils
from harness import inputs

# what the libraries raise when the values of a file are not what they expect
BROKEN_FILE = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError)
BROKEN_FILE += (SafetensorError, StrictDataclassError, TypeError, ValueError)  # RecursionError is a RuntimeError
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def first_line(error):
    """The first line of an exception that says something, with its kind where that is no error of ours to word."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, StrictDataclassError):  # "Validation error for field 'x':", and then what is wrong with it
        return " ".join(lines[:2])
    text = lines[0] if lines else ""
    return text if isinstance(error, (OSError, ValueError)) and text else f"{type(error).__name__}: {text}"


def configuration(name, trust_remote_code=False):
    """The AutoConfig of a hub name or a folder; UserError, one line, where there is none or none that can be read."""
    wrong = f"no model can be loaded from {name}"
    path = Path(name)
    if path.is_file():
        raise utils.UserError(f"{wrong}: it is a file; give the folder that holds config.json and the weights")
    if path.is_dir():
        _check_config(path, wrong, trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        _check_values(config)
    except BROKEN_FILE as error:
        if utils.is_out_of_memory(error):
            raise
        raise utils.UserError(f"{wrong}: {first_line(error)}") from None
    return config


def _check_config(path, wrong, trust_remote_code):
    """UserError for a folder that is an adapter, or whose config.json names no model that transformers has."""
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise utils.UserError(f"{wrong}: the folder cannot be read ({error.strerror})") from None
    if "adapter_config.json" in names:
        base = (
            inputs.read_json(path / "adapter_config.json", dict, f"{wrong}:").get("base_model_name_or_path")
            or "its base model"
        )
        raise utils.UserError(f"{wrong}: it is a peft adapter; give {base} as the model and this folder to --adapter")
    if "config.json" not in names:
        raise utils.UserError(f"{wrong}: no config.json there; give the folder that save_pretrained wrote")
    config = inputs.read_json(path / "config.json", dict, f"{wrong}:")
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in CONFIG_MAPPING:
        return
    if config.get("auto_map") and not trust_remote_code:
        raise utils.UserError(
            f"{wrong}: it needs code that it brings along; --trust_remote_code runs it, if you trust it"
        )
    if not config.get("auto_map"):
        if kind is None:
            raise utils.UserError(f"{wrong}: config.json has no model_type")
        raise utils.UserError(
            f"{wrong}: transformers {transformers.__version__} knows no model_type {str(kind)[:80]!r} (of config.json)"
        )


def _check_values(config):
    """ValueError for values that models are not built of, or that fail far from here."""
    names = config.architectures or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"architectures of config.json is {names!r}, not a list of names")
    most = {"vocab_size": 2**31, "hidden_size": 2**20, "num_hidden_layers": 10_000, "num_attention_heads": 10_000}
    for name, limit in most.items():
        size = getattr(config.get_text_config(), name, 1)
        if isinstance(size, (bool, float, str)) or (isinstance(size, int) and not 0 < size <= limit):
            raise ValueError(f"{name} of config.json is {size!r}, not a whole number from 1 to {limit}")


def kind_of(config):
    """causal, seq2seq, classifier, encoder or multimodal, of a configuration.

    Where it names no architecture, decoders count as language models: weights without a head are refused when they are
    loaded. A multimodal checkpoint whose text alone can be read is causal.
    """
    architectures = " ".join(config.architectures or [])
    if "ForSequenceClassification" in architectures:
        return "classifier"
    if config.is_encoder_decoder:
        return "seq2seq"
    if "CausalLM" in architectures or "LMHead" in architectures:
        return "causal"
    decoder = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if config.get_text_config() is not config:
        return "causal" if decoder else "multimodal"
    return "causal" if decoder and not architectures and type(config) not in MODEL_FOR_MASKED_LM_MAPPING else "encoder"


def check_weights(name):
    """UserError unless a local folder's safetensors are whole; hub names are the hub's to check."""
    path = Path(name)
    if not path.is_dir():
        return
    wrong = f"{name} cannot be loaded"
    if (path / WEIGHTS).exists():
        files = [WEIGHTS]
    elif (path / INDEX).exists():
        places = inputs.read_json(path / INDEX, dict, f"{wrong}:").get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()) or not places:
            raise utils.UserError(f"{wrong}: {INDEX} has no weight_map that names a file for each weight")
        files = sorted(set(places.values()))
    else:
        pickled = " (pickled weights are not read; save the model again with safetensors)"
        other = pickled if any(path.glob("*.bin")) or any(path.glob("*.pt*")) else ""
        raise utils.UserError(f"{wrong}: no {WEIGHTS} there{other}")
    for file in files:
        if not (path / file).is_file():
            raise utils.UserError(f"{wrong}: no {file} there, which {INDEX} names")
        try:
            with safe_open(path / file, "np"):
                pass
        except (SafetensorError, OSError) as error:
            raise utils.UserError(f"{wrong}: {file} is damaged or no safetensors file ({first_line(error)})") from None
