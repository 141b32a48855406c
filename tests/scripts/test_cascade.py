"""cascade.py: thresholds chosen on other examples, and rows made of two runs'."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import predictions, write_jsonl

import cascade
import finetune
import probe
from harness.results import commands, label_counts, store

cascade.import_heavy()


def write_side(folder, right, confidence, latency, **cells):
    """A run folder whose answers to the examples are right or wrong with these confidences."""
    folder.mkdir()
    records = []
    for i, (good, sure) in enumerate(zip(right, confidence)):
        target, said = i % 2, i % 2 if good else 1 - i % 2
        scores = {"no": 1 - sure, "yes": 1 - sure, ("no", "yes")[said]: sure}
        record = {
            "id": f"test-{i}",
            "cluster": None,
            "target": ("no", "yes")[target],
            "prediction": ("no", "yes")[said],
        }
        record |= {"target_index": target, "prediction_index": said, "latency_ms": latency if i < 10 else None}
        records.append({**record, "scores": {name: float(np.log(p)) for name, p in scores.items()}})
    write_jsonl(folder / "predictions.jsonl", records)
    row = {"strategy": "probe", "variant": "embedder_logreg", "model": "a/m", "metric": "accuracy", "status": "ok"}
    row |= {
        "labels_used": 100,
        "train_seconds": 3.0,
        "model_gb": 1.0,
        "device_name": "a processor",
        "n_eval": len(right),
    }
    row |= {"score": float(np.mean(right)), "eval_id": "e", "start_rss_gb": 0.5, "serving_rss_gb": 2.0, **cells}
    (folder / "row.json").write_text(json.dumps(row))
    return str(folder)


@pytest.fixture
def sides(tmp_path):
    """A cheap model that is right as often as it says, and a dear one that is right nine times of ten."""
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1.0, 400)
    cheap = write_side(tmp_path / "cheap", rng.random(400) < sure, sure, 5.0, model=None, serving_rss_gb=1.5)
    dear = write_side(tmp_path / "dear", rng.random(400) < 0.9, np.full(400, 0.9), 100.0, strategy="full_finetuning")
    return [cheap, dear, "--results", str(tmp_path / "r.csv"), "--runs_dir", str(tmp_path / "runs")]


def right_of(folder):
    return [r["prediction"] == r["target"] for r in store.read_jsonl(Path(folder) / "predictions.jsonl")]


def rows(sides):
    return store.read_results(sides[3])


def test_extreme_thresholds_are_the_two_runs(sides):
    cascade.main([*sides, "--threshold", "0"])
    cascade.main([*sides, "--threshold", "1"])
    for row, folder, latency, rate in zip(rows(sides), sides[:2], (5.0, 105.0), (0.0, 1.0)):
        alone = json.loads((Path(folder) / "row.json").read_text())
        assert float(row["score"]) == alone["score"] and float(row["deferral_rate"]) == rate
        assert float(row["latency_ms_mean"]) == pytest.approx(latency) == float(row["latency_ms_p50"])
        own, theirs = predictions(row), store.read_jsonl(Path(folder) / "predictions.jsonl")
        assert [r["prediction"] for r in own] == [r["prediction"] for r in theirs]
        assert {r["answered_by"] for r in own} == {1 + int(rate)}


def test_the_row_is_of_both_models(sides):
    cascade.main([*sides, "--threshold", "0.75"])
    (row,) = rows(sides)
    rate = float(row["deferral_rate"])
    assert 0.4 < rate < 0.6 and float(row["latency_ms_mean"]) == pytest.approx(5 + 100 * rate)
    assert {float(row["latency_ms_p95"]), float(row["latency_ms_p99"])} == {105.0}
    assert (row["train_seconds"], row["model_gb"], row["labels_used"]) == ("6", "2", "200")
    assert row["serving_rss_gb"] == "3", "1.5 and 2 less what both have before their models"
    assert "labels of both runs added up" in row["note"] and "threshold 0.75, given; if these" in row["note"]
    assert f"{rate:.1%} deferred, {float(row['score']) / np.mean(right_of(sides[1])):.1%} of the second" in row["note"]
    assert row["variant"] == "probe:embedder_logreg:>full_finetuning:embedder_logreg"
    own = predictions(row)
    assert commands.command(row) == f"python cascade.py {sides[0]} {sides[1]} --threshold 0.75"
    right = np.mean([r["prediction"] == r["target"] for r in own])
    assert float(row["score"]) == right and np.mean([r["answered_by"] == 2 for r in own]) == rate
    assert (Path(row["run_dir"]) / "risk_coverage.png").stat().st_size > 10_000


def test_the_trade_off_is_that_of_every_threshold():
    rng = np.random.default_rng(1)
    confidence, first, second = rng.choice([0.5, 0.6, 0.7, 0.9], 50), rng.random(50).round(), rng.random(50).round()
    thresholds, shares, scores = cascade.trade_off(confidence, first, second)
    assert thresholds.tolist() == [0.5, 0.6, 0.7, 0.9, np.inf]
    for threshold, share, score in zip(thresholds, shares, scores):
        assert share == np.mean(confidence < threshold)
        assert score == pytest.approx(np.where(confidence < threshold, second, first).mean())
    best = cascade.choose(confidence, first, second, None, 0.5)
    assert shares[thresholds == best] == shares[shares <= 0.5].max()
    kept = cascade.choose(confidence, first, second, 0.98, None)
    enough = scores >= 0.98 * second.mean()
    assert kept == thresholds[enough][0]
    assert cascade.choose(confidence, second, second, 1.0, None) == 0.5, "an equal model needs no second"


def test_what_is_asked_for_is_kept_on_other_examples():
    """In simulations, on average to half a point; the first threshold that keeps it
    on the one half keeps less on the other.
    """
    rng, kept, naive = np.random.default_rng(0), [], []
    for _ in range(200):
        sure = rng.random(400)  # how likely the first model is right
        first, second = (rng.random(400) < 0.5 + 0.5 * sure).astype(float), (rng.random(400) < 0.85).astype(float)
        half = rng.permutation(400) < 200
        thresholds, _, scores = cascade.trade_off(sure[half], first[half], second[half])
        lucky = thresholds[(scores >= 0.98 * second[half].mean()).argmax()]
        chosen = cascade.choose(sure[half], first[half], second[half], 0.98, None)
        for found, threshold in ((kept, chosen), (naive, lucky)):
            answers = np.where(sure < threshold, second, first)[~half]
            found.append(answers.mean() / second[~half].mean())
    assert np.mean(kept) > 0.975
    assert np.mean(naive) < np.mean(kept) - 0.003


def test_no_example_is_answered_by_a_threshold_that_it_chose(sides):
    cascade.main([*sides, "--keep", "0.98"])
    (row,) = rows(sides)
    assert 0 < float(row["deferral_rate"]) < 0.9
    confidence, first = np.array([0.6, 0.9] * 20), np.array([0.0, 1.0] * 20)
    args = cascade.parse_args([*sides[:2], "--keep", "1"])
    inside = cascade.champions.halves([None] * 40, 0)
    first[inside] = 1.0  # in one half the first model is always right: the threshold from it defers nothing
    each, note = cascade.thresholds_of(args, confidence, first, np.ones(40), [None] * 40)
    assert set(each[~inside]) == {0.6} and set(each[inside]) == {0.9}
    assert "each chosen on the other half" in note and f"take {cascade.shown(0.9)}, from all" in note


def test_cross_fitting_is_unbiased_where_choosing_on_the_same_examples_is_not():
    """Two models that are equally good and independent: any gain of a threshold is luck."""
    rng, fair, naive = np.random.default_rng(2), [], []
    args = cascade.parse_args(["a", "b", "--keep", "1"])
    for _ in range(300):
        confidence, first, second = rng.random(100), rng.random(100) < 0.7, rng.random(100) < 0.7
        sides = [first.astype(float), second.astype(float)]
        each, _ = cascade.thresholds_of(args, confidence, *sides, [None] * 100)
        final = cascade.choose(confidence, *sides, 1.0, None)
        fair.append(np.where(confidence < each, sides[1], sides[0]).mean())
        naive.append(np.where(confidence < final, sides[1], sides[0]).mean())
    assert abs(np.mean(fair) - 0.7) < 0.007 and np.mean(naive) - 0.7 > 0.01


def test_a_share_is_deferred_whatever_the_scores_are():
    rng = np.random.default_rng(3)
    confidence, first, second = rng.random(400), rng.random(400) < 0.9, rng.random(400) < 0.5
    sides = [first.astype(float), second.astype(float)]
    args = cascade.parse_args(["a", "b", "--max_share", "0.3"])
    each, note = cascade.thresholds_of(args, confidence, *sides, [None] * 400)
    assert (confidence < each).mean() == pytest.approx(0.3, abs=0.05) and "by confidence alone" in note
    assert cascade.choose(confidence, *sides, None, 1.0) == np.inf
    assert (confidence < cascade.choose(confidence, *sides, None, 0.0)).sum() == 0


def test_what_cannot_be_a_cascade_is_refused(sides, tmp_path, capsys):
    def refused(argv, words):
        with pytest.raises(SystemExit) as stop:
            cascade.main([*argv, *sides[2:]])
        assert stop.value.code == 2 and words in capsys.readouterr().err.replace("\n", " ")

    refused([sides[0], str(tmp_path / "none")], "is no run folder")
    few = write_side(tmp_path / "few", [True] * 12, [0.8] * 12, 1.0)
    refused([sides[0], few], "not scored on the same examples")
    tiny = [write_side(tmp_path / name, [True] * 8, [0.8] * 8, 1.0) for name in ("t1", "t2")]
    refused(tiny, "8 examples are too few to choose a threshold on")
    silent = Path(write_side(tmp_path / "silent", [True] * 400, [0.8] * 400, 1.0))
    records = [{**r, "scores": None} for r in store.read_jsonl(silent / "predictions.jsonl")]
    write_jsonl(silent / "predictions.jsonl", records)
    refused([str(silent), sides[1]], "have no probabilities")
    write_jsonl(silent / "predictions.jsonl", [{"id": r["id"], "target": "x", "prediction": "y"} for r in records])
    refused([str(silent), sides[1]], "classify by labels; these are other answers")
    other = Path(write_side(tmp_path / "other", [True] * 400, [0.8] * 400, 1.0))
    records = [{**r, "scores": {**r["scores"], "perhaps": -9.0}} for r in store.read_jsonl(other / "predictions.jsonl")]
    write_jsonl(other / "predictions.jsonl", records)
    refused([str(other), sides[1]], "have other labels, or other places for them")
    nested = write_side(tmp_path / "nested", [True] * 400, [0.8] * 400, 1.0, strategy="cascade")
    refused([nested, sides[1]], "is a cascade itself")
    refused([*sides[:2], "--threshold", "1.5"], "a number from 0 to 1")
    refused(sides[:1], "a cascade is of two runs, 1 are given")
    refused([], "name two run folders")
    refused([*sides[:2], "--threshold", "1", "--keep", "0.9"], "not allowed with")
    assert not Path(sides[3]).exists()


def test_latency_of_two_machines_is_left_out(sides, tmp_path):
    row = json.loads((tmp_path / "dear/row.json").read_text())
    (tmp_path / "dear/row.json").write_text(json.dumps({**row, "device_name": "another"}))
    cascade.main([*sides, "--threshold", "0.75"])
    (found,) = rows(sides)
    assert found["latency_ms_p50"] == "" and "latency of two machines left out" in found["note"]


def test_latency_is_paired_and_prompting_takes_no_training():
    timed = [({"latency_ms": a}, {"latency_ms": 10 * a}) for a in range(10, 101, 10)] + [({"latency_ms": None},) * 2]
    all_deferred = cascade.latencies(*zip(*timed), 1.0)
    assert all_deferred["latency_ms_p50"] == 550 and all_deferred["latency_ms_p95"] == 1100
    assert cascade.latencies(*zip(*timed), 0.5)["latency_ms_mean"] == pytest.approx(55 + 0.5 * 550)
    assert cascade.latencies([{"latency_ms": None}], [{"latency_ms": 3.0}], 0.5) == {}
    prompt, tuned = {"strategy": "prompting", "train_seconds": None}, {"strategy": "peft", "train_seconds": 200.0}
    assert cascade.combined(prompt, tuned, "train_seconds") == 200.0
    assert cascade.combined(tuned, {"strategy": "peft", "train_seconds": None}, "train_seconds") is None


def test_what_rounds_to_certainty_keeps_its_order():
    log_probs = np.log(np.array([[1 - 1e-12, 1e-12], [1e-9, 1 - 1e-9], [0.25, 0.75]]))
    odds = cascade.log_odds(log_probs)
    assert odds[0] > odds[1] > odds[2] == pytest.approx(np.log(3))
    assert cascade.shown(odds[2]) == "0.7500" and cascade.shown(odds[1]).startswith("log-odds 20.7")


def test_labels_of_other_files_are_not_the_same_labels(tmp_path):
    def run(name, ids, **flags):
        (tmp_path / name).mkdir()
        (tmp_path / name / label_counts.FILE).write_text(json.dumps({"ids": ids, "trained_with": 0}))
        return tmp_path / name, {"labels_used": len(ids), "args": json.dumps(flags)}

    a, b = run("a", ["train-0", "train-1"], dataset="d"), run("b", ["train-1", "train-2"], dataset="d")
    c, none = run("c", ["train-1"], dataset="d", train_file="x"), (tmp_path, {"labels_used": 0, "args": "{}"})
    assert label_counts.of_runs([a, b]) == (3, None) and label_counts.of_runs([a, none]) == (2, None)
    assert label_counts.of_runs([a, c]) == (3, "labels of both runs added up, though they may share some")
    assert label_counts.of_runs([a, (tmp_path, {"labels_used": None})]) == (None, None)


def test_two_real_runs_on_the_same_labels_count_these_once(sentiment, tiny_bert, tiny_embedder, out, tmp_path):
    data = ["--dataset", sentiment, "--label_budget", "20", "--latency_runs", "3", *out]
    probe.main([*data, "--model", tiny_embedder])
    finetune.main([*data, "--model", tiny_bert, "--max_steps", "3"])
    finetune.main([*data, "--model", tiny_bert, "--max_steps", "3", "--data_seed", "1"])
    known = store.read_results(tmp_path / "results.csv")
    first, second, other = (row["run_dir"] for row in known)
    cascade.main([first, second, *out[:4]])
    cascade.main([first, other, *out[:4]])
    same, more = store.read_results(tmp_path / "results.csv")[3:]
    choosing = int(same["n_eval"])
    assert (
        int(same["labels_used"]) == 20 + choosing < int(more["labels_used"]) <= 40 + choosing
        and same["eval_id"] == known[0]["eval_id"]
    )
    both = [{name: float(row[name]) for name in ("serving_rss_gb", "start_rss_gb")} for row in known[:2]]
    once = min(row["start_rss_gb"] for row in both)
    assert float(same["serving_rss_gb"]) == pytest.approx(sum(row["serving_rss_gb"] for row in both) - once, abs=1e-4)
    assert float(same["latency_ms_p50"]) > 0
