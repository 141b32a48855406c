import json
import weakref
from pathlib import Path

import pytest
from helpers import loaded, without_times

import context_distill
import prompt_eval
from harness.data import tasks
from harness.data.examples import draw
from harness.data.prompts import render
from harness.models import loading, scoring
from harness.results import store
from harness.training import distillation, students


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


def test_an_encoder_learns_from_a_language_model(sentiment, tiny_llama, tiny_bert, tmp_path, out):
    flags = ["--teacher", tiny_llama, "--student", tiny_bert, "--dataset", sentiment, *out, "--unlabelled", "100"]
    context_distill.main([*flags, "--calibrate", "batch", "--max_steps", "60", "--learning_rate", "1e-3"])
    (row,) = store.read_results(tmp_path / "results.csv")
    assert (row["strategy"], row["model"], row["labels_used"]) == ("distillation", tiny_bert, "0")
    assert row["variant"] == "0_shot_batch_calibrated_to_bert" and tiny_llama in row["note"]
    compared = json.loads((Path(row["run_dir"]) / "comparison.json").read_text())
    assert list(compared) == ["teacher", "distilled_student"]
    prior = ["--calibrate", "batch", "--calibrate_on", "unlabelled"]
    prompt_eval.main(
        ["--model", tiny_llama, "--dataset", sentiment, *prior, *out, "--results", str(tmp_path / "t.csv")]
    )
    (teacher,) = store.read_results(tmp_path / "t.csv")
    assert compared["teacher"]["score"] == pytest.approx(float(teacher["score"]), abs=0.15)  # of other inputs' prior
    # the loss on unseen inputs falls: the student tells what the teacher would say
    history = json.loads((Path(row["run_dir"]) / "training_history.json").read_text())
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert len(losses) > 1 and min(losses) < losses[0]
    prompt_eval.main(["--model", f"{row['run_dir']}/model", "--dataset", sentiment, *out])
    again = store.read_results(tmp_path / "results.csv")[1]
    assert again["score"] == row["score"] and again["labels_used"] == "0", "a distilled head has seen no labels"
    assert again["strategy"] == "distillation"


def test_the_teacher_is_gone_before_its_student_is_trained(sentiment, tiny_llama, tiny_bert, out, monkeypatch):
    """Whose memory is measured then."""
    teachers, alive, load, train = [], [], students.load_language_model, context_distill.other_student
    monkeypatch.setattr(
        students,
        "load_language_model",
        lambda *args, **options: teachers.append(weakref.ref(model := load(*args, **options))) or model,
    )
    monkeypatch.setattr(
        context_distill, "other_student", lambda *args: alive.append(teachers[0]() is not None) or train(*args)
    )
    flags = ["--teacher", tiny_llama, "--student", tiny_bert, "--dataset", sentiment, *out, "--unlabelled", "24"]
    context_distill.main([*flags, "--max_steps", "1", "--eval_ood", sentiment])
    assert alive == [False]


def test_inputs_of_a_file_and_the_length_that_is_kept(sentiment, tiny_llama, tiny_bert, tmp_path, out):
    """The file holds the evaluation texts as well, which are not learnt from; a saved student cuts as it was scored."""
    task = tasks.load_task(sentiment)
    (tmp_path / "inputs.txt").write_text("".join(f"{ex.text}\n" for ex in [*task.train[:40], *task.evaluation]))
    flags = ["--teacher", tiny_llama, "--student", tiny_bert, "--dataset", sentiment, "--max_length", "8", *out]
    context_distill.main([*flags, "--unlabelled_file", str(tmp_path / "inputs.txt"), "--max_steps", "20"])
    (row,) = store.read_results(tmp_path / "results.csv")
    assert "40 unlabelled inputs" in row["note"]
    prompt_eval.main(["--model", f"{row['run_dir']}/model", "--dataset", sentiment, *out])
    again = store.read_results(tmp_path / "results.csv")[1]
    assert without_times(again) == without_times(row) and "cut to 8 tokens" in again["note"]


