"""Predictions for a data set that no row measures: what is known of it, and which configurations could be run on it."""

import argparse
import dataclasses
import functools
import json
import shlex
from collections import Counter
from pathlib import Path

import utils
from harness import hub, suites
from harness.errors import short
from harness.results import configurations, names
from harness.selector import landmark, predictor, promises
from harness.selector.candidates import nearest, obstacles
from harness.selector.decision import Decision, Undecided, command_for, data_of, flags_of_data, limits_of
from harness.selector.spec import CHARS_A_TOKEN, Data, data_of_rows, steps_of

EXAMPLES = 400  # that a landmark is scored on
COMPARED = "compare.csv"  # the results of `compare_command`
VAGUE = 0.15  # half a 95 % interval of a predicted score


def learn(rows, args):
    """(Predictor of the rows of one kind of device, {data set: Data}, machines). Undecided where rows are too few."""
    devices = Counter(row["device"] for row in rows)
    device = args.device or max(devices, key=devices.get, default="")
    rows = [row for row in rows if row["device"] == device]
    machines = Counter(row["device_name"] for row in rows)
    if not any(configurations.task_kind(row) == args.task for row in rows):
        raise Undecided(f"no row on {device} measures {args.task}" if device else "there are no rows to predict from")
    known = data_of_rows(rows)
    try:
        return predictor.Predictor(predictor.groups_of(rows), known), known, "; ".join(machines)
    except utils.UserError as error:
        raise Undecided(str(error)) from None


def about_data(args, known):
    """(Data, how it is known) of the data set of the flags: told by flags, read from its files, or by rows of other
    models. known: {data set: Data}. Undecided where nothing is known.
    """
    own, told = known.get(data_of(args)), []
    if own is None and args.dataset and Path(args.dataset).exists():
        try:
            own, how = read_data(args)
        except utils.UserError as error:
            if not args.tokens or (args.task == "classification" and not args.n_classes):
                raise utils.UserError(f"{error}; --tokens and --n_classes would do without reading it") from None
            how = f"{args.dataset} cannot be read ({short(error)})"
        told.append(how)
    chars = args.tokens * CHARS_A_TOKEN if args.tokens else own and own.chars
    classes = args.n_classes or (own.classes if own else None if args.task == "classification" else 1)
    missing = [name for name, value in (("--tokens", chars), ("--n_classes", classes)) if value is None]
    if missing:
        raise Undecided(f"nothing is known of the data; name a file with --dataset, or give {' and '.join(missing)}")
    majority = args.majority_share or (own and own.majority)
    if args.task == "classification" and majority is None:
        majority = 1 / classes
        told.append("its classes are taken as equally frequent; give --majority_share")
    scored = own.landmark if own else None
    return Data(chars, classes, majority if args.task == "classification" else None, scored), told


def read_data(args):
    """(Data, what was read) of --dataset. UserError where it cannot be read."""
    task = load(args)
    cells, scored = task.row(), None
    labels = len(task.train) if args.data_size is None else min(args.data_size, len(task.train))
    if task.kind == "classification" and labels >= landmark.LABELS:
        few = {"label_budget": landmark.LABELS, "max_eval_samples": EXAMPLES}
        scored = landmark.of_task(load(args, **few))
    found = Data(cells["input_chars"], cells.get("n_classes", 1), cells.get("majority_baseline"), scored)
    classes = f"{found.classes} classes, the largest {found.majority:.0%}, " if found.majority else ""
    learnt = (
        f"; TF-IDF trained on {landmark.LABELS} labels has an accuracy of {scored:.3f}" if scored is not None else ""
    )
    return found, f"read from {args.dataset}: {classes}{found.chars:.0f} characters an input{learnt}"


def load(args, **few):
    """The Task of --dataset. few: label_budget and the like. UserError where it cannot be read."""
    columns = {name: value for name, value in vars(args).items() if name.endswith("_column") or name == "encoding"}
    return _load(json.dumps([str(args.dataset), args.subset, {**columns, **few}], sort_keys=True))


