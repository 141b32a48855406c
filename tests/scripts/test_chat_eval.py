import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chat_helpers import needs_alpaca, records_in, rows_in
from helpers import ROOT, SHARED, write_jsonl

import chat_eval
import utils
from harness.chat import benchmarks, win_rates
from harness.models import generation, loading


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
    row = {"preference": 1.5, "annotator": "e"}
    row.update(output_1="a", output_2="b", generator_1="c", generator_2="d")
    for rows_of_it, wanted in (
        ([row] * 30, "which of AlpacaEval's 805 instructions"),
        ([{**row, "annotator": None}] * 30, "no annotator"),
    ):
        (tmp_path / "a.json").write_text(json.dumps(rows_of_it))
        chat_eval.main(["--score", str(tmp_path / "a.json")])
        assert wanted in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "kind", "wanted"),
    [
        ('[{"preference": 1.25, "output_2": "ab"}]', "alpaca_eval", None),
        ('[{"prefers": 1}]', None, "neither AlpacaEval's annotations"),
        ("[]", None, "it has nothing"),
        ("{", None, "cannot be read as json"),
    ],
)
def test_files_of_judgements_are_known_by_their_columns(tmp_path, text, kind, wanted, capsys):
    path = tmp_path / "file.json"
    path.write_text(text)
    if kind:
        assert win_rates.read_judgements(path)[0] == kind
    else:
        with pytest.raises(SystemExit) as stop:
            chat_eval.main(["--score", str(path)])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and wanted in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("a.jsonl", '{"text_of_mine": "x"}\n', "no prompt; one of the columns"),
        ("a.json", "[]", "holds no prompts"),
        ("a.jsonl", '{"question_id": 1, "turns": "one"}\n', "a list of turns"),
        ("a.xml", "x", "unknown file type"),
        ("a.jsonl", '{"id": 1, "prompt": "x"}\n{"id": 1, "prompt": "y"}\n', "1 questions have an id that another"),
        ("a.jsonl", '{"prompt": \n', "cannot be read as jsonl"),
        ("a.jsonl", '{"question_id": 1, "turns": ["a"], "reference": [1, null]}\n', "not text that can be encoded"),
        ("a.jsonl", '{"question_id": 1, "turns": ["a"], "reference": 5}\n', "not as FastChat writes them"),
        (
            "a.jsonl",
            '{"prompt": "x", "instruction_id_list": ["keywords:existence"], "kwargs": [{}]}\n',
            "missing a required argument",
        ),
        (
            "a.jsonl",
            '{"prompt": "x", "instruction_id_list": ["punctuation:no_comma"], "kwargs": []}\n',
            "must be lists of the same length",
        ),
        (
            "a.csv",
            "prompt,instruction_id_list,kwargs\n"
            'x,"[""keywords:frequency""]","[{""keyword"": ""a"", ""frequency"": 1, ""relation"": 2}]"',
            "relation has a wrong value",
        ),
    ],
)
def test_files_that_hold_no_prompts_are_one_line(tmp_path, capsys, name, text, wanted, tiny_llama):
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as stop:
        chat_eval.main(
            ["--benchmark", str(tmp_path / name), "--model", tiny_llama, "--answers_dir", str(tmp_path / "answers")]
        )
    error = capsys.readouterr().err
    assert stop.value.code == 2 and wanted in error and error.count("\n") == 1 and not (tmp_path / "answers").exists()


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("--mode evaluate", "needs --benchmark"),
        ("--benchmark mt_bench --mode batch", "belong together"),
        ("--prompts p --data d", "--data belongs"),
        ("--model a b --adapter c", "one --model"),
        ("--benchmark x --judge local", "needs --judge_model"),
        ("--benchmark x --judge_model m", "need --judge"),
        ("--benchmark x --judge endpoint --judge_model m", "--judge_url belong together"),
        ("--benchmark x --judge endpoint --judge_model m --judge_url localhost", "begins with http"),
        ("--benchmark x --judge endpoint --judge_model m --judge_url http://x --max_cost 1", "--judge_prices IN"),
        ("--judge local --judge_model m", "belongs to --benchmark"),
        ("--benchmark x --output y", "needs --mode batch"),
        ("--model a a", "named twice"),
        ("--mode interactive --model a b", "talks to one model"),
        ("--benchmark x --score y", "or else --score"),
        ("--benchmark x --one_order", "need --judge"),
        ("--benchmark x --judge_prices 1 1", "belong to --judge endpoint"),
        ("--benchmark x --judge endpoint --judge_model m --judge_url http://x --judge_key NO", "no such variable"),
        ("--prompts x --output no/such/file", "a folder that is there"),
        ("--benchmark x --judge local --judge_model m --judge_prompt no.txt", "cannot be read"),
        (f"--benchmark x --judge local --judge_model m --judge_prompt {ROOT}/Makefile", "has no {question}"),
        ("--benchmark no/such/file.jsonl", "no file of prompts"),
        ("--score no.json", "no such file"),
    ],
)
def test_wrong_flags_are_one_line(flags, wanted, capsys, tiny_llama):
    with pytest.raises(SystemExit) as stop:
        chat_eval.main(flags.split() + ([] if "--model" in flags.split() else ["--model", tiny_llama]))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and wanted in error and error.count("\n") == 1


