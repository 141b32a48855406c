"""Does the selector choose well for data and models it has not seen? Beside choosers that anybody could write.

It leaves out one data set at a time (--leave_out model: a model; group: what one model has done on one data set),
learns from the rest, and chooses among the configurations that were left out, for many settings of round limits, also
those within which there is nothing. Each chooser knows what is known before a run: sizes, flags, classes, length of the
inputs, share of the most frequent class. Measured rows judge the choice.

    nothing     always says that nothing is within the limits
    random      any configuration that has not too many labels
    cheapest    fewest parameters, then fewest labels
    probe       the probe with most labels, else the cheapest
    or_nothing  that probe, or "nothing" where the selector gives it less than three quarters
    rules       the selector's rules of thumb
    ridge, gp   as the selector, with ridge regression or (--gp) a Gaussian process in place of nearest neighbours
    selector    nearest neighbours, errors as on data sets that were left out
    rows        the selector where it has the judged rows themselves: what its choice costs that is no prediction
    three_soonest, three_random    the best of three ways to answer (a strategy's variant with one base model) once
                they are measured: those that are measured soonest, or any three; judged where there are six or more
    sure        the selector where it calls its choice likely to be within the limits (90 %), else "nothing"

A chooser that learns answers "nothing" where no configuration is within the limits with a probability of three
quarters, as adaptive_selector.py does; where data are outside what it knows, the rules answer for it. So there is a
second table of the settings in which the selector predicts. "rows" and the three choose by the measurements that judge
them.
The simple learner's score on the new data (see harness/selector/landmark.py) is known where there are labels for it.
The columns:

right           the choice is within all limits, or "nothing" where nothing is
limits kept     of its choices, the share within all limits ("held" in the JSON)
finds one       where something is within them, the share of its choices that are ("kept")
regret          there, the best score within them less that of its choice, or less the share of the most frequent class
                where its choice is not within them or is nothing ("lost")
gap to the best the same, where its choice is within them ("behind")

The stated probability is that of the configuration that is chosen. Intervals are
Student's t over data sets, since a bootstrap of few is too narrow.

    python benchmarks/bench_selector.py --results sample_results.csv --readme docs/selector.md
    python benchmarks/bench_selector.py --judge benchmarks/results/fresh_rows.csv --readme docs/selector.md

--judge chooses on the rows of another file, all learnt from --results alone: data sets on which nothing was chosen.
Needs no GPU and no model: a few minutes on a CPU. Writes benchmarks/results/bench_selector.json.
"""

import dataclasses
import itertools
from pathlib import Path

from choosers import LEARNERS, MEASURING, Learner, plain_choices, settings
from common import ROOT, interval, markdown, mean_of, publish

import utils
from harness import flags
from harness.results import configurations, store
from harness.selector import landmark, predictor
from harness.selector.candidates import Limits, measured, obstacles
from harness.selector.spec import data_of_rows

CHOOSERS = {  # name -> in the table
    "selector": "selector",
    "sure": "selector where it is 90 % sure, else nothing",
    "ridge": "selector with ridge regression",
    "gp": "selector with a Gaussian process",
    "or_nothing": "probe, or nothing",
    "probe": "always the probe",
    "rules": "rules of thumb",
    "cheapest": "always the cheapest",
    "random": "at random",
    "nothing": "always nothing",
    "three_soonest": "measured: best of the three fastest",
    "three_random": "measured: best of any three",
    "rows": "measured: best of all",
}
KEYS = ("right", "held", "kept", "lost", "behind")
SHOWN = {  # key -> title, in percent or points
    "right": "right",
    "ahead": "selector ahead by",
    "held": "limits kept",
    "kept": "finds one",
    "lost": "regret",
    "spared": "selector's is lower by",
    "behind": "gap to the best",
}
BINS = (0.85, 0.95, 1.0)  # of stated probabilities, the first from predictor.NOTHING on


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    add = parser.add_argument
    add("--results", default=str(ROOT / "sample_results.csv"), help="the rows (default: sample_results.csv)")
    add(
        "--leave_out",
        choices=("group", "data", "model"),
        default="data",
        help="what is chosen on and not learnt from (default: %(default)s)",
    )
    add("--judge", metavar="CSV", help="choose on these rows alone, and learn nothing from them")
    add("--only", nargs="+", metavar="DATA", help="judge on these data sets alone (default: all)")
    add("--without", nargs="+", metavar="DATA", default=[], help="data sets that are neither learnt from nor judged on")
    add(
        "--least",
        type=float,
        metavar="P",
        help="probability to recommend from, of all that learn (default: the tool's)",
    )
    add("--gp", action="store_true", help="judge a Gaussian process, too: half an hour")
    add("--output", metavar="FILE", help="the numbers (default: benchmarks/results/bench_selector.json)")
    add("--readme", metavar="FILE", help="put the table between its marks there")
    return parser.parse_args(argv)


