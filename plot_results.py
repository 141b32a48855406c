"""Charts of the results CSV: score bars with 95 % intervals, and score against latency; prints the rows as a table.

Rows are drawn together only where their evaluation examples (eval_id) and metric are the same; each such group is one panel.

    python plot_results.py                         # results.csv, or sample_results.csv if there is none yet
    python plot_results.py --results mine.csv --output_dir charts
"""

import json
from pathlib import Path

import utils

COLUMNS = (
    "strategy",
    "variant",
    "model",
    "metric",
    "score",
    "n_eval",
    "latency_ms_p50",
    "train_seconds",
    "peak_gpu_gb",
    "peak_rss_gb",
    "status",
)


def parse_args(argv=None):
    parser = utils.ArgumentParser(__doc__)
    parser.add_argument("--results", help="the results CSV (default: results.csv, or sample_results.csv if there is none yet)")
    parser.add_argument("--output_dir", default="plots", help="where the PNGs go (default: %(default)s)")
    parser.add_argument("--markdown", action="store_true", help="print the rows as a Markdown table and draw nothing")
    return parser.parse_args(argv)


# ---------------------------------------------------------------------------------------------------------------- the rows


def label(row):
    """What a row is called in a chart."""
    plain = row["precision"] in ("fp32", row["variant"]) or row["precision"] in row["variant"]
    return f"{row['strategy']} {row['variant']}" + ("" if plain else f" {row['precision']}") + f"\n{Path(row['model']).name}"


def identity(row):
    """Rows of one configuration, that is, of the same script with the same flags on the same data: the newest is drawn."""
    try:
        args = json.loads(row["args"] or "{}")
    except ValueError:
        raise utils.UserError(f"run {row['run_id']}: its cell args is no JSON") from None
    flags = {key: value for key, value in args.items() if key not in ("results", "runs_dir", "resume")}
    return row["script"], row["variant"], row["eval_id"], row["device_name"], json.dumps(flags, sort_keys=True)


def select(rows):
    """(rows to draw, [(run id, why not)])."""
    newest, skipped = {}, []
    for row in rows:
        if row["status"] != "ok":
            skipped.append((row["run_id"], f"status {row['status']}: {row['note']}"))
        elif utils.number(row["score"]) is None:
            skipped.append((row["run_id"], "no score"))
        else:
            if identity(row) in newest:
                skipped.append((newest[identity(row)]["run_id"], f"the same configuration was run again as {row['run_id']}"))
            newest[identity(row)] = row
    return list(newest.values()), skipped


def panels(rows):
    """{(data set, subset, metric, eval_id, device): rows}: what may be compared."""
    groups = {}
    for row in rows:
        data = " ".join(filter(None, [Path(row["dataset"]).name, row["subset"]]))
        groups.setdefault((data, row["metric"], row["eval_id"], row["n_eval"], row["device_name"]), []).append(row)
    return groups


# -------------------------------------------------------------------------------------------------------------- the charts


def title(key):
    data, metric, _, n, device = key
    return f"{data}, n = {n}\n{device}"


