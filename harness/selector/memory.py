"""The memory forecast, calibrated on measured rows."""

import bisect
import dataclasses
import statistics
from pathlib import Path

import numpy as np
import peft
from scipy.optimize import lsq_linear
from transformers import AutoConfig

import utils
from harness import hub
from harness.models import adapters, loading, memory_forecast
from harness.results import configurations, store
from harness.selector.candidates import dumps

METHODS = ("full", "lora", "qlora", "int8_lora", "inference")


MIN_ROWS = 5  # measured rows that a calibration needs


FACTORS, SPREAD = (0.5, 2.0), 1.5  # what a calibration may multiply by; how far apart its rows must be to say so


def measured_gb(row):
    """GB that a row's run needed: the GPU's peak, or on a CPU the resident memory above that before the model; None unknown."""
    gpu, peak, start = (store.number(row.get(name)) for name in ("peak_gpu_gb", "peak_rss_gb", "start_rss_gb"))
    if gpu is not None:
        return gpu
    return None if peak is None or start is None or peak <= start else peak - start


def phase(row):
    return "training" if store.number(row.get("train_seconds")) is not None else "inference"


def known_pairs(rows, device, phase, wide):
    """[(predicted, measured)] in GB of the ok rows of one kind of device and phase (training, inference) to calibrate with.

    wide: of weights in fp32, or of narrower ones, which leave more behind on a CPU (the file's pages, unpacked layers). Where there are
    fewer than MIN_ROWS of the one kind, both are taken.
    """
    found = {True: [], False: []}
    for row in rows:
        predicted, measured = store.number(row.get("predicted_gb")), measured_gb(row)
        if (
            row["status"] in ("ok", "degenerate")
            and row["device"] == device
            and phase(row) == phase
            and predicted
            and measured
        ):
            found[row["precision"] == "fp32"].append((predicted, measured))
    return found[wide] if len(found[wide]) >= MIN_ROWS else found[True] + found[False]


def calibrate(pairs):
    """(offset, factor) with measured = offset + factor * predicted, least squares of relative errors within bounds (scipy).

    (0, 1) for fewer than MIN_ROWS pairs. The offset, of 0 or more, is what no configuration tells: libraries loaded late, the
    allocator's cache. The factor stays within FACTORS, and is 1 where the rows are of about one size and say nothing about it.
    """
    if len(pairs) < MIN_ROWS:
        return 0.0, 1.0
    predicted, measured = np.array(pairs).T
    low, high = FACTORS if predicted.max() >= SPREAD * predicted.min() else (1.0 - 1e-9, 1.0)
    found = lsq_linear(
        np.stack([1 / measured, predicted / measured], 1), np.ones(len(pairs)), bounds=([0.0, low], [np.inf, high])
    )
    return float(found.x[0]), float(found.x[1])


def configuration(model, task, n_labels, trust_remote_code=False):
    """(transformers configuration, kind) of a model's name. Encoders have a classification head, other models where the task says so."""
    hub.check_names({"--model": model})
    loading.quiet()
    kind = loading.model_kind(model, trust_remote_code)
    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    if task == "classification" or kind in ("encoder", "classifier"):
        config.num_labels, kind = n_labels, "classifier"
        config.pad_token_id = config.pad_token_id if getattr(config, "pad_token_id", None) is not None else 0
    return config, kind


def lora(config, kind, rank, target_modules="auto"):
    """The peft configuration of LoRA on the layers that peft_finetune.py would take."""
    bare = memory_forecast.meta_model(config, kind, attention="eager")  # for its names; every architecture has that
    task = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "classifier": "SEQ_CLS"}[kind]
    return peft.LoraConfig(task_type=task, r=rank, target_modules=adapters.target_modules(bare, target_modules))


def of_batch(one, two, batch_size):
    """The Forecast of a batch from those of one and two examples: every part grows by the same bytes with each example."""
    names = [field.name for field in dataclasses.fields(one) if field.name != "accumulates"]
    parts = {name: getattr(one, name) + (batch_size - 1) * (getattr(two, name) - getattr(one, name)) for name in names}
    return memory_forecast.Forecast(**parts, accumulates=one.accumulates)


