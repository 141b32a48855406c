"""The report that plot_results.py writes from the rows."""

import collections
import math
import textwrap
from pathlib import Path

from harness.results import champions, commands, compare, configurations, markdown, names, outputs, stats, tables

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
METHOD = (
    "Runs that differ only in their seeds are one configuration: mean ± standard deviation over the runs, then a 95 "
    "% interval. It counts the examples, clusters of them (questions about one passage) and, where it is known, the "
    "variance over seeds, which is pooled over the configurations of a section; without it an interval is about "
    "these runs alone. Degenerate runs count. The best of a strategy is chosen on one half of the examples and "
    "scored on the other, over 20 random halvings (cross-fitted), where the run folders lay beside the CSV; without "
    "them it is reported by the score that chose it, with a bound on how much too high that is. A configuration of "
    "one run is chosen with the luck of its seed. The tables and the Pareto frontier have the scores on all "
    "examples. The p values of differences between strategies are adjusted for the number of comparisons (Benjamini "
    "and Hochberg), those between the worst and the best level of a flag for the number of pairs of levels "
    "(Bonferroni). With the run folders a test is paired over the examples; without them it uses the intervals "
    "alone, and its p is larger."
)


def write(path, all_rows, kept, skipped, groups, charts, source, command):
    """Write the report: findings, a table and the charts of each panel, then the command of each row.

    kept, skipped: what configurations.select returns. groups: {Panel: [Configuration]}. charts: {Panel: {file:
    caption}}, as charts.draw returns them. source: the results CSV. command: the one that writes this report.
    """
    path = Path(path)
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
    titles = collections.Counter(map(title, groups))
    for panel, members in groups.items():
        place = members[0]["dataset"] if titles[title(panel)] > 1 else None  # data sets of one name
        lines += section(panel, members, numbered, place)
        for file, caption in charts.get(panel, {}).items():
            lines += ["", f"![{caption}]({link(file, path)})"]
    if skipped:
        lines += ["", "## Left out", "", *(f"- {line}" for line in left_out(skipped))]
    lines += ["", "## Rows and their commands", ""]
    lines += [f"{i}. `{row['run_id']}`: `{commands.command(row)}`" for i, row in enumerate(kept, start=1)]
    outputs.write(path, "\n".join(lines) + "\n", "report", "--report")


def title(panel):
    return f"{panel.data}: {panel.metric}, n = {panel.n_eval}"


def section(panel, found, numbered, place=None):
    """The lines of one panel: findings and the table of its Configurations. numbered: {run id: number of the row};
    place: where the data lie, if that has to be told.
    """
    table = [
        [*cells(c), " ".join(str(numbered[row["run_id"]]) for row in c.rows)]
        for c in sorted(found, key=lambda c: -c.mean())
    ]
    return [
        "",
        f"## {title(panel)}" + f" ({place})" * bool(place),
        "",
        f"{count(len(found), 'configuration')}, {count(sum(len(c.rows) for c in found), 'run')}, on {panel.device}. "
        + " ".join(what_varies(found)),
        "",
        *findings(panel, found),
        "",
        markdown.table(COLUMNS, table),
    ]


def what_varies(found):
    """Sentences on what the intervals of a panel count. found: its Configurations."""
    lines = []
    known = next((c.examples for c in found if c.examples is not None), None)
    if known is not None and stats.is_clustered(known.clusters):
        lines.append(f"The examples are in {stats.n_clusters(known.clusters, len(known.ids))} clusters.")
    pooled = next((c.seeds for c in found if c.varies and not c.degenerate), None)
    if pooled:
        deviation = math.sqrt(pooled.variance)
        lines.append(f"The standard deviation over seeds is {deviation:.3f} ({pooled.degrees} degrees of freedom).")
    elif any(c.varies for c in found):
        lines.append("There are too few repeated runs to know the variance over seeds, so no interval counts it.")
    given = [c.name for c in found if configurations.OWN_PASSAGE in c["note"]]
    if 0 < len(given) < len(found):
        alone = f"{configurations.OWN_PASSAGE}, which the others had to find or do without"
        lines.append(f"Not like with like: {alone}: {'; '.join(given)}.")
    return lines


def count(n, what):
    return f"{n} {what}{'s' * (n != 1)}"


def link(file, page):
    """The path of a file as the page links it: relative where it lies below the page's folder."""
    file, folder = Path(file).resolve(), Path(page).resolve().parent
    return file.relative_to(folder) if file.is_relative_to(folder) else file


def left_out(skipped):
    """A line for each row that counts nowhere: its run id and why, shortened. skipped: [(run id, why)]."""
    return [f"{run_id}: {textwrap.shorten(why, 100, placeholder=' ...')}" for run_id, why in skipped]


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


