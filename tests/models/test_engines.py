"""Engines in a model's place. The server's log-probabilities are a tiny model's own; vLLM where it is installed."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import context_distill
import prompt_eval
import utils
from harness.evaluation import agreement
from harness.evaluation.evaluate import Outcome
from harness.models import endpoint_engine, engine, engines, generation, loading, scoring

PROMPTS = ["the good film was", "a bad book is what it was , and", "the"]
LABELS = [" good", " good good", " bad film", " awful"]  # one begins another, so ends are scored


class Server:
    """Answers completions with a model's own log-probabilities. told: "ids", "top" or None, as engines tell them."""

    def __init__(self, folder, told, bias=0.0):
        self.model, self.tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        self.told, self.bias = told, bias

    def __call__(self, asked):
        prompt = asked["prompt"]
        if not isinstance(prompt, str) and self.told != "ids":
            return 400, json.dumps({"error": {"message": "prompt must be a string"}})
        ids = self.tokenizer(prompt).input_ids if isinstance(prompt, str) else prompt
        with torch.inference_mode():
            logits = self.model(torch.tensor([ids])).logits[0, -1]
            logits[::2] += self.bias
            out = self.model.generate(torch.tensor([ids]), max_new_tokens=asked["max_tokens"], do_sample=False)
        new = out[0, len(ids) :].tolist()
        ended = bool(new) and new[-1] == self.tokenizer.eos_token_id
        choice = {"index": 0, "text": self.tokenizer.decode(new, skip_special_tokens=True), "logprobs": None}
        values = logits.log_softmax(-1)
        if asked.get("logprobs") and self.told:
            wanted = asked.get("logprob_token_ids") if self.told == "ids" else None
            wanted = wanted or values.topk(min(asked["logprobs"], len(values))).indices.tolist()
            names = [f"token_id:{i}" if self.told == "ids" else self.tokenizer.decode([i]) for i in wanted]
            choice["logprobs"] = {"top_logprobs": [dict(zip(names, values[wanted].tolist()))]}
        body = {"choices": [{**choice, "finish_reason": "stop" if ended else "length"}]}
        return 200, json.dumps({**body, "usage": {"prompt_tokens": len(ids), "completion_tokens": len(new)}})


def flags_of(*given):
    return prompt_eval.parse_args(list(given))


@pytest.fixture
def engine_at(endpoint, tiny_llama):
    def start(told, *flags, bias=0.0):
        endpoint.answer = Server(tiny_llama, told, bias)
        endpoint.listed = 200, json.dumps({"data": [{"id": "served under this name"}]})
        url = f"http://127.0.0.1:{endpoint.server_port}/v1"
        flags = [*flags, "--served_model", "served under this name"]
        return engines.load(flags_of("--engine", url, "--model", tiny_llama, *flags), tiny_llama, "cpu")

    return start


def scores_of(model, tokenizer, labels=LABELS):
    return scoring.score_labels(model, tokenizer, PROMPTS, labels)


def test_inner_nodes_of_the_labels_tokens():
    nodes = engine.children([[1, 2], [1, 3], [4], [1, 2, 5]])
    assert nodes == {(): [1, 4], (1,): [2, 3], (1, 2): [5]}


@pytest.mark.parametrize("most", [128, 1])
def test_a_server_that_tells_of_token_ids_scores_as_transformers(engine_at, tiny_llama, most, monkeypatch):
    monkeypatch.setattr(engine, "MOST_IDS", most)
    model, tokenizer = loading.load_model(tiny_llama), loading.load_tokenizer(tiny_llama)
    served = engine_at("ids")
    ours, theirs = scores_of(model, tokenizer), scores_of(served, tokenizer)
    assert served.means == "ids" and served.client.model == "served under this name"
    assert np.abs(ours.total - theirs.total).max() < 1e-3
    assert (ours.n_tokens == theirs.n_tokens).all() and ours.n_tokens.max() > 1
    assert ours.prompt_tokens == theirs.prompt_tokens
    each = [[" good", " bad"], [" awful", " good good"], [" film"]]  # other labels for each prompt
    ours, theirs = scores_of(model, tokenizer, each).total, scores_of(served, tokenizer, each).total
    there = np.isfinite(ours)
    assert np.abs(ours - theirs)[there].max() < 1e-3 and (np.isfinite(theirs) == there).all()