def largest_batch(total, memory_gb, most=1 << 20):
    """The largest batch size, up to `most`, whose `total(batch size)` GB stays within memory_gb; 0 where not even one example fits."""
    return bisect.bisect_right(range(1, most + 1), memory_gb, key=total)


TIGHT = 0.9  # of the memory: above it a forecast's error decides


QUANTIZED = {"qlora": "nf4", "int8_lora": "int8"}


def forecast_of(config, kind, args, batch_size):
    """The forecast.Forecast of the run that the flags describe."""
    precision = QUANTIZED.get(args.method, args.weights)
    if kind != "seq2seq" and (limit := loading.context(config)) and args.seq_len > limit:
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


def tell_forecast(args, all_rows, source):
    """Print the parts of the peak, whether it fits, and the largest batch that does."""
    args.device = args.device or "cuda"
    config, kind = configuration(args.model, args.task, args.n_labels)
    found = forecast_of(config, kind, args, args.batch_size)
    wide = QUANTIZED.get(args.method, args.weights) == "fp32"
    pairs = known_pairs(all_rows, args.device, "inference" if args.method == "inference" else "training", wide)
    offset, factor = calibrate(pairs)
    enough = len(pairs) >= MIN_ROWS

    one, two = (forecast_of(config, kind, args, size) for size in (1, 2)) if args.memory_gb else (None, None)

    def total(batch_size):
        return offset + factor * of_batch(one, two, batch_size).gb

    needed = offset + factor * found.gb
    verdict = None
    if args.memory_gb:
        verdict = (
            "fits" if needed <= TIGHT * args.memory_gb else "tight" if needed <= args.memory_gb else "does not fit"
        )
    largest = largest_batch(total, args.memory_gb) if args.memory_gb else None
    if args.json:
        return print(
            dumps(
                {
                    "model": args.model,
                    "method": args.method,
                    "device": args.device,
                    "batch_size": args.batch_size,
                    "seq_len": args.seq_len,
                    "parts_gb": found.parts_gb(),
                    "configuration_gb": found.gb,
                    "predicted_gb": needed,
                    "calibrated_on_rows": len(pairs) if enough else 0,
                    "verdict": verdict,
                    "largest_batch": largest,
                }
            )
        )
    head = f"a classification head of {args.n_labels} labels" if kind == "classifier" else "the language model's head"
    print(
        f"{args.method} of {Path(args.model).name} with {head} on {args.device}, batch {args.batch_size} x {args.seq_len} tokens"
    )
    for name, gb in found.parts_gb().items():
        print(f"  {name:12} {gb:8.3f} GB")
    print(f"  {'peak':12} {found.gb:8.3f} GB (gradients take the place that activations give back)")
    if enough:
        print(
            f"  {'calibrated':12} {needed:8.3f} GB: {offset:.2f} + {factor:.2f} x peak, from {len(pairs)} measured rows in {source}"
        )
        low, high = min(predicted for predicted, _ in pairs), max(predicted for predicted, _ in pairs)
        if not low / 2 <= found.gb <= 2 * high:
            print(f"  CAUTION: those rows are of {low:.2f} to {high:.2f} GB, so this is far from what was measured")
    else:
        print(
            f"  not calibrated: {len(pairs)} rows on {args.device} hold both a forecast and a measured peak, {MIN_ROWS} are wanted"
        )
    starts = [
        value
        for row in all_rows
        if (value := configurations.value(row, "start_rss_gb")) is not None and row["device"] == args.device
    ]
    if args.device == "cuda":
        print("  besides: the CUDA context and what the allocator cannot use, which differ from card to card")
    elif starts:
        print(f"  besides: Python and its libraries, {statistics.median(starts):.2f} GB in the rows")
    if verdict:
        limit = (
            f"largest batch that fits {args.memory_gb:g} GB: {largest}"
            if largest
            else f"not even a batch of one fits {args.memory_gb:g} GB"
        )
        print(f"{verdict}: {needed:.2f} of {args.memory_gb:g} GB; {limit}")
    return None
