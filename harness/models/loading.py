"""A tokenizer and a model, at a precision, on a device or a device map, with an adapter."""

import logging
import re
import warnings

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification
from transformers.utils import logging as hf_logging

import utils
from harness.flags import FLASH
from harness.models import adapters, folder, new_layers, pooling, precisions, properties
from harness.models import tokenizer as tokenizers
from harness.models.tokenizer import load_tokenizer  # noqa: F401, scripts know it here

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


def current(device):
    """The torch.device of a name without index: of several GPUs the current one, which --device cuda:1 has chosen."""
    return torch.device(device, torch.accelerator.current_device_index()) if device in ("cuda", "xpu") else device


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
    precisions.check_precision(precision, device)
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
    options = {"dtype": precisions.torch_dtype(precision), "trust_remote_code": trust_remote_code}
    if attention:
        options["attn_implementation"] = attention
    saved = properties.saved_precision(checkpoint)
    if saved and precision in ("int8", "nf4") and precision != saved:
        raise utils.UserError(f"{name} is saved in {saved} and cannot be loaded in {precision}; ask for fp32 or bf16")
    config = None if saved else precisions.quantization_config(precision, device, compute_dtype, double_quant)
    place = {"": current(device)}
    if saved:
        options["device_map"] = device_map or place
    elif config is not None:
        options.update(quantization_config=config, device_map=device_map or place)
        # of what is not quantized, too
        options["dtype"] = precisions.torch_dtype(compute_dtype or precisions.computed_in(device))
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
        precisions.check_quantized(model, name, precision)
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
