"""What training broke: the same texts and questions before and after."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
from helpers import loaded, write_jsonl

import context_distill
import finetune
import peft_finetune
from harness.evaluation import forgetting
from harness.results import store


@pytest.fixture
def general(tmp_path, monkeypatch, choices, sentiment):
    """Texts and tasks that stand for the demo's."""
    write_jsonl(
        tmp_path / "corpus.jsonl", [{"text": f"the film was {word}. it is a city"} for word in ("good", "dull")]
    )
    monkeypatch.setattr(forgetting, "TEXTS", str(tmp_path / "corpus.jsonl"))
    monkeypatch.setattr(forgetting, "TASKS", (sentiment, choices))


def measured(notes, dataset="elsewhere", wanted=True):
    run = SimpleNamespace(row={}, note=notes.append)
    return forgetting.Forgetting(argparse.Namespace(forgetting=wanted, dataset=dataset), run), run


def test_an_untouched_adapter_has_forgotten_exactly_nothing(general, tiny_llama):
    model, tokenizer = loaded(tiny_llama)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "up_proj"]))
    adapted.eval()
    kept, run = measured([])
    kept.measure_both(adapted, tokenizer)
    kept.record(run)
    assert run.row["forgetting"] == 0.0 == run.row["retained_change"] and run.row["general_bits_per_byte"] > 0
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data += 0.5
    kept.measure(adapted, tokenizer)
    kept.record(run)
    assert run.row["forgetting"] != 0.0


def test_the_task_is_not_the_one_that_was_trained_on(general, sentiment, choices, monkeypatch):
    assert measured([], sentiment)[0].task.name == choices and measured([], choices)[0].task.name == sentiment
    assert measured([], f"{sentiment}/../{Path(sentiment).name}/")[0].task.name == choices, "the same folder"
    for trained, asked in ((sentiment, choices), (choices, sentiment)):  # the data set is the flag's default then
        files = argparse.Namespace(forgetting=True, dataset=sentiment, train_file=f"{trained}/train.jsonl")
        assert forgetting.Forgetting(files, SimpleNamespace(row={}, note=print)).task.name == asked
    assert measured([], wanted=False)[0].task is None
    monkeypatch.setattr(forgetting, "TEXTS", "nowhere/corpus.jsonl")
    notes = []
    kept, run = measured(notes)
    kept.record(run)
    assert "forgetting not measured" in notes[0] and run.row == {}


@pytest.mark.parametrize("script", [finetune, peft_finetune])
def test_rows_of_language_models_say_what_they_forgot(script, general, questions, tiny_llama, out, only_row):
    flags = ["--model", tiny_llama, "--dataset", questions, "--max_steps", "8", "--learning_rate", "2e-2", *out]
    script.main([*flags, "--max_eval_samples", "4", "--max_new_tokens", "2"])
    row = only_row()
    assert abs(float(row["forgetting"])) > 1e-3 and row["retained_score"] and row["retained_change"]
    assert "zero-shot examples of" in row["note"]


def test_a_distilled_student_says_it_too_and_a_head_does_not(general, sentiment, tiny_llama, tiny_bert, tmp_path, out):
    flags = ["--dataset", sentiment, "--unlabelled", "40", "--max_steps", "8", "--max_eval_samples", "10", *out]
    context_distill.main(["--model", tiny_llama, "--k_shots", "2", "--learning_rate", "1e-2", *flags])
    context_distill.main(["--teacher", tiny_llama, "--student", tiny_bert, *flags])
    first, second = store.read_results(tmp_path / "results.csv")
    assert float(first["forgetting"]) != 0 and first["general_bits_per_byte"] and not second["general_bits_per_byte"]
    compared = json.loads((Path(first["run_dir"]) / "row.json").read_text())
    assert compared["forgetting"] == pytest.approx(float(first["forgetting"]), rel=1e-4)
