"""Rows -> configurations (runs that differ only in their seeds) and panels (rows that can be compared)."""

import functools
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import utils
from harness.results import names, provenance, stats, store

SEEDS = ("seed", "data_seed")
NO_CONFIGURATION = (*provenance.OUTPUT_FLAGS, "repeats")  # each of --repeats runs has a row of its own
CHANGES_NOTHING = (*NO_CONFIGURATION, *SEEDS, "latency_runs")
BASELINES = (
    "random_passages",
    "gold_passage",
)  # variants of rag_eval.py that no one can deploy: they bound what RAG gives


# what is derived: the first of these cells that is known
ALTERNATIVES = {"memory": ("peak_gpu_gb", "peak_rss_gb"), "serving_memory": ("serving_gpu_gb", "serving_rss_gb")}


class Panel(NamedTuple):
    """What rows must share so that their scores and times can be compared. All cells as text."""

    data: str
    metric: str
    eval_id: str  # hash of the evaluation examples
    n_eval: str
    device: str


@functools.lru_cache(maxsize=100_000)
def _parsed(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


def flags(row):
    """The run's flags, from its cell args; UserError where that is no JSON object."""
    found = _parsed(row["args"] or "{}")
    if not isinstance(found, dict):
        raise utils.UserError(f"run {row['run_id']}: its cell args is no JSON object")
    return found


def value(row, column):
    """A cell as a finite number, None where there is none.

    Some columns are computed: those of ALTERNATIVES; memory is that of serving where this is more.
    """
    if column in ALTERNATIVES:
        first, second = ALTERNATIVES[column]
        found = value(row, first)
        found = value(row, second) if found is None else found
        known = [found, value(row, "serving_memory")] if column == "memory" else [found]
        return max((amount for amount in known if amount is not None), default=None)
    found = store.number(row[column])
    return found if found is not None and math.isfinite(found) else None


def run_folder(row, beside):
    """The folder of a row's run.

    The row's run_dir is relative to the folder where the script ran: the current one, or `beside`, that of the CSV.
    """
    places = [Path(row["run_dir"]), Path(beside) / row["run_dir"]]
    return next((place for place in places if row["run_dir"] and place.is_dir()), places[0])


def _same(row, without):
    # a flag that is not given is None, or not there where an older version did not know it
    kept = {key: found for key, found in flags(row).items() if key not in without and found is not None}
    return (
        row["script"],
        row["strategy"],
        row["variant"],
        row["eval_id"],
        row["device_name"],
        json.dumps(kept, sort_keys=True),
    )


def select(rows):
    """(rows that count, [(run id, why it does not count)]).

    A row counts if its status is ok, it has a score, and no later row has the same script, flags, examples, hardware.
    """
    newest, skipped = {}, []
    for row in rows:
        if row["status"] != "ok":
            skipped.append((row["run_id"], f"status {row['status']}: {row['note']}"))
        elif value(row, "score") is None:
            skipped.append((row["run_id"], "no score"))
        else:
            key = _same(row, NO_CONFIGURATION)
            if key in newest:
                skipped.append((newest[key]["run_id"], f"the same configuration was run again as {row['run_id']}"))
            newest[key] = row
    return list(newest.values()), skipped


def data_name(row):
    """The name of the row's data: the last part of the path, and the subset."""
    return " ".join(filter(None, [Path(row["dataset"]).name, row["subset"]]))


def same_configuration(first, second):
    """True if two rows differ only in their seeds."""
    return _same(first, CHANGES_NOTHING) == _same(second, CHANGES_NOTHING)


def scored_again(row):
    """True if the row scores weights that another run trained, so that its labels and training time are unknown."""
    return row["variant"] == "checkpoint" or bool(flags(row).get("adapter"))


def panels(rows):
    """{Panel: rows}: rows with the same examples, metric and hardware, whose scores and times can be compared."""
    groups = {}
    for row in rows:
        groups.setdefault(
            Panel(data_name(row), row["metric"], row["eval_id"], row["n_eval"], row["device_name"]), []
        ).append(row)
    return groups


def task_kind(row):
    """classification, qa, instruction or retrieval, from the columns that are filled."""
    if row["metric"] == "ndcg_at_10":
        return "retrieval"
    if row["macro_f1"]:
        return "classification"
    return (
        "instruction"
        if row["metric"] == "rouge_l"
        else "qa"
        if row["metric"] in ("token_f1", "exact_match", "accuracy")
        else ""
    )


@dataclass
class Configuration:
    """Rows that differ in nothing but their seeds."""

    rows: list
    name: str = ""

    def __getitem__(self, column):
        """A cell that all rows share, as text."""
        return self.rows[0][column]

    def flag(self, name):
        """What a flag was set to."""
        return flags(self.rows[0]).get(name)

    @property
    def settings(self):
        """{flag or column: value}: everything in which it can differ from a configuration of the same name."""
        kept = {key: cell for key, cell in flags(self.rows[0]).items() if key not in CHANGES_NOTHING}
        return {**kept, **{column: self[column] for column in ("strategy", "variant", "script", "run_id")}}

    def values(self, column):
        """The numbers of a column that are known."""
        return [found for found in (value(row, column) for row in self.rows) if found is not None]

    def mean(self, column="score"):
        """Their mean, None without any."""
        found = self.values(column)
        return statistics.fmean(found) if found else None

    def spread(self, column="score"):
        """Their sample standard deviation, None for fewer than two."""
        found = self.values(column)
        return statistics.stdev(found) if len(found) > 1 else None

    @property
    def n_eval(self):
        """Evaluation examples, None where the row does not say."""
        return int(value(self.rows[0], "n_eval") or 0) or None

    def variances(self):
        """[(variance of the mean score, degrees of freedom)]: of the examples, which are shared, and of the seeds."""
        widths = [
            (value(row, "score_high") - value(row, "score_low")) / 2 / 1.96
            for row in self.rows
            if value(row, "score_low") is not None and value(row, "score_high") is not None
        ]
        found = [(statistics.fmean(widths) ** 2, max(1, (self.n_eval or 2) - 1))] if widths else []
        return found + (
            [(self.spread() ** 2 / len(self.rows), len(self.rows) - 1)] if self.spread() is not None else []
        )

    @property
    def standard_error(self):
        """Standard error of the mean score, None where it is unknown."""
        found = self.variances()
        return math.sqrt(sum(variance for variance, _ in found)) if found else None

    @property
    def interval(self):
        """95 % interval (low, high) of the mean score, clipped to 0 and 1; (None, None) where its error is unknown."""
        if len(self.rows) == 1:
            return value(self.rows[0], "score_low"), value(self.rows[0], "score_high")
        error = self.standard_error
        reach = None if error is None else error * stats.quantile(self.variances())
        return (None, None) if reach is None else (max(0.0, self.mean() - reach), min(1.0, self.mean() + reach))


def group_seeds(rows):
    """The Configurations of a panel's rows, each with a unique name: technique, model, labels, differing flags."""
    groups = {}
    for row in rows:
        groups.setdefault(_same(row, CHANGES_NOTHING), []).append(row)
    found = [Configuration(members) for members in groups.values()]
    texts = names.tell_apart(names.rows([c.rows[0] for c in found]), [c.settings for c in found])
    for configuration, text in zip(found, texts):
        configuration.name = text
    return found


def pareto(points):
    """Indices of the points (cost, score) on the Pareto frontier, from the cheapest on."""
    best, kept = -math.inf, []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            best = points[i][1]
            kept.append(i)
    return kept