@functools.cache
def _load(key):
    from harness.data import tasks  # a decision from rows reads no data

    dataset, subset, options = json.loads(key)
    return tasks.load_task(dataset, subset, **options)


def labels_there(args):
    """Examples of the data set of the flags that can be learnt from; None where no file says."""
    if not args.dataset or not Path(args.dataset).exists():
        return None
    try:
        task = load(args, label_budget=1)  # under a budget what is not labelled is left, not evaluated on
    except utils.UserError:
        return None
    return len(task.train) + len(task.unlabelled)


def compare_command(rows, args):
    """`sweep.py suites/compare.yaml ..` with the data and limits of the flags. None where rows measure the data, none
    are named, there are no labels, only a model's size is known, or --set would read a value as something else.
    """
    measured = any(configurations.data_name(row) == data_of(args) for row in rows)
    if measured or not args.dataset or args.data_size == 0 or (args.params_b and not args.model):
        return None
    told = flags_of_data(rows, args)
    if args.data_size:  # a label budget that a file does not have is refused
        told["label_budget"] = min(args.data_size, labels_there(args) or args.data_size)
    changes = {name: ",".join(map(str, v)) if isinstance(v, list) else str(v) for name, v in told.items() if v}
    if any(suites.as_typed(suites.value_of(text)) != text for text in changes.values()):
        return None
    words = ["python", "sweep.py", "suites/compare.yaml", "--dataset", args.dataset]
    words += ["--model", args.model] if args.model else []
    words += ["--set", *(f"{name}={text}" for name, text in changes.items())] if changes else []
    words += ["--race"]
    memory = max(args.memory_gb, args.serving_memory_gb or 0.0) if args.memory_gb else None  # of training or serving
    latency = None if args.cached else args.latency_ms  # a race times requests without a cache
    for name, limit in (("latency_ms", latency), ("memory_gb", memory)):
        words += [f"--{name}", f"{limit:g}"] if limit else []
    return shlex.join([*words, "--minutes", "15", "--results", COMPARED])


def decide(rows, args, recommended):
    """The Decision from predictions for configurations like those that rows measured on other data.

    recommended: decide.recommended, which fills in a choice.
    """
    learned, known, machines = learn(rows, args)
    data, told = about_data(args, known)
    there = labels_there(args)
    if there is not None and there < (args.data_size or 0):
        told.append(f"{there:,} of the {args.data_size:,} labelled examples can be learnt from, the others evaluate")
        args = argparse.Namespace(**{**vars(args), "data_size": there})
    found, absent = at_hand(within_reach(learned, args, data, there), args)
    told += [f"left out, since it is not here: {', '.join(absent)}"] if absent else []
    limits = limits_of(args)
    members = [learned.candidate(wanted, name, c) for name, c, wanted in found]
    choice, probability, others = predictor.choose_predicted(members, limits, args.prefer)
    decision = Decision(
        "model",
        args.task,
        limits,
        args.prefer,
        None,
        considered=len(members),
        hardware=machines,
        probability=probability,
        cautions=["predicted, not measured", *told],
        metric=(choice or members[0]).configuration["metric"],
    )
    labels = {id(c.configuration): all_labels(wanted, args, there) for c, (*_, wanted) in zip(members, found)}

    def on_this_data(configuration):
        return command_for(configuration, rows, args, labels.get(id(configuration)))

    if probability < predictor.NOTHING:
        return nothing_likely(decision, members, choice, on_this_data)
    sure = "likely" if probability >= predictor.CONFIDENCE else "not certain"
    cautions = [f"{sure} to be within the limits (probability about {probability:.0%}). Measure it first"]
    if choice.half_interval > VAGUE:
        cautions.append(f"its score cannot be predicted closely (± {choice.half_interval:.2f}): the order is a guess")
    if args.cached and args.latency_ms is not None:
        cautions.append("latencies are predicted without a cache")
    if choice.train_seconds and choice.labels < labels[id(choice.configuration)]:
        times = f"{predictor.BEYOND} times what was measured"
        cautions.append(f"predicted for {choice.labels:,.0f} labels, {times}; the command uses all that there are")
    cautions += promises.fewer_labels(choice, others, "predicted for")
    if (limits.latency_ms, limits.memory_gb, limits.serving_memory_gb) != (None, None, None):
        cautions.append(f"latency and memory are those of {machines}: another machine needs rows of its own")
    decision = dataclasses.replace(decision, cautions=[f"{decision.cautions[0]}; {cautions[0]}", *told, *cautions[1:]])
    return recommended(decision, args, choice, [], others, on_this_data)


