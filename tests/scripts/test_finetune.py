import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import FAST, ROOT, SHORT, check_classification, predictions, write_jsonl

import finetune
import prompt_eval
import utils
from harness.data import tasks
from harness.models import loading, scoring
from harness.results import store
from harness.results.run import OOM_EXIT_CODE
from harness.training import collators, trainer


@pytest.mark.gpu
def test_fp16_training_fills_in_the_gpu_columns(sentiment, tiny_bert, tmp_path):
    flags = ["--results", str(tmp_path / "r.csv"), "--runs_dir", str(tmp_path / "runs"), "--latency_runs", "3"]
    finetune.main(
        ["--model", tiny_bert, "--dataset", sentiment, "--fp16", "--epochs", "3", "--learning_rate", "2e-3", *flags]
    )
    (row,) = store.read_results(tmp_path / "r.csv")
    assert (row["device"], row["precision"]) == ("cuda", "fp32") and row["device_name"]
    assert "trained in fp16 mixed precision" in row["note"]
    assert 0 < float(row["peak_gpu_gb"]) <= float(row["peak_gpu_reserved_gb"])
    assert len(predictions(row)) == 60


def test_finetune(sentiment, tiny_bert, out, only_row, capsys):
    finetune.main(["--model", tiny_bert, "--dataset", sentiment, *FAST, *out])
    row = only_row()
    check_classification(row, 60)
    assert (row["strategy"], row["variant"], row["status"], row["n_train"], row["precision"]) == (
        "full_finetuning",
        "full",
        "ok",
        "128",
        "fp32",
    )
    assert float(row["score"]) >= 0.9 and float(row["majority_baseline"]) == 0.5
    assert row["trainable_params"] == row["total_params"] and float(row["train_seconds"]) > 0
    folder = Path(row["run_dir"])
    history = json.loads((folder / "training_history.json").read_text())
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0] and sum("eval_accuracy" in entry for entry in history) == 6
    assert (folder / "training_curves.png").stat().st_size > 5000 and (folder / "model" / "model.safetensors").is_file()
    assert (
        json.loads((folder / "args.json").read_text())["max_train_samples"] == 128
        and not (folder / "checkpoints").exists()
    )
    last = capsys.readouterr().out.strip().splitlines()[-2:]
    assert f"accuracy {float(row['score']):.3f} [" in last[0] and "results.csv" in last[1] and str(folder) in last[1]


def test_the_best_checkpoint_by_validation_is_kept(sentiment, tiny_bert, out, only_row):
    """The saved model's validation accuracy is the best of the history, not the last."""
    finetune.main(["--model", tiny_bert, "--dataset", sentiment, *FAST, "--learning_rate", "2e-2", *out])
    folder = Path(only_row()["run_dir"])
    history = json.loads((folder / "training_history.json").read_text())
    seen = [entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry]
    task = tasks.load_task(sentiment)
    model = loading.load_model(str(folder / "model"), labels=task.labels)
    found = scoring.classify(
        model, utils.load_tokenizer(str(folder / "model")), [ex.text for ex in task.validation]
    ).argmax(1)
    assert np.mean(found == [ex.label for ex in task.validation]) == pytest.approx(max(seen))


def test_finetune_on_pairs_with_three_labels(tiny_bert, tmp_path, out, only_row):
    rng = np.random.default_rng(0)
    names = ["contradiction", "entailment", "neutral"]
    rows = [
        {
            "premise": f"the film was {a}",
            "hypothesis": f"the cast is {b}",
            "gold_label": names[("good", "bad", "fine").index(a)],
        }
        for a, b in zip(rng.choice(["good", "bad", "fine"], 300), rng.choice(["great", "dull", "weak", "poor"], 300))
    ]
    rows = [{**row, "hypothesis": f"{row['hypothesis']} {i}"} for i, row in enumerate(rows)]
    write_jsonl(tmp_path / "train.jsonl", rows[:240])
    write_jsonl(tmp_path / "test.jsonl", rows[240:])
    finetune.main(["--model", tiny_bert, "--dataset", str(tmp_path), *FAST, *out])
    row = only_row()
    assert float(row["score"]) > 0.8 and {p["target"] for p in predictions(row)} == set(names)


