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
from harness.models import adapters, new_layers


def quiet():
    """Silence the libraries' warnings that a person cannot act on."""
    for message in (
        ".*MatMul8bitLt.*",  # bitsandbytes, in every call
        ".*is_gradient_checkpointing.*",  # peft reads the old name
        ".*fan_in_fan_out.*",
        "Position ids are not supported.*",  # learned prompts have their own
    ):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()


def model_kind(name, trust_remote_code=False):
    """causal, seq2seq, classifier or encoder, from the model's configuration. UserError where there is none."""
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
    """The BitsAndBytesConfig of int8 (Dettmers et al. 2022) or nf4 (Dettmers et al. 2023), None for other precisions.

    compute_dtype: of nf4's products; None is bf16 on a GPU and fp32 on a CPU, as not every CPU multiplies bf16 fast.
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
    """UserError for a precision that the device cannot run."""
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
    """A model in eval mode on its device, a PeftModel if there is an adapter.

    kind: causal, seq2seq, classifier, or auto (by the configuration); labels: class names of a classification head,
    which is new if the checkpoint has none; device_map: as accelerate's (auto, cpu, ...), instead of one device;
    attention: an attn_implementation of transformers. UserError for a name that cannot be loaded, a precision that the
    device lacks, an adapter of another base.
    """
    quiet()
    check_precision(precision, device)
    kind_of_checkpoint = model_kind(name, trust_remote_code)
    kind = kind_of_checkpoint if kind == "auto" else kind
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
        label_ids = {label: i for i, label in enumerate(labels)}
        options.update(num_labels=len(labels), id2label=dict(enumerate(labels)), label2id=label_ids)
    try:
        model, report = loader.from_pretrained(name, use_safetensors=True, output_loading_info=True, **options)
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
    model.new_layers = new_layers.find(model, report["missing_keys"]) if kind == "classifier" else []
    if config is not None:
        new_layers.keep_unquantized(model, model.new_layers)
    if kind == "classifier" and pad_token_id is not None:
        model.config.pad_token_id = pad_token_id  # a decoder's head reads the last token that is not padding
    if adapter:
        model = adapters.load_adapter(model, adapter, trainable_adapter)
    return model.eval()


def is_classifier(name, adapter=None, trust_remote_code=False):
    """True if the checkpoint, or the adapter if there is one, has a classification head."""
    if adapter:
        return adapters.adapter_config(adapter).get("task_type") == "SEQ_CLS"
    return model_kind(name, trust_remote_code) == "classifier"


def uses_chat(prompt_format, tokenizer, scoring=False):
    """True if prompts are rendered with the tokenizer's chat template. UserError for chat without a template.

    prompt_format: plain, chat or auto. scoring: label words are scored, no answers generated; then auto is plain text,
    which continues into a label word more naturally.
    """
    if prompt_format == "chat" and not tokenizer.chat_template:
        raise utils.UserError("--prompt_format chat: this tokenizer has no chat template; use plain")
    return prompt_format == "chat" or (prompt_format == "auto" and bool(tokenizer.chat_template) and not scoring)


def base_model(model):
    """The model without peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def size_columns(model, trained=False):
    """The size cells of a results row. trained: True if this run trains the parameters that require gradients.

    total_params is num_parameters, which counts packed weights (nf4: two in a byte) as bitsandbytes does.
    """
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad) if trained else 0
    return {
        "trainable_params": trainable,
        "total_params": model.num_parameters(),
        "model_gb": base_model(model).get_memory_footprint() / utils.GB,
    }


def text_config(config):
    """The part of a configuration that describes the language model, where it describes other models too."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def context(config):
    """The most tokens that a configuration allows, None where it sets no limit."""
    text = text_config(config)
    return getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)


def context_length(model):
    """The most tokens that a model takes at once, None where there is no limit (T5's relative positions)."""
    if hasattr(text_config(model.config), "relative_attention_num_buckets"):
        return None  # T5's n_positions is the length that it was trained on, not a limit
    return context(model.config)


def learns_prompt(model):
    """True if peft puts learned tokens before the text (prompt tuning, prefix tuning)."""
    return any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values())


def takes(model, name):
    """True if the model's forward has an argument of this name."""
    return name in inspect.signature(base_model(model).forward).parameters


def keeps_logits(model):
    """True if `logits_to_keep` selects positions of the input; learned tokens before it have logits of their own."""
    return takes(model, "logits_to_keep") and not learns_prompt(model)
