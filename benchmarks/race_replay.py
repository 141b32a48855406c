"""What a race saves and risks: races replayed from the runs of finished ones, and the gains of its rungs.

    for data in question_type dolly_category ..; do
        OMP_NUM_THREADS=1 python sweep.py suites/compare.yaml --dataset assets/data/search/$data --race --keep_losers \\
            --set bf16=true precision=bf16 label_budget=125 --results races/$data.csv --workers 2 --continue_on_error
    done
    python benchmarks/race_replay.py --results races/*.csv          # adds what these runs scored to --ladders
    python benchmarks/race_replay.py --readme docs/sweeps.md      # replays from there

--keep_losers runs all configurations on all rungs and whole. For each data set, label budget and draw of labels the
race is then held again with these runs: it takes the seconds of their rows. A data set is raced with the gains of the
others.

A Gain is a ratio over all data sets but one, each counted the same: what configurations gained from a rung to their
whole run, on the examples of the rung, by what they lacked to 1. Its own sd is from the squares of what the ratio of
each data set leaves, the shared one from what the ratio of all leaves besides, for a new data set. Seconds are those
of whole runs with the start of their processes: of the processor on a CPU.

A whole run's seconds are known to the replay from the start; a race puts them from its short run.

No race takes less than one that knows its pick (an oracle): the rungs of all, and whole the pick and what has no rung.

The pick is the selector's without limits, among what is left and in the whole suite: the cheapest of those within a
standard error of the best. The interval of "within 1 point" is the exact binomial one, each data set counted once.

Needs no GPU and no model. Writes benchmarks/results/race_replay.json.
"""

import itertools
import json
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
from common import ROOT, interval, markdown, mean_of, publish
from race_ladders import SHARES, collected, merged, read_ladders
from scipy.stats import beta

import utils
from harness import flags
from harness.results import champions
from harness.selector.candidates import Limits, choose
from harness.sweeps import dropping
from harness.sweeps.dropping import MARGIN, NONE, RISK, RUNGS, Gain

SECONDS = "seconds of the whole suite"
RISKS, PARTS = (0.02, 0.05, 0.1, 0.2, 0.4), 40
UNKNOWN = Gain(0.0, 1.0, 1.0, 1)  # of what was measured on one data set
BY_DATA = {
    "oracle": "if it knew its pick",
    "alone": "the pick alone",
    "dropped": "dropped",
    "behind": "behind",
    "luck": "luck of the best",
}
LADDERS = ROOT / "benchmarks" / "results" / "race_ladders.jsonl"


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    add = parser.add_argument
    add("--results", nargs="+", default=[], metavar="CSV", help="rows of finished races, their run folders beside")
    add(
        "--ladders",
        metavar="FILE",
        default=str(LADDERS),
        help="what runs scored on each example (default: the shipped)",
    )
    add("--output", metavar="FILE", help="the numbers (default: benchmarks/results/race_replay.json)")
    add("--readme", metavar="FILE", help="put the table between its marks there")
    return parser.parse_args(argv)


# ------------------------------------------------------------------------------------------------------------- replay


def races_of(ladders):
    """[(data set, budget, {configuration: Ladder})]; what uses no labels races in each."""
    found, without = defaultdict(dict), defaultdict(dict)
    for one in ladders:
        if one.budget is None:
            without[one.race][one.name] = one
        else:
            found[one.race, one.budget, one.draw][one.name] = one
    made = ((race, budget, {**without[race], **some}) for (race, budget, _), some in found.items())
    return [(race[0], budget, some) for race, budget, some in made if len(some) > 1]


def left(pairs, ratio):
    """Mean square of what a ratio leaves of the gains. pairs: [N, 2] of (lack, gain)."""
    return float(np.mean((pairs[:, 1] - ratio * pairs[:, 0]) ** 2))


def fitted(sets):
    """The Gain of a new data set, by moments. sets: [of each data set [N, 2] of (lack, gain)], two at least."""
    n, several = len(sets), [pairs for pairs in sets if len(pairs) > 1]
    squares = sum(np.mean(pairs[:, 0] ** 2) for pairs in sets)
    mean = float(sum(np.mean(pairs[:, 0] * pairs[:, 1]) for pairs in sets) / squares)
    total = sum(left(pairs, mean) for pairs in sets) / squares
    if not several:
        return Gain(mean, 0.0, float(np.sqrt(total * (n + 1) / (n - 1))), n - 1)
    ratios = [np.sum(pairs[:, 0] * pairs[:, 1]) / max(np.sum(pairs[:, 0] ** 2), 1e-9) for pairs in several]
    own = sum(left(pairs, ratio) * len(pairs) / (len(pairs) - 1) for pairs, ratio in zip(several, ratios))
    own /= sum(np.mean(pairs[:, 0] ** 2) for pairs in several)
    size = np.mean([len(pairs) for pairs in sets])
    shared = max(0.0, total - own * (1 - 1 / (n * size))) * n / (n - 1)
    shared += (shared + own / size) / n  # of the mean
    return Gain(mean, float(np.sqrt(shared)), float(np.sqrt(own)), n - 1)