def rest_of(group, found, leave_out, fresh=()):
    """What may be learnt from where a group is left out. fresh: data sets from which nothing is learnt."""
    found = [(g, c) for g, c in found if g[0] not in fresh]
    same = {"group": lambda g: g == group, "data": lambda g: g[0] == group[0], "model": lambda g: g[1] == group[1]}
    return [(g, c) for g, c in found if not same[leave_out](g)]


def judge(choice, feasible, limits):
    """{one of KEYS: judgement} of a choice, None where it says nothing of that. right: within the limits, or nothing
    where there is nothing.
    """
    kept = choice is not None and not obstacles(choice, limits)
    best = max(feasible, key=lambda c: c.score, default=None)
    behind = best.score - choice.score if kept else None
    lost = best and (max(0.0, best.score - (best.majority or 0.0)) if behind is None else behind)
    right = kept or (choice is None and not feasible)
    held = None if choice is None else kept
    return {"right": right, "held": held, "kept": kept if feasible else None, "lost": lost, "behind": behind}


def outcomes_of(rows, args):
    """[{data, feasible, chooser: judgement, ..}], one for each setting and what is left out; [(data, stated, kept)] of
    the selector's choices where there is a limit of more than labels.
    """
    found, known, outcomes, stated = predictor.groups_of(rows), data_of_rows(rows), [], []
    found, kinds = [(group, c) for group, c in found if group[0] not in args.without], dict(LEARNERS)
    kinds |= {"gp": "gp"} if args.gp else {}
    panels = {}
    for group, c in found:
        which = group if args.leave_out != "data" else (group[0], None)
        panels.setdefault((which, c["eval_id"], c["metric"]), []).append(c)
    for (group, _, _), members in panels.items():
        candidates = [c for c in measured(members) if c.labels is not None]
        if len(candidates) < 2 or group[0] not in known or (args.only and group[0] not in args.only):
            continue
        rest = rest_of(group, found, args.leave_out, args.only if args.judge else ())
        few = {**known, group[0]: dataclasses.replace(known[group[0]], landmark=None)}  # labels: too few for a landmark
        learners = {
            enough: {name: Learner(kind, rest, about, group, candidates) for name, kind in kinds.items()}
            for enough, about in ((True, known), (False, few))
        }
        for number, limits in enumerate(settings()):
            allowed = [c for c in candidates if c.labels <= limits.data_size]
            if not allowed:
                continue  # no row of the group has so few labels: nobody could choose
            feasible = [c for c in allowed if not obstacles(c, limits)]
            chosen = plain_choices(limits, allowed, number)
            usual = learners[limits.data_size >= landmark.LABELS]
            chance = usual["selector"].chance(chosen["probe"], limits)
            chosen["or_nothing"] = chosen["probe"] if chance is None or chance >= predictor.NOTHING else None
            for name, learner in usual.items():
                choice, sure = learner.choose(limits)
                chosen[name] = chosen["rules"] if sure is None else choice
                if name == "selector":
                    predicts = sure is not None
                    chosen["sure"] = choice if sure is not None and sure >= predictor.CONFIDENCE else None
                limited = limits != Limits(data_size=limits.data_size)
                if name == "selector" and sure is not None and choice is not None and limited:
                    stated.append((group[0], sure, not obstacles(choice, limits)))
            judged = {name: judge(choice, feasible, limits) for name, choice in chosen.items()}
            for name in MEASURING:
                judged.get(name, {}).pop("held", None)  # always, by what they know
            outcomes.append({"data": group[0], "feasible": bool(feasible), "predicts": predicts, **judged})
    return outcomes, stated


def summed(outcomes, name, key, less=None):
    """[D] of (sum, number) of a chooser's judgement over each data set's settings, those where it is known; less the
    judgement of another chooser, where both are.
    """
    by_data = {}
    for outcome in outcomes:
        value = outcome.get(name, {}).get(key)
        other = outcome[less][key] if less else 0.0
        value = None if other is None or value is None else value - other
        by_data.setdefault(outcome["data"], [0.0, 0])
        if value is not None:
            by_data[outcome["data"]][0] += value
            by_data[outcome["data"]][1] += 1
    return list(by_data.values())


