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
    assert metrics.unifiedqa_overlap("a cat sat on the mat", ("cat on mat now please",)) == pytest.approx(3 / 5)
    assert metrics.unifiedqa_overlap("very very good", ("very good",)) == pytest.approx(2 / 3)
    assert metrics.jaccard("a cat sat on the mat", ("cat on mat now please", "dog")) == pytest.approx(3 / 6)
    assert metrics.jaccard("very very good", ("very good",)) == 1.0
    assert metrics.jaccard("", ("very good",)) == 0.0
    assert metrics.contains_answer("It is Paris, I think", ("paris",)) == 1.0
    assert metrics.contains_answer("Parisian", ("paris",)) == 0.0
    assert metrics.rouge_l("the cat sat", ("the cat ran",)) == pytest.approx(2 / 3)


def test_log_normalise_keeps_ratios_and_sums_to_one():
    result = metrics.log_normalise(np.array([[-1000.0, -1001.0], [3.0, 3.0]]))
    assert np.exp(result).sum(axis=1) == pytest.approx([1, 1])
    assert result[0, 0] - result[0, 1] == pytest.approx(1)


def test_label_mass_is_the_mean_sum_of_the_labels_probabilities():
    totals = np.log([[0.5, 0.25, 1e-300], [0.1, 0.0625, 0.0375]])
    assert metrics.label_mass(np.array(totals)) == pytest.approx((0.75 + 0.2) / 2)
    assert metrics.label_mass(np.array([[math.log(0.5), -math.inf]])) == pytest.approx(0.5)


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


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("3.5", "35", False),
        ("-5", "5", False),
        ("18.00", "18", True),
        ("$1,000.50", "1000.5", True),
        (".5", "0.50", True),
        ("\u22125", "-5", True),  # the minus sign
        ("F-16", "f16", True),  # no number: as before
        ("1990-2000", "19902000", True),
        ("5.", "5", True),
    ],
)
def test_numbers_keep_sign_and_decimal_point(one, other, same):
    assert metrics.exact_match(one, (other,)) == metrics.token_f1(one, (other,)) == float(same)
    assert metrics.contains_answer(f"it is {one} I think", (other,)) == float(same)


def test_answers_of_punctuation_alone_differ():
    assert metrics.exact_match("+", ("-",)) == metrics.token_f1("", ("+",)) == 0.0
    assert metrics.exact_match(">=", (">=",)) == 1.0


@pytest.mark.parametrize(
    "text", ["Привет мир как дела", "北京是中国的首都", "สวัสดีครับ", "مرحبا بالعالم", "नमस्ते दुनिया", "où est né l'été"]
)
def test_a_text_is_itself_in_any_script(text):
    overlaps = (metrics.jaccard, metrics.unifiedqa_overlap)
    for metric in (metrics.rouge_l, metrics.token_f1, metrics.exact_match, *overlaps):
        assert metric(text, (text,)) == 1.0


def test_scripts_without_spaces_are_scored_by_characters():
    assert metrics.token_f1("首都是北京。", ("北京",)) == pytest.approx(2 * 2 / (5 + 2))
    assert metrics.exact_match("北京。", ("北京",)) == metrics.contains_answer("首都是北京", ("北京",)) == 1.0
    assert metrics.contains_answer("首都是北京", ("京都",)) == 0.0
    assert metrics.rouge_l("首都是北京", ("北京",)) == pytest.approx(2 * (2 / 5) / (2 / 5 + 1))


def test_rouge_of_latin_text_is_that_of_the_library():
    from rouge_score import rouge_scorer

    library = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    texts = ["the cats were running", "où est né l'été?", "a cat ran, 5 µm from the “mat”", "", "Hawaiʻi 1,000.5"]
    for a in texts:
        for b in texts:
            assert metrics.rouge_l(a, (b,)) == library.score(b, a)["rougeL"].fmeasure


METRICS = (metrics.exact_match, metrics.token_f1, metrics.jaccard, metrics.rouge_l, metrics.contains_answer)


@pytest.mark.parametrize("metric", METRICS)
def test_texts_with_the_marks_of_thoughts_are_scored_whole(metric):
    """Thoughts are taken out once, where a text is generated: a reference may be a tag, or speak of one."""
    reference = "<analysis>good</analysis>"
    assert metric(reference, (reference,)) == 1.0
    assert metric("", ("<think>2+2=4</think>",)) == metric("4", ("<think>2+2</think> 4 5",)) * 0 == 0.0
    assert metric("<analysis>bad</analysis>", (reference,)) < 1.0


def test_no_reference_becomes_empty():
    letters = [chr(i) for i in range(0x3100) if not chr(i).isspace()]
    for text in (*letters, "the", "A", "an a", "...", "-", "-0", ".5", "<think>", "\u0964", "ー", "〇"):
        assert metrics.normalise_answer(text), repr(text)


def test_empty_answers_are_invalid():
    cells, _ = metrics.answer_scores(["", "Paris"], [("Paris",), ("Paris",)])
    assert cells["exact_match"] == cells["invalid_rate"] == 0.5


def test_nearly_constant_outputs_are_degenerate_where_they_miss_the_other_classes():
    balanced = [0, 1] * 150
    assert "270 of 300" in metrics.degenerate([0] * 270 + [1] * 30, 2, balanced)
    assert metrics.degenerate([0] * 240 + [1] * 60, 2, balanced) is None
    rare = [0] * 270 + [1] * 30  # a class of 10 %: half of it found is no collapse, a tenth is
    assert metrics.degenerate([0] * 285 + [1] * 15, 2, rare) is None
    assert metrics.degenerate([0] * 297 + [1] * 3, 2, rare)
    assert metrics.degenerate([0] * 20 + [None] * 15, 2, [0, 1] * 20)
    yes = [("yes",), ("no",)] * 20
    assert metrics.degenerate(["Yes"] * 38 + ["no"] * 2, None, yes)
    assert metrics.degenerate(["yes"] * 38 + ["no"] * 2, None, [("yes",)] * 40) is None
    assert metrics.degenerate(["I do not know"] * 19 + ["Paris"])  # without targets
