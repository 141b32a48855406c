"""A tokenizer and a model, at a precision, on a device or a device map, with an adapter. Names are hub names or folders."""

import json
import logging
import os
import threading
import warnings
from pathlib import Path

import utils
from utils import UserError

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "nf4")
HEADS = ("classifier", "pre_classifier", "score", "lm_head")  # never quantized: a head is trained, or decides the label

# the projections that LoRA (Hu et al. 2022) adapts by default, query and value, under the names that architectures give them
ATTENTION_PROJECTIONS = (("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin"), ("q", "v"), ("query_proj", "value_proj"),
                         ("c_attn",), ("query_key_value",), ("qkv_proj",), ("Wqkv",), ("qkv",))  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ hub or folder


def _hub_answers(seconds=5.0):
    """Does the hub's endpoint answer at all? Asked from a thread, since a name look-up cannot be given a time limit."""
    import urllib.error
    import urllib.request

    answered, done = [], threading.Event()

    def ask():
        request = urllib.request.Request(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=seconds)
            answered.append(True)
        except urllib.error.HTTPError as error:
            if error.code not in (403, 407, 502, 503, 504):  # a proxy's refusal is no answer
                answered.append(True)
        except (OSError, ValueError):
            pass
        done.set()

    threading.Thread(target=ask, daemon=True).start()
    done.wait(seconds)
    return bool(answered)


def check_names(models=None, datasets=None):
    """Check, before anything heavy is imported, that each name is a local path, is cached, or that the hub can be reached.

    models, datasets: {flag: name or path}; None values are passed over. Where the hub does not answer, the Hugging Face
    libraries are put in offline mode, so that what is cached loads at once. Raises UserError with the offline way out.
    """
    remote = []
    for flag, name in {**(models or {}), **(datasets or {})}.items():
        if name is None or Path(name).expanduser().exists():
            continue
        local = name.startswith((".", "/", "~", "assets/")) or name.count("/") > 1 or not name.strip()
        if local or Path(name).suffix in (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md"):
            hint = f" in {Path.cwd()}; run `python prepare_data.py demo` there first" if name.startswith("assets/") else ""
            raise UserError(f"{flag} {name}: no such file or folder{hint}")
        remote.append(flag)
    if not remote:
        return
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() not in ("1", "TRUE", "YES", "ON"):
        if _hub_answers():
            return
        os.environ["HF_HUB_OFFLINE"] = "1"  # the libraries read it when they are imported, that is, later
    os.environ["HF_DATASETS_OFFLINE"] = "1"
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for flag in remote:
        name = (models or {}).get(flag)
        if name is None:
            continue  # the datasets library answers for its own cache
        aliases = (name,) if "/" in name else (name, f"sentence-transformers/{name}")
        file = "adapter_config.json" if flag == "--adapter" else "config.json"
        try:
            cached = any(isinstance(try_to_load_from_cache(alias, file), str) for alias in aliases)
        except HFValidationError:
            raise UserError(f"{flag} {name}: no such folder, and not a name that the hub allows") from None
        if not cached:
            raise UserError(
                f"{flag} {name}: the hub cannot be reached and this name is not in the cache; give a local folder, or run "
                "`python prepare_data.py demo` and use assets/models/SmolLM2-135M-Instruct or assets/models/all-MiniLM-L6-v2"
            )


# ------------------------------------------------------------------------------------------------------------------ loading


def quiet():
    """Leave the libraries' warnings that a person cannot act on out of the output (bitsandbytes prints one a call)."""
    from transformers.utils import logging as hf_logging

    warnings.filterwarnings("ignore", message=".*MatMul8bitLt.*")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft reads the old name
    warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
    warnings.filterwarnings("ignore", message="Position ids are not supported.*")  # with learned prompts, which have their own
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()


def model_kind(name, trust_remote_code=False):
    """'causal', 'seq2seq', 'classifier' or 'encoder', from the model's configuration."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"no model can be loaded from {name}: {str(error).splitlines()[0]}") from None
    architectures = " ".join(config.architectures or [])
    if "ForSequenceClassification" in architectures:
        return "classifier"
    if config.is_encoder_decoder:
        return "seq2seq"
    return "causal" if "CausalLM" in architectures or "LMHead" in architectures else "encoder"


def quantization_config(precision, device, compute_dtype=None, double_quant=True):
    """The BitsAndBytesConfig of int8 (Dettmers et al. 2022) or nf4 (Dettmers et al. 2023); None for the plain precisions.

    compute_dtype of nf4: bf16 on a GPU, fp32 on a CPU, since not every processor multiplies bf16 fast, unless given.
    """
    if precision not in ("int8", "nf4"):
        return None
    import torch
    from transformers import BitsAndBytesConfig

    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(HEADS))
    default = "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double_quant,
                              bnb_4bit_compute_dtype=torch_dtype(compute_dtype or default),
                              llm_int8_skip_modules=list(HEADS))  # fmt: skip


def torch_dtype(precision):
    """The dtype of the weights that are not quantized."""
    import torch

    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)


def check_precision(precision, device):
    """UserError for a precision that this device cannot run."""
    if precision == "fp16" and device == "cpu":
        raise UserError("fp16 needs a CUDA GPU; on a CPU use fp32 or bf16 (or int8, nf4)")


def load_model(name, kind="auto", *, precision="fp32", device="cpu", device_map=None, labels=None, adapter=None,
               compute_dtype=None, double_quant=True, trainable_adapter=False, pad_token_id=None, trust_remote_code=False,
               attention=None):  # fmt: skip
    """Load a model in eval mode. Returns the model, a PeftModel where there is an adapter.

    kind: causal, seq2seq, classifier, or auto (by the configuration); labels: class names of a classification head, which
    is new where the checkpoint has none; device_map: as accelerate's (auto, cpu, ...), instead of one device; attention: an
    attn_implementation of transformers.
    Raises UserError for names that cannot be loaded, precisions that the device lacks, adapters of another base.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    quiet()
    check_precision(precision, device)
    found = model_kind(name, trust_remote_code)
    kind = found if kind == "auto" else kind
    if kind == "classifier" and not labels:
        raise UserError(f"{name} has a classification head; a causal or seq2seq language model is wanted here")
    if kind == "encoder":
        raise UserError(f"{name} is an encoder without a language-model head, and cannot be prompted or trained to answer; "
                        "train it for classification with finetune.py or peft_finetune.py, or give a causal or seq2seq model")  # fmt: skip
    loader = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM,
              "classifier": AutoModelForSequenceClassification}[kind]  # fmt: skip
    options = {"dtype": torch_dtype(precision), "trust_remote_code": trust_remote_code}
    if attention:
        options["attn_implementation"] = attention
    config = quantization_config(precision, device, compute_dtype, double_quant)
    if config is not None:
        options.update(quantization_config=config, device_map=device_map or device)
        if precision == "nf4":
            options["dtype"] = config.bnb_4bit_compute_dtype
    elif device_map:
        options["device_map"] = device_map
    if kind == "classifier":
        options.update(num_labels=len(labels), id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)})
    try:
        model = loader.from_pretrained(name, use_safetensors=True, **options)
    except (OSError, ValueError, ImportError) as error:  # ImportError: flash attention is not installed
        if utils.is_out_of_memory(error):
            raise
        raise UserError(f"{name} cannot be loaded as a {kind} model: {str(error).splitlines()[0]}") from None
    except RuntimeError as error:  # a head of another size
        if "size mismatch" not in str(error) and "mismatched" not in str(error):
            raise
        raise UserError(f"{name} was trained for other labels than {', '.join(labels)}") from None
    if config is None and not device_map:
        model.to(device)
    if kind == "classifier" and pad_token_id is not None:
        model.config.pad_token_id = pad_token_id  # a decoder's head reads the last token that is not padding
    if adapter:
        model = load_adapter(model, adapter, trainable_adapter)
    return model.eval()


