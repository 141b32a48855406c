"""The replay of races: what it learns from one data set and holds on another."""

import functools
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import ROOT
from row_helpers import result_row, write_run

from harness.results import schema, store
from harness.sweeps import dropping
from harness.sweeps.dropping import NONE, RISK, Rung


@pytest.fixture
def replay(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module, rungs = pytest.importorskip("race_replay"), (Rung(1 / 16, 1 / 2, {}), Rung(1 / 4, 1, {}))
    monkeypatch.setattr(module, "RUNGS", rungs)
    monkeypatch.setattr(module, "SHARES", [[1 / 16, 1 / 2], [1 / 4, 1]])
    monkeypatch.setattr(dropping, "RUNGS", rungs)
    yield module
    sys.modules.pop("race_replay", None)


def race(tmp_path, rates):
    """The files of a finished race. rates: {data set: {configuration: shares of right answers on each rung, whole}}."""
    told = {}
    for data, racers in rates.items():
        for name, shares in racers.items():
            ids = []
            for step, share in enumerate(shares):
                run_id, n, seconds = f"{data}-{name}-{step}", (200, 400, 400)[step], 100 * (1 / 16, 1 / 4, 1)[step]
                (tmp_path / run_id).mkdir()
                args = {"label_budget": 500, "data_seed": 0}
                row = result_row(dataset=f"data/{data}", eval_id=f"{data}{n}", variant=name, flags=args)
                cells = {"run_id": run_id, "train_seconds": seconds, "cpu_seconds": seconds, "device": "cpu"}
                right = [
                    i * round(10 * share) % 10 + round(10 * share) >= 10 for i in range(n)
                ]  # spread evenly, alike for equal shares
                row = write_run(tmp_path / run_id, {**row, **cells}, right)
                file = "r.csv" if step == 2 else "r_rungs.csv"
                store.append_result(tmp_path / file, {key: row[key] for key in schema.RESULT_COLUMNS if row[key] != ""})
                ids.append([run_id])
            about = {"name": f"1 {name}", "learns": "steps", "dropped": None}
            told.setdefault(f"{data} {name}", {**about, "rungs": ids[:-1], "whole": ids[-1]})
    (tmp_path / "r_race.json").write_text(json.dumps(list(told.values())))
    return str(tmp_path / "r.csv")


def test_gains_come_from_other_data_sets_and_losers_save_time(replay, tmp_path):
    steady = {"good": (0.8, 0.8, 0.8), "fair": (0.7, 0.7, 0.7), "poor": (0.2, 0.2, 0.2), "bad": (0.1, 0.1, 0.1)}
    late = {**steady, "late": (0.2, 0.6, 0.9)}  # of what it lacks to 1 it gains seven eighths, then three quarters
    path = race(tmp_path, {"a": steady, "b": steady, "c": late})
    ladders, out = tmp_path / "ladders.jsonl", tmp_path / "replay.json"
    replay.main(["--results", path, "--ladders", str(ladders), "--output", str(out)])
    found = json.loads(out.read_text())
    by_data = {one["data"]: one for one in found["races"] if one["allowed"] == RISK}
    # nobody else has shown that anything is gained when c is raced: it is dropped at once
    assert by_data["c"]["rungs"][0] == ["bad", "fair", "late", "poor"]
    assert by_data["c"]["behind"] == pytest.approx(0.1, abs=0.02)
    # a and b are raced with what c has shown, so that less is dropped than without it
    assert by_data["a"]["rungs"] == by_data["b"]["rungs"] != by_data["c"]["rungs"] and by_data["a"]["behind"] == 0
    assert len(by_data["a"]["rungs"][0]) < 3
    left = [4, 4 - len(by_data["a"]["rungs"][0])]
    left.append(left[1] - len(by_data["a"]["rungs"][1]))
    whole = left[2] - len(by_data["a"]["rungs"][2])  # some are seen to be behind by the first whole run
    assert 1 <= whole < left[2]
    spent = left[0] * 100 / 16 + left[1] * 100 / 4 + whole * 100
    assert by_data["a"]["share"] == pytest.approx(spent / 400, abs=0.001)
    assert {(race["data"], race["of"]) for race in found["races"]} == {("a", 4), ("b", 4), ("c", 5)}
    gains = [{kind: gain[0] for kind, gain in rung.items()} for rung in found["gains"]]
    lacks = [[0.2, 0.3, 0.8, 0.9, 0.8], [0.2, 0.3, 0.8, 0.9, 0.4]]
    for rung, lack, gained in zip(gains, lacks, (0.7, 0.3), strict=True):
        here = lack[-1] * gained / 5  # of c, in which one of five gains anything
        squares = sum(x**2 for x in lack) / 5 + 2 * sum(x**2 for x in lack[:4]) / 4
        assert rung["steps"] == pytest.approx(here / squares, abs=0.01)
    again = tmp_path / "again.json"
    replay.main(["--ladders", str(ladders), "--output", str(again)])
    assert json.loads(again.read_text()) == found, "the file has all that a replay needs"
    before = ladders.read_text()
    replay.main(["--results", path, "--ladders", str(ladders), "--output", str(again)])
    assert ladders.read_text() == before, "the same runs are there once"


def test_what_a_data_set_gains_alike_is_told_from_what_its_configurations_gain_apart(replay):
    """Gains as `dropping.Gain` says: its two deviations are found again."""

    def mean_of(scores, step, n=None):
        return scores[step]

    rng, made = np.random.default_rng(0), []
    for number in range(60):
        of_data = rng.normal(0.3, 0.2)
        for _ in range(5):
            lack = rng.uniform(0.3, 0.8)
            after = 1 - lack + lack * rng.normal(of_data, 0.05)
            scores = {0: 1 - lack, 1: after, -1: after}  # all is gained from the first rung to the second
            about = {"data": f"d{number}", "learns": "steps", "scores": [[0]] * 3}
            made.append(SimpleNamespace(mean=functools.partial(mean_of, scores), **about))
    first, second = (rung["steps"] for rung in replay.gains(made))
    assert first[:3] == pytest.approx((0.3, 0.2, 0.05), abs=0.05) and first.own < 0.06 and first.degrees == 59
    assert second[:3] == (0.0, 0.0, 0.0)


def test_one_data_set_is_no_replay(replay, tmp_path, capsys):
    path = race(tmp_path, {"a": {"good": (0.8, 0.8, 0.8), "fair": (0.7, 0.7, 0.7)}})
    with pytest.raises(SystemExit) as ended:
        replay.main(["--results", path, "--ladders", str(tmp_path / "l.jsonl"), "--output", str(tmp_path / "o.json")])
    assert ended.value.code == 2 and "measured on 1 data sets" in capsys.readouterr().err


def test_a_run_that_two_rungs_share_is_paid_once(replay):
    about = dict.fromkeys(("data", "eval_id", "metric", "budget", "draw", "name", "learns", "shares", "latency_ms"))
    about |= {"clusters": [None] * 4, "train_seconds": 9.0}
    one = replay.Ladder(seconds=[5.0, 5.0, 9.0], scores=[[1.0, 0.0], [1.0, 0.0], [1.0, 1.0, 0.0, 1.0]], **about)
    assert [one.spent(step) for step in range(2)] == [5.0, 0.0]
    assert one.entry(1, NONE).seconds == 9.0, "it is not whole for that"
    again = replay.Ladder(seconds=[5.0, 5.0, 9.0], scores=[[1.0, 0.0], [0.0, 0.0], [1.0, 1.0, 0.0, 1.0]], **about)
    assert again.spent(1) == 5.0
