"""Rows, else a model of the rows, else rules: one decision."""

import argparse
import dataclasses
import statistics
from pathlib import Path

import utils
from harness.results import configurations
from harness.selector import explain, predictor, rules
from harness.selector.candidates import NEAR, choose, measured, nearest, obstacles


def comparable(kept, args):
    """(Panel, Candidates, what else there is) of the rows of this task, data, hardware and model size; (None, why there are none, "").

    Of several panels the one with most configurations; with --knowledge_heavy one that has retrieval, where there is one.
    """
    wanted = [row for row in kept if configurations.task_kind(row) == args.task]
    if args.device:
        wanted = [row for row in wanted if row["device"] == args.device]
    known = sorted({configurations.data_name(row) for row in wanted})
    if args.dataset:
        wanted = [row for row in wanted if Path(row["dataset"]).name == Path(args.dataset).name]
    if not wanted:
        where = (f" on {Path(args.dataset).name}" if args.dataset else "") + (
            f" on {args.device}" if args.device else ""
        )
        return None, f"no row measures {args.task}{where}" + (f"; there are {', '.join(known)}" if known else ""), ""
    missing = ""
    if args.model:
        same = [row for row in wanted if Path(row["model"]).name == Path(args.model).name]
        missing = "" if same else f"no row measures {Path(args.model).name}, these are other models"
        wanted = same or wanted
    if args.params_b:
        sizes = [(configurations.value(row, "total_params") or 0) / 1e9 for row in wanted]
        near = [row for row, size in zip(wanted, sizes) if 1 / NEAR <= size / args.params_b <= NEAR]
        if not near:
            return (
                None,
                f"the rows have models of {min(sizes):.2g} to {max(sizes):.2g} billion parameters, not near {args.params_b:g}",
                "",
            )
        wanted = near
    groups = {
        panel: measured(configurations.group_seeds(members)) for panel, members in configurations.panels(wanted).items()
    }
    groups = {panel: found for panel, found in groups.items() if found}
    if not groups:
        return None, "the rows hold nothing that one could choose", ""
    panel = max(
        groups, key=lambda p: (args.knowledge_heavy and any(c.strategy == "rag" for c in groups[p]), len(groups[p]))
    )
    others = [
        f"{p.data} (n = {p.n_eval}, {len(found)} configurations on {p.device})"
        for p, found in groups.items()
        if p != panel
    ]
    unseen = f"not looked at: {'; '.join(others)}; choose with --dataset and --device" if others else ""
    return panel, groups[panel], "; ".join(filter(None, [missing, unseen]))


def from_rows(panel, candidates, elsewhere, args):
    """The decision from measured candidates, as a dict."""
    limits = explain.limits_of(args)
    choice, ties, kept = choose(candidates, limits, args.prefer)
    near, relaxed, alone = (None, [], True) if choice else nearest(candidates, limits)
    cautions = []
    if (
        choice
        and args.required_accuracy is not None
        and choice.score - 1.96 * choice.score_error < args.required_accuracy
    ):
        cautions.append(f"its 95 % interval reaches below the {args.required_accuracy:g} needed")
    if choice and choice.majority is not None and choice.score - 1.96 * choice.score_error <= choice.majority:
        cautions.append(f"it is not shown to be above always answering the commonest class, {choice.majority:.3f}")
    if choice and "validation examples chose" in choice.configuration["note"]:
        cautions.append("besides its labelled examples, validation examples chose the checkpoint (see the row's note)")
    if len(candidates) == 1:
        cautions.append("nothing else was measured to compare it with")
    thumb, untried = None if choice else from_rules(args), None
    if thumb and thumb["choice"] and thumb["choice"] not in {c.strategy for c in candidates}:
        untried = thumb["choice"], thumb["command"]
    return {
        "basis": "rows",
        "data": panel.data,
        "metric": panel.metric,
        "n": panel.n_eval,
        "hardware": panel.device,
        "considered": len(candidates),
        "untried": untried,
        "elsewhere": elsewhere,
        "choice": choice,
        "ties": ties,
        "others": [c for c in kept if c is not choice],
        "nearest": near,
        "relaxed": relaxed,
        "relax_one": alone,
        "cautions": cautions,
        "over": [text for *_, text in obstacles(near, limits)] if near else [],
    }


