"""Which strategy, under these limits? Rules from memory, latency, labelled data, knowledge and accuracy; then what was measured.

Each strategy is first checked against the limits: at which precision does it fit, are there labels for it? Those that fit are
ranked by points, and every point has its reason. The best measured row of a strategy stands beside the rule, with a caution
where that row breaks a limit. Says so where nothing fits, and what is nearest.

    python adaptive_selector.py --memory_gb 8 --latency_ms 200 --data_size 5000 --knowledge_heavy --required_accuracy 0.9
    python adaptive_selector.py --memory_gb 24 --params_b 8 --data_size 300 --json
"""

import json
from pathlib import Path

import utils

# for each strategy, from the best precision to the smallest: GB per billion parameters, and GB besides. Full: 16 bytes a
# parameter for weights, gradients and Adam's two moments (ZeRO, Rajbhandari et al. 2020). The others keep the weights only:
# 4 bytes in fp32, 2 in bf16, about 1.1 in int8 and 0.7 in nf4 with their scales (Dettmers et al. 2022, 2023). Besides: room for
# activations of short inputs, and for RAG an embedder and its index.
WEIGHTS = {"fp32": 4.0, "bf16": 2.0, "int8": 1.1, "nf4": 0.7}
NEEDS = {
    "full_finetuning": ({"fp32": 16.0}, 1.0),
    "peft": ({name: WEIGHTS[name] for name in ("fp32", "int8", "nf4")}, 1.5),
    "prompting": (WEIGHTS, 0.5),
    "rag": (WEIGHTS, 1.0),
}
BASELINES = ("no_retrieval", "random_passages", "gold_passage")  # variants of rag_eval.py that nobody would run as such
MIN_LABELS = {"full_finetuning": 1000, "peft": 100}  # rules of thumb, not measured here
NAMES = {
    "full_finetuning": "full fine-tuning",
    "peft": "LoRA fine-tuning",
    "prompting": "prompting",
    "rag": "retrieval-augmented generation",
}
COMMANDS = {
    "full_finetuning": "python finetune.py --epochs 2 --batch_size 32",
    "peft": "python peft_finetune.py --quantize {quantize} --rank 8 --epochs 2 --batch_size 32",
    "prompting": "python prompt_eval.py --precision {precision} --k_shots {k} --calibrate {calibrate} --max_eval_samples 200",
    "rag": "python rag_eval.py --precision {precision} --k 4 --max_eval_samples 60",
}


def parse_args(argv=None):
    parser = utils.ArgumentParser(__doc__)
    group = parser.add_argument_group("limits")
    group.add_argument("--memory_gb", type=utils.positive, help="memory of the GPU, or of the processor (default: no limit)")
    group.add_argument("--latency_ms", type=utils.positive, help="the longest one answer may take (default: no limit)")
    group.add_argument("--data_size", type=utils.whole_number, default=0, help="labelled examples (default: %(default)s)")
    group.add_argument("--knowledge_heavy", action="store_true", help="answers depend on facts that stand in documents")
    group.add_argument("--required_accuracy", type=utils.share, help="the score needed, from 0 to 1 (default: as good as it gets)")
    group = parser.add_argument_group("task")
    group.add_argument("--params_b", type=utils.positive, default=0.14, help="billions of parameters (default: %(default)s, SmolLM2-135M)")
    group.add_argument("--model", help="put into the command to run next (default: the script's own)")
    group.add_argument("--dataset", help="put into the command to run next (default: the script's own)")
    parser.add_argument("--results", help="measured rows (default: results.csv, or sample_results.csv if there is none yet)")
    parser.add_argument("--json", action="store_true", help="print the decision as JSON")
    return parser.parse_args(argv)


# --------------------------------------------------------------------------------------------------------------- the rules


def needed_gb(strategy, precision, params_b):
    """GB that a strategy needs for a model of `params_b` billion parameters, by rule of thumb."""
    per_billion, besides = NEEDS[strategy]
    return per_billion[precision] * params_b + besides


def best_precision(strategy, args):
    """The best precision at which a strategy fits the memory; its smallest where none does."""
    precisions = list(NEEDS[strategy][0])
    fits = [p for p in precisions if args.memory_gb is None or needed_gb(strategy, p, args.params_b) <= args.memory_gb]
    return fits[0] if fits else precisions[-1]


