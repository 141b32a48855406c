"""Charts and a report of the results CSV; paired tests of two runs; export for SQL and JSON.

Rows are drawn together only where their evaluation examples (eval_id), metric and hardware are the same; each such group is one
panel. Runs that differ in their seeds alone are one configuration, drawn as mean and spread. What is left out is said, and why.

    python plot_results.py                         # results.csv, or sample_results.csv if there is none yet
    python plot_results.py --results mine.csv --output_dir charts --report RESULTS.md
    python plot_results.py --compare runs/RUN_A runs/RUN_B     # a paired test on the examples that both have seen
    python plot_results.py --export results.db && sqlite3 results.db "SELECT variant, score FROM results ORDER BY score"
"""

import collections
import json
from pathlib import Path

import report
import rows as table
import utils

# the columns of the printed table; one that is empty in all rows of a panel is left out there
COLUMNS = (
    "strategy", "variant", "model", "n_train", "k_shots", "seed", "data_seed", "score", "score_low", "score_high", "perplexity",
    "recall_at_k", "latency_ms_p50", "cached_latency_ms_p50", "ttft_ms", "tpot_ms", "tokens_per_s", "speedup", "acceptance_rate",
    "accepted_length", "greedy_agreement",
    "compile_seconds", "train_seconds", "model_gb", "peak_gpu_gb", "peak_rss_gb",
)  # fmt: skip
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


def parse_args(argv=None):
    parser = utils.ArgumentParser(__doc__)
    parser.add_argument("--results", help="the results CSV (default: results.csv, or sample_results.csv if there is none yet)")
    parser.add_argument("--output_dir", default="plots", help="where the PNGs go (default: %(default)s)")
    parser.add_argument("--report", metavar="FILE.md", help="write the findings, tables, charts and commands as Markdown")
    group = parser.add_argument_group("instead of charts")
    group.add_argument("--markdown", nargs="?", const="all", choices=("all", "best"),
                       help="print the rows as a Markdown table; best: the best of each strategy and data set")  # fmt: skip
    group.add_argument("--compare", nargs=2, metavar="RUN", help="two run folders: are they different on the same examples?")
    group.add_argument("--export", metavar="FILE.db|FILE.json", help="write the rows as a SQLite database (table results) or as JSON")
    args = parser.parse_args(argv)
    if args.export and Path(args.export).suffix not in (".db", ".sqlite", ".json"):
        parser.error(f"--export {args.export}: the ending says the kind, .db or .sqlite for SQLite, .json for JSON")
    return args


# -------------------------------------------------------------------------------------------------------------- the charts


def title(panel):
    """Data, n, hardware, and how many rows of these data were skipped (`draw` fills them in)."""
    left = SKIPPED.get(panel.data, 0)
    return f"{panel.data}, n = {panel.n_eval}\n{panel.device}" + (f"; {left} rows skipped, see the output" if left else "")


def errors(configuration):
    """How far the 95 % interval reaches below and above the mean score; nothing where it is unknown."""
    low, high = configuration.interval
    return (0, 0) if low is None or high is None else (max(0, configuration.mean() - low), max(0, high - configuration.mean()))


def with_value(found, *columns):
    return [c for c in found if all(c.mean(column) is not None for column in columns)]


def axis_name(column):
    metric = table.METRICS[column]
    return metric.label + (f", {metric.unit}" if metric.unit else "")


def new_figure(heights, columns=1, width=9):
    """A figure with a row of `columns` axes for each height in inches; the axes as [row, column]."""
    import matplotlib.pyplot as plt

    return plt.subplots(len(heights), columns, figsize=(width, sum(heights)), squeeze=False, height_ratios=heights, layout="constrained")


