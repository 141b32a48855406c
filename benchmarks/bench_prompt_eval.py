"""How fast is label scoring? Ours, lm-evaluation-harness on the same prompts, and the floor, side by side in one run.

The floor is a bare forward pass over exactly the tokens that the prompts do not share, in rows of equal length without
padding or cache, after one pass over the tokens that they share: batches of 32 and of 128 such rows are both timed, and
the one with the smaller median counts. Each attempt runs in a process of its own, all start alike, and ours and the
floor take turns. The time of a subject is that from the prompts' texts to the labels' scores, the model loaded; the
time of the whole process, with all that the subject's library does besides, stands beside it. Where a subject runs out
of memory its batch is halved. Ours may beat the floor where some prompts share more than all do.

    pip install -r benchmarks/requirements.txt -c constraints.txt
    OMP_NUM_THREADS=2 python benchmarks/bench_prompt_eval.py --k_shots 0 8 16 --readme docs/speed.md   # 14 minutes
    python benchmarks/bench_prompt_eval.py --device cuda --precision bf16 --random_llama 32   # a 7B shape, random
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import (
    add_model_args,
    load,
    machine,
    markdown,
    measured_at,
    model_name,
    peak_memory_gb,
    publish,
    run_child,
    saved,
)

import utils
from harness import flags
from harness.data import tasks
from harness.data.examples import draw
from harness.data.prompts import render
from harness.models import prefix_cache, scoring
from harness.results.run import OOM_EXIT_CODE

SUBJECTS = ("ours", "floor", "lm_eval")


def parse_args():
    parser = flags.ArgumentParser(__doc__)
    add_model_args(parser)
    parser.add_argument("--dataset", default="assets/data/movie_reviews", help="folder or file (default: %(default)s)")
    parser.add_argument(
        "--k_shots", type=flags.whole_number, nargs="+", default=[0, 8, 16, 32], help="(default: 0 8 16 32)"
    )
    parser.add_argument("--n", type=flags.positive_int, default=200, help="evaluation examples (default: %(default)s)")
    parser.add_argument("--batch_size", type=flags.positive_int, default=32, help="of lm_eval (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=flags.positive_int, default=3, help="of ours and the floor; lm_eval runs once (default: 3)"
    )
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=SUBJECTS, help="(default: all)")
    parser.add_argument("--readme", metavar="FILE", help="put the table between its marks there")
    parser.add_argument("--child", choices=SUBJECTS, help=argparse.SUPPRESS)
    return parser.parse_args()


# --------------------------------------------------------------------------------------------------- one subject, timed


def prompts(args, k):
    """The texts that prompt_eval.py --k_shots k would score, the label texts behind them, and the labels' indices."""
    task = tasks.load_task(args.dataset, max_eval_samples=args.n)
    demonstrations = draw(task.train, k, 0)
    rendered = [render(task, ex, demonstrations) for ex in task.evaluation]
    return [prompt for prompt, _ in rendered], list(task.words), rendered[0][1], [ex.label for ex in task.evaluation]


def clock(func, *args):
    """(what func returns, seconds), the device synchronised."""
    utils.synchronize()
    start = time.perf_counter()
    found = func(*args)
    utils.synchronize()
    return found, time.perf_counter() - start


def ours(args, model, tokenizer, texts, words, separator):
    return scoring.score_labels(model, tokenizer, texts, [separator + word for word in words]).total.tolist()


def floor(args, model, tokenizer, texts, batch_size):
    import torch

    rows = sorted(tokenizer(texts).input_ids, key=len, reverse=True)
    shared = min(prefix_cache.common_prefix(rows), min(map(len, rows)) - 1)
    with torch.inference_mode():
        if shared:
            model(torch.tensor([rows[0][:shared]], device=model.device), use_cache=False, logits_to_keep=1)
        for start in range(0, len(rows), batch_size):
            batch = [row[shared:] for row in rows[start : start + batch_size]]
            tokens = sum(batch, [])
            width = -(
                -len(tokens) // len(batch)
            )  # rows of equal length with the same number of tokens, but for the last row
            ids = torch.tensor(tokens + tokens[: width * len(batch) - len(tokens)], device=model.device).view(
                len(batch), width
            )
            model(ids, use_cache=False, logits_to_keep=1)


