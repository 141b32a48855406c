import json
import math
import os
import signal
import threading
import time

import pytest
from chat_helpers import completion, judging_of

import utils
from harness.chat import endpoint as endpoints
from harness.chat.judge_prompts import Request


def pairs(n=3):
    return [Request((str(i),), "pair", (("user", f"{i}"),)) for i in range(n)]


def judge_at(server, path="/v1", **settings):
    return endpoints.EndpointJudge(f"http://127.0.0.1:{server.server_port}{path}", "m", **{"workers": 1, **settings})


def test_one_refused_request_ends_nothing(endpoint, capsys):
    judge = judge_at(endpoint)
    endpoint.faults = [None, 400, None]
    kept = judging_of(judge, pairs(4))
    assert len(kept) == 3 and len(judge.failed) == 1 and not judge.refused
    assert "1 judgements failed: BadRequestError" in capsys.readouterr().out


def test_what_an_endpoint_does_not_take_is_sent_otherwise(endpoint):
    judge = judge_at(endpoint)
    endpoint.refuses = ["max_tokens", "temperature", "logprobs"]
    kept = judging_of(judge, pairs())
    assert [value for _, value, _ in kept] == [1.0] * 3 and judge.refused == set(endpoint.refuses)
    assert len(endpoint.asked) == 6
    assert set(endpoint.bodies[-1]) == {"model", "messages", "max_completion_tokens"}


@pytest.mark.parametrize(
    ("most", "words"),
    [
        (5, "Requested sample logprobs of 20, which is greater than max allowed: 5"),
        (5, "Invalid value for 'top_logprobs': must be less than or equal to 5."),
        (5, "`top_n_tokens` must be >= 0 and <= 5. Given: 20"),
        (0, "logprobs must be false"),
    ],
)
def test_an_endpoint_that_allows_few_logprobs_is_asked_for_fewer_or_none(endpoint, most, words):
    def answer(asked):
        if asked.get("top_logprobs", 0) > most:
            return 400, json.dumps({"object": "error", "message": words})
        return 200, json.dumps(completion("B"))

    endpoint.answer = answer
    judge = judge_at(endpoint, workers=3)
    assert [value for _, value, _ in judging_of(judge, pairs(6))] == [1.0] * 6 and not judge.failed
    assert endpoint.bodies[-1].get("top_logprobs", 0) == most


def test_an_endpoints_likelihoods_weigh_its_verdicts(endpoint):
    endpoint.logprobs = {"A": math.log(0.7), "B": math.log(0.3)}
    (found,) = judging_of(judge_at(endpoint), pairs(1))
    assert found[1] == pytest.approx(0.3) and endpoint.bodies[0]["top_logprobs"] == 20


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "Rate limit exceeded", "code": 429}}, "Rate limit exceeded"),
        ({"error": "no such model", **completion("B")}, "no such model"),
        ({"choices": [{"error": {"message": "provider is down"}, "message": {"content": "A"}}]}, "provider is down"),
        ({"detail": "wrong"}, "wrong"),
        ({"object": "error", "message": "too long"}, "too long"),
        (None, "null"),
        ([], "no completion"),
        ({"choices": []}, "no completion"),
        ({"choices": None}, "no completion"),
        ({"choices": ["B"]}, "no completion"),
    ],
)
def test_a_body_that_is_no_completion_is_failed_with_the_endpoints_own_words(endpoint, body, words):
    endpoint.answer = lambda asked: (200, json.dumps(body))
    judge = judge_at(endpoint)
    assert judging_of(judge, pairs(1)) == []
    ((_, reason),) = judge.failed
    assert words in reason


def test_a_body_that_nests_without_end_is_failed(endpoint):
    endpoint.answer = lambda asked: (200, "[" * 200_000)
    judge = judge_at(endpoint)
    assert judging_of(judge, pairs(1)) == [] and len(judge.failed) == 1


def test_a_reply_that_drips_has_one_deadline(endpoint):
    endpoint.faults = ["drip"] * 9
    judge = judge_at(endpoint, timeout=0.4, retries=8)
    assert judging_of(judge, pairs(1)) == []
    assert "--judge_timeout" in judge.failed[0][1] and len(endpoint.asked) == 2  # once more, not 8 times