def test_base_and_tuned_side_by_side(prompts, tiny_llama, adapter, chats, tmp_path, capsys):
    chat_eval.main(["--benchmark", prompts, "--model", tiny_llama, "--adapter", adapter, *chats])
    base, tuned = rows_in(tmp_path)
    for row in (base, tuned):
        assert (
            row["strategy"] == "chat" and row["n_eval"] == "4" and row["metric"] == "rouge_l" and row["status"] == "ok"
        )
        for column in (
            "rouge_l",
            "token_f1",
            "reference_perplexity",
            "answer_chars",
            "repetition_rate",
            "refusal_rate",
            "tokens_per_s",
            "latency_ms_p50",
            "peak_rss_gb",
            "generated_tokens",
            "predicted_gb",
        ):
            assert float(row[column]) >= 0, column
    assert (base["variant"], tuned["variant"]) == ("prompts", "prompts_adapter") and base["eval_id"] == tuned["eval_id"]
    assert base["reference_perplexity"] != tuned["reference_perplexity"]
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
    asked = [
        ["punctuation:no_comma"],
        ["punctuation:no_comma", "language:response_language"],
        ["change_case:english_lowercase"],
    ]
    write_jsonl(
        tmp_path / "ifeval.jsonl",
        [
            {
                "key": i,
                "prompt": f"the film {i}",
                "instruction_id_list": names,
                "kwargs": [
                    {"language": "hi"} if name.startswith("language") else {"num_words": None} for name in names
                ],
            }
            for i, names in enumerate(asked)
        ],
    )
    chat_eval.main(["--benchmark", str(tmp_path / "ifeval.jsonl"), "--model", tiny_llama, *chats])
    (row,) = rows_in(tmp_path)
    said = [json.loads(line) for line in Path(row["run_dir"], "ifeval_responses.jsonl").read_text().splitlines()]
    followed = [float("," not in said[0]["response"]), float(said[2]["response"].islower())]
    assert float(row["instruction_following"]) == float(row["score"]) == statistics.fmean(followed)
    assert "1 of IFEval's instructions cannot be checked" in row["note"] and "of 2 of 3 questions" in row["note"]
    assert [line["prompt"] for line in said] == ["the film 0", "the film 1", "the film 2"]


def test_answers_are_those_of_one_prompt_alone_and_turns_follow_the_answers(tiny_llama, chats, tmp_path):
    asked = [["the film was good", "and the cast ?"], ["what is the city"], ["a very dull joke", "why ?"]]
    write_jsonl(
        tmp_path / "turns.jsonl",
        [{"question_id": i, "category": "math", "turns": turns} for i, turns in enumerate(asked)],
    )
    chat_eval.main(["--benchmark", str(tmp_path / "turns.jsonl"), "--model", tiny_llama, *chats])
    model, tokenizer = loading.load_model(tiny_llama), utils.load_tokenizer(tiny_llama)
    (row,) = rows_in(tmp_path)
    lines = Path(row["run_dir"], "model_answer").glob("*.jsonl")
    found = [json.loads(line) for line in next(lines).read_text().splitlines()]
    assert [set(line) for line in found] == [{"question_id", "answer_id", "model_id", "choices", "tstamp"}] * 3
    for turns, line in zip(asked, found):
        said = []
        for i, _ in enumerate(turns):
            messages = [
                {"role": role, "content": text}
                for pair in zip(turns[:i], said)
                for role, text in zip(("user", "assistant"), pair)
            ]
            messages.append({"role": "user", "content": turns[i]})
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            said.append(generation.generate(model, tokenizer, [prompt], 8, 1, add_special_tokens=False).texts[0])
        assert line["choices"][0]["turns"] == said


