"""The replay of races: what it learns from one data set and holds on another."""

import json
import sys

import pytest
from helpers import ROOT
from row_helpers import result_row, write_run

from harness.results import schema, store
from harness.sweeps.dropping import RUNGS


@pytest.fixture
def replay(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield pytest.importorskip("race_replay")
    sys.modules.pop("race_replay", None)


def race(tmp_path, rates):
    """The files of a finished race. rates: {data set: {configuration: shares of right answers on each rung, whole}}."""
    told = {}
    for data, racers in rates.items():
        for name, shares in racers.items():
            ids = []
            for step, share in enumerate(shares):
                run_id, n = f"{data}-{name}-{step}", (100, 200, 400)[step]
                (tmp_path / run_id).mkdir()
                args = {"label_budget": 500, "data_seed": 0}
                row = result_row(dataset=f"data/{data}", eval_id=f"{data}{n}", variant=name, flags=args)
                cells = {"run_id": run_id, "train_seconds": 100 * (1 / 16, 1 / 4, 1)[step]}
                right = [
                    i * round(10 * share) % 10 + round(10 * share) >= 10 for i in range(n)
                ]  # spread evenly, alike for equal shares
                row = write_run(tmp_path / run_id, {**row, **cells}, right)
                file = "r.csv" if step == len(RUNGS) else "r_rungs.csv"
                store.append_result(tmp_path / file, {key: row[key] for key in schema.RESULT_COLUMNS if row[key] != ""})
                ids.append([run_id])
            told.setdefault(f"{data} {name}", {"name": name, "rungs": ids[:-1], "whole": ids[-1], "dropped": None})
    (tmp_path / "r_race.json").write_text(json.dumps(list(told.values())))
    return str(tmp_path / "r.csv")


def test_allowances_come_from_other_data_sets_and_losers_save_time(replay, tmp_path):
    steady = {"good": (0.8, 0.8, 0.8), "fair": (0.7, 0.7, 0.7), "poor": (0.2, 0.2, 0.2), "bad": (0.1, 0.1, 0.1)}
    late = {**steady, "late": (0.4, 0.6, 0.9)}  # overtakes all by 0.5 from the first rung on, by 0.3 from the second
    path = race(tmp_path, {"a": steady, "b": steady, "c": late})
    out = tmp_path / "replay.json"
    replay.main(["--results", path, "--output", str(out)])
    found = json.loads(out.read_text())
    assert found["allowances"] == pytest.approx([0.5, 0.3], abs=0.02), "of all data sets"
    by_data = {one["data"]: one for one in found["races"]}
    # a and b are raced with what c has shown, so that only what is more than that behind is dropped
    assert by_data["a"]["dropped"] == by_data["b"]["dropped"] == 0.5 and by_data["a"]["behind"] == 0
    # bad is dropped on the first rung, poor on the second: 4 runs of 1/16, 3 of 1/4, 2 whole ones
    assert by_data["a"]["share"] == pytest.approx((4 / 16 + 3 / 4 + 2) / 4)
    # nobody has shown that anything overtakes when c is raced
    assert by_data["c"]["behind"] == pytest.approx(0.1, abs=0.02)
    assert found["budgets"]["500"]["same"][0] == pytest.approx(2 / 3)
