"""Which strategy, under these limits? Rules from memory, latency, labelled data, knowledge and accuracy; then what was measured.

Each strategy is first checked against the limits (does it fit, is there data for it), then those that fit are ranked by
points, and every point has its reason. The best measured row of a strategy is shown beside the rule, so that a rule of thumb
can be checked. Says so where nothing fits, and what is nearest.

    python adaptive_selector.py --memory_gb 8 --latency_ms 200 --data_size 5000 --knowledge_heavy --required_accuracy 0.9
    python adaptive_selector.py --memory_gb 24 --params_b 8 --data_size 300 --json
"""

import json
from pathlib import Path

import utils

# GB of memory per billion parameters, and GB besides. Full: 16 bytes a parameter, weights, gradients and Adam's two moments in
# mixed precision (ZeRO, Rajbhandari et al. 2020). LoRA: a 16-bit frozen base. QLoRA: 4-bit weights and their scales (Dettmers
# et al. 2023). Prompting and RAG: 16-bit weights, with a key-value cache and, for RAG, an embedder besides.
NEEDS = {"full_finetuning": (16.0, 1.0), "peft": (2.0, 1.5), "qlora": (0.7, 1.5), "prompting": (2.0, 0.5),
         "rag": (2.0, 1.0), "quantized": (0.7, 0.5)}  # fmt: skip
MIN_LABELS = {"full_finetuning": 1000, "peft": 100, "qlora": 100}  # below, the spread over draws is larger than the gain
NAMES = {
    "full_finetuning": "full fine-tuning", "peft": "LoRA fine-tuning", "qlora": "LoRA on an nf4 base (QLoRA)",
    "prompting": "prompting", "rag": "retrieval-augmented generation", "quantized": "prompting a quantized model",
}  # fmt: skip
COMMANDS = {
    "full_finetuning": "python finetune.py --epochs 2 --batch_size 32",
    "peft": "python peft_finetune.py --rank 8 --epochs 2 --batch_size 32",
    "qlora": "python peft_finetune.py --quantize nf4 --rank 8 --epochs 2 --batch_size 32",
    "prompting": "python prompt_eval.py --k_shots {k} --calibrate {calibrate} --max_eval_samples 200",
    "rag": "python rag_eval.py --k 4 --max_eval_samples 60",
    "quantized": "python quantize_and_parallel.py --nf4 --max_eval_samples 200",
}
# which rows of the CSV measure a strategy
ROWS = {"full_finetuning": ("full_finetuning", ""), "peft": ("peft", ""), "qlora": ("peft", "nf4"), "prompting": ("prompting", "shot"),
        "rag": ("rag", ""), "quantized": ("quantized", "nf4")}  # fmt: skip


def parse_args(argv=None):
    parser = utils.ArgumentParser(__doc__)
    group = parser.add_argument_group("limits")
    group.add_argument("--memory_gb", type=positive, help="memory of the GPU, or of the processor (default: no limit)")
    group.add_argument("--latency_ms", type=positive, help="the longest one answer may take (default: no limit)")
    group.add_argument("--data_size", type=utils.whole_number, default=0, help="labelled examples (default: %(default)s)")
    group.add_argument("--knowledge_heavy", action="store_true", help="answers depend on facts that stand in documents")
    group.add_argument("--required_accuracy", type=share, help="the score needed, from 0 to 1 (default: as good as it gets)")
    group.add_argument(
        "--params_b",
        type=positive,
        default=0.14,
        help="billions of parameters of the model (default: %(default)s, SmolLM2-135M)",
    )
    parser.add_argument("--results", help="measured rows (default: results.csv, or sample_results.csv if there is none yet)")
    parser.add_argument("--json", action="store_true", help="print the decision as JSON")
    return parser.parse_args(argv)


def positive(text):
    """An argparse type: a number above 0."""
    if not float(text) > 0 or float(text) == float("inf"):
        raise ValueError
    return float(text)


def share(text):
    """An argparse type: a number from 0 to 1."""
    if not 0 <= float(text) <= 1:
        raise ValueError
    return float(text)


# --------------------------------------------------------------------------------------------------------------- the rules


def needed_gb(strategy, params_b):
    """GB that a strategy needs for a model of `params_b` billion parameters, by rule of thumb."""
    per_billion, besides = NEEDS[strategy]
    return per_billion * params_b + besides


def obstacles(strategy, args):
    """What stands against a strategy under these limits: a list of (how far over, relative, sentence), empty where it fits."""
    found, need = [], needed_gb(strategy, args.params_b)
    if args.memory_gb is not None and need > args.memory_gb:
        found.append((need / args.memory_gb - 1, f"needs about {need:.1f} GB, {args.memory_gb:g} GB are there"))
    wanted = MIN_LABELS.get(strategy, 0)
    if args.data_size < wanted:
        found.append((1 - args.data_size / wanted, f"wants {wanted} labelled examples or more, there are {args.data_size}"))
    return found