def from_model(kept, args):
    """(the decision from predictions for configurations like those measured, None) or (None, why the model refuses)."""
    devices = [row["device"] for row in kept]
    device = args.device or max(set(devices), key=devices.count, default="")
    rows = [row for row in kept if row["device"] == device]
    try:
        learned = predictor.Predictor(predictor.groups_of(rows), predictor.prompt_tokens(rows))
    except utils.UserError as error:
        return None, str(error)
    alike = [(c, s) for _, c, s in learned.known if s.kind == args.task]
    if not alike:
        return None, f"no row on {device} measures {args.task}"
    majorities = [s.majority for _, s in alike if s.majority is not None]
    majority = args.majority_share or (statistics.median(majorities) if majorities else None)
    specs, refused = {}, []
    for configuration, known in alike:
        scale = args.params_b * 1e9 / known.params if args.params_b else 1.0
        gb = known.predicted_gb and known.predicted_gb * scale
        wanted = dataclasses.replace(
            known,
            tokens=args.tokens or known.tokens,
            majority=majority,
            params=known.params * scale,
            trainable=known.trainable * scale,
            predicted_gb=gb,
        )
        why = learned.refusal(wanted)
        refused += [why] if why else []
        if not why:
            specs.setdefault(dataclasses.replace(wanted, predicted_gb=None), (configuration, wanted))
    if not specs:
        return None, f"the model does not reach so far: {refused[0]}"
    candidates = [
        learned.candidate(wanted, configuration.name, configuration, args.dataset and Path(args.dataset).name)
        for configuration, wanted in specs.values()
    ]
    choice, probability, others = predictor.choose_predicted(candidates, explain.limits_of(args), args.prefer)
    if choice is None:
        return None, f"none of the {len(candidates)} configurations that the model reaches could keep the limits"
    sure = "likely" if probability >= predictor.CONFIDENCE else "UNLIKELY" if probability < 0.5 else "not sure"
    return {
        "basis": "model",
        "considered": len(candidates),
        "choice": choice,
        "ties": [],
        "others": others,
        "nearest": None,
        "relaxed": [],
        "metric": "score",
        "over": [],
        "cautions": [
            f"predicted, not measured; {sure} to keep the limits (probability about {probability:.0%}). Measure it first"
        ],
    }, None


def from_rules(args, failed=()):
    """The decision from the rules of thumb, as a dict of the same keys as far as they make sense. failed: rows out of memory."""
    known = argparse.Namespace(**{**vars(args), "params_b": args.params_b or 0.14, "data_size": args.data_size or 0})
    ranked, against = rules.decide(known)
    near = None if ranked else min(against, key=lambda name: max(over for over, _ in against[name]))
    choice, _, reasons = ranked[0] if ranked else (None, 0, [])
    cautions = [
        f"its {what} was not checked: rules cannot know it"
        for what, limit in (("latency", args.latency_ms), ("score", args.required_accuracy))
        if limit is not None and choice
    ]
    if failed:
        names = dict.fromkeys(f"{row['strategy']} {row['variant']}, {Path(row['model']).name}" for row in failed)
        cautions.append(f"out of memory in the rows: {'; '.join(list(names)[:5])}")
    if args.data_size is None:
        cautions.append("no --data_size was given: the rules take it that there are no labelled examples")
    if args.params_b is None:
        cautions.append("no --params_b was given: the rules take a model of 0.14 billion parameters")
    return {
        "basis": "rules",
        "choice": choice,
        "precision": rules.best_precision(choice, known) if choice else None,
        "reasons": reasons,
        "runner_up": ranked[1][0] if len(ranked) > 1 else None,
        "cautions": cautions,
        "nearest": near,
        "rejected": {name: [text for _, text in found] for name, found in against.items()},
        "command": rules.command(choice, known) if choice else None,
    }


def decide(kept, args, failed=()):
    """(decision, [why an earlier basis was not used]). failed: rows that ran out of memory."""
    reasons = []
    if args.basis in ("auto", "rows"):
        panel, found, elsewhere = comparable(kept, args)
        if panel is not None:
            return from_rows(panel, found, elsewhere, args), reasons
        reasons.append(found)
    if args.basis in ("auto", "model"):
        decision, why = from_model(kept, args)
        if decision:
            return decision, reasons
        reasons.append(why)
    if args.basis in ("auto", "rules"):
        return from_rules(args, failed), reasons
    raise utils.UserError(f"--basis {args.basis}: {'; '.join(reasons)}")
