"""Retrieval that is trained beside plain retrieval, on the same questions: a generator trained on retrieved passages
(RAFT), one trained on right passages, a trained embedder, a trained reranker, a prompt with demonstrations, which show
the form of an answer without training, and one with all passages that fit.

    python benchmarks/retrieval_study.py --dataset assets/data/disfl_qa --chunk_tokens 64 --label_budget 400 \\
        --max_eval_samples 226 --eval_ood assets/data/narrativeqa --readme docs/retrieval.md
    python benchmarks/retrieval_study.py --dataset assets/data/narrativeqa --chunk_tokens 64 --label_budget 400 \\
        --max_eval_samples 200 --eval_ood assets/data/disfl_qa --without gold --readme docs/retrieval.md

Every training has the same label budget. Differences are paired over the questions, by clusters of those about one
passage. A step that was run is not run again (--folder).
"""

import json
import subprocess
import sys
from pathlib import Path

from common import ROOT, machine, markdown, measured_at, publish

from harness import flags
from harness.evaluation import metrics
from harness.results import run_scores, stats, store

PLAIN = "k4"  # the step that all others are compared with
# (step, what the table calls it, script and its flags); {name}: the run folder of an earlier step
STEPS = [
    ("none", "no passage", "rag_eval.py --k 0"),
    ("k4", "4 retrieved", "rag_eval.py --k 4 --retriever dense {index}"),
    ("hybrid", "4 retrieved, hybrid", "rag_eval.py --k 4 --retriever hybrid {index}"),
    ("k4_shots", "4 retrieved, 4 demonstrations", "rag_eval.py --k 4 --retriever dense --k_shots 4 {index}"),
    ("raft", None, "peft_finetune.py --context retrieved --retriever dense --k 4 {index} {training}"),
    ("k4_raft", "4 retrieved, RAFT", "rag_eval.py --k 4 --retriever dense --adapter {raft}/adapter {index}"),
    ("embedder", None, "embed_finetune.py --k 4 {embedding}"),
    (
        "k4_embedder",
        "4 retrieved, trained embedder",
        "rag_eval.py --k 4 --retriever dense --embed_model {embedder}/model",
    ),
    ("reranker", None, "embed_finetune.py --train reranker --k 4 --rerank_depth 20 {embedding}"),
    (
        "k4_reranker",
        "4 retrieved, trained reranker",
        "rag_eval.py --k 4 --retriever dense --reranker {reranker}/model --rerank_depth 20 {index}",
    ),
    (
        "k4_raft_embedder",
        "4 retrieved, RAFT and trained embedder",
        "rag_eval.py --k 4 --retriever dense --adapter {raft}/adapter --embed_model {embedder}/model",
    ),
    ("gold", None, "peft_finetune.py --context gold --retriever dense --k 4 {index} {training}"),
    (
        "k4_gold",
        "4 retrieved, trained on right passages",
        "rag_eval.py --k 4 --retriever dense --adapter {gold}/adapter {index}",
    ),
    ("all", "all that fit {room} tokens", "rag_eval.py --k {many} --retriever dense --context_tokens {room} {index}"),
]


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    add = parser.add_argument
    add("--dataset", default="assets/data/disfl_qa", help="questions with passages (default: %(default)s)")
    add("--model", default="assets/models/SmolLM2-135M-Instruct", help="that answers (default: %(default)s)")
    add("--chunk_tokens", type=flags.positive_int, default=64, help="(default: %(default)s)")
    add("--label_budget", type=flags.positive_int, default=400, help="of each training (default: %(default)s)")
    add("--max_eval_samples", type=flags.positive_int, default=226, help="(default: %(default)s)")
    add("--context_tokens", type=flags.positive_int, default=2000, help="of all that fit (default: %(default)s)")
    add("--eval_ood", default="assets/data/narrativeqa", help="also for embedder and reranker (default: %(default)s)")
    names = [name for name, *_ in STEPS if name != PLAIN]
    add("--without", nargs="+", choices=names, default=[], help="steps to leave out, with those that need them")
    add("--folder", type=Path, help="where runs, index and rows go (default: retrieval_study/NAME)")
    add("--readme", metavar="FILE", help="put the table between its marks there")
    args = parser.parse_args(argv)
    args.folder = args.folder or Path("retrieval_study") / Path(args.dataset).name
    return args


def chosen(args):
    """STEPS without those of --without and those that need them."""
    out = set(args.without)
    for name, _, command in STEPS:
        out |= {name} if any(f"{{{other}}}" in command for other in out) else set()
    return [step for step in STEPS if step[0] not in out]