def test_soft_targets_of_a_head(sentiment, tiny_bert):
    """The loss is KL(teacher || student), 0 where the student says the same."""
    import torch

    task = tasks.load_task(sentiment, max_eval_samples=5)
    tokenizer = loading.load_tokenizer(tiny_bert)
    model = loading.load_model(tiny_bert, "classifier", labels=task.labels, pad_token_id=tokenizer.pad_token_id)
    pairs = [(ex, [-0.1 * (i + 1), -2.0]) for i, ex in enumerate(task.evaluation)]
    assert [ex.label for ex in distillation.pseudo_labelled(pairs)] == [0] * 5
    args = context_distill.parse_args(["--student", tiny_bert])
    data = distillation.head_data(model, tokenizer, task, pairs, 1, args, "cpu")
    batch = {name: value.to(model.device) for name, value in data.collate(list(data.train)).items()}
    assert batch["labels"].tolist() == [pytest.approx(target) for _, target in pairs[1:]]
    with torch.no_grad():
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits.double()
        loss = distillation.head_loss(2.0)(model, batch)
    teacher, student = ((x / 2).log_softmax(-1) for x in (batch["labels"].double(), logits))
    assert loss.item() == pytest.approx(4 * (teacher.exp() * (teacher - student)).sum(1).mean().item(), rel=1e-4)
    batch["labels"] = logits.float()
    assert distillation.head_loss(1.0)(model, batch).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("student", ["tiny_gpt2", "tiny_t5"])
def test_answers_are_learnt_from_the_teachers_texts(questions, tiny_llama, student, tmp_path, out, request):
    """Teacher and student have different tokenizers."""
    name = request.getfixturevalue(student)
    flags = ["--teacher", tiny_llama, "--student", name, "--dataset", questions, "--max_new_tokens", "4"]
    context_distill.main([*flags, "--max_steps", "2", "--max_eval_samples", "4", *out])
    (row,) = store.read_results(tmp_path / "results.csv")
    assert row["strategy"] == "distillation" and row["labels_used"] == "0" and row["status"] in ("ok", "degenerate")
    assert float(row["train_seconds"]) > 0 and row["trainable_params"] == row["total_params"]


def test_an_adapter_learns_from_another_teacher(sentiment, tiny_llama, tiny_gpt2, tmp_path, out):
    flags = ["--teacher", tiny_gpt2, "--model", tiny_llama, "--dataset", sentiment, *out, "--unlabelled", "40"]
    context_distill.main([*flags, "--max_steps", "4", "--learning_rate", "1e-2", "--max_eval_samples", "20"])
    (row,) = store.read_results(tmp_path / "results.csv")
    assert row["model"] == tiny_llama and row["variant"] == "0_shot_to_lora_r8"
    assert (Path(row["run_dir"]) / "adapter").is_dir()


@pytest.mark.parametrize(
    "flags, said",
    [
        ("--teacher a --targets online", "--targets online is for a student of the teacher's own model"),
        ("--k_shots 0", "nothing to learn from itself"),
        ("--student b --rank 4", "--rank: rank, alpha and target_modules are of --student lora"),
        ("--teacher a --model b --student c", "--model: --student MODEL is trained whole"),
        ("--teacher a --quantize nf4", "--quantize: the weights of a student are not quantized"),
    ],
)
def test_flags_that_do_not_fit_two_models(flags, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        context_distill.parse_args(flags.split())
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_an_encoder_generates_no_answers(questions, tiny_llama, tiny_bert, out, capsys):
    with pytest.raises(SystemExit) as stopped:
        context_distill.main(["--teacher", tiny_llama, "--student", tiny_bert, "--dataset", questions, *out])
    assert stopped.value.code == 2 and "generates no answers" in capsys.readouterr().err


def test_too_few_labels_calibrate_nothing(sentiment, tiny_llama, out, capsys):
    flags = ["--model", tiny_llama, "--dataset", sentiment, "--label_budget", "4", "--calibrate", "batch", *out]
    with pytest.raises(SystemExit) as stopped:
        context_distill.main(flags)
    assert stopped.value.code == 2 and "leave out --calibrate batch" in capsys.readouterr().err


def test_prompts_that_are_cut_are_counted(tiny_llama):
    model = loading.load_model(tiny_llama)
    items = [{"input_ids": list(range(n)), "answer": [1] * 5} for n in (10, 30)]
    assert "1 inputs were cut to their last tokens" in distillation.cut_prompts(items, model, 20)
    assert [item["input_ids"] for item in items] == [list(range(10)), list(range(10, 30))]
    assert distillation.cut_prompts(items, model, 20) is None
    items = [{"input_ids": list(range(2000)), "ends": [[1], [1, 2, 3]]}]  # of a model of 1,024 positions
    assert distillation.cut_prompts(items, model, 2000) and len(items[0]["input_ids"]) == 1021
