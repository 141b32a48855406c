"""Which configurations of a race are dropped: by limits, then by what they score after short runs on few examples.

Every configuration (cells that differ in nothing but their seeds) runs for a share of its optimizer steps, where it
makes some, and is scored on a share of its evaluation examples; those that are left then run whole, as without a race,
what is expected to be best first, and each whole run may show that others are behind. That is successive halving
(Jamieson and Talwalkar 2016) with a test in place of a fixed share, and with one rung, since each whole run is a look
at all others. A short run has a whole schedule of its own: with few labels --epochs auto makes as many steps as with
many, so fewer labels would save nothing. Distillation, and prompts that are chosen on labels, have a share of their
labels instead. What takes seconds, or trains nothing, is run whole at once, and so is what makes so few steps that a
rung would be a large part of them.
What breaks a limit is dropped after a few requests, before it is trained.

After each rung each configuration has a probability that its whole run is better than that of the best one by more
than MARGIN; where it costs more, by more than a standard error besides, within which scores tie and the selector takes
what costs least. The probability comes from the paired difference of the two on the examples of the rung, as a sample
of all, and from the share of what it lacks to 1 that a configuration gains from this rung to its whole run (Gain).

What is least likely for the seconds that it saves is dropped first, as long as the probabilities of all that are
dropped, of one data set and metric, add up to no more than RISK. That is as good as the gains are, which are known from
few data sets.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import binom, t

from harness.arguments import optimizer_steps
from harness.results import configurations, run_scores, stats, store
from harness.sweeps import progress

RISK = 0.05  # of dropping what would be better, over the whole race on one data set
MARGIN = 0.01  # a pick within this of the whole suite's counts as the same
LEAST_LABELS, LABELS_A_CLASS, LEAST_STEPS, LEAST_EXAMPLES = 16, 2, 20, 64  # of a rung
# share of a whole run's steps or labels that a rung makes at most; where the least is more, there is no rung
LARGEST = {"max_steps": 1 / 8, "label_budget": 1 / 4, "max_train_samples": 1 / 4}
EXAMPLES = "max_eval_samples"
REQUESTS = 20  # after which limits are checked
REQUESTS_SERVED = 30_000  # over which costs are compared, as adaptive_selector.py does by default


class Gain(NamedTuple):
    """What a configuration gains from a rung to its whole run on the same examples, as a share of what it lacks to 1
    on the rung.
    """

    mean: float
    shared: float  # sd of what all configurations of a new data set gain more than the mean
    own: float  # sd of one configuration of a data set about that
    degrees: float  # of freedom of both


NONE = Gain(0.0, 0.0, 0.0, np.inf)


def given(gain, seen):
    """The Gain of a configuration of a data set on which others have shown theirs (normal prior and likelihood).

    seen: [(what one lacked on the rung, what it gained)].
    """
    squares = sum(lack**2 for lack, _ in seen)
    if not squares or not gain.shared:
        return gain
    variance = gain.own**2 * sum(lack**4 for lack, _ in seen) / squares**2  # of the ratio that was seen
    weight = gain.shared**2 / (gain.shared**2 + variance)
    ratio = sum(lack * gained for lack, gained in seen) / squares
    return gain._replace(mean=gain.mean + weight * (ratio - gain.mean), shared=gain.shared * float(np.sqrt(1 - weight)))


class Rung(NamedTuple):
    """Shares of a whole run."""

    training: float  # of steps or labels
    examples: float
    gains: dict  # {what a configuration is shortened by: Gain}


# the gains are those that benchmarks/race_replay.py measures on the data sets of benchmarks/results/race_ladders.jsonl
RUNGS = (
    Rung(
        1 / 16,
        1 / 2,
        {"at_once": NONE, "nothing": NONE, "steps": Gain(0.05, 0.10, 0.06, 4), "labels": Gain(0.26, 0.32, 0.10, 3)},
    ),
)


def allowed(number, risk=RISK):
    """What the probabilities of all that are dropped up to a rung may add up to. number: of the rung; the one after the
    last is that of whole runs.
    """
    return risk * number / (len(RUNGS) + 1)


def whole_of(args, size, learns):
    """{flag: number} of what a cell's cost grows with: steps or labels, inputs without labels, evaluation examples.

    args: {flag: value} of the cell; size: the cells.Size of its data; learns: what its script's cost grows with most,
    "steps", "labels", "nothing" of these but the examples, or "at_once" where nothing is saved; then it is {}.
    """
    if learns == "at_once":
        return {}
    whole = {EXAMPLES: min(args.get(EXAMPLES) or size.evaluation, size.evaluation)}
    budget = "label_budget" if args.get("label_budget") else "max_train_samples"
    labels = min(args.get(budget) or size.train, size.train)
    if learns == "steps":
        whole["max_steps"] = optimizer_steps(args, labels, size.kind)
    elif learns == "labels":
        whole[budget] = labels
    if args.get("unlabelled"):
        whole["unlabelled"] = min(args["unlabelled"], size.train)
    return whole


def for_limits(whole):
    """{flag: number} that makes of a cell REQUESTS examples, and one step where it makes some; {} where it runs whole
    at once or learns from its labels in another way.
    """
    if not whole.keys() <= {"max_steps", EXAMPLES}:
        return {}
    fewer = {name: min({"max_steps": 1, EXAMPLES: REQUESTS}[name], n) for name, n in whole.items()}
    return fewer if fewer != whole else {}


def at_rung(whole, rung, classes, timed=False):
    """{flag: number} that makes of a cell its run on a rung; {} where it trains nothing, or LARGEST of the whole is too
    little. whole: of whole_of; timed: a short run shall tell how long the whole one takes, whatever it costs.
    """
    labels = max(LEAST_LABELS, LABELS_A_CLASS * classes)
    least = {"label_budget": labels, "max_train_samples": labels, "max_steps": LEAST_STEPS}
    fewer = {}
    for name, n in whole.items():
        share = rung.examples if name == EXAMPLES else rung.training
        fewer[name] = max(least.get(name, LEAST_EXAMPLES), round(n * share))
    trained = [name for name in fewer if name in least]
    if not timed and (not trained or any(fewer[n] > max(LARGEST[n], rung.training) * whole[n] for n in trained)):
        return {}
    if whole and not trained:
        fewer[EXAMPLES] = LEAST_EXAMPLES
    return {name: n for name, n in fewer.items() if n < whole[name]}


class Entry(NamedTuple):
    """A configuration's runs on one rung."""

    scores: dict  # {example id: mean over its runs}
    clusters: dict  # {example id: cluster, None where it is one of its own}
    n_whole: int  # examples of a whole run
    cost: float  # seconds to train a whole run and to answer REQUESTS_SERVED
    gain: Gain
    learns: str  # what its runs are shortened by, as of whole_of
    seconds: float  # that its whole runs will take; 0 where these are made: then nothing is saved by dropping it

    @property
    def lack(self):
        return max(0.0, 1.0 - float(np.mean(list(self.scores.values()))))

    def gained(self, whole):
        """(what it lacks, what it has gained in the Entry of its whole run, on the same examples)."""
        both = self.scores.keys() & whole.scores.keys()
        return self.lack, float(np.mean([whole.scores[key] - self.scores[key] for key in both])) if both else 0.0

    @property
    def expected(self):
        """Its score of a whole run."""
        return 1.0 - self.lack * (1.0 - self.gain.mean)


