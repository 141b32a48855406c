"""Are two runs or configurations different on the same examples? And the report that plot_results.py writes from the rows.

Where the run folders are there, differences are tested on the same examples, pair by pair; else by the intervals alone, which sees less.
"""

import json
import math
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import metrics
import rows as table
import utils

# flags whose effect is told where nothing else differs: (flag, what it is called)
STUDIES = {"max_train_samples": "labelled examples", "k_shots": "demonstrations", "rank": "rank", "target_modules": "target modules",
           "precision": "precision", "method": "method", "quantize": "quantized base", "k": "passages"}  # fmt: skip
SIGNIFICANT = 0.05


# -------------------------------------------------------------------------------------------------------------- the paired test


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
    name = f"{row['strategy']} {row['variant']}, {Path(row['model']).name}" + (f", {used} labelled examples" if used else "")
    row["targets"] = {record["id"]: record.get("target") for record in records}
    return {key: value for key, value in scores.items() if value is not None}, metric, row, name


@dataclass(frozen=True)
class Difference:
    """second - first."""

    delta: float
    low: float | None
    high: float | None
    p: float
    test: str
    n: int
    needed: int | None = None  # examples that would show it, if it is what was seen
    wants_seeds: bool = False  # no number of examples would, without more seeds

    def verdict(self, names=("the first", "the second")):
        """One clause, as one would say it."""
        if self.p < SIGNIFICANT:
            return f"{names[1] if self.delta > 0 else names[0]} is better"
        if not self.delta:
            return f"no difference at all on {self.n} examples"
        return f"no difference that n = {self.n} can show{self.settle()}"

    def settle(self):
        """What would settle it, with a semicolon before; nothing where that is not known."""
        if self.wants_seeds and self.p >= SIGNIFICANT:
            return "; more seeds would settle it, not more examples"
        return f"; about {self.needed:,} examples would settle it, if the difference is what was seen" if self.needed else ""


def paired(first, second):
    """The Difference of two lists of scores of the same examples [N]: McNemar's exact test for 0 and 1, else the paired bootstrap."""
    delta, low, high, p = metrics.paired_difference(first, second)
    test = "paired bootstrap"
    if set(first) | set(second) <= {0.0, 1.0}:
        p, only_first, only_second = metrics.mcnemar(first, second)
        test = f"McNemar's exact test, {only_first} right only in the first, {only_second} only in the second"
    return Difference(delta, low, high, p, test, len(first), metrics.examples_needed(first, second) if p >= SIGNIFICANT else None)


def compare(first, second):
    """Print whether two runs differ on the examples that both have scored, and how many examples would settle it."""
    (a, metric, row_a, name_a), (b, other, row_b, name_b) = run_scores(first), run_scores(second)
    if metric != other:
        raise utils.UserError(f"the runs are scored by {metric} and by {other}, which cannot be compared")
    ids = [key for key in a if key in b]
    if not ids or any(row_a["targets"][key] != row_b["targets"][key] for key in ids):
        raise utils.UserError(f"the runs have no examples in common: {row_a['dataset']} and {row_b['dataset']}")
    one, two = [a[key] for key in ids], [b[key] for key in ids]
    n, found = len(ids), paired(one, two)
    print(f"first:  {name_a}, {metric} {sum(one) / n:.3f}  ({first})")
    print(f"second: {name_b}, {metric} {sum(two) / n:.3f}  ({second})")
    if len(a) != n or len(b) != n:
        print(f"on the {n} examples that both have; {len(a) - n} and {len(b) - n} others left out")
    if found.p == 1.0 and not found.delta:
        print(f"the two have the same score on all {n} examples" if one == two else f"no difference at all in the mean of {n} examples")
        return
    interval = "" if found.low is None else f" [{found.low:+.3f}, {found.high:+.3f}]"
    print(f"second - first: {found.delta:+.3f}{interval}, p = {found.p:.3g} ({found.test})")
    if table.same_configuration(*({**dict.fromkeys(utils.RESULT_COLUMNS, ""), **row} for row in (row_a, row_b))):
        print("no difference between ways: the two are runs of one configuration with other seeds, and this is what the seeds change")
        return
    share = f"{found.p:.1%}" if found.p >= 0.001 else "less than 0.1%"
    chance = f": chance alone would do this in {share} of such pairs" if found.p < SIGNIFICANT else ""
    print(found.verdict() + chance + "; what other seeds would change is not in this")