def gains(ladders):
    """[of each rung {what a configuration is shortened by: Gain}]."""
    made = []
    for step in range(len(RUNGS)):
        by_kind = defaultdict(lambda: defaultdict(list))
        for one in ladders:
            if one.scores[step] is None or not one.seconds[step]:
                continue
            before = one.mean(step)
            by_kind[one.learns][one.data].append((1 - before, one.mean(-1, len(one.scores[step])) - before))
        found = {"at_once": NONE, "nothing": NONE}
        for kind in ("steps", "labels"):
            sets = [np.array(pairs) for pairs in by_kind[kind].values()]
            found[kind] = fitted(sets) if len(sets) > 1 else UNKNOWN
        made.append(found)
    return made


def pick(racers):
    """The Ladder that the selector takes without limits: the cheapest of those within a standard error of the best."""
    return racers[choose([one.candidate for one in racers.values()], Limits())[0].name]


def replay(racers, known, allowed=RISK):
    """{"share": of the whole suite's seconds, "alone": of them those of its pick, "oracle": of a race that knows it,
    "behind": the suite's pick less the race's, "dropped", "rungs"}.

    racers: {configuration: Ladder}; known: of `gains`; allowed: the risk.
    """
    left, spent, risk, rungs = dict(racers), 0.0, 0.0, []
    for step, of_rung in enumerate(known):
        spent += sum(one.seconds[step] for one in left.values())
        entries = {name: one.entry(step, of_rung[one.learns]) for name, one in left.items() if one.scores[step]}
        out, more = dropping.behind(entries, dropping.allowed(step + 1, allowed) - risk)
        risk += more
        rungs.append(sorted(out))
        left = {name: one for name, one in left.items() if name not in out}
    out, risk = finish(left, known[-1], allowed, risk)
    rungs.append(sorted(out))
    left = {name: one for name, one in left.items() if name not in out}
    spent += sum(one.seconds[-1] for one in left.values())
    wanted, got = pick(racers), pick(left)
    whole = sum(one.seconds[-1] for one in racers.values())
    return {
        "share": spent / whole,
        "alone": wanted.seconds[-1] / whole,
        "oracle": sum(sum(one.seconds[:-1]) or one.seconds[-1] for one in racers.values() if one is not wanted) / whole
        + sum(wanted.seconds) / whole,
        "behind": wanted.mean(-1) - got.mean(-1),
        "dearer": got.cost / wanted.cost,
        "dropped": 1 - len(left) / len(racers),
        "risk": risk,
        "rungs": rungs,
        "luck": luck(racers),
    }


def luck(racers):
    """By how much the best whole score is too high, since it is reported on the examples that chose it: less what the
    best by one half of them scores on the other half.
    """
    scores = np.array([one.scores[-1] for one in racers.values()])  # [C, N]
    clusters, crossed = next(iter(racers.values())).clusters, []
    for seed in range(champions.SPLITS):
        first = champions.halves(clusters, seed)
        for inside in (first, ~first):
            crossed.append(scores[scores[:, ~inside].mean(axis=1).argmax(), inside].mean())
    return float(scores.mean(axis=1).max() - np.mean(crossed))


def finish(racers, gain_of, allowed, risk):
    """({name of those that whole runs of others show to be behind}, the risk then), as Race.finish with one worker.

    gain_of: of the last rung; allowed: the risk; risk: that of what is dropped already.
    """
    last, out, seen = len(RUNGS) - 1, set(), defaultdict(list)
    whole = {name: one.entry(last, NONE) for name, one in racers.items() if not one.seconds[last] and one.scores[last]}
    waiting = {name: one for name, one in racers.items() if one.seconds[last]}

    def entries():
        return {
            name: one.entry(last, dropping.given(gain_of[one.learns], seen[one.learns]))
            for name, one in waiting.items()
        }

    while waiting:
        short = entries()
        first = max(short, key=lambda name: short[name].expected)
        whole[first] = waiting.pop(first).entry(-1, NONE)
        seen[racers[first].learns].append(short[first].gained(whole[first]))
        behind, more = dropping.behind(whole | entries(), dropping.allowed(len(RUNGS) + 1, allowed) - risk)
        risk, out = risk + more, out | set(behind)
        waiting = {name: one for name, one in waiting.items() if name not in behind}
    return out, risk