def report(outcomes):
    """{chooser: {one of KEYS, or "ahead", "spared": [mean, low, high]}}.

    ahead: how much more often the selector is right, on the same settings; spared: how much less it loses.
    """
    choosers = {}
    for name in CHOOSERS:
        if not any(name in outcome for outcome in outcomes):
            continue
        choosers[name] = {}
        for key in KEYS:
            parts = summed(outcomes, name, key)
            choosers[name][key] = [mean_of(parts), *interval(parts, 0.0, 1.0)]
        for ahead, key, sign in (("ahead", "right", -1), ("spared", "lost", 1)):
            both = [(sign * total, n) for total, n in summed(outcomes, name, key, less="selector")]
            choosers[name][ahead] = [mean_of(both), *interval(both)]
    return choosers


def calibration(stated):
    """[rows of the table]: what the selector states, and how often its choices are within the limits. stated: as of
    `outcomes_of`.
    """
    bins = []
    for low, high in itertools.pairwise((predictor.NOTHING, *BINS)):
        inside = [(data, p, kept) for data, p, kept in stated if low <= p < high or p == high == 1.0]
        by_data = {}
        for data, p, kept in inside:
            part = by_data.setdefault(data, [0.0, 0.0, 0])
            part[0], part[1], part[2] = part[0] + p, part[1] + kept, part[2] + 1
        if inside:
            said, held = ([(part[i], part[2]) for part in by_data.values()] for i in (0, 1))
            bins.append(
                [f"{low:.2g} to {high:.2g}", len(inside), mean_of(said), mean_of(held), *interval(held, 0.0, 1.0)]
            )
    return bins


def table(outcomes):
    """(the `report` of outcomes, [lines])."""
    choosers, n = report(outcomes), len(outcomes)
    rows = [
        [
            CHOOSERS[name],
            *("" if name == "selector" and key in ("ahead", "spared") else told(cells[key]) for key in SHOWN),
        ]
        for name, cells in choosers.items()
    ]
    sets, empty = {outcome["data"] for outcome in outcomes}, sum(not outcome["feasible"] for outcome in outcomes)
    return choosers, [
        f"{n:,} settings on {len(sets)} data sets, {empty:,} within which there is nothing:",
        "",
        markdown(["chooser", *SHOWN.values()], rows),
    ]


def told(values):
    """[mean, low, high] in percent."""
    if values[0] is None:
        return ""
    mean, *both = (None if value is None else f"{100 * value:.1f}" for value in values)
    return mean if both[0] in (None, both[1]) else f"{mean} [{', '.join(both)}]"  # all data sets alike: none is known


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    rows = store.read_results(args.results)
    predictor.NOTHING = args.least or predictor.NOTHING
    if args.judge:
        judged = store.read_results(args.judge)
        args.only = sorted({configurations.data_name(row) for row in judged})
        if both := {configurations.data_name(row) for row in rows} & set(args.only):
            raise utils.UserError(f"{args.judge}: {', '.join(sorted(both))} is in {args.results}, too; leave it out")
        rows += judged
    kept, _ = configurations.select(rows)
    outcomes, stated = [], []
    for device in sorted({row["device"] for row in kept}):
        some = outcomes_of([row for row in kept if row["device"] == device], args)
        outcomes, stated = outcomes + some[0], stated + some[1]
    if not outcomes:
        raise utils.UserError(f"{args.results} has no group of two configurations or more on known data")
    source = f"Left out in turn: {args.leave_out}; rows: `{Path(args.results).name}`"
    if args.judge:
        source = f"Rows to choose from: `{Path(args.judge).name}`, to learn from: `{Path(args.results).name}`"
    where, bins = [outcome for outcome in outcomes if outcome["predicts"]], calibration(stated)
    (choosers, first), (predicted, second) = map(table, (outcomes, where))
    lines = [
        f"{source}. Percent; means over data sets, each counted the same, with 95 % intervals by Student's t over "
        "them.",
        "",
        *first,
        "",
        "It predicts in all of them." if len(where) == len(outcomes) else "Where it predicts:",
        "",
        *([] if len(where) == len(outcomes) else [*second, ""]),
        markdown(
            ["stated probability", "choices", "its mean, %", "limits kept, %"],
            [[name, f"{count:,}", f"{100 * said:.1f}", told(held)] for name, count, said, *held in bins],
        ),
    ]
    data = {"results": Path(args.results).name, "leave_out": args.leave_out, "settings": len(outcomes)}
    data |= {"nothing": sum(not outcome["feasible"] for outcome in outcomes), "choosers": choosers}
    data |= {"where_it_predicts": {"settings": len(where), "choosers": predicted}, "calibration": bins}
    data["data_sets"] = sorted({outcome["data"] for outcome in outcomes})
    name = "bench_selector" + ("_fresh" if args.judge else "" if args.leave_out == "data" else f"_{args.leave_out}")
    name += f"_from_{args.least:g}" if args.least else ""
    publish(name, "\n".join(lines), data, args.readme, args.output)


if __name__ == "__main__":
    main()
