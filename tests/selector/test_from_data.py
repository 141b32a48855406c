"""Predictions for data that no row measures: what is in reach of them, and what is said where nothing is likely."""

import argparse
import dataclasses
import json
import math
import shlex

import pytest
from helpers import ROOT, write_jsonl
from row_helpers import made_up_rows, result_row, results_csv
from selector_helpers import decide

import adaptive_selector
import sweep
from harness.results import configurations, store
from harness.selector import from_data, predictor
from harness.selector.candidates import Candidate, Limits
from harness.selector.spec import data_of_rows

TOLD = "--tokens 30 --n_classes 2 --majority_share 0.5"  # about new data, as of made_up_rows


@pytest.fixture
def path(tmp_path):
    return results_csv(tmp_path / "r.csv", made_up_rows())


def learnt(rows, tmp_path):
    kept, _ = configurations.select(store.read_results(results_csv(tmp_path / "l.csv", rows)))
    return predictor.Predictor(predictor.groups_of(kept), data_of_rows(kept))


@pytest.mark.parametrize("labels, strategy", [(0, "prompting"), (1, "prompting"), (24, "prompting"), (30, None)])
def test_what_is_trained_needs_as_many_labels_as_were_measured(path, capsys, labels, strategy):
    """Half of the fewest, 50, at least."""
    found = decide(f"--dataset new --data_size {labels} {TOLD}", capsys, path)
    named = [found["configuration"], *found["others"]]
    assert ({one["strategy"] for one in named} == {"prompting"}) == (strategy == "prompting")
    if strategy is None:
        assert all("--label_budget 30" in one["command"] for one in named if one["strategy"] == "full_finetuning")


def test_what_needs_a_model_that_is_not_here_is_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{**row, "model": f"models/sized/{row['total_params']}"} for row in made_up_rows()]
    rows = [{**row, "args": json.dumps({**json.loads(row["args"]), "model": row["model"]})} for row in rows]
    path, asked = results_csv(tmp_path / "r.csv", rows), f"--dataset new --data_size 900 {TOLD}"
    none = decide(asked, capsys, path)
    assert none["configuration"] and not any("not here" in caution for caution in none["cautions"])
    large, small = rows[-1]["model"], rows[0]["model"]
    (tmp_path / large).mkdir(parents=True)
    found = decide(asked, capsys, path)
    named = [found["configuration"], *found["others"]]
    assert all(f"--model {large} " in one["command"] for one in named if one["command"])
    assert f"--model {large} " in found["command"] and f"--model {small} " in none["command"]
    (caution,) = [caution for caution in found["cautions"] if "not here" in caution]
    assert small in caution and large not in caution
    assert decide(f"{asked} --model {large}", capsys, path)["considered"] == none["considered"]


def test_a_class_needs_a_label(tmp_path):
    learned = learnt(made_up_rows(), tmp_path)
    trained = min((s for s in learned.specs if s.steps), key=lambda s: (s.labels, s.params))
    many = dataclasses.replace(trained.data, classes=4.0)
    assert learned.refusal(dataclasses.replace(trained, data=many)) is None
    assert "3 labels are too few" in learned.refusal(dataclasses.replace(trained, data=many, labels=3))


def test_the_command_has_all_labels_where_predictions_end_before(path, capsys):
    found = decide(f"--dataset new --data_size 70000 {TOLD}", capsys, path)
    assert found["configuration"]["labels"] == 2000 and "--label_budget 70000" in found["command"]
    assert any("predicted for 2,000 labels" in caution for caution in found["cautions"])
    assert not any(
        "predicted for" in c for c in decide(f"--dataset new --data_size 900 {TOLD}", capsys, path)["cautions"]
    )


