"""A race of real runs, of which one configuration learns and another cannot."""

import json
import random
import shlex
import subprocess

import pytest
from helpers import ROOT, write_jsonl
from sweep_helpers import suite

import sweep
from harness.results import commands, configurations, store
from harness.sweeps import dropping


@pytest.fixture
def reviews(tmp_path):
    rng, rows = random.Random(0), []
    for _ in range(700):
        label = rng.choice(["good", "bad"])
        words = [*rng.choices(OTHERS, k=6), rng.choice(WORDS[label])]
        rows.append({"text": " ".join(rng.sample(words, len(words))), "label": label})
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train.jsonl", rows[:400])
    write_jsonl(tmp_path / "data" / "test.jsonl", rows[400:])
    return str(tmp_path / "data")


WORDS = {"good": ["bright", "lovely", "fine"], "bad": ["dull", "poor", "weak"]}
OTHERS = ["the", "a", "film", "plot", "it", "was", "and", "of", "in", "this"]
RUNS = """
runs:
  - {script: probe.py, flags: &f {latency_runs: 20, label_budget: 320}, experiments: [{name: words, features: tfidf}]}
  - {script: finetune.py, flags: {<<: *f, model: MODEL, max_steps: 160}, experiments: [{name: f, learning_rate: 1e-6}]}
"""


@pytest.mark.slow
def test_a_configuration_that_is_behind_is_not_run_as_a_whole(reviews, tiny_llama, tmp_path, capsys, monkeypatch):
    path = suite(tmp_path / "s.yaml", RUNS.replace("MODEL", str(tiny_llama)))
    gains = {"at_once": dropping.NONE, "steps": dropping.Gain(0.0, 0.0, 0.05, 9)}
    monkeypatch.setattr(dropping, "RUNGS", (dropping.Rung(1 / 16, 1 / 2, gains),))
    out = ["--dataset", reviews, "--results", str(tmp_path / "r.csv"), "--runs_dir", str(tmp_path / "runs")]
    sweep.main([path, *out, "--race"])
    told = capsys.readouterr().out
    rows = store.read_results(tmp_path / "r.csv")
    by_status = {row["status"]: row for row in rows}
    assert sorted(by_status) == ["dropped", "ok"], told
    dropped, whole = by_status["dropped"], by_status["ok"]
    assert (whole["variant"], whole["n_eval"], whole["labels_used"]) == ("tfidf_logreg", "300", "320")
    assert (dropped["variant"], dropped["n_eval"]) == ("full", "150")
    assert "dropped at rung 1 of 1" in dropped["note"] and "behind 1 words after 150 examples" in dropped["note"]
    rungs = store.read_results(tmp_path / "r_rungs.csv")
    assert [(row["variant"], json.loads(row["args"])["max_steps"]) for row in rungs] == [("full", 20)]
    assert [row["run_id"] for row in configurations.select(rows)[0]] == [whole["run_id"]]
    first, second = json.loads((tmp_path / "r_race.json").read_text())
    assert first["dropped"] is None and first["whole"] == [whole["run_id"]] and first["rungs"] == [[whole["run_id"]]]
    assert second["dropped"].startswith("dropped at rung 1") and second["rungs"] == [[dropped["run_id"]]]
    sweep.main([path, *out, "--race"])
    assert len(store.read_results(tmp_path / "r.csv")) == 2 and len(store.read_results(tmp_path / "r_rungs.csv")) == 1
    sweep.main([path, *out])
    rows = store.read_results(tmp_path / "r.csv")
    assert [(row["variant"], row["n_eval"]) for row in rows][2:] == [("full", "300")], "a race is no result"


@pytest.mark.slow
def test_what_breaks_a_limit_is_dropped_after_its_first_requests(reviews, tiny_bert, tmp_path):
    flags = f"{{model: {tiny_bert}, label_budget: 320, max_steps: 60, latency_runs: 20}}"
    path = suite(tmp_path / "s.yaml", f"script: finetune.py\nflags: {flags}")
    out = ["--dataset", reviews, "--results", str(tmp_path / "r.csv"), "--runs_dir", str(tmp_path / "runs")]
    sweep.main([path, *out, "--race", "--latency_ms", "0.0001"])
    (row,) = store.read_results(tmp_path / "r.csv")
    assert row["status"] == "dropped" and "above 0.0001 ms" in row["note"] and row["n_eval"] == "20"
    assert json.loads(row["args"])["max_steps"] == 1, "it was not trained"
    sweep.main([path, *out, "--race", "--latency_ms", "60000", "--memory_gb", "100"])
    assert [row["status"] for row in store.read_results(tmp_path / "r.csv")] == ["dropped", "ok"]


def test_limits_belong_to_a_race(capsys):
    with pytest.raises(SystemExit):
        sweep.parse_args(["suites/demo.yaml", "--latency_ms", "5"])
    assert "belong to --race" in capsys.readouterr().err


def test_make_compare_calls_the_scripts_as_they_want(tmp_path):
    flags = ["DATA=my tickets.csv", "SET=label_budget=300 text_column=body", "LATENCY_MS=50", "ACCURACY=0.8", "RACE=1"]
    made = subprocess.run(
        ["make", "-n", "compare", f"OUT={tmp_path}/out", *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    calls = [shlex.split(line.split(" || ")[0])[1:] for line in made.stdout.splitlines() if "python " in line]
    scripts = {words[0]: words[1:] for words in calls if words[0].endswith(".py")}
    swept = commands.parse("sweep.py", scripts["sweep.py"])
    assert swept.changes == {"label_budget": "300", "text_column": "body", "dataset": "my tickets.csv"}
    assert swept.race and swept.latency_ms == 50 and swept.memory_gb is None and swept.continue_on_error
    chosen = commands.parse("adaptive_selector.py", scripts["adaptive_selector.py"])
    assert (chosen.latency_ms, chosen.required_accuracy, chosen.dataset) == (50, 0.8, "my tickets.csv")
    drawn = commands.parse("plot_results.py", scripts["plot_results.py"])
    assert swept.results == chosen.results == drawn.results and drawn.report == f"{tmp_path}/out/RESULTS.md"
    nothing = subprocess.run(["make", "-n", "compare"], cwd=ROOT, capture_output=True, text=True)
    assert "give DATA=FILE" in nothing.stdout
