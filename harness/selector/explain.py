"""A Decision as text, as a short text for people who do not run scripts, and as JSON."""

import dataclasses
import math

from harness.selector import rules
from harness.selector.candidates import CACHED, Candidate, milliseconds

MEANING = {
    "accuracy": "share of answers that are right",
    "token_f1": "overlap with the reference's words, from 0 to 1",
    "exact_match": "share of answers that equal the reference",
    "rouge_l": "longest common subsequence with the reference, from 0 to 1",
}
IN_CACHE = "with the prompt's beginning in a cache"
# limit -> (text, digits)
RELAXED = {
    "latency_ms": ("latency to {:.0f} ms", 0),
    "memory_gb": ("memory to {:.2f} GB", 2),
    "serving_memory_gb": ("memory of serving to {:.2f} GB", 2),
    "data_size": ("labelled examples to {:.0f}", 0),
    "required_accuracy": ("accuracy to {:.3f}", 3),
}


def words(candidate, metric):
    """A candidate in one line."""
    error = f" ± {candidate.half_interval:.3f}" if candidate.score_error else ""  # 0: not known
    parts = [f"{metric} {candidate.score:.3f}{error}"]
    cached = f", {IN_CACHE}" * (candidate.latency_column == CACHED)
    timed = candidate.latency_ms is not None
    parts += [f"{milliseconds(candidate.latency_ms)} a request (median{cached})"] if timed else []
    parts += [f"{candidate.memory_gb:.2f} GB peak memory"] if candidate.memory_gb is not None else []
    apart = candidate.serving_gb not in (None, candidate.memory_gb)
    parts += [f"{candidate.serving_gb:.2f} GB to serve"] if apart else []
    parts += [f"{candidate.labels:.0f} labelled examples"] if candidate.labels else []
    parts += [f"{candidate.train_seconds:.0f} s of training"] if candidate.train_seconds else []
    return f"{candidate.name}: {', '.join(parts)}"


def relax(decision):
    """Which limits to relax: values rounded up, an accuracy down, so that something is within the limits."""
    texts = []
    for name, value in decision.relaxed:
        text, digits = RELAXED[name]
        rounded = math.floor(value * 10**digits) if name == "required_accuracy" else math.ceil(value * 10**digits)
        texts.append(text.format(rounded / 10**digits))
    return (" or " if decision.relax_one else " and ").join(texts)


def heading(decision, source, skipped):
    """Lines on what the decision rests on. source: the results CSV; skipped: [(run id, why its row does not count)]."""
    why = f" ({'; '.join(decision.not_used)})" if decision.not_used else ""
    if decision.basis == "rows":
        where = f"{decision.data}, n = {decision.n}, {decision.hardware} ({source})"
        lines = [f"Decided from rows: {decision.considered} configurations measured on {where}"]
        lines += [f"  {decision.elsewhere}"] if decision.elsewhere else []
    elif decision.basis == "model":
        lines = [
            f"Predicted from the rows in {source}{why}: {decision.considered} configurations, latencies and memory on "
            f"{decision.hardware}"
        ]
    else:
        lines = [f"Decided by rules of thumb{why}"]
    if skipped:
        statuses = sorted({reason.split(":")[0] for _, reason in skipped})
        lines.append(f"  {len(skipped)} rows not used ({'; '.join(statuses)[:160]})")
    return lines