def test_where_no_row_decides_the_command_measures_every_way(path, tmp_path, capsys, monkeypatch):
    """The command is one that sweep.py reads; where rows measure the data there is none, nor without data or labels."""
    rows = [
        {"body": f"the {'good' if i % 2 else 'bad'} film " * 8 + str(i), "verdict": "ab"[i % 2]} for i in range(200)
    ]
    data = tmp_path / "mine.jsonl"
    write_jsonl(data, rows)
    flags = f"--dataset {data} --text_column body --label_column verdict --data_size 60 --latency_ms 1000"
    found = decide(flags, capsys, path)
    assert found["basis"] == "model", found["not_used"]
    words = shlex.split(found["compare"])
    monkeypatch.chdir(ROOT)
    sweep.main([*words[2:], "--dry_run"])
    said = capsys.readouterr().out
    assert words[1] == "sweep.py" and "--label_budget 60" in said and "--text_column body" in said
    assert "--latency_ms 1000" in found["compare"]
    assert decide(f"{flags} --basis rules", capsys, path)["compare"] == found["compare"]
    every = decide(flags.replace("--data_size 60", "--data_size 200 --cached --model b/lm"), capsys, path)["compare"]
    asked = argparse.Namespace(dataset=data, subset=None, text_column="body", label_column="verdict")
    labels = 200 - len(from_data.load(asked).evaluation)
    assert f"label_budget={labels}" in every and labels < 200, "evaluation examples are no labels to train on"
    sweep.main([*shlex.split(every)[2:], "--dry_run"])
    capsys.readouterr()
    assert "--model b/lm" in every and "latency_ms" not in every
    odd = f"{flags.replace('text_column body', 'text_column [body]')} --basis rules"
    for other in (
        odd,
        f"{flags} --params_b 8 --basis rules",
        f"--dataset d0 --data_size 500 --basis model {TOLD}",
        f"--dataset d0 --data_size 500 {TOLD}",
        f"{TOLD} --data_size 60",
        f"--dataset new --data_size 0 {TOLD}",
    ):
        assert decide(other, capsys, path)["compare"] is None


def test_where_nothing_is_likely_nothing_is_chosen(path, capsys):
    for limits in ("--latency_ms 0.01", "--required_accuracy 0.99"):
        found = decide(f"--dataset new --data_size 500 {limits} {TOLD}", capsys, path)
        assert found["basis"] == "model" and found["choice"] is None and found["configuration"] is None
        assert found["command"] == f"{found['nearest']['command']} --results compare.csv"
        assert found["probability"] < 0.5
    adaptive_selector.main(["--dataset", "new", "--latency_ms", "0.01", *TOLD.split(), "--results", path])
    told = capsys.readouterr().out
    assert "Nothing is likely to fit. The nearest is" in told and "relax latency to" in told
    adaptive_selector.main(["--dataset", "new", "--latency_ms", "0.01", *TOLD.split(), "--results", path, "--explain"])
    assert "predicted from other data is likely to be within all limits" in capsys.readouterr().out
    found = decide(f"--dataset new --data_size 500 {TOLD}", capsys, path)
    assert found["choice"] and found["probability"] == 1.0


@pytest.mark.parametrize("limits", ["--latency_ms 0.01", "--required_accuracy 0.99", "--latency_ms 4 --memory_gb 0.1"])
def test_what_is_relaxed_as_told_has_an_answer(path, capsys, limits):
    """Relaxed to a prediction itself a limit would be held with even chances, too few to recommend anything."""
    found = decide(f"--dataset new --data_size 500 {limits} {TOLD}", capsys, path)
    told = dict(zip(limits.split()[::2], limits.split()[1::2]))
    assert found["choice"] is None and found["relaxed"]
    for name, value in list(found["relaxed"].items())[: 1 if found["relax_one"] else None]:
        told[f"--{name}"] = str(math.floor(1e4 * value) / 1e4 if name == "required_accuracy" else value + 1e-4)
    again = decide(f"--dataset new --data_size 500 {' '.join(map(' '.join, told.items()))} {TOLD}", capsys, path)
    assert again["choice"] and again["probability"] >= predictor.NOTHING


