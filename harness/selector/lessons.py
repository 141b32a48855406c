"""What the measured rows say about a strategy in general, for a question about data that none of them measures."""

import math
import statistics
from pathlib import Path

from harness.results import configurations
from harness.selector import rules
from harness.selector.candidates import eligible, latency_column


def lessons(rows, task, choice, limits, data_size):
    """Sentences on the recommended strategy: against each other strategy, and what it scored and took.

    data_size: configurations that used more labels are left out.
    """
    alike = [row for row in rows if configurations.task_kind(row) == task]
    panels = {
        panel: [c for c in configurations.group_seeds(members) if eligible(c) and within(c, data_size)]
        for panel, members in configurations.panels(alike).items()
    }
    compared = [against(panels, choice, other) for other in rules.NEEDS if other != choice]
    return [*filter(None, compared), *ranges(panels, choice, limits)]


def within(configuration, data_size):
    """True if its labels are known and no more than data_size."""
    used = configuration.mean("labels_used")
    return used is not None and used <= data_size


def against(panels, choice, other):
    """On how many data sets a strategy was ahead of another one, in words; None if no data set measures both."""
    gaps = {}  # data set -> [(difference of the mean scores, its standard error)], one for each panel and model
    for panel, members in panels.items():
        for model in dict.fromkeys(c["model"] for c in members):
            first, second = ([c for c in members if (c.strategy, c["model"]) == (s, model)] for s in (choice, other))
            gap = difference(first, second)
            if gap:
                gaps.setdefault(panel.data, []).append(gap)
    if not gaps:
        return None
    means = [tuple(map(statistics.fmean, zip(*pairs))) for pairs in gaps.values()]
    ahead, clearly, behind = (
        sum(test) for test in zip(*((gap > 0, gap > 1.96 * error, gap < -1.96 * error) for gap, error in means))
    )
    name = "closed-book prompting" if (choice, other) == ("rag", "prompting") else rules.NAMES[other]
    text = f"{rules.NAMES[choice]} was ahead of {name} on {ahead} of {len(gaps)} data sets"
    text += f", by more than the noise on {clearly}" if ahead else ""
    text += f", behind by more than the noise on {behind}" if behind else ""
    return f"{text} ({', '.join(gaps)}; means over configurations of the same base model)"


def difference(first, second):
    """(difference of the mean scores, its standard error) of two strategies on the same examples with the same model.

    first, second: their Configurations. The means are over all of them: the score of the best one would be biased by
    its choice. Of a trained strategy only those with the most labels count; two trained ones are compared at the
    largest number of labels that both were measured with. None if nothing is comparable.
    """
    trained = [side for side in (first, second) if side and side[0].strategy in rules.MIN_LABELS]
    shared = set.intersection(*({c.mean("labels_used") for c in side} for side in trained)) if trained else {0}
    if not first or not second or not shared:
        return None
    means, errors = [], []
    for side in (first, second):
        some = [c for c in side if c.strategy not in rules.MIN_LABELS or c.mean("labels_used") == max(shared)]
        means.append(statistics.fmean(c.mean() for c in some))
        errors.append(statistics.fmean(c.standard_error or 0.0 for c in some))  # same examples: no averaging out
    return means[0] - means[1], math.hypot(*errors)


def ranges(panels, choice, limits):
    """[what a strategy scored and took over all rows, and the limits that none of them meets]; [] without rows."""
    members = [c for group in panels.values() for c in group if c.strategy == choice]
    if not members:
        return []
    scores = {}
    for c in members:
        scores.setdefault(c["metric"], []).append(c.mean())
    times = [c.mean(latency_column(c, limits.cached)) for c in members]
    times = [time for time in times if time is not None]
    scored = " and ".join(f"{metric} {span(values, '.2f')}" for metric, values in scores.items())
    text = f"{rules.NAMES[choice]} scored {scored}"
    text += f" and took {span(times, ',.0f')} ms a request (median)" if times else ""
    models, devices = ({c[column] for c in members} for column in ("model", "device_name"))
    named = ", ".join(sorted(Path(model).name if model else "no model" for model in models))
    text += f", with {named} on {', '.join(sorted(devices))}"
    missed = []
    if limits.latency_ms is not None and times and min(times) > limits.latency_ms:
        missed.append(f"answered within {limits.latency_ms:g} ms")
    if limits.required_accuracy is not None and max(map(max, scores.values())) < limits.required_accuracy:
        missed.append(f"reached {limits.required_accuracy:g}")
    return [text + (f"; none {' or '.join(missed)}" if missed else "")]


def span(values, form):
    """'0.06 to 0.18' of numbers; one number if both ends look the same."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"
