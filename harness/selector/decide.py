"""Rows of the named data set, else predictions from the rows, else rules of thumb: one Decision."""

import argparse
import dataclasses
from collections import Counter
from pathlib import Path

import utils
from harness.results import commands, configurations
from harness.selector import candidates, from_data, lessons, missing, promises, rules, serving
from harness.selector.candidates import NEAR
from harness.selector.decision import Decision, Undecided, data_of, flags_of_data, limits_of

LISTED = 10  # further candidates that a Decision lists


def task_of(rows, args):
    """--task, else what the rows of the data set measure, else qa with --knowledge_heavy and classification without."""
    usual = "qa" if args.knowledge_heavy else "classification"
    kinds = Counter(
        configurations.task_kind(row) for row in rows if args.dataset and configurations.data_name(row) == data_of(args)
    )
    answered = {kind: n for kind, n in kinds.items() if kind not in ("", "retrieval")}
    return args.task or (usual if usual in answered or not answered else max(answered, key=answered.get))


def decide(rows, args, failed=(), dropped=(), stale=()):
    """The Decision for the flags. rows: those that count. failed: that ran out of memory, or failed. dropped: by races.
    stale: what `missing.fresh` remarks.

    Without --dataset no data set's rows decide, and nothing is predicted unless --basis model asks for it. UserError if
    the only basis that is allowed cannot answer.
    """
    args = argparse.Namespace(**{**vars(args), "task": task_of([*rows, *dropped], args)})
    oom = [row for row in failed if row["status"] == "oom"]
    answers = {
        "rows": lambda: (
            from_dropped(dropped, args) if none_is_left(rows, dropped, args) else from_rows(rows, args, failed)
        ),
        "model": lambda: from_data.decide(rows, args, recommended),
        "rules": lambda: from_rules(rows, args, oom),
    }
    bases, not_used = list(answers) if args.basis == "auto" else [args.basis], []
    if args.basis == "auto" and not args.dataset:
        bases, not_used = ["rules"], ["no --dataset is named, so the rows of no data set decide"]
    for basis in bases:
        try:
            found = dataclasses.replace(answers[basis](), not_used=not_used)
            hurried = missing.no_time_for(rows, dropped, args) if basis == "rows" else []
            compare = from_data.compare_command(rows, args) if basis != "rows" else None
            if compare and found.command:  # so that what it measures is found again
                found = dataclasses.replace(found, command=f"{found.command} --results {from_data.COMPARED}")
            return dataclasses.replace(found, cautions=[*found.cautions, *hurried, *stale], compare=compare)
        except Undecided as reason:
            not_used.append(str(reason))
    raise utils.UserError(f"--basis {args.basis}: {'; '.join(not_used)}")


# ---- from rows


def none_is_left(rows, dropped, args):
    """Whether a race has dropped everything that was run on the named data set."""
    name = data_of(args)
    return (
        name
        and not any(configurations.data_name(row) == name for row in rows)
        and any(configurations.data_name(row) == name for row in dropped)
    )


def from_dropped(dropped, args):
    """The Decision where a race has dropped all configurations of the named data set: the nearest to the limits."""
    alike, remark = comparable(dropped, args)
    found = configurations.group_seeds(alike)
    members, limits = candidates.measured(found, args.cached), limits_of(args)
    if not members:
        raise Undecided("a race dropped all that could be recommended")
    within = [c for c in members if not candidates.obstacles(c, limits)]
    if within:
        near, relaxed, alone = max(within, key=lambda c: c.score), [], True
        over = [f"{near.configuration['note']} (run the race again, with these limits or more --minutes)"]
    else:
        near, relaxed, alone = candidates.nearest(members, limits)
        over = [text for *_, text in candidates.obstacles(near, limits)]
    caution = "all were dropped by a race: these figures are of short runs on few examples"
    return Decision(
        "rows",
        args.task,
        limits,
        args.prefer,
        choice=None,
        data=data_of(args),
        metric=alike[0]["metric"],
        n=alike[0]["n_eval"],
        hardware=alike[0]["device_name"],
        considered=len(members),
        elsewhere=remark,
        nearest=near,
        over=over,
        relaxed=relaxed,
        relax_one=alone,
        cautions=[caution],
    )


