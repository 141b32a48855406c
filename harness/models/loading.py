"""A tokenizer and a model, at a precision, on a device or a device map, with an adapter."""

import inspect
import logging
import warnings

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
)
from transformers.utils import logging as hf_logging

import utils
from harness.models import adapters

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "nf4")


def quiet():
    """Leave the libraries' warnings that a person cannot act on out of the output (bitsandbytes prints one a call)."""
    warnings.filterwarnings("ignore", message=".*MatMul8bitLt.*")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft reads the old name
    warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
    warnings.filterwarnings(
        "ignore", message="Position ids are not supported.*"
    )  # with learned prompts, which have their own
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()


def model_kind(name, trust_remote_code=False):
    """'causal', 'seq2seq', 'classifier' or 'encoder', from the model's configuration."""
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise utils.UserError(f"no model can be loaded from {name}: {str(error).splitlines()[0]}") from None
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
    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(adapters.HEADS))
    default = "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=torch_dtype(compute_dtype or default),
        llm_int8_skip_modules=list(adapters.HEADS),
    )


def torch_dtype(precision):
    """The dtype of the weights that are not quantized."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)


def check_precision(precision, device):
    """UserError for a precision that this device cannot run."""
    if precision == "fp16" and device == "cpu":
        raise utils.UserError("fp16 needs a CUDA GPU; on a CPU use fp32 or bf16 (or int8, nf4)")


def load_model(
    name,
    kind="auto",
    *,
    precision="fp32",
    device="cpu",
    device_map=None,
    labels=None,
    adapter=None,
    compute_dtype=None,
    double_quant=True,
    trainable_adapter=False,
    pad_token_id=None,
    trust_remote_code=False,
    attention=None,
):
    """Load a model in eval mode. Returns the model, a PeftModel where there is an adapter.

    kind: causal, seq2seq, classifier, or auto (by the configuration); labels: class names of a classification head, which
    is new where the checkpoint has none; device_map: as accelerate's (auto, cpu, ...), instead of one device; attention: an
    attn_implementation of transformers.
    Raises UserError for names that cannot be loaded, precisions that the device lacks, adapters of another base.
    """
    quiet()
    check_precision(precision, device)
    found = model_kind(name, trust_remote_code)
    kind = found if kind == "auto" else kind
    if kind == "classifier" and not labels:
        raise utils.UserError(f"{name} has a classification head; a causal or seq2seq language model is wanted here")
    if kind == "encoder":
        raise utils.UserError(
            f"{name} is an encoder without a language-model head, and cannot be prompted or trained to answer; "
            "train it for classification with finetune.py or peft_finetune.py, or give a causal or seq2seq model"
        )
    loader = {
        "causal": AutoModelForCausalLM,
        "seq2seq": AutoModelForSeq2SeqLM,
        "classifier": AutoModelForSequenceClassification,
    }[kind]
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
        options.update(
            num_labels=len(labels), id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)}
        )
    try:
        model = loader.from_pretrained(name, use_safetensors=True, **options)
    except (OSError, ValueError, ImportError) as error:  # ImportError: flash attention is not installed
        if utils.is_out_of_memory(error):
            raise
        raise utils.UserError(f"{name} cannot be loaded as a {kind} model: {str(error).splitlines()[0]}") from None
    except RuntimeError as error:  # a head of another size
        if "size mismatch" not in str(error) and "mismatched" not in str(error):
            raise
        raise utils.UserError(f"{name} was trained for other labels than {', '.join(labels)}") from None
    if config is None and not device_map:
        model.to(device)
    if kind == "classifier" and pad_token_id is not None:
        model.config.pad_token_id = pad_token_id  # a decoder's head reads the last token that is not padding
    if adapter:
        model = adapters.load_adapter(model, adapter, trainable_adapter)
    return model.eval()


def is_classifier(name, adapter=None, trust_remote_code=False):
    """Does this checkpoint, or this adapter, bring a classification head?"""
    if adapter:
        return adapters.adapter_config(adapter).get("task_type") == "SEQ_CLS"
    return model_kind(name, trust_remote_code) == "classifier"


def uses_chat(prompt_format, tokenizer, scoring=False):
    """Shall prompts be written in the tokenizer's chat template? UserError where it is asked for and there is none.

    scoring: label words are scored rather than answers generated; there `auto` stays with plain text, which continues into a
    label word more naturally.
    """
    if prompt_format == "chat" and not tokenizer.chat_template:
        raise utils.UserError("--prompt_format chat: this tokenizer has no chat template; use plain")
    return prompt_format == "chat" or (prompt_format == "auto" and bool(tokenizer.chat_template) and not scoring)


def base_model(model):
    """The model without peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


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


def learns_prompt(model):
    """Does peft put learned tokens before the text (prompt tuning, prefix tuning)?"""
    return any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values())


def takes(model, name):
    """Does the model's forward have an argument of this name?"""
    return name in inspect.signature(base_model(model).forward).parameters


def context(config):
    """The most tokens the configuration allows, None where it sets no limit."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
