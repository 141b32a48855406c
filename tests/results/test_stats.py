import math

import numpy as np
import pytest

from harness.results import stats


def test_wilson_interval_is_the_formula():
    z, p, n = 1.959963984540054, 0.8, 200
    centre, half = (
        (p + z**2 / (2 * n)) / (1 + z**2 / n),
        z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)),
    )
    assert stats.wilson_interval(160, 200) == pytest.approx((centre - half, centre + half), abs=1e-9)
    assert stats.wilson_interval(10, 10)[1] == 1.0 and stats.wilson_interval(10, 10)[0] < 0.8


def test_bootstrap_interval_covers_the_mean_at_about_the_normal_width():
    values = np.random.default_rng(0).normal(0.5, 0.1, 400)
    low, high = stats.bootstrap_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std(ddof=1) / 20, rel=0.1)
    assert stats.bootstrap_interval([0.3]) == (None, None)
    assert stats.bootstrap_interval([0.5] * 10) == (0.5, 0.5)


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
        mean, low, high, p = stats.paired_difference(base, other)
        t = ttest_rel(other, base)
        interval = t.confidence_interval(0.95)
        assert mean == pytest.approx(np.mean(other - base)) and p == pytest.approx(t.pvalue, abs=0.03)
        assert (low, high) == pytest.approx((interval.low, interval.high), abs=0.005)
    assert stats.paired_difference([0.5, 1.0], [0.5, 1.0]) == (0.0, None, None, 1.0)


def test_the_examples_needed_show_the_difference_at_that_power():
    rng = np.random.default_rng(1)
    first, second = rng.binomial(1, 0.80, 5000), rng.binomial(1, 0.84, 5000)
    needed = stats.examples_needed(first, second)
    found = []
    for _ in range(300):
        some = rng.integers(0, 5000, needed)
        found.append(stats.mcnemar(first[some], second[some])[0] < 0.05)
    assert 0.7 < np.mean(found) < 0.9
    assert stats.examples_needed([1, 0], [1, 0]) is None


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
    for examples, seeds in ((parts, []), (parts[:1], parts[1:])):
        test = stats.from_variances(mean, examples, seeds, 15, "a test")
        assert test.p == pytest.approx(welch.pvalue) and test.delta == mean and test.n == 15
        assert (test.low, test.high) == pytest.approx(tuple(welch.confidence_interval(0.95)))
    assert test.wants_seeds and test.needed is None and "more seeds" in test.settle()
    assert stats.from_variances(mean, parts, [], 15, "a test").needed > 15
    assert stats.from_variances(0.0, [(0.0, 1)], [], 2, "a test").p == 1.0


def test_many_p_values_are_adjusted_as_statsmodels_does(tmp_path):
    found = [stats.Difference(0.1, 0, 1, p, "t", 10) for p in (0.001, 0.02, 0.04, 0.3)]
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    assert stats.adjusted(found) == pytest.approx(
        list(multitest.multipletests([d.p for d in found], method="fdr_bh")[1])
    )
    assert stats.adjusted([]) == []
