import importlib
from types import SimpleNamespace

import pytest
from helpers import write_jsonl

import prompt_eval
from harness.data import tasks
from harness.evaluation import few_shot


def test_a_head_reads_no_prompt(tiny_classifier, sentiment, out, tmp_path, capsys):
    flags = ["--model", tiny_classifier, "--dataset", sentiment, *out]
    for more in (["--k_shots", "4"], ["--calibrate", "batch"], ["--cot"]):
        with pytest.raises(SystemExit) as stopped:
            prompt_eval.main([*flags, *more])
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and "reads no prompt" in said and more[0] in said
    assert not (tmp_path / "results.csv").exists()


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--calibrate", "batch", "--k_shots", "2"], "--calibrate here is for classification data"),
        (["--label_budget", "4", "--search", "3"], "fewer than 8, all are demonstrations"),
    ],
)
def test_flags_that_would_do_nothing_are_refused_with_the_data(flags, said, questions, tiny_llama, out, capsys):
    with pytest.raises(SystemExit) as stopped:
        prompt_eval.main(["--model", tiny_llama, "--dataset", questions, *flags, *out])
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def calibrated_on(task, tmp_path, where, **options):
    args = SimpleNamespace(
        calibrate="batch", calibrate_on=where, label_budget=None, data_seed=0, text_column=None, text_pair_column=None,
        encoding=None, **options,
    )  # fmt: skip
    notes = []
    run = SimpleNamespace(note=notes.append, use_labels=lambda some: None)
    return few_shot.calibration_inputs(args, run, task, task.train, []), notes


def test_unlabelled_inputs_were_drawn_by_no_label_and_are_not_evaluated(tmp_path):
    rows = [{"text": f"t {i}", "label": "ab"[i % 5 == 0]} for i in range(100)]
    write_jsonl(tmp_path / "d.jsonl", rows)
    task = tasks.load_task(str(tmp_path / "d.jsonl"), max_train_samples=20, max_validation_samples=0)
    assert sum(ex.label for ex in task.train) == 10, "as many of each class"
    inputs, _ = calibrated_on(task, tmp_path, ["unlabelled"])
    assert len(inputs) == 70 and {ex.id for ex in task.train} < {ex.id for ex in inputs}
    write_jsonl(tmp_path / "u.jsonl", [{"text": row["text"]} for row in rows] + [{"text": float("nan")}, {"text": " "}])
    inputs, notes = calibrated_on(task, tmp_path, ["unlabelled", str(tmp_path / "u.jsonl")])
    judged = {ex.text for ex in task.evaluation}
    assert len(inputs) == 70 and not judged & {ex.text for ex in inputs}
    assert "30 inputs of" in notes[0] and "they are evaluated on" in notes[0]


@pytest.mark.parametrize("script", ["prompt_eval", "peft_finetune"])
def test_answers_to_instructions_may_be_as_long_from_a_prompt_as_from_a_trained_model(
    script, tmp_path, tiny_llama, out, only_row
):
    rows = [{"instruction": f"say {i}", "output": f"the film {i} was good"} for i in range(24)]
    write_jsonl(tmp_path / "d.jsonl", rows)
    flags = ["--model", tiny_llama, "--dataset", str(tmp_path / "d.jsonl"), "--max_eval_samples", "2", *out]
    train = ["--max_steps", "1", "--no-forgetting", "--learning_rate", "1e-9"] if script == "peft_finetune" else []
    importlib.import_module(script).main([*flags, *train, "--latency_runs", "0"])
    assert int(float(only_row()["generated_tokens"])) > 2 * 32
