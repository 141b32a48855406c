"""What each method scores on each data set of a log: the tables of docs/results.md and README.md.

    python benchmarks/log_tables.py --readme docs/results.md
    python benchmarks/log_tables.py --data dolly_category tweets debian_section hans --readme README.md

The first command writes a line for each data set (with --labels labels, more or fewer labels, questions), the second
one for each method, for the data sets that --data names. Only rows with the same evaluation examples stand in one
line; several draws of the labels are averaged. Needs no GPU and no model. Writes benchmarks/results/log_tables.json.
"""

import statistics
from collections import Counter, defaultdict
from pathlib import Path

from common import ROOT, markdown, publish

import utils
from harness import flags
from harness.results import configurations, store

ENCODER, SMALL, LM = "all-MiniLM-L6-v2", "paraphrase-MiniLM-L3-v2", "SmolLM2-135M-Instruct"
# title -> (strategy, variant, model); those without a label take any label budget
METHODS = {
    "TF-IDF, probe": ("probe", "tfidf_logreg", ""),
    "MiniLM-L3, probe": ("probe", "embedder_logreg", SMALL),
    "MiniLM, probe": ("probe", "embedder_logreg", ENCODER),
    "MiniLM, full": ("full_finetuning", "full", ENCODER),
    "MiniLM, LoRA": ("peft", "lora_r8", ENCODER),
    "MiniLM, SetFit": ("probe", "embedder_logreg_contrastive", ENCODER),
    "SmolLM2, probe": ("probe", "lm_logreg", LM),
    "SmolLM2, full": ("full_finetuning", "full", LM),
    "SmolLM2, LoRA": ("peft", "lora_r8", LM),
    "SmolLM2, chosen prompt": ("prompting", "searched", LM),
    "SmolLM2, zero-shot, calibrated": ("prompting", "0_shot_contextual_calibrated", LM),
}
ANSWERS = {
    "zero-shot": ("prompting", "0_shot", LM),
    "four-shot": ("prompting", "4_shot", LM),
    "LoRA": ("peft", "lora_r8", LM),
    "full": ("full_finetuning", "full", LM),
}
SEARCHED = ("source", "articles", "ag_news")  # the defaults of full fine-tuning and LoRA were chosen on their examples
TUNED = ("MiniLM, full", "MiniLM, LoRA", "SmolLM2, full", "SmolLM2, LoRA")
UNLABELLED = ("SmolLM2, zero-shot, calibrated", "zero-shot", "four-shot")
BUDGETS = (16, 125, 500, 2000)
CURVES = ("TF-IDF, probe", "MiniLM, probe")


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    add = parser.add_argument
    add("--results", default=str(ROOT / "sample_results.csv"), help="the rows (default: sample_results.csv)")
    add("--labels", type=flags.positive_int, default=125, metavar="N", help="label budget (default: %(default)s)")
    add("--data", nargs="+", metavar="NAME", help="a column for each of these data sets, a line for each method")
    add("--output", metavar="FILE", help="the numbers (default: benchmarks/results/log_tables.json, or .._by_method)")
    add("--readme", metavar="FILE", help="put the tables between their marks there")
    return parser.parse_args(argv)


class Log:
    """The rows of a CSV by data set, method and label budget."""

    def __init__(self, rows):
        self.cells, self.about, self.panels = defaultdict(list), {}, defaultdict(Counter)  # about: {eval_id: a row}
        for row in rows:
            panel = (row["metric"], row["n_eval"], row["eval_id"])
            self.panels[configurations.data_name(row)][panel] += 1
            self.about[row["eval_id"]] = row
            method = (row["strategy"], row["variant"], Path(row["model"]).name)
            self.cells[row["eval_id"], method, configurations.flags(row).get("label_budget")].append(row)

    def data_sets(self, metric):
        """[(name, eval_id)] of a metric, of each data set the evaluation examples with most rows, by their number."""
        found = []
        for name, panels in self.panels.items():
            some = {panel: n for panel, n in panels.items() if panel[0] == metric}
            if some:
                found.append((name, max(some, key=some.get)[2]))
        return found

    def rows(self, eval_id, title, labels, methods=METHODS):
        if title in TUNED and configurations.data_name(self.about[eval_id]) in SEARCHED:
            return []
        return self.cells.get((eval_id, methods[title], None if title in UNLABELLED else labels), [])

    def score(self, eval_id, title, labels, methods=METHODS):
        """(mean score, are all its runs degenerate), None where there is no row."""
        rows = self.rows(eval_id, title, labels, methods)
        if not rows:
            return None
        return statistics.mean(float(row["score"]) for row in rows), all(row["status"] == "degenerate" for row in rows)


def worded(found, best=None):
    """A score; in bold where it is the best, with a mark where its runs collapsed."""
    if found is None:
        return ""
    text = f"{found[0]:.3f}" + ("°" if found[1] else "")
    return f"**{text}**" if best is not None and found[0] >= best else text


def best_of(scores):
    return max((found[0] for found in scores if found), default=None)


