"""Intervals and significance tests, from scipy. Every interval and p of the project is computed here."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, bootstrap, false_discovery_control, norm, t

CONFIDENCE = 0.95
SIGNIFICANT = 0.05
POWER = 0.8  # of examples_needed


@dataclass(frozen=True)
class Difference:
    """The difference of two means, second - first, with its test."""

    delta: float
    low: float | None  # 95 % interval; None where the two never differ
    high: float | None
    p: float
    test: str  # which test it was, in words
    n: int  # examples
    needed: int | None = None  # examples that would show a difference of this size, None if that is not known
    wants_seeds: bool = False  # the seeds vary so much that no number of examples would show it

    def verdict(self, names=("the first", "the second")):
        """One clause in words: which one is better, or that this many examples cannot show it."""
        if self.p < SIGNIFICANT:
            return f"{names[1] if self.delta > 0 else names[0]} is better"
        if not self.delta:
            return f"no difference at all on {self.n} examples"
        return f"no difference that n = {self.n} can show{self.settle()}"

    def settle(self):
        """What would settle it, after a semicolon; "" if that is not known."""
        if self.wants_seeds and self.p >= SIGNIFICANT:
            return "; more seeds would settle it, not more examples"
        if not self.needed:
            return ""
        return f"; about {self.needed:,} examples would settle it, if the difference is what was seen"


def wilson_interval(n_right, n):
    """95 % score interval of a proportion (Wilson 1927; scipy). Returns (low, high)."""
    interval = binomtest(int(n_right), int(n)).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_interval(values, seed=0, n_resamples=2000):
    """95 % percentile bootstrap interval of the mean (Efron 1979; scipy). values: [N] scores of examples.

    Returns (low, high); (None, None) for fewer than two values.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return None, None
    interval = _bootstrap(values, seed, n_resamples, vectorized=True).confidence_interval
    return float(interval.low), float(interval.high)


def _bootstrap(values, seed, n_resamples, **options):
    generator = np.random.default_rng(seed)
    options |= {"confidence_level": CONFIDENCE, "n_resamples": n_resamples, "method": "percentile", "rng": generator}
    return bootstrap((values,), np.mean, **options)


def paired(first, second):
    """The Difference of the scores of the same N examples: McNemar's exact test for scores of 0 and 1, else the paired
    bootstrap. The interval is the bootstrap's in both cases.
    """
    delta, low, high, p = paired_difference(first, second)
    test = "paired bootstrap"
    if set(first) | set(second) <= {0.0, 1.0}:
        p, only_first, only_second = mcnemar(first, second)
        test = f"McNemar's exact test, {only_first} right only in the first, {only_second} only in the second"
    needed = examples_needed(first, second) if p >= SIGNIFICANT else None
    return Difference(delta, low, high, p, test, len(first), needed)


def mcnemar(first, second):
    """McNemar's exact test on the same examples (McNemar 1947; scipy's binomial test, two-sided).

    first, second: [N] of 0 or 1. Returns (p, n right only in the first, n right only in the second); p is 1.0 where the
    two never differ.
    """
    only_first = sum(a > b for a, b in zip(first, second, strict=True))
    only_second = sum(a < b for a, b in zip(first, second))
    n = only_first + only_second
    return (float(binomtest(only_first, n).pvalue) if n else 1.0), only_first, only_second


def paired_difference(first, second, seed=0, n_resamples=10_000):
    """The mean of second - first by the paired percentile bootstrap, which resamples examples (Efron 1979; scipy).

    first, second: [N] scores of the same examples. Returns (mean, low, high, p). p is twice the smaller share of
    resampled means on the other side of 0, at least 1 / n_resamples. Where the two never differ, or N is 1: no interval
    (None) and p = 1.0.
    """
    differences = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    if len(differences) < 2 or not differences.any():
        return float(differences.mean()), None, None, 1.0
    result = _bootstrap(differences, seed, n_resamples)
    means, interval = result.bootstrap_distribution, result.confidence_interval
    p = 2 * min(float(np.mean(means <= 0)), float(np.mean(means >= 0)))
    return float(differences.mean()), float(interval.low), float(interval.high), min(1.0, max(p, 1 / n_resamples))


def examples_needed(first, second, power=POWER):
    """How many examples would show the mean difference that was seen, at 5 % and this power; None where there is none.

    Normal approximation of a paired test: ((z(0.975) + z(power)) * standard deviation / mean)^2. first, second: [N].
    """
    differences = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    mean, deviation = differences.mean(), differences.std(ddof=1) if len(differences) > 1 else 0.0
    if not mean or not deviation:
        return None
    return int(np.ceil(((norm.ppf(0.5 + CONFIDENCE / 2) + norm.ppf(power)) * deviation / mean) ** 2))


def from_variances(mean, examples, seeds, n, test):
    """The Difference of a mean whose variance is a sum of parts: Student's t test with Welch's degrees of freedom.

    examples, seeds: lists of (variance of the mean, degrees of freedom), the parts that come from the n examples and
    those that come from the seeds. test: its name in words.
    """
    variances = [*examples, *seeds]
    error, reach = math.sqrt(sum(variance for variance, _ in variances)), quantile(variances)
    p = 2 * float(t.sf(abs(mean) / error, degrees_of_freedom(variances))) if error else 1.0
    # more examples shrink their own part only: what the seeds' part leaves of the variance that would show the mean
    left = (mean / (norm.ppf(0.975) + norm.ppf(POWER))) ** 2 - sum(variance for variance, _ in seeds)
    needed = None
    if left > 0 and p >= SIGNIFICANT:
        needed = math.ceil(n * sum(variance for variance, _ in examples) / left)
    return Difference(mean, mean - reach * error, mean + reach * error, p, test, n, needed, bool(seeds and left <= 0))


def degrees_of_freedom(variances):
    """Degrees of freedom of a sum of variances, at least 1 (Satterthwaite 1946, Welch 1947).

    variances: list of (variance, degrees of freedom).
    """
    total = sum(variance for variance, _ in variances)
    return max(1.0, total**2 / sum(variance**2 / degrees for variance, degrees in variances)) if total else 1e9


def quantile(variances):
    """How many standard errors a 95 % interval reaches to each side (Student's t). variances: as degrees_of_freedom."""
    return float(t.ppf(0.975, degrees_of_freedom(variances)))


def adjusted(differences):
    """[N] p of N Differences after Benjamini and Hochberg (1995; scipy): of many pairs, some differ by chance."""
    return list(false_discovery_control([difference.p for difference in differences])) if differences else []
