"""What a model is: its base, sizes, context and the arguments that it takes."""

import inspect

import utils


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


def base_model(model):
    """The model without peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def label_order(model, labels):
    """[L] the place of each of the task's labels in the model's head."""
    return [model.config.label2id[label] for label in labels]


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
