import dataclasses
from types import SimpleNamespace

import pytest
from helpers import loaded, predictions, write_jsonl

import finetune
import prompt_eval
import utils
from harness.data import numbers, tasks
from harness.evaluation import evaluate, prompting, reading
from harness.results import run_scores, store


def test_free_answers_are_read_or_counted_as_invalid():
    words = ("negative", "positive", "very positive")
    assert reading.read_label("The sentiment is NEGATIVE.", words) == 0
    assert reading.read_label("positively bad", words) is None
    assert reading.read_label("negative or positive?", words) is None
    assert reading.read_label("", words) is None
    assert reading.read_label("It is Sci/Tech", ("world", "Sci/Tech")) == 1


def test_a_label_within_another_and_numbers_are_read_whole():
    words = ("negative", "positive", "very positive")
    assert [reading.read_label(f"It is {word}.", words) for word in words] == [0, 1, 2]
    words = ("entailment", "not_entailment")
    assert reading.read_label("not entailment", words) == 1 and reading.read_label("Entailment", words) == 0
    numbers = ("-1", "0", "1", "10")
    assert [reading.read_label(text, numbers) for text in (*numbers, "1.", "1.5", "0-1")] == [0, 1, 2, 3, 2, None, None]
    assert reading.read_label("-1", ("0", "1")) is None
    assert [reading.read_label(text, ("C", "C++")) for text in ("It is C.", "c++")] == [0, 1]


def test_labels_may_be_tags():
    words = ("<think>", "<analysis>")
    assert [reading.read_label(f"It is {word}.", words) for word in words] == [0, 1]


def test_an_empty_label_word_is_in_no_answer():
    assert [reading.read_label(text, ("", "yes")) for text in ("yes", "", "no")] == [1, None, None]
    assert reading.read_label("yes", (" ", "")) is None


@pytest.mark.parametrize(
    "text, number",
    [
        ("She has 3 + 4 = 7 apples.", "7"),
        ("#### 1,234", "1234"),
        ("It costs $1,000.00 in all", "1000"),
        ("-5", "-5"),
        ("from 10-5", "5"),
        ("about 0.50", "0.5"),
        ("minus \u22122", "-2"),
        ("1,2,3", "3"),
        ("the answer is 18.", "18"),
        ("10% of them", "10"),
        ("room B12", None),
        ("none", None),
        ("", None),
        ("-0", "0"),
        ("The answer is .5", "0.5"),
        ("$.75", "0.75"),
        ("-.5", "-0.5"),
        ("version 1.2.3", "1.2"),
        ("1e3 or 20", "20"),
    ],
)
def test_the_last_number_of_a_text(text, number):
    assert numbers.last_number(text) == number


def test_the_conclusion_stands_behind_the_reasons():
    assert reading.conclusion("First 2.\nThen 3. The answer is 5. Question: what") == "5. Question: what"
    assert reading.conclusion("2 + 3 = 5\n#### 5") == "5"
    assert reading.conclusion("The answer is no, wait. The answer is: yes.\nNext") == "yes"
    assert reading.conclusion("some reasons\nParis.") == "Paris"
    assert reading.conclusion(" \n") == ""


def test_most_votes_win_and_the_first_of_those_that_tie():
    assert reading.vote([None, 2, 1, 1, None, None]) == 1
    assert reading.vote(["a", "b"]) == "a" and reading.vote([None, None]) is None


def test_labels_numbers_and_texts_are_voted_on_by_what_they_mean(sentiment, questions):
    task = tasks.load_task(sentiment)
    assert reading.answers(task, ["positive", "negative", "It is negative", "?", "", "none"], samples=3) == [0, None]
    reasons = ["Not positive. The answer is negative.", "The answer is unclear.\nMaybe positive"]
    assert reading.answers(task, reasons, reasons=True) == [0, 1]
    task = tasks.load_task(questions)
    assert reading.answers(task, ["The Rome", "paris", "rome."], samples=3) == ["The Rome"]
    task = dataclasses.replace(task, answer_format="number")
    assert reading.answers(task, ["it is 7.0", "8", "7", "none", "", "x"], samples=3) == ["7", ""]


@pytest.fixture
def sums(tmp_path):
    rows = [
        {"question": f"What is {i} + {i}?", "answer": f"{i} + {i} = {2 * i}\n#### {2 * i:,}"} for i in range(990, 1014)
    ]
    write_jsonl(tmp_path / "train.jsonl", rows[:12])
    write_jsonl(tmp_path / "test.jsonl", rows[12:])
    return str(tmp_path)