def test_an_interrupt_does_not_wait_for_a_judge_that_hangs(endpoint):
    endpoint.faults = ["stuck"] * 9
    judge = judge_at(endpoint, timeout=4, retries=0)

    def press():
        while not endpoint.asked:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        judging_of(judge, pairs(2))
    assert not judge.failed  # the call did not end, by its deadline or otherwise


def test_a_redirect_carries_nothing_to_another_host(endpoint, monkeypatch):
    monkeypatch.setenv("MINE", "s3cret")
    elsewhere = f"http://localhost:{endpoint.server_port}/other?key=k"
    for status in (301, 302, 307, 308):
        endpoint.answer = lambda asked, status=status: (status, "{}", {"Location": elsewhere})
        with pytest.raises(utils.UserError, match=r"sends to http://localhost:\d+/other;"):
            judging_of(judge_at(endpoint, key_variable="MINE"), pairs(1))
    assert {headers["path"] for headers in endpoint.headers} == {"/v1/chat/completions"}


def test_an_endpoint_gets_no_key_that_is_not_meant_for_it(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
    monkeypatch.setenv("OPENAI_ORG_ID", "s3cret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "s3cret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Mine: s3cret")
    judging_of(judge_at(endpoint), pairs(1))
    assert "s3cret" not in str(endpoint.headers) and os.environ["OPENAI_ORG_ID"] == "s3cret"
    endpoint.faults = [401]
    with pytest.raises(utils.UserError, match="no key was sent: --judge_key_env"):
        judging_of(judge_at(endpoint), pairs(1))
    judging_of(judge_at(endpoint, key_variable="OPENAI_API_KEY"), pairs(1))
    assert endpoint.headers[-1]["authorization"] == "Bearer s3cret"


def test_a_login_and_parameters_are_sent_and_told_to_nobody(endpoint):
    url = f"http://me:s3cret@127.0.0.1:{endpoint.server_port}/v1?api-key=s3cret&x=a%20b"
    judge = endpoints.EndpointJudge(url, "m")
    judging_of(judge, pairs(1))
    sent = endpoint.headers[0]
    assert sent["path"].startswith("/v1/chat/completions?") and "api-key=s3cret" in sent["path"]
    assert sent["authorization"].startswith("Basic ") and "s3cret" not in repr(judge.identity)
    assert judge.identity[1] == f"http://127.0.0.1:{endpoint.server_port}/v1"


def test_an_endpoints_words_are_told_without_the_key(endpoint, monkeypatch):
    monkeypatch.setenv("MINE", "s3cret")
    endpoint.answer = lambda asked: (401, json.dumps({"error": {"message": "wrong key: s3cret"}}))
    with pytest.raises(utils.UserError) as error:
        judging_of(judge_at(endpoint, key_variable="MINE"), pairs(1))
    assert "wrong key: ..." in str(error.value) and "s3cret" not in str(error.value)


def test_an_endpoints_words_are_told_without_login_and_parameters(endpoint, monkeypatch):
    monkeypatch.setenv("MINE", "sk-" + "k" * 40)
    padding = "x" * 280
    endpoint.answer = lambda asked: (
        401,
        json.dumps({"error": {"message": f"param-1 of me2:hunter2 {padding} sk-{'k' * 40}"}}),
    )
    url = f"http://me2:hunter2@127.0.0.1:{endpoint.server_port}/v1?api-key=param-1"
    with pytest.raises(utils.UserError) as error:
        judging_of(endpoints.EndpointJudge(url, "m", key_variable="MINE"), pairs(1))
    assert not any(secret in str(error.value) for secret in ("param-1", "hunter2", "sk-k"))


def test_a_reply_that_comes_too_late_may_be_charged(endpoint):
    endpoint.faults = ["stuck"] * 9
    judge = judge_at(endpoint, timeout=0.3, retries=8, prices=(1e6, 1e6), max_cost=1e9)
    judging_of(judge, pairs(1))
    assert judge.spent == pytest.approx(2 * judge.estimate(pairs(1))[2]) and judge.reserved == 0.0
