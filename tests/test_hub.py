import os
import subprocess
import sys

import pytest
from helpers import ROOT

import utils
from harness import hub

DESIGN_COMMANDS = [
    "finetune.py --model distilbert-base-uncased --dataset glue --subset sst2 --epochs 3 --batch_size 16 --fp16",
    "peft_finetune.py --model distilbert-base-uncased --dataset glue --subset sst2 --epochs 3 --batch_size 16",
    "prompt_eval.py --model google/flan-t5-base --dataset glue --subset sst2 --n_examples 20",
    "rag_eval.py --embed_model all-MiniLM-L6-v2 --gen_model google/flan-t5-base --k 4",
    "quantize_and_parallel.py --model google/flan-t5-base --fp16",
    "quantize_and_parallel.py --model google/flan-t5-base --int8",
]


def run(command, cwd=ROOT, **env):
    return subprocess.run(
        [sys.executable, *command.split()],
        cwd=cwd,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **env},
        timeout=60,
    )


@pytest.mark.parametrize("command", DESIGN_COMMANDS)
def test_without_a_hub_a_name_is_one_line(command, tmp_path):
    # nothing listens on port 9: the scripts find out by themselves that there is no hub
    where = f" --results {tmp_path}/results.csv --runs_dir {tmp_path}/runs"
    done = run(command + where, HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stdout == ""
    assert "cannot be reached" in done.stderr and "prepare_data.py demo" in done.stderr
    assert not (tmp_path / "results.csv").exists() and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_hub_data_set_that_cannot_be_had_is_one_line(tiny_bert, tmp_path):
    done = run(
        f"finetune.py --model {tiny_bert} --dataset glue --subset sst2 --results {tmp_path}/r.csv "
        f"--runs_dir {tmp_path}/runs",
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path),
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "--dataset glue sst2" in done.stderr and not (tmp_path / "runs").exists()


def test_names_are_checked_before_anything_is_loaded(tmp_path, monkeypatch):
    hub.check_names({"--model": str(tmp_path)}, {"--dataset": None})
    with pytest.raises(utils.UserError, match=r"--model \./nowhere: no such file or folder"):
        hub.check_names({"--model": "./nowhere"})
    with pytest.raises(utils.UserError, match="--embed_model: the name is empty; give a folder or a hub name"):
        hub.check_names({"--embed_model": " "})
    with pytest.raises(utils.UserError, match="prepare_data.py demo"):
        hub.check_names({"--model": "assets/models/nowhere"})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(utils.UserError, match="the hub cannot be reached and this name is not in the cache"):
        hub.check_names({"--model": "someone/some-model-that-is-not-cached"})


def test_the_hub_is_unreachable_quickly(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert hub.hub_answers(2.0) is False