def test_numbers_are_compared_as_numbers(sums, tiny_llama):
    task = tasks.load_task(sums, answer_format="number")
    answers = [f"I say {ex.references[0].split()[-1].replace(',', '')}.0" for ex in task.evaluation]
    answers[0] = "2"
    found = evaluate.answered(task, answers, None, [])
    n = len(task.evaluation)
    assert found.scores["score"] == found.scores["accuracy"] == (n - 1) / n and found.scores["metric"] == "accuracy"
    assert [each["exact_match"] for each in found.each] == [0.0] + [1.0] * (n - 1)
    # as text a right answer in a sentence has next to no score
    as_text = evaluate.answered(dataclasses.replace(task, answer_format="text"), answers, None, [])
    assert as_text.scores["exact_match"] == 0.0


def test_answers_with_reasons_and_votes(sums, tiny_llama, out, tmp_path):
    flags = ["--model", tiny_llama, "--dataset", sums, "--answer_format", "number", *out, "--max_new_tokens", "6"]
    prompt_eval.main([*flags, "--cot"])
    prompt_eval.main([*flags, "--cot", "--samples", "3", "--k_shots", "2"])
    first, second = store.read_results(tmp_path / "results.csv")
    assert (first["variant"], second["variant"]) == ("0_shot_cot", "2_shot_cot_3_samples")
    assert first["metric"] == "accuracy" and float(second["latency_ms_p50"]) > 0 and second["ttft_ms"] == ""
    assert all(len(p["generated"]) == 3 for p in predictions(second))
    assert int(second["generated_tokens"]) > int(first["generated_tokens"])
    for row in (first, second):
        scores = run_scores.read(row["run_dir"]).scores.values()
        assert sum(scores) / len(scores) == pytest.approx(float(row["score"]))


def test_three_samples_of_a_label(sentiment, tiny_llama, out, tmp_path):
    flags = ["--model", tiny_llama, "--dataset", sentiment, "--max_eval_samples", "8", *out, "--samples", "3"]
    prompt_eval.main(flags)
    prompt_eval.main(flags)
    rows = store.read_results(tmp_path / "results.csv")
    assert rows[0]["variant"] == "0_shot_3_samples"
    assert [p["generated"] for p in predictions(rows[0])] == [p["generated"] for p in predictions(rows[1])]
    task = tasks.load_task(sentiment, max_eval_samples=8)
    for p in predictions(rows[0]):
        assert p["prediction_index"] == reading.answers(task, p["generated"], samples=3)[0]


def test_a_solution_ends_where_the_next_question_would_begin(sums, tiny_llama):
    model, tokenizer = loaded(tiny_llama)
    task = tasks.load_task(sums, answer_format="number")
    assert prompting.task_stop(model, tokenizer, task, False) == ("\n\nQuestion:",)
    as_text = dataclasses.replace(task, answer_format="text")
    assert prompting.task_stop(model, tokenizer, as_text, False) == ("\n",)
    assert prompting.task_stop(model, tokenizer, as_text, False, reasons=True) == ("\n\nQuestion:",)
    own = dataclasses.replace(task, template="{text} =")
    assert prompting.task_stop(model, tokenizer, own, False) == ("\n\n\n",)
    assert prompting.answer_length(SimpleNamespace(max_new_tokens=None), task) == 256


def test_a_prompt_for_reasons(sentiment, sums, tiny_llama):
    model, tokenizer = loaded(tiny_llama)
    from harness.data.prompts import render, with_reasons

    task = tasks.load_task(sums)
    prompt, _ = render(with_reasons(task, False), task.evaluation[0], task.train[:1])
    assert prompt.endswith("Answer: Let's think step by step.") and "####" in prompt
    chat, _ = render(with_reasons(task, True), task.evaluation[0], (), tokenizer)
    assert "Think step by step" in chat and "Let's think" not in chat


@pytest.mark.parametrize(
    "flags, said",
    [
        ("--cot --scoring likelihood", "--cot reads generated answers"),
        ("--samples 3 --calibrate batch", "--samples reads generated answers"),
        ("--cot --label_budget 20", "--cot: a prompt is chosen by likelihoods"),
    ],
)
def test_flags_of_reasons_that_do_not_fit(flags, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        prompt_eval.parse_args(flags.split())
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_references_without_a_number_are_refused(questions, sentiment, tiny_llama, out, capsys):
    task = tasks.load_task(questions, answer_format="number")
    with pytest.raises(utils.UserError, match="has no number"):
        numbers.reference_numbers(task)
    with pytest.raises(SystemExit) as stopped:
        prompt_eval.main(["--model", tiny_llama, "--dataset", sentiment, "--answer_format", "number", *out])
    assert stopped.value.code == 2 and "is for qa data" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:  # before anything is loaded
        finetune.main(["--model", tiny_llama, "--dataset", questions, "--answer_format", "number", *out])
    assert stopped.value.code == 2 and "has no number" in capsys.readouterr().err
