"""Intervals and tests."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, bootstrap, false_discovery_control, norm, t

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Difference:
    """second - first."""

    delta: float
    low: float | None
    high: float | None
    p: float
    test: str
    n: int
    needed: int | None = None  # examples that would show it, if it is what was seen
    wants_seeds: bool = False  # no number of examples would, without more seeds

    def verdict(self, names=("the first", "the second")):
        """One clause, as one would say it."""
        if self.p < SIGNIFICANT:
            return f"{names[1] if self.delta > 0 else names[0]} is better"
        if not self.delta:
            return f"no difference at all on {self.n} examples"
        return f"no difference that n = {self.n} can show{self.settle()}"

    def settle(self):
        """What would settle it, with a semicolon before; nothing where that is not known."""
        if self.wants_seeds and self.p >= SIGNIFICANT:
            return "; more seeds would settle it, not more examples"
        return (
            f"; about {self.needed:,} examples would settle it, if the difference is what was seen"
            if self.needed
            else ""
        )


def paired(first, second):
    """The Difference of two lists of scores of the same examples [N]: McNemar's exact test for 0 and 1, else the paired bootstrap."""
    delta, low, high, p = paired_difference(first, second)
    test = "paired bootstrap"
    if set(first) | set(second) <= {0.0, 1.0}:
        p, only_first, only_second = mcnemar(first, second)
        test = f"McNemar's exact test, {only_first} right only in the first, {only_second} only in the second"
    return Difference(
        delta, low, high, p, test, len(first), examples_needed(first, second) if p >= SIGNIFICANT else None
    )


def adjusted(differences):
    """The p of several Differences after Benjamini and Hochberg (1995, scipy): with many pairs some differ by chance."""
    return list(false_discovery_control([found.p for found in differences])) if differences else []


CONFIDENCE = 0.95


def wilson_interval(n_right, n):
    """95 % Wilson score interval (Wilson 1927; scipy) of a proportion."""
    interval = binomtest(int(n_right), int(n)).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_interval(values, seed=0, n_resamples=2000):
    """95 % percentile bootstrap interval (scipy) of the mean of per-example scores; (None, None) for fewer than two."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return None, None
    result = bootstrap(
        (values,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=n_resamples,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def mcnemar(first, second):
    """(p, n right only in the first, n right only in the second) of McNemar's exact test on the same examples.

    first, second: [N] of 0 or 1. Two-sided, by the binomial distribution (scipy); p is 1.0 where the two never differ.
    """
    only_first = sum(a > b for a, b in zip(first, second, strict=True))
    only_second = sum(a < b for a, b in zip(first, second))
    n = only_first + only_second
    return (float(binomtest(only_first, n).pvalue) if n else 1.0), only_first, only_second


def paired_difference(first, second, seed=0, n_resamples=10_000):
    """(mean of second - first, its low, high, p) by resampling the same examples of both (paired percentile bootstrap, scipy).

    p: twice the smaller share of resampled means on the other side of 0, at least 1 / n_resamples; 1.0 where the two never differ.
    """
    difference = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    if len(difference) < 2 or not difference.any():
        return float(difference.mean()), None, None, 1.0
    found = bootstrap(
        (difference,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=n_resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    means = found.bootstrap_distribution
    p = 2 * min(float(np.mean(means <= 0)), float(np.mean(means >= 0)))
    interval = found.confidence_interval
    return float(difference.mean()), float(interval.low), float(interval.high), min(1.0, max(p, 1 / n_resamples))


def examples_needed(first, second, power=0.8):
    """How many examples would show the mean difference that was seen, at 5 % and this power; None where there is none.

    Of the normal approximation of a paired test: ((z(0.975) + z(power)) x standard deviation / difference) squared.
    """
    difference = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    mean, spread = difference.mean(), difference.std(ddof=1) if len(difference) > 1 else 0.0
    if not mean or not spread:
        return None
    return int(np.ceil(((norm.ppf(0.5 + CONFIDENCE / 2) + norm.ppf(power)) * spread / mean) ** 2))


def degrees_of_freedom(variances):
    """Of a sum of variances, [(variance, degrees)]: Welch (1947) and Satterthwaite (1946); at least 1."""
    total = sum(variance for variance, _ in variances)
    return max(1.0, total**2 / sum(variance**2 / degrees for variance, degrees in variances)) if total else 1e9


def quantile(variances):
    """How many standard errors a 95 % interval reaches (Student's t)."""
    return float(t.ppf(0.975, degrees_of_freedom(variances)))
