"""Intervals and significance tests, with scipy's distributions. Every interval and p of the project is computed here.

A score varies over examples, over clusters of examples (questions about one passage) and over seeds. A variance of a
mean is a list of parts (variance, degrees of freedom), one for each of these that is known; they are summed, and the
quantile is Student's with Satterthwaite's degrees of freedom. Functions over examples take arrays whose last axis is
the examples, with any axes before it.
"""

from dataclasses import dataclass

import numpy as np
from scipy.integrate import quad
from scipy.stats import binomtest, false_discovery_control, norm, t

SIGNIFICANT = 0.05
TAIL = 0.975  # of 95 % intervals
POWER = 0.8  # with which a difference of the size `detectable` is found
FLIPS = 49_999  # random sign flips of a permutation test: the smallest p is below the 0.0001 that is printed
EXACT = 15  # clusters up to which all 2^15 sign flips are tried
MANY = 1e9  # degrees of freedom of what is taken as known


@dataclass(frozen=True)
class Difference:
    """The difference of two means, second - first, with its test."""

    delta: float
    low: float | None  # 95 % interval; None where the two never differ
    high: float | None
    p: float
    test: str  # which test it was, in words
    n: int  # examples
    detectable: float | None = None  # the smallest difference that this test finds with POWER; None if not known

    def verdict(self, names=("the first", "the second")):
        """One clause in words: which one is better, or how large a difference would have been seen."""
        if self.p < SIGNIFICANT:
            return f"{names[1] if self.delta > 0 else names[0]} is better"
        if not self.delta:
            return f"no difference at all on {self.n} examples"
        return f"no difference that n = {self.n} can show{self.limit()}"

    def limit(self):
        """The smallest difference that can be detected, after a semicolon; "" if that is not known."""
        if not self.detectable:
            return ""
        return f"; differences below {self.detectable:.3f} cannot be detected at this n ({100 * POWER:.0f} % power)"


def p_text(p):
    """p = 0.034, or p < 0.0001."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


# ---- variances


def cluster_index(clusters):
    """[N] numbers from 0 for the [N] names of the examples' clusters; None is a cluster of its own."""
    names = [("own", i) if name is None else ("shared", name) for i, name in enumerate(clusters)]
    index = {name: g for g, name in enumerate(dict.fromkeys(names))}
    return np.array([index[name] for name in names])


def cluster_sums(values, index):
    """[.., G] sums of [.., N] values over the clusters. index: [N] of cluster_index."""
    order = np.argsort(index, kind="stable")
    return np.add.reduceat(values[..., order], np.searchsorted(index[order], np.arange(index.max() + 1)), axis=-1)


def n_clusters(clusters, n):
    """The number of clusters of n examples. clusters: [N] names, or None for none."""
    return int(cluster_index(clusters).max()) + 1 if is_clustered(clusters) else n


def is_clustered(clusters):
    """True if two of the examples share a cluster. clusters: [N] names, None for one of its own; or None for all."""
    known = [name for name in clusters or () if name is not None]
    return len(set(known)) < len(known)


def example_variance(values, clusters=None):
    """(variance [..] of the mean over examples, degrees of freedom), robust to clusters (Liang and Zeger 1986).

    values: [.., N]; clusters: [N] names, see cluster_index. The variance is that of statsmodels' cluster-robust OLS on
    a constant. Degrees of freedom: the effective number of clusters less 1, which counts clusters of unequal sizes as
    fewer (Carter, Schnepel and Steigerwald 2017). (None, 0) for a single cluster.
    """
    values = np.asarray(values, dtype=float)
    n = values.shape[-1]
    residuals = values - values.mean(axis=-1, keepdims=True)
    if not is_clustered(clusters):
        return (None, 0) if n < 2 else ((residuals**2).sum(axis=-1) / (n - 1) / n, n - 1)
    index = cluster_index(clusters)
    sizes = np.bincount(index)
    if len(sizes) < 2:
        return None, 0
    sums = cluster_sums(residuals, index)  # [.., G]
    return len(sizes) / (len(sizes) - 1) * (sums**2).sum(axis=-1) / n**2, float(n**2 / (sizes**2).sum() - 1)