@pytest.mark.slow
def test_a_killed_run_goes_on_and_repeats_nothing(tiny_llama, chats, tmp_path, capsys):
    write_jsonl(tmp_path / "many.jsonl", [{"prompt": f"the film {i}"} for i in range(60)])
    flags = ["--benchmark", str(tmp_path / "many.jsonl"), "--model", tiny_llama, *chats, "--batch_size", "1"]
    flags += ["--temperature", "0.8", "--max_new_tokens", "20", "--latency_runs", "0"]
    command = [sys.executable, "chat_eval.py", *flags]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(records_in(tmp_path, "answers.jsonl")) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (file,) = (tmp_path / "answers").glob("*/answers.jsonl")
    before = file.read_text()
    assert 5 <= before.count("\n") < 60 and not (tmp_path / "results.csv").exists()
    file.write_text(before + '{"key": "half a li')  # as a kill within a write leaves it
    chat_eval.main(flags)
    assert f"{before.count(chr(10))} of 60 questions are answered" in capsys.readouterr().out
    after = file.read_text()
    keys = [json.loads(line)["key"] for line in after.splitlines()]
    assert after.startswith(before) and len(keys) == 60 == len(set(keys))
    assert len(rows_in(tmp_path)) == 1
    # the sampled answers are those of a run that nothing cut off
    chat_eval.main([*flags, "--answers_dir", str(tmp_path / "again")])
    (other,) = (tmp_path / "again").glob("*/answers.jsonl")
    cut, whole = ([json.loads(line)["turns"] for line in text.splitlines()] for text in (after, other.read_text()))
    assert cut == whole


def test_other_settings_have_other_answers(prompts, tiny_llama, adapter, chats, tmp_path):
    for flags in (
        [],
        ["--system", "be good"],
        ["--max_new_tokens", "4"],
        ["--adapter", adapter],
        ["--adapter", adapter, "--no_lora"],
    ):
        chat_eval.main(["--benchmark", prompts, "--model", tiny_llama, *chats, *flags])
    folders = sorted((tmp_path / "answers").iterdir())
    assert len(folders) == 4 and len(rows_in(tmp_path)) == 6  # --no_lora is the first again
    assert all(len((folder / "answers.jsonl").read_text().splitlines()) == 4 for folder in folders)


def test_batch_mode_answers_a_file_of_prompts(tiny_llama, adapter, chats, tmp_path):
    (tmp_path / "p.txt").write_text("the film was good\n\nwhat is the city\n")
    for flags, name in (([], "tuned"), (["--no_lora"], "base")):
        command = ["--mode", "batch", "--prompts", str(tmp_path / "p.txt"), "--model", tiny_llama, "--adapter", adapter]
        chat_eval.main([*command, *flags, "--output", str(tmp_path / name), *chats])
    tuned, base = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in ("tuned", "base")
    )
    assert [line["prompt"] for line in tuned] == ["the film was good", "what is the city"] and len(
        rows_in(tmp_path)
    ) == 2
    assert [line["answer"] for line in tuned] != [line["answer"] for line in base]
    chat_eval.main(["--prompts", str(tmp_path / "p.txt"), "--model", tiny_llama, *chats])
    assert Path(rows_in(tmp_path)[2]["run_dir"], "answers.jsonl").read_text() == (tmp_path / "base").read_text()


def test_a_model_without_a_chat_template_gets_headings(prompts, tiny_gpt2, tiny_t5, chats, tmp_path):
    for model in (tiny_gpt2, tiny_t5):
        chat_eval.main(["--benchmark", prompts, "--model", model, *chats])
    assert [row["status"] for row in rows_in(tmp_path)] == ["ok", "ok"]
    assert (
        benchmarks.render(["a", "b"], ["c"])
        == "### Instruction:\na\n\n### Response:\nc\n\n### Instruction:\nb\n\n### Response:"
    )