def lm_eval(args, model, tokenizer, texts, words, separator, labels):
    import lm_eval as harness
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.jsonl"
        file.write_text(
            "".join(json.dumps({"prompt": text, "label": label}) + "\n" for text, label in zip(texts, labels))
        )
        task = {
            "task": "prompts",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": folder},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{prompt}}",
            "doc_to_choice": words,
            "doc_to_target": "label",
            "target_delimiter": separator,
            "metric_list": [{"metric": "acc"}],
        }
        model = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=args.batch_size,
            max_length=model.config.max_position_embeddings,
        )
        manager = TaskManager(include_defaults=False)  # without the index of its own tasks, which takes seconds
        spent, scoring = [], model.loglikelihood

        def timed(*args, **kwargs):  # its scoring alone, without reading the data, describing the machine and the like
            start = time.perf_counter()
            answers = scoring(*args, **kwargs)
            spent.append(time.perf_counter() - start)
            return answers

        model.loglikelihood = timed
        found = harness.simple_evaluate(
            model, tasks=[task], num_fewshot=0, bootstrap_iters=0, log_samples=True, task_manager=manager
        )
    samples = sorted(found["samples"]["prompts"], key=lambda sample: sample["doc_id"])
    return [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples], sum(spent)


def child(args):
    """Time one subject and print what was seen as JSON."""
    (k,) = args.k_shots
    if args.device == "cpu":  # less than the machine has, so that too large a batch ends in an error and not in a kill
        import psutil

        room = psutil.virtual_memory().available
        resource.setrlimit(resource.RLIMIT_DATA, (int(0.9 * room), resource.RLIM_INFINITY))
    import torch

    texts, words, separator, labels = prompts(args, k)
    model, tokenizer = load(args)
    with torch.inference_mode():  # warm-up, a pass of ordinary size
        model(torch.tensor([(tokenizer(texts[0]).input_ids * 999)[:1024]], device=model.device), logits_to_keep=1)
    try:
        if args.child == "lm_eval":
            scores, seconds = lm_eval(args, model, tokenizer, texts, words, separator, labels)
        elif args.child == "ours":
            scores, seconds = clock(ours, args, model, tokenizer, texts, words, separator)
        else:
            scores, seconds = clock(floor, args, model, tokenizer, texts, args.batch_size)
    except (RuntimeError, MemoryError) as error:
        if not utils.is_out_of_memory(error):
            raise
        sys.exit(OOM_EXIT_CODE)
    print(json.dumps({"seconds": seconds, "peak_gb": peak_memory_gb(args.device), "labels": labels, "scores": scores}))


# -------------------------------------------------------------------------------------------------------- all, compared