def comparable(rows, args):
    """(rows of this task, data set, kind of device and model size; a remark on the model). Undecided without rows."""
    rows = [row for row in rows if configurations.task_kind(row) == args.task and args.device in (None, row["device"])]
    known = ", ".join(sorted({configurations.data_name(row) for row in rows}))
    where = f" on {args.device}" if args.device else ""
    if not args.dataset:
        there = f"for {args.task} the rows{where} measure {known}" if known else f"no row{where} measures {args.task}"
        raise Undecided(f"name a data set with --dataset; {there}")
    rows = [row for row in rows if configurations.data_name(row) == data_of(args)]
    if not rows:
        there = f"; there are {known}" if known else ""
        raise Undecided(f"no row measures {args.task} on {data_of(args)}{where}{there}")
    remark = ""
    if args.model:
        same = [row for row in rows if Path(row["model"]).name == Path(args.model).name]
        remark = "" if same else f"no row measures {Path(args.model).name}, these are other models"
        rows = same or rows
    if args.params_b:
        sizes = [(configurations.value(row, "total_params") or 0) / 1e9 for row in rows]
        rows = [row for row, size in zip(rows, sizes) if 1 / NEAR <= size / args.params_b <= NEAR]
        if not rows:
            measured = f"{min(sizes):.2g} to {max(sizes):.2g}"
            raise Undecided(f"the rows have models of {measured} billion parameters, not near {args.params_b:g}")
    return rows, remark


def largest_panel(rows, args):
    """(Panel, its Candidates, a remark on what is not used or ""): the panel with most configurations.

    With --knowledge_heavy one that measures retrieval-augmented generation comes first.
    """
    rows_of = configurations.panels(rows)
    panels = {panel: candidates.measured(configurations.group_seeds(some)) for panel, some in rows_of.items()}
    panels = {panel: members for panel, members in panels.items() if members}
    if not panels:
        raise Undecided("the rows measure no configuration that can be recommended")

    def rank(panel):
        newest = max(row["created_at"] for row in rows_of[panel])
        return args.knowledge_heavy and any(c.strategy == "rag" for c in panels[panel]), len(panels[panel]), newest

    best = max(panels, key=rank)
    others = [
        f"n = {panel.n_eval}, {panel.metric}, {len(members)} configurations on {panel.device}"
        for panel, members in panels.items()
        if panel != best
    ]
    found = configurations.group_seeds(rows_of[best], Path(args.results).parent if args.results else None)
    collapsed = [c.name for c in found if c.degenerate == len(c.rows)]
    remark = f"other examples or hardware, not used: {'; '.join(others)}" if others else ""
    told = f"not recommended, since all runs are degenerate: {'; '.join(collapsed)}" if collapsed else ""
    return best, candidates.measured(found, args.cached), "; ".join(filter(None, [remark, told]))


def from_rows(rows, args, failed=()):
    """The Decision from the measured rows of the named data set. failed: rows of runs without a score."""
    alike, remark = comparable(rows, args)
    panel, members, others = largest_panel(alike, args)
    limits = limits_of(args)
    decision = Decision(
        "rows",
        args.task,
        limits,
        args.prefer,
        choice=None,
        data=panel.data,
        metric=panel.metric,
        n=panel.n_eval,
        hardware=panel.device,
        considered=len(members),
        elsewhere="; ".join(filter(None, [remark, others])),
    )
    members = candidates.with_all_labels(candidates.with_spread(members), args.data_size)
    choice, ties, within = candidates.choose(members, limits, args.prefer)

    def again(configuration):
        row = configuration.rows[0]
        return commands.command(row, always=commands.NAMED) if row["args"] else None

    without = [*missing.gone(failed, rows, args), *(missing.gone_seeds(choice.configuration, failed) if choice else [])]
    untimed = [c.name for c in members if limits.latency_ms is not None and c.latency_ms is None]
    without += [f"not considered, since its latency was not measured: {'; '.join(untimed)}"] if untimed else []
    if choice:
        promise = promises.promised(members, choice, limits, args.prefer)
        others, sure = [c for c in within if c is not choice], promises.with_promise(choice, promise)
        cautions = promises.cautions_of(sure, promise, len(members), limits)
        cautions += [*promises.with_fewer_labels(choice, others, limits), *without]
        decision = dataclasses.replace(decision, cautions=cautions)
        found = recommended(decision, args, sure, ties, others, again)
        return dataclasses.replace(found, reasons=[*promises.how_scored(choice, promise), *found.reasons])
    near, relaxed, alone = candidates.nearest(members, limits)
    thumb = from_rules(rows, args)
    new = thumb.choice and thumb.choice not in {c.strategy for c in members}
    return dataclasses.replace(
        decision,
        nearest=with_command(near, again),
        over=[text for *_, text in candidates.obstacles(near, limits)],
        relaxed=relaxed,
        relax_one=alone,
        untried=(thumb.choice, thumb.command) if new else None,
        cautions=[*(["nothing else was measured to compare it with"] if len(members) == 1 else []), *without],
    )