def save(figure, path):
    import matplotlib.pyplot as plt

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
        axis.barh(range(len(found)), scores, xerr=list(zip(*map(errors, found))), capsize=2,
                  color=[COLOURS.get(c["strategy"], "C7") for c in found])  # fmt: skip
        axis.set_yticks(range(len(found)), [c.name + (f" ({len(c.rows)} runs)" if len(c.rows) > 1 else "") for c in found], fontsize=7)
        for i, c in enumerate(found):
            axis.annotate(
                f"{scores[i]:.3f}", (scores[i] + errors(c)[1], i), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7
            )
        baseline = table.value(found[0].rows[0], "majority_baseline")
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
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    whole = {panel: len(found) for panel, found in groups.items()}
    groups = {panel: [c for c in with_value(found, column) if c.mean(column) > 0] for panel, found in groups.items()}
    groups = {panel: found for panel, found in groups.items() if found}
    if not groups:
        return False
    figure, axes = new_figure([3.4] * len(groups))
    for axis, (panel, found) in zip(axes[:, 0], groups.items()):
        for strategy in dict.fromkeys(c["strategy"] for c in found):
            some = [c for c in found if c["strategy"] == strategy]
            axis.errorbar([c.mean(column) for c in some], [c.mean() for c in some], list(zip(*map(errors, some))), fmt="o", capsize=2,
                          markersize=4, elinewidth=0.6, alpha=0.75, color=COLOURS.get(strategy, "C7"), label=strategy)  # fmt: skip
        choices = [c for c in found if c["variant"] not in table.BASELINES] or found
        best = [choices[i] for i in table.pareto([(c.mean(column), c.mean()) for c in choices])]
        axis.step([c.mean(column) for c in best], [c.mean() for c in best], where="post", color="black", linewidth=1,
                  label="nothing is both cheaper and better")  # fmt: skip
        names = []
        for i, c in enumerate(best, start=1):
            axis.annotate(str(i), (c.mean(column), c.mean()), xytext=(-4, 5), textcoords="offset points", fontsize=8, weight="bold")
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
        axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), title="\n".join(names), title_fontsize=6.5, alignment="left")
        axis.grid(True, alpha=0.3)
    return save(figure, path)