def _each(configuration, folder):
    """{example id: mean score over the seeds}, None where a run folder is not there. folder: that of the CSV."""
    found = []
    for row in configuration.rows:
        try:
            found.append(run_scores(table.run_folder(row, folder))[0])
        except utils.UserError:
            return None
    return {key: sum(scores[key] for scores in found) / len(found) for key in found[0] if all(key in scores for scores in found)}


def difference(first, second, folder="."):
    """The Difference of two configurations of a panel; None where nothing is known of their errors.

    One run each with its folder: as `paired`. Several seeds: a t test of the paired difference, whose variance is that of the examples
    and that of the seeds, with Welch's degrees of freedom; a single run is given the other side's spread. Without the folders: the same
    of the two scores as if they were of different examples.
    """
    from scipy.stats import norm, t

    a, b = _each(first, folder), _each(second, folder)
    n = first.n_eval or 2
    spreads = [c.spread() if c.spread() is not None else other.spread() for c, other in ((first, second), (second, first))]
    many = max(len(first.rows), len(second.rows)) - 1
    seeds = [(s**2 / len(c.rows), max(len(c.rows) - 1, 0) or many) for s, c in zip(spreads, (first, second)) if s]
    if a and b and set(a) == set(b):
        one, two = [a[key] for key in a], [b[key] for key in a]
        if len(first.rows) == len(second.rows) == 1:
            return paired(one, two)
        differences = [y - x for x, y in zip(one, two)]
        mean, n = sum(differences) / len(differences), len(differences)
        examples = [(sum((d - mean) ** 2 for d in differences) / (n - 1) / n, n - 1)]
        test = "paired over the examples, with the spread of the seeds"
    else:
        if first.standard_error is None or second.standard_error is None:
            return None
        mean, test = second.mean() - first.mean(), "from the intervals, without the run folders"
        examples = [c.variances()[0] for c in (first, second) if table.value(c.rows[0], "score_low") is not None]
    variances = [*examples, *seeds]
    error, reach = math.sqrt(sum(variance for variance, _ in variances)), table.quantile(variances)
    p = 2 * float(t.sf(abs(mean) / error, table.degrees_of_freedom(variances))) if error else 1.0
    # what more examples cannot take away is the seeds' part
    room = (mean / (norm.ppf(0.975) + norm.ppf(0.8))) ** 2 - sum(variance for variance, _ in seeds)
    needed = math.ceil(n * sum(variance for variance, _ in examples) / room) if room > 0 and p >= SIGNIFICANT else None
    return Difference(mean, mean - reach * error, mean + reach * error, p, test, n, needed, bool(seeds) and room <= 0)


def adjusted(differences):
    """The p of several Differences after Benjamini and Hochberg (1995, scipy): with many pairs some differ by chance."""
    from scipy.stats import false_discovery_control

    return list(false_discovery_control([found.p for found in differences])) if differences else []


def studies(found):
    """[(flag, [(level, configuration)])]: configurations of a panel that differ in one flag of STUDIES alone, three levels or more."""
    answers = []
    for flag in STUDIES:
        groups = {}
        for configuration in found:
            if configuration.flag(flag) is None:
                continue
            kept = {key: value for key, value in table.flags(configuration.rows[0]).items() if key not in (*table.CHANGES_NOTHING, flag)}
            key = configuration["script"], json.dumps(kept, sort_keys=True)
            groups.setdefault(key, []).append((configuration.flag(flag), configuration))
        for levels in groups.values():
            if len(levels) > 2:
                numbers = all(isinstance(level, (int, float)) for level, _ in levels)
                answers.append((flag, sorted(levels, key=lambda pair: pair[0]) if numbers else levels))
    return answers


