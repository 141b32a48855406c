"""Instruction benchmarks: questions, answers that survive a kill, checks by code, judges and their failures, the chat."""

import collections
import http.server
import json
import math
import os
import pty
import select
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT, write_jsonl

import chat_eval
import checks
import comparison
import instructions
import judges
import judging
import utils

SHARED = ROOT.parent / "shared" / "data"
needs_alpaca = pytest.mark.skipif(not (SHARED / "alpaca_eval").is_dir(), reason="no AlpacaEval data")
needs_mt_bench = pytest.mark.skipif(not (SHARED / "mt_bench").is_dir(), reason="no MT-Bench data")


@pytest.fixture(scope="module")
def adapter(tiny_llama, tmp_path_factory):
    """A LoRA that changes the tiny model's answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("tuned") / "adapter"
    config = LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def prompts(tmp_path):
    write_jsonl(tmp_path / "prompts.jsonl", [
        {"instruction": "the film was good", "output": "a great film", "category": "films"},
        {"instruction": "is the plot weak ? answer in exactly two sentences .", "output": "no . it is superb .", "category": "films"},
        {"instruction": "what is the city", "input": "paris", "output": "paris", "category": "cities"},
        {"instruction": "a very dull joke", "output": "the joke was awful", "category": "films"},
    ])  # fmt: skip
    return str(tmp_path / "prompts.jsonl")


@pytest.fixture
def chats(out, tmp_path):
    """Flags of a quick run."""
    return [*out, "--answers_dir", str(tmp_path / "answers"), "--max_new_tokens", "8"]


def rows(tmp_path):
    return utils.read_results(tmp_path / "results.csv")


def records(tmp_path, name):
    """The lines of all files of this name in the answers folders."""
    return [json.loads(line) for file in sorted((tmp_path / "answers").glob(f"*/{name}")) for line in file.read_text().splitlines()]


# ----------------------------------------------------------------------------------------------------------------- figures


@needs_alpaca
def test_the_known_win_rate_to_ten_digits(capsys):
    chat_eval.main(["--score", str(SHARED / "alpaca_eval/alpaca-7b/annotations.json")])
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["win_rate"] == pytest.approx(2.591450540223603, abs=1e-10)
    assert found["standard_error"] == pytest.approx(0.4870855382635108, abs=1e-10)
    assert found["avg_length"] == 396 and found["n_total"] == 805
    if found["length_controlled_winrate"] is None:
        assert "no length-controlled win rate: " in told.err  # and why
    else:  # the alpaca_eval package is there, and the hub
        assert found["length_controlled_winrate"] == pytest.approx(5.875, abs=0.05)


def test_a_part_of_alpaca_eval_has_no_length_controlled_rate_unless_its_places_are_known(tmp_path, capsys):
    row = {"preference": 1.5, "output_1": "a", "output_2": "b", "generator_1": "c", "generator_2": "d", "annotator": "e"}
    for rows_of_it, wanted in (([row] * 30, "which of AlpacaEval's 805 instructions"), ([{**row, "annotator": None}] * 30, "no annotator")):
        (tmp_path / "a.json").write_text(json.dumps(rows_of_it))
        chat_eval.main(["--score", str(tmp_path / "a.json")])
        assert wanted in capsys.readouterr().err


@needs_mt_bench
def test_mt_bench_means_are_those_of_the_rows():
    import pandas as pd

    kind, graded = judging.read_judgements(SHARED / "mt_bench/gpt-4_single_judgments.jsonl")
    frame = pd.DataFrame(graded)
    frame = frame[frame.score != -1]
    found = judging.mt_bench_scores(graded)
    assert kind == "mt_bench" and set(found) == set(frame.model)
    for (model, turn), mean in frame.groupby(["model", "turn"]).score.mean().items():
        assert found[model]["turns"][turn] == pytest.approx(mean, abs=1e-12)
    for model, mean in frame.groupby("model").score.mean().items():
        assert found[model]["mean"] == pytest.approx(mean, abs=1e-12)
    assert sum(each["n_unreadable"] for each in found.values()) == 4


def test_win_rates_of_draws_and_of_what_cannot_be_read():
    found = judging.win_rate([1, 2, 1.5, 0, None, float("nan"), "2", 7, -1])
    wins = [0, 1, 0.5, 0.5, 1]
    assert found["n_total"] == 5 and found["n_unreadable"] == 4 and found["n_draws"] == 2
    assert found["win_rate"] == pytest.approx(100 * statistics.fmean(wins))
    assert found["standard_error"] == pytest.approx(100 * statistics.stdev(wins) / math.sqrt(5))
    assert found["discrete_win_rate"] == pytest.approx(100 * (2 + 1) / 5)
    assert judging.win_rate([])["win_rate"] is None and judging.win_rate([2])["standard_error"] is None


def test_the_place_that_wins_twice_is_a_bias():
    always_first, always_second, fair = (0.1, 0.9), (0.8, 0.3), (0.9, 0.7)
    found = judging.position_bias([always_first, always_second, fair, (0.2, 0.4), (None, 0.5)])
    assert found == {"rate": 0.5, "first": 0.25, "n": 4}


@pytest.mark.parametrize(("text", "kind", "wanted"), [
    ('[{"preference": 1.25, "output_2": "ab"}]', "alpaca_eval", None),
    ('[{"prefers": 1}]', None, "neither AlpacaEval's annotations"), ("[]", None, "it has nothing"), ("{", None, "cannot be read as json"),
])  # fmt: skip
def test_files_of_judgements_are_known_by_their_columns(tmp_path, text, kind, wanted, capsys):
    path = tmp_path / "file.json"
    path.write_text(text)
    if kind:
        assert judging.read_judgements(path)[0] == kind
    else:
        with pytest.raises(SystemExit) as stop:
            chat_eval.main(["--score", str(path)])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and wanted in error and error.count("\n") == 1


# --------------------------------------------------------------------------------------------------- what code can verify


@pytest.mark.parametrize(("name", "given", "good", "bad"), [
    ("keywords:existence", {"keywords": ["Paris", "film"]}, "Films of parisians.", "A film of Rome."),
    ("keywords:forbidden_words", {"forbidden_words": ["dull"]}, "a dullard", "Dull!"),
    ("keywords:frequency", {"keyword": "the", "frequency": 2, "relation": "less than"}, "The end", "the other"),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "at least"}, "Quick quiz", "quick"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "two words", "these are three"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "exactly"}, 'Yes. "It is." ', "Yes, it is 3.5 long."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2, "relation": "exactly"}, "one\n\ntwo", "one\ntwo"),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "So"}, "a\n\nso it", "so\n\nb"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] lives in [city]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "text\np. s. more", "no PS here"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n**bold**"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***one***two", "one***   ***two"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a b* and *c*", "*a b* and ** **"),
    ("detectable_format:multiple_sections", {"section_spliter": "SECTION", "num_sections": 2}, "SECTION 1\na\nSECTION 2\nb", "SECTION 1"),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', 'Here: {"a": 1}'),
    ("detectable_format:title", {}, "<<A title>>\ntext", "<< >>"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
    ("combination:two_responses", {}, "one\n******\ntwo", "same\n******\nsame"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Do it."}, "do it. Done", "Done"),
    ("startend:end_checker", {"end_phrase": "That is all."}, "So. That is all. ", "That is all. No."),
    ("startend:quotation", {}, ' "so" ', '"so" it is'),
    ("startend:sentences_begin", {"letter": "A"}, "A cat. And a dog!", "A cat. The dog."),
    ("change_case:english_capital", {}, "ALL 3!", "All"),
    ("change_case:english_lowercase", {}, "all 3!", "All"),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "THE BIG one", "THE big one"),
    ("punctuation:no_comma", {}, "one and two", "one, two"),
])  # fmt: skip
def test_verifiable_instructions(name, given, good, bad):
    assert checks.followed(good, [(name, given)]) == [True]
    assert checks.followed(bad, [(name, given)]) == [False]
    assert checks.followed(" ", [(name, given)]) == [False]


def test_what_a_prompt_asks_for_is_read_from_plain_phrases_alone():
    words = "length_constraints:number_words"
    for text, wanted in {
        "Answer in at most 50 words.": [(words, {"num_words": 50, "relation": "at most"})],
        "Write fewer than 200 words on it": [(words, {"num_words": 200, "relation": "less than"})],
        "an essay of 300 words or more": [(words, {"num_words": 300, "relation": "at least"})],
        "Explain it in three bullet points": [("detectable_format:number_bullet_lists", {"num_bullets": 3, "relation": "exactly"})],
        "in just one sentence": [("length_constraints:number_sentences", {"num_sentences": 1, "relation": "exactly"})],
        "Return the result as a JSON object": [("detectable_format:json_format", {})],
        "Use the words 'sun' and 'moon'.": [("keywords:existence", {"keywords": ["sun", "moon"]})],
        'Do not use the word "very".': [("keywords:forbidden_words", {"forbidden_words": ["very"]})],
        "in at least three bullet points": [("detectable_format:number_bullet_lists", {"num_bullets": 3, "relation": "at least"})],
        "with no more than 5 bullet points": [("detectable_format:number_bullet_lists", {"num_bullets": 5, "relation": "at most"})],
        "Write it in exactly 100 words": [(words, {"num_words": 100, "relation": "exactly"})],
        "Answer in all capital letters.": [("change_case:english_capital", {})],
        "write a script that reads json files": [],
        "Provide a Python script that reads a JSON file": [],
        "3 to 5 bullet points": [],
        "a story in 100 words": [],
        "Answer the question about how to use uppercase letters": [],
        "Do not answer in one sentence": [],
        "Give me a list of 5 words": [],
        "Tell a story about two sentences that met.": [],
    }.items():
        assert checks.asked_for(text) == wanted, text


def test_refusals_and_repetition():
    assert checks.refuses("I'm sorry, but I cannot help with that.") and checks.refuses("As an AI language model, I have no body.")
    assert not checks.refuses("The cast is superb. " * 20 + "I'm sorry") and not checks.refuses("I can help you with that.")
    assert checks.repetition("a b c d e f") == 0.0 and checks.repetition("a b") == 0.0
    assert checks.repetition("a b c d a b c d") == pytest.approx(1 - 4 / 5)


# --------------------------------------------------------------------------------------------------------------- questions


def test_a_sample_has_each_group_in_its_share_and_grows():
    made = [instructions.Question(str(i), (f"q{i}",), "big" if i % 3 else "small", index=i) for i in range(30)]
    few, more = instructions.choose(made, 6), instructions.choose(made, 12)
    assert collections.Counter(q.group for q in few) == {"big": 4, "small": 2}
    assert set(few) < set(more) and few == sorted(few, key=lambda q: q.index) and instructions.choose(made, 99) == made
    assert instructions.eval_id(few) != instructions.eval_id(more)


@needs_mt_bench
def test_mt_bench_has_turns_references_and_temperatures():
    found = instructions.load("mt_bench", str(SHARED / "mt_bench"))
    assert found.kind == "mt_bench" and len(found.questions) == 80 and "single-v1" in found.judge_prompts
    assert collections.Counter(q.group for q in instructions.choose(found.questions, 16)).most_common(1)[0][1] == 2
    with_references = [q for q in found.questions if q.references]
    assert len(with_references) == 30 and {q.group for q in with_references} == {"math", "reasoning", "coding"}
    at = {q.group: found.temperature(q) for q in found.questions}
    assert at == {"writing": 0.7, "roleplay": 0.7, "extraction": 0, "math": 0, "coding": 0, "reasoning": 0, "stem": 0.1, "humanities": 0.1}


@needs_alpaca
def test_alpaca_eval_has_its_reference_outputs():
    found = instructions.load("alpaca_eval", str(SHARED / "alpaca_eval"))
    assert found.kind == "alpaca_eval" and len(found.questions) == 805
    assert all(q.references and q.author == "gpt4_1106_preview" for q in found.questions)


@pytest.mark.parametrize(("name", "text", "wanted"), [
    ("a.jsonl", '{"text_of_mine": "x"}\n', "no prompt; one of the columns"), ("a.json", "[]", "holds no prompts"),
    ("a.jsonl", '{"question_id": 1, "turns": "one"}\n', "a list of turns"), ("a.xml", "x", "unknown file type"),
    ("a.jsonl", '{"id": 1, "prompt": "x"}\n{"id": 1, "prompt": "y"}\n', "1 questions have an id that another has"),
    ("a.jsonl", '{"prompt": \n', "cannot be read as jsonl"),
    ("a.jsonl", '{"prompt": "\\ud800"}\n', "no text that can be encoded"),
    ("a.jsonl", '{"question_id": 1, "turns": ["a"], "reference": [1, null]}\n', "no text that can be encoded"),
    ("a.jsonl", '{"question_id": 1, "turns": ["a"], "reference": 5}\n', "not as FastChat writes them"),
    ("a.jsonl", '{"prompt": "x", "instruction_id_list": ["keywords:existence"], "kwargs": [{}]}\n', "missing a required argument"),
    ("a.jsonl", '{"prompt": "x", "instruction_id_list": ["punctuation:no_comma"], "kwargs": []}\n', "no lists of one length"),
    ("a.csv", 'prompt,instruction_id_list,kwargs\nx,"[""keywords:frequency""]","[{""keyword"": ""a"", ""frequency"": 1, ""relation"": 2}]"',
     "KeyError"),
])  # fmt: skip
def test_files_that_hold_no_prompts_are_one_line(tmp_path, capsys, name, text, wanted, tiny_llama):
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as stop:
        chat_eval.main(["--benchmark", str(tmp_path / name), "--model", tiny_llama, "--answers_dir", str(tmp_path / "answers")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and wanted in error and error.count("\n") == 1 and not (tmp_path / "answers").exists()


@pytest.mark.parametrize(("flags", "wanted"), [
    (["--mode", "evaluate"], "needs --benchmark"), (["--benchmark", "mt_bench", "--mode", "batch"], "belong together"),
    (["--prompts", "p", "--data", "d"], "--data belongs"), (["--model", "a", "b", "--adapter", "c"], "one --model"),
    (["--benchmark", "x", "--judge", "local"], "needs --judge_model"), (["--benchmark", "x", "--judge_model", "m"], "need --judge"),
    (["--benchmark", "x", "--judge", "endpoint", "--judge_model", "m"], "--judge_url belong together"),
    (["--benchmark", "x", "--judge", "endpoint", "--judge_model", "m", "--judge_url", "localhost"], "begins with http"),
    (["--benchmark", "x", "--judge", "endpoint", "--judge_model", "m", "--judge_url", "http://x", "--max_cost", "1"], "--judge_prices IN"),
    (["--judge", "local", "--judge_model", "m"], "belongs to --benchmark"),
    (["--benchmark", "x", "--output", "y"], "of --mode batch"), (["--model", "a", "a"], "named twice"),
    (["--mode", "interactive", "--model", "a", "b"], "talks to one model"), (["--benchmark", "x", "--score", "y"], "or else --score"),
    (["--benchmark", "x", "--one_order"], "need --judge"), (["--benchmark", "x", "--judge_prices", "1", "1"], "belong to --judge endpoint"),
    (["--benchmark", "x", "--judge", "endpoint", "--judge_model", "m", "--judge_url", "http://x", "--judge_key", "NO"], "no such variable"),
    (["--prompts", "x", "--output", "no/such/file"], "a folder that is there"),
    (["--benchmark", "x", "--judge", "local", "--judge_model", "m", "--judge_prompt", "no.txt"], "cannot be read"),
    (["--benchmark", "x", "--judge", "local", "--judge_model", "m", "--judge_prompt", str(ROOT / "Makefile")], "has no {question}"),
    (["--benchmark", "no/such/file.jsonl"], "no file of prompts"), (["--score", "no.json"], "no such file"),
])  # fmt: skip
def test_wrong_flags_are_one_line(flags, wanted, capsys, tiny_llama):
    with pytest.raises(SystemExit) as stop:
        chat_eval.main(flags if "--model" in flags else [*flags, "--model", tiny_llama])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and wanted in error and error.count("\n") == 1


# ----------------------------------------------------------------------------------------------------------------- answers


def test_base_and_tuned_side_by_side(prompts, tiny_llama, adapter, chats, tmp_path, capsys):
    chat_eval.main(["--benchmark", prompts, "--model", tiny_llama, "--adapter", adapter, *chats])
    base, tuned = rows(tmp_path)
    for row in (base, tuned):
        assert row["strategy"] == "chat" and row["n_eval"] == "4" and row["metric"] == "rouge_l" and row["status"] == "ok"
        for column in ("rouge_l", "token_f1", "perplexity", "answer_chars", "repetition_rate", "refusal_rate", "tokens_per_s",
                       "latency_ms_p50", "peak_rss_gb", "generated_tokens", "predicted_gb"):  # fmt: skip
            assert float(row[column]) >= 0, column
    assert (base["variant"], tuned["variant"]) == ("prompts", "prompts_adapter") and base["eval_id"] == tuned["eval_id"]
    assert base["perplexity"] != tuned["perplexity"]
    outputs = json.loads(Path(base["run_dir"], "model_outputs.json").read_text())
    assert [set(row) for row in outputs] == [{"dataset", "instruction", "output", "generator"}] * 4
    assert outputs[2]["instruction"] == "what is the city\n\nparis"
    both = json.loads(Path(tuned["run_dir"], "comparison.json").read_text())
    assert len(both["systems"]) == 2 and len(both["questions"]) == 4
    chars = [[statistics.fmean(map(len, system["answers"])) for system in q["systems"]] for q in both["questions"]]
    delta = statistics.fmean(b - a for a, b in chars)
    (name,) = both["differences"]
    assert both["differences"][name]["answer_chars"]["delta"] == pytest.approx(delta)
    text = Path(tuned["run_dir"], "comparison.md").read_text()
    assert all(output["output"] in text for output in outputs) and "> a very dull joke" in text
    printed = capsys.readouterr().out
    assert "| characters of an answer (n = 4)" in printed and "comparison.md" in printed


def test_ifeval_prompts_count_where_all_is_checked(tiny_llama, chats, tmp_path):
    asked = [["punctuation:no_comma"], ["punctuation:no_comma", "language:response_language"], ["change_case:english_lowercase"]]
    write_jsonl(tmp_path / "ifeval.jsonl", [
        {"key": i, "prompt": f"the film {i}", "instruction_id_list": names,
         "kwargs": [{"language": "hi"} if name.startswith("language") else {"num_words": None} for name in names]}
        for i, names in enumerate(asked)])  # fmt: skip
    chat_eval.main(["--benchmark", str(tmp_path / "ifeval.jsonl"), "--model", tiny_llama, *chats])
    (row,) = rows(tmp_path)
    said = [json.loads(line) for line in Path(row["run_dir"], "ifeval_responses.jsonl").read_text().splitlines()]
    followed = [float("," not in said[0]["response"]), float(said[2]["response"].islower())]
    assert float(row["instruction_following"]) == float(row["score"]) == statistics.fmean(followed)
    assert "1 of IFEval's instructions cannot be checked" in row["note"] and "of 2 of 3 questions" in row["note"]
    assert [line["prompt"] for line in said] == ["the film 0", "the film 1", "the film 2"]


def test_a_prompts_columns_and_ids_are_read_leniently(tmp_path):
    (tmp_path / "a.csv").write_text("ID,Prompt,Output\n,one,1\n7,two,\n,three,3\n")
    found = instructions.load(str(tmp_path / "a.csv")).questions
    assert [q.turns for q in found] == [("one",), ("two",), ("three",)] and [q.references for q in found] == [("1",), (), ("3",)]
    assert len({q.id for q in found}) == 3 and found[1].id == "7"
    (tmp_path / "b.TXT").write_text("one\u2028more\n\ntwo\n")
    assert [q.turns[0] for q in instructions.load(str(tmp_path / "b.TXT")).questions] == ["one\u2028more", "two"]
    write_jsonl(tmp_path / "c.jsonl", [{"question_id": 1, "turns": ["a"], "reference": "a text", "category": ["math"]}])
    assert instructions.load(str(tmp_path / "c.jsonl")).questions[0].references == ("a text",)


def test_answers_are_those_of_one_prompt_alone_and_turns_follow_the_answers(tiny_llama, chats, tmp_path):
    import inference
    import models

    asked = [["the film was good", "and the cast ?"], ["what is the city"], ["a very dull joke", "why ?"]]
    write_jsonl(tmp_path / "turns.jsonl", [{"question_id": i, "category": "math", "turns": turns} for i, turns in enumerate(asked)])
    chat_eval.main(["--benchmark", str(tmp_path / "turns.jsonl"), "--model", tiny_llama, *chats])
    model, tokenizer = models.load_model(tiny_llama), utils.load_tokenizer(tiny_llama)
    (row,) = rows(tmp_path)
    lines = Path(row["run_dir"], "model_answer").glob("*.jsonl")
    found = [json.loads(line) for line in next(lines).read_text().splitlines()]
    assert [set(line) for line in found] == [{"question_id", "answer_id", "model_id", "choices", "tstamp"}] * 3
    for turns, line in zip(asked, found):
        said = []
        for i, _ in enumerate(turns):
            messages = [{"role": role, "content": text} for pair in zip(turns[:i], said) for role, text in zip(("user", "assistant"), pair)]
            messages.append({"role": "user", "content": turns[i]})
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            said.append(inference.generate(model, tokenizer, [prompt], 8, 1, add_special_tokens=False).texts[0])
        assert line["choices"][0]["turns"] == said


def test_a_killed_run_goes_on_and_repeats_nothing(tiny_llama, chats, tmp_path):
    write_jsonl(tmp_path / "many.jsonl", [{"prompt": f"the film {i}"} for i in range(60)])
    command = [sys.executable, "chat_eval.py", "--benchmark", str(tmp_path / "many.jsonl"), "--model", tiny_llama, *chats,
               "--batch_size", "1", "--temperature", "0.8", "--max_new_tokens", "40", "--latency_runs", "0"]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(records(tmp_path, "answers.jsonl")) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (file,) = (tmp_path / "answers").glob("*/answers.jsonl")
    before = file.read_text()
    assert 5 <= before.count("\n") < 60 and not (tmp_path / "results.csv").exists()
    file.write_text(before + '{"key": "half a li')  # as a kill within a write leaves it
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{before.count(chr(10))} of 60 questions are answered" in done.stdout
    after = [line for line in file.read_text().splitlines() if not line.startswith('{"key": "half')]
    assert "\n".join(after).startswith(before.rstrip("\n")) and len(after) == 60 == len({json.loads(line)["key"] for line in after})
    assert len(rows(tmp_path)) == 1
    # the sampled answers are those of a run that nothing cut off
    subprocess.run([*command, "--answers_dir", str(tmp_path / "again")], cwd=ROOT, capture_output=True, check=True)
    (other,) = (tmp_path / "again").glob("*/answers.jsonl")
    assert [json.loads(line)["turns"] for line in other.read_text().splitlines()] == [json.loads(line)["turns"] for line in after]


def test_other_settings_have_other_answers(prompts, tiny_llama, adapter, chats, tmp_path):
    for flags in ([], ["--system", "be good"], ["--max_new_tokens", "4"], ["--adapter", adapter], ["--adapter", adapter, "--no_lora"]):
        chat_eval.main(["--benchmark", prompts, "--model", tiny_llama, *chats, *flags])
    folders = sorted((tmp_path / "answers").iterdir())
    assert len(folders) == 4 and len(rows(tmp_path)) == 6  # --no_lora is the first again
    assert all(len((folder / "answers.jsonl").read_text().splitlines()) == 4 for folder in folders)


def test_batch_mode_answers_a_file_of_prompts(tiny_llama, adapter, chats, tmp_path):
    (tmp_path / "p.txt").write_text("the film was good\n\nwhat is the city\n")
    for flags, name in (([], "tuned"), (["--no_lora"], "base")):
        chat_eval.main(["--mode", "batch", "--prompts", str(tmp_path / "p.txt"), "--model", tiny_llama, "--adapter", adapter, *flags,
                        "--output", str(tmp_path / name), *chats])  # fmt: skip
    tuned, base = ([json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in ("tuned", "base"))
    assert [line["prompt"] for line in tuned] == ["the film was good", "what is the city"] and len(rows(tmp_path)) == 2
    assert [line["answer"] for line in tuned] != [line["answer"] for line in base]
    chat_eval.main(["--prompts", str(tmp_path / "p.txt"), "--model", tiny_llama, *chats])
    assert Path(rows(tmp_path)[2]["run_dir"], "answers.jsonl").read_text() == (tmp_path / "base").read_text()


def test_a_model_without_a_chat_template_gets_headings(prompts, tiny_gpt2, tiny_t5, chats, tmp_path):
    for model in (tiny_gpt2, tiny_t5):
        chat_eval.main(["--benchmark", prompts, "--model", model, *chats])
    assert [row["status"] for row in rows(tmp_path)] == ["ok", "ok"]
    assert instructions.render(["a", "b"], ["c"]) == "### Instruction:\na\n\n### Response:\nc\n\n### Instruction:\nb\n\n### Response:"


# ------------------------------------------------------------------------------------------------------------- local judge


def local_judge(folder):
    import models

    return judges.LocalJudge(folder, lambda: (models.load_model(folder), utils.load_tokenizer(folder)))


def question(turns=("what is it",), references=()):
    return instructions.Question("7", tuple(turns), references=tuple(references))


def test_braces_in_an_answer_are_left_alone():
    (as_is, swapped) = judges.pair_requests(question(), ["use {answer_b} and {x}"], ["second"])
    assert "[Answer A]\nuse {answer_b} and {x}\n\n[Answer B]\nsecond" in as_is.messages[0][1]
    assert "[Answer A]\nsecond\n\n[Answer B]\nuse {answer_b} and {x}" in swapped.messages[0][1]
    assert len(judges.pair_requests(question(), ["a"], ["b"], both=False)) == 1


@needs_mt_bench
def test_an_endpoint_gets_fastchats_own_prompts():
    prompts = instructions.load("mt_bench", str(SHARED / "mt_bench")).judge_prompts
    first, second = judges.rating_requests(question(("one", "two")), ["answer one", "answer two"], prompts)
    assert (first.prompt, second.prompt) == ("single-v1", "single-v1-multi-turn")
    assert first.messages[1][1].endswith(
        "[Question]\none\n\n[The Start of Assistant's Answer]\nanswer one\n[The End of Assistant's Answer]"
    )
    assert "### User:\ntwo\n\n### Assistant A:\nanswer two" in second.messages[1][1] and "{" not in second.messages[1][1]
    known = judges.rating_requests(question(("one", "two"), ("right one", "right two")), ["a", "b"], prompts)
    assert known[1].prompt == "single-math-v1-multi-turn" and "### Reference answer:\nright two" in known[1].messages[1][1]


@pytest.mark.parametrize(("kind", "direct", "text", "wanted"), [
    ("pair", True, "A", "A"), ("pair", True, ' "B".', "B"), ("pair", True, "Answer: B", "B"), ("pair", True, "B, since it is", "B"),
    ("pair", True, "A is better", None), ("pair", True, "A case", None), ("pair", True, "Both", None), ("pair", True, "", None),
    ("pair", True, "a", None), ("pair", True, "7", None),
    ("rating", True, "7", "7"), ("rating", True, "Rating: 8", "8"), ("rating", True, "8/10", "8"), ("rating", True, "8 9", None),
    ("rating", True, "11", None), ("rating", True, "0", None), ("rating", True, "B", None), ("rating", True, "I would say 5", None),
    ("rating", False, "Good. Rating: [[8]]", "8"), ("rating", False, "Rating: [[8.5]] of 10", "8.5"), ("rating", False, "so [6]", "6"),
    ("rating", False, "8 of 10", None), ("rating", False, "[[12]]", None),
])  # fmt: skip
def test_verdicts_are_read_and_never_guessed(kind, direct, text, wanted):
    assert judges.read_verdict(judges.Request(("1",), kind, (), direct=direct), text) == wanted


def test_likelihoods_of_the_first_token_weigh_a_verdict():
    request = judges.Request(("1",), "pair", ())
    assert judges.verdict_of(request, "A", {"A": math.log(0.6), " B": math.log(0.2), "x": math.log(0.2)}) == pytest.approx(0.25)
    assert judges.verdict_of(request, "B", {"A": math.log(0.1), "B": math.log(0.2), "The": math.log(0.7)}) == 1.0  # the text decides
    assert judges.verdict_of(request, "neither", {"A": math.log(0.1), "The": math.log(0.9)}) is None


def test_a_local_judge_goes_by_likelihood_and_averages_both_orders(prompts, tiny_llama, adapter, chats, tmp_path):
    import torch

    import models

    command = ["--benchmark", prompts, "--model", tiny_llama, "--adapter", adapter, *chats, "--judge", "local", "--judge_model", tiny_llama]
    chat_eval.main(command)
    base, tuned = rows(tmp_path)
    (file,) = Path(tuned["run_dir"]).glob("annotations_against_*.json")
    annotations = json.loads(file.read_text())
    model, tokenizer = models.load_model(tiny_llama), utils.load_tokenizer(tiny_llama)

    def p_second(first, second, asked):  # by a plain forward over prompt and label
        text = judges.PAIR_PROMPT.replace("{question}", asked).replace("{answer_a}", first).replace("{answer_b}", second)
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
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
    assert float(tuned["win_rate"]) == pytest.approx(statistics.fmean(row["preference"] - 1 for row in annotations), abs=1e-5)
    assert tuned["metric"] == base["metric"] == "win_rate" and tuned["position_bias"] and base["win_rate"] == "0.5"
    assert tuned["eval_id"] == base["eval_id"]
    found = judging.read_judgements(file)[1]
    assert judging.win_rate([row["preference"] for row in found])["n_total"] == 4
    judged = records(tmp_path, "judgements.jsonl")
    assert len(judged) == 8
    chat_eval.main(command)  # nothing is judged again
    assert records(tmp_path, "judgements.jsonl") == judged and rows(tmp_path)[3]["win_rate"] == tuned["win_rate"]


def test_equal_answers_are_a_draw_whatever_the_judges_place(tiny_llama, tmp_path):
    judge = local_judge(tiny_llama)
    asked, same = question(), comparison.System("one", {"7": ["the same"]})
    annotations, pairs, failed = judges.pairwise(judge, [asked], same, same, tmp_path / "judgements.jsonl")
    assert annotations[0]["preference"] == pytest.approx(1.5, abs=1e-6) and judging.position_bias(pairs)["rate"] == 1.0 and not failed


def test_a_local_rating_is_the_expected_number(tiny_llama, tmp_path):
    judge = local_judge(tiny_llama)
    system = comparison.System("one", {"7": ["first", "second"]})
    graded, failed = judges.gradings(judge, [question(("a", "b"))], system, None, tmp_path / "judgements.jsonl")
    shares = [json.loads(line)["likelihoods"] for line in (tmp_path / "judgements.jsonl").read_text().splitlines()]
    assert [row["turn"] for row in graded] == [1, 2] and not failed
    for row, share in zip(graded, shares):
        assert sum(share.values()) == pytest.approx(1)
        assert row["score"] == pytest.approx(sum(int(label) * p for label, p in share.items())) and 1 < row["score"] < 10


# --------------------------------------------------------------------------------------------------------------- endpoints


class Faulty(http.server.BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that fails as `server.faults` says, one fault a request, and counts what it answered."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            fault = self.server.faults.pop(0) if self.server.faults else None
            self.server.bodies.append(asked)
            self.server.asked.append(((asked["messages"] or [{"content": ""}])[-1]["content"], self.headers["Authorization"]))
            text = self.server.content.pop(0) if self.server.content and fault is None else "B"
        refused = next((name for name in self.server.refuses if name in asked), None)
        if refused:
            return self.reply(400, json.dumps({"error": {"message": f"Unsupported parameter: '{refused}'"}}))
        if fault == "stuck":
            time.sleep(20)
        if fault == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if fault == "slow":
            time.sleep(1.5)
        if isinstance(fault, int):
            return self.reply(fault, json.dumps({"error": {"message": f"fault {fault}"}}), {"Retry-After": "0"})
        if fault == "no json":
            return self.reply(200, "<html>")
        content = "I cannot decide." if fault == "malformed" else text
        alternatives = [{"token": token, "logprob": value, "bytes": None} for token, value in self.server.logprobs.items()]
        likely = {"content": [{**alternatives[0], "top_logprobs": alternatives}]} if alternatives else None
        self.reply(200, json.dumps({
            "id": "1", "object": "chat.completion", "created": 1, "model": asked["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content},
                         "logprobs": likely}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101},
        }))  # fmt: skip

    def reply(self, status, body, headers=()):
        data = body.encode()
        try:
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **dict(headers)}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # the client had no patience
            self.close_connection = True


@pytest.fixture
def endpoint():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    server.lock, server.faults, server.asked, server.bodies = threading.Lock(), [], [], []
    server.content, server.refuses, server.logprobs, server.daemon_threads = [], [], {}, True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def judged_by(server, prompts, tiny_llama, adapter, chats, *flags):
    return ["--benchmark", prompts, "--model", tiny_llama, "--adapter", adapter, *chats, "--judge", "endpoint", "--judge_model", "m",
            "--judge_url", f"http://127.0.0.1:{server.server_port}/v1", "--judge_timeout", "1", *flags]  # fmt: skip


def test_an_endpoint_that_fails_in_every_way_loses_nothing(endpoint, prompts, tiny_llama, adapter, chats, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MY_KEY", "secret")
    endpoint.faults = [429, 500, "drop", "slow", "malformed", 503, "drop"]
    command = judged_by(
        endpoint, prompts, tiny_llama, adapter, chats, "--judge_key", "MY_KEY", "--judge_prices", "1", "2", "--max_cost", "1"
    )
    chat_eval.main(command)
    assert "8 judgements to ask of m" in capsys.readouterr().out and not endpoint.faults
    found = records(tmp_path, "judgements.jsonl")
    assert len(found) == 8 == len({record["key"] for record in found})
    assert sum(record["value"] is None for record in found) == 1  # the malformed one is counted, not guessed
    assert {key for _, key in endpoint.asked} == {"Bearer secret"} and "secret" not in (tmp_path / "results.csv").read_text()
    tuned = rows(tmp_path)[1]
    assert tuned["win_rate"] == "0.5" and "1 unreadable" in tuned["note"] and "3 of 4 questions" in tuned["note"]
    assert tuned["position_bias"] == "1" and "goes by the place" in tuned["note"]  # it always says B
    asked = len(endpoint.asked)
    chat_eval.main(command)
    assert len(endpoint.asked) == asked  # nothing is judged twice


def test_what_fails_after_all_tries_is_asked_again_by_the_next_run(endpoint, prompts, tiny_llama, adapter, chats, tmp_path):
    endpoint.faults = [500, "no json"]
    command = judged_by(endpoint, prompts, tiny_llama, adapter, chats, "--judge_retries", "0", "--judge_workers", "1")
    chat_eval.main(command)
    tuned = rows(tmp_path)[1]
    assert len(records(tmp_path, "judgements.jsonl")) == 6 and "judgements failed" in tuned["note"]
    chat_eval.main(command)
    found = records(tmp_path, "judgements.jsonl")
    assert len(found) == 8 == len({record["key"] for record in found}) and len(endpoint.asked) == 10
    assert "failed" not in rows(tmp_path)[3]["note"]


def test_a_refused_key_ends_the_run_with_one_line_and_keeps_the_answers(endpoint, prompts, tiny_llama, adapter, chats, tmp_path, capsys):
    endpoint.faults = [401] * 20
    with pytest.raises(SystemExit) as stop:
        chat_eval.main(judged_by(endpoint, prompts, tiny_llama, adapter, chats))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "refuses" in error and error.count("\n") == 1
    assert len(records(tmp_path, "answers.jsonl")) == 8 and len(endpoint.asked) <= 4


def test_the_price_is_told_before_and_kept_to(endpoint, prompts, tiny_llama, adapter, chats, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        chat_eval.main(judged_by(endpoint, prompts, tiny_llama, adapter, chats, "--judge_prices", "1000", "1000", "--max_cost", "0.01"))
    assert stop.value.code == 2 and "may cost" in capsys.readouterr().err and not endpoint.asked
    url = f"http://127.0.0.1:{endpoint.server_port}/v1"
    request = [judges.Request((str(i),), "pair", (("user", f"{i}" * 40),)) for i in range(8)]  # 10 tokens in, 16 out at most
    judge = judges.EndpointJudge(url, "m", prices=(10_000.0, 0.0), max_cost=2.5)  # 0.1 USD by the estimate, 1 by what is counted
    assert judge.estimate(request[:3]) == (30, 48, pytest.approx(0.3))
    found = judging_of(judge, request)
    assert 2 <= len(found) == len(endpoint.asked) <= 6 and judge.spent == pytest.approx(len(found))  # with those under way
    assert "judgements not asked for" in capsys.readouterr().out
    assert judging_of(judge, request) == [] and len(endpoint.asked) == len(found)


def judging_of(judge, requests):
    """What `judge.ask` keeps."""
    kept = []
    judge.ask(requests, lambda *found: kept.append(found))
    return kept


def test_one_refused_request_ends_nothing(endpoint, capsys):
    judge = judges.EndpointJudge(f"http://127.0.0.1:{endpoint.server_port}/v1", "m", workers=1)
    endpoint.faults = [None, 400, None]
    kept = judging_of(judge, [judges.Request((str(i),), "pair", (("user", f"{i}"),)) for i in range(4)])
    assert len(kept) == 3 and len(judge.failed) == 1 and not judge.refused
    assert "1 judgements failed: BadRequestError" in capsys.readouterr().out


def test_what_an_endpoint_does_not_take_is_sent_otherwise(endpoint):
    judge = judges.EndpointJudge(f"http://127.0.0.1:{endpoint.server_port}/v1", "m", workers=1)
    endpoint.refuses = ["max_tokens", "temperature", "logprobs"]
    kept = judging_of(judge, [judges.Request((str(i),), "pair", (("user", f"{i}"),)) for i in range(3)])
    assert [value for _, value, _ in kept] == [1.0] * 3 and judge.refused == set(endpoint.refuses) and len(endpoint.asked) == 6
    assert set(endpoint.bodies[-1]) == {"model", "messages", "max_completion_tokens"}


def test_an_endpoints_likelihoods_weigh_its_verdicts(endpoint):
    endpoint.logprobs = {"A": math.log(0.7), "B": math.log(0.3)}
    (found,) = judging_of(judges.EndpointJudge(f"http://127.0.0.1:{endpoint.server_port}/v1", "m"), [judges.Request(("1",), "pair", ())])
    assert found[1] == pytest.approx(0.3) and endpoint.bodies[0]["top_logprobs"] == 20


@pytest.mark.parametrize("url", ["http://", "http://localhost:99999/v1", "http://exa mple/v1", "http://127.0.0.1:9/v1"])
def test_where_nothing_answers_is_said_before_answers_are_made(url, prompts, tiny_llama, chats, tmp_path, capsys, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as stop:
        chat_eval.main(["--benchmark", prompts, "--model", tiny_llama, tiny_llama + "/", *chats, "--judge", "endpoint",
                        "--judge_model", "m", "--judge_url", url])  # fmt: skip
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and url in error and not (tmp_path / "answers").exists()


def test_mt_bench_ratings_by_an_endpoint(endpoint, tiny_llama, chats, tmp_path):
    write_jsonl(tmp_path / "question.jsonl", [{"question_id": i, "category": c, "turns": [f"the film {i}", "and the cast ?"]}
                                              for i, c in ((81, "writing"), (111, "math"))])  # fmt: skip
    write_jsonl(tmp_path / "judge_prompts.jsonl", [
        {"name": name, "system_prompt": "be fair", "prompt_template": "{question} {answer} {question_1} {answer_1} {question_2} {answer_2}"}
        for name in ("single-v1", "single-v1-multi-turn")])  # fmt: skip
    endpoint.content = ["Fine. Rating: [[8]]", "no number", "[[3]]"]  # then a call that fails
    endpoint.faults = [None, None, None, 500]
    command = ["--benchmark", "mt_bench", "--data", str(tmp_path), "--model", tiny_llama, *chats, "--judge", "endpoint",
               "--judge_model", "m", "--judge_url", f"http://127.0.0.1:{endpoint.server_port}/v1", "--judge_workers", "1",
               "--judge_retries", "0"]  # fmt: skip
    chat_eval.main(command)
    (row,) = rows(tmp_path)
    graded = judging.read_judgements(Path(row["run_dir"], "model_judgment/m_single.jsonl"))[1]
    assert [(g["question_id"], g["turn"], g["score"], g["judge"][1]) for g in graded] == [
        (81, 1, 8.0, "single-v1"), (81, 2, -1, "single-v1-multi-turn"), (111, 1, 3.0, "single-v1")]  # fmt: skip
    assert float(row["judge_score"]) == float(row["score"]) == 5.5 and row["metric"] == "judge_score"
    assert float(row["invalid_rate"]) == pytest.approx(1 / 3, abs=1e-5) and "1 judgements failed" in row["note"]
    found = json.loads(Path(row["run_dir"], "mt_bench.json").read_text())
    assert found["turns"] == {"1": 5.5} and found["categories"] == {"math": 3.0, "writing": 8.0} and found["n_unreadable"] == 1
    endpoint.content = ["[[5]]"]
    chat_eval.main(command)  # asks for the one that failed
    assert len(endpoint.asked) == 5 and float(rows(tmp_path)[1]["judge_score"]) == pytest.approx(16 / 3, abs=1e-4)


def test_a_run_killed_while_it_is_judged_judges_nothing_twice(endpoint, prompts, tiny_llama, adapter, chats, tmp_path):
    endpoint.faults = [None, None, None, "stuck"]
    flags = judged_by(endpoint, prompts, tiny_llama, adapter, chats, "--judge_workers", "1", "--judge_timeout", "60", "--latency_runs", "0")
    process = subprocess.Popen([sys.executable, "chat_eval.py", *flags], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(endpoint.asked) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = records(tmp_path, "judgements.jsonl")
    assert len(before) == 3
    chat_eval.main(flags)
    after = records(tmp_path, "judgements.jsonl")
    assert after[:3] == before and len(after) == 8 == len({record["key"] for record in after})
    counts = collections.Counter(text for text, _ in endpoint.asked)
    assert sorted(counts.values()) == [1] * 7 + [2]  # the one that had no answer


def test_judgements_of_any_text_can_be_written_and_read_again(tmp_path):
    file = tmp_path / "judgements.jsonl"
    instructions.append_records(file, [{"key": "a", "text": "B \ud83d é"}])
    file.write_bytes(file.read_bytes() + '{"key": "b", "text": "é'.encode()[:-1])  # a kill within a character
    instructions.append_records(file, [{"key": "c"}])
    assert [record["key"] for record in instructions.read_records(file)] == ["a", "c"]


def test_two_systems_never_have_one_name():
    import answering

    found = answering.names_of([("org1/m", None), ("org2/m", None), ("org1/m", "runs/x/adapter"), ("b/reference", None)])
    assert found == {("org1/m", None): "org1_m", ("org2/m", None): "org2_m", ("org1/m", "runs/x/adapter"): "m+x",
                     ("b/reference", None): "b_reference_"}  # fmt: skip


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def served(tiny_llama):
    """`transformers serve` of the tiny model: a real OpenAI-compatible server."""
    pytest.importorskip("fastapi")
    port = free_port()
    command = [str(Path(sys.executable).parent / "transformers"), "serve", tiny_llama, "--device", "cpu", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as trial:
            if trial.connect_ex(("localhost", port)) == 0:
                break
        time.sleep(0.3)
    yield f"http://localhost:{port}/v1"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_real_server_judges(served, prompts, tiny_llama, adapter, chats, tmp_path):
    chat_eval.main(["--benchmark", prompts, "--model", tiny_llama, "--adapter", adapter, *chats, "--num_samples", "2",
                    "--judge", "endpoint", "--judge_model", tiny_llama, "--judge_url", served])  # fmt: skip
    found = records(tmp_path, "judgements.jsonl")
    assert len(found) == 4 and all(record["tokens"][0] > 0 and record["text"] for record in found)
    unread = sum(record["value"] is None for record in found)
    for record in found:
        assert record["value"] == judges.verdict_of(judges.Request(("1",), "pair", ()), record["text"])
    assert unread and "unreadable" in rows(tmp_path)[1]["note"]  # a model of random weights says neither A nor B


# -------------------------------------------------------------------------------------------------------------------- chat


class Terminal:
    """A script behind a pseudo-terminal."""

    def __init__(self, command):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.execv(sys.executable, [sys.executable, *command])
        self.text = b""

    def say(self, line, wanted, seconds=120):
        """Type a line (bytes, None for nothing) and wait for what is wanted; what came meanwhile."""
        start, deadline = len(self.text), time.monotonic() + seconds
        if line is not None:
            os.write(self.fd, line)
        while wanted not in self.text[start:]:
            assert time.monotonic() < deadline, self.text[start:]
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self.fd, 65536)
                except OSError:
                    assert wanted in self.text[start:], self.text[start:]
        return self.text[start:].decode(errors="replace")


def test_a_chat_at_a_terminal(tiny_llama, adapter, tmp_path):
    terminal = Terminal(["chat_eval.py", "--model", tiny_llama, "--adapter", adapter, "--max_new_tokens", "40", "--device", "cpu"])
    terminal.say(None, b"> ")
    assert "adapter on" in terminal.say(b"the film was good\n", b"tokens/s, adapter on]")
    terminal.say(b"and the cast ?\n", b"tokens/s, adapter on]")
    terminal.say(b"/adapter off\n", b"the base model answers")
    terminal.say(b"/retry\n", b"tokens/s, adapter off]")
    terminal.say(b"/adapter maybe\n", b"that did not work")
    terminal.say(f"/save {tmp_path / 'saved.json'}\n".encode(), b"saved in")
    saved = json.loads((tmp_path / "saved.json").read_text())
    assert saved["turns"] == ["the film was good", "and the cast ?"]
    assert [each["adapter"] for each in saved["all"]] == [True, True, False] and saved["all"][1]["answer"] != saved["all"][2]["answer"]
    terminal.say(b"/system be brief\n", b"system text: be brief")
    terminal.say(b"/reset\n", b"forgotten")
    terminal.say(b"/quit\n", b"/quit")
    assert os.waitpid(terminal.pid, 0)[1] == 0


def test_an_interrupt_during_an_answer_returns_to_the_prompt(tiny_gpt2, tmp_path):
    terminal = Terminal(["chat_eval.py", "--model", tiny_gpt2, "--max_new_tokens", "450", "--device", "cpu", "--temperature", "1"])
    terminal.say(None, b"> ")
    for _ in range(20):  # the tiny model may have answered before the interrupt arrives
        os.write(terminal.fd, b"tell me a story\n")
        terminal.say(None, b"story")
        time.sleep(0.1)
        if "interrupted" in terminal.say(b"\x03", b")"):
            break
    else:
        pytest.fail("no answer was interrupted")
    assert "tokens" in terminal.say(b"and now\n", b"tokens/s]")
    terminal.say(b"/save " + str(tmp_path / "s.json").encode() + b"\n", b"saved in")
    assert "tell me a story" not in json.loads((tmp_path / "s.json").read_text())["turns"][-1]
    terminal.say(b"/quit\n", b"/quit")


def test_the_chats_cache_changes_no_answer(tiny_llama, adapter, capsys):
    import chat
    import inference
    import models

    model, tokenizer = models.load_model(tiny_llama, adapter=adapter), utils.load_tokenizer(tiny_llama)
    talk = chat.Chat(model, tokenizer, True, 12, 0.0)
    for turn, on in (("the film was good", True), ("and the cast ?", True), ("the plot is dull", False), ("why ?", False), ("so", True)):
        if on != talk.adapter:
            talk.set_adapter("on" if on else "off")
        text = instructions.render([*talk.turns, turn], talk.answers, tokenizer)
        talk.say(turn)
        if on:
            plain = inference.generate(model, tokenizer, [text], 12, 1, add_special_tokens=False)
        else:
            with model.disable_adapter():
                plain = inference.generate(model, tokenizer, [text], 12, 1, add_special_tokens=False)
        assert talk.answers[-1] == plain.texts[0]
        assert len(talk.prefix.ids) > 5
    capsys.readouterr()


def test_a_full_context_forgets_the_oldest_turn(tiny_llama, capsys):
    import chat
    import models

    talk = chat.Chat(models.load_model(tiny_llama), utils.load_tokenizer(tiny_llama), True, 700, 0.0)
    for i in range(3):
        talk.say(f"the film was good {i} " * 20)
    assert "oldest turns are forgotten" in capsys.readouterr().out and talk.turns[-1].startswith("the film was good 2")


@pytest.mark.real
def test_the_real_model_answers_and_judges(tmp_path, chats):
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "What is the capital of France?", "output": "The capital of France is Paris."},
                                       {"prompt": "Name a colour of the rainbow.", "output": "Red."}])  # fmt: skip
    model = str(ROOT / "assets/models/SmolLM2-135M-Instruct")
    chat_eval.main(["--benchmark", str(tmp_path / "p.jsonl"), "--model", model, *chats, "--max_new_tokens", "12", "--latency_runs", "0",
                    "--judge", "local", "--judge_model", model])  # fmt: skip
    (row,) = rows(tmp_path)
    assert "Paris" in records(tmp_path, "answers.jsonl")[0]["turns"][0] and 0 < float(row["win_rate"]) < 1 and float(row["perplexity"]) < 20
