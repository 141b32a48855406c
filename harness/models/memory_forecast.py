"""The memory that a run will need, counted on PyTorch's meta device from the configuration alone."""

import copy
import dataclasses
import functools
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
from transformers.pytorch_utils import Conv1D

import utils
from harness.models import adapters, batching, loading

# bytes an optimizer keeps for each trained parameter: torch's AdamW two moments of the parameter's own precision (None), bitsandbytes'
# two of eight or of 32 bits (Dettmers et al. 2021), Adafactor rows and columns only (Shazeer and Stern 2018)
OPTIMIZER_BYTES = {
    "adamw_torch": None,
    "adamw_torch_fused": None,
    "adamw_8bit": 2,
    "paged_adamw_8bit": 2,
    "paged_adamw_32bit": 8,
    "adafactor": 0.1,
    "sgd": 0,
}


ATTENTION_DROPOUT = (
    "attention_probs_dropout_prob",
    "attention_dropout",
    "attn_pdrop",
    "dropout_rate",
)  # what configurations call it


# a quantized linear layer's bytes a parameter: int8 with a scale a row; nf4 with double-quantized scales, 4.127 bits (Dettmers et al. 2023)
PACKED_BYTES = {"int8": 1.0, "nf4": 4.127 / 8}


DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


class Unknown(utils.UserError):
    """This architecture cannot be run on the meta device, so that nothing can be said of its activations."""


@dataclass(frozen=True)
class Forecast:
    """Bytes of each part of the peak."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    kv_cache: float
    transient: float  # logits and their gradient, a layer's weights put back to full precision
    accumulates: bool = False  # gradients of earlier batches are there while the next one's activations are

    @property
    def gb(self):
        """GB at the peak: gradients grow while activations are given back, so that only the larger of the two counts."""
        moving = max(self.activations + self.transient + self.accumulates * self.gradients, self.gradients)
        return (self.weights + self.optimizer + self.kv_cache + moving) / utils.GB

    def parts_gb(self):
        """{part: GB}."""
        return {
            field.name: getattr(self, field.name) / utils.GB
            for field in dataclasses.fields(self)
            if field.name != "accumulates"
        }


@dataclass(frozen=True)
class Shape:
    """What one step holds at once."""

    batch_size: int
    seq_len: int  # tokens of the longest row, prompt and answer
    head_tokens: int = 0  # positions of a row that the language-model head projects; 0: all of them
    cached_tokens: int = 0  # tokens in the key-value cache, over all rows


def _saves_no_matrix(module, query, key, value, attention_mask=None, scaling=None, dropout=0.0, **options):
    """Attention that keeps queries, keys, values and its output for the backward pass, and no matrix of scores (Dao et al. 2022)."""

    class Attend(torch.autograd.Function):
        @staticmethod
        def forward(context, q, k, v):
            out = torch.empty((*q.shape[:-1], v.shape[-1]), dtype=q.dtype, device=q.device)
            context.save_for_backward(q, k, v, out)
            return out.transpose(1, 2).contiguous()

        @staticmethod
        def backward(context, grad):
            return None, None, None

    groups = query.shape[1] // key.shape[1]
    return Attend.apply(query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)), None


@functools.cache
def _register():
    AttentionInterface.register("saves_no_matrix", _saves_no_matrix)


def meta_model(config, kind, dtype="fp32", peft_config=None, attention="sdpa"):
    """The model of a configuration on the meta device, with the adapter of a peft configuration. kind: causal, seq2seq, classifier."""
    loading.quiet()
    _register()
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
            model = loader.from_config(config, dtype=loading.torch_dtype(dtype), attn_implementation=name)
        except ValueError as error:  # an architecture without attention functions to choose from
            if "attn_implementation" not in str(error) and "does not support" not in str(error):
                raise
            model = loader.from_config(config, dtype=loading.torch_dtype(dtype), attn_implementation="eager")
        if peft_config is not None:
            changes = {"inference_mode": False}
            if getattr(peft_config, "prompt_tuning_init", None):
                changes["prompt_tuning_init"] = (
                    peft.PromptTuningInit.RANDOM
                )  # a text would want the tokenizer and the weights
            model = peft.get_peft_model(model, dataclasses.replace(copy.deepcopy(peft_config), **changes))
    return model


def counted(config, kind, shape, dtype, peft_config=None, attention="sdpa", checkpointing=False):
    """(meta model, what `saved_bytes` counts) at the first way in which the architecture runs on the meta device; Unknown for none.

    Some look at the padding of inputs without a mask, which on the meta device nobody can; some have no attention to choose.
    """
    tried = []
    for kind_of_attention in dict.fromkeys((attention, "eager")):
        for masked in (False, True):
            try:
                model = meta_model(config, kind, dtype, peft_config, kind_of_attention)
                return model, saved_bytes(model, shape, checkpointing, masked)
            except (
                RuntimeError,
                NotImplementedError,
                KeyError,
                AttributeError,
                TypeError,
                IndexError,
                ValueError,
            ) as error:
                tried.append(f"{type(error).__name__}: {error}")
    raise Unknown(f"{config.model_type} does not run on the meta device ({tried[0].splitlines()[0][:120]})")


def record(run, forecast, *args, **kwargs):
    """predicted_gb of a run's row; empty with a note where the architecture is beyond the forecast, which must never end a run."""
    try:
        run.row["predicted_gb"] = forecast(*args, **kwargs).gb
    except Unknown as error:
        run.note(f"no memory forecast: {error}")