def entry(rows, beside, whole, gain, learns, seconds):
    """The Entry of rows of one configuration; None where one of them has no scores of single examples. whole: of
    whole_of.
    """
    found = run_scores.of_rows(rows, beside)
    if found is None:
        return None
    means, clusters = dict(zip(found.ids, found.means.tolist())), dict(zip(found.ids, found.clusters))
    cost = sum(training_seconds(row, whole) + cost_of(row) for row in rows) / len(rows)
    return Entry(means, clusters, whole.get(EXAMPLES, len(means)), cost, gain, learns, seconds)


def cost_of(row):
    """Seconds of REQUESTS_SERVED requests one by one."""
    return (configurations.value(row, "latency_ms_p50") or 0.0) / 1000 * REQUESTS_SERVED


def chance_to_be_better(other, best):
    """Probability that the whole run of an Entry is better than that of another one by more than MARGIN, and where it
    costs more by more than MARGIN and the standard error of a whole run's score.

    Student's t (Satterthwaite's degrees of freedom): the variance of the paired difference on the examples that both
    have, as a sample without replacement of those of the whole runs, and that of both gains add up; what configurations
    of one data set gain alike counts by the difference of what they lack. The gains' variances are known from the same
    data sets, so they are one part. 1.0 where there is one example or cluster, or none.
    """
    both = [key for key in best.scores if key in other.scores]
    if len(both) < 2:
        return 1.0
    scores = ([one.scores[key] for key in both] for one in (best, other))
    difference, parts = stats.paired_parts(*scores, [best.clusters[key] for key in both])
    if parts[0][0] is None:
        return 1.0
    variance, degrees = parts[0]
    difference += other.gain.mean * other.lack - best.gain.mean * best.lack
    alike = (other.learns, other.gain) == (best.learns, best.gain)
    shared = [other.lack - best.lack] if alike else [other.lack, best.lack]
    gained = sum((one.gain.own * one.lack) ** 2 for one in (other, best))
    gained += sum((one.gain.shared * lack) ** 2 for one, lack in zip((other, best), shared))
    parts = [
        (variance * max(0.0, 1 - len(both) / max(best.n_whole, len(both))), degrees),
        (gained, min(other.gain.degrees, best.gain.degrees)),
    ]
    tie = np.std(list(best.scores.values())) / np.sqrt(best.n_whole) if best.cost <= other.cost else 0.0
    error = max(np.sqrt(sum(part for part, _ in parts)), 1e-9)
    return float(t.sf((MARGIN + tie - difference) / error, stats.degrees_of_freedom(parts)))


