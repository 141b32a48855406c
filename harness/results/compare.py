"""Are two runs or configurations different on the same examples?"""

import json
import math
from pathlib import Path

from scipy.stats import norm, t

import utils
from harness.results import configurations, schema, stats

# flags whose effect is told where nothing else differs: (flag, what it is called)
STUDIES = {
    "max_train_samples": "labelled examples",
    "k_shots": "demonstrations",
    "rank": "rank",
    "target_modules": "target modules",
    "precision": "precision",
    "method": "method",
    "quantize": "quantized base",
    "k": "passages",
}


def run_scores(folder):
    """({example id: score}, metric, row, what the run is called) of a run folder; UserError where it has no predictions."""
    folder = Path(folder)
    try:
        row = json.loads((folder / "row.json").read_text(encoding="utf-8"))
        records = [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise utils.UserError(f"{folder} is no run folder with row.json and predictions.jsonl: {error}") from None
    metric = row.get("metric")
    if row.get("status") not in ("ok", "degenerate") or not records:
        raise utils.UserError(f"{folder}: the run's status is {row.get('status')}, so there is nothing to compare")

    def score(record):
        each = record.get("scores") or {}
        if metric == "accuracy":  # of labels, or of options, whose exact match is there
            return each.get("exact_match", float(record["prediction"] == record["target"]))
        return each.get(metric, record.get(metric))

    scores = {record["id"]: score(record) for record in records}
    used = row.get("n_train") or row.get("k_shots")
    name = f"{row['strategy']} {row['variant']}, {Path(row['model']).name}" + (
        f", {used} labelled examples" if used else ""
    )
    row["targets"] = {record["id"]: record.get("target") for record in records}
    return {key: value for key, value in scores.items() if value is not None}, metric, row, name


def compare_runs(first, second):
    """Print whether two runs differ on the examples that both have scored, and how many examples would settle it."""
    (a, metric, row_a, name_a), (b, other, row_b, name_b) = run_scores(first), run_scores(second)
    if metric != other:
        raise utils.UserError(f"the runs are scored by {metric} and by {other}, which cannot be compared")
    ids = [key for key in a if key in b]
    if not ids or any(row_a["targets"][key] != row_b["targets"][key] for key in ids):
        raise utils.UserError(f"the runs have no examples in common: {row_a['dataset']} and {row_b['dataset']}")
    one, two = [a[key] for key in ids], [b[key] for key in ids]
    n, found = len(ids), stats.paired(one, two)
    print(f"first:  {name_a}, {metric} {sum(one) / n:.3f}  ({first})")
    print(f"second: {name_b}, {metric} {sum(two) / n:.3f}  ({second})")
    if len(a) != n or len(b) != n:
        print(f"on the {n} examples that both have; {len(a) - n} and {len(b) - n} others left out")
    if found.p == 1.0 and not found.delta:
        print(
            f"the two have the same score on all {n} examples"
            if one == two
            else f"no difference at all in the mean of {n} examples"
        )
        return
    interval = "" if found.low is None else f" [{found.low:+.3f}, {found.high:+.3f}]"
    print(f"second - first: {found.delta:+.3f}{interval}, p = {found.p:.3g} ({found.test})")
    if configurations.same_configuration(
        *({**dict.fromkeys(schema.RESULT_COLUMNS, ""), **row} for row in (row_a, row_b))
    ):
        print(
            "no difference between ways: the two are runs of one configuration with other seeds, and this is what the seeds change"
        )
        return
    share = f"{found.p:.1%}" if found.p >= 0.001 else "less than 0.1%"
    chance = f": chance alone would do this in {share} of such pairs" if found.p < stats.SIGNIFICANT else ""
    print(found.verdict() + chance + "; what other seeds would change is not in this")


def example_scores(configuration, folder):
    """{example id: mean score over the seeds}, None where a run folder is not there. folder: that of the CSV."""
    found = []
    for row in configuration.rows:
        try:
            found.append(run_scores(configurations.run_folder(row, folder))[0])
        except utils.UserError:
            return None
    return {
        key: sum(scores[key] for scores in found) / len(found)
        for key in found[0]
        if all(key in scores for scores in found)
    }


def difference(first, second, folder="."):
    """The Difference of two configurations of a panel; None where nothing is known of their errors.

    One run each with its folder: as `paired`. Several seeds: a t test of the paired difference, whose variance is that of the examples
    and that of the seeds, with Welch's degrees of freedom; a single run is given the other side's spread. Without the folders: the same
    of the two scores as if they were of different examples.
    """
    a, b = example_scores(first, folder), example_scores(second, folder)
    n = first.n_eval or 2
    spreads = [
        c.spread() if c.spread() is not None else other.spread() for c, other in ((first, second), (second, first))
    ]
    many = max(len(first.rows), len(second.rows)) - 1
    seeds = [(s**2 / len(c.rows), max(len(c.rows) - 1, 0) or many) for s, c in zip(spreads, (first, second)) if s]
    if a and b and set(a) == set(b):
        one, two = [a[key] for key in a], [b[key] for key in a]
        if len(first.rows) == len(second.rows) == 1:
            return stats.paired(one, two)
        differences = [y - x for x, y in zip(one, two)]
        mean, n = sum(differences) / len(differences), len(differences)
        examples = [(sum((d - mean) ** 2 for d in differences) / (n - 1) / n, n - 1)]
        test = "paired over the examples, with the spread of the seeds"
    else:
        if first.standard_error is None or second.standard_error is None:
            return None
        mean, test = second.mean() - first.mean(), "from the intervals, without the run folders"
        examples = [
            c.variances()[0] for c in (first, second) if configurations.value(c.rows[0], "score_low") is not None
        ]
    variances = [*examples, *seeds]
    error, reach = math.sqrt(sum(variance for variance, _ in variances)), stats.quantile(variances)
    p = 2 * float(t.sf(abs(mean) / error, stats.degrees_of_freedom(variances))) if error else 1.0
    # what more examples cannot take away is the seeds' part
    room = (mean / (norm.ppf(0.975) + norm.ppf(0.8))) ** 2 - sum(variance for variance, _ in seeds)
    needed = (
        math.ceil(n * sum(variance for variance, _ in examples) / room) if room > 0 and p >= stats.SIGNIFICANT else None
    )
    return stats.Difference(
        mean, mean - reach * error, mean + reach * error, p, test, n, needed, bool(seeds) and room <= 0
    )


def studies(found):
    """[(flag, [(level, configuration)])]: configurations of a panel that differ in one flag of STUDIES alone, three levels or more."""
    answers = []
    for flag in STUDIES:
        groups = {}
        for configuration in found:
            if configuration.flag(flag) is None:
                continue
            kept = {
                key: value
                for key, value in configurations.flags(configuration.rows[0]).items()
                if key not in (*configurations.CHANGES_NOTHING, flag)
            }
            key = configuration["script"], json.dumps(kept, sort_keys=True)
            groups.setdefault(key, []).append((configuration.flag(flag), configuration))
        for levels in groups.values():
            if len(levels) > 2:
                numbers = all(isinstance(level, (int, float)) for level, _ in levels)
                answers.append((flag, sorted(levels, key=lambda pair: pair[0]) if numbers else levels))
    return answers
