"""A decision in words."""

import math

from harness.results import commands, configurations
from harness.selector import candidates, rules

MEANING = {
    "accuracy": "share of answers that are right",
    "token_f1": "overlap with the reference's words, from 0 to 1",
    "exact_match": "share of answers that equal the reference",
    "rouge_l": "longest common subsequence with the reference, from 0 to 1",
}


UNITS = {
    "latency_ms": "latency to {:.0f} ms",
    "memory_gb": "memory to {:.2f} GB",
    "data_size": "labelled examples to {:.0f}",
    "required_accuracy": "accuracy to {:.3f}",
}


ROUNDED = {"latency_ms": 0, "memory_gb": 2, "data_size": 0, "required_accuracy": 3}  # digits


def limits_of(args):
    return candidates.Limits(
        args.memory_gb,
        args.latency_ms,
        args.data_size,
        args.required_accuracy,
        args.requests_per_day * args.horizon_days,
    )


def break_even(decision, args):
    """A sentence on what the best trained way that keeps the limits costs against the best untrained one; None without the two."""
    kept = [c for c in [decision["choice"], *decision["others"]] if c.latency_ms is not None]
    trained, plain = ([c for c in kept if bool(c.train_seconds) == wanted] for wanted in (True, False))
    if not trained or not plain:
        return None
    first, second = (max(some, key=lambda c: (c is decision["choice"], c.score)) for some in (trained, plain))
    names = f"{first.name} ({first.score:.3f}, {first.train_seconds:.0f} s of training) against {second.name} ({second.score:.3f})"
    found = candidates.break_even(first, second, args.requests_per_day)
    if found is None:
        return f"{names}: the training is never paid back in time, its answers are not faster"
    requests, days = found
    planned = limits_of(args).requests
    saved = (second.cost_seconds(planned) - first.cost_seconds(planned)) / 3600
    text = f"{names}: answers come {second.latency_ms - first.latency_ms:.0f} ms sooner"
    reads = [candidates.tokens_of(c) for c in (first, second)]
    if None not in reads:
        text += (
            f" and read {reads[1] - reads[0]:.0f} tokens fewer"
            if reads[1] >= reads[0]
            else f" and read {reads[0] - reads[1]:.0f} tokens more"
        )
    text += f"; paid back after {math.ceil(requests):,} requests, {days:.2g} days at {args.requests_per_day:g} a day"
    return (
        f"{text}; over {args.horizon_days:g} days it {'saves' if saved > 0 else 'loses'} {abs(saved):.1f} machine hours"
    )


def words(candidate, metric):
    """A candidate in a line."""
    parts = [f"{metric} {candidate.score:.3f} ± {1.96 * candidate.score_error:.3f}"]
    parts += [f"{candidate.latency_ms:.0f} ms a request (median)"] if candidate.latency_ms is not None else []
    parts += [f"{candidate.memory_gb:.2f} GB at its peak"] if candidate.memory_gb is not None else []
    parts += [f"{candidate.labels:.0f} labelled examples"] if candidate.labels else []
    parts += [f"{candidate.train_seconds:.0f} s of training"] if candidate.train_seconds else []
    return f"{candidate.name}: {', '.join(parts)}"


def relax(decision):
    """Which limits to relax, to values that do let something in: rounded up, an accuracy down."""
    told = []
    for name, value in decision["relaxed"]:
        digits = ROUNDED[name]
        rounded = math.floor(value * 10**digits) if name == "required_accuracy" else math.ceil(value * 10**digits)
        told.append(UNITS[name].format(rounded / 10**digits))
    return (" or " if decision["relax_one"] else " and ").join(told)


def next_command(decision, args):
    """The command of the choice; for a predicted one with the person's own model and data."""
    row = decision["choice"].configuration.rows[0]
    model = "gen_model" if "gen_model" in configurations.flags(row) else "model"
    changes = {name: found for name, found in ((model, args.model), ("dataset", args.dataset)) if found}
    return commands.command(row, **(changes if decision["basis"] == "model" else {}))


def tell(decision, reasons, source, skipped, args):
    """Print the decision."""
    if decision["basis"] == "rows":
        where = f"{decision['data']}, n = {decision['n']}, {decision['hardware']} ({source})"
        print(f"Decided from rows: {decision['considered']} configurations measured on {where}")
        if decision["elsewhere"]:
            print(f"  {decision['elsewhere']}")
    else:
        why = f" ({'; '.join(reasons)})" if reasons else ""
        print(
            f"Decided by a model of the rows in {source}{why}: {decision['considered']} configurations predicted"
            if decision["basis"] == "model"
            else f"Decided by rules of thumb{why}"
        )
    if skipped:
        statuses = sorted({why.split(":")[0] for _, why in skipped})
        print(f"  {len(skipped)} rows not used ({'; '.join(statuses)[:160]})")
    if decision["basis"] == "rules":
        return tell_rules(decision)
    if decision["choice"] is None:
        print(
            f"Nothing fits. The nearest is {words(decision['nearest'], decision['metric'])}; {', '.join(decision['over'])}"
        )
        if decision["relaxed"]:
            print(f"Something fits if you relax {relax(decision)}")
        if decision["untried"]:
            print(
                f"Not measured here, but what rules of thumb would try: {rules.NAMES[decision['untried'][0]]}; {decision['untried'][1]}"
            )
        return None
    print(f"Choice: {words(decision['choice'], decision['metric'])}")
    for text in decision["cautions"]:
        print(f"  - CAUTION: {text}")
    if decision["ties"]:
        names = "; ".join(c.name for c in decision["ties"][:6])
        why = "it costs least" if args.prefer == "accuracy" else "it scores best"
        print(f"  - {why} among {len(decision['ties']) + 1} that tie within the noise; the others: {names}")
    for other in decision["others"][:3]:
        print(f"Next: {words(other, decision['metric'])}")
    found = break_even(decision, args)
    if found:
        print(f"Break-even: {found}")
    print(f"Rows used: {' '.join(row['run_id'] for row in decision['choice'].configuration.rows)}")
    print(f"Run {'it again' if decision['basis'] == 'rows' else 'next'}: {next_command(decision, args)}")