def mean_variance(scores, clusters=None):
    """example_variance of [N] scores, or its mean over the halvings of [SPLITS, N] scores, see champions."""
    variance, degrees = example_variance(scores, clusters)
    return None if variance is None else float(np.mean(variance)), degrees


def degrees_of_freedom(parts):
    """Degrees of freedom of a sum of variances (Satterthwaite 1946, Welch 1947), at least the fewest of a part.

    parts: [(variance, degrees)]; what is subtracted is negative.
    """
    total = sum(variance for variance, _ in parts)
    squares = sum(variance**2 / degrees for variance, degrees in parts)
    fewest = min(degrees for _, degrees in parts)
    return np.where(squares > 0, np.maximum(fewest, total**2 / np.where(squares > 0, squares, 1.0)), MANY)


def quantile(parts):
    """How many standard errors a 95 % interval reaches to each side (Student's t). parts: as degrees_of_freedom."""
    return t.ppf(TAIL, degrees_of_freedom(parts))


# ---- intervals


def wilson(share, n, z):
    """Score interval (low, high) of a share of n (Wilson 1927). share, n and z may be arrays; n need not be whole."""
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.where(share > 0, centre - reach, 0.0), np.where(share < 1, centre + reach, 1.0)


def wilson_interval(n_right, n):
    """95 % score interval of a proportion. Returns (low, high)."""
    low, high = wilson(n_right / n, n, norm.ppf(TAIL))
    return float(low), float(high)


def interval(mean, parts, n):
    """95 % interval (low, high) of a mean whose variance is a sum of parts.

    A mean from 0 to 1 has Wilson's interval at the effective sample size mean (1 - mean) / variance, as surveys use it
    (Korn and Graubard 1998, Dean and Pagano 2015), so that it stays within 0 and 1 and holds for few examples; n, the
    number of examples or clusters, stands in where the variance is 0. Another mean has Student's t interval.
    """
    variance, reach = sum(variance for variance, _ in parts), quantile(parts)
    if np.all((mean >= 0) & (mean <= 1)):
        room = mean * (1 - mean)
        known = (variance > 0) & (room > 0)
        return wilson(mean, np.where(known, room / np.where(known, variance, 1.0), n), reach)
    error = reach * np.sqrt(variance)
    return mean - error, mean + error


def score_interval(values, clusters=None):
    """95 % interval (low, high) of the mean score of one run over examples; (None, None) for fewer than two clusters.

    values: [N]; clusters: [N] names, see cluster_index. Unclustered scores of 0 and 1 have Wilson's own interval.
    """
    values = np.asarray(values, dtype=float)
    if len(values) and not is_clustered(clusters) and set(values) <= {0.0, 1.0}:
        return wilson_interval(values.sum(), len(values))
    variance, degrees = example_variance(values, clusters) if len(values) else (None, 0)
    if variance is None:
        return None, None
    low, high = interval(values.mean(), [(variance, degrees)], n_clusters(clusters, len(values)))
    return float(low), float(high)


# ---- differences


def paired(first, second, clusters=None):
    """The Difference of the scores of the same N examples in two runs.

    Scores of 0 and 1 without clusters: McNemar's exact test, and the interval of Bonett and Price (2012). Others: a
    permutation test that flips the signs of the clusters' differences, and a cluster-robust t interval.
    first, second: [N]; clusters: [N] names, see cluster_index.
    """
    differences = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    n, delta = len(differences), float(differences.mean())
    centre, parts = paired_parts(first, second, clusters)
    if set(first) | set(second) <= {0.0, 1.0} and not is_clustered(clusters):
        p, only_first, only_second = mcnemar(first, second)
        test = f"McNemar's exact test, {only_first} right only in the first, {only_second} only in the second"
    else:
        p, test = sign_flip(differences, clusters), "sign-flip permutation test"
        test += f" over {n_clusters(clusters, n)} clusters" if is_clustered(clusters) else ""
    if not differences.any() or not parts[0][1] or parts[0][0] is None:
        return Difference(delta, None, None, p, test, n)
    reach = float(quantile(parts) * np.sqrt(parts[0][0]))
    return Difference(delta, centre - reach, centre + reach, p, test, n, detectable(parts))