def test_examples_that_evaluate_are_no_labels(path, tmp_path, capsys):
    rows = [{"text": f"the {'good' if i % 2 else 'bad'} film " * 8 + str(i), "label": "ab"[i % 2]} for i in range(300)]
    write_jsonl(tmp_path / "mine.jsonl", rows)
    found = decide(f"--dataset {tmp_path / 'mine.jsonl'} --data_size 300", capsys, path)
    there = from_data.labels_there(argparse.Namespace(dataset=tmp_path / "mine.jsonl", subset=None))
    assert there < 300 and f"--label_budget {there} " in f"{found['command']} "
    assert any(f"{there} of the 300 labelled examples can be learnt from" in caution for caution in found["cautions"])


def test_a_prediction_is_for_the_machine_of_its_rows(path, capsys):
    rows = store.read_results(path)
    found = decide(f"--dataset new --data_size 500 {TOLD}", capsys, path)
    assert found["hardware"] == rows[0]["device_name"]
    adaptive_selector.main(["--dataset", "new", *TOLD.split(), "--results", path])
    assert f"latencies and memory on {rows[0]['device_name']}" in capsys.readouterr().out


def test_a_kind_of_task_is_predicted_from_three_data_sets_of_it(tmp_path, capsys):
    rows = made_up_rows()
    for i in range(2):
        cells = {"strategy": "prompting", "script": "prompt_eval.py", "metric": "token_f1", "variant": "0_shot"}
        cells |= {"dataset": f"data/q{i}", "eval_id": f"q{i}", "total_params": 20_000_000, "prompt_tokens": 3000}
        rows += [result_row(score=0.4, n_train=0, macro_f1=None, latency_ms_p50=90, **cells)]
    found = decide("--dataset new --task qa --tokens 30", capsys, results_csv(tmp_path / "q.csv", rows))
    assert found["basis"] == "rules" and "qa was measured on 2 data sets, and 3 are needed" in found["not_used"][1]


def test_what_has_no_model_has_no_size_to_scale(tmp_path, capsys):
    rows = made_up_rows()
    for g in range(6):
        cells = {
            "strategy": "probe",
            "script": "probe.py",
            "variant": "tfidf_logreg",
            "model": "",
            "total_params": None,
        }
        cells |= {"dataset": f"data/d{g}", "eval_id": f"e{g}", "majority_baseline": 0.5, "trainable_params": 5000}
        cells |= {"n_train": 200, "train_seconds": 0.1, "latency_ms_p50": 1, "flags": {"features": "tfidf"}}
        rows.append(result_row(score=0.7, **cells))
    found = decide(
        f"--dataset new --data_size 200 --params_b 0.1 {TOLD}", capsys, results_csv(tmp_path / "t.csv", rows)
    )
    names = [one["name"] for one in (found["configuration"], *found["others"])]
    assert any("TF-IDF" in name for name in names) and any("a model of 0.1 B" in name for name in names)
    assert not any("TF-IDF" in name and "a model" in name for name in names)


def test_tokens_of_other_data_have_no_price_here(tmp_path, capsys):
    rows = [{**row, "generated_tokens": 100} for row in made_up_rows()]
    path, prices = results_csv(tmp_path / "p.csv", rows), "--price_in 1 --price_out 2"
    assert "tokens in" in decide(f"--dataset data/d0 {prices} --data_size 0", capsys, path)["cost"]
    assert decide(f"--dataset new {prices} --data_size 0 {TOLD}", capsys, path)["cost"] is None


def test_the_memory_of_serving_has_an_error_of_its_own():
    near = Candidate("a", "probe", 0.8, 1.0, 1.0, 0, 1.0, memory_error=0.3, serving_gb=0.8, degrees=9)
    chances = [
        predictor.chance(dataclasses.replace(near, serving_error=error), Limits(serving_memory_gb=1.0))
        for error in (None, 0.05)
    ]
    assert chances[0] < 0.8 < 0.99 < chances[1]


