"""A tokenizer and a model, at a precision, on a device or a device map, with an adapter."""

import argparse
import inspect
import logging
import os
import re
import warnings

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
)
from transformers.utils import logging as hf_logging

import utils
from harness.flags import FLASH
from harness.models import adapters, folder, new_layers, pooling
from harness.models import tokenizer as tokenizers
from harness.models.tokenizer import load_tokenizer  # noqa: F401, scripts know it here

# kept as they are by int8 and nf4: heads, BioGPT's tied head, and the layer whose weight Mamba multiplies by itself
UNQUANTIZED = [*adapters.HEADS, "output_projection", "dt_proj"]


LOADERS = {
    "causal": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "classifier": AutoModelForSequenceClassification,
}


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
    return folder.kind_of(folder.configuration(name, trust_remote_code))


def computed_in(device):
    """The precision that a device computes quantized weights in: 16 bits on a GPU, bf16 where it has that and does not
    only emulate it; fp32 on a CPU, as not every CPU multiplies bf16 fast.
    """
    if device == "cpu":
        return "fp32"
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.bfloat16 in torch.accelerator.get_device_capability()["supported_dtypes"] else "fp16"


def settled(args, name, device):
    """The flags with a precision in place of --precision auto: of the model `name` on a GPU that in which its
    configuration says that it was saved, bf16 as fp16 where the card does not compute in it; else fp32.
    """
    if args.precision != "auto":
        return args
    dtype = None
    if name is not None and device != "cpu":
        config = folder.configuration(name, args.trust_remote_code)
        dtype = text_config(config).dtype or config.dtype
    narrow = {torch.float16: "fp16", torch.bfloat16: computed_in(device)}
    return argparse.Namespace(**{**vars(args), "precision": narrow.get(dtype, "fp32")})


def current(device):
    """The torch.device of a name without index: of several GPUs the current one, which --device cuda:1 has chosen."""
    return torch.device(device, torch.accelerator.current_device_index()) if device in ("cuda", "xpu") else device


