"""What a classification head reads of an encoder: its first token, or the mean of all tokens.

The checkpoints of sentence-transformers were trained so that the mean of the last states says what a text is about; the
heads of transformers read the first token (BERT's through a pooler that this training left aside). A new head on such a
checkpoint reads the mean here. The configuration of what is saved says so under `classifier_pooling`, the name that
ModernBERT has for it; transformers alone does not know it for the other architectures, so `loading.load_model` must
load these heads.
"""

import json

import torch
from transformers.utils import cached_file

from harness.models import adapters

READ_FIRST = ("bert", "distilbert", "mpnet", "roberta", "xlm-roberta")  # architectures that `apply` can change


def of_checkpoint(name):
    """mean where a sentence-transformers checkpoint (folder or hub name) pools its token states by their mean."""

    def read(file):
        path = cached_file(
            name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
        try:
            with open(path, encoding="utf-8") as text:
                return json.load(text)
        except (TypeError, OSError, ValueError):  # no such file, or none that can be read
            return None

    modules = read("modules.json")
    for module in modules if isinstance(modules, list) else ():
        if isinstance(module, dict) and str(module.get("type")).endswith(".Pooling"):
            settings = read(f"{module.get('path')}/config.json")
            return "mean" if isinstance(settings, dict) and settings.get("pooling_mode_mean_tokens") else None
    return None


def wanted(name, config, adapter, new_head, pooling):
    """mean or None, for a classifier that is loaded from `name`.

    adapter: its folder says what its head was trained on; pooling: auto, or own for what the architecture reads.
    """
    if adapter:
        return adapters.head_pooling(adapter)
    if not new_head:
        return getattr(config, "classifier_pooling", None)
    return of_checkpoint(name) if pooling == "auto" and config.model_type in (*READ_FIRST, "modernbert") else None


def apply(model):
    """Let the head of a classifier read the mean of the token states, padding left out."""
    model.config.classifier_pooling = "mean"
    if model.config.model_type not in READ_FIRST:
        return  # ModernBERT does it itself
    body = model.base_model
    if hasattr(body, "pooler"):
        body.pooler = None
    body.register_forward_hook(_mean_first, with_kwargs=True)


def _mean_first(body, args, kwargs, output):
    """The body's output with the mean [B, H] of the states [B, T, H] where heads read: first token, pooler_output."""
    states, mask = output.last_hidden_state, kwargs.get("attention_mask")
    weights = states.new_ones(states.shape[:2]) if mask is None else mask.to(states.dtype)
    mean = (states * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)
    changed = {"last_hidden_state": torch.cat([mean[:, None], states[:, 1:]], 1)}
    if "pooler_output" in type(output).__dataclass_fields__:
        changed["pooler_output"] = mean
    return type(output)(**{**output, **changed})
