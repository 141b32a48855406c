import types

import numpy as np
import pytest
from row_helpers import result_row, write_run
from simulated_scores import expected, panel

from harness.results import champions, compare, configurations, report, seed_spread, stats, tables

N = 400


def members(scores, clusters=None):
    """Configurations by their scores [M][S, N] alone."""
    n = scores[0].shape[-1]
    return [
        types.SimpleNamespace(
            examples=types.SimpleNamespace(ids=list(range(n)), runs=runs, clusters=clusters or [None] * n)
        )
        for runs in scores
    ]


def best(means):
    return int(np.argmax(means))


@pytest.mark.parametrize("size, seeds, seeds_sd", [(1, 1, 0.0), (5, 1, 0.0), (1, 3, 0.3)])
def test_the_champion_of_equal_configurations_is_unbiased_and_the_naive_one_is_not(size, seeds, seeds_sd):
    """20 equal configurations with a score of about 0.7. The mean over them stands for the expected score."""
    rng, clusters, naive, fitted = np.random.default_rng(0), list(np.arange(N) // size), [], []
    target, covered = expected("right or wrong", 1.0, seeds_sd), []
    for _ in range(300):
        (scores,) = panel(N, size, seeds, "right or wrong", 1.0, rng, 1, seeds_sd, 20)
        naive.append(scores.mean(axis=(1, 2)).max() - scores.mean())
        found, share = champions.cross_fit(members(scores, clusters), best)
        fitted.append(found.mean() - scores.mean())
        seeds_of = seed_spread.pooled([seed_spread.of_runs(runs, clusters) for runs in scores]) if seeds > 1 else None
        parts = [stats.mean_variance(found, clusters), *(seeds_of.parts(share) if seeds_of else [])]
        low, high = stats.interval(found.mean(), parts, N // size)
        covered.append(low <= target <= high)
    assert abs(np.mean(fitted)) < 0.003 and np.std(fitted) / 300**0.5 < 0.002
    assert np.mean(naive) > 0.02
    assert np.mean(covered) > 0.93, "a bound: the mean over halvings varies less than one of them"


def test_a_configuration_that_is_better_is_always_chosen():
    rng = np.random.default_rng(0)
    scores = [(rng.random((seeds, N)) < share).astype(float) for seeds, share in ((1, 0.6), (3, 0.8), (2, 0.65))]
    fitted, share = champions.cross_fit(members(scores), best)
    assert fitted.mean(axis=0) == pytest.approx(scores[1].mean(axis=0)) and share == pytest.approx(1 / 3)


def test_halves_are_equal_and_keep_clusters_whole():
    clusters = [f"p{i % 37}" for i in range(180)] + [None] * 20
    first = champions.halves(clusters, 0)
    assert abs(first.sum() - 100) < 4 and champions.halves([None] * 20, 0).sum() == 10
    for name in set(clusters) - {None}:
        assert len({half for half, cluster in zip(first, clusters) if cluster == name}) == 1
    assert (first == champions.halves(clusters, 0)).all() and (first != champions.halves(clusters, 1)).any()


def rows_with_folders(folder, n_configurations=8, n=100):
    rng, rows = np.random.default_rng(3), []
    for i in range(n_configurations):
        (folder / str(i)).mkdir()
        row = result_row(score=0.5, variant=f"v{i}", n_eval=n, flags={"rank": i + 1})
        rows.append(write_run(folder / str(i), row, [bool(r) for r in rng.random(n) < 0.7]))
    other = result_row(score=0.5, strategy="peft", variant="lora_r8", script="peft_finetune.py", n_eval=n)
    (folder / "peft").mkdir()
    return [*rows, write_run(folder / "peft", other, [i % 2 == 0 for i in range(n)])]


def test_with_run_folders_the_best_of_a_strategy_is_cross_fitted(tmp_path):
    rows = rows_with_folders(tmp_path)
    first, second = champions.by_strategy(configurations.group_seeds(rows, tmp_path))
    chosen = max(float(row["score"]) for row in rows)
    assert first.configuration.mean() == chosen and first.mean() < chosen and first.cross_fitted
    assert first.interval[0] < first.mean() < first.interval[1]
    assert tables.champion_cell(first).endswith("], best of 8, cross-fitted")
    assert (second.among, second.mean(), second.how()) == (1, 0.5, ""), "nothing was chosen"
    assert tables.champion_cell(second) == "0.500 [0.450, 0.550]", "as in its row"
    lines = report.between_strategies([first, second])
    test = compare.difference(first, second)
    assert (
        test.delta == pytest.approx(second.mean() - first.mean()) and "(t test, paired over the examples)" in lines[1]
    )


def test_without_run_folders_the_best_says_that_it_was_chosen_on_the_same_examples(tmp_path):
    rows = [{**row, "run_dir": "gone"} for row in rows_with_folders(tmp_path)]
    first, _ = champions.by_strategy(configurations.group_seeds(rows, tmp_path))
    assert not first.cross_fitted and first.mean() == first.configuration.mean()
    assert first.optimism == pytest.approx(1.4236 * 0.05 / 1.96, abs=1e-3)  # expected maximum of eight; their error
    assert first.how() == "best of 8, chosen and reported on the same examples, at most about 0.036 too high"
    mixed = configurations.group_seeds([*rows[:-1], rows_with_folders_again(tmp_path)], tmp_path)
    assert not champions.comparable(mixed), "one folder is missing"


def rows_with_folders_again(folder):
    return {**write_run(folder / "peft", result_row(score=0.5, variant="x", n_eval=100), [True] * 100)}


def test_few_clusters_are_not_divided():
    scores = [np.ones((1, 90)), np.zeros((1, 90))]
    assert champions.comparable(members(scores, [i // 9 for i in range(90)]))
    assert not champions.comparable(members(scores, [i // 10 for i in range(90)]))
