import math

import pytest
from chat_helpers import judging_of

from harness.chat import judges
from harness.chat.judge_prompts import Request


def test_one_refused_request_ends_nothing(endpoint, capsys):
    judge = judges.EndpointJudge(f"http://127.0.0.1:{endpoint.server_port}/v1", "m", workers=1)
    endpoint.faults = [None, 400, None]
    kept = judging_of(judge, [Request((str(i),), "pair", (("user", f"{i}"),)) for i in range(4)])
    assert len(kept) == 3 and len(judge.failed) == 1 and not judge.refused
    assert "1 judgements failed: BadRequestError" in capsys.readouterr().out


def test_what_an_endpoint_does_not_take_is_sent_otherwise(endpoint):
    judge = judges.EndpointJudge(f"http://127.0.0.1:{endpoint.server_port}/v1", "m", workers=1)
    endpoint.refuses = ["max_tokens", "temperature", "logprobs"]
    kept = judging_of(judge, [Request((str(i),), "pair", (("user", f"{i}"),)) for i in range(3)])
    assert (
        [value for _, value, _ in kept] == [1.0] * 3
        and judge.refused == set(endpoint.refuses)
        and len(endpoint.asked) == 6
    )
    assert set(endpoint.bodies[-1]) == {"model", "messages", "max_completion_tokens"}


def test_an_endpoints_likelihoods_weigh_its_verdicts(endpoint):
    endpoint.logprobs = {"A": math.log(0.7), "B": math.log(0.3)}
    (found,) = judging_of(
        judges.EndpointJudge(f"http://127.0.0.1:{endpoint.server_port}/v1", "m"), [Request(("1",), "pair", ())]
    )
    assert found[1] == pytest.approx(0.3) and endpoint.bodies[0]["top_logprobs"] == 20