def measure(args, subject, k, batch_size):
    """One process, the batch halved until it fits into memory."""
    flags = [
        "--child",
        subject,
        "--k_shots",
        k,
        "--batch_size",
        batch_size,
        "--model",
        args.model,
        "--dataset",
        args.dataset,
        "--precision",
        args.precision,
        "--device",
        args.device,
        "--n",
        args.n,
    ]
    flags += ["--random_llama", args.random_llama] if args.random_llama else []
    found, process = run_child(__file__, *flags)
    if found is None:
        print(f"  {subject} k={k}: out of memory with batches of {batch_size}", file=sys.stderr, flush=True)
        return measure(args, subject, k, batch_size // 2)
    print(
        f"  {subject} k={k}: {found['seconds']:.1f} s, process {process:.1f} s, {found['peak_gb']:.2f} GB",
        file=sys.stderr,
        flush=True,
    )
    return {**found, "process_seconds": process, "batch_size": batch_size}


def compare(args, k):
    """All subjects for one number of demonstrations: medians of seconds, peaks, accuracy, agreement."""
    runs, floors = {subject: [] for subject in args.subjects}, {32: [], 128: []}
    for turn in range(args.repeats):
        for subject in args.subjects:
            if subject == "floor":
                for size, attempts in floors.items():
                    attempts.append(measure(args, subject, k, size))
            elif subject == "ours" or turn == 0:
                runs[subject].append(measure(args, subject, k, args.batch_size))
    row = {"k_shots": k, "ours_batch_size": "auto"}
    if "floor" in runs:
        row["floor_batch_size"] = min(
            floors, key=lambda size: statistics.median(run["seconds"] for run in floors[size])
        )
        runs["floor"] = floors[row["floor_batch_size"]]
    for subject, found in runs.items():
        for name in ("seconds", "process_seconds"):
            row[f"{subject}_{name}"] = statistics.median(run[name] for run in found)
        row[f"{subject}_peak_gb"] = max(run["peak_gb"] for run in found)
        row[f"{subject}_all_seconds"] = [run["seconds"] for run in found]
        if subject == "lm_eval":
            row["lm_eval_batch_size"] = found[-1]["batch_size"]
        if found[0]["scores"]:
            predicted = [max(range(len(scores)), key=scores.__getitem__) for scores in found[0]["scores"]]
            row[f"{subject}_accuracy"] = statistics.mean(p == label for p, label in zip(predicted, found[0]["labels"]))
            runs[subject] = found[0]["scores"], predicted
    if {"ours", "lm_eval"} <= set(runs):
        (a, ours_said), (b, theirs) = runs["ours"], runs["lm_eval"]
        row["same_label"] = sum(x == y for x, y in zip(ours_said, theirs))
        row["largest_difference"] = max(abs(x - y) for one, other in zip(a, b) for x, y in zip(one, other))
    return row


def section(args, rows):
    """The README's text."""
    begin = (
        f"Label scoring of {args.n} examples of {Path(args.dataset).name}, {model_name(args)} in {args.precision}, on "
        f"{machine(args.device, 'lm-eval')}. Seconds from texts to labels (of the whole process), ours and the floor "
        "the median of "
        f"{args.repeats} runs, lm-eval one run."
    )
    header = [
        "k",
        "ours",
        "lm-eval",
        "floor",
        "lm-eval / ours",
        "ours / floor",
        "ours GB",
        "lm-eval GB",
        "same label",
        "largest difference",
    ]
    table = []
    for row in rows:
        cells = [f"{row[f'{s}_seconds']:.1f} ({row[f'{s}_process_seconds']:.1f})" for s in ("ours", "lm_eval", "floor")]
        cells[1] += f", batch {row['lm_eval_batch_size']}"
        ratios = [f"{row[f'lm_eval_{s}'] / row[f'ours_{s}']:.1f}" for s in ("seconds", "process_seconds")]
        table.append(
            [
                row["k_shots"],
                *cells,
                f"{ratios[0]} ({ratios[1]})",
                f"{row['ours_seconds'] / row['floor_seconds']:.2f}",
                f"{row['ours_peak_gb']:.2f}",
                f"{row['lm_eval_peak_gb']:.2f}",
                f"{row['same_label']} of {args.n}",
                f"{row['largest_difference']:.1e}",
            ]
        )
    accuracies = ", ".join(
        f"{row['ours_accuracy']:.3f} and {row['lm_eval_accuracy']:.3f} (k = {row['k_shots']})" for row in rows
    )
    memory = "allocated on the GPU" if args.device == "cuda" else "resident memory of the whole process"
    return (
        f"{begin}\n\n{markdown(header, table)}\n\nAccuracy of ours and of lm-eval: {accuracies}. GB is peak {memory}."
    )


def main():
    args = parse_args()
    if args.child:
        return child(args)
    if set(args.subjects) != set(SUBJECTS):
        return print(json.dumps([compare(args, k) for k in args.k_shots], indent=2))
    name = "bench_prompt_eval" + ("_gpu" if args.device == "cuda" else "") + ("_7b" if args.random_llama else "")
    setting = {
        "machine": machine(args.device, "lm-eval"),
        "model": model_name(args),
        "precision": args.precision,
        "n": args.n,
        "dataset": Path(args.dataset).name,
        "repeats": args.repeats,
    }
    before = saved(name)
    rows = {row["k_shots"]: row for row in before.get("rows", ()) if before["setting"] == setting}
    for k in args.k_shots:  # saved one by one, and other k of the same setting are kept: lm-eval takes its time
        rows[k] = {**compare(args, k), **measured_at()}
        ordered = [rows[k] for k in sorted(rows)]
        publish(name, section(args, ordered), {"setting": setting, "rows": ordered}, args.readme)
    if args.precision == "fp32" and any(row["same_label"] < args.n for row in rows.values()):
        sys.exit("ours and lm-eval do not agree on every label")


if __name__ == "__main__":
    main()
