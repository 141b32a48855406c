"""What the reply of an OpenAI-compatible endpoint holds. No part of it is taken for granted."""

import json
from dataclasses import dataclass


class BadReply(ValueError):
    """A reply that is no chat completion, with the endpoint's own words for it."""


def to_json(reply):
    """The JSON of a raw reply, BadReply where it holds none."""
    try:
        return json.loads(reply.content)
    except (ValueError, RecursionError):
        raise BadReply(f"not JSON but {' '.join(reply.text[:100].split())!r}") from None


def read(body):
    """(text, finish_reason, {token: log-probability} of the first token or None, [tokens in, out] or None) of a chat
    completion as JSON. BadReply for anything else, with the endpoint's own words, as for an error in a reply 200.
    """
    choice = next(iter(_at(body, "choices", default=[])), None)
    error = _at(body, "error") or _at(choice, "error")
    if error or not isinstance(choice, dict):
        words = _at(error, "message") or error or _at(body, "message") or _at(body, "detail")
        raise BadReply(f"the endpoint's error: {words}" if words else f"no completion but {json.dumps(body)[:100]}")
    text = _at(choice, "message", "content")
    if isinstance(text, list):  # parts of a multimodal reply
        text = "".join(str(_at(part, "text") or "") for part in text)
    finish = _at(choice, "finish_reason")
    tokens = [_at(body, "usage", name) for name in ("prompt_tokens", "completion_tokens")]
    counted = all(isinstance(n, int) for n in tokens)
    return (
        str(text or ""),
        finish if isinstance(finish, str) else None,
        _likelihoods(choice),
        tokens if counted else None,
    )


@dataclass(frozen=True)
class Completion:
    """The reply to one prompt."""

    text: str
    finish: str | None
    top: dict | None  # {token as the server writes it: log-probability} at the first new token
    tokens: list | None  # [tokens in, out]


def read_completion(body):
    """The Completion in a reply as JSON; BadReply for anything else, with the endpoint's own words."""
    choice = next(iter(_at(body, "choices", default=[])), None)
    error = _at(body, "error") or _at(choice, "error")
    if error or not isinstance(choice, dict) or not isinstance(choice.get("text"), str):
        words = _at(error, "message") or error or _at(body, "message") or _at(body, "detail")
        raise BadReply(f"the endpoint's error: {words}" if words else f"no completion but {json.dumps(body)[:100]}")
    top = next(iter(_at(choice, "logprobs", "top_logprobs", default=[])), None)
    told = {t: float(v) for t, v in (top or {}).items() if isinstance(v, (int, float))} if isinstance(top, dict) else {}
    tokens = [_at(body, "usage", name) for name in ("prompt_tokens", "completion_tokens")]
    counted = all(isinstance(n, int) for n in tokens)
    return Completion(choice["text"], _at(choice, "finish_reason"), told or None, tokens if counted else None)


def _likelihoods(choice):
    """{token: log-probability} of a reply's first token, None where the endpoint gives none in OpenAI's shape."""
    first = next(iter(_at(choice, "logprobs", "content", default=[])), None)
    found = {}
    for each in _at(first, "top_logprobs", default=[]):
        token, value = _at(each, "token"), _at(each, "logprob")
        if isinstance(token, str) and isinstance(value, (int, float)) and value <= 0:
            found[token] = float(value)
    return found or None


def _at(value, *names, default=None):
    """What stands in a JSON object under names, one within the other; the default where it is missing or null.

    A list as the default: also where it is no list.
    """
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    missing = not isinstance(value, list) if isinstance(default, list) else value is None
    return default if missing else value
