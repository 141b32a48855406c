"""--forecast: the memory forecast of a run, calibrated on measured rows. Loads torch, unlike the rest of the room."""

import argparse
import bisect
import dataclasses
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peft
from scipy.optimize import lsq_linear
from transformers import AutoConfig

import utils
from harness.models import layers, loading, memory_forecast, meta_device, properties
from harness.results import configurations, names, store

MIN_ROWS = 5  # measured rows that a calibration needs
FACTORS, SPREAD = (0.5, 2.0), 1.5  # bounds of a calibration's factor; largest / smallest forecast needed to fit one
CLASSES = 2  # of a head, where --n_classes does not say
TIGHT = 0.9  # share of the memory above which the error of a forecast decides
QUANTIZED = {"qlora": "nf4", "int8_lora": "int8"}  # methods that fix the precision of the base


def measured_gb(row):
    """GB that a row's run added: the GPU's peak, or on a CPU the peak resident memory minus that before the model.

    None if it was not measured.
    """
    gpu, peak, start = (store.number(row.get(name)) for name in ("peak_gpu_gb", "peak_rss_gb", "start_rss_gb"))
    if gpu is not None:
        return gpu
    return None if peak is None or start is None or peak <= start else peak - start


def phase_of(row):
    """training or inference; a probe's head learns from what a model's passes without gradients give"""
    trains = store.number(row.get("trainable_params")) and names.strategy(row) != "probe"
    return "training" if trains else "inference"


def known_pairs(rows, device, phase, wide):
    """[(predicted, measured)] in GB of the rows of one kind of device and phase (training, inference), to calibrate by.

    wide: True for weights in fp32, False for narrower ones, which leave more behind on a CPU (pages of the file,
    unpacked layers). If there are fewer than MIN_ROWS of the one kind, both are taken.
    """
    pairs = {True: [], False: []}
    for row in rows:
        predicted, measured = store.number(row.get("predicted_gb")), measured_gb(row)
        usable = row["status"] in ("ok", "degenerate") and row["device"] == device and phase_of(row) == phase
        if usable and predicted and measured:
            pairs[row["precision"] == "fp32"].append((predicted, measured))
    return pairs[wide] if len(pairs[wide]) >= MIN_ROWS else pairs[True] + pairs[False]


def calibrate(pairs):
    """(offset, factor) with measured = offset + factor * predicted: bounded least squares of relative errors (scipy).

    (0, 1) for fewer than MIN_ROWS pairs. The offset, at least 0, is what the model's configuration does not show:
    libraries loaded late, the allocator's cache. The factor is within FACTORS, and 1 if the rows are too close in size
    to fit it.
    """
    if len(pairs) < MIN_ROWS:
        return 0.0, 1.0
    predicted, measured = np.array(pairs).T
    low, high = FACTORS if predicted.max() >= SPREAD * predicted.min() else (1.0 - 1e-9, 1.0)
    weighted = np.stack([1 / measured, predicted / measured], 1)  # [rows, 2]
    solution = lsq_linear(weighted, np.ones(len(pairs)), bounds=([0.0, low], [np.inf, high])).x
    return float(solution[0]), float(solution[1])


def configuration(model, task, n_classes, trust_remote_code=False):
    """(transformers configuration, kind) of a model; an encoder, or any for classification, gets a head."""
    loading.quiet()
    kind = loading.model_kind(model, trust_remote_code)
    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    if task == "classification" or kind in ("encoder", "classifier"):
        config.num_labels, kind = n_classes, "classifier"
        config.pad_token_id = config.pad_token_id if getattr(config, "pad_token_id", None) is not None else 0
    return config, kind


def lora(config, kind, rank, target_modules="auto"):
    """The peft configuration of LoRA on the layers that peft_finetune.py takes."""
    bare = meta_device.meta_model(config, kind, attention="eager")  # for the names of its layers
    task = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "classifier": "SEQ_CLS"}[kind]
    return peft.LoraConfig(task_type=task, r=rank, target_modules=layers.target_modules(bare, target_modules))


def of_batch(one, two, batch_size):
    """The Forecast of a batch from those of one and two examples: each example adds the same bytes to a part."""
    names = [field.name for field in dataclasses.fields(one) if field.name != "accumulates"]
    parts = {name: getattr(one, name) + (batch_size - 1) * (getattr(two, name) - getattr(one, name)) for name in names}
    return memory_forecast.Forecast(**parts, accumulates=one.accumulates)


def largest_batch(total, memory_gb, most=1 << 20):
    """The largest batch size up to `most` with `total(batch size)` <= memory_gb; 0 if not even one example fits."""
    return bisect.bisect_right(range(1, most + 1), memory_gb, key=total)


