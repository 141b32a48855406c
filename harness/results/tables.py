"""Tables in the terminal and in Markdown."""

from pathlib import Path

from harness.results import champions, configurations, markdown

# the columns of the printed table; one that is empty in all rows of a panel is left out there
COLUMNS = (
    "strategy",
    "variant",
    "model",
    "labels_used",
    "k_shots",
    "seed",
    "data_seed",
    "score",
    "score_low",
    "score_high",
    "reference_perplexity",
    "text_perplexity",
    "bits_per_byte",
    "recall_at_k",
    "latency_ms_p50",
    "cached_latency_ms_p50",
    "ttft_ms",
    "tpot_ms",
    "tokens_per_s",
    "speedup",
    "acceptance_rate",
    "accepted_length",
    "greedy_agreement",
    "compile_seconds",
    "train_seconds",
    "model_gb",
    "peak_gpu_gb",
    "peak_rss_gb",
    "serving_gpu_gb",
    "serving_rss_gb",
)


def number(value, digits=3):
    """A number as text, nothing where it is unknown."""
    return "" if value is None else f"{value:.{digits}f}"


def score_cell(configuration):
    """Mean score ± standard deviation over the runs [95 % interval], as far as they are known, and collapsed runs."""
    spread, collapsed = configuration.spread(), degenerate(configuration)
    text = f"{configuration.mean():.3f}" + (f" ± {spread:.3f}" if spread is not None else "") + interval(configuration)
    return text + (f", {collapsed}" if collapsed else "")


def interval(found):
    """The 95 % interval of a Configuration or Champion after a space; "" where it is not known."""
    low, high = found.interval
    return "" if low is None else f" [{low:.3f}, {high:.3f}]"


def degenerate(configuration):
    """3 of 5 runs degenerate; "" for none."""
    n, runs = configuration.degenerate, len(configuration.rows)
    return f"{n} of {runs} run{'s' * (runs > 1)} degenerate" if n else ""


def champion_cell(champion):
    """A Champion's score [95 % interval] and how it was found; of the only configuration as score_cell."""
    if champion.among < 2:
        return score_cell(champion.configuration)
    parts = [f"{champion.mean():.3f}{interval(champion)}", champion.how(), degenerate(champion.configuration)]
    return ", ".join(filter(None, parts))


def print_table(panel, members):
    """The rows of one panel, as a plain table under its title."""
    columns = [name for name in COLUMNS if any(row[name] for row in members)]
    lines = [columns] + [[short(name, row[name]) for name in columns] for row in members]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    print("\n" + ", ".join(filter(None, [panel.data, f"n = {panel.n_eval}", panel.device, panel.metric])))
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def short(name, cell):
    """A cell as the printed table shows it."""
    if name == "model":
        return Path(cell).name
    try:
        return f"{float(cell):.4g}"
    except ValueError:
        return cell


def print_markdown(rows):
    """All rows as a Markdown table, with intervals; the status instead of the score of a run without one."""
    lines = []
    for row in rows:

        def cell(name, digits, row=row):
            return number(configurations.value(row, name), digits)

        interval = f" [{cell('score_low', 3)}, {cell('score_high', 3)}]" if row["score_low"] else ""
        lines.append(
            [
                row["strategy"],
                row["variant"],
                Path(row["model"]).name,
                f"{Path(row['dataset']).name}, {row['n_eval']}",
                cell("labels_used", 0),
                f"{row['metric']} {cell('score', 3)}{interval}" if row["score"] else row["status"],
                cell("latency_ms_p50", 0),
                cell("train_seconds", 0),
                cell("memory", 2),
                row["device_name"],
            ]
        )
    columns = "strategy, variant, model, data and n, labels, score [95 % interval], ms a request (p50), training s"
    columns += ", peak GB, hardware"
    print(markdown.table(columns.split(", "), lines))


def print_best(rows, folder):
    """The configuration with the best mean score of each strategy in each panel, as a Markdown table.

    The score is cross-fitted where the run folders are there; else the table says how much too high it is at most.
    folder: that of the CSV.
    """
    lines = []
    for panel, members in configurations.panels(rows).items():
        for champion in champions.by_strategy(configurations.group_seeds(members, folder)):
            c = champion.configuration
            score = f"{champion.mean():.3f}{interval(champion)}" if champion.cross_fitted else score_cell(c)
            lines.append(
                [
                    f"{panel.data}, {panel.n_eval}",
                    c.kin,
                    c.name,
                    len(c.rows),
                    f"{panel.metric} {score}",
                    best_of(champion),
                    number(c.mean("latency_ms_p50"), 0),
                    number(c.mean("memory"), 2),
                    number(c.mean("train_seconds"), 0),
                ]
            )
    columns = "data and n, strategy, configuration, runs, score [95 % interval], best of"
    print(markdown.table([*columns.split(", "), "ms a request (p50)", "peak GB", "training s"], lines))


def best_of(champion):
    """Of how many configurations a Champion is the best, and how its score was found."""
    if champion.cross_fitted:
        return f"{champion.among}, cross-fitted"
    return f"{champion.among}, at most about {champion.optimism:.3f} too high" if champion.optimism else champion.among