def text(decision, source, skipped):
    """The decision with its reasons, what comes next, and the command that measures it."""
    lines = heading(decision, source, skipped)
    chosen = decision.configuration
    if decision.choice is None:
        lines += nothing_fits(decision)
    elif chosen:
        lines.append(f"Choice: {words(chosen, decision.metric)}")
    else:
        lines.append(f"Choice: {rules.NAMES[decision.choice]}, {decision.precision} weights")
    lines += [f"  - {reason}" for reason in decision.reasons]
    lines += [f"  - CAUTION: {caution}" for caution in decision.cautions]
    lines += [f"Next: {words(other, decision.metric)}" for other in decision.others[:3]]
    if decision.runner_up and not decision.others:
        lines.append(f"Runner-up: {rules.NAMES[decision.runner_up]}")
    lines += [f"Ruled out: {rules.NAMES[name]}, which {' and '.join(why)}" for name, why in decision.rejected.items()]
    if decision.lessons:
        lines.append(f"What the rows in {source} say in general, on the data sets that they measure:")
        lines += [f"  - {lesson}" for lesson in decision.lessons]
    lines += [f"Cost: {decision.cost}"] if decision.cost else []
    lines += [f"Break-even: {decision.break_even}"] if decision.break_even else []
    if chosen:
        used = " ".join(row["run_id"] for row in chosen.configuration.rows)
        lines += [f"Rows used: {used}"] if decision.basis == "rows" else []
    if decision.command:
        lines.append(f"{'Run it again' if decision.basis == 'rows' else 'Measure it'}: {decision.command}")
    if decision.compare:
        lines.append(f"Surer: compare all ways in about 15 minutes with {decision.compare}")
        lines.append("  and ask again with --results compare.csv; without --minutes the same command goes on")
    if decision.serve:
        lines.append(f"Serve it: {decision.serve}")
    return "\n".join(lines)


def nothing_fits(decision):
    """Lines on the nearest configuration or strategy, and on what would help."""
    if not isinstance(decision.nearest, Candidate):
        return [f"Nothing fits. The nearest is {rules.NAMES[decision.nearest]}, which {' and '.join(decision.over)}."]
    which = "Nothing is likely to fit. The nearest" if decision.basis == "model" else "Nothing fits. The nearest"
    lines = [f"{which} is {words(decision.nearest, decision.metric)}; {', '.join(decision.over)}"]
    if decision.relaxed:
        lines.append(f"Something fits if you relax {relax(decision)}")
    if decision.untried:
        name, command = decision.untried
        lines.append(f"Not measured here, but rules of thumb would try {rules.NAMES[name]}: {command}")
    return lines


def question(decision):
    """The question in one sentence."""
    limits, apart = decision.limits, decision.limits.serving_memory_gb is not None
    parts = [
        f"at most {limits.latency_ms:g} ms an answer" + " with a cache" * limits.cached if limits.latency_ms else "",
        f"at most {limits.memory_gb:g} GB of memory" + " to train" * apart if limits.memory_gb else "",
        f"at most {limits.serving_memory_gb:g} GB of memory to serve" if apart else "",
        f"{limits.data_size:,} labelled examples" if limits.data_size is not None else "",
        f"a score of {limits.required_accuracy:g} or better" if limits.required_accuracy else "",
    ]
    given = ", ".join(filter(None, parts))
    return f"You asked for {decision.task}" + (f" with {given}." if given else ", without limits.")


def short_text(decision):
    """The decision as a few sentences for people who do not run scripts."""
    if decision.basis == "rules":
        sentences = by_rules(decision)
    elif decision.choice is None:
        near = f"{decision.nearest.name}, {', '.join(decision.over)}"
        which = (
            f"measured on {decision.data} is"
            if decision.basis == "rows"
            else "predicted from other data is likely to be"
        )
        sentences = [
            f"None of the {decision.considered} configurations {which} within all limits. The nearest is {near}.",
            f"It becomes possible if you relax {relax(decision)}." if decision.relaxed else "",
            *(f"Note: {caution}." for caution in decision.cautions),
        ]
    else:
        sentences = by_numbers(decision)
    if decision.elsewhere:
        sentences.append(f"Note: {decision.elsewhere}.")
    if decision.compare:
        sentences.append(f"Surer: compare all ways on your data in about 15 minutes with {decision.compare}")
        sentences.append("Then ask again with --results compare.csv.")
    return "\n".join(filter(None, [question(decision), *sentences]))


