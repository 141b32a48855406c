"""What a race saves and risks: races replayed from the runs of finished ones, and the allowances of its rungs.

    OMP_NUM_THREADS=1 python sweep.py suites/races.yaml --race --keep_losers --results races.csv --workers 2
    python benchmarks/race_replay.py --results races.csv --readme docs/selector.md

The sweep runs all configurations on all rungs and whole. For each data set, label budget and draw of labels the race is
then held with the run folders in place of runs: it takes the seconds of the rows, without the start of a process.

Only configurations that have all their labels on a rung are compared there, see dropping. An allowance is by how much
more than the leader of a rung the others gain from there to their whole run:
the 95 % quantile, data sets weighted alike. A data set is raced with the allowances of the others.

Needs the run folders; no GPU and no model. Writes benchmarks/results/race_replay.json.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench_selector import bootstrap, mean_of
from common import markdown, publish

import utils
from harness import flags
from harness.results import configurations, run_scores, store
from harness.selector.candidates import LABEL_FLAGS
from harness.sweeps import dropping, progress
from harness.sweeps.dropping import RUNGS, Entry
from harness.sweeps.race import beside

QUANTILE = 0.95
POINT = 0.01  # a pick within this of the whole suite's counts as the same


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    add = parser.add_argument
    add("--results", nargs="+", required=True, metavar="CSV", help="rows of finished sweeps, their run folders beside")
    add("--output", metavar="FILE", help="the numbers (default: benchmarks/results/race_replay.json)")
    add("--readme", metavar="FILE", help="put the table between its marks there")
    return parser.parse_args(argv)


@dataclass
class Run:
    """One row with the scores of its examples, in the order in which they were scored."""

    row: dict
    ids: list
    scores: np.ndarray
    clusters: list

    @property
    def entry(self):
        return Entry([self.row], self.ids, self.scores, self.clusters)

    whole: dict = None  # the flags of the whole run

    @property
    def has_all_labels(self):
        given = configurations.flags(self.row)
        return all(given.get(name) == self.whole.get(name) for name in (*LABEL_FLAGS, "unlabelled"))

    @property
    def seconds(self):
        return progress.seconds_of(self.row)


def read_run(row, folder):
    """The Run of a row; None without its folder."""
    try:
        run = run_scores.read(run_scores.run_folder(row, folder))
    except utils.UserError:
        return None
    ids = list(run.scores)
    return Run(row, ids, np.array([run.scores[key] for key in ids]), [run.clusters[key] for key in ids])


def ladders(paths):
    """[(data set, labels, {configuration: [Run of each rung, whole run]})], one for each data set, budget and draw."""
    found = defaultdict(dict)
    for path in paths:
        rows = {row["run_id"]: row for file in (path, beside(path, "_rungs.csv")) for row in store.read_if_there(file)}
        for racer in utils.read_json(beside(path, "_race.json"), list, "--results"):
            for draw, ids in enumerate(zip(*racer["rungs"], racer["whole"], strict=False)):
                runs = [read_run(rows[run_id], Path(path).parent) for run_id in ids if run_id in rows]
                if len(runs) == len(RUNGS) + 1 and None not in runs:
                    for run in runs:
                        run.whole = configurations.flags(runs[-1].row)
                    row = runs[-1].row
                    given = configurations.flags(row)
                    key = (configurations.data_name(row), row["eval_id"], given.get("label_budget"), draw)
                    found[key][racer["name"]] = runs
    made = []
    for (data, eval_id, budget, _), racers in found.items():
        if budget is None:
            continue  # prompts without labels race against each budget
        without = found.get((data, eval_id, None, 0), {})
        racers = {**without, **racers}
        if len(racers) > 1:
            made.append((data, budget, racers))
    return made


def extra_gains(ladder, number):
    """By how much more than the leader of a rung each configuration behind it gains in its whole run."""
    racers = {name: runs for name, runs in ladder[2].items() if runs[number].has_all_labels}
    small = {name: float(runs[number].scores.mean()) for name, runs in racers.items()}
    whole = {name: float(runs[-1].scores.mean()) for name, runs in racers.items()}
    leader = max(small, key=small.get)
    return [(whole[c] - small[c]) - (whole[leader] - small[leader]) for c in racers if c != leader]


def allowances(some):
    """[one for each rung], the QUANTILE of the extra gains of the ladders, data sets weighted alike; 0 at least."""
    made = []
    for number in range(len(RUNGS)):
        by_data = defaultdict(list)
        for ladder in some:
            by_data[ladder[0]] += extra_gains(ladder, number)
        pairs = sorted((gain, 1 / len(gains)) for gains in by_data.values() for gain in gains)
        weights = np.cumsum([weight for _, weight in pairs])
        place = int(np.searchsorted(weights, QUANTILE * weights[-1]))
        made.append(max(0.0, pairs[min(place, len(pairs) - 1)][0]))
    return made


def replay(ladder, allowed):
    """{"share": of the whole suite's seconds, "behind": the whole suite's pick less the race's, "dropped"}."""
    _, _, racers = ladder
    left, spent = dict(racers), 0.0
    for number, allowance in enumerate(allowed):
        spent += sum(runs[number].seconds for runs in left.values())
        entries = {name: runs[number].entry for name, runs in left.items() if runs[number].has_all_labels}
        for name in dropping.behind(entries, allowance, len(RUNGS)):
            del left[name]
    spent += sum(runs[-1].seconds for runs in left.values())
    whole = {name: float(runs[-1].scores.mean()) for name, runs in racers.items()}
    return {
        "share": spent / sum(runs[-1].seconds for runs in racers.values()),
        "behind": max(whole.values()) - max(whole[name] for name in left),
        "dropped": 1 - len(left) / len(racers),
    }


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    some = ladders(args.results)
    sets = sorted({data for data, _, _ in some})
    if len(sets) < 2:
        raise utils.UserError(f"rungs were measured on {len(sets)} data sets; two are needed at least")
    everywhere, races = allowances(some), []
    for ladder in some:
        others = [other for other in some if other[0] != ladder[0]]
        races.append({"data": ladder[0], "budget": ladder[1], **replay(ladder, allowances(others))})
    rows, data = [], {"allowances": everywhere, "data_sets": sets, "races": races, "budgets": {}}
    for budget in [*sorted({race["budget"] for race in races}), None]:
        chosen = [race for race in races if budget in (None, race["budget"])]
        if not chosen:
            continue
        parts = {}
        for name in ("share", "dropped", "behind"):
            parts[name] = told(chosen, lambda race, name=name: race[name])
        parts["same"] = told(chosen, lambda race: float(race["behind"] <= POINT))
        data["budgets"][str(budget or "all")] = parts
        worst = max(race["behind"] for race in chosen)
        cells = [
            f"{mean:.1%} [{low:.1%}, {high:.1%}]"
            for mean, low, high in (parts[n] for n in ("share", "dropped", "same"))
        ]
        rows.append([f"{budget:,}" if budget else "all", len(chosen), *cells, f"{worst:.3f}"])
    written = ", ".join(f"{allowance:.3f}" for allowance in everywhere)
    header = ["labels", "races", "seconds of the whole suite", "dropped", "pick within 1 point", "worst pick"]
    lines = [
        f"{len(races)} races on {len(sets)} data sets. Allowances of the rungs from all of them: {written} (each race "
        "is held with those of the other data sets). Means over data sets, with 95 % intervals by bootstrap over them.",
        "",
        markdown(header, rows),
    ]
    publish("race_replay", "\n".join(lines), data, args.readme, args.output)


def told(races, value):
    """[mean, low, high] of a value of the races, each data set counted the same."""
    by_data = defaultdict(lambda: [0.0, 0])
    for race in races:
        part = by_data[race["data"]]
        part[0], part[1] = part[0] + value(race), part[1] + 1
    return [mean_of(by_data.values()), *bootstrap(list(by_data.values()), mean_of)]


if __name__ == "__main__":
    main()
