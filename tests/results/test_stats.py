import math

import numpy as np
import pytest

from harness.results import seed_spread, stats


def test_wilson_interval_is_the_formula():
    z, p, n = 1.959963984540054, 0.8, 200
    centre, half = (
        (p + z**2 / (2 * n)) / (1 + z**2 / n),
        z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)),
    )
    assert stats.wilson_interval(160, 200) == pytest.approx((centre - half, centre + half), abs=1e-9)
    assert stats.wilson_interval(10, 10)[1] == 1.0 and stats.wilson_interval(10, 10)[0] < 0.8


def test_the_cluster_robust_variance_is_that_of_statsmodels():
    sm = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(0)
    clusters = [*np.repeat(list("abcdefghij"), 5), *[None] * 10]
    numbers = [*np.repeat(range(10), 5), *range(10, 20)]
    values = rng.uniform(size=60) + np.array(numbers) / 20
    fit = sm.OLS(values, np.ones(60)).fit(cov_type="cluster", cov_kwds={"groups": np.array(numbers)})
    variance, degrees = stats.example_variance(values, clusters)
    assert variance == pytest.approx(fit.bse[0] ** 2)
    assert degrees == pytest.approx(60**2 / (10 * 25 + 10) - 1) and degrees < stats.n_clusters(clusters, 60) - 1
    equal = stats.example_variance(values[:50], clusters[:50])
    assert equal[1] == 9, "clusters of one size count in full"
    order = rng.permutation(60)
    assert stats.example_variance(values[order], [clusters[i] for i in order])[0] == pytest.approx(variance)
    both = stats.example_variance(np.stack([values, 2 * values]), clusters)[0]  # further axes are in front
    assert both == pytest.approx([variance, 4 * variance])


def test_the_interval_of_scores():
    rng = np.random.default_rng(0)
    right = (rng.random(50) < 0.8).astype(float)
    assert stats.score_interval(right) == pytest.approx(stats.wilson_interval(right.sum(), 50))
    assert stats.score_interval(right, [None] * 50) == stats.score_interval(right, list(range(50)))
    low, high = stats.score_interval(np.repeat(right, 4), list(np.repeat(range(50), 4)))  # each question four times
    assert (low, high) == pytest.approx(stats.wilson_interval(right.sum(), 50), abs=0.01), "no more than 50 answers"
    graded = rng.normal(0.5, 0.1, 400)
    t = one_sample_interval(graded)
    assert stats.score_interval(graded) == pytest.approx(t, abs=5e-4)
    ratings = rng.integers(3, 10, 40).astype(float)  # of 10: beyond 0 to 1 it is Student's
    assert stats.score_interval(ratings) == pytest.approx(one_sample_interval(ratings))
    assert stats.score_interval([1.0] * 10)[1] == 1.0 and 0.6 < stats.score_interval([1.0] * 10)[0] < 0.8
    low, high = stats.score_interval([1.0] * 20, list(range(4)) * 5)
    assert high == 1.0 and low < stats.score_interval([1.0] * 20)[0], "four clusters, whatever their size"
    for values, clusters in (([0.3], None), ([], None), ([0.2, 0.4], ["a", "a"])):
        assert stats.score_interval(values, clusters) == (None, None)


def one_sample_interval(values):
    from scipy.stats import ttest_1samp

    return tuple(ttest_1samp(values, 0).confidence_interval(0.95))


@pytest.mark.parametrize("b, c", [(0, 0), (1, 0), (3, 9), (12, 12), (40, 61)])
def test_mcnemar_is_the_exact_binomial_test(b, c):
    from scipy.stats import binom

    first, second = [1] * b + [0] * c + [1] * 20 + [0] * 7, [0] * b + [1] * c + [1] * 20 + [0] * 7
    p, only_first, only_second = stats.mcnemar(first, second)
    assert (only_first, only_second) == (b, c)
    assert p == pytest.approx(min(1.0, 2 * binom.cdf(min(b, c), b + c, 0.5)))
    statsmodels = pytest.importorskip("statsmodels.stats.contingency_tables")
    assert p == pytest.approx(statsmodels.mcnemar([[20, b], [c, 7]], exact=True).pvalue)


def test_a_paired_difference_agrees_with_the_paired_t_test():
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(0)
    for shift, n in ((0.0, 400), (0.04, 400), (0.1, 100)):
        base = rng.uniform(size=n)
        other = np.clip(base + shift + 0.3 * rng.normal(size=n), 0, 1)
        found = stats.paired(base, other)
        t = ttest_rel(other, base)
        assert found.delta == pytest.approx(np.mean(other - base)) and found.p == pytest.approx(t.pvalue, abs=0.01)
        assert (found.low, found.high) == pytest.approx(tuple(t.confidence_interval(0.95)))
        assert "permutation" in found.test
    same = stats.paired([0.5, 0.7], [0.5, 0.7])
    assert (same.p, same.low, same.detectable) == (1.0, None, None)


def test_sign_flips_are_scipys_permutation_test():
    from scipy.stats import permutation_test

    rng = np.random.default_rng(0)
    for n in (2, 5, 12):
        differences = rng.normal(0.4, 1, n)
        expected = permutation_test(
            (differences, np.zeros(n)), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
        )
        assert stats.sign_flip(differences) == pytest.approx(expected.pvalue)
        padded = [*differences, 0.0, 0.0]
        assert stats.sign_flip(padded) == pytest.approx(expected.pvalue), "flipping 0 changes nothing"
    clusters = list("aabbccddeeffgg")
    differences = rng.normal(0.3, 1, 14)
    assert stats.sign_flip(differences, clusters) == stats.sign_flip(differences.reshape(7, 2).sum(axis=1))
    assert stats.sign_flip([0.0, 0.0]) == 1.0 and stats.sign_flip([0.5]) == 1.0
    assert stats.p_text(stats.sign_flip(rng.normal(1, 0.5, 300))) == "p < 0.0001", "not the floor of the flips"
    assert stats.p_text(0.0341) == "p = 0.034"


