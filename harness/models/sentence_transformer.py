"""A sentence-transformers model or cross-encoder (Reimers and Gurevych 2019), loaded whole and without pickles."""

from pathlib import Path
from unittest import mock

import torch
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel

import utils
from harness.models import batching, folder, properties


def load(kind, name, flag, device, args, new_head=False):
    """A SentenceTransformer or CrossEncoder (`kind`); UserError with the flag and the name if it cannot be loaded.

    That is also one with pickled weights, in any of its modules, and one whose weights are not all there. new_head: a
    CrossEncoder of one output, which may be new.
    """
    options = {"trust_remote_code": args.trust_remote_code, "model_kwargs": {"use_safetensors": True}}
    options.update({"num_labels": 1} if new_head else {})
    try:
        with mock.patch.object(torch, "load", _refuse_pickle):  # modules such as Dense would read pytorch_model.bin
            model = kind(name, device=device, **options)
        missing = _missing_weights(model.transformers_model, kind is SentenceTransformer, new_head)
    except folder.BROKEN_FILE as error:
        if utils.is_out_of_memory(error):
            raise
        raise utils.UserError(f"{flag} {name} cannot be loaded: {folder.first_line(error)}") from None
    if missing:
        raise utils.UserError(
            f"{flag} {name} cannot be loaded: {len(missing)} of its weights are missing, such as {missing[0]}; they "
            "would be random"
        )
    return model


def batch_size(model, longest):
    """Texts of a pass for --batch_size auto: 32; on a GPU, which they would not fill, by tokens. longest: of a text."""
    tokens = batching.PADDED_TOKENS[model.device.type]
    return 32 if model.device.type == "cpu" else max(32, tokens // (longest or 512))


def _refuse_pickle(file, *_, **__):
    raise utils.UserError(
        f"{Path(str(file)).name} is a pickle, and pickled weights are not read; save it as safetensors"
    )


def _missing_weights(model, pooled, new_head):
    """The weights of a transformers model that its checkpoint lacks, which transformers fills with random numbers.

    pooled: vectors are pooled from the last layer, so that BERT's own pooler, which many checkpoints lack, is not used;
    new_head: what stands on the base may be random.
    """
    if not isinstance(model, PreTrainedModel) or hasattr(model, "peft_config"):
        return []
    options = {"config": model.config, "use_safetensors": True, "device_map": "meta", "output_loading_info": True}
    _, report = type(model).from_pretrained(model.name_or_path, **options)
    inside = f"{model.base_model_prefix}."
    wanted = [key for key in report["missing_keys"] if key.startswith(inside) or not new_head]
    return sorted(key for key in wanted if not ((pooled or new_head) and "pooler" in key.split(".")[:2]))


def limit_tokens(model, name, wanted=None):
    """Let a model cut texts to what its positions allow, whatever its sentence_bert_config.json says; the limit.

    wanted: a limit to take instead of the model's own, as far as its positions allow; name: what a UserError calls the
    model. None: there is no limit.
    """
    longest, inner = model.max_seq_length, model.transformers_model
    if longest is not None and (not isinstance(longest, int) or longest < 1):
        raise utils.UserError(f"{name}: max_seq_length is {longest!r}, not a whole number above 0")
    limit = properties.context_length(inner) if isinstance(inner, PreTrainedModel) else None
    limits = [n for n in (wanted or longest, limit) if n]
    if limits and longest != min(limits):
        model.max_seq_length = min(limits)
    return model.max_seq_length
