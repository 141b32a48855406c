import numpy as np
import pytest

from harness.retrieval.ranking import Bm25, bm25_words, maximal_marginal_relevance, reciprocal_rank_fusion


def test_one_letter_texts_have_no_words_for_bm25():
    assert Bm25(["?", "a"]).search(["a"], 3) == [[]]


def test_fused_ranks_by_hand():
    fused = reciprocal_rank_fusion([["a", "b", "c"], ["c", "a"]])
    assert [name for name, _ in fused] == ["a", "c", "b"]
    assert [value for _, value in fused] == pytest.approx([1 / 61 + 1 / 62, 1 / 63 + 1 / 61, 1 / 62])


def test_marginal_relevance_by_hand():
    query = np.array([1.0, 0.0])
    vectors = np.array([[1.0, 0.1], [1.0, 0.12], [0.8, -0.6]])
    assert maximal_marginal_relevance(query, vectors, 2, 1.0) == [0, 1], "likeness alone takes twins"
    assert maximal_marginal_relevance(query, vectors, 2, 0.5) == [0, 2], "less of it takes the other"
    assert sorted(maximal_marginal_relevance(query, vectors, 9, 0.5)) == [0, 1, 2]


def test_bm25_stems_where_a_language_is_named():
    texts = ["the endings of plots", "a joke"]
    assert Bm25(texts).search(["ending plot"], 2) == [[]]
    assert [row for row, _ in Bm25(texts, "english").search(["ending plot"], 2)[0]] == [0]


def test_bm25_by_its_formula():
    texts = ["plot plot cast", "cast scene story ending", "joke"]
    found = Bm25(texts).search(["plot cast", "unknown"], 3)
    k1, b, lengths = 1.5, 0.75, [3, 4, 1]
    mean = sum(lengths) / 3

    def part(tf, length, df):  # Lucene's, which leaves out the constant factor (k1 + 1)
        return np.log(1 + (3 - df + 0.5) / (df + 0.5)) * tf / (tf + k1 * (1 - b + b * length / mean))

    assert [row for row, _ in found[0]] == [0, 1] and found[1] == []
    assert [score for _, score in found[0]] == pytest.approx([part(2, 3, 1) + part(1, 3, 2), part(1, 4, 2)], rel=1e-4)


def test_bm25_finds_words_in_scripts_without_spaces():
    texts = [
        "北京是中国的首都。",
        "上海是一座大城市。",
        "東京タワーは高い",
        "กรุงเทพเป็นเมืองหลวง",
        "नमस्ते दुनिया",
        "covid in rome",
    ]
    found = Bm25(texts).search(["中国的首都是哪里？", "タワー", "เมืองหลวง", "दुनिया", "COVID疫情"], 3)
    assert [pairs[0][0] for pairs in found] == [0, 2, 3, 4, 5]


def test_bm25_words_of_latin_text_are_those_of_bm25s():
    text = "The TGFβ1-induced p53_a of l'été (n = 7) — a naïve ﬁlm"
    assert " ".join(bm25_words(text)) == "the tgfβ1 induced p53_a of été naïve ﬁlm"
    assert bm25_words("北京 a COVID") == ["北", "京", "covid", "北京"]


@pytest.mark.parametrize(
    "text",
    ["snake_case", "x\u00b2", "5 \u00b5m", "\ufb01lm", "\uff23\uff2f\uff36\uff29\uff24", "e\u0301te\u0301_a", "don't"],
)
def test_words_are_the_same_beside_other_scripts(text):
    words = bm25_words(text)
    assert words and bm25_words(f"{text} 京") == bm25_words(f"{text}京") == [*words, "京"]
    assert bm25_words(f"{text} नमस्ते") == [*words, "नमस्ते"]
    assert bm25_words("\uff23\uff2f") == ["co"] and bm25_words("\uff76\uff9e") == ["ガ"]  # of other widths
