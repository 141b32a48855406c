import math
import statistics

import pytest
from row_helpers import SEEDS, result_row, rows_as_read

from harness.results import configurations, schema


def test_seeds_are_one_configuration_and_its_error_counts_examples_and_seeds(tmp_path):
    found = configurations.group_seeds(rows_as_read(tmp_path, [*SEEDS, result_row(score=0.6, flags={"rank": 4})]))
    assert [len(c.rows) for c in found] == [3, 1] and [c.name.split(", ")[-1] for c in found] == ["rank 8", "rank 4"]
    many, one = found
    assert many.mean() == pytest.approx(0.72) and many.spread() == pytest.approx(statistics.stdev([0.70, 0.74, 0.72]))
    examples = 0.1 / 2 / 1.96
    assert many.standard_error == pytest.approx(math.sqrt(examples**2 + 0.02**2 / 3))
    assert one.interval == pytest.approx((0.55, 0.65)) and one.spread() is None
    assert many.mean("train_seconds") == 11 and one.mean("train_seconds") is None


@pytest.mark.parametrize("cell", ["nan", "inf", "", None])
def test_what_is_no_number_is_unknown(cell):
    row = {**dict.fromkeys(schema.RESULT_COLUMNS, ""), "score": cell}
    assert (
        configurations.value(row, "score") is None
        and configurations.value(row, "memory") is None
        and configurations.value(row, "labels_used") is None
    )


def test_only_the_newest_ok_row_of_a_configuration_counts(tmp_path):
    rows = [
        SEEDS[0],
        {**SEEDS[0], "run_id": "newer"},
        result_row(score=0.5, status="oom", note="CUDA out of memory"),
        result_row(score=None),
    ]
    kept, skipped = configurations.select(rows_as_read(tmp_path, rows))
    assert [row["run_id"] for row in kept] == ["newer"]
    assert [why for _, why in skipped] == [
        "the same configuration was run again as newer",
        "status oom: CUDA out of memory",
        "no score",
    ]


def test_the_frontier_is_what_nothing_beats_in_both():
    points = [(3, 0.5), (1, 0.4), (2, 0.4), (2, 0.6), (5, 0.9), (6, 0.9), (7, 0.1)]
    kept = configurations.pareto(points)
    assert [points[i] for i in kept] == [(1, 0.4), (2, 0.6), (5, 0.9)]
    for i, (cost, score) in enumerate(points):
        beaten = any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)
        assert (i in kept) != beaten


def test_a_run_folder_is_found_from_where_the_script_ran_or_beside_the_csv(tmp_path, monkeypatch):
    (tmp_path / "demo/runs/a").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    assert configurations.run_folder({"run_dir": "demo/runs/a"}, "demo").is_dir()  # as `make demo` writes it
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert configurations.run_folder({"run_dir": "runs/a"}, tmp_path / "demo").is_dir()
    assert not configurations.run_folder({"run_dir": "runs/b"}, tmp_path / "demo").is_dir()
    assert configurations.run_folder({"run_dir": ""}, tmp_path / "demo") != tmp_path / "demo"
