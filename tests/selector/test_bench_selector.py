"""The benchmark of the selector judges as it says."""

import json
import sys

import numpy as np
import pytest
from helpers import ROOT
from row_helpers import made_up_rows, result_row, results_csv

from harness.results import store
from harness.results.configurations import Configuration
from harness.selector.candidates import Candidate, Limits, measured


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield pytest.importorskip("bench_selector")
    for name in ("bench_selector", "choosers"):
        sys.modules.pop(name, None)


def test_a_choice_is_right_within_the_limits_or_where_there_is_nothing(bench):
    good, poor = (Candidate(str(s), "peft", s, 50.0, 1.0, 10, 0.0, majority=0.5) for s in (0.8, 0.6))
    slow, limits = Candidate("slow", "peft", 0.9, 500.0, 1.0, 10, 0.0), Limits(latency_ms=100, data_size=10)
    short = pytest.approx(0.2)
    assert bench.judge(poor, [good, poor], limits) == {
        **dict.fromkeys(("right", "held", "kept"), True),
        **dict.fromkeys(("behind", "lost"), short),
    }
    missed = {"right": False, "kept": False, "behind": None, "lost": pytest.approx(0.3)}  # all above the majority class
    assert bench.judge(slow, [good], limits) == {**missed, "held": False}
    assert bench.judge(None, [good], limits) == {**missed, "held": None}
    assert bench.judge(None, [], limits)["right"] and bench.judge(slow, [], limits)["kept"] is None
    assert not bench.judge(slow, [], limits)["right"]


def test_each_data_set_counts_the_same(bench):
    outcomes = [{"data": "a", "x": {"right": True}}] * 90 + [{"data": "b", "x": {"right": False}}] * 10
    parts = bench.summed(outcomes, "x", "right")
    assert bench.mean_of(parts) == 0.5 and bench.interval(parts, 0.0, 1.0) == [0.0, 1.0]


def test_what_is_measured_is_chosen_from_as_far_as_it_was_measured(bench, tmp_path):
    """Three ways, each with most of the labels that there are; without them where there are no more than three."""
    import choosers

    def ways(n):
        rows = [
            result_row(score=0.5 + 0.1 * i, labels_used=labels, total_params=10 - i, variant=f"v{i}", train_seconds=i)
            for i in range(n)
            for labels in (10, 100)
        ]
        found = store.read_results(results_csv(tmp_path / f"{n}.csv", rows))[-2 * n :]
        return measured([Configuration([row], row["variant"]) for row in found])

    limits, some = Limits(data_size=100), ways(6)
    found = choosers.plain_choices(limits, some, 0)
    assert found["rows"].score == pytest.approx(1.0)
    assert (found["three_soonest"].score, found["three_soonest"].labels) == (pytest.approx(0.7), 100)
    assert found["cheapest"].score == pytest.approx(1.0), "fewest parameters"
    drawn = {choosers.plain_choices(limits, some, seed)["three_random"].score for seed in range(30)}
    assert {round(score, 1) for score in drawn} == {0.7, 0.8, 0.9, 1.0}, "the best of any three of six"
    assert "three_soonest" not in choosers.plain_choices(limits, ways(5), 0)


def test_where_rules_answer_is_told_apart(bench, tmp_path, monkeypatch):
    """The models of one data set are larger by far than any that was learnt from."""
    for name, values in (("LATENCIES", (None, 50)), ("MEMORIES", (None,)), ("SCORES", (None, 0.7))):
        monkeypatch.setattr(f"choosers.{name}", values)
    rows = made_up_rows()
    far = [{**row, "dataset": "data/far", "eval_id": "far", "total_params": 10**13} for row in rows[:7]]
    path, out = results_csv(tmp_path / "r.csv", [*rows, *far]), tmp_path / "b.json"
    bench.main(["--results", path, "--output", str(out)])
    found = json.loads(out.read_text())
    assert "far" in found["data_sets"] and found["where_it_predicts"]["settings"] == found["settings"] * 6 / 7
    right = [one["choosers"]["selector"]["right"][0] for one in (found, found["where_it_predicts"])]
    assert right[1] > right[0] and found["choosers"]["rows"]["held"][0] is None


