"""Charts of the results CSV."""

import json
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import matplotlib.ticker as ticker
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from harness.results import compare, configurations, schema

COLOURS = {
    "full_finetuning": "C0",
    "peft": "C1",
    "prompting": "C2",
    "rag": "C3",
    "quantized": "C4",
    "context_distillation": "C5",
    "chat": "C6",
}


SKIPPED = {}  # rows of each data set that are in no chart: failed, without a score, or run again


def title(panel):
    """Data, n, hardware, and how many rows of these data were skipped (`draw` fills them in)."""
    left = SKIPPED.get(panel.data, 0)
    return f"{panel.data}, n = {panel.n_eval}\n{panel.device}" + (
        f"; {left} rows skipped, see the output" if left else ""
    )


def errors(configuration):
    """How far the 95 % interval reaches below and above the mean score; nothing where it is unknown."""
    low, high = configuration.interval
    return (
        (0, 0)
        if low is None or high is None
        else (max(0, configuration.mean() - low), max(0, high - configuration.mean()))
    )


def with_value(found, *columns):
    return [c for c in found if all(c.mean(column) is not None for column in columns)]


def axis_name(column):
    metric = schema.METRICS[column]
    return metric.label + (f", {metric.unit}" if metric.unit else "")


def new_figure(heights, columns=1, width=9):
    """A figure with a row of `columns` axes for each height in inches; the axes as [row, column]."""
    return plt.subplots(
        len(heights), columns, figsize=(width, sum(heights)), squeeze=False, height_ratios=heights, layout="constrained"
    )


def save(figure, path):
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True


