"""The report that plot_results.py writes from the rows."""

import math
from pathlib import Path

from harness.results import commands, compare, configurations, stats, tables


def _cells(configuration):
    many = f"{len(configuration.rows)}" if len(configuration.rows) > 1 else "1"
    return [
        configuration.name,
        many,
        tables.score_cell(configuration),
        tables.number(configuration.mean("labels_used"), 0),
        tables.number(configuration.mean("latency_ms_p50"), 0),
        tables.number(configuration.mean("memory"), 2),
        tables.number(configuration.mean("train_seconds"), 0),
        tables.number(configuration.mean("artifact_mb"), 1),
    ]


def _findings(panel, found, folder):
    """What a colleague would say about one panel: lines of Markdown."""
    usable = [c for c in found if c["variant"] not in configurations.BASELINES]
    if not usable:
        return ["Only baselines were measured here."]
    ranked = sorted(usable, key=lambda c: -c.mean())
    best, lines = ranked[0], []
    lines.append(f"The highest score is that of **{best.name}**: {panel.metric} {tables.score_cell(best)}.")
    champions = [
        max((c for c in usable if c["strategy"] == s), key=lambda c: c.mean())
        for s in dict.fromkeys(c["strategy"] for c in usable)
    ]
    others = [c for c in sorted(champions, key=lambda c: -c.mean()) if c is not best]
    tests = [(c, compare.difference(best, c, folder)) for c in others]
    known = [(c, d) for c, d in tests if d is not None]
    for (other, test), p in zip(known, stats.adjusted([d for _, d in known])):
        shown = "is behind it" if p < stats.SIGNIFICANT else f"cannot be told apart from it with n = {test.n}"
        settle = test.settle() if p >= stats.SIGNIFICANT else ""
        lines.append(
            f"- The best of {other['strategy']}, {other.name} ({tables.score_cell(other)}), {shown}: {test.delta:+.3f}, p = {p:.2g} "
            f"({test.test}){settle}."
        )
    fastest = [c for c in ranked if c.mean("latency_ms_p50")]
    frontier = configurations.pareto([(c.mean("latency_ms_p50"), c.mean()) for c in fastest])
    if len(frontier) > 1:
        steps = [
            f"{fastest[i].name} ({fastest[i].mean('latency_ms_p50'):.0f} ms, {fastest[i].mean():.3f})" for i in frontier
        ]
        lines.append(f"- From the fastest to the best, with nothing both faster and better: {'; '.join(steps)}.")
    baseline = configurations.value(found[0].rows[0], "majority_baseline")
    below = [c.name for c in usable if baseline is not None and c.interval[0] is not None and c.interval[0] <= baseline]
    if below:
        lines.append(f"- Not above always answering the commonest class ({baseline:.3f}): {'; '.join(below)}.")
    for flag, levels in compare.studies(found):
        means = [configuration.mean() for _, configuration in levels]
        low, high = levels[means.index(min(means))], levels[means.index(max(means))]
        test, said = compare.difference(low[1], high[1], folder), ""
        if test is not None:
            p = min(1.0, test.p * math.comb(len(levels), 2))  # the worst and the best of so many levels (Bonferroni)
            shown = "." if p < stats.SIGNIFICANT else ", no difference that these runs can show."
            said = f" Between {low[0]} and {high[0]}: {test.delta:+.3f}, p = {p:.2g}{shown}"
        told = ", ".join(
            f"{level}: {configuration.mean():.3f}"
            + (f" ± {configuration.spread():.3f}" if configuration.spread() else "")
            for level, configuration in levels
        )
        first = levels[0][1]
        lines.append(f"- By {compare.STUDIES[flag]} ({first['strategy']}, {Path(first['model']).name}): {told}.{said}")
    return lines


def write(path, all_rows, kept, skipped, charts, source):
    """RESULTS.md: findings, tables, charts, and the command of each row. charts: {chart file: caption}; source: the CSV's name."""
    path, folder = Path(path), Path(source).parent
    commits = sorted({row["git_commit"][:10] for row in kept if row["git_commit"]})
    hardware = sorted({row["device_name"] for row in kept})
    lines = [
        "# Results",
        "",
        f"From {len(kept)} of {len(all_rows)} rows of `{Path(source).name}`, measured on {'; '.join(hardware)}, code "
        f"{', '.join(commits) or 'of unknown commits'}. Written by `python plot_results.py --results {Path(source).name} --report "
        f"{path.name}`.",
        "",
        "Rows that differ in their seeds alone are one configuration: mean ± standard deviation over the runs, then a 95 % interval "
        "that counts the examples and the seeds. Differences between strategies carry p values adjusted for how many are looked at "
        "(Benjamini and Hochberg), those between the worst and the best level of a flag for the number of pairs of levels "
        "(Bonferroni).",
    ]
    numbered = {row["run_id"]: i for i, row in enumerate(kept, start=1)}
    for panel, members in configurations.panels(kept).items():
        found = configurations.group_seeds(members)
        lines += [
            "",
            f"## {panel.data}: {panel.metric}, n = {panel.n_eval}",
            "",
            f"{len(found)} configurations, {len(members)} runs, on {panel.device}.",
            "",
            *_findings(panel, found, folder),
            "",
            "| configuration | runs | score | labels | ms a request (p50) | peak GB | training s | MB trained | rows |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
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
    lines += [f"{i}. `{row['run_id']}`: `{commands.command(row)}`" for i, row in enumerate(kept, start=1)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