class Loser(NamedTuple):
    """Of what is behind."""

    why: str
    leader: str  # name of the one that it is behind
    chance: float  # to be better all the same


def behind(entries, at_most):
    """({name: Loser} of those to drop, the sum of their chances).

    entries: {name: Entry} of one rung; at_most: what the sum may be. Whose whole run saves most
    seconds for its probability is dropped first.
    """
    if len(entries) < 2:
        return {}, 0.0
    leader = max(entries, key=lambda name: entries[name].expected)
    best, dropped, risk = entries[leader], {}, 0.0
    others = {name: one for name, one in entries.items() if name != leader and one.seconds > 0}
    chances = {name: chance_to_be_better(one, best) for name, one in others.items()}
    for name in sorted(others, key=lambda name: chances[name] / max(others[name].seconds, 1.0)):
        if risk + chances[name] > at_most:
            continue
        risk += chances[name]
        why = (
            f"{others[name].lack - best.lack:.3f} behind {leader} after {len(others[name].scores)} examples; "
            f"better in a whole run, by more than what ties, with a probability of {chances[name]:.1%}"
        )
        dropped[name] = Loser(why, leader, chances[name])
    return dropped, risk


def at_most_seconds(entries, workers=1):
    """Seconds in which the whole runs of Entries end on so many workers, in whatever order they are taken up (Graham
    1966).
    """
    seconds = [one.seconds for one in entries]
    return sum(seconds) / workers + max(seconds, default=0.0) * (1 - 1 / workers)


def for_time(entries, seconds, workers=1):
    """({name: why} of those to drop so that the whole runs of the others end in so many seconds, the highest of their
    probabilities to be better than what is left).

    The best of those whose whole run fits is kept, then whose probability to be better than that is highest for the
    seconds that it takes.
    """
    fits = {name: one for name, one in entries.items() if one.seconds <= seconds}
    if not fits or at_most_seconds(entries.values(), workers) <= seconds:
        return {} if fits else dict.fromkeys(entries, "its whole run does not fit into the time"), float(not fits)
    leader = max(fits, key=lambda name: fits[name].expected)
    chances = {name: chance_to_be_better(one, fits[leader]) for name, one in entries.items() if name != leader}
    kept, dropped = [fits[leader]], {}
    for name in sorted(chances, key=lambda name: -chances[name] / max(entries[name].seconds, 1.0)):
        if at_most_seconds([*kept, entries[name]], workers) <= seconds:
            kept.append(entries[name])
            continue
        dropped[name] = (
            f"no time for its whole run of about {progress.words(entries[name].seconds)}; better than {leader}, by "
            f"more than what ties, with a probability of {chances[name]:.1%}"
        )
    return dropped, max((chances[name] for name in dropped), default=0.0)


def median_bound(milliseconds, alpha=stats.SIGNIFICANT):
    """Lower bound of the median of single requests, which holds with probability 1 - alpha: an order statistic, by the
    binomial distribution; 0.0 where there are too few.
    """
    rank = int(binom.ppf(alpha, len(milliseconds), 0.5)) if milliseconds else 0
    return sorted(milliseconds)[rank - 1] if rank else 0.0


def over_limits(rows, beside, limits):
    """Why a configuration breaks the limits of latency or memory, None where it does not.

    rows: of its runs on one rung; limits: with latency_ms and memory_gb, None for no limit. More labels and examples
    take no less memory, and a request no less time.
    """
    memory = [configurations.value(row, "memory") for row in rows]
    if limits.memory_gb is not None and all(gb is not None and gb > limits.memory_gb for gb in memory):
        return f"its memory, {min(memory):.2f} GB, is above {limits.memory_gb:g} GB"
    if limits.latency_ms is not None:
        slowest = [median_bound(requests(row, beside)) for row in rows]
        if min(slowest) > limits.latency_ms:
            return f"half of its single requests take more than {min(slowest):.0f} ms, above {limits.latency_ms:g} ms"
    return None


def requests(row, beside):
    """[n] milliseconds of the single requests of a row's run; [] without its folder."""
    path = run_scores.run_folder(row, beside) / "predictions.jsonl"
    records = store.read_jsonl(path) if path.is_file() else []
    return [record["latency_ms"] for record in records if record.get("latency_ms") is not None]


def training_seconds(row, whole):
    """Seconds that a whole run would train, from a row of a rung: in proportion to steps or labels. whole: of
    whole_of.
    """
    flags = configurations.flags(row)
    longer = (n / flags[name] for name, n in whole.items() if flags.get(name) and name != EXAMPLES)
    return (configurations.value(row, "train_seconds") or 0.0) * next(longer, 1.0)


def whole_seconds(row, whole):
    """Seconds that a whole run would take, from a row of a rung: scoring in proportion to the examples."""
    training, scoring = (configurations.value(row, name) or 0.0 for name in ("train_seconds", "eval_seconds"))
    scored = configurations.value(row, "n_eval")
    more = whole.get(EXAMPLES, scored) / scored - 1 if scored else 0.0
    return progress.seconds_of(row) + training_seconds(row, whole) - training + scoring * more