def test_a_fine_tuned_checkpoint_is_scored_again(sentiment, tiny_bert, tmp_path, out, only_row):
    finetune.main(["--model", tiny_bert, "--dataset", sentiment, *FAST, *out])
    row = only_row()
    again = ["--results", str(tmp_path / "again.csv")]
    prompt_eval.main(["--model", f"{row['run_dir']}/model", "--dataset", sentiment, "--batch_size", "16", *out, *again])
    (other,) = store.read_results(tmp_path / "again.csv")
    assert [p["scores"] for p in predictions(other)] == [p["scores"] for p in predictions(row)]


def test_out_of_memory_in_training_is_an_oom_row(sentiment, tiny_bert, out, only_row, monkeypatch):
    import torch
    import transformers

    def step(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(transformers.Trainer, "training_step", step)
    with pytest.raises(SystemExit) as exit_:
        finetune.main(["--model", tiny_bert, "--dataset", sentiment, *FAST, *out])
    row = only_row()
    assert exit_.value.code == OOM_EXIT_CODE
    assert (
        (row["status"], row["script"], row["n_eval"]) == ("oom", "finetune.py", "60")
        and "20.00 GiB" in row["note"]
        and row["score"] == ""
    )


def test_a_degenerate_run_is_marked(sentiment, tiny_bert, out, only_row):
    finetune.main(
        [
            "--model",
            tiny_bert,
            "--dataset",
            sentiment,
            "--max_train_samples",
            "8",
            "--max_steps",
            "1",
            "--learning_rate",
            "1e-12",
            "--head_start",
            "random",
            *out,
        ]
    )
    row = only_row()
    one_class = len({p["prediction"] for p in predictions(row)}) == 1
    assert one_class and row["status"] == "degenerate" and "predictions are class" in row["note"]


@pytest.mark.slow
def test_resume_goes_on_from_the_last_checkpoint(sentiment, tiny_bert, tmp_path, out, only_row):
    """Killed with SIGKILL after its second checkpoint; resumed, it ends with the weights of an uninterrupted run."""
    from safetensors.torch import load_file

    flags = ["--model", tiny_bert, "--dataset", sentiment, *FAST]
    killed = (
        "import os, signal, sys, transformers, finetune\n"
        "save = transformers.Trainer._save_checkpoint\n"
        "def save_and_die(self, *args, **kwargs):\n"
        "    save(self, *args, **kwargs)\n"
        "    if self.state.epoch >= 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "transformers.Trainer._save_checkpoint = save_and_die\n"
        "finetune.main(sys.argv[1:])\n"
    )
    done = subprocess.run([sys.executable, "-c", killed, *flags, *out], cwd=ROOT, capture_output=True)
    assert done.returncode == -9 and not (tmp_path / "results.csv").exists()
    (folder,) = (tmp_path / "runs").iterdir()
    finetune.main([*flags, *out, "--resume"])
    row = only_row()
    assert Path(row["run_dir"]) == folder and "resumed from checkpoint-" in row["note"]
    finetune.main([*flags, *out, "--results", str(tmp_path / "whole.csv")])
    (whole,) = store.read_results(tmp_path / "whole.csv")
    resumed, uninterrupted = (load_file(Path(r["run_dir"]) / "model" / "model.safetensors") for r in (row, whole))
    assert all((resumed[name] == uninterrupted[name]).all() for name in uninterrupted)
    with pytest.raises(SystemExit) as exit_, contextlib.redirect_stderr(io.StringIO()) as said:
        finetune.main([*flags, *out, "--resume"])
    assert exit_.value.code == 2 and "no unfinished run with these flags" in said.getvalue()


def test_full_fine_tuning_learns_the_answers(questions, tiny_llama, tmp_path, out, only_row):
    finetune.main(
        [
            "--model",
            tiny_llama,
            "--dataset",
            questions,
            "--epochs",
            "12",
            "--batch_size",
            "4",
            "--learning_rate",
            "3e-3",
            "--max_new_tokens",
            "4",
            *out,
        ]
    )
    row = only_row()
    assert row["metric"] == "token_f1" and row["n_train"] == str(len(tasks.load_task(questions).train))
    assert {p["prediction"] for p in predictions(row)} <= {"paris", "rome"}, "it learned what answers look like"
    before = ["--results", str(tmp_path / "before.csv")]
    prompt_eval.main(["--model", tiny_llama, "--dataset", questions, "--max_new_tokens", "4", *out, *before])
    (untouched,) = store.read_results(tmp_path / "before.csv")
    assert float(row["score"]) > float(untouched["score_high"] or 0) and float(row["reference_perplexity"]) < 3 < float(
        untouched["reference_perplexity"]
    )


def test_a_loss_that_is_no_number_is_a_failed_row(questions, tiny_llama, out, only_row, capsys):
    with pytest.raises(SystemExit) as exit_:
        finetune.main(
            ["--model", tiny_llama, "--dataset", questions, "--learning_rate", "1e30", "--warmup", "0", *SHORT, *out]
        )
    said = capsys.readouterr().err.strip().splitlines()[-1]
    row = only_row()
    assert exit_.value.code == 1 and row["status"] == "failed" and "failed, recorded in" in said
    reason = row["note"][row["note"].index("the training loss is nan at step ") :]
    assert reason in said and row["score"] == ""


def test_early_stopping_ends_before_its_epochs(sentiment, tiny_bert, out, only_row):
    finetune.main(
        [
            "--model",
            tiny_bert,
            "--dataset",
            sentiment,
            "--epochs",
            "30",
            "--learning_rate",
            "1e-9",
            "--early_stopping",
            "2",
            *out,
        ]
    )
    history = json.loads((Path(only_row()["run_dir"]) / "training_history.json").read_text())
    assert max(entry["epoch"] for entry in history) == 3  # the first is the best, and two more are no better


def test_without_validation_the_last_checkpoint_is_kept(sentiment, tiny_bert, out, only_row):
    finetune.main(
        [
            "--model",
            tiny_bert,
            "--dataset",
            sentiment,
            "--max_train_samples",
            "8",
            "--max_validation_samples",
            "0",
            *SHORT,
            *out,
        ]
    )
    history = json.loads((Path(only_row()["run_dir"]) / "training_history.json").read_text())
    assert not any("eval_loss" in entry for entry in history)
    assert len(tasks.load_task(sentiment, max_validation_samples=5).validation) == 5


def test_a_trained_head_keeps_its_labels(sentiment, tiny_classifier, tmp_path, out):
    """It names them good, bad, the data bad, good: a training that moves nothing leaves its predictions."""
    flags = ["--model", tiny_classifier, "--dataset", str(tmp_path), *out]
    texts = [json.loads(line) for line in (Path(sentiment) / "test.jsonl").read_text().splitlines()]
    rows = [{**row, "label": {"positive": "good", "negative": "bad"}[row["label"]]} for row in texts]
    write_jsonl(tmp_path / "train.jsonl", rows[:30])
    write_jsonl(tmp_path / "test.jsonl", rows[30:])
    prompt_eval.main([*flags, "--results", str(tmp_path / "before.csv")])
    finetune.main([*flags, "--max_steps", "1", "--learning_rate", "1e-12", "--results", str(tmp_path / "after.csv")])
    before, after = (store.read_results(tmp_path / f"{name}.csv")[0] for name in ("before", "after"))
    scores = [[p["scores"] for p in predictions(row)] for row in (before, after)]
    assert [pytest.approx(one, abs=1e-5) for one in scores[0]] == scores[1]
    tokenizer = loading.load_tokenizer(tiny_classifier)
    args = finetune.parse_args(flags)
    task = tasks.load_task(str(tmp_path))
    model = trainer.load_base(args, task, tokenizer, "cpu", "fp32")
    assert task.labels == ("bad", "good") and model.config.id2label == {0: "good", 1: "bad"} and not model.new_layers
    data = collators.classification_data(model, tokenizer, task, args, "cpu")
    assert data.train["labels"] == [1 - ex.label for ex in task.train]
