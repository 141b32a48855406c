import json

import pytest
from chat_helpers import question

import utils
from harness.chat import judgements, judges, side_by_side, win_rates
from harness.models import loading


def local_judge(folder):
    return judges.LocalJudge(folder, lambda: (loading.load_model(folder), utils.load_tokenizer(folder)))


def test_equal_answers_are_a_draw_whatever_the_judges_place(tiny_llama, tmp_path):
    judge = local_judge(tiny_llama)
    asked, same = question(), side_by_side.System("one", {"7": ["the same"]})
    annotations, pairs, failed = judgements.pairwise(judge, [asked], same, same, tmp_path / "judgements.jsonl")
    assert (
        annotations[0]["preference"] == pytest.approx(1.5, abs=1e-6)
        and win_rates.position_bias(pairs)["rate"] == 1.0
        and not failed
    )


def test_a_local_rating_is_the_expected_number(tiny_llama, tmp_path):
    judge = local_judge(tiny_llama)
    system = side_by_side.System("one", {"7": ["first", "second"]})
    graded, failed = judgements.gradings(judge, [question(("a", "b"))], system, None, tmp_path / "judgements.jsonl")
    shares = [json.loads(line)["likelihoods"] for line in (tmp_path / "judgements.jsonl").read_text().splitlines()]
    assert [row["turn"] for row in graded] == [1, 2] and not failed
    for row, share in zip(graded, shares):
        assert sum(share.values()) == pytest.approx(1)
        assert (
            row["score"] == pytest.approx(sum(int(label) * p for label, p in share.items())) and 1 < row["score"] < 10
        )


def test_why_judgements_are_unreadable_is_noted():
    cut = {"value": None, "text": "", "finish_reason": "length", "max_tokens": 16}
    first, second, third = judgements.why_unreadable(
        [
            cut,
            {**cut, "text": "<think>"},
            {"value": None, "text": " "},
            {"value": None, "text": judges.TOO_LONG},
            *[{"value": 1.0}] * 2,
        ]
    )
    assert first.startswith("2 of 6 judgements ended at the limit of 16 tokens") and "--judge_max_tokens" in first
    assert second == "1 of 6 judgements are empty replies" and "longer than the judge's context" in third
    assert judgements.why_unreadable([{"value": None, "text": "neither"}, {"value": 0.0, "text": "A"}]) == []
