"""Rules of thumb, for questions that no row answers."""

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
        found.append(
            (need / args.memory_gb - 1, f"needs about {need:.1f} GB ({precision}), {args.memory_gb:g} GB are there")
        )
    wanted = MIN_LABELS.get(strategy, 0)
    if args.data_size < wanted:
        found.append(
            (1 - args.data_size / wanted, f"wants {wanted} labelled examples or more, there are {args.data_size}")
        )
    return found


def points(strategy, args):
    """[(points, reason)] for one strategy that fits."""
    trained, precision, found = strategy in MIN_LABELS, best_precision(strategy, args), []
    if args.knowledge_heavy:
        if strategy == "rag":
            found.append(
                (8, "the answers depend on documents: retrieval brings the facts, and follows them when they change")
            )
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
            found.append(
                (
                    2,
                    f"{args.required_accuracy:g} is a high bar, and training on labelled examples is the usual way over it",
                )
            )
        elif strategy == "prompting" and 8 <= args.data_size < 100:
            found.append((0.5, "with so few labels, a calibrated few-shot prompt is the likeliest way to the accuracy"))
    if args.latency_ms is not None and args.latency_ms < 500:
        if trained:
            found.append(
                (1, f"no demonstrations in the prompt: the shortest input there is, for {args.latency_ms:g} ms")
            )
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
    line = COMMANDS[strategy].format(
        k=8 if few else 0,
        calibrate="batch" if few else "none",
        precision=precision,
        quantize="none" if precision == "fp32" else precision,
    )
    model_flag = "--gen_model" if strategy == "rag" else "--model"
    large = not args.model and args.params_b > 1  # not what the scripts take by default
    return f"{line}{f' {model_flag} {args.model}' if args.model else f' {model_flag} YOUR_MODEL' if large else ''}" + (
        f" --dataset {args.dataset}"
        if args.dataset
        else " --dataset YOUR_DATA"
        if getattr(args, "task", None) in ("qa", "instruction")
        else ""
    )
