"""The scores of single examples, from the predictions.jsonl of run folders."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import utils
from harness.results import label_counts, store

ROUNDING = 1e-3  # by which a row's score may differ from the mean of its predictions.jsonl


@dataclass
class RunScores:
    """One run as its folder has it."""

    scores: dict  # {example id: score}
    metric: str
    row: dict  # of row.json
    name: str
    targets: dict  # {example id: target}
    clusters: dict  # {example id: cluster, None where the example is one of its own}


@dataclass(eq=False)
class ExampleScores:
    """The scores of S runs of one configuration on the same N examples."""

    ids: list  # [N]
    runs: np.ndarray  # [S, N]
    clusters: list  # [N], None where the example is a cluster of its own

    @property
    def means(self):
        """[N] means over the runs."""
        return self.runs.mean(axis=0)


def run_folder(row, beside):
    """The folder of a row's run.

    The row's run_dir is relative to the folder where the script ran: the current one, or `beside`, that of the CSV.
    """
    places = [Path(row["run_dir"]), Path(beside) / row["run_dir"]]
    return next((place for place in places if row["run_dir"] and place.is_dir()), places[0])


def read(folder):
    """The RunScores of a run folder.

    UserError where the folder has no row.json and predictions.jsonl, or the run has no score.
    """
    folder = Path(folder)
    missing = [name for name in ("row.json", "predictions.jsonl") if not (folder / name).is_file()]
    if missing:
        raise utils.UserError(f"{folder} is no run folder: it has no {' and no '.join(missing)}")
    try:
        row = json.loads((folder / "row.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise utils.UserError(f"{folder} is no run folder: row.json cannot be read: {error}") from None
    records = store.read_jsonl(folder / "predictions.jsonl")
    metric = row.get("metric")
    if row.get("status") not in ("ok", "degenerate") or not records:
        raise utils.UserError(f"{folder}: the run's status is {row.get('status')}, so there is nothing to compare")
    scores = {record["id"]: _score(record, metric) for record in records}
    labels = row["labels_used"] if "labels_used" in row else label_counts.derived(row)
    name = f"{row['strategy']} {row['variant']}, {Path(row['model'] or 'no model').name}"  # TF-IDF has none
    return RunScores(
        {key: score for key, score in scores.items() if score is not None},
        metric,
        row,
        name + (f", {labels} labelled examples" if labels not in (None, "", "0", 0) else ""),
        {record["id"]: record.get("target") for record in records},
        {record["id"]: record.get("cluster") for record in records},
    )


def _score(record, metric):
    """The score of one line of predictions.jsonl by the run's metric, None without one."""
    scores = record.get("scores") or {}
    if metric == "accuracy":  # of labels, or of options, whose exact match is there
        return scores.get("exact_match", float(record["prediction"] == record["target"]))
    return scores.get(metric, record.get(metric))


def of_rows(rows, beside):
    """The ExampleScores of the rows of one configuration; None where a run folder is missing or is not the row's.

    beside: the folder of the CSV, to which run folders may be relative.
    """
    runs = []
    for row in rows:
        try:
            run = read(run_folder(row, beside))
        except utils.UserError:
            return None
        score, known = store.number(row["score"]), list(run.scores.values())
        if not known or run.metric != row["metric"] or score is None or abs(np.mean(known) - score) > ROUNDING:
            return None  # written over since, or a score that is no mean over examples
        runs.append(run)
    ids = sorted(runs[0].scores)
    if any(run.scores.keys() != runs[0].scores.keys() for run in runs):
        return None
    scores = np.array([[run.scores[key] for key in ids] for run in runs], dtype=float)
    return ExampleScores(ids, scores, [runs[0].clusters[key] for key in ids])
