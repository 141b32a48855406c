"""What the configurations of finished races scored on each rung and whole: the ladders that race_replay.py replays."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import utils
from harness.results import configurations, outputs, run_scores, store
from harness.selector.candidates import Candidate
from harness.sweeps import dropping
from harness.sweeps.dropping import NONE, RUNGS, Entry

SHARES = [[rung.training, rung.examples] for rung in RUNGS]


@dataclass(frozen=True)
class Ladder:
    """One configuration on all rungs and whole, with one draw of labels."""

    data: str
    eval_id: str  # of the whole run
    metric: str
    budget: int | None
    draw: int
    name: str
    learns: str
    shares: list  # [of each rung] of training and of examples
    seconds: list  # of each rung, 0.0 where its run is the whole one or failed, and of the whole run
    scores: list  # [of each rung, None where its run failed, of the whole run] of [n], the first of the same examples
    clusters: list  # [N]
    train_seconds: float
    latency_ms: float | None

    @property
    def race(self):
        return self.data, self.eval_id, self.metric

    @property
    def cost(self):
        return self.train_seconds + (self.latency_ms or 0.0) / 1000 * dropping.REQUESTS_SERVED

    def mean(self, step, n=None):
        """Mean score of a rung's run, or of the whole run (-1), on the first n examples."""
        return float(np.mean(self.scores[step][:n]))

    def entry(self, step, gain):
        short = step != -1 and self.seconds[step]
        left, gain = (self.seconds[-1], gain) if short else (0.0, NONE)
        scores, clusters = dict(enumerate(self.scores[step])), dict(enumerate(self.clusters))
        return Entry(scores, clusters, len(self.scores[-1]), self.cost, gain, self.learns, left)

    @property
    def candidate(self):
        """As the selector compares it."""
        error = float(np.std(self.scores[-1]) / np.sqrt(len(self.scores[-1])))
        return Candidate(self.name, "", self.mean(-1), self.latency_ms, None, 0, self.train_seconds, error)


def seconds(row):
    """Of a whole run with the start of its process; on a CPU of the processor, whatever else ran beside."""
    spent = configurations.value(row, "cpu_seconds" if row["device"] == "cpu" else "run_seconds")
    if spent is None:
        raise utils.UserError(f"{row['run_id']}: its row does not say what the whole run took; run the race again")
    return round(spent, 1)


def collected(path):
    """[Ladder] of a finished race with --keep_losers: of its CSV, _rungs.csv, _race.json and run folders."""
    rows = {
        row["run_id"]: row for file in (path, outputs.beside(path, "_rungs.csv")) for row in store.read_if_there(file)
    }
    found, folder = [], Path(path).parent
    for racer in utils.read_json(outputs.beside(path, "_race.json"), list, "--results"):
        rungs = [
            *racer["rungs"][: len(RUNGS)],
            *[racer["whole"]] * (len(RUNGS) - len(racer["rungs"])),
        ]  # what is whole enters no more
        for draw, ids in enumerate(zip(*rungs, racer["whole"], strict=False)):
            steps = [rows.get(run_id) for run_id in ids]
            whole, runs = steps[-1], []
            for row in steps:
                try:
                    runs.append(row and run_scores.read(run_scores.run_folder(row, folder)))
                except utils.UserError as error:
                    print(f"{racer['name']}: {error}")
                    runs.append(None)
            if runs[-1] is None:
                continue
            order = list(runs[-1].scores)
            if any(run and list(run.scores) != order[: len(run.scores)] for run in runs):
                raise utils.UserError(f"{path}: the runs of {racer['name']} were scored on other examples")
            names = {name: i for i, name in enumerate(dict.fromkeys(runs[-1].clusters.values()))}
            spent = [0.0 if row is whole or not run else seconds(row) for row, run in zip(steps, runs)]
            found.append(
                Ladder(
                    configurations.data_name(whole),
                    whole["eval_id"],
                    whole["metric"],
                    configurations.flags(whole).get("label_budget"),
                    draw,
                    racer["name"].split(" ", 1)[1],
                    racer["learns"],
                    SHARES,
                    [*spent[:-1], seconds(whole)],
                    [run and [round(score, 4) for score in run.scores.values()] for run in runs],
                    [None if runs[-1].clusters[key] is None else names[runs[-1].clusters[key]] for key in order],
                    configurations.value(whole, "train_seconds") or 0.0,
                    configurations.value(whole, "latency_ms_p50"),
                )
            )
    return found


def read_ladders(path):
    """The Ladders of a file."""
    return [Ladder(**record) for record in store.read_jsonl(path)] if Path(path).is_file() else []


def merged(old, new):
    """Old ladders and new ones, which replace those of the same configuration, data, budget and draw."""

    def key(ladder):
        return ladder.race, ladder.budget or 0, ladder.draw, ladder.name

    return [some for _, some in sorted({key(one): one for one in [*old, *new]}.items())]
