"""The replay of races: what it learns from one data set and holds on another."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from row_helpers import result_row, write_run

from harness.results import schema, store
from harness.sweeps import dropping
from harness.sweeps.dropping import RISK, Gain, Rung


@pytest.fixture
def replay(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module, rungs = pytest.importorskip("race_replay"), (Rung(1 / 16, 1 / 2, {}), Rung(1 / 4, 1, {}))
    ladders = importlib.import_module("race_ladders")
    for some in (module, ladders):
        monkeypatch.setattr(some, "RUNGS", rungs)
        monkeypatch.setattr(some, "SHARES", [[1 / 16, 1 / 2], [1 / 4, 1]])
    monkeypatch.setattr(dropping, "RUNGS", rungs)
    yield module
    for name in ("race_replay", "race_ladders"):
        sys.modules.pop(name, None)


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


@pytest.mark.parametrize("shared, own", [(0.2, 0.05), (0.05, 0.2), (0.0, 0.1)])
def test_what_a_data_set_gains_alike_is_told_from_what_its_configurations_gain_apart(replay, shared, own):
    """For a new data set, from six with five configurations each: on the mean of many repeats."""
    rng, found = np.random.default_rng(0), []
    for _ in range(500):
        sets = []
        for _ in range(6):
            lacks, of_data = rng.uniform(0.3, 0.8, 5), rng.normal(0.3, shared)
            sets.append(np.stack([lacks, lacks * rng.normal(of_data, own, 5)], axis=1))
        found.append(replay.fitted(sets))
    means, of_sets, of_one = (np.array([gain[i] for gain in found]) for i in range(3))
    assert means.mean() == pytest.approx(0.3, abs=0.02) and {gain.degrees for gain in found} == {5}
    assert np.mean(of_one**2) == pytest.approx(own**2, rel=0.1)
    assert np.mean(of_sets**2) == pytest.approx(shared**2 + means.var(), rel=0.3, abs=0.003), "and of the mean"


def test_a_whole_run_of_the_best_one_spares_those_that_it_shows_to_be_behind(replay):
    ladders = importlib.import_module("race_ladders")

    def ladder(name, short, whole):
        right = [
            [float(i % 10 < 10 * share) for i in range(n)] for share, n in ((short, 200), (short, 400), (whole, 400))
        ]
        seconds, shares = [10.0, 20.0, 100.0], [[1 / 16, 1 / 2], [1 / 4, 1]]
        return ladders.Ladder(
            "d", "e", "accuracy", 125, 0, name, "steps", shares, seconds, right, [None] * 400, 9.0, 1.0
        )

    racers = {one.name: one for one in (ladder("good", 0.5, 0.5), ladder("fair", 0.4, 0.4))}
    alike = {"steps": Gain(0.2, 0.3, 0.02, 9)}
    out, risk = replay.finish(racers, alike, 0.05, 0.0)
    assert out == {"fair"} and 0 < risk < 0.05, "good gains nothing, and so will fair"
    assert replay.finish(racers, {"steps": Gain(0.2, 0.02, 0.3, 9)}, 0.05, 0.0) == (set(), 0.0), "it may gain more"
    assert replay.finish(racers, alike, 0.05, 0.05)[0] == set(), "no risk is left"


def test_one_configuration_a_data_set_tells_nothing_of_what_is_alike(replay):
    found = replay.fitted([np.array([[0.5, 0.1 * i]]) for i in range(4)])
    assert found.shared == 0.0 and found.own > 0.2


def test_one_data_set_is_no_replay(replay, tmp_path, capsys):
    path = race(tmp_path, {"a": {"good": (0.8, 0.8, 0.8), "fair": (0.7, 0.7, 0.7)}})
    with pytest.raises(SystemExit) as ended:
        replay.main(["--results", path, "--ladders", str(tmp_path / "l.jsonl"), "--output", str(tmp_path / "o.json")])
    assert ended.value.code == 2 and "measured on 1 data sets" in capsys.readouterr().err


def test_the_gains_of_a_race_are_those_that_were_measured(replay, monkeypatch):
    monkeypatch.undo()  # today's rungs, not two of them
    measured = replay.gains([one for one in replay.read_ladders(replay.LADDERS) if one.shares == replay.SHARES])
    for rung, found in zip(dropping.RUNGS, measured, strict=True):
        for kind, gain in found.items():
            assert rung.gains[kind] == pytest.approx(gain, abs=0.005), f"{kind}: {gain}"


def test_a_real_race_stands_beside_its_suite(replay, tmp_path, capsys):
    suite = Path(race(tmp_path, {"a": {"good": (0.8, 0.8, 0.8), "poor": (0.2, 0.2, 0.9)}}))
    lines = suite.read_text().splitlines(keepends=True)
    raced, whole, out = (tmp_path / name for name in ("raced.csv", "raced_whole.csv", "check.json"))
    raced.write_text("".join(line for line in lines if "poor" not in line))
    suite.rename(whole)
    (tmp_path / "r_rungs.csv").rename(tmp_path / "raced_rungs.csv")
    check = importlib.import_module("race_check")
    check.main([str(raced), "--output", str(out)])
    found = json.loads(out.read_text())["races"][0]
    assert (found["data"], found["of"], found["dropped"], found["suite_seconds"]) == ("a", 2, 1, 200)
    assert found["race_seconds"] == pytest.approx(100 + 2 * (100 / 16 + 100 / 4), abs=0.3)
    assert found["behind"] == pytest.approx(0.1) and found["pick"] != found["suite_pick"]
    whole.write_text("".join(line for line in lines if "good" not in line))
    with pytest.raises(SystemExit):
        check.main([str(raced), "--output", str(out)])
    assert "are not all in" in capsys.readouterr().err
