import json

import pytest
from helpers import write_jsonl
from row_helpers import result_row

import utils
from harness.results import compare, configurations, schema


def write_run(folder, row, right):
    """A run folder with its row and predictions; the row as read from a CSV."""
    write_jsonl(
        folder / "predictions.jsonl",
        [{"id": i, "target": "a", "prediction": "a" if r else "b"} for i, r in enumerate(right)],
    )
    row = {**row, "run_dir": str(folder), "score": sum(right) / len(right)}
    (folder / "row.json").write_text(json.dumps(row))
    return {**dict.fromkeys(schema.RESULT_COLUMNS, ""), **{k: str(v) for k, v in row.items()}}


def runs(tmp_path, name, shares, n=400):
    import numpy as np

    made = []
    for seed, share in enumerate(shares):
        folder = tmp_path / f"{name}{seed}"
        folder.mkdir()
        right = np.random.default_rng([seed, len(name)]).random(n) < share
        made.append(
            write_run(folder, result_row(score=0.5, variant=name, seed=seed, n_eval=n), [bool(r) for r in right])
        )
    return configurations.Configuration(made, name)


def test_seeds_of_one_configuration_are_not_different_and_a_better_one_is(tmp_path):
    a, b, c = (
        runs(tmp_path, name, shares) for name, shares in (("a", [0.7] * 3), ("bb", [0.7] * 3), ("ccc", [0.8] * 3))
    )
    same, better = compare.difference(a, b, tmp_path), compare.difference(a, c, tmp_path)
    assert (
        same.p > 0.05 and same.verdict().startswith("no difference that n = 400 can show") and same.low < 0 < same.high
    )
    assert (
        better.p < 0.05
        and better.delta == pytest.approx(c.mean() - a.mean())
        and better.verdict(("A", "C")) == "C is better"
    )
    single = compare.difference(
        configurations.Configuration(a.rows[:1]), configurations.Configuration(c.rows[:1]), tmp_path
    )
    assert "McNemar" in single.test
    for configuration in (a, c):  # without the folders the intervals alone are wider
        for row in configuration.rows:
            row["run_dir"] = "gone"
    alone = compare.difference(a, c, tmp_path)
    assert (
        alone.delta == pytest.approx(better.delta)
        and alone.high - alone.low > better.high - better.low
        and "intervals" in alone.test
    )


def test_seeds_that_happen_to_differ_are_not_called_another_configuration(tmp_path, capsys):
    """McNemar alone would call these two seeds different; they are one configuration."""
    made = []
    for seed, share in ((0, 0.6), (1, 0.75)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        write_run(folder, result_row(score=share, seed=seed, n_eval=400), [i < share * 400 for i in range(400)])
        made.append(folder)
    compare.compare_runs(*made)
    said = capsys.readouterr().out
    assert (
        "no difference between configurations: the two are runs of one configuration with other seeds" in said
        and "is better" not in said
    )
    write_run(
        tmp_path / "1", result_row(score=0.75, seed=1, n_eval=400, flags={"rank": 4}), [i < 300 for i in range(400)]
    )
    compare.compare_runs(*made)
    assert "the second is better" in capsys.readouterr().out


def test_a_folder_that_cannot_be_compared_is_named(tmp_path):
    with pytest.raises(utils.UserError, match=r"is no run folder: it has no row.json and no predictions.jsonl"):
        compare.run_scores(tmp_path)
    row = result_row(score=0.5, n_eval=2)
    write_run(tmp_path, row, [True, False])
    assert compare.run_scores(tmp_path)[0] == {0: 1.0, 1: 0.0}
    (tmp_path / "predictions.jsonl").write_text('{"id": 0\n{}\n')
    with pytest.raises(utils.UserError, match=r"predictions.jsonl, line 1: not a JSON object"):
        compare.run_scores(tmp_path)
    (tmp_path / "predictions.jsonl").write_text("")
    with pytest.raises(utils.UserError, match="so there is nothing to compare"):
        compare.run_scores(tmp_path)
    (tmp_path / "row.json").write_text("{")
    with pytest.raises(utils.UserError, match="is no run folder: row.json cannot be read"):
        compare.run_scores(tmp_path)