def adapter_folder(adapter):
    """The local folder of an adapter, which may be a hub name; UserError where there is none."""
    path = Path(adapter).expanduser()
    if path.exists():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(adapter, allow_patterns=["adapter_*", "labels.json"]))
    except (OSError, ValueError) as error:
        raise UserError(f"--adapter {adapter}: not a folder, and not to be had from the hub ({str(error).splitlines()[0]})") from None


def adapter_config(adapter):
    """The adapter's adapter_config.json as a dict; UserError where there is none."""
    path = adapter_folder(adapter) / "adapter_config.json"
    if not path.is_file():
        raise UserError(f"--adapter {adapter}: no adapter_config.json there; give the folder that peft saved")
    return json.loads(path.read_text())


def other_base(adapter, name):
    """The base that an adapter names, if its last part is another than that of `name`; None otherwise."""
    base = adapter_config(adapter).get("base_model_name_or_path") or name
    return None if Path(base).name == Path(name).name else base


def head_labels(name, adapter, labels):
    """The task's labels in the order of a trained head, that of an adapter (labels.json) or a checkpoint (its configuration).

    Heads without names (LABEL_0, ...) are taken to be in the task's order. UserError where the names are others.
    """
    from transformers import AutoConfig

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
        raise UserError(f"{adapter or name} was trained for the labels {', '.join(names)}; the data have {', '.join(labels)}")
    return [task_names[n.lower()] for n in names]


