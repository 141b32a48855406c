import collections
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chat_helpers import completion, judging_of, records_in, rows_in
from helpers import ROOT, write_jsonl

import chat_eval
import utils
from harness.chat import judges, win_rates
from harness.chat.judge_prompts import PAIR_PROMPT, Request, verdict_of
from harness.models import loading


def test_a_local_judge_goes_by_likelihood_and_averages_both_orders(prompts, tiny_llama, adapter, chats, tmp_path):
    import torch

    command = ["--benchmark", prompts, "--model", tiny_llama, "--adapter", adapter, *chats]
    command += ["--judge", "local", "--judge_model", tiny_llama]
    chat_eval.main(command)
    base, tuned = rows_in(tmp_path)
    (file,) = Path(tuned["run_dir"]).glob("annotations_against_*.json")
    annotations = json.loads(file.read_text())
    model, tokenizer = loading.load_model(tiny_llama), utils.load_tokenizer(tiny_llama)

    def p_second(first, second, asked):  # by a plain forward over prompt and label
        text = PAIR_PROMPT.replace("{question}", asked).replace("{answer_a}", first).replace("{answer_b}", second)
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        found = []
        for label in "AB":
            ids = tokenizer(prompt + label + "<|end|>", add_special_tokens=False, return_tensors="pt").input_ids
            with torch.no_grad():
                logs = model(ids).logits[0].log_softmax(-1)
            n = ids.shape[1] - len(tokenizer(prompt, add_special_tokens=False).input_ids)
            found.append(sum(float(logs[-n - 1 + i, ids[0, -n + i]]) for i in range(n)))
        return 1 / (1 + math.exp(found[0] - found[1]))

    for row in annotations:
        wins = (
            p_second(row["output_1"], row["output_2"], row["instruction"]),
            1 - p_second(row["output_2"], row["output_1"], row["instruction"]),
        )
        assert row["preference"] == pytest.approx(1 + statistics.fmean(wins), abs=1e-4)
    assert float(tuned["win_rate"]) == pytest.approx(
        statistics.fmean(row["preference"] - 1 for row in annotations), abs=1e-5
    )
    assert tuned["metric"] == base["metric"] == "win_rate" and tuned["position_bias"] and base["win_rate"] == "0.5"
    assert tuned["eval_id"] == base["eval_id"]
    found = win_rates.read_judgements(file)[1]
    assert win_rates.win_rate([row["preference"] for row in found])["n_total"] == 4
    judged = records_in(tmp_path, "judgements.jsonl")
    assert len(judged) == 8
    chat_eval.main(command)  # nothing is judged again
    assert records_in(tmp_path, "judgements.jsonl") == judged and rows_in(tmp_path)[3]["win_rate"] == tuned["win_rate"]


def judged_by(server, prompts, tiny_llama, adapter, chats, *flags):
    command = ["--benchmark", prompts, "--model", tiny_llama, "--adapter", adapter, *chats]
    command += ["--judge", "endpoint", "--judge_model", "m", "--judge_timeout", "1"]
    return [*command, "--judge_url", f"http://127.0.0.1:{server.server_port}/v1", *flags]


