import json
from pathlib import Path

import pytest
from helpers import loaded

import context_distill
import prompt_eval
from harness.data import tasks
from harness.data.examples import draw
from harness.data.prompts import render
from harness.models import scoring
from harness.results import store
from harness.training import distillation


@pytest.mark.slow
def test_the_student_moves_towards_its_teacher(sentiment, tiny_llama, tmp_path, out):
    """Asked once or in every step, the same targets and so the same training; the loss on unseen inputs falls."""
    flags = [
        "--model",
        tiny_llama,
        "--dataset",
        sentiment,
        "--k_shots",
        "6",
        "--unlabelled",
        "60",
        "--epochs",
        "4",
        "--batch_size",
        "8",
        "--learning_rate",
        "3e-3",
        "--calibrate",
        "batch",
        *out,
    ]
    context_distill.main(flags)
    context_distill.main([*flags, "--targets", "online"])
    once, online = store.read_results(tmp_path / "results.csv")
    losses = []
    for row in (once, online):
        history = json.loads((Path(row["run_dir"]) / "training_history.json").read_text())
        losses.append([entry["eval_loss"] for entry in history if "eval_loss" in entry])
    assert losses[0][-1] < 0.7 * losses[0][0] and losses[0] == pytest.approx(losses[1], rel=1e-3)
    task = tasks.load_task(sentiment)
    demonstrations = draw(task.train, 6, 0)
    others = [ex for ex in task.train if ex not in demonstrations]
    inputs = draw(others, 60, 1, balanced=False)  # the teacher is calibrated on the unlabelled inputs
    (tmp_path / "inputs.txt").write_text("".join(f"{ex.text}\n" for ex in inputs))
    prior = ["--calibrate", "batch", "--calibrate_on", "unlabelled", str(tmp_path / "inputs.txt")]
    prompt_eval.main([*flags[:6], *prior, *out, "--results", str(tmp_path / "teacher.csv")])
    (teacher,) = store.read_results(tmp_path / "teacher.csv")
    compared = json.loads((Path(once["run_dir"]) / "comparison.json").read_text())
    assert compared["teacher"]["score"] == pytest.approx(float(teacher["score"]))
    assert (
        int(once["prompt_tokens"]) < int(teacher["prompt_tokens"]) and once["k_shots"] == "0" and once["n_train"] == "6"
    )
    kept = [*flags[:4], "--adapter", f"{once['run_dir']}/adapter", *out, "--results", str(tmp_path / "again.csv")]
    prompt_eval.main(kept)
    (again,) = store.read_results(tmp_path / "again.csv")
    assert again["score"] == once["score"] and again["calibration_error"] == once["calibration_error"]


def test_label_targets_of_several_tokens_are_those_of_scoring(sentiment, tiny_llama):
    """The student's scores in training are the log-probabilities that evaluation gives: the loss at its own answers is
    0.
    """
    model, tokenizer = loaded(tiny_llama)
    task = tasks.load_task(sentiment, label_words=["not very good", "lovely"])
    examples = task.evaluation[:7]
    prompts, words = [render(task, ex)[0] for ex in examples], [" not very good", " lovely"]
    own = scoring.score_labels(model, tokenizer, prompts, words).total
    items = distillation.label_rows(model, tokenizer, task, examples, False)
    for item, target in zip(items, own.tolist()):
        item["target"] = target
    batch = distillation.LabelBatches(tokenizer.pad_token_id)(items)
    assert distillation.label_loss(2.0)(model, batch).item() == pytest.approx(0, abs=1e-6)
    batch["labels"][:, 0] += 1.0
    assert distillation.label_loss(2.0)(model, batch).item() > 1e-3


@pytest.mark.parametrize("targets", ["precomputed", "online"])
def test_answers_are_distilled_too(targets, questions, tiny_llama, out, only_row):
    context_distill.main(
        [
            "--model",
            tiny_llama,
            "--dataset",
            questions,
            "--k_shots",
            "2",
            "--epochs",
            "6",
            "--batch_size",
            "4",
            "--learning_rate",
            "3e-3",
            "--max_new_tokens",
            "4",
            "--targets",
            targets,
            *out,
        ]
    )
    row = only_row()
    history = json.loads((Path(row["run_dir"]) / "training_history.json").read_text())
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert row["metric"] == "token_f1" and min(losses) < losses[0]