def bar_chart(groups, path):
    """Scores with 95 % intervals, coloured and grouped by strategy, the best of each first; the majority baseline where it is known."""
    figure, axes = new_figure([1.3 + 0.3 * len(found) for found in groups.values()])
    for axis, (panel, found) in zip(axes[:, 0], groups.items()):
        best = {s: max(c.mean() for c in found if c["strategy"] == s) for s in {c["strategy"] for c in found}}
        found = sorted(found, key=lambda c: (best[c["strategy"]], c["strategy"], c.mean()))
        scores = [c.mean() for c in found]
        axis.barh(
            range(len(found)),
            scores,
            xerr=list(zip(*map(errors, found))),
            capsize=2,
            color=[COLOURS.get(c["strategy"], "C7") for c in found],
        )
        axis.set_yticks(
            range(len(found)),
            [c.name + (f" ({len(c.rows)} runs)" if len(c.rows) > 1 else "") for c in found],
            fontsize=7,
        )
        for i, c in enumerate(found):
            axis.annotate(
                f"{scores[i]:.3f}",
                (scores[i] + errors(c)[1], i),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
        baseline = configurations.value(found[0].rows[0], "majority_baseline")
        name = f"{panel.metric} with 95 % interval"
        if baseline is not None:
            axis.axvline(baseline, linestyle="--", linewidth=1.2, color="black", zorder=3)
            name += f"; dashed: the majority class, {baseline:.3f}"
        axis.set_title(title(panel), fontsize=9)
        axis.set_xlabel(name, fontsize=8)
        axis.set_ylim(-0.6, len(found) - 0.4)
        axis.set_xlim(0, max(s + errors(c)[1] for s, c in zip(scores, found)) * 1.12 or 1)
    return save(figure, path)


def frontier_chart(groups, path, column):
    """Score against a cost, latency or memory (logarithmic); the Pareto frontier as a line, its points named."""
    whole = {panel: len(found) for panel, found in groups.items()}
    groups = {panel: [c for c in with_value(found, column) if c.mean(column) > 0] for panel, found in groups.items()}
    groups = {panel: found for panel, found in groups.items() if found}
    if not groups:
        return False
    figure, axes = new_figure([3.4] * len(groups))
    for axis, (panel, found) in zip(axes[:, 0], groups.items()):
        for strategy in dict.fromkeys(c["strategy"] for c in found):
            some = [c for c in found if c["strategy"] == strategy]
            axis.errorbar(
                [c.mean(column) for c in some],
                [c.mean() for c in some],
                list(zip(*map(errors, some))),
                fmt="o",
                capsize=2,
                markersize=4,
                elinewidth=0.6,
                alpha=0.75,
                color=COLOURS.get(strategy, "C7"),
                label=strategy,
            )
        choices = [c for c in found if c["variant"] not in configurations.BASELINES] or found
        best = [choices[i] for i in configurations.pareto([(c.mean(column), c.mean()) for c in choices])]
        axis.step(
            [c.mean(column) for c in best],
            [c.mean() for c in best],
            where="post",
            color="black",
            linewidth=1,
            label="nothing is both cheaper and better",
        )
        names = []
        for i, c in enumerate(best, start=1):
            axis.annotate(
                str(i),
                (c.mean(column), c.mean()),
                xytext=(-4, 5),
                textcoords="offset points",
                fontsize=8,
                weight="bold",
            )
            names.append(f"{i}  {c.name}")
        costs = [c.mean(column) for c in found]
        axis.set(xscale="log", xlim=(min(costs) / 1.5, max(costs) * 1.5))
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(axis_name(column), fontsize=8)
        axis.set_ylabel(panel.metric, fontsize=8)
        left = whole[panel] - len(found)
        axis.set_title(title(panel) + (f"; {left} without this figure left out" if left else ""), fontsize=9)
        axis.legend(
            fontsize=7,
            loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
            title="\n".join(names),
            title_fontsize=6.5,
            alignment="left",
        )
        axis.grid(True, alpha=0.3)
    return save(figure, path)


def cost_chart(groups, path):
    """What was trained: seconds, megabytes and parameters of each configuration."""
    columns = ("train_seconds", "artifact_mb", "trainable_params")
    groups = {
        panel: [c for c in with_value(found, *columns) if c.mean("trainable_params")] for panel, found in groups.items()
    }
    groups = {panel: found for panel, found in groups.items() if found}
    if not groups:
        return False
    figure, axes = new_figure([1.2 + 0.26 * len(found) for found in groups.values()], 3, width=11)
    for line, (panel, found) in zip(axes, groups.items()):
        found = sorted(found, key=lambda c: (c["strategy"], c.mean("train_seconds")), reverse=True)
        for axis, column in zip(line, columns):
            means = [c.mean(column) for c in found]
            axis.barh(
                range(len(found)),
                means,
                xerr=[c.spread(column) or 0 for c in found],
                capsize=2,
                color=[COLOURS.get(c["strategy"], "C7") for c in found],
            )
            for i, mean in enumerate(means):
                told = f"{mean / 1e6:.3g} M" if mean >= 1e6 else f"{mean:,.0f}" if mean >= 100 else f"{mean:.2g}"
                axis.annotate(
                    told,
                    (mean + (found[i].spread(column) or 0), i),
                    xytext=(3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=6.5,
                )
            axis.set_xlim(0, max(means) * 1.35)
            axis.set_yticks(range(len(found)), [c.name for c in found] if column == columns[0] else [], fontsize=7)
            axis.set_ylim(-0.6, len(found) - 0.4)
            axis.set_xlabel(axis_name(column), fontsize=8)
            axis.tick_params(axis="x", labelsize=7)
            axis.xaxis.set_major_locator(MaxNLocator(4))
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        line[0].set_title(title(panel), fontsize=9, loc="left")
    return save(figure, path)


def study_chart(groups, path, flag, columns, log=True):
    """A flag's levels against some columns, mean and spread over the seeds, a line for each set of configurations alike but for it."""
    found = [
        (panel, levels)
        for panel, members in groups.items()
        for name, levels in compare.studies(members)
        if name == flag
    ]
    if not found:
        return False
    order = list(
        dict.fromkeys(level for _, levels in sorted(found, key=lambda pair: -len(pair[1])) for level, _ in levels)
    )
    figure, axes = new_figure([3.2], len(columns), width=max(6, 3.4 * len(columns)))
    for axis, column in zip(axes[0], columns):
        for panel, levels in found:
            levels = [(x, c) for x, c in levels if c.mean(column) is not None]
            if not levels:
                continue
            first = levels[0][1]
            name = f"{panel.data}: {first['strategy']}, {Path(first['model']).name}, n = {panel.n_eval}"
            places = [x if log else order.index(x) for x, _ in levels]
            most = max(len(c.rows) for _, c in levels)
            spread = (
                list(zip(*(errors(c) for _, c in levels)))
                if column == "score"
                else [c.spread(column) or 0 for _, c in levels]
            )
            axis.errorbar(
                places,
                [c.mean(column) for _, c in levels],
                spread,
                marker="o",
                capsize=3,
                label=f"{name}, {most} run{'s' * (most > 1)} a point",
            )
        if log:
            axis.set_xscale("log", base=2)
            axis.set_xticks(order, [f"{x:g}" for x in order], fontsize=8)
        else:
            axis.set_xticks(range(len(order)), [str(x)[:18] for x in order], fontsize=8, rotation=20)
        axis.minorticks_off()
        axis.set_xlabel(compare.STUDIES[flag], fontsize=8)
        axis.set_ylabel(axis_name(column), fontsize=8)
        axis.tick_params(axis="y", labelsize=7)
        axis.grid(True, alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=7, loc="outside lower center")
    devices = "; ".join(sorted({panel.device for panel, _ in found}))
    figure.suptitle(
        f"scores with 95 % intervals, else mean and standard deviation over the seeds; {devices}", fontsize=8
    )
    return save(figure, path)


def learning_curves(groups, path):
    """Score over the number of labelled examples, trained on or shown in the prompt: mean and spread over the seeds."""
    panels = {}
    for panel, found in groups.items():
        lines = {}
        for c in found:
            used = c.mean("labels_used")
            if c["strategy"] in ("full_finetuning", "peft", "prompting", "context_distillation"):
                kept = {
                    k: v
                    for k, v in configurations.flags(c.rows[0]).items()
                    if k not in (*configurations.CHANGES_NOTHING, "max_train_samples", "k_shots")
                }
                lines.setdefault((c["strategy"], Path(c["model"]).name, json.dumps(kept, sort_keys=True)), []).append(
                    (used, c)
                )
        lines = {
            key: sorted(points, key=lambda p: p[0])
            for key, points in lines.items()
            if len({used for used, _ in points}) > 1
        }
        if lines:
            panels[panel] = lines
    if not panels:
        return False
    figure, axes = new_figure([3.2] * len(panels))
    for axis, (panel, lines) in zip(axes[:, 0], panels.items()):
        for (strategy, model, _), points in lines.items():
            told = points[0][1].flag("max_steps")
            told = (
                f", {told} steps"
                if told
                else f", {points[0][1].flag('epochs')} epochs"
                if points[0][1].flag("epochs")
                else ""
            )
            calibrated = points[0][1].flag("calibrate")
            told += f", {calibrated} calibration" if calibrated not in (None, "none") else ""
            axis.errorbar(
                [used for used, _ in points],
                [c.mean() for _, c in points],
                [c.spread() or 0 for _, c in points],
                marker="o",
                capsize=3,
                label=f"{strategy}, {model}{told} ({max(len(c.rows) for _, c in points)} runs a point)",
            )
        axis.set_xscale("symlog", linthresh=4)
        axis.xaxis.set_major_locator(
            ticker.FixedLocator(sorted({used for points in lines.values() for used, _ in points}))
        )
        axis.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.tick_params(labelsize=7)
        axis.set_xlabel("labelled examples, trained on or in the prompt", fontsize=8)
        axis.set_ylabel(f"{panel.metric}, mean ± sd", fontsize=8)
        axis.set_title(title(panel), fontsize=9)
        axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        axis.grid(True, alpha=0.3)
    return save(figure, path)


def question_chart(groups, path):
    """Question answering: token F1 and exact match of each model and method."""
    groups = {
        panel: with_value(found, "token_f1", "exact_match")
        for panel, found in groups.items()
        if panel.metric == "token_f1"
    }
    groups = {panel: found for panel, found in groups.items() if found}
    if not groups:
        return False
    figure, axes = new_figure([1.3 + 0.34 * len(found) for found in groups.values()])
    for axis, (panel, found) in zip(axes[:, 0], groups.items()):
        found = sorted(found, key=lambda c: c.mean("token_f1"))
        for shift, column in ((0.2, "token_f1"), (-0.2, "exact_match")):
            axis.barh(
                [i + shift for i in range(len(found))],
                [c.mean(column) for c in found],
                0.38,
                label=schema.METRICS[column].label,
                xerr=list(zip(*map(errors, found))) if column == "token_f1" else None,
                capsize=2,
            )
        axis.set_yticks(range(len(found)), [c.name for c in found], fontsize=7)
        axis.set_title(title(panel), fontsize=9)
        axis.set_xlabel("from 0 to 1; 95 % interval of the F1", fontsize=8)
        axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return save(figure, path)


def loss_chart(groups, path, folder):
    """Training and validation loss of the runs whose folders are there, a panel for each set of examples."""
    panels = {}
    for panel, found in groups.items():
        for configuration in found:
            file = configurations.run_folder(configuration.rows[0], folder) / "training_history.json"
            if configuration["train_seconds"] and file.is_file():
                panels.setdefault(panel, []).append((configuration.name, json.loads(file.read_text(encoding="utf-8"))))
    if not panels:
        return False
    figure, axes = new_figure([3.4] * len(panels))
    for axis, (panel, runs) in zip(axes[:, 0], panels.items()):
        for i, (name, history) in enumerate(runs[:10]):
            last = max((entry["step"] for entry in history), default=0) or 1
            for key, style in (("loss", "-"), ("eval_loss", ":")):
                points = [(100 * entry["step"] / last, entry[key]) for entry in history if key in entry]
                if points:
                    axis.plot(
                        *zip(*points),
                        style,
                        color=f"C{i % 10}",
                        linewidth=1,
                        label=name if key == "loss" else None,
                        marker="." if len(points) < 3 else None,
                    )
        left = f"; {len(runs) - 10} of {len(runs)} configurations left out" if len(runs) > 10 else ""
        axis.set_title(
            f"{panel.data}: the first run of each configuration; dotted: validation{left}\n{panel.device}", fontsize=8
        )
        axis.set_xlabel("% of the run's optimizer steps", fontsize=8)
        axis.set_ylabel("loss", fontsize=8)
        axis.legend(fontsize=6.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return save(figure, path)


def draw(groups, folder, source):
    """Draw every chart that the rows have something for. Returns {file: caption}; prints what was saved and what was not."""
    matplotlib.use("Agg")
    charts = [
        ("scores.png", "Scores with 95 % intervals", bar_chart, (), "no scores"),
        ("latency_vs_score.png", "Score against latency", frontier_chart, ("latency_ms_p50",), "no row has a latency"),
        ("memory_vs_score.png", "Score against memory", frontier_chart, ("memory",), "no row has its memory"),
        ("training_cost.png", "What training took and left", cost_chart, (), "no row was trained"),
        (
            "rank.png",
            "LoRA's rank",
            study_chart,
            ("rank", ("score", "memory", "train_seconds")),
            "no runs that differ in their rank alone",
        ),
        (
            "target_modules.png",
            "Which layers LoRA adapts",
            study_chart,
            ("target_modules", ("score", "trainable_params", "train_seconds"), False),
            "no runs that differ in their target modules alone",
        ),
        (
            "precision.png",
            "Precision of the weights",
            study_chart,
            ("precision", ("score", "model_gb", "latency_ms_p50"), False),
            "no runs that differ in their precision alone",
        ),
        (
            "learning_curves.png",
            "Score over labelled examples",
            learning_curves,
            (),
            "no runs that differ in their labels alone",
        ),
        ("questions.png", "Question answering by model and method", question_chart, (), "no questions were answered"),
        (
            "loss_curves.png",
            "Loss over the steps",
            loss_chart,
            (Path(source).parent,),
            "the run folders of trained rows are not here",
        ),
    ]
    drawn = {}
    for name, caption, chart, options, otherwise in charts:
        if chart(groups, folder / name, *options):
            drawn[folder / name] = caption
            print(f"saved {folder / name}")
        else:
            print(f"no {name}: {otherwise}")
    return drawn