def parts_of(data, _, racers):
    """PARTS random parts of a suite, with half of its configurations or more: suites that somebody else may run."""
    rng, names = random.Random(f"{data} {sorted(racers)}"), sorted(racers)
    for _ in range(PARTS):
        drawn = rng.sample(names, rng.randint(-(-len(names) // 2), len(names)))
        if len(drawn) > 1:
            yield data, None, {name: racers[name] for name in drawn}


def worded(of_rung):
    """The gains of a rung in words."""
    return ", ".join(
        f"{kind} {gain.mean:.2f} ± {gain.shared:.2f} (of data sets) ± {gain.own:.2f} (of configurations)"
        for kind, gain in of_rung.items()
    )


def table_of_risks(races):
    """[rows]: what races save and lose with each risk, of whole suites and of parts."""
    rows = []
    for allowed, whole in itertools.product(RISKS, (True, False)):
        chosen = [race for race in races if race["allowed"] == allowed and (race["budget"] is not None) == whole]
        if chosen:
            rows.append([f"{allowed:.0%}" + " (default)" * (allowed == RISK), *cells_of(chosen, whole)])
    return rows


def by_data(races):
    """[rows]: each race with the default risk."""
    return [
        [race["data"], race["budget"], race["of"], *(f"{race[name]:.1%}" for name in ("share", *BY_DATA))]
        for race in sorted(races, key=lambda race: race["data"])
        if race["allowed"] == RISK
    ]


def means_of(races):
    """The means of by_data in a sentence."""
    means = [told(races, lambda race, name=name: race[name]) for name in ("share", "oracle", "alone", "luck")]
    worded = ["{:.0%} [{:.0%}, {:.0%}]".format(*one) for one in means[:3]] + [
        "{:.1%} [{:.1%}, {:.1%}]".format(*means[3])
    ]
    return (
        f"In the mean {worded[0]} of the suite's seconds, {worded[1]} for a race that knew its pick after the rung, "
        f"{worded[2]} for the pick alone. The best score is {worded[3]} too high where it is reported on the examples "
        "that chose it."
    )


def cells_of(races, whole):
    """A line of the table."""
    same = told(races, lambda race: float(race["behind"] <= MARGIN + 1e-9))[0]
    n = len({race["data"] for race in races})
    bounds = beta.ppf([0.025, 0.975], [same * n, same * n + 1], [n - same * n + 1, n - same * n])
    low, high = np.where([same == 0, same == 1], [0.0, 1.0], bounds)
    parts = [told(races, lambda race, name=name: race[name]) for name in ("share", "dropped")]
    cells = [f"{mean:.1%} [{low:.1%}, {high:.1%}]" for mean, low, high in (*parts, (same, low, high))]
    worst = max(race["behind"] for race in races)
    return ["whole" if whole else "random parts", len(races), *cells, f"{worst:.3f}"]


def told(races, value):
    """[mean, low, high] of a value of the races, each data set counted the same."""
    by_data = defaultdict(lambda: [0.0, 0])
    for race in races:
        part = by_data[race["data"]]
        part[0], part[1] = part[0] + value(race), part[1] + 1
    return [mean_of(by_data.values()), *interval(list(by_data.values()))]


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    ladders = read_ladders(args.ladders)
    if args.results:
        ladders = merged(ladders, [one for path in args.results for one in collected(path)])
        lines = (json.dumps(vars(one), separators=(",", ":")) + "\n" for one in ladders)
        Path(args.ladders).write_text("".join(lines), encoding="utf-8")
    ladders = [one for one in ladders if one.shares == SHARES]  # of today's rungs
    some = races_of(ladders)
    sets = sorted({data for data, _, _ in some})
    if len(sets) < 2:
        raise utils.UserError(f"rungs were measured on {len(sets)} data sets; two are needed at least")
    some += [part for race in some for part in parts_of(*race)]
    known = {data: gains([one for one in ladders if one.data != data]) for data in sets}
    races = [
        {"data": data, "budget": budget, "of": len(racers), "allowed": risk, **replay(racers, known[data], risk)}
        for risk in RISKS
        for data, budget, racers in some
    ]
    measured = [{kind: gain for kind, gain in rung.items() if gain != NONE} for rung in gains(ladders)]
    whole = [race for race in races if race["budget"] is not None]
    rows = table_of_risks(races)
    lines = [
        f"Races on {len(sets)} data sets. Gains of the rungs from all of them: {'; '.join(map(worded, measured))} "
        "(each race is held with those of the other data sets). Means over data sets, with 95 % intervals by "
        "Student's t over them; that of the pick within 1 point is the exact binomial one.",
        "",
        markdown(["risk", "suites", "races", SECONDS, "dropped", "pick within 1 point", "worst pick"], rows),
        "",
        f"The whole suites, with the default risk of {RISK:.0%}:",
        "",
        markdown(["data set", "labels", "configurations", SECONDS, *BY_DATA.values()], by_data(whole)),
        "",
        means_of([race for race in whole if race["allowed"] == RISK]),
    ]
    data = {"gains": measured, "data_sets": sets, "races": whole}
    publish("race_replay", "\n".join(lines), {**data, "table": rows}, args.readme, args.output)


if __name__ == "__main__":
    main()