def test_a_server_that_tells_its_likeliest_tokens(engine_at, tiny_llama, monkeypatch):
    monkeypatch.setattr(endpoint_engine, "TOP", (10_000,))
    model, tokenizer = loading.load_model(tiny_llama), loading.load_tokenizer(tiny_llama)
    served = engine_at("top")
    assert served.means == "top"
    assert np.abs(scores_of(model, tokenizer).total - scores_of(served, tokenizer).total).max() < 1e-3
    served.close()
    assert not served.notes
    served.top = 2
    scores_of(served, tokenizer)
    served.close()
    assert "were not among the 2 tokens" in served.notes[0]


def test_another_model_is_not_taken_for_this_one(endpoint, tiny_llama, tmp_path):
    endpoint.answer, url = Server(tiny_llama, None), f"http://127.0.0.1:{endpoint.server_port}/v1"
    args = flags_of("--engine", url)
    endpoint.listed = 200, json.dumps({"data": [{"id": "other/model"}]})
    with pytest.raises(utils.UserError, match="serves 'other/model', not"):
        engines.load(args, tiny_llama, "cpu")
    endpoint.listed = 200, json.dumps({"data": [{"id": f"/elsewhere/{Path(tiny_llama).name}"}]})
    assert engines.load(args, tiny_llama, "cpu").client.model.startswith("/elsewhere/")


@pytest.mark.parametrize("told", ["ids", None])
def test_answers_are_those_of_transformers(engine_at, tiny_llama, told):
    model, tokenizer = loading.load_model(tiny_llama), loading.load_tokenizer(tiny_llama)
    served = engine_at(told)
    ours = generation.generate(model, tokenizer, PROMPTS, 8, stop=("\n",))
    theirs = generation.generate(served, tokenizer, PROMPTS, 8, stop=("\n",))
    assert theirs.texts == ours.texts and theirs.prompt_tokens == ours.prompt_tokens
    timed = generation.time_request(served, tokenizer, PROMPTS[0], 8, stop=("\n",))
    assert timed.answer.texts == ours.texts[:1] and timed.total_ms > 0 and timed.ttft_ms is None


def rows_of(endpoint, told, tiny_llama, sentiment, out, *flags, bias=0.0):
    endpoint.answer = Server(tiny_llama, told, bias)
    url = f"http://127.0.0.1:{endpoint.server_port}/v1"
    given = ["--engine", url, "--model", tiny_llama, "--dataset", sentiment, "--max_eval_samples", "24"]
    prompt_eval.main([*given, "--latency_runs", "2", *out, *flags])


def test_the_row_says_what_computed_it_and_how_many_answers_agree(endpoint, tiny_llama, sentiment, out, only_row):
    rows_of(endpoint, "ids", tiny_llama, sentiment, out, "--k_shots", "2")
    row = only_row()
    assert row["engine"] == f"http://127.0.0.1:{endpoint.server_port}/v1" and float(row["engine_agreement"]) == 1
    assert "20 of 20 answers are those of hf" in row["note"] and row["precision"] == "" and row["variant"] == "2_shot"
    assert row["predicted_gb"] == "" and float(row["latency_ms_p50"]) > 0


def test_another_model_behind_the_address_is_seen(endpoint, tiny_llama, sentiment, out, only_row):
    rows_of(endpoint, "ids", tiny_llama, sentiment, out, "--engine_check", "24", bias=2.0)
    row = only_row()
    assert "log-probabilities of labels within" in row["note"] and "within 2" in row["note"]
    same = int(row["note"].split(" of 24 answers")[0].split()[-1])
    assert float(row["engine_agreement"]) == pytest.approx(same / 24, abs=1e-5) and same < 24


def test_without_log_probabilities_answers_are_generated(endpoint, tiny_llama, sentiment, out, only_row, capsys):
    rows_of(endpoint, None, tiny_llama, sentiment, out, "--k_shots", "2", "--max_new_tokens", "4")
    row = only_row()
    assert row["variant"] == "2_shot_generated" and "tells no log-probabilities" in row["note"]
    assert float(row["engine_agreement"]) == 1
    with pytest.raises(SystemExit):
        rows_of(endpoint, None, tiny_llama, sentiment, out, "--calibrate", "contextual")
    assert "this server tells no log-probabilities" in capsys.readouterr().err