def test_a_difference_is_taken_where_both_are_judged(bench):
    outcomes = [{"data": "a", "x": {"right": 1.0}, "selector": {"right": 0.5}}] * 2
    outcomes += [
        {"data": "a", "selector": {"right": 0.0}},
        {"data": "b", "x": {"right": None}, "selector": {"right": 1}},
    ]
    assert bench.summed(outcomes, "x", "right", less="selector") == [[1.0, 2], [0.0, 0]]


def test_it_learns_from_the_other_data_sets_alone(bench, tmp_path, monkeypatch):
    path, out = results_csv(tmp_path / "r.csv", made_up_rows()), tmp_path / "b.json"
    for name, values in (("LATENCIES", (None, 50, 10)), ("MEMORIES", (None, 2)), ("SCORES", (None, 0.7))):
        monkeypatch.setattr(f"choosers.{name}", values)
    seen, rest_of = set(), bench.rest_of

    def watched(group, *rest):
        kept = rest_of(group, *rest)
        seen.add((group[0], frozenset(g[0] for g, _ in kept)))
        return kept

    monkeypatch.setattr(bench, "rest_of", watched)
    bench.main(["--results", path, "--output", str(out), "--gp"])
    everything = {f"d{i}" for i in range(6)}
    assert seen == {(name, frozenset(everything - {name})) for name in everything}
    found = json.loads(out.read_text())
    judged = {name: cells for name, cells in found["choosers"].items() if not name.startswith("three_")}
    right = {name: cells["right"][0] for name, cells in judged.items()}
    ahead = {name: cells["ahead"][0] for name, cells in judged.items()}
    assert ahead == pytest.approx({name: right["selector"] - share for name, share in right.items()})
    assert right["nothing"] == pytest.approx(found["nothing"] / found["settings"], abs=0.05)
    assert right["selector"] > 0.8 > right["random"], "the rows follow a law that can be learnt"
    three = {"three_soonest", "three_random"}  # there are too few ways
    assert set(found["choosers"]) == set(bench.CHOOSERS) - three and found["nothing"] > 0


def test_rows_to_judge_on_are_not_learnt_from(bench, tmp_path, monkeypatch, capsys):
    for name, values in (("LATENCIES", (None, 50)), ("MEMORIES", (None,)), ("SCORES", (None, 0.7))):
        monkeypatch.setattr(f"choosers.{name}", values)
    fresh, rows, seen, rest_of = ("data/d4", "data/d5"), made_up_rows(), {}, bench.rest_of
    judged = results_csv(tmp_path / "judged.csv", [row for row in rows if row["dataset"] in fresh])
    learnt = results_csv(tmp_path / "learnt.csv", [row for row in rows if row["dataset"] not in fresh])

    def watched(group, *rest):
        seen[group[0]] = {g[0] for g, _ in rest_of(group, *rest)}
        return rest_of(group, *rest)

    monkeypatch.setattr(bench, "rest_of", watched)
    bench.main(["--results", learnt, "--judge", judged, "--output", str(tmp_path / "b.json")])
    assert seen == dict.fromkeys(("d4", "d5"), {"d0", "d1", "d2", "d3"})
    assert json.loads((tmp_path / "b.json").read_text())["data_sets"] == ["d4", "d5"]
    with pytest.raises(SystemExit):
        bench.main(["--results", judged, "--judge", judged, "--output", str(tmp_path / "b.json")])
    assert "judged.csv: d4, d5 is in" in capsys.readouterr().err


def test_the_interval_of_few_data_sets_covers(bench):
    """Of a normal mean of four data sets, in 95 % of the draws; a percentile bootstrap would in 80 %."""
    draws = np.random.default_rng(0).normal(size=(2000, 4))
    bounds = [bench.interval([(x, 1) for x in some]) for some in draws.tolist()]
    assert np.mean([low <= 0 <= high for low, high in bounds]) == pytest.approx(0.95, abs=0.015)
    assert bench.interval([(1, 1)]) == [None, None]
