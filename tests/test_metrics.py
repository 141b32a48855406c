import math

import numpy as np
import pytest

import metrics


def test_unread_answers_are_wrong_and_counted():
    cells = metrics.classification_scores([0, None, 1, 1], [0, 0, 1, 0], 2)
    assert cells["accuracy"] == cells["score"] == 0.5 and cells["invalid_rate"] == 0.25
    # class 0: precision 1, recall 1/3; class 1: precision 1/2, recall 1
    assert cells["macro_f1"] == pytest.approx((0.5 + 2 / 3) / 2)


def test_wilson_interval_is_the_formula():
    z, p, n = 1.959963984540054, 0.8, 200
    centre, half = (p + z**2 / (2 * n)) / (1 + z**2 / n), z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert metrics.wilson_interval(160, 200) == pytest.approx((centre - half, centre + half), abs=1e-9)
    assert metrics.wilson_interval(10, 10)[1] == 1.0 and metrics.wilson_interval(10, 10)[0] < 0.8


def test_bootstrap_interval_covers_the_mean_at_about_the_normal_width():
    values = np.random.default_rng(0).normal(0.5, 0.1, 400)
    low, high = metrics.bootstrap_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std(ddof=1) / 20, rel=0.1)
    assert metrics.bootstrap_interval([0.3]) == (None, None)
    assert metrics.bootstrap_interval([0.5] * 10) == (0.5, 0.5)


def test_answers_are_normalised_as_squad_does():
    assert metrics.exact_match("The Eiffel Tower!", ("eiffel tower",)) == 1.0
    assert metrics.normalise_answer("The U.S.A. has 1,000 a's") == "usa has 1000 as"
    assert metrics.exact_match("Eiffel", ("eiffel tower", "Eiffel.")) == 1.0
    assert metrics.token_f1("the big red dog", ("red dog runs",)) == pytest.approx(2 * 2 / (3 + 3))
    assert metrics.token_f1("", ("red",)) == 0.0
    assert metrics.jaccard("a cat sat on the mat", ("cat on mat now please",)) == pytest.approx(3 / 5)
    assert metrics.jaccard("very very good", ("very good",)) == pytest.approx(2 / 3)
    assert metrics.contains_answer("It is Paris, I think", ("paris",)) == 1.0
    assert metrics.contains_answer("Parisian", ("paris",)) == 0.0
    assert metrics.rouge_l("the cat sat", ("the cat ran",)) == pytest.approx(2 / 3)


def test_calibration_error_by_hand():
    probabilities = [[0.95, 0.05], [0.95, 0.05], [0.35, 0.65], [0.35, 0.65]]
    # 0.95: one of two right; 0.65: both right
    assert metrics.calibration_error(probabilities, [0, 1, 1, 1]) == pytest.approx(0.5 * abs(0.5 - 0.95) + 0.5 * abs(1 - 0.65))


def test_perplexity_of_a_uniform_guess_is_the_vocabulary():
    assert metrics.perplexity(10 * math.log(50), 10) == pytest.approx(50)


def test_log_normalise_keeps_ratios_and_sums_to_one():
    result = metrics.log_normalise(np.array([[-1000.0, -1001.0], [3.0, 3.0]]))
    assert np.exp(result).sum(axis=1) == pytest.approx([1, 1])
    assert result[0, 0] - result[0, 1] == pytest.approx(1)


def test_retrieval_scores_by_hand():
    ranked, relevant = ["a", "b", "c", "d"], {"b": 1, "d": 2, "z": 1}
    assert metrics.recall_at_k(ranked, relevant, 2) == pytest.approx(1 / 3)
    assert metrics.reciprocal_rank(ranked, relevant) == 0.5
    assert metrics.reciprocal_rank(ranked, {"q": 1}) == 0.0
    dcg = 1 / math.log2(3) + 2 / math.log2(5)
    ideal = 2 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)
    assert metrics.ndcg_at_k(ranked, relevant, 10) == pytest.approx(dcg / ideal)
    assert metrics.ndcg_at_k(ranked, relevant, 2) == pytest.approx((1 / math.log2(3)) / (2 + 1 / math.log2(3)))
    assert metrics.ndcg_at_k([], {"q": 1}) == 0.0


def test_degenerate_outputs_are_named():
    assert metrics.degenerate([0, 1] * 20, 2) is None
    assert "class 1" in metrics.degenerate([1] * 30, 2)
    assert "could not be read" in metrics.degenerate([None, None, 1], 2)
    assert "same" in metrics.degenerate(["x"] * 30)
    assert metrics.degenerate([1] * 5, 2) is None  # too few to tell


@pytest.mark.parametrize("b, c", [(0, 0), (1, 0), (3, 9), (12, 12), (40, 61)])
def test_mcnemar_is_the_exact_binomial_test(b, c):
    from scipy.stats import binom

    first, second = [1] * b + [0] * c + [1] * 20 + [0] * 7, [0] * b + [1] * c + [1] * 20 + [0] * 7
    p, only_first, only_second = metrics.mcnemar(first, second)
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
        mean, low, high, p = metrics.paired_difference(base, other)
        t = ttest_rel(other, base)
        interval = t.confidence_interval(0.95)
        assert mean == pytest.approx(np.mean(other - base)) and p == pytest.approx(t.pvalue, abs=0.03)
        assert (low, high) == pytest.approx((interval.low, interval.high), abs=0.005)
    assert metrics.paired_difference([0.5, 1.0], [0.5, 1.0]) == (0.0, None, None, 1.0)


def test_the_examples_needed_show_the_difference_at_that_power():
    rng = np.random.default_rng(1)
    first, second = rng.binomial(1, 0.80, 5000), rng.binomial(1, 0.84, 5000)
    needed = metrics.examples_needed(first, second)
    found = []
    for _ in range(300):
        some = rng.integers(0, 5000, needed)
        found.append(metrics.mcnemar(first[some], second[some])[0] < 0.05)
    assert 0.7 < np.mean(found) < 0.9
    assert metrics.examples_needed([1, 0], [1, 0]) is None