def test_an_endpoint_that_fails_in_every_way_loses_nothing(
    endpoint, prompts, tiny_llama, adapter, chats, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("MY_KEY", "secret")
    endpoint.faults = [429, 500, "drop", "slow", "malformed", 503, "drop"]
    flags = ["--judge_key", "MY_KEY", "--judge_prices", "1", "2", "--max_cost", "1"]
    command = judged_by(endpoint, prompts, tiny_llama, adapter, chats, *flags)
    chat_eval.main(command)
    assert "8 judgements to ask of m" in capsys.readouterr().out and not endpoint.faults
    found = records_in(tmp_path, "judgements.jsonl")
    assert len(found) == 8 == len({record["key"] for record in found})
    assert sum(record["value"] is None for record in found) == 1  # the malformed one is counted, not guessed
    assert {key for _, key in endpoint.asked} == {"Bearer secret"} and "secret" not in (
        tmp_path / "results.csv"
    ).read_text()
    tuned = rows_in(tmp_path)[1]
    assert tuned["win_rate"] == "0.5" and "1 unreadable" in tuned["note"] and "3 of 4 questions" in tuned["note"]
    assert tuned["position_bias"] == "1" and "goes by the place" in tuned["note"]  # it always says B
    asked = len(endpoint.asked)
    chat_eval.main(command)
    assert len(endpoint.asked) == asked  # nothing is judged twice


def test_what_fails_after_all_tries_is_asked_again_by_the_next_run(
    endpoint, prompts, tiny_llama, adapter, chats, tmp_path
):
    endpoint.faults = [500, "no json"]
    command = judged_by(endpoint, prompts, tiny_llama, adapter, chats, "--judge_retries", "0", "--judge_workers", "1")
    chat_eval.main(command)
    tuned = rows_in(tmp_path)[1]
    assert len(records_in(tmp_path, "judgements.jsonl")) == 6 and "judgements failed" in tuned["note"]
    chat_eval.main(command)
    found = records_in(tmp_path, "judgements.jsonl")
    assert len(found) == 8 == len({record["key"] for record in found}) and len(endpoint.asked) == 10
    assert "failed" not in rows_in(tmp_path)[3]["note"]


def test_replies_cut_before_a_verdict_name_the_flag(endpoint, prompts, tiny_llama, adapter, chats, tmp_path):
    endpoint.answer = lambda asked: (200, json.dumps(completion(None, finish="length")))
    chat_eval.main(judged_by(endpoint, prompts, tiny_llama, adapter, chats))
    tuned = rows_in(tmp_path)[1]
    assert tuned["status"] == "degenerate" and "limit of 16 tokens" in tuned["note"]
    assert "--judge_max_tokens" in tuned["note"]


def test_a_judge_that_only_fails_fails_the_run_with_its_own_words(
    endpoint, prompts, tiny_llama, adapter, chats, tmp_path, capsys
):
    endpoint.answer = lambda asked: (200, json.dumps({"error": {"message": "no credit left"}}))
    command = judged_by(endpoint, prompts, tiny_llama, adapter, chats)
    with pytest.raises(SystemExit) as stop:
        chat_eval.main(command)
    assert stop.value.code == 1 and "no credit left" in capsys.readouterr().err
    assert [row["status"] for row in rows_in(tmp_path)] == ["ok", "failed"]  # the base is not judged
    endpoint.answer = None
    chat_eval.main(command)
    assert rows_in(tmp_path)[3]["status"] != "failed" and len(records_in(tmp_path, "answers.jsonl")) == 8


def test_names_that_are_no_file_names_lose_no_judgement(endpoint, tiny_llama, chats, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # ".." is a folder, whose files are hashed
    rows = [{"instruction": f"say {i}", "output": "good", "generator": "org/" + "x" * 300} for i in range(2)]
    write_jsonl(tmp_path / "p.jsonl", rows)
    command = ["--benchmark", str(tmp_path / "p.jsonl"), "--model", tiny_llama, *chats, "--judge", "endpoint"]
    url = f"http://127.0.0.1:{endpoint.server_port}/v1"
    chat_eval.main([*command, "--judge_model", "..", "--judge_url", url])
    (row,) = rows_in(tmp_path)
    assert row["win_rate"] == "0.5" and list(Path(row["run_dir"]).glob("annotations_against_org_x*.json"))


def test_credentials_of_a_judge_are_written_nowhere(endpoint, prompts, tiny_llama, adapter, chats, tmp_path, capsys):
    command = judged_by(endpoint, prompts, tiny_llama, adapter, chats)
    address = command.pop()
    url = address.replace("http://", "http://me:s3cret@") + "?api-key=s3cret"
    chat_eval.main([*command, url])
    assert rows_in(tmp_path)[1]["win_rate"] and "api-key=s3cret" in endpoint.headers[0]["path"]
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10 and b"s3cret" not in b"".join(written) and "s3cret" not in "".join(capsys.readouterr())
    assert json.loads(rows_in(tmp_path)[1]["args"])["judge_url"] == address
    asked = len(endpoint.asked)
    chat_eval.main([*command, address])  # the same judge, with another login
    assert len(endpoint.asked) == asked


def test_a_refused_key_ends_the_run_with_one_line_and_keeps_the_answers(
    endpoint, prompts, tiny_llama, adapter, chats, tmp_path, capsys
):
    endpoint.faults = [401] * 20
    with pytest.raises(SystemExit) as stop:
        chat_eval.main(judged_by(endpoint, prompts, tiny_llama, adapter, chats))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "refuses" in error and error.count("\n") == 1
    assert len(records_in(tmp_path, "answers.jsonl")) == 8 and len(endpoint.asked) <= 4


def test_the_price_is_told_before_and_kept_to(endpoint, prompts, tiny_llama, adapter, chats, tmp_path, capsys):
    flags = ["--judge_prices", "1000", "1000", "--max_cost", "0.01"]
    with pytest.raises(SystemExit) as stop:
        chat_eval.main(judged_by(endpoint, prompts, tiny_llama, adapter, chats, *flags))
    assert stop.value.code == 2 and "may cost" in capsys.readouterr().err and not endpoint.asked
    url = f"http://127.0.0.1:{endpoint.server_port}/v1"
    request = [Request((str(i),), "pair", (("user", f"{i}" * 40),)) for i in range(8)]  # 10 tokens in, 16 out at most
    judge = judges.EndpointJudge(
        url, "m", prices=(10_000.0, 0.0), max_cost=2.5
    )  # 0.1 USD by the estimate, 1 by what is counted
    assert judge.estimate(request[:3]) == (30, 48, pytest.approx(0.3))
    found = judging_of(judge, request)
    assert 2 <= len(found) == len(endpoint.asked) <= 6 and judge.spent == pytest.approx(
        len(found)
    )  # with those under way
    assert "judgements not asked for" in capsys.readouterr().out
    assert judging_of(judge, request) == [] and len(endpoint.asked) == len(found)


@pytest.mark.parametrize("url", ["http://", "http://localhost:99999/v1", "http://exa mple/v1", "http://127.0.0.1:9/v1"])
def test_where_nothing_answers_is_said_before_answers_are_made(
    url, prompts, tiny_llama, chats, tmp_path, capsys, monkeypatch
):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as stop:
        command = ["--benchmark", prompts, "--model", tiny_llama, tiny_llama + "/", *chats]
        chat_eval.main([*command, "--judge", "endpoint", "--judge_model", "m", "--judge_url", url])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and url in error and not (tmp_path / "answers").exists()


def test_mt_bench_ratings_by_an_endpoint(endpoint, tiny_llama, chats, tmp_path):
    write_jsonl(
        tmp_path / "question.jsonl",
        [
            {"question_id": i, "category": c, "turns": [f"the film {i}", "and the cast ?"]}
            for i, c in ((81, "writing"), (111, "math"))
        ],
    )
    write_jsonl(
        tmp_path / "judge_prompts.jsonl",
        [
            {
                "name": name,
                "system_prompt": "be fair",
                "prompt_template": "{question} {answer} {question_1} {answer_1} {question_2} {answer_2}",
            }
            for name in ("single-v1", "single-v1-multi-turn")
        ],
    )
    endpoint.content = ["Fine. Rating: [[8]]", "no number", "[[3]]"]  # then a call that fails
    endpoint.faults = [None, None, None, 500]
    command = ["--benchmark", "mt_bench", "--data", str(tmp_path), "--model", tiny_llama, *chats]
    command += ["--judge", "endpoint", "--judge_model", "m", "--judge_workers", "1", "--judge_retries", "0"]
    command += ["--judge_url", f"http://127.0.0.1:{endpoint.server_port}/v1"]
    chat_eval.main(command)
    (row,) = rows_in(tmp_path)
    graded = win_rates.read_judgements(Path(row["run_dir"], "model_judgment/m_single.jsonl"))[1]
    assert [(g["question_id"], g["turn"], g["score"], g["judge"][1]) for g in graded] == [
        (81, 1, 8.0, "single-v1"),
        (81, 2, -1, "single-v1-multi-turn"),
        (111, 1, 3.0, "single-v1"),
    ]
    assert float(row["judge_score"]) == float(row["score"]) == 5.5 and row["metric"] == "judge_score"
    assert float(row["invalid_rate"]) == pytest.approx(1 / 3, abs=1e-5) and "1 judgements failed" in row["note"]
    found = json.loads(Path(row["run_dir"], "mt_bench.json").read_text())
    assert (
        found["turns"] == {"1": 5.5}
        and found["categories"] == {"math": 3.0, "writing": 8.0}
        and found["n_unreadable"] == 1
    )
    endpoint.content = ["[[5]]"]
    chat_eval.main(command)  # asks for the one that failed
    assert len(endpoint.asked) == 5 and float(rows_in(tmp_path)[1]["judge_score"]) == pytest.approx(16 / 3, abs=1e-4)


@pytest.mark.slow
def test_a_run_killed_while_it_is_judged_judges_nothing_twice(endpoint, prompts, tiny_llama, adapter, chats, tmp_path):
    endpoint.faults = [None, None, None, "stuck"]
    flags = ["--judge_workers", "1", "--judge_timeout", "60", "--latency_runs", "0"]
    flags = judged_by(endpoint, prompts, tiny_llama, adapter, chats, *flags)
    process = subprocess.Popen(
        [sys.executable, "chat_eval.py", *flags], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(endpoint.asked) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = records_in(tmp_path, "judgements.jsonl")
    assert len(before) == 3
    chat_eval.main(flags)
    after = records_in(tmp_path, "judgements.jsonl")
    assert after[:3] == before and len(after) == 8 == len({record["key"] for record in after})
    counts = collections.Counter(text for text, _ in endpoint.asked)
    assert sorted(counts.values()) == [1] * 7 + [2]  # the one that had no answer


@pytest.mark.slow
def test_a_real_server_judges(served, prompts, tiny_llama, adapter, chats, tmp_path):
    command = ["--benchmark", prompts, "--model", tiny_llama, "--adapter", adapter, *chats, "--num_samples", "2"]
    chat_eval.main([*command, "--judge", "endpoint", "--judge_model", tiny_llama, "--judge_url", served])
    found = records_in(tmp_path, "judgements.jsonl")
    assert len(found) == 4 and all(record["tokens"][0] > 0 and record["text"] for record in found)
    unread = sum(record["value"] is None for record in found)
    for record in found:
        assert record["value"] == verdict_of(Request(("1",), "pair", ()), record["text"])
    assert unread and "unreadable" in rows_in(tmp_path)[1]["note"]  # a model of random weights says neither A nor B


@pytest.mark.slow
@pytest.mark.real
def test_the_real_model_answers_and_judges(tmp_path, chats):
    write_jsonl(
        tmp_path / "p.jsonl",
        [
            {"prompt": "What is the capital of France?", "output": "The capital of France is Paris."},
            {"prompt": "Name a colour of the rainbow.", "output": "Red."},
        ],
    )
    model = str(ROOT / "assets/models/SmolLM2-135M-Instruct")
    command = ["--benchmark", str(tmp_path / "p.jsonl"), "--model", model, *chats, "--max_new_tokens", "12"]
    chat_eval.main([*command, "--latency_runs", "0", "--judge", "local", "--judge_model", model])
    (row,) = rows_in(tmp_path)
    assert (
        "Paris" in records_in(tmp_path, "answers.jsonl")[0]["turns"][0]
        and 0 < float(row["win_rate"]) < 1
        and float(row["reference_perplexity"]) < 20
    )