def at_hand(found, args):
    """(those of `within_reach` whose models are here or on the hub, the models that are not); all, where none are here.

    found: as of `within_reach`.
    """
    told = ("model", "gen_model") if args.model else ()

    def absent(configuration):
        used = configurations.flags(configuration.rows[0])
        names = (used.get(flag) for flag in hub.MODELS if flag not in told)
        return [name for name in names if name and hub.is_path(name) and not utils.exists(name)]

    missing = [absent(configuration) for _, configuration, _ in found]
    if all(missing):
        return found, []
    return [one for one, some in zip(found, missing) if not some], sorted({name for some in missing for name in some})


def nothing_likely(decision, members, best, command):
    """The Decision where no Candidate is within the limits with a probability of NOTHING. best: the likeliest, None
    where none can be.
    """
    near, relaxed, alone = nearest([predictor.cautious(c, decision.limits) for c in members], decision.limits)
    near = best or next(c for c in members if c.name == near.name)
    over = [text for *_, text in obstacles(near, decision.limits)]
    return dataclasses.replace(
        decision,
        nearest=dataclasses.replace(near, command=command(near.configuration)),
        over=[*over, f"within the limits with a probability of about {decision.probability:.0%}"],
        relaxed=relaxed,
        relax_one=alone,
        command=command(near.configuration),
    )


def all_labels(wanted, args, there=None):
    """Labels of the command that measures a Spec: all that one has where it is trained, and no more than there are."""
    labels = wanted.labels if args.data_size is None or not wanted.steps else args.data_size
    return labels if there is None else min(labels, there)


def within_reach(learned, args, data, there=None):
    """[(name, Configuration, Spec for the new data)] within the range that the predictor knows. Undecided without any.

    A Spec is that of a measured configuration on these data, with --params_b in place of its own size, and what is
    trained has all labels that there are: as many as --data_size says, or as were measured at most. there: labels that
    the data have, where that is known.
    """
    alike = [(c, s) for _, c, s in learned.known if s.kind == args.task]
    most = {}
    for _, s in alike:
        most[s.family] = max(most.get(s.family, 0), s.labels)
    specs, refusals = {}, []
    for configuration, known in alike:
        sized = bool(args.params_b and configuration.rows[0]["model"])  # TF-IDF has no model
        scale = args.params_b * 1e9 / known.params if sized else 1.0
        labels = known.labels
        if args.data_size is not None and known.steps and known.labels:
            labels = min(args.data_size, predictor.BEYOND * most[known.family])
        labels = labels if there is None else min(labels, there)
        trained_on = (configuration.mean("n_train") or 0) * (labels / known.labels if known.labels else 1)
        wanted = dataclasses.replace(
            known,
            data=data,
            labels=labels,
            steps=steps_of(configuration.rows[0], trained_on),
            params=known.params * scale,
            trainable=known.trainable * scale,
        )
        refusal = learned.refusal(wanted)
        if refusal:
            refusals.append(refusal)
            continue
        written = names.labels(configuration.rows[0])
        name = configuration.name.replace(written, f"{labels:,.0f} labels") if written else configuration.name
        if sized:
            model = names.short_model(configuration.rows[0]["model"])
            name = name.replace(model, f"a model of {args.params_b:g} B")
        specs.setdefault((name, wanted.precision), (name, configuration, wanted))
    if not specs:
        why = refusals[0] if refusals else f"no row says how long the inputs are for {args.task}"
        raise Undecided(f"outside the range of the predictor: {why}")
    return list(specs.values())