def bar_chart(groups, path):
    """A panel a group; bars from the worst to the best, with 95 % intervals and the majority baseline where it is known."""
    import matplotlib.pyplot as plt

    heights = [len(rows) for rows in groups.values()]
    figure, axes = plt.subplots(len(groups), 1, figsize=(9, sum(0.9 + 0.5 * h for h in heights) + 0.5), squeeze=False,
                                height_ratios=[h + 1 for h in heights], layout="constrained")  # fmt: skip
    for axis, (key, rows) in zip(axes[:, 0], groups.items()):
        rows = sorted(rows, key=lambda row: utils.number(row["score"]))
        scores = [utils.number(row["score"]) for row in rows]
        lows = [utils.number(row["score_low"]) for row in rows]
        highs = [utils.number(row["score_high"]) for row in rows]
        errors = [
            [0 if low is None else s - low for s, low in zip(scores, lows)],
            [0 if high is None else high - s for s, high in zip(scores, highs)],
        ]
        axis.barh(range(len(rows)), scores, xerr=errors, capsize=3)
        axis.set_yticks(range(len(rows)), [label(row) for row in rows], fontsize=8)
        for i, (score, high) in enumerate(zip(scores, highs)):
            axis.text((high or score) + 0.01, i, f"{score:.3f}", va="center", fontsize=8)
        baseline = utils.number(rows[0]["majority_baseline"])
        if baseline is not None:
            axis.axvline(baseline, linestyle="--", linewidth=1, label="majority class")
            axis.legend(fontsize=8, loc="lower right")
        axis.set_title(title(key), fontsize=9)
        axis.set_xlabel(f"{rows[0]['metric']} with 95 % interval", fontsize=8)
        axis.set_xlim(0, min(1.08, max(h or s for h, s in zip(highs, scores)) * 1.15))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def scatter_chart(groups, path):
    """A panel a group; score against the latency of one request alone (median, logarithmic)."""
    import matplotlib.pyplot as plt

    groups = {key: [row for row in rows if utils.number(row["latency_ms_p50"])] for key, rows in groups.items()}
    groups = {key: rows for key, rows in groups.items() if rows}
    if not groups:
        return False
    figure, axes = plt.subplots(len(groups), 1, figsize=(9, 3.6 * len(groups)), squeeze=False, layout="constrained")
    for axis, (key, rows) in zip(axes[:, 0], groups.items()):
        for row in sorted(rows, key=lambda row: -utils.number(row["score"])):
            axis.plot(utils.number(row["latency_ms_p50"]), utils.number(row["score"]), "o", label=label(row).replace("\n", ", "))
        axis.set(xscale="log", xlabel="latency of one request, ms (p50)", ylabel=rows[0]["metric"])
        axis.set_title(title(key), fontsize=9)
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        axis.grid(True, alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True


def print_table(rows):
    """The rows, as a plain table."""
    lines = [COLUMNS] + [tuple(short(name, row[name]) for name in COLUMNS) for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def print_markdown(rows):
    """The rows as a Markdown table, with intervals."""
    print("| strategy | variant | model | data, n | score [95 % interval] | ms a request (p50) | training s | peak GB | hardware |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        interval = f" [{float(row['score_low']):.3f}, {float(row['score_high']):.3f}]" if row["score_low"] else ""
        cells = [row["strategy"], row["variant"], Path(row["model"]).name, f"{Path(row['dataset']).name}, {row['n_eval']}",
                 f"{row['metric']} {float(row['score']):.3f}{interval}" if row["score"] else row["status"],
                 f"{float(row['latency_ms_p50']):.0f}" if row["latency_ms_p50"] else "",
                 f"{float(row['train_seconds']):.0f}" if row["train_seconds"] else "",
                 f"{float(row['peak_gpu_gb'] or row['peak_rss_gb']):.2f}" if row["peak_rss_gb"] else "", row["device_name"]]  # fmt: skip
        print("| " + " | ".join(cells) + " |")


def short(name, cell):
    """A cell as the table shows it."""
    if name == "model":
        return Path(cell).name
    try:
        return f"{float(cell):.4g}"
    except ValueError:
        return cell


@utils.clean_exit
def main(argv=None):
    # 1. settings
    args = parse_args(argv)
    path = args.results or ("results.csv" if Path("results.csv").is_file() else "sample_results.csv")
    rows = utils.read_results(path)

    # 2. the rows
    if args.markdown:
        return print_markdown(rows)
    drawn, skipped = select(rows)
    print(f"{len(rows)} rows in {path}")
    print_table(rows)
    for run_id, why in skipped:
        print(f"not drawn: {run_id} ({why})")
    if not drawn:
        raise utils.UserError(f"{path} has no row with status ok and a score, so there is nothing to draw")

    # 3. the charts
    import matplotlib

    matplotlib.use("Agg")
    folder = Path(args.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise utils.UserError(f"--output_dir {folder}: {error.strerror}") from None
    groups = panels(drawn)
    bar_chart(groups, folder / "scores.png")
    print(f"saved {folder / 'scores.png'}")
    if scatter_chart(groups, folder / "latency_vs_score.png"):
        print(f"saved {folder / 'latency_vs_score.png'}")
    else:
        print("no row has a latency, so there is no latency chart")


if __name__ == "__main__":
    main()
