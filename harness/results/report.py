"""The report that plot_results.py writes from the rows: docs/report.md."""

import math
import re
import textwrap
from pathlib import Path

from harness.results import commands, compare, configurations, markdown, names, outputs, stats, tables

COLUMNS = (
    "configuration",
    "runs",
    "score",
    "labels",
    "ms a request (p50)",
    "peak GB",
    "training s",
    "MB trained",
    "rows",
)
DEGENERATE = re.compile("^all |could not be read|changed no")  # the remark in a note that says why a run is degenerate
METHOD = (
    "Runs that differ only in their seeds are one configuration: mean ± standard deviation over the runs, then a 95 % "
    "interval that covers the examples and the seeds. The p values of differences between strategies are adjusted for "
    "the number of comparisons (Benjamini and Hochberg), those between the worst and the best level of a flag for the "
    "number of pairs of levels (Bonferroni). Where the run folders lay beside the CSV, a test is paired over the "
    "examples; without them it uses the intervals alone, and its p is larger."
)


def write(path, all_rows, kept, skipped, charts, source, command):
    """Write the report: findings, a table and the charts of each panel, then the command of each row.

    kept, skipped: what configurations.select returns. charts: {Panel: {file: caption}}, as charts.draw returns them.
    source: the results CSV; run folders are looked for beside it. command: the one that writes this report.
    """
    path, folder = Path(path), Path(source).parent
    commits = sorted({row["git_commit"][:10] for row in kept if row["git_commit"]})
    hardware = sorted({row["device_name"] for row in kept})
    measured = f", code {', '.join(commits)}" if commits else ""
    lines = [
        "# Results",
        "",
        f"From {len(kept)} of {len(all_rows)} rows of `{Path(source).name}`, measured on {'; '.join(hardware)}"
        f"{measured}. Written by `{command}`.",
        "",
        METHOD,
    ]
    numbered = {row["run_id"]: i for i, row in enumerate(kept, start=1)}
    for panel, members in configurations.panels(kept).items():
        lines += section(panel, members, numbered, folder)
        for file, caption in charts.get(panel, {}).items():
            lines += ["", f"![{caption}]({link(file, path)})"]
    if skipped:
        lines += ["", "## Left out", "", *(f"- {line}" for line in left_out(skipped))]
    lines += ["", "## Rows and their commands", ""]
    lines += [f"{i}. `{row['run_id']}`: `{commands.command(row)}`" for i, row in enumerate(kept, start=1)]
    outputs.write(path, "\n".join(lines) + "\n", "report", "--report")


def section(panel, members, numbered, folder):
    """The lines of one panel: findings and the table of its configurations. numbered: {run id: number of the row}."""
    found = configurations.group_seeds(members)
    table = [
        [*cells(c), " ".join(str(numbered[row["run_id"]]) for row in c.rows)]
        for c in sorted(found, key=lambda c: -c.mean())
    ]
    return [
        "",
        f"## {panel.data}: {panel.metric}, n = {panel.n_eval}",
        "",
        f"{count(len(found), 'configuration')}, {count(len(members), 'run')}, on {panel.device}.",
        "",
        *findings(panel, found, folder),
        "",
        markdown.table(COLUMNS, table),
    ]


def count(n, what):
    return f"{n} {what}{'s' * (n != 1)}"


def link(file, page):
    """The path of a file as the page links it: relative where it lies below the page's folder."""
    file, folder = Path(file).resolve(), Path(page).resolve().parent
    return file.relative_to(folder) if file.is_relative_to(folder) else file


def left_out(skipped):
    """A line for each row that counts nowhere: its run id and why, shortened. skipped: [(run id, why)]."""
    lines = []
    for run_id, why in skipped:
        status, _, note = why.partition(": ")
        reason = next((remark for remark in note.split("; ") if DEGENERATE.search(remark)), note)
        why = ": ".join(filter(None, [status, reason if status == "status degenerate" else note]))
        lines.append(f"{run_id}: {textwrap.shorten(why, 100, placeholder=' ...')}")
    return lines


