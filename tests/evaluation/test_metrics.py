import math

import numpy as np
import pytest

from harness.evaluation import metrics


def test_unread_answers_are_wrong_and_counted():
    cells = metrics.classification_scores([0, None, 1, 1], [0, 0, 1, 0], 2)
    assert cells["accuracy"] == cells["score"] == 0.5 and cells["invalid_rate"] == 0.25
    # class 0: precision 1, recall 1/3; class 1: precision 1/2, recall 1
    assert cells["macro_f1"] == pytest.approx((0.5 + 2 / 3) / 2)


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
    assert metrics.calibration_error(probabilities, [0, 1, 1, 1]) == pytest.approx(
        0.5 * abs(0.5 - 0.95) + 0.5 * abs(1 - 0.65)
    )


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
