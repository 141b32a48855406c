import pytest
from chat_helpers import completion

from harness.models import replies


@pytest.mark.parametrize(
    "logprobs",
    [
        {"content": [{"token": "B", "logprob": -0.1, "top_logprobs": None}]},
        {"content": [{"token": "B", "logprob": -0.1}]},
        {"content": [{"token": "B", "top_logprobs": [{"token": "B", "logprob": None}, {"token": 1}, 7]}]},
        {"content": None},
        {"content": []},
        {"tokens": ["B"], "token_logprobs": [-0.1], "top_logprobs": [{"B": -0.1}]},
        [],
        "none",
    ],
)
def test_a_reply_without_alternatives_is_read_by_its_text(logprobs):
    text, finish, alternatives, counted = replies.read(completion("B", logprobs))
    assert (text, finish, alternatives, counted) == ("B", "stop", None, None)


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, ""), ("", ""), ([{"type": "text", "text": "B"}], "B"), ([{"type": "image"}, None], ""), (7, "7")],
)
def test_contents_of_all_kinds_are_read(content, text):
    body = completion(content, finish="length", usage={"prompt_tokens": 3, "completion_tokens": 1})
    assert replies.read(body) == (text, "length", None, [3, 1])
    assert replies.read({"choices": [{"message": None}]}) == ("", None, None, None)
