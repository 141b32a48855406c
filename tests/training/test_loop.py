"""The step that the optimizer sees does not depend on how its examples are split into batches and over processes."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import launch, reviews, write_jsonl

import finetune
import peft_finetune

NO_DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout_rate", "attention_dropout")


KINDS = {"head": "tiny_bert", "seq2seq": "tiny_t5", "causal": "tiny_llama"}


def one_step(kind, model, folder):
    """The flags of one step over 32 examples. Answers have 1 to 15 words: a mean over batches is none over tokens."""
    base, data = folder / "base", folder / "data"
    shutil.copytree(model, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, **dict.fromkeys(NO_DROPOUT, 0.0)}))
    data.mkdir()
    n_validation = 40 if kind == "head" else 7  # heads: more than a batch; answers: fewer than one
    rows = reviews(3, 32 + n_validation + 4)
    if kind != "head":
        rows = [{"question": row["text"], "answer": ["paris " * (i % 15) + "rome"]} for i, row in enumerate(rows)]
    write_jsonl(data / "train.jsonl", rows[:32])
    write_jsonl(data / "validation.jsonl", rows[32:-4])
    write_jsonl(data / "test.jsonl", rows[-4:])
    flags = ["--model", str(base), "--dataset", str(data), "--max_steps", "1", "--optim", "sgd", "--warmup", "0"]
    flags += ["--head_start", "random"]  # a loss and a gradient that are not small
    return [*flags, "--learning_rate", "1e-9", "--prompt_format", "plain", "--max_new_tokens", "2", "--device", "cpu"]


def first_step(folder):
    """(loss, norm of the gradient, validation loss) of the only run in a folder."""
    (run,) = Path(folder, "runs").iterdir()
    history = json.loads((run / "training_history.json").read_text())
    return tuple(next(e[name] for e in history if name in e) for name in ("loss", "grad_norm", "eval_loss"))


def run_here(script, flags, folder):
    folder.mkdir()
    script.main([*flags, "--results", f"{folder}/results.csv", "--runs_dir", f"{folder}/runs", "--latency_runs", "0"])
    return first_step(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("script", [finetune, peft_finetune], ids=["full", "lora"])
def test_accumulated_batches_are_one_batch(script, kind, request, tmp_path):
    flags = one_step(kind, request.getfixturevalue(KINDS[kind]), tmp_path)
    flags += [] if script is finetune else ["--dropout", "0"]
    whole = run_here(script, [*flags, "--batch_size", "32"], tmp_path / "whole")
    parts = run_here(script, [*flags, "--batch_size", "8", "--gradient_accumulation", "4"], tmp_path / "parts")
    assert whole[0] > 0.1 and whole[1] > 0.01
    assert parts == pytest.approx(whole, rel=1e-4)


@pytest.mark.slow
def test_two_processes_are_one(request, tmp_path):
    """LoRA with one batch in each process, every weight with two in each."""
    jobs, wholes = [], []
    for kind, model in KINDS.items():
        (tmp_path / kind).mkdir()
        flags = one_step(kind, request.getfixturevalue(model), tmp_path / kind)
        lora, split = ["--dropout", "0", "--batch_size"], ["--batch_size", "8", "--gradient_accumulation", "2"]
        wholes.append(run_here(peft_finetune, [*flags, *lora, "32"], tmp_path / kind / "lora"))
        wholes.append(run_here(finetune, [*flags, "--batch_size", "32"], tmp_path / kind / "full"))
        jobs.append(("peft_finetune.py", [*flags, *lora, "16"], tmp_path / kind / "two_lora"))
        jobs.append(("finetune.py", [*flags, *split], tmp_path / kind / "two_full"))
    launch(2, *jobs)
    for (_, _, folder), whole in zip(jobs, wholes):
        assert first_step(folder) == pytest.approx(whole, rel=1e-4), folder