def by_rules(decision):
    """Sentences on a Decision by rules of thumb."""
    why = f" ({decision.not_used[-1]})" if decision.not_used else ""
    sentences = [f"This is experience, not evidence: rules of thumb decide{why}."]
    if decision.choice is None:
        name = rules.NAMES[decision.nearest]
        return [*sentences, f"Nothing fits; the nearest is {name}: {', '.join(decision.over)}."]
    sentences.append(f"Begin with {rules.NAMES[decision.choice]}: {decision.reasons[0]}.")
    if decision.runner_up:
        sentences.append(f"The runner-up is {rules.NAMES[decision.runner_up]}.")
    sentences += [f"In measurements on other data, {lesson}." for lesson in decision.lessons]
    sentences += [f"Note: {caution}." for caution in decision.cautions]
    return [*sentences, f"Measure it before you decide: {decision.command}"]


def by_numbers(decision):
    """Sentences on a measured or predicted choice."""
    chosen, metric = decision.configuration, decision.metric
    measured = f"measured on {decision.n} examples of {decision.data}, {decision.hardware}"
    predicted = decision.basis != "rows"
    where = "predicted from other data" if predicted else measured
    name = f"{metric} ({MEANING[metric]})" if metric in MEANING else metric
    cached = f" {IN_CACHE}" * (chosen.latency_column == CACHED)
    needs = [
        f"an answer takes {milliseconds(chosen.latency_ms)}" + cached + f" on {decision.hardware}" * predicted
        if chosen.latency_ms is not None
        else "",
        f"the peak memory is {chosen.memory_gb:.1f} GB" if chosen.memory_gb is not None else "",
        f"serving takes {chosen.serving_gb:.1f} GB" if chosen.serving_gb not in (None, chosen.memory_gb) else "",
        f"{chosen.labels:.0f} labelled examples {'would be' if predicted else 'were'} used" if chosen.labels else "",
    ]
    needed = ", ".join(filter(None, needs))
    error = f", give or take {chosen.half_interval:.2f}" if chosen.score_error else ""
    sentences = [
        f"Of {decision.considered} configurations, we suggest {chosen.name}.",
        f"Its {name} is {chosen.score:.2f}{error}, {where}.",
        f"{needed[0].upper()}{needed[1:]}." if needed else "",
    ]
    if decision.ties:
        why = "costs least to run" if decision.prefer == "accuracy" else "scores best"
        n = len(decision.ties)
        sentences.append(f"Within the noise {n} others do as well, so the one that {why} was taken.")
    sentences += [f"It costs {decision.cost}."] if decision.cost else []
    sentences += [f"Break-even: {decision.break_even}."] if decision.break_even else []
    sentences += [f"Note: {caution}." for caution in decision.cautions]
    return sentences + ([f"Measure it: {decision.command}"] if predicted and decision.command else [])


def as_json(decision):
    """The Decision's fields as JSON's own types. Candidates are objects, ties their names."""

    def plain(candidate):
        return candidate_json(candidate) if isinstance(candidate, Candidate) else candidate

    fields = {field.name: getattr(decision, field.name) for field in dataclasses.fields(decision)}
    return {
        **fields,
        "limits": dataclasses.asdict(decision.limits),
        "configuration": plain(decision.configuration),
        "ties": [c.name for c in decision.ties],
        "others": [plain(c) for c in decision.others],
        "nearest": plain(decision.nearest),
        "relaxed": dict(decision.relaxed),
    }


def candidate_json(candidate):
    """What a program may want to know of a Candidate."""
    names = ("name", "strategy", "score", "score_error", "latency_ms", "latency_column")
    names += ("memory_gb", "serving_gb", "labels", "train_seconds")
    rows = candidate.configuration.rows if candidate.configuration else []
    fields = {name: getattr(candidate, name) for name in names}
    fields["degrees"] = None if math.isinf(candidate.degrees) else candidate.degrees  # of freedom of score_error
    return {**fields, "rows": [row["run_id"] for row in rows], "command": candidate.command}