def points(strategy, args):
    """[(points, reason)] for one strategy that fits."""
    trained, found = strategy in MIN_LABELS, []
    if args.knowledge_heavy:
        if strategy == "rag":
            found.append((8, "the answers depend on documents: retrieval brings the facts, and follows them when they change"))
        elif trained:
            found.append((-3, "fine-tuning teaches a task well and facts poorly"))
    elif strategy == "rag":
        found.append((-3, "the task needs no documents, so retrieval only adds latency"))
    if trained:
        found.append((3 if args.data_size >= 1000 else 2, f"{args.data_size} labelled examples are enough to train on"))
    if strategy == "peft":
        found.append((1, "an adapter comes within a point or two of full fine-tuning, with a few MB to store"))
    if strategy == "full_finetuning" and args.data_size >= 5000:
        found.append((1.5, "with this much data, training every weight has the edge"))
    if args.required_accuracy is not None and args.required_accuracy >= 0.8:
        if trained:
            found.append((2, f"an accuracy of {args.required_accuracy:g} is more than small models reach by prompting"))
        elif strategy == "prompting" and args.data_size < 100:
            found.append((0.5, "with so few labels, a calibrated few-shot prompt is the likeliest way to the accuracy"))
    if args.latency_ms is not None and args.latency_ms < 500:
        if trained:
            found.append((1, f"no demonstrations in the prompt: the shortest input there is, for {args.latency_ms:g} ms"))
        elif strategy == "rag":
            found.append((-1, f"retrieved passages lengthen the prompt, {args.latency_ms:g} ms are tight"))
    if strategy in ("prompting", "quantized"):
        found.append((1, "nothing to train, an answer today"))
    if strategy in ("quantized", "qlora"):
        plain = "prompting" if strategy == "quantized" else "peft"
        if args.memory_gb is not None and needed_gb(plain, args.params_b) > args.memory_gb:
            found.append((1, "the 16-bit weights do not fit, the 4-bit ones do"))
        else:
            found.append((-1, "there is memory for the 16-bit weights, which are faster and a little more accurate"))
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
    few = args.data_size >= 8
    return COMMANDS[strategy].format(k=8 if few else 0, calibrate="batch" if few else "none")


# ------------------------------------------------------------------------------------------------------------ measured rows


def best_row(rows, strategy):
    """The row with the highest accuracy among the ok rows that measure a strategy, None where there is none."""
    name, mark = ROWS[strategy]
    fits = [row for row in rows if row["strategy"] == name and mark in row["variant"] and row["status"] == "ok" and row["score"]]
    return max(fits, key=lambda row: float(row["score"]), default=None)


def describe(row, path):
    """One sentence about a measured row."""
    if row is None:
        return f"not measured yet in {path}"
    latency = f", {float(row['latency_ms_p50']):.0f} ms a request" if row["latency_ms_p50"] else ""
    return (f"measured in {path}: {row['metric']} {float(row['score']):.3f} on {row['n_eval']} examples of {row['dataset']}{latency}, "
            f"{row['device_name']}")  # fmt: skip


def cautions(row, args):
    """Where the measured row of the choice breaks a limit that the rules cannot know: latency and score depend on model and hardware."""
    found = []
    if row and args.latency_ms is not None and row["latency_ms_p50"] and float(row["latency_ms_p50"]) > args.latency_ms:
        found.append(f"the measured row took {float(row['latency_ms_p50']):.0f} ms a request, over the limit of {args.latency_ms:g} ms")
    if row and args.required_accuracy is not None and float(row["score"]) < args.required_accuracy:
        found.append(
            f"the measured row reached a {row['metric']} of {float(row['score']):.3f}, short of the {args.required_accuracy:g} needed"
        )
    return found


@utils.clean_exit
def main(argv=None):
    # 1. settings
    args = parse_args(argv)
    path = args.results or next((name for name in ("results.csv", "sample_results.csv") if Path(name).is_file()), None)
    rows = utils.read_results(path) if path else []

    # 2. decide
    ranked, against = decide(args)
    if not ranked:
        nearest = min(against, key=lambda name: max(over for over, _ in against[name]))
    choice, _, reasons = ranked[0] if ranked else (None, 0, [])
    runner_up = ranked[1][0] if len(ranked) > 1 else None
    warned = cautions(best_row(rows, choice), args) if choice else []
    measured = {name: describe(best_row(rows, name), path) if path else "no results file yet" for name in (choice, runner_up) if name}

    # 3. report
    if args.json:
        print(json.dumps({"choice": choice, "reasons": reasons, "runner_up": runner_up,
                          "command": command(choice, args) if choice else None,
                          "nearest": None if ranked else nearest, "measured": measured, "cautions": warned,
                          "rejected": {name: [text for _, text in found] for name, found in against.items()}}, indent=2))  # fmt: skip
        return
    if ranked:
        print(f"Choice: {NAMES[choice]}")
        print("".join(f"  - {reason}\n" for reason in reasons) + f"  - {measured[choice]}")
        print("".join(f"  - CAUTION: {text}, on {best_row(rows, choice)['device_name']}\n" for text in warned), end="")
        if runner_up:
            print(f"Runner-up: {NAMES[runner_up]}; {measured[runner_up]}")
    else:
        print(f"Nothing fits. The nearest is {NAMES[nearest]}, which {' and '.join(text for _, text in against[nearest])}.")
    for name, found in against.items():
        print(f"Ruled out: {NAMES[name]}, which {' and '.join(text for _, text in found)}")
    if ranked:
        print(f"Run next: {command(choice, args)}")


if __name__ == "__main__":
    main()