def paired_parts(first, second, clusters=None):
    """(centre of the interval of the mean difference second - first, parts of its variance); see `paired`."""
    differences = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    if set(first) | set(second) <= {0.0, 1.0} and not is_clustered(clusters):
        adjusted_differences = [*differences, 1.0, -1.0]  # a pair more to each side, so that few pairs do not mislead
        n = len(differences)
        return float(np.mean(adjusted_differences)), [(np.var(adjusted_differences) / (n + 2), n - 1)]
    return float(differences.mean()), [example_variance(differences, clusters)]


def mcnemar(first, second):
    """McNemar's exact test on the same examples (McNemar 1947; scipy's binomial test, two-sided).

    first, second: [N] of 0 or 1. Returns (p, n right only in the first, n right only in the second); p is 1.0 where the
    two never differ.
    """
    only_first = sum(a > b for a, b in zip(first, second, strict=True))
    only_second = sum(a < b for a, b in zip(first, second))
    n = only_first + only_second
    return (float(binomtest(only_first, n).pvalue) if n else 1.0), only_first, only_second


def sign_flip(differences, clusters=None, seed=0):
    """p of the mean of paired differences, two-sided: the share of sign flips whose mean is as far from 0.

    The signs of whole clusters are flipped (Fisher 1935; Good 2005): in all ways where at most EXACT clusters differ,
    else in FLIPS random ways. scipy's permutation_test gives the same and is ten times slower here.
    """
    sums = np.asarray(differences, dtype=float)
    if is_clustered(clusters):
        sums = cluster_sums(sums, cluster_index(clusters))
    sums = sums[np.abs(sums) > 1e-12]  # flipping 0 changes nothing
    reached, total = abs(sums.sum()) - 1e-9 * np.abs(sums).sum(), 0
    if len(sums) <= EXACT:
        signs = 1 - 2 * (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1)  # [2^G, G]
        return float(np.mean(np.abs(signs @ sums) >= reached))
    rng, rows = np.random.default_rng(seed), max(1, 4_000_000 // len(sums))
    for start in range(0, FLIPS, rows):
        signs = 1 - 2 * rng.integers(0, 2, (min(rows, FLIPS - start), len(sums)), dtype=np.int8)
        total += int((np.abs(signs @ sums) >= reached).sum())
    return (total + 1) / (FLIPS + 1)


def from_parts(mean, parts, n, test):
    """The Difference of a mean whose variance is a sum of parts: Student's t test. test: its name in words."""
    error = float(np.sqrt(sum(variance for variance, _ in parts)))
    if not error:
        return Difference(mean, None, None, 1.0, test, n)
    p, reach = 2 * float(t.sf(abs(mean) / error, degrees_of_freedom(parts))), float(quantile(parts)) * error
    return Difference(mean, mean - reach, mean + reach, p, test, n, detectable(parts))


def detectable(parts):
    """The smallest true difference that a t test at 5 % finds with POWER, from the variance alone: (t + t) errors."""
    degrees = degrees_of_freedom(parts)
    error = np.sqrt(sum(variance for variance, _ in parts))
    return float((t.ppf(TAIL, degrees) + t.ppf(POWER, degrees)) * error)


def adjusted(differences):
    """[N] p of N Differences after Benjamini and Hochberg (1995; scipy): of many pairs, some differ by chance."""
    return list(false_discovery_control([difference.p for difference in differences])) if differences else []


def expected_maximum(k):
    """The mean of the largest of k independent standard normal variables; 0 for one.

    Times the standard error, it bounds by how much the score of the best of k is too high on the examples that chose
    it: true differences and shared examples make it less.
    """
    return quad(lambda x: x * k * norm.pdf(x) * norm.cdf(x) ** (k - 1), -9, 9)[0] if k > 1 else 0.0