def test_questions_about_one_passage_do_not_count_as_so_many():
    """Scores that differ by passages alone: McNemar counts the questions, the test over clusters the passages."""
    first, second = np.repeat([1.0, 0, 0, 0, 0, 0, 1, 0], 10), np.repeat([1.0, 1, 1, 1, 0, 0, 1, 0], 10)
    passages = list(np.repeat(range(8), 10))
    naive, found = stats.paired(first, second), stats.paired(first, second, passages)
    assert naive.p < 1e-6 and "McNemar" in naive.test
    assert found.p == pytest.approx(2 / 2**3) and "over 8 clusters" in found.test
    assert found.high - found.low > naive.high - naive.low


def test_the_interval_of_mcnemar_is_bonett_and_prices():
    first, second = [1] * 4 + [0] * 9 + [1] * 20 + [0] * 7, [0] * 4 + [1] * 9 + [1] * 20 + [0] * 7
    n, b, c = 40, (4 + 1) / 42, (9 + 1) / 42
    error = math.sqrt((b + c - (c - b) ** 2) / (n + 2))
    found = stats.paired(first, second)
    reach = t_quantile(n - 1) * error
    assert (found.low, found.high) == pytest.approx((c - b - reach, c - b + reach)) and found.delta == 5 / 40


def t_quantile(degrees):
    from scipy.stats import t

    return t.ppf(0.975, degrees)


@pytest.mark.parametrize("n", [20, 200])
def test_the_detectable_difference_is_found_at_that_power(n):
    from scipy.stats import ttest_1samp

    rng = np.random.default_rng(1)
    limit = np.mean([stats.detectable([stats.example_variance(rng.normal(0, 0.3, n))]) for _ in range(50)])
    found = ttest_1samp(rng.normal(limit, 0.3, (4000, n)), 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(stats.POWER, abs=0.03)
    some = stats.paired(np.zeros(n), rng.normal(0, 0.3, n))
    assert f"differences below {some.detectable:.3f} cannot be detected at this n (80 % power)" in some.limit()


def test_degrees_of_freedom_are_welchs():
    import numpy as np
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=4), rng.normal(0, 3, size=9)
    found = stats.degrees_of_freedom([(a.var(ddof=1) / 4, 3), (b.var(ddof=1) / 9, 8)])
    assert found == pytest.approx(ttest_ind(a, b, equal_var=False).df)


def test_a_sum_of_variances_is_welchs_t_test():
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=6), rng.normal(0.5, 3, size=9)
    mean, parts = b.mean() - a.mean(), [(a.var(ddof=1) / 6, 5), (b.var(ddof=1) / 9, 8)]
    welch = ttest_ind(b, a, equal_var=False)
    test = stats.from_parts(mean, parts, 15, "a test")
    assert test.p == pytest.approx(welch.pvalue) and test.delta == mean and test.n == 15
    assert (test.low, test.high) == pytest.approx(tuple(welch.confidence_interval(0.95)))
    assert test.detectable > (test.high - test.low) / 2
    nothing = stats.from_parts(0.0, [(0.0, 1)], 2, "a test")
    assert nothing.p == 1.0 and nothing.low is None and nothing.limit() == ""


def test_the_seeds_variance_is_that_of_a_random_effect():
    """Two-way data: what the interaction of seeds and examples adds to the run means is no variance of seeds."""
    rng = np.random.default_rng(0)
    examples, seeds = rng.normal(0, 1, (2000, 1, 50)), rng.normal(0, 0.1, (2000, 4, 1))
    runs = examples + seeds + rng.normal(0, 1, (2000, 4, 50))
    squares, degrees, within = seed_spread.of_runs(runs)
    assert degrees == 3 and np.mean((squares - within) / degrees) == pytest.approx(0.01, abs=0.001)
    assert np.mean(squares / degrees) == pytest.approx(0.01 + 1 / 50, abs=0.001)
    assert seed_spread.pooled([(0.02, 1, 0.0)]) is None, "two runs alone"
    pooled = seed_spread.pooled([(0.02, 1, 0.0), (0.04, 2, 0.03)])
    assert pooled.variance == pytest.approx(0.01) and pooled.degrees == 3
    assert sum(variance for variance, _ in pooled.parts(1 / 2)) == pytest.approx(0.005)
    assert seed_spread.pooled([(0.02, 2, 0.03)]).parts(1) == []


def test_the_expected_maximum():
    rng = np.random.default_rng(0)
    for k in (1, 2, 21):
        assert stats.expected_maximum(k) == pytest.approx(rng.normal(size=(40_000, k)).max(axis=1).mean(), abs=0.02)


def test_many_p_values_are_adjusted_as_statsmodels_does(tmp_path):
    found = [stats.Difference(0.1, 0, 1, p, "t", 10) for p in (0.001, 0.02, 0.04, 0.3)]
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    assert stats.adjusted(found) == pytest.approx(
        list(multitest.multipletests([d.p for d in found], method="fdr_bh")[1])
    )
    assert stats.adjusted([]) == []