def run_step(name, command, args, done, commands):
    """Run one step's command, unless it was run, and remember its run folder in `done`, its command in `commands`."""
    script, *words = command.format(
        **done,
        index=f"--index_dir {args.folder}/index",
        training=f"--model {args.model} --bf16 --batch_size 8 --no-forgetting --label_budget {args.label_budget}",
        embedding=f"--label_budget {args.label_budget} --eval_ood {args.eval_ood}",
        many=args.context_tokens // 20,  # more than fit
        room=args.context_tokens,
    ).split()
    common = ["--dataset", args.dataset, "--chunk_tokens", args.chunk_tokens, "--max_eval_samples"]
    common += [20 if script == "peft_finetune.py" else args.max_eval_samples]  # rag_eval.py measures the adapter
    common += ["--gen_model", args.model, "--precision", "bf16"] if script == "rag_eval.py" else []
    common += ["--latency_runs", 5]
    common += ["--results", args.folder / "rows.csv", "--runs_dir", args.folder / "runs"]
    argv = [sys.executable, str(ROOT / script), *words, *map(str, common)]
    if name in done and commands.get(name) == argv[2:]:
        return
    print(" ".join(argv[1:]), flush=True)
    before = set((args.folder / "runs").glob("*"))
    with open(args.folder / f"{name}.log", "w") as log:
        subprocess.run(argv, check=True, stderr=log)
    (made,) = set((args.folder / "runs").glob("*")) - before
    done[name], commands[name] = str(made), argv[2:]


def main(argv=None):
    args = parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    state = args.folder / "steps.json"
    done, commands = json.loads(state.read_text()) if state.is_file() else ({}, {})
    for name, _, command in chosen(args):
        run_step(name, command, args, done, commands)
        state.write_text(json.dumps([done, commands], indent=2) + "\n")
    table(args, done)


def held(folder):
    """{question id: 1.0 where the output contains a reference answer, else 0.0}: unlike token F1 it does not ask for a
    short answer, which a model that was trained has learnt, too.
    """
    records = store.read_jsonl(Path(folder) / "predictions.jsonl")
    return {r["id"]: metrics.contains_answer(r["prediction"], r["target"]) for r in records}


def change_of(first, second, clusters):
    """(stats.Difference, its text)."""
    change = stats.paired(first, second, clusters)
    interval = "" if change.low is None else f" [{change.low:+.3f}, {change.high:+.3f}]"
    return change, f"{change.delta:+.3f}{interval}"


def table(args, done):
    """Write the table of the steps that answer, and what the trained embedder and reranker find."""
    runs = {name: run_scores.read(done[name]) for name, title, _ in chosen(args) if title}
    keys, rows, data = list(runs[PLAIN].scores), [], {}
    clusters = [runs[PLAIN].clusters[key] for key in keys]
    for name, title, _ in chosen(args):
        if not title:
            continue
        row, found = runs[name].row, runs[name].row.get("answer_in_context")
        pairs = [[runs[which].scores[key] for key in keys] for which in (PLAIN, name)]
        change, told = change_of(*pairs, clusters)
        holds = [[found_in[key] for key in keys] for found_in in (held(done[PLAIN]), held(done[name]))]
        held_change, held_told = change_of(*holds, clusters)
        plain = name == PLAIN
        cells = [title.format(room=f"{args.context_tokens:,}"), row["labels_used"]]
        cells += [f"{row['token_f1']:.3f} [{row['score_low']:.3f}, {row['score_high']:.3f}]", "" if plain else told]
        share = sum(holds[1]) / len(keys)
        cells += [
            f"{share:.3f}",
            "" if plain else held_told,
            f"{row['exact_match']:.3f}",
            "" if found is None else f"{found:.3f}",
        ]
        rows.append(cells)
        data[name] = {key: row.get(key) for key in ("token_f1", "exact_match", "answer_in_context")}
        data[name]["change"] = [change.delta, change.low, change.high, change.p]
        data[name]["holds_an_answer"] = share
        data[name]["change_of_that"] = [held_change.delta, held_change.low, held_change.high, held_change.p]
    header = ["passages", "labels", "token F1", "change", "holds an answer", "change", "exact match", "answer in them"]
    lines = [f"{len(keys)} questions about {stats.n_clusters(clusters, len(keys))} passages; {machine('cpu', 'peft')}."]
    for name in ("embedder", "reranker"):
        if name in args.without:
            continue
        data[name] = json.loads((Path(done[name]) / "comparison.json").read_text())
        parts = [
            f"on {Path(change['data']).name} {change['before']:.3f} before, {change['after']:.3f} after, "
            f"{change['delta']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"
            for change in data[name]
        ]
        lines.append(f"Trained {name}: nDCG@10 {'; '.join(parts)}.")
    text = "\n".join(lines) + "\n\n" + markdown(header, rows)
    name = f"retrieval_study_{Path(args.dataset).name}"
    publish(name, text, {"machine": machine("cpu", "peft"), **measured_at(), "rows": data}, args.readme)


if __name__ == "__main__":
    main()
