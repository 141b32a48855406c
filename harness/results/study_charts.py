"""Charts of what one setting changes: a flag's levels, and the number of labels."""

import json

import matplotlib.ticker as ticker

from harness.results import compare, configurations, names, plotting


def study_chart(panel, members, flag, columns):
    """Columns by a flag's numeric levels: a line for each set of configurations that differ in that flag alone."""
    studies = [levels for name, levels in compare.studies(members) if name == flag]
    if not studies:
        return None
    figure, axes = plotting.new_figure(3.9 + 0.16 * min(len(studies), plotting.MOST_LINES), len(columns))
    ticks = sorted({level for levels in studies for level, _ in levels})
    for axis, column in zip(axes, columns):
        for i, (levels, label) in enumerate(study_lines(studies, flag)):
            points = [(level, c) for level, c in levels if c.mean(column) is not None]
            axis.errorbar(
                [level for level, _ in points],
                [c.mean(column) for _, c in points],
                reach(column, [c for _, c in points]),
                marker="o",
                capsize=3,
                color=f"C{i}",
                label=label,
            )
        axis.set_xscale("log", base=2)
        plotting.place_ticks(figure, axis, ticks)
        axis.set_xlabel(compare.STUDIES[flag], fontsize=9)
        axis.set_title(plotting.axis_name(panel.metric if column == "score" else column), fontsize=9)
        axis.tick_params(axis="y", labelsize=8)
        axis.grid(True, alpha=0.3)
    left = len(studies) - plotting.MOST_LINES
    close_study(figure, axes[0], f"; {left} lines left out" if left > 0 else "")
    return figure


def level_chart(panel, members, flag, columns):
    """The same for levels that are words: the levels below each other, a dot for each."""
    studies = [levels for name, levels in compare.studies(members) if name == flag]
    if not studies:
        return None
    if any(compare.weights_doubt(flag, levels) for levels in studies):
        columns = [column for column in columns if column != "score"]
    order = list(dict.fromkeys(str(level) for levels in sorted(studies, key=len, reverse=True) for level, _ in levels))
    left, order = order[plotting.MOST_BARS :], order[: plotting.MOST_BARS]
    figure, axes = plotting.new_figure(2.4 + 0.3 * len(order), len(columns))
    for axis, column in zip(axes, columns):
        for i, (levels, label) in enumerate(study_lines(studies, flag)):
            points = [
                (order.index(str(level)), c)
                for level, c in levels
                if str(level) in order and c.mean(column) is not None
            ]
            axis.errorbar(
                [c.mean(column) for _, c in points],
                [place for place, _ in points],
                xerr=reach(column, [c for _, c in points]),
                fmt="o",
                capsize=3,
                color=f"C{i}",
                label=label,
            )
        axis.set_yticks(range(len(order)), [plotting.wrapped(level, 20) for level in order], fontsize=8)
        axis.set_ylim(len(order) - 0.5, -0.5)
        axis.xaxis.set_major_locator(ticker.MaxNLocator(4))
        axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: plotting.number(value)))
        axis.tick_params(axis="x", labelsize=8)
        axis.set_xlabel(plotting.axis_name(panel.metric if column == "score" else column), fontsize=9)
        axis.grid(True, alpha=0.3)
        axis.label_outer()
    close_study(figure, axes[0], f"; {len(left)} levels left out" if left else "")
    return figure


def study_lines(studies, *varied):
    """[(levels, label)]: at most MOST_LINES studies, each labelled by what its configurations share.

    studies: [[(level, Configuration)]]. varied: the flags in which the levels differ.
    """
    firsts = [levels[0][1] for levels in studies]
    settings = [{key: value for key, value in c.settings.items() if key not in (*varied, "variant")} for c in firsts]
    texts = names.tell_apart([names.shared([c.rows[0] for _, c in levels]) for levels in studies], settings)
    labels = [f"{text}, {runs_of(levels)} a point" for text, levels in zip(texts, studies)]
    return list(zip(studies, labels))[: plotting.MOST_LINES]


def runs_of(levels):
    """1 run, 3 runs, or 1 to 3 runs."""
    counts = sorted({len(c.rows) for _, c in levels})
    return " to ".join(map(str, dict.fromkeys([counts[0], counts[-1]]))) + f" run{'s' * (counts[-1] > 1)}"


def reach(column, members):
    """Error bars: the score's 95 % interval as [2, N], another column's standard deviation over the seeds as [N]."""
    if column == "score":
        return list(zip(*map(plotting.errors, members)))
    return [c.spread(column) or 0 for c in members]


def close_study(figure, axis, left_out):
    """The legend of all axes, with what the error bars are and what was left out."""
    lines, labels = axis.get_legend_handles_labels()
    title = f"bars: 95 % interval of the score, else standard deviation over the seeds{left_out}"
    figure.legend(lines, labels, fontsize=8, title=title, title_fontsize=8, loc="outside lower center", ncols=2)


