"""Rules of thumb, for questions that no row answers."""

import math
import shlex

from harness.results import commands

# GB per billion parameters by precision, best first, and GB besides. Full fine-tuning: 16 bytes a parameter for
# weights, gradients and Adam's two moments (ZeRO, Rajbhandari et al. 2020). The others keep only the weights: 4 bytes
# in fp32, 2 in bf16, about 1.1 in int8 and 0.7 in nf4 with their scales (Dettmers et al. 2022, 2023). Besides:
# activations of short inputs, and with RAG an embedder and its index.
WEIGHTS = {"fp32": 4.0, "bf16": 2.0, "int8": 1.1, "nf4": 0.7}
NEEDS = {
    "full_finetuning": ({"fp32": 16.0}, 1.0),
    "peft": ({name: WEIGHTS[name] for name in ("fp32", "int8", "nf4")}, 1.5),
    "probe": (WEIGHTS, 0.5),
    "prompting": (WEIGHTS, 0.5),
    "rag": (WEIGHTS, 1.0),
}
# of the trained strategies; rules of thumb
MIN_LABELS = {"full_finetuning": 100, "peft": 100, "probe": 50}
FEW_LABELS = 1000  # below, a head on frozen features often does as well as training more of the model
USUAL_PARAMS_B = 0.14  # billions, where --params_b is not given: the demo's language model

NAMES = {
    "full_finetuning": "full fine-tuning",
    "peft": "LoRA fine-tuning",
    "probe": "a probe on frozen features",
    "setfit": "SetFit (a sentence encoder tuned on pairs of labelled texts)",
    "prompting": "prompting",
    "rag": "retrieval-augmented generation",
}
# script and flags that measure a strategy; best_precision sets --precision or --quantize
COMMANDS = {
    "full_finetuning": ("finetune.py", {}),
    "peft": ("peft_finetune.py", {"rank": 8}),
    "probe": ("probe.py", {}),
    "prompting": ("prompt_eval.py", {"max_eval_samples": 200}),
    "rag": ("rag_eval.py", {"k": 4, "max_eval_samples": 60}),
}
YOUR_MODEL, YOUR_DATA = "YOUR_MODEL", "YOUR_DATA"  # stand in a command where the question names none


def needed_gb(strategy, precision, params_b):
    """GB that a strategy needs for a model of `params_b` billion parameters, by rule of thumb."""
    per_billion, besides = NEEDS[strategy]
    return per_billion[precision] * params_b + besides


def best_precision(strategy, args):
    """The best precision at which a strategy fits --memory_gb; its smallest if none does."""
    precisions = list(NEEDS[strategy][0])
    fits = [p for p in precisions if args.memory_gb is None or needed_gb(strategy, p, args.params_b) <= args.memory_gb]
    return fits[0] if fits else precisions[-1]


def obstacles(strategy, args):
    """[(relative excess, sentence)] of the limits that a strategy breaks; empty if it fits."""
    broken, precision = [], best_precision(strategy, args)
    needed = needed_gb(strategy, precision, args.params_b)
    if args.memory_gb is not None and needed > args.memory_gb:
        text = f"needs about {needed:.1f} GB ({precision}), more than the {args.memory_gb:g} GB given"
        broken.append((needed / args.memory_gb - 1, text))
    least = MIN_LABELS.get(strategy, 0)
    if args.data_size < least:
        text = f"needs at least {least} labelled examples, more than the {args.data_size} given"
        broken.append((1 - args.data_size / least, text))
    if strategy == "rag" and args.task == "classification" and not args.knowledge_heavy:
        broken.append((math.inf, "answers questions, and the task is classification"))
    if strategy == "probe" and args.task not in (None, "classification"):
        broken.append((math.inf, f"only classifies, and the task is {args.task}"))
    return broken


def points(strategy, args):
    """[(points, reason)] of a strategy that fits; the sum of the points ranks it."""
    trained, precision, scored = strategy in MIN_LABELS, best_precision(strategy, args), []

    def add(n, reason):
        scored.append((n, reason))

    if args.knowledge_heavy and strategy == "rag":
        add(8, "the answers depend on documents: retrieval brings the facts, and follows them when they change")
    elif args.knowledge_heavy:
        add(-3, "it does not bring the facts that the answers depend on")
    elif strategy == "rag":
        add(-3, "the task needs no documents, so retrieval only adds latency")
    if trained:
        add(3 if args.data_size >= 1000 else 2, f"{args.data_size} labelled examples are enough to train on")
    if strategy == "probe" and args.data_size < FEW_LABELS:
        add(2, "with few labels a head on frozen features often does as well as training more, and takes seconds")
    if strategy == "peft":
        add(1, "an adapter takes a few MB on disk, and the base model stays unchanged")
    if strategy == "full_finetuning" and args.data_size >= 5000:
        add(1.5, "with this many labels, training every weight tends to score best")
    if args.required_accuracy is not None and args.required_accuracy >= 0.8:
        if trained:
            add(2, f"a score of {args.required_accuracy:g} usually needs training on labelled examples")
        elif strategy == "prompting" and 8 <= args.data_size < 100:
            add(0.5, "with so few labels, a calibrated few-shot prompt is the most promising")
    if args.latency_ms is not None and args.latency_ms < 500:
        if trained:
            add(1, f"its prompt has no demonstrations, so the input is short: good for {args.latency_ms:g} ms")
        elif strategy == "rag":
            add(-1, f"retrieved passages lengthen the prompt, so {args.latency_ms:g} ms are tight")
    if strategy == "prompting":
        add(1, "it needs no training and can be tried today")
    if precision in ("int8", "nf4"):
        add(-0.5, f"only {precision} weights fit the memory, which costs some accuracy; measure the speed")
    return scored


def decide(args):
    """([(strategy, points, reasons)] of those that fit, best first; {strategy: obstacles} of those that do not)."""
    against = {name: obstacles(name, args) for name in NEEDS}
    ranked = []
    for name in NEEDS:
        if not against[name]:
            scored = sorted(points(name, args), reverse=True)
            ranked.append((name, sum(n for n, _ in scored), [reason for _, reason in scored]))
    return sorted(ranked, key=lambda item: -item[1]), {name: broken for name, broken in against.items() if broken}


def command(strategy, args, data_flags=None):
    """The command that measures a strategy. data_flags: {flag: value} of the columns and label words of --dataset."""
    script, settings = COMMANDS[strategy]
    precision, model_flag = best_precision(strategy, args), "gen_model" if strategy == "rag" else "model"
    settings = dict(settings)
    if strategy == "peft":
        settings["quantize"] = "none" if precision == "fp32" else precision
    elif strategy in ("prompting", "rag"):
        settings["precision"] = precision
    elif strategy == "probe" and (args.model or args.params_b > 1):  # else an embedder, which is small
        settings.update(features="lm", precision=precision)
    if strategy in MIN_LABELS and args.data_size:
        settings["label_budget"] = args.data_size
    if strategy == "prompting":
        few_shot = args.data_size >= 8
        settings.update(k_shots=8 if few_shot else 0, calibrate="batch" if few_shot else "none")
        settings |= {"calibrate_on": ["train"]} if few_shot else {}
    usual = YOUR_MODEL if args.params_b > 1 else commands.defaults(script)[model_flag]  # the scripts' own are small
    settings = {model_flag: args.model or usual, "dataset": args.dataset or YOUR_DATA, **(data_flags or {}), **settings}
    return shlex.join(["python", script, *commands.to_argv(settings, script)])
