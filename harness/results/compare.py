"""Are two runs or configurations different on the same examples? Which configurations differ in one flag alone?"""

import json
from pathlib import Path

import utils
from harness.results import configurations, label_counts, schema, stats, store

# flags whose effect is reported where configurations differ in nothing else: flag -> its name in text
STUDIES = {
    "label_budget": "label budget",
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
    """({example id: score}, metric, row, name) of a run folder. row has {example id: target} as `targets` too.

    UserError where the folder has no row.json and predictions.jsonl, or the run has no score.
    """
    folder = Path(folder)
    missing = [name for name in ("row.json", "predictions.jsonl") if not (folder / name).is_file()]
    if missing:
        raise utils.UserError(f"{folder} is no run folder: it has no {' and no '.join(missing)}")
    try:
        row = json.loads((folder / "row.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise utils.UserError(f"{folder} is no run folder: row.json cannot be read: {error}") from None
    records = store.read_jsonl(folder / "predictions.jsonl")
    metric = row.get("metric")
    if row.get("status") not in ("ok", "degenerate") or not records:
        raise utils.UserError(f"{folder}: the run's status is {row.get('status')}, so there is nothing to compare")
    scores = {record["id"]: _score(record, metric) for record in records}
    row["targets"] = {record["id"]: record.get("target") for record in records}
    labels = row["labels_used"] if "labels_used" in row else label_counts.derived(row)
    name = f"{row['strategy']} {row['variant']}, {Path(row['model']).name}"
    name += f", {labels} labelled examples" if labels not in (None, "", "0", 0) else ""
    return {key: score for key, score in scores.items() if score is not None}, metric, row, name


def _score(record, metric):
    """The score of one line of predictions.jsonl by the run's metric, None without one."""
    scores = record.get("scores") or {}
    if metric == "accuracy":  # of labels, or of options, whose exact match is there
        return scores.get("exact_match", float(record["prediction"] == record["target"]))
    return scores.get(metric, record.get(metric))


def compare_runs(first, second):
    """Print whether two runs differ on the examples that both have scored, and how many examples would settle it."""
    (a, metric, row_a, name_a), (b, other_metric, row_b, name_b) = run_scores(first), run_scores(second)
    if metric != other_metric:
        raise utils.UserError(f"the runs are scored by {metric} and by {other_metric}, which cannot be compared")
    ids = [key for key in a if key in b]
    if not ids or any(row_a["targets"][key] != row_b["targets"][key] for key in ids):
        raise utils.UserError(f"the runs have no examples in common: {row_a['dataset']} and {row_b['dataset']}")
    one, two = [a[key] for key in ids], [b[key] for key in ids]
    n, difference_of_two = len(ids), stats.paired(one, two)
    print(f"first:  {name_a}, {metric} {sum(one) / n:.3f}  ({first})")
    print(f"second: {name_b}, {metric} {sum(two) / n:.3f}  ({second})")
    if len(a) != n or len(b) != n:
        print(f"on the {n} examples that both have; {len(a) - n} and {len(b) - n} others left out")
    print(_verdict(difference_of_two, row_a, row_b, one == two))


def _verdict(test, row_a, row_b, all_equal):
    """Lines on the Difference of two runs. all_equal: their scores are the same on every example."""
    if test.p == 1.0 and not test.delta:
        if all_equal:
            return f"the two have the same score on all {test.n} examples"
        return f"no difference at all in the mean of {test.n} examples"
    interval = "" if test.low is None else f" [{test.low:+.3f}, {test.high:+.3f}]"
    line = f"second - first: {test.delta:+.3f}{interval}, p = {test.p:.3g} ({test.test})\n"
    empty = dict.fromkeys(schema.RESULT_COLUMNS, "")
    if configurations.same_configuration({**empty, **row_a}, {**empty, **row_b}):
        return line + (
            "no difference between configurations: the two are runs of one configuration with other seeds, and this is "
            "what the seeds change"
        )
    chance = ""
    if test.p < stats.SIGNIFICANT:
        share = f"{test.p:.1%}" if test.p >= 0.001 else "less than 0.1%"
        chance = f": chance alone would do this in {share} of such pairs"
    return f"{line}{test.verdict()}{chance}; what other seeds would change is not in this"


def example_scores(configuration, folder):
    """{example id: mean score over the seeds} of a Configuration; None where a run folder is missing.

    folder: that of the CSV, to which run folders may be relative.
    """
    runs = []
    for row in configuration.rows:
        try:
            runs.append(run_scores(configurations.run_folder(row, folder))[0])
        except utils.UserError:
            return None
    shared = [key for key in runs[0] if all(key in scores for scores in runs)]
    return {key: sum(scores[key] for scores in runs) / len(runs) for key in shared}


def difference(first, second, folder="."):
    """The stats.Difference of two Configurations of a panel; None where nothing is known of their errors.

    With the run folders, one run each: stats.paired. With several seeds: a t test of the paired difference, whose
    variance is that of the examples and that of the seeds; a single run is given the other side's spread. Without the
    folders: the same from the rows' intervals, as if the two were scored on different examples. folder: of the CSV.
    """
    a, b = example_scores(first, folder), example_scores(second, folder)
    seeds = _seed_variances(first, second)
    if a and b and set(a) == set(b):
        one, two = [a[key] for key in a], [b[key] for key in a]
        if len(first.rows) == len(second.rows) == 1:
            return stats.paired(one, two)
        differences = [y - x for x, y in zip(one, two)]
        mean, n = sum(differences) / len(differences), len(differences)
        examples = [(sum((d - mean) ** 2 for d in differences) / (n - 1) / n, n - 1)]
        return stats.from_variances(mean, examples, seeds, n, "paired over the examples, with the spread of the seeds")
    if first.standard_error is None or second.standard_error is None:
        return None
    examples = [c.variances()[0] for c in (first, second) if configurations.value(c.rows[0], "score_low") is not None]
    mean, test = second.mean() - first.mean(), "from the intervals, without the run folders"
    return stats.from_variances(mean, examples, seeds, first.n_eval or 2, test)


def _seed_variances(first, second):
    """[(variance of the mean over the seeds, degrees of freedom)] of two Configurations, those that are known."""
    most = max(len(first.rows), len(second.rows)) - 1  # degrees of a spread that a single run borrows
    variances = []
    for c, other in ((first, second), (second, first)):
        spread = other.spread() if c.spread() is None else c.spread()
        if spread:
            variances.append((spread**2 / len(c.rows), max(len(c.rows) - 1, 0) or most))
    return variances


def studies(members):
    """Configurations of a panel that differ in one flag of STUDIES alone: [(flag, [(level, Configuration)])].

    At least three levels, in order where they are numbers.
    """
    result = []
    for flag in STUDIES:
        groups = {}
        for configuration in members:
            level = configuration.flag(flag)
            if level is None:
                continue
            settings = configurations.flags(configuration.rows[0])
            ignored = (*configurations.CHANGES_NOTHING, flag)
            kept = {key: value for key, value in settings.items() if key not in ignored}
            key = configuration["script"], json.dumps(kept, sort_keys=True)
            groups.setdefault(key, []).append((level, configuration))
        for levels in groups.values():
            if len(levels) > 2:
                numbers = all(isinstance(level, (int, float)) for level, _ in levels)
                result.append((flag, sorted(levels, key=lambda pair: pair[0]) if numbers else levels))
    return result