def cost_chart(groups, path):
    """What was trained: seconds, megabytes and parameters of each configuration."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    columns = ("train_seconds", "artifact_mb", "trainable_params")
    groups = {panel: [c for c in with_value(found, *columns) if c.mean("trainable_params")] for panel, found in groups.items()}
    groups = {panel: found for panel, found in groups.items() if found}
    if not groups:
        return False
    figure, axes = new_figure([1.2 + 0.26 * len(found) for found in groups.values()], 3, width=11)
    for line, (panel, found) in zip(axes, groups.items()):
        found = sorted(found, key=lambda c: (c["strategy"], c.mean("train_seconds")), reverse=True)
        for axis, column in zip(line, columns):
            means = [c.mean(column) for c in found]
            axis.barh(range(len(found)), means, xerr=[c.spread(column) or 0 for c in found], capsize=2,
                      color=[COLOURS.get(c["strategy"], "C7") for c in found])  # fmt: skip
            for i, mean in enumerate(means):
                told = f"{mean / 1e6:.3g} M" if mean >= 1e6 else f"{mean:,.0f}" if mean >= 100 else f"{mean:.2g}"
                axis.annotate(
                    told, (mean + (found[i].spread(column) or 0), i), xytext=(3, 0), textcoords="offset points", va="center", fontsize=6.5
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
    found = [(panel, levels) for panel, members in groups.items() for name, levels in report.studies(members) if name == flag]
    if not found:
        return False
    order = list(dict.fromkeys(level for _, levels in sorted(found, key=lambda pair: -len(pair[1])) for level, _ in levels))
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
            spread = list(zip(*(errors(c) for _, c in levels))) if column == "score" else [c.spread(column) or 0 for _, c in levels]
            axis.errorbar(places, [c.mean(column) for _, c in levels], spread, marker="o", capsize=3,
                          label=f"{name}, {most} run{'s' * (most > 1)} a point")  # fmt: skip
        if log:
            axis.set_xscale("log", base=2)
            axis.set_xticks(order, [f"{x:g}" for x in order], fontsize=8)
        else:
            axis.set_xticks(range(len(order)), [str(x)[:18] for x in order], fontsize=8, rotation=20)
        axis.minorticks_off()
        axis.set_xlabel(report.STUDIES[flag], fontsize=8)
        axis.set_ylabel(axis_name(column), fontsize=8)
        axis.tick_params(axis="y", labelsize=7)
        axis.grid(True, alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=7, loc="outside lower center")
    devices = "; ".join(sorted({panel.device for panel, _ in found}))
    figure.suptitle(f"scores with 95 % intervals, else mean and standard deviation over the seeds; {devices}", fontsize=8)
    return save(figure, path)


def learning_curves(groups, path):
    """Score over the number of labelled examples, trained on or shown in the prompt: mean and spread over the seeds."""
    import matplotlib.ticker as ticker

    panels = {}
    for panel, found in groups.items():
        lines = {}
        for c in found:
            used = c.mean("labels_used")
            if c["strategy"] in ("full_finetuning", "peft", "prompting", "context_distillation"):
                kept = {
                    k: v for k, v in table.flags(c.rows[0]).items() if k not in (*table.CHANGES_NOTHING, "max_train_samples", "k_shots")
                }
                lines.setdefault((c["strategy"], Path(c["model"]).name, json.dumps(kept, sort_keys=True)), []).append((used, c))
        lines = {key: sorted(points, key=lambda p: p[0]) for key, points in lines.items() if len({used for used, _ in points}) > 1}
        if lines:
            panels[panel] = lines
    if not panels:
        return False
    figure, axes = new_figure([3.2] * len(panels))
    for axis, (panel, lines) in zip(axes[:, 0], panels.items()):
        for (strategy, model, _), points in lines.items():
            told = points[0][1].flag("max_steps")
            told = f", {told} steps" if told else f", {points[0][1].flag('epochs')} epochs" if points[0][1].flag("epochs") else ""
            calibrated = points[0][1].flag("calibrate")
            told += f", {calibrated} calibration" if calibrated not in (None, "none") else ""
            axis.errorbar([used for used, _ in points], [c.mean() for _, c in points], [c.spread() or 0 for _, c in points], marker="o",
                          capsize=3, label=f"{strategy}, {model}{told} ({max(len(c.rows) for _, c in points)} runs a point)")  # fmt: skip
        axis.set_xscale("symlog", linthresh=4)
        axis.xaxis.set_major_locator(ticker.FixedLocator(sorted({used for points in lines.values() for used, _ in points})))
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
    groups = {panel: with_value(found, "token_f1", "exact_match") for panel, found in groups.items() if panel.metric == "token_f1"}
    groups = {panel: found for panel, found in groups.items() if found}
    if not groups:
        return False
    figure, axes = new_figure([1.3 + 0.34 * len(found) for found in groups.values()])
    for axis, (panel, found) in zip(axes[:, 0], groups.items()):
        found = sorted(found, key=lambda c: c.mean("token_f1"))
        for shift, column in ((0.2, "token_f1"), (-0.2, "exact_match")):
            axis.barh([i + shift for i in range(len(found))], [c.mean(column) for c in found], 0.38, label=table.METRICS[column].label,
                      xerr=list(zip(*map(errors, found))) if column == "token_f1" else None, capsize=2)  # fmt: skip
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
            file = table.run_folder(configuration.rows[0], folder) / "training_history.json"
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
                    axis.plot(*zip(*points), style, color=f"C{i % 10}", linewidth=1, label=name if key == "loss" else None,
                              marker="." if len(points) < 3 else None)  # fmt: skip
        left = f"; {len(runs) - 10} of {len(runs)} configurations left out" if len(runs) > 10 else ""
        axis.set_title(f"{panel.data}: the first run of each configuration; dotted: validation{left}\n{panel.device}", fontsize=8)
        axis.set_xlabel("% of the run's optimizer steps", fontsize=8)
        axis.set_ylabel("loss", fontsize=8)
        axis.legend(fontsize=6.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return save(figure, path)


def draw(groups, folder, source):
    """Draw every chart that the rows have something for. Returns {file: caption}; prints what was saved and what was not."""
    import matplotlib

    matplotlib.use("Agg")
    charts = [
        ("scores.png", "Scores with 95 % intervals", bar_chart, (), "no scores"),
        ("latency_vs_score.png", "Score against latency", frontier_chart, ("latency_ms_p50",), "no row has a latency"),
        ("memory_vs_score.png", "Score against memory", frontier_chart, ("memory",), "no row has its memory"),
        ("training_cost.png", "What training took and left", cost_chart, (), "no row was trained"),
        ("rank.png", "LoRA's rank", study_chart, ("rank", ("score", "memory", "train_seconds")),
         "no runs that differ in their rank alone"),
        ("target_modules.png", "Which layers LoRA adapts", study_chart,
         ("target_modules", ("score", "trainable_params", "train_seconds"), False), "no runs that differ in their target modules alone"),
        ("precision.png", "Precision of the weights", study_chart, ("precision", ("score", "model_gb", "latency_ms_p50"), False),
         "no runs that differ in their precision alone"),
        ("learning_curves.png", "Score over labelled examples", learning_curves, (), "no runs that differ in their labels alone"),
        ("questions.png", "Question answering by model and method", question_chart, (), "no questions were answered"),
        ("loss_curves.png", "Loss over the steps", loss_chart, (Path(source).parent,), "the run folders of trained rows are not here"),
    ]  # fmt: skip
    drawn = {}
    for name, caption, chart, options, otherwise in charts:
        if chart(groups, folder / name, *options):
            drawn[folder / name] = caption
            print(f"saved {folder / name}")
        else:
            print(f"no {name}: {otherwise}")
    return drawn


# --------------------------------------------------------------------------------------------------------------- the tables


def print_table(panel, members):
    """The rows of one panel, as a plain table under its title."""
    columns = [name for name in COLUMNS if any(row[name] for row in members)]
    lines = [columns] + [[short(name, row[name]) for name in columns] for row in members]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    print(f"\n{title(panel)}, {panel.metric}".replace("\n", ", ").removeprefix(", "))
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def print_markdown(members):
    """The rows as a Markdown table, with intervals."""
    print("| strategy | variant | model | data, n | score [95 % interval] | ms a request (p50) | training s | peak GB | hardware |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")

    def cell(row, name, digits):
        found = table.value(row, name)
        return "" if found is None else f"{found:.{digits}f}"

    for row in members:
        interval = f" [{cell(row, 'score_low', 3)}, {cell(row, 'score_high', 3)}]" if row["score_low"] else ""
        cells = [row["strategy"], row["variant"], Path(row["model"]).name, f"{Path(row['dataset']).name}, {row['n_eval']}",
                 f"{row['metric']} {cell(row, 'score', 3)}{interval}" if row["score"] else row["status"], cell(row, "latency_ms_p50", 0),
                 cell(row, "train_seconds", 0), cell(row, "memory", 2), row["device_name"]]  # fmt: skip
        print("| " + " | ".join(cells) + " |")


def print_best(kept):
    """The configuration with the best mean score of each strategy in each panel, as a Markdown table."""
    print("| data, n | strategy | configuration | runs | score [95 % interval] | ms a request (p50) | peak GB | training s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for panel, members in table.panels(kept).items():
        best = {}
        for c in sorted(table.configurations(members), key=lambda c: -c.mean()):
            if c["variant"] not in table.BASELINES:
                best.setdefault(c["strategy"], c)
        for strategy, c in best.items():
            cells = [f"{panel.data}, {panel.n_eval}", strategy, c.name.removeprefix(f"{strategy} "), len(c.rows),
                     f"{panel.metric} {report.score_cell(c)}", report.number(c.mean("latency_ms_p50"), 0),
                     report.number(c.mean("memory"), 2),
                     report.number(c.mean("train_seconds"), 0)]  # fmt: skip
            print("| " + " | ".join(map(str, cells)) + " |")


def short(name, cell):
    """A cell as the table shows it."""
    if name == "model":
        return Path(cell).name
    try:
        return f"{float(cell):.4g}"
    except ValueError:
        return cell


def writable(path, flag):
    """The path, whose folder is there; UserError where nothing can be written."""
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise utils.UserError(f"{flag} {path}: {'that is a folder' if path.is_dir() else f'there is no folder {path.parent}'}")
    return path


@utils.clean_exit
def main(argv=None):
    # 1. settings
    args = parse_args(argv)
    if args.report and (args.export or args.markdown or args.compare):
        raise utils.UserError("--report comes with the charts; leave out --export, --markdown and --compare")
    if args.compare:
        return report.compare(*args.compare)
    path = args.results or ("results.csv" if Path("results.csv").is_file() else "sample_results.csv")
    found = utils.read_results(path)
    if args.report:
        writable(args.report, "--report")

    # 2. the rows
    if args.markdown == "all":
        return print_markdown(found)
    if args.markdown == "best":
        return print_best(table.select(found)[0])
    if args.export:
        report.export(writable(args.export, "--export"), found)
        return print(f"{len(found)} rows in {args.export}")
    kept, skipped = table.select(found)
    print(f"{len(found)} rows in {path}")
    for panel, members in table.panels(kept).items():
        print_table(panel, members)
    for run_id, why in skipped:
        print(f"not drawn: {run_id} ({why})")
    if not kept:
        raise utils.UserError(f"{path} has no row with status ok and a score, so there is nothing to draw")

    # 3. charts and report
    folder = Path(args.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise utils.UserError(f"--output_dir {folder}: {error.strerror}") from None
    groups = {panel: table.configurations(members) for panel, members in table.panels(kept).items()}
    left = {run_id for run_id, _ in skipped}
    SKIPPED.clear()
    SKIPPED.update(collections.Counter(table.data_name(row) for row in found if row["run_id"] in left))
    charts = draw(groups, folder, path)
    if args.report:
        report.write(args.report, found, kept, skipped, charts, path)
        print(f"saved {args.report}")


if __name__ == "__main__":
    main()
