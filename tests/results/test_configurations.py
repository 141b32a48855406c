import math
import statistics

import numpy as np
import pytest
from row_helpers import SEEDS, result_row, rows_as_read, write_run

from harness.results import configurations, run_scores, schema, tables


def test_seeds_are_one_configuration_and_its_error_counts_examples_and_seeds(tmp_path):
    other = result_row(score=0.6, train_seconds=9, flags={"rank": 4})
    found = configurations.group_seeds(rows_as_read(tmp_path, [*SEEDS, other]))
    assert [len(c.rows) for c in found] == [3, 1] and [c.name.split(", ")[-1] for c in found] == ["rank 8", "rank 4"]
    many, one = found
    assert many.mean() == pytest.approx(0.72) and many.spread() == pytest.approx(statistics.stdev([0.70, 0.74, 0.72]))
    examples = 0.1 / 2 / 1.96
    assert many.standard_error == pytest.approx(math.sqrt(examples**2 + 0.02**2 / 3))
    assert one.standard_error == pytest.approx(math.sqrt(examples**2 + 0.02**2)), "the spread is that of the panel"
    assert one.interval[0] < 0.55 and one.interval[1] > 0.65 and one.spread() is None
    assert many.mean("train_seconds") == 11 and one.mean("train_seconds") == 9


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
    assert run_scores.run_folder({"run_dir": "demo/runs/a"}, "demo").is_dir()  # as `make demo` writes it
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run_scores.run_folder({"run_dir": "runs/a"}, tmp_path / "demo").is_dir()
    assert not run_scores.run_folder({"run_dir": "runs/b"}, tmp_path / "demo").is_dir()
    assert run_scores.run_folder({"run_dir": ""}, tmp_path / "demo") != tmp_path / "demo"


def seeds_of(variant, scores, **cells):
    rows = [result_row(score=score, seed=seed, variant=variant, train_seconds=5) for seed, score in enumerate(scores)]
    return [{**row, **cells} for row in rows]


def test_two_runs_alone_have_no_interval_and_a_panel_shares_its_spread(tmp_path):
    two, one = seeds_of("a", (0.60, 0.70)), seeds_of("b", (0.5,))
    a, b = configurations.group_seeds(rows_as_read(tmp_path, [*two, *one]))
    assert a.seeds is None and a.interval == (None, None) and a.mean() == pytest.approx(0.65)
    assert b.interval == pytest.approx((0.45, 0.55)), "of the examples alone, as in its row"
    (tmp_path / "r.csv").unlink()
    more = seeds_of("c", (0.62, 0.60, 0.64))
    a, b, c = configurations.group_seeds(rows_as_read(tmp_path, [*two, *one, *more]))
    variance = (2 * 0.05**2 + 2 * 0.02**2) / 3
    assert a.seeds is b.seeds is c.seeds and a.seeds.degrees == 3 and a.seeds.variance == pytest.approx(variance)
    assert b.standard_error**2 == pytest.approx((0.05 / 1.96) ** 2 + variance)
    assert c.standard_error**2 == pytest.approx((0.05 / 1.96) ** 2 + variance / 3)
    assert b.interval[1] - b.interval[0] > c.interval[1] - c.interval[0]


def test_seeds_change_nothing_where_there_is_neither_a_label_nor_training(tmp_path):
    plain = result_row(score=0.7, strategy="prompting", variant="0_shot", script="prompt_eval.py")
    found = configurations.group_seeds(rows_as_read(tmp_path, [plain, *seeds_of("a", (0.5, 0.6, 0.7))]))
    assert not found[0].varies and found[0].interval == pytest.approx((0.65, 0.75)) and found[1].varies


def test_degenerate_runs_count(tmp_path):
    fine = seeds_of("a", (0.80, 0.82, 0.81))
    collapsed = seeds_of("b", (0.80, 0.82, 0.5, 0.5, 0.5))
    for row in collapsed[2:]:
        row |= {"status": "degenerate", "note": "all 100 predictions are class 1"}
    kept, skipped = configurations.select(rows_as_read(tmp_path, [*fine, *collapsed]))
    a, b = configurations.group_seeds(kept)
    assert len(kept) == 8 and not skipped
    assert b.mean() == pytest.approx(0.624) and b.spread() > 0.15 and b.degenerate == 3 and b.usable
    assert tables.score_cell(b).endswith(", 3 of 5 runs degenerate")
    assert a.seeds.variance == pytest.approx(0.01**2), "what collapsed does not widen the others"
    assert b.seeds.variance == pytest.approx(b.spread() ** 2) and b.seeds.degrees == 4
    assert not configurations.Configuration(b.rows[2:]).usable


def test_examples_do_not_count_again_with_each_seed(tmp_path):
    """Three runs that are right on the same examples: no more is known than from one."""
    right, rows = [i % 10 < 7 for i in range(100)], []
    for seed in range(3):
        (tmp_path / str(seed)).mkdir()
        rows.append(write_run(tmp_path / str(seed), seeds_of("a", (0.7,) * 3)[seed], right))
    (many,), (one,) = (configurations.group_seeds(some, tmp_path) for some in (rows, rows[:1]))
    assert many.standard_error == pytest.approx(np.std(right, ddof=1) / 10)
    assert many.standard_error == pytest.approx(one.standard_error)
    (tmp_path / "0" / "predictions.jsonl").write_text('{"id": 0, "target": "a", "prediction": "b"}\n')
    (again,) = configurations.group_seeds(rows, tmp_path)
    assert again.examples is None, "a folder that is not the row's is not used"


@pytest.mark.parametrize("ending", ["", "_4_shot", "_adapter", "_16_shot_adapter"])
def test_a_baseline_is_one_with_demonstrations_or_an_adapter_too(ending):
    assert configurations.is_baseline(f"gold_passage{ending}") and not configurations.is_baseline(f"k4_flat{ending}")
