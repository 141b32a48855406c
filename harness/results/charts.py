"""Charts of the results CSV: one PNG for each data set and kind of chart."""

import json
import math
import re
from collections import Counter
from pathlib import Path

import matplotlib.patheffects as patheffects

from harness.results import champions, configurations, names, plotting, run_scores, study_charts


def draw(groups, folder, source, left_out=None, report=None):
    """Draw every chart that the rows have data for, and print what was saved and what was not.

    groups: {Panel: [Configuration]}. source: the CSV, whose folder holds the run folders. left_out: {data: rows in no
    chart}. report: the page that lists all configurations. Returns {Panel: {file: caption}}.
    """
    more = f", see {Path(report).name}" if report else ""
    kinds = [
        ("scores", "Scores with 95 % intervals", score_chart, (more,), "no scores"),
        ("latency", "Score against latency", frontier_chart, ("latency_ms_p50",), "no row has a latency"),
        ("memory", "Score against memory", frontier_chart, ("memory",), "no row has its memory"),
        (
            "serving_memory",
            "Score against the memory of serving",
            frontier_chart,
            ("serving_memory",),
            "no row has its memory of serving",
        ),
        ("training_cost", "Cost of training", cost_chart, (more,), "no row was trained"),
        (
            "rank",
            "LoRA's rank",
            study_charts.study_chart,
            ("rank", ("score", "memory", "train_seconds")),
            study("rank"),
        ),
        (
            "target_modules",
            "Layers that LoRA adapts",
            study_charts.level_chart,
            ("target_modules", ("score", "trainable_params", "train_seconds")),
            study("target modules"),
        ),
        (
            "precision",
            "Precision of the weights",
            study_charts.level_chart,
            ("precision", ("score", "model_gb", "latency_ms_p50")),
            study("precision"),
        ),
        ("learning_curves", "Score by labelled examples", study_charts.learning_curves, (), study("labels")),
        ("questions", "Question answering: token F1 and exact match", question_chart, (more,), "no row has a token F1"),
        ("forgetting", "What training broke", study_charts.forgetting_chart, (more,), "no row tells what was broken"),
        ("loss_curves", "Loss by training step", loss_chart, (Path(source).parent,), "no run folders of trained rows"),
    ]
    panels = most_measured(groups)
    drawn, data_names = {panel: {} for panel in groups}, file_names(panels)
    titles = headings(panels, left_out or {})
    for kind, caption, chart, options, otherwise in kinds:  # so that a kind without any chart is said once
        found = False
        for panel in panels:
            figure = chart(panel, groups[panel], *options)
            if figure is not None:
                file, found = Path(folder) / f"{kind}_{data_names[panel]}.png", True
                figure.suptitle(titles[panel], x=0.01, ha="left", fontsize=10)
                plotting.save(figure, file)
                drawn[panel][file] = f"{caption}, {panel.data}"
                print(f"saved {file}")
        if not found:
            print(f"no {kind} chart: {otherwise}")
    if len(panels) < len(groups):
        print(
            f"no charts of {len(groups) - len(panels)} more data sets or machines, those with the fewest "
            f"configurations{more}; at most {plotting.MOST_PANELS} are drawn"
        )
    return drawn


def most_measured(groups):
    """The panels that are drawn: at most MOST_PANELS, those with the most configurations, in the order of the rows."""
    best = sorted(groups, key=lambda panel: -len(groups[panel]))[: plotting.MOST_PANELS]
    return [panel for panel in groups if panel in set(best)]


def study(what):
    return f"no runs that differ in their {what} alone"


def file_names(panels):
    """{Panel: the data set's name in file names}, with n, metric, hardware or examples where panels share one."""
    panels = list(panels)
    settings = [{"n": p.n_eval, "metric": p.metric, "on": p.device, "examples": p.eval_id} for p in panels]
    texts = names.tell_apart([slug(p.data) or "data" for p in panels], settings, ("n", "metric", "on", "examples"))
    return {panel: slug(text) for panel, text in zip(panels, texts)}


def slug(text):
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def headings(panels, left_out):
    """{Panel: title of its charts}: data and n; then hardware and how many rows of these data are in no chart."""
    same = Counter((p.data, p.metric, p.n_eval, p.device) for p in panels)
    texts = {}
    for p in panels:
        parts = [p.device] + ([f"examples {p.eval_id}"] if same[p.data, p.metric, p.n_eval, p.device] > 1 else [])
        n = left_out.get(p.data, 0)
        parts += [f"{n} row{'s' * (n != 1)} left out"] if n else []
        texts[p] = f"{p.data}, n = {p.n_eval}\n" + "; ".join(filter(None, parts))
    return texts