def quantization_config(precision, device, compute_dtype=None, double_quant=True):
    """The BitsAndBytesConfig of int8 (Dettmers et al. 2022) or nf4 (Dettmers et al. 2023), None for other precisions.

    compute_dtype: of nf4's products; None: that of the device.
    """
    if precision not in ("int8", "nf4"):
        return None
    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=UNQUANTIZED)
    computed = torch_dtype(compute_dtype or computed_in(device))
    sharded = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=computed,
        bnb_4bit_quant_storage=computed if sharded and device != "cpu" else torch.uint8,  # FSDP shards one dtype
        llm_int8_skip_modules=UNQUANTIZED,
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
    head_reads="auto",
):
    """A model in eval mode on its device, a PeftModel if there is an adapter.

    kind: causal, seq2seq, classifier, or auto (by the configuration); labels: class names of a classification head,
    which is new if the checkpoint has none; device_map: as accelerate's (auto, cpu, ...), instead of one device;
    attention: an attn_implementation of transformers; head_reads: auto or own, what a new head reads (see pooling).
    UserError for a name that cannot be loaded, a precision that the
    device lacks, an adapter of another base.
    """
    quiet()
    check_precision(precision, device)
    if attention == FLASH and precision == "fp32":
        raise utils.UserError(f"--attn_implementation {FLASH} computes in 16 bits, not in fp32")
    checkpoint = folder.configuration(name, trust_remote_code)
    kind = folder.kind_of(checkpoint) if kind == "auto" else kind
    if kind == "classifier" and not labels:
        raise utils.UserError(f"{name} has a classification head; a causal or seq2seq language model is wanted here")
    if kind == "multimodal":
        raise utils.UserError(
            f"{name} is multimodal ({checkpoint.model_type}), and its language model is not loaded alone here; "
            "give a text model"
        )
    if kind == "encoder":
        raise utils.UserError(
            f"{name} is an encoder without a language-model head, and cannot be prompted or trained to answer; "
            "train it for classification with finetune.py or peft_finetune.py, or give a causal or seq2seq model"
        )
    loader = LOADERS[kind]
    options = {"dtype": torch_dtype(precision), "trust_remote_code": trust_remote_code}
    if attention:
        options["attn_implementation"] = attention
    saved = saved_precision(checkpoint)
    if saved and precision in ("int8", "nf4") and precision != saved:
        raise utils.UserError(f"{name} is saved in {saved} and cannot be loaded in {precision}; ask for fp32 or bf16")
    config = None if saved else quantization_config(precision, device, compute_dtype, double_quant)
    place = {"": current(device)}
    if saved:
        options["device_map"] = device_map or place
    elif config is not None:
        options.update(quantization_config=config, device_map=device_map or place)
        # of what is not quantized, too
        options["dtype"] = torch_dtype(compute_dtype or computed_in(device))
    elif device_map or (device != "cpu" and kind != "classifier"):  # a new head is drawn alike on all devices
        options["device_map"] = device_map or place  # straight onto the GPU
    if kind == "classifier":
        label_ids = {label: i for i, label in enumerate(labels)}
        options.update(num_labels=len(labels), id2label=dict(enumerate(labels)), label2id=label_ids)
    folder.check_weights(name)
    try:
        model, report = loader.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except folder.BROKEN_FILE as error:  # ImportError: flash attention is not installed
        if utils.is_out_of_memory(error):
            raise
        raise utils.UserError(f"{name} cannot be loaded as a {kind} model: {folder.first_line(error)}") from None
    check_complete(model, report, name, labels)
    if kind == "classifier":
        new_head = folder.kind_of(checkpoint) != "classifier"
        if pooling.wanted(name, checkpoint, adapter, new_head, head_reads) == "mean":
            pooling.apply(model)
    if config is not None:
        check_quantized(model, name, precision)
    elif not (saved or device_map):
        model.to(current(device))
    model.new_layers = new_layers.find(model, report["missing_keys"]) if kind == "classifier" else []
    new_layers.keep_unquantized(model, model.new_layers)
    if kind == "classifier" and config is not None:
        new_layers.compute_in_fp32(model, adapters.HEADS)
    if kind == "classifier" and pad_token_id is not None:
        model.config.pad_token_id = pad_token_id  # a decoder's head reads the last token that is not padding
    if adapter:
        model = adapters.load_adapter(model, adapter, trainable_adapter)
    return model.eval()


def check_complete(model, report, name, labels=None):
    """UserError if weights of the model were not in its checkpoint: transformers fills them with random numbers.

    report: transformers' loading information. A new classification head, with the layers before it, is no fault; a head
    of another size, trained for other labels, is one, and so are weights for layers that config.json does not count.
    """
    body = f"{model.base_model_prefix}."
    new = re.compile(rf"^(?!{re.escape(body)})|(^|\.)pooler\.") if labels else re.compile("(?!)")
    other = sorted(report["mismatched_keys"])
    if other and all(new.search(key) for key, *_ in other):
        raise utils.UserError(f"{name} was trained for other labels than {', '.join(labels)}")
    if other:
        key, saved, wanted = other[0]
        raise utils.UserError(
            f"{name} cannot be loaded: {key} has the shape {tuple(saved)}, config.json asks for {tuple(wanted)}"
        )
    missing = sorted(key for key in report["missing_keys"] if not new.search(key))
    if missing:
        raise utils.UserError(
            f"{name} cannot be loaded: {len(missing)} of its weights are missing, such as {missing[0]}; "
            "they would be random"
        )
    places = {re.sub(r"\d+", "#", key) for key, _ in model.named_parameters()}
    beyond = sorted(key for key in report["unexpected_keys"] if re.sub(r"\d+", "#", key) in places)
    if beyond:
        raise utils.UserError(
            f"{name} cannot be loaded: config.json has fewer layers than the weights, which hold {beyond[0]}"
        )


