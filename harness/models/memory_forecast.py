"""The memory that a run will need, from its configuration alone: weights, gradients, optimizer, activations, cache."""

import dataclasses
from dataclasses import dataclass

import torch
from transformers.pytorch_utils import Conv1D

import utils
from harness.models import adapters, batching, engine, properties
from harness.models.meta_device import Shape, Unknown, counted

# bytes that an optimizer keeps for each trained parameter: torch's AdamW two moments of the parameter's own precision
# (None), bitsandbytes' two of eight or of 32 bits (Dettmers et al. 2021), Adafactor rows and columns only (Shazeer and
# Stern 2018)
OPTIMIZER_BYTES = {
    "adamw_torch": None,
    "adamw_torch_fused": None,
    "adamw_8bit": 2,
    "paged_adamw_8bit": 2,
    "paged_adamw_32bit": 8,
    "adafactor": 0.1,
    "sgd": 0,
}
# what configurations call the dropout of attention
ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop", "dropout_rate")
# bytes a parameter of a quantized linear layer: int8 with a scale a row; nf4 with double-quantized scales, 4.127 bits
# (Dettmers et al. 2023)
PACKED_BYTES = {"int8": 1.0, "int8_weights": 1.0, "int4_weights": 5 / 8, "nf4": 4.127 / 8}
DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
CACHE_SHARE = 0.4  # of free memory, for keys and values of a batch; a common beginning is copied while they are made
PADDED_AT_LEAST = 2048  # tokens of a batch


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
        """GB at the peak: gradients grow while activations are freed, so only the larger of the two counts."""
        moving = max(self.activations + self.transient + self.accumulates * self.gradients, self.gradients)
        return (self.weights + self.optimizer + self.kv_cache + moving) / utils.GB

    def parts_gb(self):
        """{part: GB}."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "accumulates"]
        return {name: getattr(self, name) / utils.GB for name in names}


def record(run, forecast, *args, **kwargs):
    """Write predicted_gb into a run's row; where the architecture cannot be forecast, a note. Never ends a run."""
    try:
        run.row["predicted_gb"] = forecast(*args, **kwargs).gb
    except Unknown as error:
        run.note(f"no memory forecast: {error}")


def kind_of(model):
    """The kind, causal, seq2seq or classifier, with which `meta_model` builds a loaded model again."""
    if hasattr(model, "kind"):  # runtimes.Session
        return model.kind
    if "ForSequenceClassification" in type(properties.base_model(model)).__name__:
        return "classifier"
    return "seq2seq" if model.config.is_encoder_decoder else "causal"


def weight_bytes(model, precision, compute="fp32"):
    """(bytes of the weights, bytes of the largest linear layer in the precision that it computes in).

    precision: int8 and nf4 pack the linear layers except heads and adapters, and keep the rest in `compute`. Adapters
    are trained in fp32.
    """
    sizes = [0]  # of the linear layers that a quantization packs
    for name, module in model.named_modules():
        linear = isinstance(module, (torch.nn.Linear, Conv1D)) and name.split(".")[-1] not in adapters.HEADS
        if linear and "lora_" not in name and "modules_to_save" not in name:
            sizes.append(module.weight.numel())
    total, adapted = sum(p.numel() for p in model.parameters()), getattr(model, "peft_config", None) is not None
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) if adapted else 0
    if precision not in PACKED_BYTES:
        return DTYPE_BYTES[precision] * (total - trained) + 4 * trained, 0
    packed, width = sum(sizes), DTYPE_BYTES[compute]
    return PACKED_BYTES[precision] * packed + width * (total - packed - trained) + 4 * trained, width * max(sizes)


def kv_bytes(config, tokens, width):
    """Bytes of a key-value cache of `tokens` tokens over all rows. width: bytes of a number."""
    text = properties.text_config(config)
    if not getattr(text, "num_attention_heads", None):  # a recurrent model keeps a state of one size
        return 0
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * size * tokens * width


def padded_tokens(model):
    """Tokens of one padded batch: on a GPU as many as have their keys and values in CACHE_SHARE of its free memory."""
    usual = batching.PADDED_TOKENS[model.device.type]
    each = kv_bytes(model.config, 1, model.dtype.itemsize)
    if model.device.type not in ("cuda", "xpu") or not each:
        return usual
    gpu, device = torch.accelerator, model.device
    free = gpu.get_memory_info(device)[0] + gpu.memory_reserved(device) - gpu.memory_allocated(device)
    return max(PADDED_AT_LEAST, min(int(CACHE_SHARE * free / each), 4 * usual))


def compute_dtype(precision, device):
    """The precision that weights of `precision` compute in: quantized ones in bf16 on a GPU, in fp32 on a CPU.

    Unknown for those that only a checkpoint brings along (gptq, awq, ..).
    """
    if precision not in PACKED_BYTES and precision not in DTYPE_BYTES:
        raise Unknown(f"the size of {precision} weights is not known")
    return ("fp32" if device == "cpu" else "bf16") if precision in PACKED_BYTES else precision


def training(
    config,
    kind,
    shape,
    *,
    precision="fp32",
    peft_config=None,
    optimizer="adamw_torch_fused",
    mixed=False,
    checkpointing=False,
    attention="sdpa",
    accumulation=1,
    device="cpu",
):
    """Forecast of the peak of training.

    config: a transformers configuration; kind: causal, seq2seq or classifier; precision: of the weights (fp32, bf16,
    int8, nf4); mixed: 16-bit computation over fp32 weights; attention: sdpa, eager or flash_attention_2;
    accumulation: batches of one step; device: cpu or cuda. Unknown for an architecture that does not run on the meta
    device.
    """
    compute = compute_dtype(precision, device)
    text = properties.text_config(config)
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
        weights=weights,
        gradients=width * trained,
        optimizer=(2 * width if states is None else states) * trained,
        activations=activations,
        kv_cache=0.0,
        transient=2 * logits * (4 / DTYPE_BYTES[dtype]) + 2 * unpacked,  # the loss takes the logits in fp32
        accumulates=accumulation > 1,
    )


def inference(config, kind, shape, *, precision="fp32", peft_config=None, device="cpu"):
    """Forecast of the peak of scoring or generating: weights, the cache, what one layer holds, and the logits."""
    compute = compute_dtype(precision, device)
    model, (_, layer, logits) = counted(config, kind, shape, compute, peft_config)
    weights, unpacked = weight_bytes(model, precision, compute)
    cache = kv_bytes(config, shape.cached_tokens, DTYPE_BYTES[compute]) if shape.cached_tokens else 0.0
    return Forecast(weights, 0.0, 0.0, layer, cache, 2 * logits * (4 / DTYPE_BYTES[compute]) + unpacked)


def predict_inference(run, model, batch_size, longest, kind, shared=0, positions=1):
    """predicted_gb of a run that trains nothing, from its configuration and its longest batch.

    longest: tokens of the longest row; kind: packed (label words behind a shared prefix), generated or classified;
    shared: tokens of the shared prefix; positions: of one pass whose logits are read, where it is packed.
    """
    if run.row.get("train_seconds") is not None or engine.is_engine(model):
        return
    packed = batching.PACK_TOKENS[run.row["device"]]
    kind = "classified" if kind == "packed" and model.config.is_encoder_decoder else kind  # those have no packed rows
    shape = {
        "packed": Shape(1, max(packed, longest - shared), positions, packed + longest),
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