def score_chart(panel, members, more=""):
    """Scores with 95 % intervals, coloured and grouped by strategy; the majority baseline where it is known."""
    bars, note = plotting.bars_of(members, more)
    figure, (axis,) = plotting.new_figure(plotting.bar_height(bars))
    scores = [c.mean() for c in bars]
    reach = list(zip(*map(plotting.errors, bars)))  # [2, bars]: below and above the score
    axis.barh(range(len(bars)), scores, xerr=reach, capsize=2, color=[plotting.colour(c) for c in bars])
    plotting.name_bars(axis, bars)
    plotting.values_beside(axis, [f"{score:.3f}" for score in scores])
    label = f"{plotting.axis_name(panel.metric)} with 95 % interval"
    note = "\n".join(filter(None, [best_of_strategies(axis, bars, champions.by_strategy(members)), note]))
    right = max(score + (0 if math.isnan(above) else above) for score, above in zip(scores, reach[1]))
    baseline = plotting.majority(bars[0])
    if baseline is not None:
        axis.axvline(baseline, linestyle="--", linewidth=1.2, color="black", zorder=3)
        label += f"; dashed: the majority class, {baseline:.3f}"
        right = max(right, baseline)
    axis.set_xlim(0, right * 1.03 or 1)
    axis.set_xlabel("\n".join(filter(None, [label, note])), fontsize=9)
    return figure


def best_of_strategies(axis, bars, found):
    """Mark the cross-fitted score of each strategy's best on its bar; a line that says how the best were chosen.

    found: Champions; "" where no strategy has several configurations.
    """
    several = [champion for champion in found if champion.among > 1]
    fitted = [champion for champion in several if champion.cross_fitted and champion.configuration in bars]
    if fitted:
        places = [bars.index(champion.configuration) for champion in fitted]
        axis.plot([champion.mean() for champion in fitted], places, "D", color="white", mec="black", ms=5, zorder=4)
        return "diamond: best of its strategy, chosen on some examples and scored on the others"
    return "the best of each strategy was chosen on these examples, so its score is too high" if several else ""


def frontier_chart(panel, members, column):
    """Score against latency or memory (logarithmic), with the Pareto frontier as a line and its points named."""
    shown = [c for c in plotting.with_value(members, column) if c.mean(column) > 0]
    if not shown:
        return None
    # a gold passage is cheap and good, but nobody can choose it: baselines have points and are not on the frontier
    choices = [c for c in shown if not configurations.is_baseline(c["variant"])] or shown
    best = [choices[i] for i in configurations.pareto([(c.mean(column), c.mean()) for c in choices])]
    unit = "ms" if column == "latency_ms_p50" else "GB"
    listed = [
        f"{i}  {c.name}: {plotting.number(c.mean(column))} {unit}, {plotting.axis_name(panel.metric)} {c.mean():.3f}"
        for i, c in enumerate(best, start=1)
    ]
    if len(listed) > plotting.MOST_BARS:
        listed[plotting.MOST_BARS :] = [f"and {len(listed) - plotting.MOST_BARS} more"]
    figure, (axis,) = plotting.new_figure(4.2 + 0.16 * len(listed))  # at most 6.3 inches, 750 pixels
    for strategy in dict.fromkeys(c.kin for c in shown):
        some = [c for c in shown if c.kin == strategy]
        axis.errorbar(
            [c.mean(column) for c in some],
            [c.mean() for c in some],
            list(zip(*map(plotting.errors, some))),
            fmt="o",
            capsize=2,
            markersize=5,
            elinewidth=0.6,
            alpha=0.75,
            color=plotting.colour(some[0]),
            label=names.STRATEGIES.get(strategy, strategy),
        )
    axis.step(
        [c.mean(column) for c in best],
        [c.mean() for c in best],
        where="post",
        color="black",
        linewidth=1,
        label="Pareto frontier",
    )
    for i, c in enumerate(best, start=1):  # numbers in the chart, names below: names would cover the points
        axis.annotate(
            str(i),
            (c.mean(column), c.mean()),
            xytext=(-6, 4),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            weight="bold",
            path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
        )
    left = len(members) - len(shown)
    label = plotting.axis_name(column) + (f"; {left} without this value left out" if left else "")
    axis.set_xlabel(label, fontsize=9)
    axis.set_ylabel(f"{plotting.axis_name(panel.metric)}, 95 % interval", fontsize=9)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axis.grid(True, alpha=0.3)
    figure.supxlabel("\n".join(listed), x=0.02, ha="left", fontsize=8)
    costs = [c.mean(column) for c in shown]
    axis.set(xscale="log", xlim=(min(costs) / 1.4, max(costs) * 1.4))
    plotting.log_ticks(figure, axis)
    return figure