# ------------------------------------------------------------------------------------------------------------------- the report


def number(found, digits=3):
    """A number as text, nothing where it is unknown."""
    return "" if found is None else f"{found:.{digits}f}"


def score_cell(configuration):
    """Mean score ± standard deviation over the seeds [95 % interval], as far as they are known."""
    low, high = configuration.interval
    interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
    spread = configuration.spread()
    return f"{configuration.mean():.3f}" + (f" ± {spread:.3f}" if spread is not None else "") + interval


def _cells(configuration):
    many = f"{len(configuration.rows)}" if len(configuration.rows) > 1 else "1"
    return [configuration.name, many, score_cell(configuration), number(configuration.mean("labels_used"), 0),
            number(configuration.mean("latency_ms_p50"), 0), number(configuration.mean("memory"), 2),
            number(configuration.mean("train_seconds"), 0), number(configuration.mean("artifact_mb"), 1)]  # fmt: skip


def _findings(panel, found, folder):
    """What a colleague would say about one panel: lines of Markdown."""
    usable = [c for c in found if c["variant"] not in table.BASELINES]
    if not usable:
        return ["Only baselines were measured here."]
    ranked = sorted(usable, key=lambda c: -c.mean())
    best, lines = ranked[0], []
    lines.append(f"The highest score is that of **{best.name}**: {panel.metric} {score_cell(best)}.")
    champions = [
        max((c for c in usable if c["strategy"] == s), key=lambda c: c.mean()) for s in dict.fromkeys(c["strategy"] for c in usable)
    ]
    others = [c for c in sorted(champions, key=lambda c: -c.mean()) if c is not best]
    tests = [(c, difference(best, c, folder)) for c in others]
    known = [(c, d) for c, d in tests if d is not None]
    for (other, test), p in zip(known, adjusted([d for _, d in known])):
        shown = "is behind it" if p < SIGNIFICANT else f"cannot be told apart from it with n = {test.n}"
        settle = test.settle() if p >= SIGNIFICANT else ""
        lines.append(
            f"- The best of {other['strategy']}, {other.name} ({score_cell(other)}), {shown}: {test.delta:+.3f}, p = {p:.2g} "
            f"({test.test}){settle}."
        )
    fastest = [c for c in ranked if c.mean("latency_ms_p50")]
    frontier = table.pareto([(c.mean("latency_ms_p50"), c.mean()) for c in fastest])
    if len(frontier) > 1:
        steps = [f"{fastest[i].name} ({fastest[i].mean('latency_ms_p50'):.0f} ms, {fastest[i].mean():.3f})" for i in frontier]
        lines.append(f"- From the fastest to the best, with nothing both faster and better: {'; '.join(steps)}.")
    baseline = table.value(found[0].rows[0], "majority_baseline")
    below = [c.name for c in usable if baseline is not None and c.interval[0] is not None and c.interval[0] <= baseline]
    if below:
        lines.append(f"- Not above always answering the commonest class ({baseline:.3f}): {'; '.join(below)}.")
    for flag, levels in studies(found):
        means = [configuration.mean() for _, configuration in levels]
        low, high = levels[means.index(min(means))], levels[means.index(max(means))]
        test, said = difference(low[1], high[1], folder), ""
        if test is not None:
            p = min(1.0, test.p * math.comb(len(levels), 2))  # the worst and the best of so many levels (Bonferroni)
            shown = "." if p < SIGNIFICANT else ", no difference that these runs can show."
            said = f" Between {low[0]} and {high[0]}: {test.delta:+.3f}, p = {p:.2g}{shown}"
        told = ", ".join(f"{level}: {configuration.mean():.3f}" + (f" ± {configuration.spread():.3f}" if configuration.spread() else "")
                         for level, configuration in levels)  # fmt: skip
        first = levels[0][1]
        lines.append(f"- By {STUDIES[flag]} ({first['strategy']}, {Path(first['model']).name}): {told}.{said}")
    return lines


