"""How fast is label scoring? Ours, lm-evaluation-harness at several batch sizes, and the floor, on the same prompts.

Each configuration runs in a process of its own: prompts, model, precision and number of threads are the same, and
loading is timed apart. The processes take turns, forwards and backwards, so every time of lm-evaluation-harness has one
of ours beside it. What is timed is from the prompts' texts to the labels' log-probabilities; both sides tokenize in it.
Memory is the peak of the whole process, while it scores and with loading,
read in the same way for all. lm-evaluation-harness is asked through its own
`HFLM.loglikelihood`, without its reading of data and its reports, and reuses the logits of labels of one token.

The floor is a bare forward pass over exactly the tokens that the prompts do not share, in rows of equal length without
padding or cache, after one pass over the tokens that they share. Ours may beat it where some prompts share more than
all do.

    pip install -r benchmarks/requirements.txt -c constraints.txt
    OMP_NUM_THREADS=2 python benchmarks/bench_prompt_eval.py --readme docs/speed.md     # 6 minutes on two cores
    python benchmarks/bench_prompt_eval.py --n 4 --k_shots 0 2 --repeats 1 --output try.json                  # a trial
    python benchmarks/bench_prompt_eval.py --device cuda --precision bf16 --random_llama 32   # a 7B shape, random
"""

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path

import common
import psutil
import torch

import utils
from harness import flags
from harness.data import tasks
from harness.data.examples import draw
from harness.data.prompts import render
from harness.models import prefix_cache, scoring
from harness.results.run import OOM_EXIT_CODE

FLOOR_BATCH = 32
N_WARMUP = 2  # prompts


def parse_args():
    parser = flags.ArgumentParser(__doc__)
    common.add_model_args(parser)
    parser.add_argument("--dataset", default="assets/data/movie_reviews", help="folder or file (default: %(default)s)")
    parser.add_argument("--k_shots", type=flags.whole_number, nargs="+", default=[0, 8], help="(default: 0 8)")
    parser.add_argument("--n", type=flags.positive_int, default=40, help="evaluation examples (default: %(default)s)")
    parser.add_argument(
        "--batch_sizes", type=flags.positive_int, nargs="*", default=[1, 4, 32], help="of lm_eval (default: 1 4 32)"
    )
    parser.add_argument("--repeats", type=flags.positive_int, default=3, help="turns (default: %(default)s)")
    common.add_output_args(parser)
    parser.add_argument("--child", choices=("ours", "floor", "lm_eval"), help=argparse.SUPPRESS)
    return parser.parse_args()


# --------------------------------------------------------------------------------------------------- one configuration


def prompts(args, k):
    """The texts that prompt_eval.py --k_shots k would score, the label texts behind them, and the labels' indices."""
    task = tasks.load_task(args.dataset, max_eval_samples=args.n)
    demonstrations = draw(task.train, k, 0)
    rendered = [render(task, ex, demonstrations) for ex in task.evaluation]
    separator = rendered[0][1]
    return (
        [prompt for prompt, _ in rendered],
        [separator + word for word in task.words],
        [ex.label for ex in task.evaluation],
    )


def ours(args, model, tokenizer):
    """texts, labels -> log-probabilities [N, L], as prompt_eval.py scores."""
    return lambda texts, labels: scoring.score_labels(model, tokenizer, texts, labels).total.tolist()


def lm_eval(args, model, tokenizer):
    """The same by lm-evaluation-harness."""
    # only here: the memory of the other subjects is measured without it
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    (batch_size,) = args.batch_sizes
    limit = model.config.max_position_embeddings
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=limit)

    def score(texts, labels):
        pairs = [(text, label) for text in texts for label in labels]
        requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        values = [value for value, _ in theirs.loglikelihood(requests, disable_tqdm=True)]
        return [values[i : i + len(labels)] for i in range(0, len(values), len(labels))]

    return score