def saved_bytes(model, shape, checkpointing=False, masked=False):
    """(bytes that autograd saves in one forward pass, those of the layer that saves most, bytes of the logits).

    checkpointing: of each layer only its input is saved, and the layer computed again in the backward pass (Chen et al. 2016).
    """
    owned = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    seen, layers, stack = (
        {},
        {},
        [],
    )  # storage -> (bytes, the layer it belongs to); kept alive, so that no address comes twice

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
    head = _head_width(model)
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, : shape.head_tokens or shape.seq_len]
    elif head and shape.head_tokens and shape.head_tokens < shape.seq_len:
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


def kind_of(model):
    """causal, seq2seq or classifier: how meta_model builds a model again."""
    name = type(loading.base_model(model)).__name__
    return (
        "classifier"
        if "ForSequenceClassification" in name
        else "seq2seq"
        if model.config.is_encoder_decoder
        else "causal"
    )


def _head_width(model):
    """Does its forward pass take logits_to_keep, and does no learned prompt stand before the text?"""
    return loading.takes(model, "logits_to_keep") and not loading.learns_prompt(model)


def weight_bytes(model, precision, compute="fp32"):
    """(bytes of the weights, bytes of the largest linear layer in the precision that it computes in).

    precision: int8 and nf4 pack the linear layers but for heads and adapters; the rest is as wide as `compute`.
    """
    packed, largest = 0, 0
    adapted = getattr(model, "peft_config", None) is not None
    for name, module in model.named_modules():
        plain = (
            isinstance(module, (torch.nn.Linear, Conv1D))
            and name.split(".")[-1] not in adapters.HEADS
            and "lora_" not in name
        )
        if plain and "modules_to_save" not in name:
            packed += module.weight.numel()
            largest = max(largest, module.weight.numel())
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) if adapted else 0
    if precision not in PACKED_BYTES:
        return DTYPE_BYTES[precision] * (total - trained) + 4 * trained if adapted else DTYPE_BYTES[
            precision
        ] * total, 0
    width = DTYPE_BYTES[compute]
    return PACKED_BYTES[precision] * packed + width * (total - packed - trained) + 4 * trained, width * largest


