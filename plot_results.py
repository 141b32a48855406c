"""Charts of the results CSV: score bars with 95 % intervals, and score against latency; prints the rows as a table.

Rows are drawn together only where their evaluation examples (eval_id) and metric are the same; each such group is one panel.

    python plot_results.py                         # results.csv, or sample_results.csv if there is none yet
    python plot_results.py --results mine.csv --output_dir charts
    python plot_results.py --compare runs/RUN_A runs/RUN_B     # a paired test on the examples that both have seen
"""

import json
from pathlib import Path

import metrics
import utils

# the columns of the printed table; one that is empty in all rows of a panel is left out there
COLUMNS = (
    "strategy", "variant", "model", "n_train", "k_shots", "seed", "data_seed", "score", "score_low", "score_high", "perplexity",
    "recall_at_k", "latency_ms_p50", "cached_latency_ms_p50", "ttft_ms", "tpot_ms", "tokens_per_s", "speedup", "acceptance_rate",
    "accepted_length", "greedy_agreement",
    "compile_seconds", "train_seconds", "model_gb", "peak_gpu_gb", "peak_rss_gb",
)  # fmt: skip
# flags that tell two rows with one name apart, as far as they differ
TELLING = (
    "n_train", "seed", "data_seed", "rank", "learning_rate", "epochs", "target_modules", "embed_model", "chunk_tokens", "template",
    "scoring", "precision",
)  # fmt: skip


def parse_args(argv=None):
    parser = utils.ArgumentParser(__doc__)
    parser.add_argument("--results", help="the results CSV (default: results.csv, or sample_results.csv if there is none yet)")
    parser.add_argument("--output_dir", default="plots", help="where the PNGs go (default: %(default)s)")
    parser.add_argument("--markdown", action="store_true", help="print the rows as a Markdown table and draw nothing")
    parser.add_argument("--compare", nargs=2, metavar="RUN", help="two run folders: are they different on the same examples? Draws nothing")
    return parser.parse_args(argv)


# ---------------------------------------------------------------------------------------------------------------- the rows


def flags(row):
    """The run's flags, from its cell args."""
    try:
        return json.loads(row["args"] or "{}")
    except ValueError:
        raise utils.UserError(f"run {row['run_id']}: its cell args is no JSON") from None


def labels(rows):
    """What each row of a panel is called: strategy, variant, model, and the flags that differ where those are the same."""
    plain = [f"{row['strategy']} {row['variant']}, {Path(row['model']).name}" for row in rows]
    names = []
    for row, name in zip(rows, plain):
        twins = [other for other, other_name in zip(rows, plain) if other_name == name]
        for key in TELLING:
            values = {str(other.get(key) or flags(other).get(key)) for other in twins}
            if len(values) > 1:
                name += f", {key} {row.get(key) or flags(row).get(key)}"
        names.append(name)
    return names


def identity(row):
    """Rows of one configuration, that is, of the same script with the same flags on the same data: the newest is drawn."""
    same = {key: value for key, value in flags(row).items() if key not in ("results", "runs_dir", "resume")}
    return row["script"], row["variant"], row["eval_id"], row["device_name"], json.dumps(same, sort_keys=True)


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


# --------------------------------------------------------------------------------------------------------- the paired test


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
    name = f"{row['strategy']} {row['variant']}, {Path(row['model']).name}"
    return {key: value for key, value in scores.items() if value is not None}, metric, row, name


def compare(first, second):
    """Print whether two runs differ on the examples that both have scored, and how many examples would settle it."""
    (a, metric, row_a, name_a), (b, other, row_b, name_b) = run_scores(first), run_scores(second)
    if metric != other:
        raise utils.UserError(f"the runs are scored by {metric} and by {other}, which cannot be compared")
    ids = [key for key in a if key in b]
    if not ids or row_a["dataset"] != row_b["dataset"]:
        raise utils.UserError(f"the runs have no examples in common: {row_a['dataset']} and {row_b['dataset']}")
    one, two = [a[key] for key in ids], [b[key] for key in ids]
    difference, low, high, p = metrics.paired_difference(one, two)
    test = "paired bootstrap"
    if set(one) | set(two) <= {0.0, 1.0}:
        p, only_one, only_two = metrics.mcnemar(one, two)
        test = f"McNemar's exact test, {only_one} right only in the first, {only_two} only in the second"
    n = len(ids)
    print(f"first:  {name_a}, {metric} {sum(one) / n:.3f}  ({first})")
    print(f"second: {name_b}, {metric} {sum(two) / n:.3f}  ({second})")
    if len(a) != n or len(b) != n:
        print(f"on the {n} examples that both have; {len(a) - n} and {len(b) - n} others left out")
    if p == 1.0 and not difference:
        print(f"the two have the same score on all {n} examples" if one == two else f"no difference at all in the mean of {n} examples")
        return
    interval = "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
    print(f"second - first: {difference:+.3f}{interval}, p = {p:.3g} ({test})")
    if p < 0.05:
        print(f"the {'second' if difference > 0 else 'first'} is better: chance alone would do this in {p:.1%} of such pairs")
        return
    needed = metrics.examples_needed(one, two)
    settle = f"; about {needed:,} examples would settle it, if the difference is what was seen" if needed else ""
    print(f"no difference that n = {n} can show{settle}")


