"""Who chooses in the benchmark of the selector: the selector with each regression, and what anybody could write."""

import argparse
import itertools
import random

import common  # noqa: F401  finds the project's modules
import numpy as np

import utils
from harness.selector import predictor, rules
from harness.selector.candidates import Limits, choose
from harness.selector.spec import spec

LATENCIES = (None, 2000, 1000, 500, 200, 100, 50, 20)  # ms
MEMORIES = (None, 4, 3, 2, 1.5, 1)  # GB
LABELS = (0, 16, 100, 500, 2000)
SCORES = (None, 0.2, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9)
MEASURED = 3  # ways to answer, of twice as many or more
MEASURING = ("rows", "three_soonest", "three_random")  # choosers that know the rows that judge them
LEARNERS = {"selector": predictor.REGRESSION, "ridge": "ridge"}


def settings():
    """All Limits."""
    for latency, memory, labels, score in itertools.product(LATENCIES, MEMORIES, LABELS, SCORES):
        yield Limits(memory, latency, labels, score)


def by_rules(limits, candidates):
    """The candidate that the rules' best strategy means: at its precision, with the most labels allowed."""
    args = argparse.Namespace(
        memory_gb=limits.memory_gb,
        latency_ms=limits.latency_ms,
        data_size=limits.data_size,
        params_b=max(c.configuration.mean("total_params") or 0 for c in candidates) / 1e9,
        required_accuracy=limits.required_accuracy,
        knowledge_heavy=any(c.configuration["strategy"] == "rag" for c in candidates),
        model=None,
        dataset=None,
        task=None,
    )
    for strategy, _, _ in rules.decide(args)[0]:
        precision = rules.best_precision(strategy, args)
        means = {strategy, "quantized"} if strategy == "prompting" else {strategy}
        alike = [c for c in candidates if c.configuration["strategy"] in means]
        if alike:
            return max(alike, key=lambda c: (c.configuration["precision"] == precision, c.labels))
    return None


def ways_of(candidates):
    """[Candidates]: of each way to answer, a strategy's variant with one base model, that with most labels."""
    ways = {}
    for c in sorted(candidates, key=lambda c: -c.labels):
        ways.setdefault((c.strategy, c.configuration["variant"], c.configuration["model"]), c)
    return list(ways.values())


def plain_choices(limits, candidates, seed):
    """{chooser: Candidate} of those that learn nothing. candidates: those that have not too many labels.

    Without three_soonest and three_random where there are few ways.
    """

    def params(c):
        return c.configuration.mean("total_params") or 0

    cheapest = min(candidates, key=lambda c: (params(c), c.labels))
    probes = [c for c in candidates if c.strategy == "probe" and params(c)]
    chosen = {
        "rows": choose(candidates, limits)[0],
        "rules": by_rules(limits, candidates),
        "probe": max(probes, key=lambda c: c.labels, default=cheapest),
        "cheapest": cheapest,
        "random": random.Random(seed).choice(candidates),
        "nothing": None,
    }
    ways = ways_of(candidates)
    if len(ways) >= 2 * MEASURED:
        quickest = sorted(ways, key=lambda c: c.cost_seconds(c.configuration.n_eval))
        chosen["three_soonest"] = choose(quickest[:MEASURED], limits)[0]
        chosen["three_random"] = choose(random.Random(seed).sample(ways, MEASURED), limits)[0]
    return chosen


class Learner:
    """The selector's choice, with one kind of regression."""

    def __init__(self, regression, rest, known, group, candidates):
        """known: {data set: Data}, the judged one's as far as it is known before a run."""
        self.candidates, self.guesses = candidates, []
        try:
            learned = predictor.Predictor(rest, known, regression)
        except utils.UserError:
            return
        for i, c in enumerate(candidates):
            wanted = spec(c.configuration, known[group[0]])
            if learned.refusal(wanted) is None:
                self.guesses.append((i, learned.candidate(wanted, str(i), c.configuration)))
        # limits are independent: the probability of all is the product
        self.tables = {
            name: {value: self._chances(**{name: value}) for value in values}
            for name, values in (("latency_ms", LATENCIES), ("memory_gb", MEMORIES), ("required_accuracy", SCORES))
        }

    def _chances(self, **limit):
        return np.array([predictor.chance(guess, Limits(**limit)) for _, guess in self.guesses])

    def chances(self, limits):
        """[G] probabilities of the guesses to be within the limits."""
        enough = np.array([guess.labels <= limits.data_size for _, guess in self.guesses], dtype=float)
        parts = (self.tables[name][getattr(limits, name)] for name in self.tables)
        return enough * np.prod(list(parts), axis=0)

    def chance(self, candidate, limits):
        """Its stated probability to be within the limits, None where it is not predicted."""
        chances = zip(self.guesses, self.chances(limits)) if self.guesses else ()
        return next((float(chance) for (i, _), chance in chances if self.candidates[i] is candidate), None)

    def choose(self, limits):
        """(Candidate or None for nothing, stated probability); (None, None) where nothing is in reach."""
        if not self.guesses:
            return None, None
        chances = self.chances(limits).tolist()
        choice, stated, _ = predictor.choose_predicted([guess for _, guess in self.guesses], limits, chances=chances)
        return (None if choice is None or stated < predictor.NOTHING else self.candidates[int(choice.name)]), stated
