"""Rows -> configurations (runs that differ only in their seeds) and panels (rows that can be compared)."""

import functools
import json
import math
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import utils
from harness.results import names, provenance, run_scores, seed_spread, stats, store

SEEDS = ("seed", "data_seed")
NO_CONFIGURATION = (*provenance.OUTPUT_FLAGS, "repeats")  # each of --repeats runs has a row of its own
OWN_PASSAGE = "each question came with its own passage"  # in a row's note
CHANGES_NOTHING = (*NO_CONFIGURATION, *SEEDS, "latency_runs")
# {later flag: values as if it were not there}
OLD = {"answer_format": ["text"], "cot": [False], "samples": [1], "runtime": ["torch"], "forgetting": [True, False]}
BASELINES = (
    "random_passages",
    "gold_passage",
)  # variants of rag_eval.py that no one can deploy: they bound what RAG gives


# what is derived: the first of these cells that is known
ALTERNATIVES = {"memory": ("peak_gpu_gb", "peak_rss_gb"), "serving_memory": ("serving_gpu_gb", "serving_rss_gb")}


def is_baseline(variant):
    """True for one of BASELINES, with demonstrations or an adapter or without."""
    return re.sub(r"(_\d+_shot)?(_adapter)?$", "", variant) in BASELINES


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
    """The run's flags, from its cell args; of --precision auto what it was. UserError where that is no JSON object."""
    found = _parsed(row["args"] or "{}")
    if not isinstance(found, dict):
        raise utils.UserError(f"run {row['run_id']}: its cell args is no JSON object")
    known = row.get("precision") in ("fp32", "fp16", "bf16") and found.get("judge") != "local"  # which has its own
    if found.get("precision") == "auto" and known:
        return {**found, "precision": row["precision"]}
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


def matters(flag, found):
    """False for a flag that is not given, or as good as not there, as in rows of versions that did not know it."""
    return found is not None and found not in OLD.get(flag, ())


def _same(row, without):
    kept = {key: found for key, found in flags(row).items() if key not in without and matters(key, found)}
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

    A row counts if it ended (status ok or degenerate), it has a score, and no later row has the same script, flags,
    examples, hardware.
    """
    newest, skipped = {}, []
    for row in rows:
        if row["status"] not in ("ok", "degenerate"):
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
    examples: run_scores.ExampleScores | None = None  # from the run folders of all rows; None without them
    seeds: seed_spread.Seeds | None = None  # how its runs vary, see seed_spread; None: not known

    def __getitem__(self, column):
        """A cell that all rows share, as text."""
        return self.rows[0][column]

    @property
    def strategy(self):
        return names.strategy(self.rows[0])

    @property
    def kin(self):
        """The strategy that it is a case of, see names.kin."""
        return names.kin(self.rows[0])

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

    @property
    def degenerate(self):
        """How many of the runs are degenerate."""
        return sum(row["status"] == "degenerate" for row in self.rows)

    @property
    def usable(self):
        """True if somebody could choose it: no baseline, and not all of its runs are degenerate."""
        return not is_baseline(self["variant"]) and self.degenerate < len(self.rows)

    @property
    def varies(self):
        """True if other seeds would give other scores: it uses labels, is trained, or its runs differ."""
        return bool(self.mean("labels_used") != 0 or self.mean("train_seconds") or self.spread())

    @property
    def scores(self):
        """[N] scores of the examples, means over the runs; None where they are not known."""
        return None if self.examples is None else self.examples.means

    @property
    def seed_share(self):
        return 1 / len(self.rows)

    def seed_squares(self):
        """What seed_spread.of_runs returns; without the run folders nothing is known of what the examples add."""
        if self.examples is not None:
            return seed_spread.of_runs(self.examples.runs, self.examples.clusters)
        scores = self.values("score")
        return statistics.variance(scores) * (len(scores) - 1), len(scores) - 1, 0.0

    def parts(self):
        """[(variance, degrees of freedom)] of the mean score: of the examples, then of the seeds if that is known.

        The examples are the same in all runs, so more runs do not make their part smaller. Without the run folders it
        comes from the rows' intervals. [] where the examples' part is not known.
        """
        return self.parts_of(self.scores, self.seed_share)

    def parts_of(self, scores, share):
        """The same of other scores of the examples, as a Champion has them. share: 1 / (runs that are averaged)."""
        variance, degrees = self._from_rows() if scores is None else stats.mean_variance(scores, self.clusters)
        if variance is None:
            return []
        return [(variance, degrees), *(self.seeds.parts(share) if self.seeds else [])]

    @property
    def clusters(self):
        return None if self.examples is None else self.examples.clusters

    def _from_rows(self):
        """(variance of the mean over the examples, degrees of freedom) from the intervals of the rows."""
        widths = [
            (value(row, "score_high") - value(row, "score_low")) / 2 / 1.96
            for row in self.rows
            if value(row, "score_low") is not None and value(row, "score_high") is not None
        ]
        return (statistics.fmean(widths) ** 2, max(1, (self.n_eval or 2) - 1)) if widths else (None, 0)

    @property
    def standard_error(self):
        """Standard error of the mean score, of all that is known to vary; None where nothing is."""
        found = self.parts()
        return math.sqrt(sum(variance for variance, _ in found)) if found else None

    @property
    def interval(self):
        """95 % interval (low, high) of the mean score; (None, None) where its error is unknown.

        Of one run without a known variance over seeds it is the row's, which counts the examples alone.
        """
        if len(self.rows) == 1 and not (self.seeds and self.seeds.variance):
            return value(self.rows[0], "score_low"), value(self.rows[0], "score_high")
        return self.interval_of(self.mean(), self.parts())

    def interval_of(self, mean, parts):
        """95 % interval of a mean score with these parts. None from several runs whose spread cannot be known."""
        if not parts or (len(self.rows) > 1 and self.seeds is None):
            return None, None
        low, high = stats.interval(mean, parts, stats.n_clusters(self.clusters, self.n_eval or 2))
        return float(low), float(high)


def group_seeds(rows, folder=None):
    """The Configurations of a panel's rows, each with a unique name: technique, model, labels, differing flags.

    folder: that of the CSV; with it the scores of single examples are read from the run folders that are there.
    """
    groups = {}
    for row in rows:
        groups.setdefault(_same(row, CHANGES_NOTHING), []).append(row)
    found = [Configuration(members) for members in groups.values()]
    texts = names.tell_apart(names.rows([c.rows[0] for c in found]), [c.settings for c in found])
    for configuration, text in zip(found, texts):
        configuration.name = text
        if folder is not None:
            configuration.examples = run_scores.of_rows(configuration.rows, folder)
    seed_spread.share(found)
    return found


def pareto(points):
    """Indices of the points (cost, score) on the Pareto frontier, from the cheapest on."""
    best, kept = -math.inf, []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            best = points[i][1]
            kept.append(i)
    return kept