def recommended(decision, args, choice, ties, others, command):
    """The Decision with a choice. others: Candidates within the limits too, best first. command: of a Configuration."""
    paid = (args.requests_per_day, args.horizon_days, args.price_per_hour)
    requests = args.requests_per_day * args.horizon_days
    endpoint = candidates.endpoint_sentence(choice, requests, args.price_in, args.price_out)
    why = "it costs least" if args.prefer == "accuracy" else "it scores best"
    names = "; ".join(c.name for c in ties[:6])
    tied = [f"{why} among {len(ties) + 1} that tie within the noise; the others: {names}"] if ties else []
    return dataclasses.replace(
        decision,
        choice=choice.strategy,
        configuration=with_command(choice, command),
        reasons=tied,
        runner_up=next((c.strategy for c in others if c.strategy != choice.strategy), None),
        ties=ties,
        others=[with_command(c, command) for c in distinct(others, {choice.name})[:LISTED]],
        command=command(choice.configuration),
        break_even=candidates.break_even_sentence(choice, others, *paid),
        cost="; ".join(filter(None, [candidates.cost_sentence(choice, *paid), endpoint])) or None,
        serve=serving.serve_command(choice.configuration.rows[0]) if decision.basis == "rows" else None,
    )


def with_command(candidate, command):
    """The Candidate with the command that measures it."""
    return dataclasses.replace(candidate, command=command(candidate.configuration))


def distinct(members, names):
    """The candidates without those whose name is in `names` or came before: predictions for one configuration that was
    measured on several data sets."""
    seen, kept = set(names), []
    for c in members:
        if c.name not in seen:
            kept.append(c)
        seen.add(c.name)
    return kept


# ---- from rules


def from_rules(rows, args, failed=()):
    """The Decision from the rules of thumb, with what the rows say in general. failed: rows that ran out of memory."""
    params_b, data_size = args.params_b or rules.USUAL_PARAMS_B, args.data_size or 0
    there = from_data.labels_there(args) if data_size else None
    data_size = data_size if there is None else min(data_size, there)
    known = argparse.Namespace(**{**vars(args), "params_b": params_b, "data_size": data_size})
    ranked, against = rules.decide(known)
    rejected = {name: [text for _, text in broken] for name, broken in against.items()}
    decision = Decision("rules", args.task, limits_of(args), args.prefer, choice=None, rejected=rejected)
    if not ranked:
        near = min(against, key=lambda name: max(over for over, _ in against[name]))
        return dataclasses.replace(decision, nearest=near, over=rejected[near], cautions=rule_cautions(args, failed))
    choice, _, reasons = ranked[0]
    unchecked = [
        f"its {what} was not checked: rules cannot know it"
        for what, limit in (
            ("latency", args.latency_ms),
            ("score", args.required_accuracy),
            ("memory of serving", args.serving_memory_gb),
        )
        if limit is not None
    ]
    on_device = [row for row in rows if args.device in (None, row["device"])]
    return dataclasses.replace(
        decision,
        choice=choice,
        precision=rules.best_precision(choice, known),
        reasons=reasons,
        cautions=unchecked + rule_cautions(args, failed),
        lessons=[]
        if args.basis == "rules"
        else lessons.lessons(on_device, args.task, choice, decision.limits, data_size),
        runner_up=ranked[1][0] if len(ranked) > 1 else None,
        command=rules.command(choice, known, flags_of_data(rows, args)),
    )


def rule_cautions(args, failed):
    """What the rules had to assume, and what ran out of memory."""
    cautions = []
    if failed:
        names = dict.fromkeys(map(missing.short_name, failed))
        cautions.append(f"out of memory in the rows: {'; '.join(list(names)[:5])}")
    if args.data_size is None:
        cautions.append("no --data_size was given: the rules assume that there are no labelled examples")
    if args.params_b is None:
        size = f"{rules.USUAL_PARAMS_B:g} billion parameters"
        cautions.append(f"no --params_b was given: the rules assume a model of {size}")
    return cautions