def test_no_more_is_spent_than_allowed(endpoint, tiny_llama, sentiment, out, capsys):
    with pytest.raises(SystemExit) as ended:
        prices = ["--engine_prices", "1000", "1000", "--engine_max_cost", "0.05"]
        rows_of(endpoint, "ids", tiny_llama, sentiment, out, *prices)
    assert ended.value.code == 2 and "--engine_max_cost 0.05: " in capsys.readouterr().err
    assert len(endpoint.bodies) == 1  # the look at what the server tells


@pytest.mark.slow
def test_transformers_serve_answers_as_transformers(served, tiny_llama, sentiment, out, only_row):
    given = ["--engine", served, "--model", tiny_llama, "--dataset", sentiment, "--max_eval_samples", "6"]
    prompt_eval.main([*given, "--latency_runs", "1", "--max_new_tokens", "4", *out])
    row = only_row()
    assert "tells no log-probabilities" in row["note"] and float(row["engine_agreement"]) == 1


def test_agreement_counts_ties_as_the_same():
    def outcome(*scores):
        return Outcome([0] * len(scores), {}, None, [], extras=[{"log_probs_sum": list(some)} for some in scores])

    ours = outcome((-1.0, -2.0), (-1.0, -1.0004), (-3.0, -1.0), (-1.0, -9.0))
    theirs = outcome((-1.0, -2.0), (-1.0004, -1.0), (-1.0, -3.0))
    same, furthest = agreement.agreement(ours, theirs)
    assert same == [True, True, False] and furthest == pytest.approx(2.0)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--engine", "tgi"], "give hf, vllm, or an address"),
        (["--served_model", "m"], "--served_model belongs to --engine URL"),
        (["--vllm_args", '{"a": 1}'], "--vllm_args belongs to --engine vllm"),
        (["--vllm_args", "[1]", "--engine", "vllm"], "--vllm_args"),
        (["--engine", "http://x/v1", "--engine_max_cost", "1"], "needs --engine_prices"),
        (["--engine", "vllm", "--attn_implementation", "sdpa"], "is of --engine hf"),
    ],
)
def test_flags_that_do_not_fit(flags, words, capsys):
    with pytest.raises(SystemExit):
        flags_of(*flags)
    assert words in capsys.readouterr().err


def test_a_missing_vllm_is_one_line_with_its_pip_command(tiny_llama, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    with pytest.raises(utils.UserError, match="pip install vllm"):
        engines.load(flags_of("--engine", "vllm"), tiny_llama, "cpu", precision="fp32")


def test_an_encoder_decoder_stays_with_transformers(endpoint, tiny_t5):
    args = argparse.Namespace(engine=f"http://127.0.0.1:{endpoint.server_port}/v1", trust_remote_code=False)
    with pytest.raises(utils.UserError, match="is an encoder-decoder"):
        engines.load(args, tiny_t5, "cpu")


def test_vllm_scores_and_answers_as_transformers(tiny_llama):
    pytest.importorskip("vllm")
    model, tokenizer = loading.load_model(tiny_llama), loading.load_tokenizer(tiny_llama)
    served = engines.load(flags_of("--engine", "vllm"), tiny_llama, "cpu", precision="fp32")
    assert np.abs(scores_of(model, tokenizer).total - scores_of(served, tokenizer).total).max() < 1e-3
    ours, theirs = (generation.generate(each, tokenizer, PROMPTS, 8, stop=("\n",)) for each in (model, served))
    assert theirs.texts == ours.texts and theirs.ids == ours.ids


def test_a_student_needs_log_probabilities(endpoint, tiny_llama, tiny_bert, sentiment, out, capsys):
    """Refused before the teacher is asked."""
    endpoint.answer = Server(tiny_llama, None)
    endpoint.listed = 200, json.dumps({"data": [{"id": "one"}]})
    engine = ["--engine", f"http://127.0.0.1:{endpoint.server_port}/v1", "--served_model", "one"]
    flags = ["--teacher", tiny_llama, "--student", tiny_bert, "--dataset", sentiment, *engine, *out]
    with pytest.raises(SystemExit) as stopped:
        context_distill.main(flags)
    assert stopped.value.code == 2 and "which the student learns from" in capsys.readouterr().err
    assert len(endpoint.bodies) < 5, "the engine tries what the server tells, and nothing else is asked"
