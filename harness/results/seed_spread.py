"""How much scores vary over seeds: one variance for all configurations of a panel, pooled over their repeated runs."""

from dataclasses import dataclass

import numpy as np

from harness.results import stats

MIN_DEGREES = 2  # that a spread over seeds needs to count in an interval: two runs alone have 1


def of_runs(runs, clusters=None):
    """(sum of squares of the S run means, degrees of freedom, what the examples alone contribute to that sum).

    runs: [.., S, N] scores. Two runs that differ on single examples differ in their means as well, without any effect
    of the seed on all examples; the interval counts that part with the examples, so here it is taken out.
    """
    runs = np.asarray(runs, dtype=float)
    means = runs.mean(axis=-1)
    squares = ((means - means.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1)
    within, _ = stats.example_variance(runs - runs.mean(axis=-2, keepdims=True), clusters)
    return squares, runs.shape[-2] - 1, 0.0 if within is None else within.sum(axis=-1)


@dataclass(frozen=True)
class Seeds:
    """How much the score of one run varies over seeds: the variance of run means less what the examples add to it."""

    between: float
    within: float
    degrees: int

    @property
    def variance(self):
        return self.between - self.within

    def parts(self, share):
        """The parts that they add to the variance of a mean. share: 1 / (runs that are averaged)."""
        return (
            [(self.between * share, self.degrees), (-self.within * share, stats.MANY)] if np.any(self.variance) else []
        )


def pooled(parts):
    """The Seeds of a panel; None where the degrees of freedom, which are summed, are too few.

    parts: [what of_runs returns] of its configurations with several runs.
    """
    degrees = sum(degrees for _, degrees, _ in parts)
    if degrees < MIN_DEGREES:
        return None
    between, within = (sum(part[i] for part in parts) / degrees for i in (0, 2))
    return Seeds(*(np.where(between > within, variance, 0.0) for variance in (between, within)), degrees)


def share(members):
    """Give the Configurations of a panel their variance over seeds: one for all, pooled over those with several runs.

    Two runs say little about a spread, so nothing is known from fewer than two degrees of freedom in all. Seeds change
    nothing where there is neither a label nor training. Runs of which only some collapsed (degenerate) vary in another
    way: they are not pooled, and have their own variance where it is larger.
    """
    steady = [c for c in members if c.varies and len(c.rows) > 1 and not c.degenerate]
    shared = pooled([c.seed_squares() for c in steady])
    for c in members:
        c.seeds = shared if c.varies else Seeds(0.0, 0.0, 1)
        if 0 < c.degenerate < len(c.rows):
            own = pooled([c.seed_squares()])
            c.seeds = max(own, shared or own, key=lambda seeds: seeds.variance) if own else None
