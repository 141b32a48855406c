import numpy as np
import pytest
from row_helpers import result_row, write_run

import utils
from harness.results import compare, configurations, run_scores


def runs(tmp_path, name, shares, n=400, clusters=None):
    """Rows with run folders: one for each share of right answers, drawn anew."""
    made = []
    for seed, share in enumerate(shares):
        folder = tmp_path / f"{name}{seed}"
        folder.mkdir()
        right = np.random.default_rng([seed, len(name)]).random(n) < share
        row = result_row(score=0.5, variant=name, seed=seed, n_eval=n)
        made.append(write_run(folder, row, [bool(r) for r in right], clusters))
    return made


def grouped(rows, folder):
    return configurations.group_seeds(rows, folder)


def test_seeds_of_one_configuration_are_not_different_and_a_better_one_is(tmp_path):
    rows = [*runs(tmp_path, "a", [0.7] * 3), *runs(tmp_path, "bb", [0.7] * 3), *runs(tmp_path, "ccc", [0.8] * 3)]
    a, b, c = grouped(rows, tmp_path)
    assert a.seeds is c.seeds and a.seeds.degrees == 6, "pooled over the panel"
    same, better = compare.difference(a, b), compare.difference(a, c)
    assert same.p > 0.05 and same.low < 0 < same.high
    assert same.verdict().startswith("no difference that n = 400 can show; differences below 0.0")
    assert better.p < 0.05 and better.delta == pytest.approx(c.mean() - a.mean())
    assert better.verdict(("A", "C")) == "C is better" and "spread of the seeds" in better.test
    single = compare.difference(*grouped([rows[0], rows[6]], tmp_path))
    assert "McNemar" in single.test, "no spread is known"
    for row in rows:  # without the folders the intervals alone are wider
        row["run_dir"] = "gone"
    alone = compare.difference(*grouped(rows, tmp_path)[::2])
    assert alone.delta == pytest.approx(better.delta) and alone.high - alone.low > better.high - better.low
    assert "intervals" in alone.test


def test_a_comparison_of_runs_counts_passages(tmp_path, capsys):
    passages = [f"p{i // 10}" for i in range(80)]
    for name, share in (("a", 0), ("b", 3)):  # the second knows three passages of eight, the first none
        (tmp_path / name).mkdir()
        row = result_row(score=0.5, variant=name, n_eval=80)
        write_run(tmp_path / name, row, [i // 10 < share for i in range(80)], passages)
    compare.compare_runs(tmp_path / "a", tmp_path / "b")
    said = capsys.readouterr().out
    assert "p = 0.25 (sign-flip permutation test over 8 clusters)" in said
    assert "no difference that n = 80 can show; differences below 0." in said


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
        run_scores.read(tmp_path)
    row = result_row(score=0.5, n_eval=2)
    write_run(tmp_path, row, [True, False])
    assert run_scores.read(tmp_path).scores == {0: 1.0, 1: 0.0}
    (tmp_path / "predictions.jsonl").write_text('{"id": 0\n{}\n')
    with pytest.raises(utils.UserError, match=r"predictions.jsonl, line 1: not a JSON object"):
        run_scores.read(tmp_path)
    (tmp_path / "predictions.jsonl").write_text("")
    with pytest.raises(utils.UserError, match="so there is nothing to compare"):
        run_scores.read(tmp_path)
    (tmp_path / "row.json").write_text("{")
    with pytest.raises(utils.UserError, match="is no run folder: row.json cannot be read"):
        run_scores.read(tmp_path)