def obstacles(strategy, args):
    """What stands against a strategy under these limits: a list of (how far over, relative, sentence), empty where it fits."""
    found, precision = [], best_precision(strategy, args)
    need = needed_gb(strategy, precision, args.params_b)
    if args.memory_gb is not None and need > args.memory_gb:
        found.append((need / args.memory_gb - 1, f"needs about {need:.1f} GB ({precision}), {args.memory_gb:g} GB are there"))
    wanted = MIN_LABELS.get(strategy, 0)
    if args.data_size < wanted:
        found.append((1 - args.data_size / wanted, f"wants {wanted} labelled examples or more, there are {args.data_size}"))
    return found


def points(strategy, args):
    """[(points, reason)] for one strategy that fits."""
    trained, precision, found = strategy in MIN_LABELS, best_precision(strategy, args), []
    if args.knowledge_heavy:
        if strategy == "rag":
            found.append((8, "the answers depend on documents: retrieval brings the facts, and follows them when they change"))
        else:
            found.append((-3, "it does not bring the facts that the answers depend on"))
    elif strategy == "rag":
        found.append((-3, "the task needs no documents, so retrieval only adds latency"))
    if trained:
        found.append((3 if args.data_size >= 1000 else 2, f"{args.data_size} labelled examples are enough to train on"))
    if strategy == "peft":
        found.append((1, "an adapter is a few MB to store, and the base stays as it is"))
    if strategy == "full_finetuning" and args.data_size >= 5000:
        found.append((1.5, "with this much data, training every weight has the edge"))
    if args.required_accuracy is not None and args.required_accuracy >= 0.8:
        if trained:
            found.append((2, f"{args.required_accuracy:g} is a high bar, and training on labelled examples is the usual way over it"))
        elif strategy == "prompting" and 8 <= args.data_size < 100:
            found.append((0.5, "with so few labels, a calibrated few-shot prompt is the likeliest way to the accuracy"))
    if args.latency_ms is not None and args.latency_ms < 500:
        if trained:
            found.append((1, f"no demonstrations in the prompt: the shortest input there is, for {args.latency_ms:g} ms"))
        elif strategy == "rag":
            found.append((-1, f"retrieved passages lengthen the prompt, {args.latency_ms:g} ms are tight"))
    if strategy == "prompting":
        found.append((1, "nothing to train, an answer today"))
    if precision in ("int8", "nf4"):
        found.append((-0.5, f"only {precision} weights fit the memory, which costs some accuracy; measure the speed"))
    return found


def decide(args):
    """(ranked [(strategy, points, reasons)], {strategy: obstacles}); ranked holds only what fits, the best first."""
    against = {name: obstacles(name, args) for name in NEEDS}
    ranked = []
    for name in NEEDS:
        if not against[name]:
            found = points(name, args)
            ranked.append((name, sum(p for p, _ in found), [reason for _, reason in sorted(found, reverse=True)]))
    return sorted(ranked, key=lambda item: -item[1]), {name: found for name, found in against.items() if found}


def command(strategy, args):
    """The command to run next."""
    few, precision = args.data_size >= 8, best_precision(strategy, args)
    line = COMMANDS[strategy].format(k=8 if few else 0, calibrate="batch" if few else "none", precision=precision,
                                     quantize="none" if precision == "fp32" else precision)  # fmt: skip
    model_flag = "--gen_model" if strategy == "rag" else "--model"
    return line + (f" {model_flag} {args.model}" if args.model else "") + (f" --dataset {args.dataset}" if args.dataset else "")


# ------------------------------------------------------------------------------------------------------------ measured rows


def best_row(rows, strategy, args):
    """The ok row that measures a strategy, the best score first among those within the latency limit; None without any."""

    def order(row):
        slow = args.latency_ms is not None and row["latency_ms_p50"] and utils.number(row["latency_ms_p50"]) > args.latency_ms
        large = args.memory_gb is not None and (peak_gb(row) or 0) > args.memory_gb
        return not slow and not large, utils.number(row["score"])

    fits = [
        row
        for row in rows
        if row["strategy"] == strategy and row["status"] == "ok" and row["score"]
        and row["metric"] != "ndcg_at_10" and row["variant"] not in BASELINES
    ]  # fmt: skip
    return max(fits, key=order, default=None)


def peak_gb(row):
    """The measured peak: the GPU's where there was one, else the process' resident memory."""
    return utils.number(row["peak_gpu_gb"] or row["peak_rss_gb"])