def is_classifier(name, adapter=None, trust_remote_code=False):
    """Does this checkpoint, or this adapter, bring a classification head?"""
    if adapter:
        return adapter_config(adapter).get("task_type") == "SEQ_CLS"
    return model_kind(name, trust_remote_code) == "classifier"


def uses_chat(prompt_format, tokenizer, scoring=False):
    """Shall prompts be written in the tokenizer's chat template? UserError where it is asked for and there is none.

    scoring: label words are scored rather than answers generated; there `auto` stays with plain text, which continues into a
    label word more naturally.
    """
    if prompt_format == "chat" and not tokenizer.chat_template:
        raise UserError("--prompt_format chat: this tokenizer has no chat template; use plain")
    return prompt_format == "chat" or (prompt_format == "auto" and bool(tokenizer.chat_template) and not scoring)


def load_adapter(model, adapter, trainable=False):
    """Put a saved peft adapter on a loaded base; UserError unless every weight of the one has its place in the other."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    adapter, base = adapter_folder(adapter), adapter_config(adapter).get("base_model_name_or_path")
    wrong = f"--adapter {adapter} was made for another base ({base}) than {model.config._name_or_path}"
    if other_base(adapter, model.config._name_or_path):  # the same shapes do not make the same weights
        raise UserError(f"{wrong}; load that base, or correct base_model_name_or_path in adapter_config.json if only its name has changed")
    weights = Path(adapter) / "adapter_model.safetensors"
    if not weights.is_file():
        raise UserError(f"--adapter {adapter}: no adapter_model.safetensors there (pickled adapters are not read)")
    try:
        adapted = PeftModel.from_pretrained(model, adapter, is_trainable=trainable)
    except (ValueError, RuntimeError) as error:
        if utils.is_out_of_memory(error):
            raise
        raise UserError(f"{wrong}: {str(error).splitlines()[0]}") from None
    with safe_open(weights, "pt") as file:
        saved = set(file.keys())
    wanted = set(get_peft_model_state_dict(adapted))
    if saved != wanted:
        raise UserError(f"{wrong}: {len(saved - wanted)} of its weights have no place here, {len(wanted - saved)} are missing")
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
        raise UserError("--merge_adapter: a learned prompt stands before the text and cannot be merged into the weights")
    quantized = getattr(model.get_base_model(), "is_quantized", False)
    if wanted is False or not foldable or (quantized and not wanted):
        return model, "timed with the adapter unmerged"
    return model.merge_and_unload(), "adapter merged before timing" + (
        " into quantized weights, which rounds them again" if quantized else ""
    )


def base_model(model):
    """The model without peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


# ------------------------------------------------------------------------------------------------------------------- counts


def size_columns(model, trained=False):
    """The size cells of a results row; trained: do the parameters that require gradients get trained in this run?

    Quantized weights are packed two to a byte and more; bitsandbytes' own count is used.
    """
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad) if trained else 0
    return {
        "trainable_params": trainable,
        "total_params": model.num_parameters(),
        "model_gb": base_model(model).get_memory_footprint() / utils.GB,
    }


def context_length(model):
    """The most tokens the model takes at once; None where its configuration sets no limit (T5's relative positions)."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    if hasattr(config, "relative_attention_num_buckets"):  # T5's n_positions is what it was trained on, not a limit
        return None
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)


def linear_names(model):
    """The last parts of the names of the model's linear layers (Linear, GPT-2's Conv1D, bitsandbytes'), heads left out, sorted."""
    import torch
    from transformers.pytorch_utils import Conv1D

    names = {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))}
    return sorted(names - set(HEADS))


def layer_paths(model, attention):
    """Full names of the linear layers within attention blocks, or of the others in the model's repeated layers (the MLPs)."""
    import torch
    from transformers.pytorch_utils import Conv1D

    paths = [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
    layers = [path for path in paths if any(part.isdigit() for part in path.split(".")) and path.split(".")[-1] not in HEADS]

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
            raise UserError(f"--target_modules {wanted}: no such layers found in {model.config.model_type}; name them: {', '.join(there)}")
        return found
    names = [name.strip() for name in wanted.split(",")]
    lost = [name for name in names if name not in there]
    if lost:
        raise UserError(f"--target_modules {','.join(lost)}: no such linear layer; {model.config.model_type} has {', '.join(there)}")
    return names


def changes_outputs(model, tokenizer):
    """Does the adapter of a PeftModel change what its base computes for a text?"""
    import torch

    ids = tokenizer("The quick brown fox jumps over the lazy dog.", return_tensors="pt").input_ids.to(model.device)
    options = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}

    @torch.inference_mode()
    def states():
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, **options)
        return (out.decoder_hidden_states if options else out.hidden_states)[-1][:, -1]

    adapted = states()
    with model.disable_adapter():
        return not torch.equal(adapted, states())
