"""Simulated scores of configurations on the same examples, of which the expected score is known.

On the logit scale an answer depends on the example, on its cluster, on how the configuration takes to the example, on
the seed of the run, and on chance.
"""

import functools

import numpy as np

CONFIGURATIONS = 4
EXAMPLES_SD, OWN_SD, SEEDS_SD = 1.0, 0.5, 0.3  # seeds: about six points of accuracy
SHARED = 0.3  # of the examples' variance, by their cluster


def answers(probability, kind, rng):
    """Scores of 0 and 1 with these probabilities, or graded ones, of which many are 0 or 1 as those of F1 are."""
    chance = rng.random(probability.shape)
    if kind == "right or wrong":
        return (chance < probability).astype(float)
    graded = rng.random(probability.shape) ** (1 / probability - 1)  # between 0 and 1, with this mean
    return np.where(chance < 0.5 * probability, 1.0, np.where(chance > 1 - 0.4 * (1 - probability), 0.0, graded))


def panel(n, size, seeds, kind, level, rng, replications, seeds_sd=SEEDS_SD, configurations=CONFIGURATIONS):
    """[replications, configurations, seeds, n] scores in clusters of this size."""
    clusters = np.arange(n) // size
    shared = SHARED if size > 1 else 0.0
    by_cluster = rng.normal(size=(replications, 1, 1, n))[..., clusters]
    examples = np.sqrt(shared) * by_cluster + np.sqrt(1 - shared) * rng.normal(size=(replications, 1, 1, n))
    own = OWN_SD * rng.normal(size=(replications, configurations, 1, n))
    runs = seeds_sd * rng.normal(size=(replications, configurations, seeds, 1))
    return answers(1 / (1 + np.exp(-(level + EXAMPLES_SD * examples + own + runs))), kind, rng)


@functools.cache
def expected(kind, level, seeds_sd, n=1_000_000):
    rng = np.random.default_rng(1)
    spread = np.sqrt(EXAMPLES_SD**2 + OWN_SD**2 + seeds_sd**2)
    return answers(1 / (1 + np.exp(-(level + spread * rng.normal(size=n)))), kind, rng).mean()