def cost_chart(panel, members, more=""):
    """Seconds of training, megabytes of what was trained and trained parameters of each configuration."""
    columns = ("train_seconds", "artifact_mb", "trainable_params")
    trained = [c for c in plotting.with_value(members, *columns) if c.mean("trainable_params")]
    if not trained:
        return None
    bars, note = plotting.bars_of(trained, more)
    bars = sorted(bars, key=lambda c: (c.kin, c.mean("train_seconds")), reverse=True)
    figure, axes = plotting.new_figure(plotting.bar_height(bars), len(columns))
    for axis, column in zip(axes, columns):
        means, spreads = [c.mean(column) for c in bars], [c.spread(column) or 0 for c in bars]
        axis.barh(range(len(bars)), means, xerr=spreads, capsize=2, color=[plotting.colour(c) for c in bars])
        for i, mean in enumerate(means):
            axis.annotate(
                plotting.number(mean),
                (mean + spreads[i], i),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axis.set(xlim=(0, max(m + s for m, s in zip(means, spreads)) * 1.45), xticks=[])  # the values are in the labels
        plotting.name_bars(axis, bars)
        axis.set_xlabel(plotting.axis_name(column), fontsize=9)
        axis.label_outer()
    figure.supxlabel(note, fontsize=9)
    return figure


def question_chart(panel, members, more=""):
    """Question answering: token F1 and exact match of each configuration."""
    answered = plotting.with_value(members, "token_f1", "exact_match") if panel.metric == "token_f1" else []
    if not answered:
        return None
    bars, note = plotting.bars_of(answered, more)
    bars = sorted(bars, key=lambda c: c.mean("token_f1"))
    figure, (axis,) = plotting.new_figure(plotting.bar_height(bars))
    for shift, column in ((0.2, "token_f1"), (-0.2, "exact_match")):
        axis.barh(
            [i + shift for i in range(len(bars))],
            [c.mean(column) for c in bars],
            0.38,
            label=plotting.axis_name(column),
            xerr=study_charts.reach("score", bars) if column == "token_f1" else None,
            capsize=2,
        )
    plotting.name_bars(axis, bars)
    plotting.values_beside(axis, [f"{c.mean('token_f1'):.3f}\n{c.mean('exact_match'):.3f}" for c in bars])
    axis.set_xlabel("\n".join(filter(None, ["from 0 to 1; bars: 95 % interval of the token F1", note])), fontsize=9)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    return figure


def loss_chart(panel, members, folder):
    """Training and validation loss of the first run of each configuration whose run folder is there."""
    runs = []
    for c in sorted(members, key=lambda c: -c.mean()):
        file = run_scores.run_folder(c.rows[0], folder) / "training_history.json"
        if c["train_seconds"] and file.is_file():
            runs.append((c.name, json.loads(file.read_text(encoding="utf-8"))))
    if not runs:
        return None
    figure, (axis,) = plotting.new_figure(4.6)
    for i, (name, history) in enumerate(runs[: plotting.MOST_LINES]):
        last = max((entry["step"] for entry in history), default=0) or 1  # runs of other lengths share the axis in %
        for key, style in (("loss", "-"), ("eval_loss", ":")):
            points = [
                (100 * entry["step"] / last, entry[key])
                for entry in history
                if isinstance(entry.get(key), (int, float)) and math.isfinite(entry[key])
            ]
            if points:
                axis.plot(
                    *zip(*points),
                    style,
                    color=f"C{i}",
                    linewidth=1,
                    marker="." if len(points) < 3 else None,
                    label=plotting.wrapped(name, 30) if key == "loss" else None,
                )
    left = len(runs) - plotting.MOST_LINES
    note = "% of the run's optimizer steps; solid: training, dotted: validation"
    axis.set_xlabel(note + (f"\n{left} more with lower scores left out" if left > 0 else ""), fontsize=9)
    axis.set_ylabel("loss", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