def floor(args, model, tokenizer):
    """Forward passes over the tokens that the texts do not share; no log-probabilities."""

    @torch.inference_mode()
    def score(texts, labels):
        rows = sorted(tokenizer(texts).input_ids, key=len, reverse=True)
        shared = min(prefix_cache.common_prefix(rows), min(map(len, rows)) - 1)
        if shared:
            model(torch.tensor([rows[0][:shared]], device=model.device), use_cache=False, logits_to_keep=1)
        for start in range(0, len(rows), FLOOR_BATCH):
            batch = [row[shared:] for row in rows[start : start + FLOOR_BATCH]]
            tokens = sum(batch, [])
            width = -(-len(tokens) // len(batch))  # as many tokens in rows of equal length, but for the last row
            tokens += tokens[: width * len(batch) - len(tokens)]
            ids = torch.tensor(tokens, device=model.device).view(len(batch), width)
            model(ids, use_cache=False, logits_to_keep=1)
        return []

    return score


def child(args):
    """One configuration: load, warm up, then score all prompts at every turn."""
    if args.device == "cpu":  # less than the machine has, so that too large a batch ends in an error and not in a kill
        room = psutil.virtual_memory().available
        resource.setrlimit(resource.RLIMIT_DATA, (int(0.9 * room), resource.RLIM_INFINITY))
    (k,) = args.k_shots
    texts, labels, _ = prompts(args, k)
    begin = time.perf_counter()
    model, tokenizer = common.load(args)
    score = {"ours": ours, "floor": floor, "lm_eval": lm_eval}[args.child](args, model, tokenizer)
    loaded = {"load_seconds": time.perf_counter() - begin}

    def turn():
        with utils.measure() as spent:
            scores = score(texts, labels)
        scoring_gb = spent.peak_gpu_gb if args.device == "cuda" else spent.peak_rss_gb
        peak = common.peak_memory_gb(args.device)
        return {"seconds": spent.seconds, "scoring_gb": scoring_gb, "peak_gb": peak, "scores": scores}

    try:
        score(texts[:N_WARMUP], labels)
        common.answer_turns(loaded, turn)
    except (RuntimeError, MemoryError) as error:
        if not utils.is_out_of_memory(error):
            raise
        sys.exit(OOM_EXIT_CODE)


# -------------------------------------------------------------------------------------------------------- all, compared


def compare(args, k):
    """A row for each configuration with k demonstrations, measured in turns."""
    configurations = [("ours", None), *(("lm_eval", size) for size in args.batch_sizes), ("floor", FLOOR_BATCH)]
    given = ["--k_shots", k, "--dataset", args.dataset, "--n", args.n, *common.model_flags(args)]
    workers, runs = {}, {name: [] for name in configurations}
    for name, size in configurations:
        batch = ["--batch_sizes", size] if name == "lm_eval" else []
        workers[name, size] = common.Worker(__file__, "--child", name, *batch, *given)
    for repeat in range(args.repeats):
        for name in configurations if repeat % 2 == 0 else configurations[::-1]:
            runs[name].append(workers[name].turn())
    for worker in workers.values():
        worker.close()
    _, _, labels = prompts(args, k)
    reference, rows = runs["ours", None], []
    if reference[0] is None:
        sys.exit(f"ours is out of memory at k = {k}")
    for (name, size), turns in runs.items():
        rows.append({"k_shots": k, "by": name, "batch_size": size or "auto"})
        if turns[0] is None:
            rows[-1]["out_of_memory"] = True
            continue
        seconds = [turn["seconds"] for turn in turns]
        rows[-1].update(workers[name, size].loaded, seconds=seconds)
        rows[-1].update({cell: max(turn[cell] for turn in turns) for cell in ("peak_gb", "scoring_gb")})
        rows[-1]["times_ours"] = common.ratio([turn["seconds"] for turn in reference], seconds)
        if turns[0]["scores"]:
            rows[-1].update(agreement(reference[0]["scores"], turns[0]["scores"], labels))
    return rows


def agreement(ours, theirs, labels):
    """Accuracy of `theirs`, on how many examples both choose the same label, the largest difference of a score."""
    chosen = [[max(range(len(row)), key=row.__getitem__) for row in scores] for scores in (ours, theirs)]
    return {
        "accuracy": statistics.mean(choice == label for choice, label in zip(chosen[1], labels)),
        "same_label": sum(a == b for a, b in zip(*chosen)),
        "largest_difference": max(abs(a - b) for one, other in zip(ours, theirs) for a, b in zip(one, other)),
    }


def best(rows, k):
    """One sentence on lm_eval's best seconds and its best memory at k demonstrations."""
    own = next(row for row in rows if row["k_shots"] == k and row["by"] == "ours")
    theirs = [row for row in rows if row["k_shots"] == k and row["by"] == "lm_eval" and "seconds" in row]
    if not theirs:
        return f"k = {k}: lm-eval was not timed."
    fastest = min(theirs, key=lambda row: statistics.median(row["seconds"]))
    smallest = min(theirs, key=lambda row: row["scoring_gb"])
    times = "{median:.1f} ({low:.1f} to {high:.1f})".format(**fastest["times_ours"])
    return (
        f"k = {k}: lm-eval is fastest at batch {fastest['batch_size']} with {times} times our seconds, and needs least "
        f"memory at batch {smallest['batch_size']}, {smallest['scoring_gb']:.2f} GB while scoring against "
        f"{own['scoring_gb']:.2f}."
    )


def machine(args):
    return common.machine(args.device, *(["lm-eval"] if args.batch_sizes else []))


def section(args, rows):
    """The text of docs/speed.md."""
    header = ["k", "by", "batch", "load s", "median s", "least s", "times ours (range)", "GB while scoring", "peak GB"]
    header += ["same label", "largest difference"]
    table = []
    for row in rows:
        cells = [row["k_shots"], row["by"].replace("_", "-"), row["batch_size"]]
        if "seconds" in row:
            cells += [f"{row['load_seconds']:.1f}", f"{statistics.median(row['seconds']):.1f}"]
            cells += [f"{min(row['seconds']):.1f}", "{median:.2f} ({low:.2f}-{high:.2f})".format(**row["times_ours"])]
            cells += [f"{row['scoring_gb']:.2f}", f"{row['peak_gb']:.2f}"]
        else:
            cells += ["out of memory"] + [""] * 5
        same = row["by"] == "lm_eval" and "same_label" in row
        cells += [f"{row['same_label']} of {args.n}", f"{row['largest_difference']:.1e}"] if same else ["", ""]
        table.append(cells)
    memory = "allocated on the GPU" if args.device == "cuda" else "resident memory of the whole process"
    counted = "" if args.device == "cuda" else "; the peak counts loading, too"
    return (
        f"Label scoring of {args.n} examples of {Path(args.dataset).name}, {common.model_name(args)} in "
        f"{args.precision}, on {machine(args)}. {args.repeats} turns of each configuration; "
        f'"times ours" compares within a turn. GB is {memory}{counted}.\n\n'
        f"{common.markdown(header, table)}\n\n" + "\n".join(f"- {best(rows, k)}" for k in args.k_shots)
    )


def main():
    args = parse_args()
    if args.child:
        return child(args)
    name = "bench_prompt_eval" + ("_gpu" if args.device == "cuda" else "") + ("_7b" if args.random_llama else "")
    setting = {
        "machine": machine(args),
        "model": common.model_name(args),
        "precision": args.precision,
        "n": args.n,
        "dataset": Path(args.dataset).name,
        "repeats": args.repeats,
        **common.measured_at(),
    }
    rows = [row for k in args.k_shots for row in compare(args, k)]
    common.publish(name, section(args, rows), {"setting": setting, "rows": rows}, args.readme, args.output)
    if args.precision == "fp32" and any(row.get("same_label", args.n) < args.n for row in rows):
        sys.exit("ours and lm-eval do not agree on every label")


if __name__ == "__main__":
    main()
