import pytest

from harness.chat import benchmarks, side_by_side


def test_refusals_and_repetition():
    assert side_by_side.refuses("I'm sorry, but I cannot help with that.") and side_by_side.refuses(
        "As an AI language model, I have no body."
    )
    assert not side_by_side.refuses("The cast is superb. " * 20 + "I'm sorry") and not side_by_side.refuses(
        "I can help you with that."
    )
    assert side_by_side.repetition("a b c d e f") == 0.0 and side_by_side.repetition("a b") == 0.0
    assert side_by_side.repetition("a b c d a b c d") == pytest.approx(1 - 4 / 5)


def test_thoughts_are_taken_out_of_kept_answers_once():
    question, row = (
        benchmarks.Question("1", ("write a tag",)),
        {"tokens_per_s": 1, "generated_tokens": 1, "reference_perplexity": None},
    )
    tag = "<analysis>good</analysis>"
    now = {"turns": [tag], "generated": [f"<think>a tag?</think>{tag}"], "cut": [False]}
    earlier = {"turns": ["<think>a tag?</think>yes"], "cut": [False]}
    for record, answer in ((now, tag), (earlier, "yes")):
        assert side_by_side.system_of("a", [question], [record], row).answers == {"1": [answer]}
