import math

import pytest
from chat_helpers import needs_mt_bench, question
from helpers import SHARED

from harness.chat import benchmarks
from harness.chat.judge_prompts import Request, pair_requests, rating_requests, read_verdict, verdict_of


def test_braces_in_an_answer_are_left_alone():
    (as_is, swapped) = pair_requests(question(), ["use {answer_b} and {x}"], ["second"])
    assert "[Answer A]\nuse {answer_b} and {x}\n\n[Answer B]\nsecond" in as_is.messages[0][1]
    assert "[Answer A]\nsecond\n\n[Answer B]\nuse {answer_b} and {x}" in swapped.messages[0][1]
    assert len(pair_requests(question(), ["a"], ["b"], both=False)) == 1


@needs_mt_bench
def test_an_endpoint_gets_fastchats_own_prompts():
    prompts = benchmarks.load("mt_bench", str(SHARED / "mt_bench")).judge_prompts
    first, second = rating_requests(question(("one", "two")), ["answer one", "answer two"], prompts)
    assert (first.prompt, second.prompt) == ("single-v1", "single-v1-multi-turn")
    assert first.messages[1][1].endswith(
        "[Question]\none\n\n[The Start of Assistant's Answer]\nanswer one\n[The End of Assistant's Answer]"
    )
    assert (
        "### User:\ntwo\n\n### Assistant A:\nanswer two" in second.messages[1][1] and "{" not in second.messages[1][1]
    )
    known = rating_requests(question(("one", "two"), ("right one", "right two")), ["a", "b"], prompts)
    assert (
        known[1].prompt == "single-math-v1-multi-turn" and "### Reference answer:\nright two" in known[1].messages[1][1]
    )


@pytest.mark.parametrize(
    ("kind", "direct", "text", "wanted"),
    [
        ("pair", True, "A", "A"),
        ("pair", True, ' "B".', "B"),
        ("pair", True, "Answer: B", "B"),
        ("pair", True, "B, since it is", "B"),
        ("pair", True, "B. It is complete", "B"),
        ("pair", True, "B\nThe first is too short", "B"),
        ("pair", True, "A/B", None),
        ("pair", True, "A, B", None),
        ("pair", True, "A: weak. B: strong. So B", None),
        ("pair", True, "Answer A: too short. Answer B is better", "B"),
        ("pair", True, "A\nBut [[B]]", None),
        ("pair", True, "A is better", None),
        ("pair", True, "A case", None),
        ("pair", True, "Both", None),
        ("pair", True, "", None),
        ("pair", True, "a", None),
        ("pair", True, "7", None),
        ("pair", True, "Answer B is better because it is complete.", "B"),
        ("pair", True, "I think answer **A** is clearly better.", "A"),
        ("pair", True, "The better answer is B.", "B"),
        ("pair", True, "Both are short. [[A]]", "A"),
        ("pair", True, "My final answer is B", "B"),
        ("pair", True, "Answer A is better written, but answer B is better overall", None),
        ("pair", True, "Answer B is not better", None),
        ("pair", True, "Answer A is short", None),
        ("pair", True, "[[A]] or [[B]]", None),
        ("pair", True, "<think>\nAnswer A is better. No, B.\n</think>\n\nB", "B"),
        ("pair", True, "Answer A is better, I think.</think>B", "B"),
        ("pair", True, "<think>\nAnswer A is better", None),
        ("rating", True, "<think>10?</think>7", "7"),
        ("rating", True, "8 out of 10", "8"),
        ("rating", False, '<think>I end with "[[5]]".</think> Good. Rating: [[9]]', "9"),
        ("rating", False, "<think>Perhaps [[5]], perhaps", None),
        ("rating", True, "7", "7"),
        ("rating", True, "Rating: 8", "8"),
        ("rating", True, "8/10", "8"),
        ("rating", True, "**8**", "8"),
        ("rating", True, "8.\nIt is complete", "8"),
        ("rating", True, "7 / 10, complete", "7"),
        ("rating", True, "8 9", None),
        ("rating", True, "1. The answer is correct and complete", None),
        ("rating", True, "1) Correctness: good", None),
        ("rating", True, "2: it is", None),
        ("rating", True, "3/5", None),
        ("rating", True, "11", None),
        ("rating", True, "0", None),
        ("rating", True, "B", None),
        ("rating", True, "I would say 5", None),
        ("rating", False, "Good. Rating: [[8]]", "8"),
        ("rating", False, "Rating: [[8.5]] of 10", "8.5"),
        ("rating", False, "so [6]", "6"),
        ("rating", False, "8 of 10", None),
        ("rating", False, "[[12]]", None),
    ],
)
def test_verdicts_are_read_and_never_guessed(kind, direct, text, wanted):
    assert read_verdict(Request(("1",), kind, (), direct=direct), text) == wanted


def test_likelihoods_of_the_first_token_weigh_a_verdict():
    request = Request(("1",), "pair", ())
    assert verdict_of(request, "A", {"A": math.log(0.6), " B": math.log(0.2), "x": math.log(0.2)}) == pytest.approx(
        0.25
    )
    assert (
        verdict_of(request, "B", {"A": math.log(0.1), "B": math.log(0.2), "The": math.log(0.7)}) == 1.0
    )  # the text decides
    assert verdict_of(request, "neither", {"A": math.log(0.1), "The": math.log(0.9)}) is None