# -------------------------------------------------------------------------------------------------------------- the charts


def title(key):
    data, _, _, n, device = key
    return f"{data}, n = {n}\n{device}"


def errors(row):
    """How far the 95 % interval reaches below and above the score; nothing where it is unknown."""
    score, low, high = (utils.number(row[name]) for name in ("score", "score_low", "score_high"))
    return (0, 0) if low is None or high is None else (score - low, high - score)


def bar_chart(groups, path):
    """A panel a group; bars from the worst to the best, with 95 % intervals and the majority baseline where it is known."""
    import matplotlib.pyplot as plt

    heights = [len(rows) for rows in groups.values()]
    figure, axes = plt.subplots(len(groups), 1, figsize=(9, sum(1.1 + 0.36 * h for h in heights)), squeeze=False,
                                height_ratios=[h + 1 for h in heights], layout="constrained")  # fmt: skip
    for axis, (key, rows) in zip(axes[:, 0], groups.items()):
        rows = sorted(rows, key=lambda row: utils.number(row["score"]))
        scores = [utils.number(row["score"]) for row in rows]
        axis.barh(range(len(rows)), scores, xerr=list(zip(*map(errors, rows))), capsize=3)
        axis.set_yticks(range(len(rows)), labels(rows), fontsize=8)
        for i, row in enumerate(rows):
            end = scores[i] + errors(row)[1]
            axis.annotate(f"{scores[i]:.3f}", (end, i), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
        baseline = utils.number(rows[0]["majority_baseline"])
        name = f"{rows[0]['metric']} with 95 % interval"
        if baseline is not None:
            axis.axvline(baseline, linestyle="--", linewidth=1.2, color="C1", zorder=3)
            name += f"; dashed: the majority class, {baseline:.3f}"
        axis.set_title(title(key), fontsize=9)
        axis.set_xlabel(name, fontsize=8)
        axis.set_xlim(0, max(s + errors(row)[1] for s, row in zip(scores, rows)) * 1.12)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def scatter_chart(groups, path):
    """A panel a group; score with its interval against the latency of one request alone (median, logarithmic)."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    groups = {key: [row for row in rows if utils.number(row["latency_ms_p50"])] for key, rows in groups.items()}
    groups = {key: rows for key, rows in groups.items() if rows}
    if not groups:
        return False
    figure, axes = plt.subplots(len(groups), 1, figsize=(9, 2.8 * len(groups)), squeeze=False, layout="constrained")
    for axis, (key, rows) in zip(axes[:, 0], groups.items()):
        rows = sorted(rows, key=lambda row: -utils.number(row["score"]))
        for row, name in zip(rows, labels(rows)):
            below, above = errors(row)
            axis.errorbar(
                utils.number(row["latency_ms_p50"]), utils.number(row["score"]), [[below], [above]], fmt="o", capsize=3, label=name
            )
        latencies = [utils.number(row["latency_ms_p50"]) for row in rows]
        axis.set(xscale="log", xlim=(min(latencies) / 2, max(latencies) * 2))
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("latency of one request, ms (p50)", fontsize=8)
        axis.set_ylabel(rows[0]["metric"], fontsize=8)
        axis.set_title(title(key), fontsize=9)
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        axis.grid(True, alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True


def print_table(key, rows):
    """The rows of one panel, as a plain table under its title."""
    columns = [name for name in COLUMNS if any(row[name] for row in rows)]
    lines = [columns] + [[short(name, row[name]) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    print(f"\n{title(key)}, {rows[0]['metric']}".replace("\n", ", ").removeprefix(", "))
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def print_markdown(rows):
    """The rows as a Markdown table, with intervals."""
    print("| strategy | variant | model | data, n | score [95 % interval] | ms a request (p50) | training s | peak GB | hardware |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")

    def cell(row, name, digits):
        value = utils.number(row[name])
        return "" if value is None else f"{value:.{digits}f}"

    for row in rows:
        interval = f" [{cell(row, 'score_low', 3)}, {cell(row, 'score_high', 3)}]" if row["score_low"] else ""
        cells = [row["strategy"], row["variant"], Path(row["model"]).name, f"{Path(row['dataset']).name}, {row['n_eval']}",
                 f"{row['metric']} {cell(row, 'score', 3)}{interval}" if row["score"] else row["status"], cell(row, "latency_ms_p50", 0),
                 cell(row, "train_seconds", 0), cell(row, "peak_gpu_gb", 2) or cell(row, "peak_rss_gb", 2), row["device_name"]]  # fmt: skip
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
    if args.compare:
        return compare(*args.compare)
    path = args.results or ("results.csv" if Path("results.csv").is_file() else "sample_results.csv")
    rows = utils.read_results(path)

    # 2. the rows
    if args.markdown:
        return print_markdown(rows)
    drawn, skipped = select(rows)
    print(f"{len(rows)} rows in {path}")
    groups = panels(drawn)
    for key, members in groups.items():
        print_table(key, members)
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
    bar_chart(groups, folder / "scores.png")
    print(f"saved {folder / 'scores.png'}")
    if scatter_chart(groups, folder / "latency_vs_score.png"):
        print(f"saved {folder / 'latency_vs_score.png'}")
    else:
        print("no row has a latency, so there is no latency chart")


if __name__ == "__main__":
    main()