def cells(configuration):
    return [
        configuration.name,
        len(configuration.rows),
        tables.score_cell(configuration),
        tables.number(configuration.mean("labels_used"), 0),
        tables.number(configuration.mean("latency_ms_p50"), 0),
        tables.number(configuration.mean("memory"), 2),
        tables.number(configuration.mean("train_seconds"), 0),
        tables.number(configuration.mean("artifact_mb"), 1),
    ]


def findings(panel, found, folder):
    """What the rows of one panel show, as lines of Markdown. found: its Configurations."""
    usable = [c for c in found if c["variant"] not in configurations.BASELINES]
    if not usable:
        return ["Only baselines were measured here."]
    ranked = sorted(usable, key=lambda c: -c.mean())
    best = ranked[0]
    lines = [f"The highest score is that of **{best.name}**: {panel.metric} {tables.score_cell(best)}."]
    lines += against_the_best(best, ranked, folder)
    timed = [c for c in ranked if c.mean("latency_ms_p50")]
    frontier = [timed[i] for i in configurations.pareto([(c.mean("latency_ms_p50"), c.mean()) for c in timed])]
    if len(frontier) > 1:
        steps = [f"{c.name} ({c.mean('latency_ms_p50'):.0f} ms, {c.mean():.3f})" for c in frontier]
        lines.append(f"- Pareto frontier of latency and score, from the fastest to the best: {'; '.join(steps)}.")
    baseline = configurations.value(found[0].rows[0], "majority_baseline")
    below = [c.name for c in usable if baseline is not None and c.interval[0] is not None and c.interval[0] <= baseline]
    if below:
        lines.append(f"- Not above the majority class ({baseline:.3f}): {'; '.join(below)}.")
    return lines + [effect(flag, levels, folder) for flag, levels in compare.studies(found)]


def against_the_best(best, ranked, folder):
    """A line for the best of each other strategy: whether it differs from the best of all."""
    champions = {c["strategy"]: c for c in reversed(ranked)}
    others = [c for c in ranked if champions[c["strategy"]] is c and c is not best]
    known = [(c, test) for c in others if (test := compare.difference(best, c, folder)) is not None]
    lines = []
    for (other, test), p in zip(known, stats.adjusted([test for _, test in known])):
        certain = p < stats.SIGNIFICANT
        shown = "is below it" if certain else f"cannot be told apart from it with n = {test.n}"
        strategy = names.STRATEGIES.get(other["strategy"], other["strategy"])
        lines.append(
            f"- Best of {strategy}: {other.name} ({tables.score_cell(other)}) {shown}: {test.delta:+.3f}, p = {p:.2g} "
            f"({test.test}){'' if certain else test.settle()}."
        )
    return lines


def effect(flag, levels, folder):
    """A line about a flag: the score at each level, and whether the best level differs from the worst."""
    means = [configuration.mean() for _, configuration in levels]
    low, high = levels[means.index(min(means))], levels[means.index(max(means))]
    test, verdict = compare.difference(low[1], high[1], folder), ""
    if test is not None:
        p = min(1.0, test.p * math.comb(len(levels), 2))  # the worst and the best of all pairs of levels (Bonferroni)
        shown = "." if p < stats.SIGNIFICANT else ", not a difference that these runs can show."
        verdict = f" Between {low[0]} and {high[0]}: {test.delta:+.3f}, p = {p:.2g}{shown}"
    scores = [
        f"{level}: {configuration.mean():.3f}" + (f" ± {configuration.spread():.3f}" if configuration.spread() else "")
        for level, configuration in levels
    ]
    shared = names.shared([configuration.rows[0] for _, configuration in levels])
    return f"- By {compare.STUDIES[flag]} ({shared}): {', '.join(scores)}.{verdict}"