def forecast_of(config, kind, args, batch_size):
    """The memory_forecast.Forecast of the run that the flags describe. UserError for too many tokens."""
    precision = QUANTIZED.get(args.method, args.weights)
    if kind != "seq2seq" and (limit := properties.context(config)) and args.seq_len > limit:
        raise utils.UserError(f"--seq_len {args.seq_len}: {Path(args.model).name} reads {limit} tokens at most")
    if args.method == "inference":
        total = args.seq_len + args.new_tokens
        shape = memory_forecast.Shape(
            batch_size, args.seq_len, 1 if kind == "causal" else 0, batch_size * total if kind != "classifier" else 0
        )
        return memory_forecast.inference(config, kind, shape, precision=precision, device=args.device)
    adapter = lora(config, kind, args.rank, args.target_modules) if args.method != "full" else None
    return memory_forecast.training(
        config,
        kind,
        memory_forecast.Shape(batch_size, args.seq_len),
        precision=precision,
        peft_config=adapter,
        optimizer=args.optim,
        mixed=args.mixed,
        checkpointing=args.gradient_checkpointing,
        attention=args.attn_implementation,
        device=args.device,
    )


@dataclass(frozen=True)
class Answer:
    """A forecast and what the rows and the memory limit make of it. All memory in GB."""

    forecast: memory_forecast.Forecast
    kind: str  # causal, seq2seq, classifier
    device: str
    pairs: list  # (predicted, measured) of the rows that calibrate it
    offset: float
    factor: float
    verdict: str | None  # fits, tight, does not fit; None without --memory_gb
    largest_batch: int | None

    @property
    def needed(self):
        """The calibrated peak."""
        return self.offset + self.factor * self.forecast.gb

    @property
    def calibrated(self):
        return len(self.pairs) >= MIN_ROWS


def answer(args, rows):
    """The Answer to --forecast. rows: all measured rows. UserError for a model that cannot be forecast."""
    device = args.device or "cuda"
    args = argparse.Namespace(**{**vars(args), "device": device})
    config, kind = configuration(args.model, args.task, args.n_classes or CLASSES)
    forecast = forecast_of(config, kind, args, args.batch_size)
    wide = QUANTIZED.get(args.method, args.weights) == "fp32"
    pairs = known_pairs(rows, device, "inference" if args.method == "inference" else "training", wide)
    offset, factor = calibrate(pairs)
    result = Answer(forecast, kind, device, pairs, offset, factor, None, None)
    if not args.memory_gb:
        return result
    fits = result.needed <= TIGHT * args.memory_gb
    verdict = "fits" if fits else "tight" if result.needed <= args.memory_gb else "does not fit"
    one, two = (forecast_of(config, kind, args, size) for size in (1, 2))

    def total(batch_size):
        return offset + factor * of_batch(one, two, batch_size).gb

    return dataclasses.replace(result, verdict=verdict, largest_batch=largest_batch(total, args.memory_gb))


def as_json(result, args):
    """An Answer as a dict for --json."""
    return {
        "model": args.model,
        "method": args.method,
        "device": result.device,
        "batch_size": args.batch_size,
        "seq_len": args.seq_len,
        "parts_gb": result.forecast.parts_gb(),
        "configuration_gb": result.forecast.gb,
        "predicted_gb": result.needed,
        "calibrated_on_rows": len(result.pairs) if result.calibrated else 0,
        "verdict": result.verdict,
        "largest_batch": result.largest_batch,
    }


def text(result, args, rows, source):
    """An Answer in lines: the parts of the peak, its calibration, whether it fits. source: the CSV of the rows."""
    heads = {"classifier": f"a classification head of {args.n_classes or CLASSES} classes"}
    head = heads.get(result.kind, "the language model's head")
    run = f"batch {args.batch_size} x {args.seq_len} tokens"
    lines = [f"{args.method} of {Path(args.model).name} with {head} on {result.device}, {run}"]
    lines += [f"  {name:12} {gb:8.3f} GB" for name, gb in result.forecast.parts_gb().items()]
    lines.append(f"  {'peak':12} {result.forecast.gb:8.3f} GB (gradients reuse the memory that activations free)")
    lines += calibration(result, source)
    if result.device == "cuda":
        lines.append("  besides: the CUDA context and what the allocator cannot use, which differ between GPUs")
    else:
        on_device = [row for row in rows if row["device"] == result.device]
        starts = [configurations.value(row, "start_rss_gb") for row in on_device]
        starts = [start for start in starts if start is not None]
        if starts:
            lines.append(f"  besides: Python and its libraries, {statistics.median(starts):.2f} GB in the rows")
    if result.verdict:
        largest, limit = result.largest_batch, f"{args.memory_gb:g} GB"
        batch = f"largest batch that fits {limit}: {largest}" if largest else f"not even a batch of one fits {limit}"
        lines.append(f"{result.verdict}: {result.needed:.2f} of {limit}; {batch}")
    return "\n".join(lines)


def calibration(result, source):
    """Lines on the rows that calibrate an Answer."""
    n = len(result.pairs)
    if not result.calibrated:
        why = f"{n} rows on {result.device} have both a forecast and a measured peak, {MIN_ROWS} are needed"
        return [f"  not calibrated: {why}"]
    sum_of = f"{result.offset:.2f} + {result.factor:.2f} x peak"
    lines = [f"  {'calibrated':12} {result.needed:8.3f} GB: {sum_of}, from {n} measured rows in {source}"]
    low, high = (pick(predicted for predicted, _ in result.pairs) for pick in (min, max))
    if not low / 2 <= result.forecast.gb <= 2 * high:
        lines.append(f"  CAUTION: those rows are of {low:.2f} to {high:.2f} GB, so this is far from what was measured")
    return lines