def kv_bytes(config, tokens, width):
    """Bytes of a key-value cache of so many tokens: keys and values of every layer. width: bytes of a number."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if not getattr(text, "num_attention_heads", None):  # a recurrent model keeps a state of one size
        return 0
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * size * tokens * width


def training(
    config,
    kind,
    shape,
    *,
    precision="fp32",
    peft_config=None,
    optimizer="adamw_torch",
    mixed=False,
    checkpointing=False,
    attention="sdpa",
    accumulation=1,
    device="cpu",
):
    """Forecast of the peak of training.

    config: a transformers configuration; precision: of the weights in memory (fp32, bf16, int8, nf4); mixed: computes in 16 bits
    over fp32 weights; attention: sdpa, eager or flash_attention_2; accumulation: batches of one step; device: cpu or cuda. Unknown for an
    architecture that does not run on the meta device.
    """
    compute = ("bf16" if device == "cuda" else "fp32") if precision in PACKED_BYTES else precision
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    drops = any(getattr(text, name, 0) for name in ATTENTION_DROPOUT)
    if device == "cpu" and attention == "sdpa" and drops:
        attention = "eager"  # torch's CPU kernel takes no dropout: the matrices are written out
    dtype = "bf16" if mixed else compute
    model, (activations, _, logits) = counted(config, kind, shape, dtype, peft_config, attention, checkpointing)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    width = 4 if peft_config is not None or precision == "fp32" else DTYPE_BYTES[compute]
    weights, unpacked = weight_bytes(model, precision, compute)
    if mixed and precision == "fp32":  # the copies that autocast makes are kept for the backward pass
        activations += 2 * sum(p.numel() for p in model.parameters())
    states = OPTIMIZER_BYTES[optimizer]
    return Forecast(
        weights,
        width * trained,
        (2 * width if states is None else states) * trained,
        activations,
        0.0,
        2 * logits * (4 / DTYPE_BYTES[dtype]) + 2 * unpacked,
        accumulation > 1,
    )


def inference(config, kind, shape, *, precision="fp32", peft_config=None, device="cpu"):
    """Forecast of the peak of scoring or generating: weights, the cache, what one layer holds, and the logits."""
    compute = ("bf16" if device == "cuda" else "fp32") if precision in PACKED_BYTES else precision
    model, (_, layer, logits) = counted(config, kind, shape, compute, peft_config)
    weights, unpacked = weight_bytes(model, precision, compute)
    cache = kv_bytes(config, shape.cached_tokens, DTYPE_BYTES[compute]) if shape.cached_tokens else 0.0
    return Forecast(weights, 0.0, 0.0, layer, cache, 2 * logits * (4 / DTYPE_BYTES[compute]) + unpacked)


def predict_inference(run, model, batch_size, longest, kind, shared=0):
    """predicted_gb of a run that trains nothing, from its configuration and its longest batch.

    longest: tokens of the longest row; kind: packed (label words scored behind a shared prefix), generated or classified.
    """
    if run.row.get("train_seconds") is not None:
        return
    packed = batching.PACK_TOKENS[run.row["device"]]
    kind = "classified" if kind == "packed" and model.config.is_encoder_decoder else kind  # those have no packed rows
    shape = {
        "packed": Shape(1, max(packed, longest - shared), batch_size, packed + longest),
        "generated": Shape(batch_size, longest - shared, 1, batch_size * longest),
        "classified": Shape(batch_size, longest),
    }[kind]
    adapter = next(iter(getattr(model, "peft_config", {}).values()), None)
    record(
        run,
        inference,
        model.config,
        kind_of(model),
        shape,
        precision=run.row["precision"],
        peft_config=adapter,
        device=run.row["device"],
    )


def predict_training(run, model, data, args, device):
    """predicted_gb: the forecast of this training's peak, from the configuration and the longest batch."""
    rows, precision = data.train, run.row["precision"]
    labels = [
        row["labels"] for row in rows if isinstance(row.get("labels"), list)
    ]  # of answers; distillation has targets of its own
    responses = [sum(label != -100 for label in some) for some in labels]
    shape = Shape(
        batch_size=min(args.batch_size, len(rows)),
        seq_len=max(len(row["input_ids"]) for row in rows),
        head_tokens=1 + max(responses) if responses and getattr(data.collate, "partial_head", True) else 0,
    )
    adapter = next(iter(getattr(model, "peft_config", {}).values()), None)
    record(
        run,
        training,
        model.config,
        kind_of(model),
        shape,
        precision=precision,
        peft_config=adapter,
        optimizer=args.optim,
        mixed=args.fp16 or args.bf16,
        checkpointing=args.gradient_checkpointing,
        attention=args.attn_implementation or "sdpa",
        accumulation=args.gradient_accumulation,
        device=device,
    )
