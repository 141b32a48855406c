import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers import ROOT, write_jsonl
from sweep_helpers import planned, suite, words

import sweep
import utils
from harness.results import store


def run_sweep(*argv):
    return subprocess.run(
        [sys.executable, "sweep.py", *map(str, argv)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )


def test_every_suite_that_is_shipped_is_read_by_its_scripts():
    found = {path.stem: words(str(path)) for path in (ROOT / "suites").glob("*.yaml")}
    assert set(found) == {
        "demo",
        "budgets",
        "compare",
        "log",
        "fresh",
        "rank",
        "modules",
        "quantization",
        "fewshot",
        "qa_peft",
        "peft_methods",
        "speculative",
        "datasets",
        "domains",
        "probe",
        "defaults",
        "few_labels",
        "gpu",
        "prompts",
        "setfit",
        "distil",
    }
    assert [line.split("--rank ")[1].split()[0] for line in found["rank"][::3]] == ["4", "8", "16", "32", "64"]
    assert "--target_modules query,value" in found["modules"][1]


def test_the_demo_has_every_strategy_and_one_panel_of_reviews():
    suite = str(ROOT / "suites/demo.yaml")
    cells = sweep.make_cells(suite, sweep.parse_args([suite]))[1]
    scripts = [
        "finetune",
        "peft_finetune",
        "probe",
        "prompt_eval",
        "context_distill",
        "rag_eval",
        "quantize_and_parallel",
    ]
    assert {cell.script for cell in cells} == {f"{name}.py" for name in scripts} and len(cells) == 9
    sizes = {cell.args["max_eval_samples"] for cell in cells if cell.args["dataset"] == "assets/data/movie_reviews"}
    assert len(sizes) == 1


def test_grids_lists_and_other_studies_shapes(tmp_path):
    path = suite(
        tmp_path / "a.yaml",
        """
suite_name: lora_study
base_model: assets/models/all-MiniLM-L6-v2
dataset_path: assets/data/movie_reviews
experiments:
  - name: small
    lora_r: 4
    lora_alpha: 8
    target_modules: [query, value]
  - name: in_four_bits
    lora: {r: 16}
    training: {lr: 1.0e-3, num_train_epochs: 1}
    quantization: 4bit
""",
    )
    base = "--model assets/models/all-MiniLM-L6-v2 --dataset assets/data/movie_reviews"
    assert words(path) == [
        f"{base} --rank 4 --alpha 8 --target_modules query,value",
        f"{base} --rank 16 --learning_rate 0.001 --epochs 1 --quantize nf4",
    ]
    path = suite(
        tmp_path / "b.yaml",
        "script: prompt_eval.py\nflags: {scoring: guessing}\ngrid: {k_shots: [0, 2], data_seed: [0, 1]}\n",
    )
    with pytest.raises(utils.UserError, match="--scoring"):
        words(path)
    path = suite(
        tmp_path / "c.yaml",
        "script: finetune.py\nflags: {fp16: false, resume: null}\ngrid: {seed: [0, 1], epochs: [1, 2]}\n",
    )
    assert words(path) == [f"--seed {s} --epochs {e}" for s in (0, 1) for e in (1, 2)]


def test_a_suites_credentials_are_not_printed(tmp_path, capsys):
    flags = "benchmark: b.jsonl, judge: endpoint, judge_model: m"
    text = f"script: chat_eval.py\nflags: {{{flags}}}\ngrid: {{judge_url: ['http://me:s3cret@localhost/v1?k=s3cret']}}"
    sweep.main([suite(tmp_path / "s.yaml", text), "--results", str(tmp_path / "r.csv"), "--dry_run"])
    told = capsys.readouterr()
    assert "--judge_url http://localhost/v1" in told.out and "s3cret" not in told.out + told.err


@pytest.mark.slow
def test_a_suite_runs_once_and_what_changed_runs_again(sentiment, tiny_bert, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train", "validation", "test"):
        (folder / f"{name}.jsonl").write_bytes(Path(f"{sentiment}/{name}.jsonl").read_bytes())
    flags = f"{{model: {tiny_bert}, dataset: {folder}, max_steps: 2, latency_runs: 2}}"
    text = f"script: finetune.py\nflags: {flags}\ngrid: {{seed: [0, 1]}}\n"
    path, out = suite(tmp_path / "s.yaml", text), ["--results", tmp_path / "r.csv", "--runs_dir", tmp_path / "runs"]
    first = run_sweep(path, *out)
    assert first.returncode == 0 and "2 of 2 to run" in first.stdout, first.stderr
    rows = store.read_results(tmp_path / "r.csv")
    assert [json.loads(row["args"])["seed"] for row in rows] == [0, 1] and {row["status"] for row in rows} <= {
        "ok",
        "degenerate",
    }
    (log,) = (tmp_path / "runs/sweeps").glob("s-000-*.log")
    assert log.read_text().startswith("$ python finetune.py")
    again = run_sweep(path, *out)
    assert "0 of 2 to run; there already: " in again.stdout and len(store.read_results(tmp_path / "r.csv")) == 2

    def wanted(path=path, *flags):
        args = sweep.parse_args([path, *flags, *map(str, out)])
        return [run for _, _, run in planned(path, args)]

    assert wanted() == [False, False]
    assert wanted(suite(tmp_path / "t.yaml", text.replace("[0, 1]", "[1, 2]"))) == [False, True]
    assert wanted(suite(tmp_path / "t.yaml", text.replace("max_steps: 2", "max_steps: 3"))) == [True, True]
    other = [{**row, "code_id": "another", "status": status} for row, status in zip(rows, ("ok", "failed"))]
    os.remove(tmp_path / "r.csv")
    for row in other:
        store.append_result(tmp_path / "r.csv", row)
    assert wanted() == [True, True] and wanted(path, "--ignore_code") == [False, False]
    assert wanted(path, "--ignore_code", "--retry", "failed") == [False, True]
    with open(folder / "train.jsonl", "a") as file:
        file.write('{"text": "one more", "label": "positive"}\n')
    assert wanted(path, "--ignore_code") == [True, True]


@pytest.mark.slow
def test_a_suite_killed_in_the_middle_goes_on(sentiment, tiny_bert, tmp_path):
    flags = f"{{model: {tiny_bert}, dataset: {sentiment}, latency_runs: 0}}"
    # the second takes longer than the two seconds after which it is killed
    cells = "[{name: a, seed: 0, max_steps: 1}, {name: b, seed: 1, max_steps: 300}]"
    text = f"script: finetune.py\nflags: {flags}\nexperiments: {cells}\n"
    path, out = (
        suite(tmp_path / "s.yaml", text),
        ["--results", str(tmp_path / "r.csv"), "--runs_dir", str(tmp_path / "runs")],
    )
    child = subprocess.Popen(
        [sys.executable, "sweep.py", path, *out],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/sweeps/s-001-*.log")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(2)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    before = len(store.read_results(tmp_path / "r.csv"))
    assert before == 1
    done = run_sweep(path, *out)
    assert "1 of 2 to run" in done.stdout and done.returncode == 0
    assert sorted(json.loads(row["args"])["seed"] for row in store.read_results(tmp_path / "r.csv")) == [0, 1]


@pytest.mark.slow
def test_a_run_that_outlives_its_sweep_is_waited_for(sentiment, tiny_bert, tmp_path):
    text = f"script: finetune.py\nflags: {{model: {tiny_bert}, dataset: {sentiment}, max_steps: 4, latency_runs: 0}}\n"
    path, out = (
        suite(tmp_path / "s.yaml", text),
        ["--results", str(tmp_path / "r.csv"), "--runs_dir", str(tmp_path / "runs")],
    )
    child = subprocess.Popen(
        [sys.executable, "sweep.py", path, *out], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not psutil.Process(child.pid).children() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.kill()  # the sweep alone, the run goes on
    child.wait()
    assert not (tmp_path / "r.csv").exists()
    done = run_sweep(path, *out)
    assert (
        done.returncode == 0 and "1 of 1 to run" in done.stdout and "waiting for its end" in done.stdout + done.stderr
    )
    assert len(store.read_results(tmp_path / "r.csv")) == 1


@pytest.mark.slow
def test_a_cell_that_fails_stops_the_suite_or_does_not(tiny_bert, sentiment, tmp_path):
    write_jsonl(tmp_path / "bad.jsonl", [{"text": "x"}])
    flags, data = f"{{model: {tiny_bert}, max_steps: 1, latency_runs: 0}}", f"[{tmp_path}/bad.jsonl, {sentiment}]"
    text = f"script: finetune.py\nflags: {flags}\ngrid: {{dataset: {data}}}\n"
    path, out = suite(tmp_path / "s.yaml", text), ["--results", tmp_path / "r.csv", "--runs_dir", tmp_path / "runs"]
    stopped = run_sweep(path, *out)
    assert (
        stopped.returncode == 1
        and "FAILED with exit code 2" in stopped.stdout + stopped.stderr
        and not (tmp_path / "r.csv").exists()
    )
    whole = run_sweep(path, *out, "--continue_on_error", "--workers", 2)
    assert whole.returncode == 1 and len(store.read_results(tmp_path / "r.csv")) == 1


def test_prompts_that_differ_behind_a_question_mark_are_two_runs(tmp_path, capsys):
    text = (
        "script: prompt_eval.py\ngrid: {template: ['See https://x.org/?q=1 {text}', 'See https://x.org/?q=2 {text}']}"
    )
    sweep.main([suite(tmp_path / "s.yaml", text), "--dry_run", "--results", str(tmp_path / "r.csv")])
    told = capsys.readouterr().out
    assert "2 of 2 to run" in told and "--template 'See https://x.org/?q=2 {text}'" in told


def test_two_sweeps_of_one_suite_and_folder_have_logs_of_their_own(sentiment, tmp_path, monkeypatch):
    path, logs = suite(tmp_path / "s.yaml", "script: probe.py\nexperiments: [{name: a, features: tfidf}]\n"), []
    monkeypatch.setattr(sweep, "run_cell", lambda cell, log, *_: logs.append(log) or log.write_text("said") and 0)
    for n in range(2):
        out = ["--results", str(tmp_path / f"r{n}.csv"), "--runs_dir", str(tmp_path / "runs")]
        sweep.main([path, "--dataset", sentiment, *out])
    assert len({log.name for log in logs}) == 2 and {log.parent for log in logs} == {tmp_path / "runs/sweeps"}


@pytest.mark.parametrize("code, killed", [(-9, True), (137, True), (1, False)])
def test_a_run_that_was_killed_may_have_had_no_memory(code, killed, sentiment, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "run_cell", lambda cell, log, *_: log.write_text("said") and code)
    path = suite(tmp_path / "s.yaml", "script: probe.py\nexperiments: [{name: a, features: tfidf}]\n")
    with pytest.raises(SystemExit):
        sweep.main([path, "--dataset", sentiment, "--results", str(tmp_path / "r.csv"), "--runs_dir", str(tmp_path)])
    told = capsys.readouterr().out
    assert f"FAILED with exit code {code}" in told and ("no memory left" in told) == killed


def test_several_models_of_one_run_are_checked_by_name(tmp_path, tiny_llama, capsys):
    flags = f"{{model: [{tiny_llama}, {tmp_path / 'typo'}], prompts: {tmp_path / 'p.jsonl'}}}"
    path = suite(
        tmp_path / "s.yaml", f"suite_name: s\nscript: chat_eval.py\nflags: {flags}\nexperiments: [{{name: a}}]\n"
    )
    with pytest.raises(SystemExit) as stopped:
        sweep.main([path, "--results", str(tmp_path / "r.csv")])
    assert stopped.value.code == 2 and "typo" in capsys.readouterr().err