def describe(row, path):
    """One sentence about a measured row."""
    if row is None:
        return f"not measured yet in {path}"
    latency = f", {utils.number(row['latency_ms_p50']):.0f} ms a request" if row["latency_ms_p50"] else ""
    score = f"{row['metric']} {utils.number(row['score']):.3f}"
    return (f"measured in {path}: {score} with {Path(row['model']).name} on {row['n_eval']} examples of "
            f"{row['dataset']}{latency}, {row['device_name']}")  # fmt: skip


def cautions(row, args):
    """Which limits the choice may break: rules cannot know latency and score, which depend on model, task and hardware."""
    found = []
    if args.latency_ms is not None:
        if not row or not row["latency_ms_p50"]:
            found.append("its latency was not checked, there is no measured row")
        elif utils.number(row["latency_ms_p50"]) > args.latency_ms:
            found.append(
                f"the measured row took {utils.number(row['latency_ms_p50']):.0f} ms a request, over the limit of {args.latency_ms:g} ms"
            )
    if row and args.memory_gb is not None and (peak_gb(row) or 0) > args.memory_gb:
        found.append(f"the measured row needed {peak_gb(row):.1f} GB, over the limit of {args.memory_gb:g} GB")
    if args.required_accuracy is not None:
        if row and row["metric"] != "accuracy":
            found.append(f"its accuracy was not checked, the measured row has {row['metric']} {utils.number(row['score']):.3f}")
        elif not row:
            found.append("its accuracy was not checked, there is no measured row")
        elif utils.number(row["score"]) < args.required_accuracy:
            found.append(
                f"the measured row reached {row['metric']} {utils.number(row['score']):.3f}, short of the {args.required_accuracy:g} needed"
            )
    return found


def prefer_measured(ranked, best, args):
    """Put another strategy first where the first one's measured row breaks a limit that the other's keeps, on the same examples."""
    if not ranked or not cautions(best[ranked[0][0]], args):
        return ranked
    first = best[ranked[0][0]]
    for i, (name, total, reasons) in enumerate(ranked[1:], start=1):
        row = best[name]
        if first and row and row["eval_id"] == first["eval_id"] and not cautions(row, args):
            why = f"{NAMES[ranked[0][0]]} ranks higher by the rules, but its measured row breaks a limit that this one's keeps"
            return [(name, total, [why, *reasons]), *ranked[:i], *ranked[i + 1 :]]
    return ranked


@utils.clean_exit
def main(argv=None):
    # 1. settings
    args = parse_args(argv)
    path = args.results or next((name for name in ("results.csv", "sample_results.csv") if Path(name).is_file()), None)
    rows = utils.read_results(path) if path else []

    # 2. decide
    ranked, against = decide(args)
    best = {name: best_row(rows, name, args) for name in NEEDS}
    ranked = prefer_measured(ranked, best, args)
    nearest = None if ranked else min(against, key=lambda name: max(over for over, _ in against[name]))
    choice, _, reasons = ranked[0] if ranked else (None, 0, [])
    runner_up = ranked[1][0] if len(ranked) > 1 else None
    measured = {name: describe(best[name], path) if path else "no results file yet" for name in (choice, runner_up) if name}
    warned = cautions(best[choice], args) if choice else []
    rejected = {name: [text for _, text in found] for name, found in against.items()}

    # 3. report
    if args.json:
        decision = {"choice": choice, "precision": best_precision(choice, args) if choice else None, "reasons": reasons, "cautions": warned,
                    "runner_up": runner_up, "measured": measured, "command": command(choice, args) if choice else None,
                    "nearest": nearest, "rejected": rejected}  # fmt: skip
        print(json.dumps(decision, indent=2))
        return
    if ranked:
        print(f"Choice: {NAMES[choice]}, {best_precision(choice, args)} weights")
        print("".join(f"  - {reason}\n" for reason in reasons) + f"  - {measured[choice]}")
        print("".join(f"  - CAUTION: {text}\n" for text in warned), end="")
        if runner_up:
            print(f"Runner-up: {NAMES[runner_up]}, {best_precision(runner_up, args)} weights; {measured[runner_up]}")
    else:
        print(f"Nothing fits. The nearest is {NAMES[nearest]}, which {' and '.join(rejected[nearest])}.")
    for name, found in rejected.items():
        print(f"Ruled out: {NAMES[name]}, which {' and '.join(found)}")
    if ranked:
        print(f"Run next: {command(choice, args)}")


if __name__ == "__main__":
    main()