def findings(panel, found):
    """What the rows of one panel show, as lines of Markdown. found: its Configurations."""
    usable = [c for c in found if c.usable]
    collapsed = [f"{c.name} ({tables.degenerate(c)})" for c in found if c.degenerate]
    lines = [f"- Degenerate: {'; '.join(collapsed)}."] if collapsed else []
    if not usable:
        return ["Only baselines and degenerate runs were measured here.", *lines]
    ranked = champions.by_strategy(found)
    best = max(usable, key=lambda c: c.mean())
    lines = [f"The highest score is that of **{best.name}**: {panel.metric} {highest(best, usable)}.", *lines]
    lines += between_strategies(ranked)
    timed = [c for c in sorted(usable, key=lambda c: -c.mean()) if c.mean("latency_ms_p50")]
    frontier = [timed[i] for i in configurations.pareto([(c.mean("latency_ms_p50"), c.mean()) for c in timed])]
    if len(frontier) > 1:
        steps = [f"{c.name} ({c.mean('latency_ms_p50'):.0f} ms, {c.mean():.3f})" for c in frontier]
        lines.append(f"- Pareto frontier of latency and score, from the fastest to the best: {'; '.join(steps)}.")
    baseline = configurations.value(found[0].rows[0], "majority_baseline")
    below = [c.name for c in usable if baseline is not None and c.interval[0] is not None and c.interval[0] <= baseline]
    if below:
        lines.append(f"- Not shown to be above the majority class ({baseline:.3f}): {'; '.join(below)}.")
    lines += broken(usable)
    return lines + [effect(flag, levels) for flag, levels in compare.studies(found)]


def broken(usable):
    """A line on what training language models broke, the worst first; none where no row has it."""
    known = [c for c in usable if c.mean("forgetting") is not None and c.mean("retained_change") is not None]
    if not known:
        return []
    each = [
        f"{c.name} ({c.mean('forgetting'):+.3f} bits, {100 * c.mean('retained_change'):+.1f} points)"
        for c in sorted(known, key=lambda c: -c.mean("forgetting"))
    ]
    what = "bits per byte of general text (more is worse) and zero-shot score on another task"
    return [f"- What training broke, in {what}: {'; '.join(each)}."]


def highest(best, usable):
    """The highest score of a panel, and what choosing the best of all its configurations gives on other examples."""
    champion = champions.champion(usable)
    if champion.among < 2:
        return tables.score_cell(best)
    if champion.cross_fitted:
        return f"{best.mean():.3f} on all examples; {tables.champion_cell(champion)}"
    return f"{tables.score_cell(best)}; {champion.how()}"


def between_strategies(ranked):
    """Lines on the best of each strategy: its score, and whether it differs from the best strategy's.

    ranked: their Champions, the best first.
    """
    if len(ranked) < 2:
        return []
    best, known = ranked[0], []
    for other in ranked[1:]:
        test = compare.difference(best, other)
        known += [] if test is None else [(other, test)]
    lines = [f"- Best of {strategy(best)}: {best.name} ({tables.champion_cell(best)})."]
    for (other, test), p in zip(known, stats.adjusted([test for _, test in known])):
        certain = p < stats.SIGNIFICANT
        shown = "is below that" if certain else f"cannot be told apart from that with n = {test.n}"
        lines.append(
            f"- Best of {strategy(other)}: {other.name} ({tables.champion_cell(other)}) {shown}: {test.delta:+.3f}, "
            f"{stats.p_text(p)} ({test.test}){'' if certain else test.limit()}.{unlike(other, best)}"
        )
    return lines


def strategy(champion):
    name = champion.configuration.kin
    return names.STRATEGIES.get(name, name)


def unlike(champion, best):
    """Words on what two Champions do not have in common, besides the strategy: base model and number of labels."""
    shown = names.models([champion["model"], best["model"]])
    ours, theirs = (shown[found["model"]] or "no model" for found in (champion, best))
    lines = [f"on {ours} against {theirs}"] if ours != theirs else []
    used = [found.configuration.mean("labels_used") for found in (champion, best)]
    if used[0] != used[1]:
        amounts = ["an unknown number of" if n is None else f"{n:,.0f}" for n in used]
        lines.append(f"with {amounts[0]} labels against {amounts[1]}")
    return f" Not like with like: {'; '.join(lines)}." if lines else ""


def effect(flag, levels):
    """A line about a flag: the score at each level, and whether the best level differs from the worst."""
    means = [configuration.mean() for _, configuration in levels]
    low, high = levels[means.index(min(means))], levels[means.index(max(means))]
    test, verdict = compare.difference(low[1], high[1]), ""
    doubt = compare.weights_doubt(flag, levels)
    if doubt:
        verdict = f" No precision's cost: {doubt}."
    elif test is not None:
        p = min(1.0, test.p * math.comb(len(levels), 2))  # the worst and the best of all pairs of levels (Bonferroni)
        shown = "." if p < stats.SIGNIFICANT else f", not a difference that these runs can show{test.limit()}."
        verdict = f" Between {low[0]} and {high[0]}: {test.delta:+.3f}, {stats.p_text(p)}{shown}"
    scores = [
        f"{level}: {configuration.mean():.3f}"
        + (f" ± {configuration.spread():.3f}" if configuration.spread() else "")
        + (f" ({tables.degenerate(configuration)})" if configuration.degenerate else "")
        for level, configuration in levels
    ]
    shared = names.shared([configuration.rows[0] for _, configuration in levels])
    return f"- By {compare.STUDIES[flag]} ({shared}): {', '.join(scores)}.{verdict}"