def write(path, all_rows, kept, skipped, charts, source):
    """RESULTS.md: findings, tables, charts, and the command of each row. charts: {chart file: caption}; source: the CSV's name."""
    path, folder = Path(path), Path(source).parent
    commits = sorted({row["git_commit"][:10] for row in kept if row["git_commit"]})
    hardware = sorted({row["device_name"] for row in kept})
    lines = ["# Results", "", f"From {len(kept)} of {len(all_rows)} rows of `{Path(source).name}`, measured on {'; '.join(hardware)}, code "
             f"{', '.join(commits) or 'of unknown commits'}. Written by `python plot_results.py --results {Path(source).name} --report "
             f"{path.name}`.", "",
             "Rows that differ in their seeds alone are one configuration: mean ± standard deviation over the runs, then a 95 % interval "
             "that counts the examples and the seeds. Differences between strategies carry p values adjusted for how many are looked at "
             "(Benjamini and Hochberg), those between the worst and the best level of a flag for the number of pairs of levels "
             "(Bonferroni)."]  # fmt: skip
    numbered = {row["run_id"]: i for i, row in enumerate(kept, start=1)}
    for panel, members in table.panels(kept).items():
        found = table.configurations(members)
        lines += ["", f"## {panel.data}: {panel.metric}, n = {panel.n_eval}", "",
                  f"{len(found)} configurations, {len(members)} runs, on {panel.device}.", "",
                  *_findings(panel, found, folder), "",
                  "| configuration | runs | score | labels | ms a request (p50) | peak GB | training s | MB trained | rows |",
                  "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
        for configuration in sorted(found, key=lambda c: -c.mean()):
            where = " ".join(str(numbered[row["run_id"]]) for row in configuration.rows)
            lines.append("| " + " | ".join([*_cells(configuration), where]) + " |")
    if charts:
        lines += ["", "## Charts", ""]
        for file, caption in charts.items():
            shown = Path(file).resolve()
            shown = shown.relative_to(path.resolve().parent) if shown.is_relative_to(path.resolve().parent) else shown
            lines += [f"![{caption}]({shown})", ""]
    if skipped:
        lines += ["", "## Left out", "", *(f"- {run_id}: {why}" for run_id, why in skipped)]
    lines += ["", "## Rows and their commands", ""]
    lines += [f"{i}. `{row['run_id']}`: `{table.command(row)}`" for i, row in enumerate(kept, start=1)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


TEXT = {"run_id", "created_at", "script", "strategy", "variant", "model", "dataset", "subset", "split", "eval_id", "precision",
        "device", "device_name", "metric", "status", "note", "input_id", "code_id", "git_commit", "git_dirty",
        "versions", "args", "run_dir"}  # fmt: skip


def export(path, found):
    """The rows as a SQLite database with one table, `results`, or as JSON, by the file's ending; numbers as numbers, unknown as null."""
    path = Path(path)
    typed = [{name: (cell or None) if name in TEXT else _typed(cell) for name, cell in row.items()} for row in found]
    if path.suffix == ".json":
        path.write_text(json.dumps(typed, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return
    path.unlink(missing_ok=True)
    kinds = {name: "TEXT" if name in TEXT else "NUMERIC" for name in utils.RESULT_COLUMNS}
    with sqlite3.connect(path) as database:
        database.execute(f"CREATE TABLE results ({', '.join(f'{name} {kind}' for name, kind in kinds.items())})")
        places = ", ".join("?" * len(kinds))
        database.executemany(f"INSERT INTO results VALUES ({places})", [[row[name] for name in kinds] for row in typed])
    database.close()


def _typed(cell):
    """A cell as a whole number or a number, None where it is empty or not finite."""
    found = utils.number(cell)
    if found is None or not math.isfinite(found):
        return None
    return int(found) if found.is_integer() and "." not in cell else found
