"""What a forward pass keeps in memory, counted on PyTorch's meta device, which has shapes without data.

A hook on autograd sees every tensor that is saved for the backward pass, so that no formula for each architecture is
needed.
"""

import copy
import dataclasses
from dataclasses import dataclass

import peft
import torch
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)
from transformers.modeling_layers import GradientCheckpointingLayer

import utils
from harness.models import loading, precisions, properties

# what an architecture that cannot be run on the meta device raises there
CANNOT_RUN = (RuntimeError, NotImplementedError, KeyError, AttributeError, TypeError, IndexError, ValueError)


class Unknown(utils.UserError):
    """This architecture cannot be run on the meta device, so nothing is known of its activations."""


@dataclass(frozen=True)
class Shape:
    """What one step holds at once."""

    batch_size: int
    seq_len: int  # tokens of the longest row, prompt and answer
    head_tokens: int = 0  # positions of a row that the language-model head projects; 0: all of them
    cached_tokens: int = 0  # tokens in the key-value cache, over all rows


class _Attend(torch.autograd.Function):
    """Attention as FlashAttention saves it (Dao et al. 2022): q, k, v and the output, no matrix of scores."""

    @staticmethod
    def forward(context, q, k, v):  # [B, heads, T, D] each
        out = torch.empty((*q.shape[:-1], v.shape[-1]), dtype=q.dtype, device=q.device)
        context.save_for_backward(q, k, v, out)
        return out.transpose(1, 2).contiguous()  # [B, T, heads, D]

    @staticmethod
    def backward(context, grad):
        return None, None, None


def _saves_no_matrix(module, query, key, value, attention_mask=None, scaling=None, dropout=0.0, **options):
    """An attention function of transformers; computes nothing. Keys and values are repeated for grouped queries."""
    groups = query.shape[1] // key.shape[1]
    return _Attend.apply(query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)), None


AttentionInterface.register("saves_no_matrix", _saves_no_matrix)


def meta_model(config, kind, dtype="fp32", peft_config=None, attention="sdpa"):
    """The model of a configuration on the meta device, with the adapter of a peft configuration.

    kind: causal, seq2seq or classifier; attention: eager writes its matrices out, any other kind does not.
    """
    loading.quiet()
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    loader = {
        "causal": AutoModelForCausalLM,
        "seq2seq": AutoModelForSeq2SeqLM,
        "classifier": AutoModelForSequenceClassification,
    }[kind]
    name = "eager" if attention == "eager" else "saves_no_matrix"
    with torch.device("meta"):
        try:
            model = loader.from_config(config, dtype=precisions.torch_dtype(dtype), attn_implementation=name)
        except ValueError as error:  # an architecture without attention functions to choose from
            if "attn_implementation" not in str(error) and "does not support" not in str(error):
                raise
            model = loader.from_config(config, dtype=precisions.torch_dtype(dtype), attn_implementation="eager")
        if peft_config is not None:
            changes = {"inference_mode": False}
            if getattr(peft_config, "prompt_tuning_init", None):  # a text would need the tokenizer and the weights
                changes["prompt_tuning_init"] = peft.PromptTuningInit.RANDOM
            model = peft.get_peft_model(model, dataclasses.replace(copy.deepcopy(peft_config), **changes))
    return model


def counted(config, kind, shape, dtype, peft_config=None, attention="sdpa", checkpointing=False):
    """(meta model, what `saved_bytes` counts of it). Unknown where the architecture does not run on the meta device.

    Tried without and with an attention mask, and with eager attention: some architectures look at the padding of inputs
    without a mask, which the meta device does not have, and some have only eager attention.
    """
    errors = []
    for kind_of_attention in dict.fromkeys((attention, "eager")):
        for masked in (False, True):
            try:
                model = meta_model(config, kind, dtype, peft_config, kind_of_attention)
                return model, saved_bytes(model, shape, checkpointing, masked)
            except CANNOT_RUN as error:
                errors.append(f"{type(error).__name__}: {error}")
    raise Unknown(f"{config.model_type} does not run on the meta device ({errors[0].splitlines()[0][:120]})")


def saved_bytes(model, shape, checkpointing=False, masked=False):
    """(bytes that autograd saves in one forward pass, those of the layer that saves most, bytes of the logits).

    Parameters and buffers do not count. checkpointing: of each layer only its input is saved, and the layer is computed
    again in the backward pass (Chen et al. 2016).
    """
    owned = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    seen = {}  # address of a storage -> (the storage, kept alive so that no address comes twice; id of its layer)
    layers, stack = {}, []  # id of a layer -> bytes of its input; the layers that are running, outermost first

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in owned:
            seen.setdefault(storage._cdata, (storage, stack[-1] if stack else None))
        return tensor

    def enter(module, args, kwargs):
        hidden = next(x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor) and x.is_floating_point())
        layers[id(module)] = hidden.numel() * hidden.element_size()
        stack.append(id(module))

    def leave(module, args, output):
        stack.pop()

    hooks = []
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            hooks += [module.register_forward_pre_hook(enter, with_kwargs=True), module.register_forward_hook(leave)]
    model.train()
    ids = torch.zeros(shape.batch_size, shape.seq_len, dtype=torch.long, device="meta")
    inputs = {"input_ids": ids}
    if masked:
        inputs["attention_mask"] = torch.ones_like(ids)
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, : shape.head_tokens or shape.seq_len]
    elif 0 < shape.head_tokens < shape.seq_len and properties.keeps_logits(model):
        inputs["logits_to_keep"] = shape.head_tokens
    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(**inputs).logits
    for hook in hooks:
        hook.remove()
    by_layer = dict.fromkeys(layers, 0)
    outside = 0
    for storage, layer in seen.values():
        if layer is None:
            outside += storage.nbytes()
        else:
            by_layer[layer] += storage.nbytes()
    largest = max(by_layer.values(), default=0)
    inside = sum(layers.values()) + largest if checkpointing else sum(by_layer.values())
    return outside + inside, largest, logits.numel() * logits.element_size()
