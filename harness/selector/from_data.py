"""Predictions for a data set that no row measures: what is known of it, and which configurations could be run on it."""

import dataclasses
from collections import Counter
from pathlib import Path

import utils
from harness.errors import short
from harness.results import configurations, names
from harness.selector import landmark, predictor
from harness.selector.decision import Decision, Undecided, command_for, data_of, limits_of
from harness.selector.spec import CHARS_A_TOKEN, Data, data_of_rows, steps_of

EXAMPLES = 400  # that a landmark is scored on
VAGUE = 0.15  # half a 95 % interval of a predicted score


def learn(rows, args):
    """(Predictor of the rows on one kind of device, {data set: Data}). Undecided where the rows are too few."""
    devices = Counter(row["device"] for row in rows)
    device = args.device or max(devices, key=devices.get, default="")
    rows = [row for row in rows if row["device"] == device]
    if not any(configurations.task_kind(row) == args.task for row in rows):
        raise Undecided(f"no row on {device} measures {args.task}" if device else "there are no rows to predict from")
    known = data_of_rows(rows)
    try:
        return predictor.Predictor(predictor.groups_of(rows), known), known
    except utils.UserError as error:
        raise Undecided(str(error)) from None


def about_data(args, known):
    """(Data, how it is known) of the data set of the flags: told by flags, read from its files, or by rows of other
    models. known: {data set: Data}. Undecided where nothing is known.
    """
    own, told = known.get(data_of(args)), []
    if own is None and args.dataset and Path(args.dataset).exists():
        own, how = read_data(args)
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
    """(Data, what was read) of --dataset. Undecided where it cannot be read without further flags."""
    from harness.data import tasks  # a decision from rows reads no data

    try:
        columns = {name: value for name, value in vars(args).items() if name.endswith("_column") or name == "encoding"}
        task = tasks.load_task(args.dataset, args.subset, **columns)
        cells, scored = task.row(), None
        enough = min(len(task.train), args.data_size or len(task.train)) >= landmark.LABELS
        if task.kind == "classification" and enough:
            few = {"label_budget": landmark.LABELS, "max_eval_samples": EXAMPLES}
            scored = landmark.of_task(tasks.load_task(args.dataset, args.subset, **columns, **few))
    except utils.UserError as error:
        raise Undecided(f"{args.dataset} cannot be read ({short(error)}); give --tokens and --n_classes") from None
    found = Data(cells["input_chars"], cells.get("n_classes", 1), cells.get("majority_baseline"), scored)
    classes = f"{found.classes} classes, the largest {found.majority:.0%}, " if found.majority else ""
    learnt = f"; TF-IDF learns {scored:.3f} of them from {landmark.LABELS} labels" if scored is not None else ""
    return found, f"read from {args.dataset}: {classes}{found.chars:.0f} characters an input{learnt}"


def decide(rows, args, recommended):
    """The Decision from predictions for configurations like those that rows measured on other data.

    recommended: decide.recommended, which fills in a choice.
    """
    learned, known = learn(rows, args)
    data, told = about_data(args, known)
    members = [learned.candidate(wanted, name, c) for name, c, wanted in within_reach(learned, args, data)]
    choice, probability, others = predictor.choose_predicted(members, limits_of(args), args.prefer)
    if choice is None:
        raise Undecided(f"none of the {len(members)} configurations that can be predicted could be within the limits")
    sure = "likely" if probability >= predictor.CONFIDENCE else "UNLIKELY" if probability < 0.5 else "not certain"
    likelihood = f"{sure} to be within the limits (probability about {probability:.0%})"
    cautions = [f"predicted, not measured; {likelihood}. Measure it first", *told]
    if choice.half_interval > VAGUE:
        cautions.append(f"its score cannot be predicted closely (± {choice.half_interval:.2f}): the order is a guess")
    if args.cached and args.latency_ms is not None:
        cautions.append("latencies are predicted without a cache")
    decision = Decision(
        "model", args.task, limits_of(args), args.prefer, None, considered=len(members), cautions=cautions
    )
    labels = {id(c.configuration): c.labels for c in members}

    def on_this_data(configuration):
        return command_for(configuration, rows, args, labels.get(id(configuration)))

    return recommended(decision, args, choice, [], others, on_this_data)


def within_reach(learned, args, data):
    """[(name, Configuration, Spec for the new data)] within the range that the predictor knows. Undecided without any.

    A Spec is that of a measured configuration on these data, with --params_b in place of its own size, and what is
    trained has all labels that there are: as many as --data_size says, or as were measured at most.
    """
    alike = [(c, s) for _, c, s in learned.known if s.kind == args.task]
    most = {}
    for _, s in alike:
        most[s.family] = max(most.get(s.family, 0), s.labels)
    specs, refusals = {}, []
    for configuration, known in alike:
        scale = args.params_b * 1e9 / known.params if args.params_b else 1.0
        labels = known.labels
        if args.data_size is not None and known.steps and known.labels:
            labels = min(args.data_size, predictor.BEYOND * most[known.family])
        trained_on = (configuration.mean("n_train") or 0) * (labels / known.labels if known.labels else 1)
        wanted = dataclasses.replace(
            known,
            data=data,
            labels=labels,
            steps=steps_of(configuration.rows[0], trained_on),
            params=known.params * scale,
            trainable=known.trainable * scale,
            predicted_gb=known.predicted_gb and known.predicted_gb * scale,
        )
        refusal = learned.refusal(wanted)
        if refusal:
            refusals.append(refusal)
            continue
        written = names.labels(configuration.rows[0])
        name = configuration.name.replace(written, f"{labels:,.0f} labels") if written else configuration.name
        specs.setdefault((name, wanted.precision), (name, configuration, wanted))
    if not specs:
        why = refusals[0] if refusals else f"no row says how long the inputs are for {args.task}"
        raise Undecided(f"outside the range of the predictor: {why}")
    return list(specs.values())
