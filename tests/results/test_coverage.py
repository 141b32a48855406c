"""Simulations: do 95 % intervals cover the expected score in 93 to 97 % of the experiments, and tests keep their 5 %?

An experiment is a panel of configurations that answer the same examples, see simulated_scores.
"""

import itertools

import numpy as np
import pytest
from simulated_scores import CONFIGURATIONS, SEEDS_SD, expected, panel

from harness.results import seed_spread, stats


def parts_of(scores, clusters):
    """The parts of each configuration's variance, with the seeds' pooled over the panel, as configurations has them."""
    parts = [stats.example_variance(scores.mean(axis=2), clusters)]
    if scores.shape[2] == 1:
        return parts
    pooled = seed_spread.pooled([seed_spread.of_runs(scores[:, c], clusters) for c in range(CONFIGURATIONS)])
    seeds = pooled.parts(1 / scores.shape[2])
    return parts + [(np.expand_dims(variance, -1), degrees) for variance, degrees in seeds]


def coverage(n, size, seeds, kind, level, replications):
    """Shares of the 95 % intervals that cover the expected score, and no difference between two configurations.

    The expected score is over examples and seeds; of a panel without repeated runs over the examples alone.
    """
    rng, seeds_sd = np.random.default_rng([n, size, seeds]), SEEDS_SD if seeds > 1 else 0.0
    scores = panel(n, size, seeds, kind, level, rng, replications, seeds_sd)
    clusters = list(np.arange(n) // size)
    means = scores.mean(axis=(2, 3))
    if seeds == size == 1 and kind == "right or wrong":
        low, high = stats.wilson(means, n, stats.norm.ppf(stats.TAIL))
    else:
        low, high = stats.interval(means, parts_of(scores, clusters), n // size)
    target = expected(kind, level, seeds_sd)
    pairs = (scores[:, ::2] - scores[:, 1::2]).mean(axis=2)  # two of configurations that are equal
    parts = [stats.example_variance(pairs, clusters), *((2 * v, d) for v, d in parts_of(scores, clusters)[1:])]
    reach = stats.quantile(parts) * np.sqrt(sum(variance for variance, _ in parts))
    return np.mean((low <= target) & (target <= high)), np.mean(np.abs(pairs.mean(axis=-1)) <= reach)


SIZES = [20, 60, pytest.param(400, marks=pytest.mark.slow)]


@pytest.mark.parametrize("kind", ["right or wrong", "graded"])
@pytest.mark.parametrize("n", SIZES)
def test_intervals_cover(kind, n):
    found = {
        (size, seeds, level): coverage(n, size, seeds, kind, level, {20: 2000, 60: 1000, 400: 1000}[n])
        for size, seeds, level in itertools.product((1, 5), range(1, 6), (0.3, 1.0))  # scores of about 0.55 and 0.7
    }
    # to whole percents: 1,000 to 2,000 simulated panels of four are no more precise
    assert all(0.93 <= round(share, 2) <= 0.97 for shares in found.values() for share in shares), found
