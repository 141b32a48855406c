"""What a trained encoder gains by torchao, ONNX Runtime and OpenVINO on a CPU: latency, memory and score, in turns.

Each way is a process of its own, which loads the model (converted before), answers the same requests alone and one
batch of 32, and gives its turn to the next. Texts go in and labels come out, so the tokenizer is in every time.

    python finetune.py --label_budget 500 --max_length 128
    OMP_NUM_THREADS=2 python benchmarks/bench_encoders.py --model runs/RUN_ID/model --readme docs/speed.md
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from common import ROOT, Worker, add_output_args, answer_turns, machine, markdown, measured_at, publish

import utils
from harness import flags
from harness.data import tasks
from harness.evaluation import evaluate
from harness.models import loading, runtimes, scoring

# (name, runtime, precision, compiled by torch.compile)
WAYS = [
    ("torch fp32", "torch", "fp32", False),
    ("torch fp32, compiled", "torch", "fp32", True),
    ("torch bf16", "torch", "bf16", False),
    ("bitsandbytes int8", "torch", "int8", False),
    ("torchao int8", "torchao", "int8", False),
    ("torchao int8, compiled", "torchao", "int8", True),
    ("torchao int8 weights, compiled", "torchao", "int8_weights", True),
    ("torchao int4 weights", "torchao", "int4_weights", False),
    ("ONNX Runtime fp32", "onnx", "fp32", False),
    ("ONNX Runtime int8", "onnx", "int8", False),
    ("OpenVINO fp32", "openvino", "fp32", False),
    ("OpenVINO int8", "openvino", "int8", False),
]


def parse_args():
    parser = flags.ArgumentParser(__doc__)
    add = parser.add_argument
    add("--model", required=True, help="a trained classifier: runs/RUN_ID/model")
    add("--dataset", default="assets/data/movie_reviews", help="(default: %(default)s)")
    add("--n", type=flags.positive_int, default=400, help="texts that are scored (default: %(default)s)")
    add("--requests", type=flags.positive_int, default=50, help="of a turn (default: %(default)s)")
    add("--turns", type=flags.positive_int, default=5, help="(default: %(default)s)")
    add("--way", type=int, help=argparse.SUPPRESS)  # of a process of its own
    add("--folder", default="runs/bench_encoders", help="converted models (default: %(default)s)")
    add_output_args(parser)
    return parser.parse_args()


def load(args, task, tokenizer):
    """The model of --way."""
    _, runtime, precision, compiled = WAYS[args.way]
    options = {"name": args.model, "kind": "classifier", "labels": task.labels, "adapter": None}
    options |= {"pad_token_id": tokenizer.pad_token_id, "trust_remote_code": False}
    if runtime in ("onnx", "openvino"):
        texts = [(ex.text,) for ex in task.train[: runtimes.CALIBRATION]]
        file = runtimes.convert(runtime, precision, Path(args.folder) / f"{runtime}_{precision}", texts, **options)
        return runtimes.Session(file, runtime)
    model = loading.load_model(**options, precision=precision if runtime == "torch" else "fp32")
    if runtime == "torchao":
        runtimes.round_weights(model, precision)
    if compiled:
        model.forward = torch.compile(model.forward, dynamic=True)
    return model


def serve(args):
    """The process of one way: its sizes and scores first, then a turn at each line."""
    task, tokenizer = tasks.load_task(args.dataset, max_eval_samples=args.n), utils.load_tokenizer(args.model)
    model = load(args, task, tokenizer)
    texts = [ex.text for ex in task.evaluation]
    outcome = evaluate.by_head(model, tokenizer, task, 32, 0)
    loaded = {"accuracy": outcome.scores["accuracy"], "probabilities": np.exp(outcome.log_probs).tolist()}
    loaded["gb"] = runtimes.weight_gb(model) if isinstance(model, torch.nn.Module) else model.gb

    def ask(some):
        return utils.milliseconds(lambda: scoring.classify(model, tokenizer, some, None, len(some)))

    ask(texts[:32])
    ask(texts[:1])
    _, memory = utils.serve(lambda text: ask([text]), texts[:10])
    loaded["serving_gb"] = memory["serving_rss_gb"]

    def turn():
        alone = [ask([text]) for text in texts[: args.requests]]
        batches = [texts[i : i + 32] for i in range(0, min(96, len(texts)), 32)]
        rate = 1000 * sum(map(len, batches)) / sum(map(ask, batches))
        return {"ms": statistics.median(alone), "texts_per_s": rate}

    answer_turns(loaded, turn)


def main():
    args = parse_args()
    if args.way is not None:
        return serve(args)
    words = ["--model", args.model, "--dataset", args.dataset, "--n", args.n, "--requests", args.requests]
    words += ["--folder", args.folder]
    started, workers = time.perf_counter(), []
    for i in range(len(WAYS)):
        workers.append(Worker(str(ROOT / "benchmarks/bench_encoders.py"), *words, "--way", i))
        print(WAYS[i][0], f"loaded after {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    turns = [[worker.turn() for worker in workers] for _ in range(args.turns)]
    rows, table = [], []
    first = np.array(workers[0].loaded["probabilities"])
    for i, ((name, *_), worker) in enumerate(zip(WAYS, workers)):
        some, plain = [turn[i] for turn in turns], [turn[0] for turn in turns]
        faster = [b["ms"] / a["ms"] for a, b in zip(some, plain)]
        batch = [a["texts_per_s"] / b["texts_per_s"] for a, b in zip(some, plain)]
        found = np.array(worker.loaded["probabilities"])
        row = {"way": name, "ms": statistics.median(a["ms"] for a in some), "faster": statistics.median(faster)}
        row |= {"range": [min(faster), max(faster)], "texts_per_s": statistics.median(a["texts_per_s"] for a in some)}
        row |= {"batch_faster": statistics.median(batch), "gb": worker.loaded["gb"]}
        row |= {"serving_gb": worker.loaded["serving_gb"], "accuracy": worker.loaded["accuracy"]}
        row["same_label"] = float((found.argmax(1) == first.argmax(1)).mean())
        rows.append(row)
        table.append(
            [
                name,
                f"{row['ms']:.1f}",
                f"{row['faster']:.2f} ({min(faster):.2f}-{max(faster):.2f})",
                f"{row['texts_per_s']:.0f}",
                f"{row['batch_faster']:.2f}",
                f"{1000 * row['gb']:.0f}",
                f"{row['serving_gb']:.2f}",
                f"{row['accuracy']:.3f}",
                f"{100 * row['same_label']:.1f} %",
            ]
        )
        worker.close()
    header = ["by", "ms alone", "times torch fp32 (range)", "texts/s, 32", "times torch fp32", "MB of weights"]
    header += ["GB while serving", "accuracy", "same label"]
    about = machine("cpu", "torchao", "onnxruntime", "openvino", "nncf", "bitsandbytes")
    text = (
        f"{Path(args.dataset).name}, {args.n} texts scored, {args.requests} requests alone and three batches of 32 in "
        f"each of {args.turns} turns; medians of the turns, ratios within a turn. {about}.\n\n{markdown(header, table)}"
    )
    publish("bench_encoders", text, {"machine": about, **measured_at(), "rows": rows}, args.readme, args.output)


if __name__ == "__main__":
    main()