def saved_precision(config):
    """The precision of a checkpoint that was quantized before it was saved (nf4, int8, gptq, awq, ..), else None."""
    quantized = getattr(config, "quantization_config", None)
    if not quantized:
        return None
    settings = quantized if isinstance(quantized, dict) else quantized.to_dict()
    if settings.get("load_in_4bit"):
        return settings.get("bnb_4bit_quant_type", "fp4")
    if settings.get("load_in_8bit"):
        return "int8"
    method = settings.get("quant_method", "quantized")
    return getattr(method, "value", method)


def check_quantized(model, name, precision):
    """UserError if bitsandbytes replaced no layer, so that the weights are not what `precision` says.

    On a CPU its kernel takes 4-bit layers whose rows and columns come in blocks; the others are computed without it.
    """
    packed = [module for module in model.modules() if type(module).__name__ in ("Linear4bit", "Linear8bitLt")]
    if not packed:
        raise utils.UserError(
            f"{name}: bitsandbytes finds no layer that it can quantize to {precision} in {model.config.model_type}; "
            "use bf16 or fp32"
        )
    for module in packed:
        if module.out_features % 32 or module.in_features % 64:
            module.support_avx512bf16_for_cpu = False


def check_trainable(model, name):
    """UserError for full fine-tuning of quantized weights, which take no gradient."""
    if getattr(model, "is_quantized", False):
        saved = saved_precision(model.config)
        raise utils.UserError(
            f"{name} is saved in {saved}, and quantized weights cannot be trained; use peft_finetune.py, or the "
            "checkpoint that it was made from"
        )


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
    chat = prompt_format == "chat" or (prompt_format == "auto" and bool(tokenizer.chat_template) and not scoring)
    if chat:
        tokenizers.check_template(tokenizer)
    return chat


def base_model(model):
    """The model without peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def size_columns(model, trained=False):
    """The size cells of a results row. trained: True if this run trains the parameters that require gradients.

    total_params is num_parameters, which counts packed weights (nf4: two in a byte) as bitsandbytes does. precision is
    among the cells where the weights are quantized, whatever the flags say: a checkpoint may be saved so.
    """
    if model.num_parameters is None:  # an engine, which does not say
        return {}
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad) if trained else 0
    quantized = getattr(base_model(model), "is_quantized", False) and saved_precision(base_model(model).config)
    return {
        **({"precision": quantized} if quantized else {}),
        "trainable_params": trainable,
        "total_params": model.num_parameters(),
        "model_gb": base_model(model).get_memory_footprint() / utils.GB,
    }


def text_config(config):
    """The part of a configuration that describes the language model, where it describes other models too."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


# their first positions, up to that of the padding index, belong to padding
PADDED_POSITIONS = (
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "layoutlmv3",
    "lilt",
    "longformer",
    "luke",
    "markuplm",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)


# their answer to a text depends on the padding beside it, whatever the mask says: convolutions, Fourier transforms,
# pooling over positions, and XLNet's head, which reads the last position
READS_PADDING = ("canine", "convbert", "fnet", "funnel", "mra", "nystromformer", "xlnet", "yoso")


def context(config, padding=None):
    """The most tokens that a configuration allows, None where it sets no limit.

    padding: the padding index that the positions were built with, if it is not that of the configuration.
    """
    text = text_config(config)
    names = ("max_position_embeddings", "n_positions", "max_encoder_position_embeddings")
    limit = next(filter(None, (getattr(text, name, None) for name in names)), 0)
    padding = text.pad_token_id if padding is None else padding
    if limit > 0 and text.model_type in PADDED_POSITIONS and isinstance(padding, int):
        limit -= padding + 1
    return limit if limit > 0 else None  # XLNet says -1: no limit


def context_length(model):
    """The most tokens that a model takes at once, None where there is no limit (T5's relative positions)."""
    text = text_config(model.config)
    if text.model_type in PADDED_POSITIONS:  # the Trainer puts the tokenizer's index into the configuration
        positions = (m for name, m in model.named_modules() if name.endswith("position_embeddings"))
        return context(model.config, next((getattr(m, "padding_idx", None) for m in positions), None))
    if hasattr(text, "relative_attention_num_buckets"):
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