def learning_curves(panel, members):
    """Score by the number of labelled examples that were used for anything, with its 95 % interval."""
    varied = ("label_budget", "max_train_samples", "k_shots")
    lines = {}
    for c in members:
        if c["strategy"] not in names.NO_LABELS and c.mean("labels_used") is not None:
            kept = {
                key: value
                for key, value in configurations.flags(c.rows[0]).items()
                if key not in (*configurations.CHANGES_NOTHING, *varied)
            }
            key = c["strategy"], c["model"], json.dumps(kept, sort_keys=True)
            lines.setdefault(key, []).append((c.mean("labels_used"), c))
    studies = [
        sorted(points, key=lambda point: point[0]) for points in lines.values() if len({used for used, _ in points}) > 1
    ]
    if not studies:
        return None
    studies.sort(key=lambda points: -points[-1][1].mean())  # the legend in the order of the lines' right ends
    figure, (axis,) = plotting.new_figure(4.6)
    for points, label in study_lines(studies, *varied):
        axis.errorbar(
            [used for used, _ in points],
            [c.mean() for _, c in points],
            reach("score", [c for _, c in points]),
            marker="o",
            capsize=3,
            label=plotting.wrapped(label, 30),
        )
    used = sorted({used for points in studies for used, _ in points})
    baseline = plotting.majority(members[0])
    if baseline is not None:
        axis.axhline(baseline, linestyle="--", linewidth=1, color="black", label=f"majority class, {baseline:.3f}")
    left = len(studies) - plotting.MOST_LINES
    axis.set_xlabel(
        "labelled examples used for anything" + (f"; {left} more lines left out" if left > 0 else ""), fontsize=9
    )
    axis.set_ylabel(f"{plotting.axis_name(panel.metric)}, 95 % interval", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axis.grid(True, alpha=0.3)
    axis.set_xscale("symlog", linthresh=4)  # 0 to 4 demonstrations linear, so that 0 has a place
    axis.set_xlim(used[0] / 1.3 if used[0] else -0.7, used[-1] * 1.3)
    plotting.place_ticks(figure, axis, [used[-1], *used])
    return figure


def forgetting_chart(panel, members, more=""):
    """The score of each trained language model, and what training has cost general text and another task."""
    bars = plotting.with_value(members, "retained_change", "forgetting")
    if not bars:
        return None
    bars, note = plotting.bars_of(bars, more)
    figure, axes = plotting.new_figure(plotting.bar_height(bars), 3)
    for axis, column in zip(axes, ("score", "forgetting", "retained_change")):
        means, colours = [c.mean(column) for c in bars], [plotting.colour(c) for c in bars]
        axis.barh(range(len(bars)), means, xerr=reach(column, bars), capsize=2, color=colours)
        axis.axvline(0, color="black", linewidth=0.8)
        plotting.name_bars(axis, bars)
        plotting.values_beside(axis, [f"{mean:.3f}" if column == "score" else f"{mean:+.3f}" for mean in means])
        axis.set_xlabel(plotting.axis_name(column), fontsize=9)
        axis.tick_params(axis="x", labelsize=7)
        axis.label_outer()
    figure.supxlabel(note, fontsize=9)
    return figure


def risk_coverage(curve, confidence, first, second, chosen, title):
    """A cascade's chart: its score by the share deferred, and the error of what the first model answers by that share.

    curve: (shares [T], scores [T]); confidence, first, second: [N] of the first model, and scores of the two; chosen:
    (share, score) that the row reports.
    """
    figure, (axis, risk) = plotting.new_figure(4.2, 2)
    axis.plot(*curve, label="every threshold, on all examples")
    axis.plot(*chosen, "D", color="white", mec="black", ms=6, label="the row")
    for score, name, style in ((first.mean(), "first alone", ":"), (second.mean(), "second alone", "--")):
        axis.axhline(score, linestyle=style, linewidth=1, color="black", label=f"{name}, {score:.3f}")
    axis.plot([0, 1], [first.mean(), second.mean()], color="C7", linewidth=1, label="deferring at random")
    axis.set_xlabel("share deferred to the second model", fontsize=9)
    axis.set_ylabel("accuracy", fontsize=9)
    axis.legend(fontsize=7)
    wrong = 1 - first[(-confidence).argsort(kind="stable")]  # the surest first
    covered = range(1, len(wrong) + 1)
    risk.plot([n / len(wrong) for n in covered], [error / n for n, error in zip(covered, wrong.cumsum())])
    risk.set_xlabel("coverage: share that the first model answers", fontsize=9)
    risk.set_ylabel("risk: its error on the surest of that share", fontsize=9)
    for one in (axis, risk):
        one.grid(True, alpha=0.3)
        one.tick_params(labelsize=8)
    figure.suptitle(plotting.wrapped(title, 110), x=0.01, ha="left", fontsize=9)
    return figure
