"""What a simple learner scores on a data set, and what that tells of other configurations there."""

import dataclasses
import json
import random

import pytest
from helpers import ROOT
from row_helpers import made_up_rows, result_row, results_csv

import adaptive_selector
import probe
from harness.data import tasks
from harness.results import configurations, store
from harness.selector import landmark, predictor
from harness.selector.spec import data_of_rows, spec

HARD = [0.0, -0.2, 0.1, -0.1, 0.05, -0.25, 0.15, -0.05, 0.2]  # how much more is scored on each data set


@pytest.fixture
def rows():
    """Rows of data sets that differ in nothing but how hard they are, with a landmark of each."""
    made = made_up_rows(len(HARD))
    for i, hard in enumerate(HARD):
        some = [row for row in made if row["dataset"] == f"data/d{i}"]
        for row in some:
            row.update(score=row["score"] + hard, total_params=20_000_000)
        for draw in range(3):
            about = {"strategy": "probe", "script": "probe.py", "variant": "tfidf_logreg", "data_seed": draw}
            flags = {"label_budget": landmark.LABELS, "data_seed": draw}
            score = 0.6 + hard + (draw - 1) / 100
            made.append(result_row(**{**some[0], **about, "score": score, "accuracy": score, "flags": flags}))
    return made


def test_it_is_what_the_probe_scores(sentiment, tmp_path):
    path = tmp_path / "r.csv"
    probe.main(
        ["--features", "tfidf", "--dataset", sentiment, "--label_budget", str(landmark.LABELS)]
        + ["--results", str(path), "--runs_dir", str(tmp_path / "runs")]
    )
    (row,) = store.read_results(path)
    task = tasks.load_task(sentiment, label_budget=landmark.LABELS)
    assert landmark.of_task(task) == configurations.value(row, "accuracy") == landmark.of_rows([row])
    assert landmark.of_rows([{**row, "variant": "tfidf_knn"}]) is None


def test_it_makes_predictions_closer(rows, tmp_path):
    kept, _ = configurations.select(store.read_results(results_csv(tmp_path / "r.csv", rows)))
    found, data = predictor.groups_of(kept), data_of_rows(kept)
    assert data["d1"].landmark == pytest.approx(0.4)
    near, far = [], []
    for left_out in ("d1", "d6"):
        learned = predictor.Predictor([(g, c) for g, c in found if g[0] != left_out], data)
        for group, c in found:
            if group[0] == left_out and c.strategy != "probe":
                wanted = spec(c, data[left_out])
                unknown = spec(c, dataclasses.replace(data[left_out], landmark=None))
                guess, blind = learned.candidate(wanted, "c"), learned.candidate(unknown, "c")
                near.append(abs(guess.score - c.mean()) / guess.score_error)
                far.append(abs(blind.score - c.mean()))
                assert guess.score_error < blind.score_error / 2 and abs(guess.score - c.mean()) < 0.05
    assert min(far) > 0.1 and max(near) < 3


def test_the_benchmark_says_how_much_closer(rows, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    bench, out = pytest.importorskip("bench_landmark"), tmp_path / "b.json"
    bench.main(["--results", results_csv(tmp_path / "r.csv", rows), "--output", str(out)])
    found = json.loads(out.read_text())
    assert len(found["data_sets"]) == len(HARD) and set(found["errors"]) == {"ridge", "knn", "gp"}
    for kind in ("ridge", "gp"):
        less, low, _ = found["errors"][kind]["less"]
        assert less > low > 0.5 and found["errors"][kind]["without"] > 0.1
    for row in rows:
        row["variant"] = row["variant"].replace("tfidf", "words")
    with pytest.raises(SystemExit):
        bench.main(["--results", results_csv(tmp_path / "w.csv", rows), "--output", str(out)])


def test_the_selector_measures_it_where_there_are_enough_labels(rows, sentiment, tmp_path, capsys):
    path = results_csv(tmp_path / "r.csv", rows)
    measured = landmark.of_task(tasks.load_task(sentiment, label_budget=landmark.LABELS))

    def said(*flags):
        adaptive_selector.main(["--results", path, "--dataset", sentiment, "--tokens", "30", *flags])
        return capsys.readouterr().out

    assert f"TF-IDF trained on 125 labels has an accuracy of {measured:.3f}" in said("--data_size", "200")
    assert "TF-IDF" not in said("--data_size", "100")
    random.seed(0)
    lines = [f'{{"text": "{random.random()} film", "label": "{"ab"[i % 2]}"}}' for i in range(120)]
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(lines) + "\n")
    adaptive_selector.main(["--results", path, "--dataset", str(few), "--tokens", "30", "--data_size", "200"])
    told = capsys.readouterr().out
    assert "2 classes" in told and "TF-IDF" not in told
