import pytest

from harness.chat import side_by_side


def test_refusals_and_repetition():
    assert side_by_side.refuses("I'm sorry, but I cannot help with that.") and side_by_side.refuses(
        "As an AI language model, I have no body."
    )
    assert not side_by_side.refuses("The cast is superb. " * 20 + "I'm sorry") and not side_by_side.refuses(
        "I can help you with that."
    )
    assert side_by_side.repetition("a b c d e f") == 0.0 and side_by_side.repetition("a b") == 0.0
    assert side_by_side.repetition("a b c d a b c d") == pytest.approx(1 - 4 / 5)