def widest(log, sets, labels):
    """The widest half of a 95 % interval among the rows of a table, and the labels that its rows used."""
    rows = [row for _, eval_id in sets for title in METHODS for row in log.rows(eval_id, title, labels)]
    half = max(max(float(r["score_high"]) - float(r["score"]), float(r["score"]) - float(r["score_low"])) for r in rows)
    used = [float(r["labels_used"]) for r in rows if float(r["labels_used"] or 0)]
    if not used:
        raise utils.UserError(f"--labels {labels}: no row has this label budget")
    return half, f"{min(used):.0f} to {max(used):.0f}"


def note(log, sets, labels):
    half, used = widest(log, sets, labels)
    why = ["not run", "not possible (SetFit on pairs of texts)"]
    if searched := [name for name, _ in sets if name in SEARCHED]:
        why.append(f"left out: full fine-tuning and LoRA on {', '.join(searched)}, whose examples chose their defaults")
    return (
        f"Accuracy with a budget of {labels} labels ({used} used; zero-shot none); half a 95 % interval is {half:.3f} "
        "at most. majority: the share of the most frequent class. Bold: the best of its data set, by its score alone. "
        f"°: nearly one class only. Empty: {', or '.join(why)}."
    )


def by_data(log, labels):
    """A line for each data set."""
    sets, rows, data = [], [], {}
    for name, eval_id in log.data_sets("accuracy"):
        scores = {title: log.score(eval_id, title, labels) for title in METHODS}
        about, best = log.about[eval_id], best_of(scores.values())
        majority = float(about["majority_baseline"])
        rows.append((sum(s is not None for s in scores.values()), name, about, majority, scores, best))
        sets.append((name, eval_id))
        data[name] = {title: found and found[0] for title, found in scores.items()} | {"majority": majority}
    rows.sort(key=lambda row: (-row[0], row[1]))
    lines = [
        [name, about["n_eval"], about["n_classes"], f"{majority:.3f}", *(worded(s, best) for s in scores.values())]
        for _, name, about, majority, scores, best in rows
    ]
    header = ["data set", "n", "classes", "majority", *METHODS]
    return [note(log, sets, labels), "", markdown(header, lines)], data


def by_method(log, names, labels):
    """A line for each method."""
    known = dict(log.data_sets("accuracy"))
    if missing := [name for name in names if name not in known]:
        raise utils.UserError(f"--data {missing[0]}: no rows; there are {', '.join(sorted(known))}")
    sets = [(name, known[name]) for name in names]
    about = [log.about[eval_id] for _, eval_id in sets]
    scores = {title: [log.score(eval_id, title, labels) for _, eval_id in sets] for title in METHODS}
    best = [best_of(column) for column in zip(*scores.values())]
    lines = [["majority class", *(f"{float(row['majority_baseline']):.3f}" for row in about)]]
    lines += [[title, *map(worded, line, best)] for title, line in scores.items()]
    header = ["method", *(f"{name} ({row['n_classes']})" for name, row in zip(names, about))]
    return [note(log, sets, labels), "", markdown(header, lines)], {title: line for title, line in scores.items()}


def curves(log):
    """Scores of the quick methods by labels."""
    lines = []
    for name, eval_id in sorted(log.data_sets("accuracy")):
        scores = [log.score(eval_id, title, labels) for title in CURVES for labels in BUDGETS]
        half = len(BUDGETS)
        best = [best_of(pair) for pair in zip(scores[:half], scores[half:])] * 2
        lines.append([name, *map(worded, scores, best)])
    header = ["data set", *(f"{title.split(',')[0]}, {labels:,}" for title in CURVES for labels in BUDGETS)]
    return ["Probes by the number of labels; bold: the better one.", "", markdown(header, lines)]


def answers(rows):
    """Scores on questions: a line for each data set and set of evaluation examples."""
    log, lines = Log([row for row in rows if row["metric"] == "token_f1"]), []
    for name, panels in sorted(log.panels.items()):
        for _, n, eval_id in sorted(panels):
            for labels in sorted({budget for (one, _, budget) in log.cells if one == eval_id and budget}) or [""]:
                scores = [log.score(eval_id, title, labels or None, ANSWERS) for title in ANSWERS]
                lines.append([name, n, labels, *(worded(s, best_of(scores)) for s in scores)])
    return [
        "Questions, SmolLM2-135M: token F1. Zero-shot uses no labels, four-shot four.",
        "",
        markdown(["data set", "n", "labels", *ANSWERS], lines),
    ]


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    rows = [row for row in store.read_results(args.results) if row["status"] in ("ok", "degenerate")]
    log = Log(rows)
    if args.data:
        lines, data = by_method(log, args.data, args.labels)
        by_methods = args.output or ROOT / "benchmarks" / "results" / "log_tables_by_method.json"
        publish("log_tables", "\n".join(lines), data, args.readme, by_methods)
        return
    lines, data = by_data(log, args.labels)
    lines += ["", *curves(log), "", *answers(rows)]
    publish("log_tables", "\n".join(lines), data, args.readme, args.output)


if __name__ == "__main__":
    main()