def test_a_file_that_cannot_be_read_is_told_and_lengths_do_without_it(path, tmp_path, capsys):
    write_jsonl(
        tmp_path / "mine.jsonl", [{"body": f"{'some words ' * 11}{i}", "kind": "ab"[i % 2]} for i in range(200)]
    )
    mine = f"--dataset {tmp_path / 'mine.jsonl'} --data_size 200"
    for columns, said in (
        ("", "--text_column and --label_column"),
        ("--text_column x --label_column kind", "x: no such"),
    ):
        with pytest.raises(SystemExit) as ended:
            decide(f"{mine} {columns}", capsys, path)
        assert ended.value.code == 2 and said in capsys.readouterr().err
    assert decide(f"{mine} --text_column body --label_column kind", capsys, path)["basis"] == "model"
    found = decide(f"{mine} {TOLD}", capsys, path)
    assert found["basis"] == "model" and any("cannot be read" in caution for caution in found["cautions"])


def test_an_interval_can_be_made_of_the_json(path, capsys):
    found = decide(f"--dataset new --data_size 500 {TOLD}", capsys, path)["configuration"]
    assert found["degrees"] == 5 and found["score_error"] > 0
    measured = json.loads(json.dumps(decide("--dataset data/d0 --data_size 500", capsys, path)))["configuration"]
    assert measured["degrees"] is None or math.isfinite(measured["degrees"])


@pytest.mark.parametrize("rare", ["data sets", "serving_rss_gb"])
def test_few_rows_beside_the_largest_data_set_predict_nothing(rare, tmp_path, capsys):
    """Where a data set is left out, five rows are left to predict it from, of each column."""
    rows = made_up_rows()
    if rare == "data sets":
        first = rows[0]["dataset"]
        names = list(dict.fromkeys(row["dataset"] for row in rows))[1:3]
        rows = [row for row in rows if row["dataset"] == first]
        others = [next(row for row in made_up_rows() if row["dataset"] == name) for name in names]
        rows = [
            *[{**row, "run_id": f"{row['run_id']}{i}", "variant": f"v{i}"} for i in range(9) for row in rows],
            *others,
        ]
    else:
        seen = set()
        for row in rows:
            row[rare] = 1.0 if len(seen) < 3 and row["dataset"] not in seen else None
            seen.add(row["dataset"])
    found = decide(f"--dataset new {TOLD}", capsys, results_csv(tmp_path / "r.csv", rows))
    assert found["basis"] == ("rules" if rare == "data sets" else "model")
    assert rare != "data sets" or any("too few to predict from" in why for why in found["not_used"])


def test_rows_that_do_not_say_what_labels_they_used_teach_nothing(tmp_path):
    rows = made_up_rows()
    kept = learnt([{**row, "labels_used": None} if i % 9 == 0 else row for i, row in enumerate(rows)], tmp_path)
    assert 0 < len(kept.known) < len(learnt(rows, tmp_path).known)
    assert all(c.mean("labels_used") is not None for _, c, _ in kept.known)


@pytest.mark.parametrize("flags, limit", [("--memory_gb 1 --serving_memory_gb 8", "8"), ("--memory_gb 1", "1")])
def test_a_race_drops_nothing_that_the_selector_allows(flags, limit, path, capsys):
    """With a limit of serving apart, --memory_gb is that of training alone."""
    words = shlex.split(decide(f"--dataset new {TOLD} {flags}", capsys, path)["compare"])
    assert words[words.index("--memory_gb") + 1] == limit


@pytest.mark.parametrize("flags", ["--data_size 500 --basis rules", "", "--data_size 500"])
def test_no_command_asks_for_more_labels_than_there_are(flags, path, tmp_path, capsys):
    rows = [{"text": f"text {i} " + "word " * 25, "label": "ab"[i % 2]} for i in range(60)]
    write_jsonl(tmp_path / "mine.jsonl", rows)
    found = decide(f"--dataset {tmp_path / 'mine.jsonl'} {flags}", capsys, path)
    words, choice = shlex.split(found["command"]), found["configuration"]
    assert choice is None or choice["labels"] <= 42
    assert "--label_budget" not in words or int(words[words.index("--label_budget") + 1]) <= 42, found["command"]