def tell_rules(decision):
    if decision["choice"]:
        print(f"Choice: {rules.NAMES[decision['choice']]}, {decision['precision']} weights")
        print("".join(f"  - {reason}\n" for reason in decision["reasons"]), end="")
        print("".join(f"  - CAUTION: {text}\n" for text in decision["cautions"]), end="")
        if decision["runner_up"]:
            print(f"Runner-up: {rules.NAMES[decision['runner_up']]}")
    else:
        near = decision["nearest"]
        print(f"Nothing fits. The nearest is {rules.NAMES[near]}, which {' and '.join(decision['rejected'][near])}.")
    for name, found in decision["rejected"].items():
        print(f"Ruled out: {rules.NAMES[name]}, which {' and '.join(found)}")
    if decision["choice"]:
        print(f"Run next: {decision['command']}")


def explain(decision, args):
    """The decision as a short text that a manager can read."""
    wanted = [
        text
        for text in (
            f"at most {args.latency_ms:g} ms an answer" if args.latency_ms else "",
            f"at most {args.memory_gb:g} GB of memory" if args.memory_gb else "",
            f"{args.data_size:,} labelled examples" if args.data_size is not None else "",
            f"a score of {args.required_accuracy:g} or better" if args.required_accuracy else "",
        )
        if text
    ]
    said = [f"You asked for {args.task}" + (f" with {', '.join(wanted)}." if wanted else ", without limits.")]
    if decision["basis"] == "rules":
        said.append("Nothing comparable has been measured yet, so this is experience, not evidence.")
        if decision["choice"]:
            said.append(f"Begin with {rules.NAMES[decision['choice']]}: {decision['reasons'][0]}.")
            said.append(f"Measure it before you decide: {decision['command']}")
        else:
            said.append(
                f"Nothing fits; the nearest is {rules.NAMES[decision['nearest']]}. More memory or labelled examples would change that."
            )
    elif decision["choice"] is None:
        near = f"{decision['nearest'].name}, {', '.join(decision['over'])}"
        said.append(
            f"None of the {decision['considered']} ways that were tried on {decision['data']} keeps all of that. The nearest is {near}."
        )
        if decision["relaxed"]:
            said.append(f"It becomes possible if you relax {relax(decision)}.")
    else:
        choice, measured = decision["choice"], decision["basis"] == "rows"
        where = (
            f"measured on {decision['n']} examples of {decision['data']}, {decision['hardware']}"
            if measured
            else "predicted from other tasks"
        )
        name = (
            f"{decision['metric']} ({MEANING[decision['metric']]})"
            if decision["metric"] in MEANING
            else decision["metric"]
        )
        said.append(f"Of {decision['considered']} ways, we suggest {choice.name}.")
        said.append(f"Its {name} is {choice.score:.2f}, give or take {1.96 * choice.score_error:.2f}, {where}.")
        needs = [
            f"an answer takes {choice.latency_ms:.0f} ms" if choice.latency_ms is not None else "",
            f"{choice.memory_gb:.1f} GB of memory are needed at the peak" if choice.memory_gb is not None else "",
            f"{choice.labels:.0f} labelled examples were used" if choice.labels else "",
        ]
        told = ", ".join(filter(None, needs))
        said.append(f"{told[0].upper()}{told[1:]}." if told else "")
        if decision["ties"]:
            why = "costs least to run" if args.prefer == "accuracy" else "scores best"
            said.append(f"Within the noise {len(decision['ties'])} others do as well, so the one that {why} was taken.")
        said += [f"Break-even: {found}." for found in [break_even(decision, args)] if found]
        said += [f"Note: {text}." for text in decision["cautions"]]
    print("\n".join(filter(None, said)))


def as_json(decision, reasons, args):
    """The decision with nothing but JSON's own types."""
    if decision["basis"] == "rules":
        return {**decision, "not_used": reasons}
    choice = decision["choice"]
    return {
        **decision,
        "choice": choice.strategy if choice else None,
        "configuration": candidates.as_json(choice),
        "ties": [c.name for c in decision["ties"]],
        "others": [candidates.as_json(c) for c in decision["others"][:10]],
        "nearest": candidates.as_json(decision["nearest"]),
        "relaxed": dict(decision["relaxed"]),
        "command": next_command(decision, args) if choice else None,
        "not_used": reasons,
        "break_even": break_even(decision, args) if choice else None,
    }
