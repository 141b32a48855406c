"""What a race drops, and what it must not."""

from types import SimpleNamespace

import numpy as np
import pytest
from row_helpers import result_row, write_run

import finetune
from harness import arguments
from harness.results import stats
from harness.sweeps import dropping
from harness.sweeps.cells import Size
from harness.sweeps.dropping import Entry, Rung, at_rung, behind, entry, median_bound, whole_of
from harness.training import trainer

RUNG = Rung(training=1 / 16, examples=1 / 4, allowances={})


def made(scores, n=100, clusters=None, allowance=0.0):
    """An Entry of n examples, so many of which are right."""
    values = np.zeros(n)
    values[: round(scores * n)] = 1.0
    np.random.default_rng(round(100 * scores)).shuffle(values)
    return Entry([], list(range(n)), values, clusters or [None] * n, allowance)


def test_a_rung_is_a_share_of_steps_or_labels_and_of_examples():
    size = Size(2000, 500, 12, "classification")
    args = {"label_budget": 1600, "max_eval_samples": 400, "unlabelled": None}
    whole = whole_of(args, size, "labels")
    assert whole == {"label_budget": 1600, "max_eval_samples": 400}
    assert at_rung(whole, RUNG, size.classes) == {"label_budget": 100, "max_eval_samples": 100}
    whole = whole_of({"max_eval_samples": None, "unlabelled": 5000}, size, "labels")
    assert whole == {"max_train_samples": 2000, "unlabelled": 2000, "max_eval_samples": 500}
    assert at_rung(whole, RUNG, 12) == {"max_train_samples": 125, "unlabelled": 125, "max_eval_samples": 125}
    assert whole_of({"k_shots": 4, **args}, size, "nothing") == {"max_eval_samples": 400}, "a prompt, a probe"
    few = whole_of({"label_budget": 100}, Size(2000, 60, 12, "classification"), "labels")
    assert at_rung(few, RUNG, 12) == {"label_budget": 24}, "two labels a class; 60 examples are few already"
    assert at_rung(few, RUNG, 60) == {}, "where 100 labels are fewer than two a class nothing is saved"


@pytest.mark.parametrize(
    "flags, steps",
    [
        (["--max_steps", "40"], 40),
        (["--epochs", "2", "--batch_size", "10"], 40),
        (["--epochs", "2", "--batch_size", "5", "--gradient_accumulation", "2"], 40),
        (["--epochs", "auto", "--batch_size", "10"], None),
    ],
)
def test_steps_are_those_that_the_trainer_makes(flags, steps):
    args = vars(finetune.parse_args([*flags, "--label_budget", "200"]))
    found = arguments.optimizer_steps(args, 200, "classification")
    if steps is None:
        length = trainer.with_epochs(SimpleNamespace(**args), 200, "classification")
        steps = trainer.n_steps(200, length)
    assert found == steps


def test_who_is_behind_by_more_than_noise_and_what_labels_may_give():
    entries = {"best": made(0.8), "near": made(0.75), "far": made(0.45), "last": made(0.1)}
    assert set(behind(entries, 2)) == {"far", "last"} and behind({"alone": made(0.1)}, 2) == {}
    assert "best" in behind(entries, 2)["last"] and "100 examples" in behind(entries, 2)["last"]
    for allowance, left in ((0.25, {"last"}), (0.8, set())):
        gaining = {name: entry._replace(allowance=allowance) for name, entry in entries.items()}
        assert set(behind(gaining, 2)) == left
    assert set(behind({**entries, "far": made(0.45, allowance=0.5)}, 2)) == {"last"}, "each by its own allowance"
    small = {name: made(share, n=10) for name, share in (("best", 0.8), ("far", 0.45))}
    assert behind(small, 2) == {}, "ten examples do not tell"
    twos = [i // 50 for i in range(100)]
    clustered = {name: made(share, clusters=twos) for name, share in (("best", 0.8), ("last", 0.45))}
    assert behind(clustered, 2) == {}, "nor do two clusters"
    other = entries | {"elsewhere": Entry([], list(range(1, 101)), np.zeros(100), [None] * 100, 0.0)}
    assert "elsewhere" not in behind(other, 2), "other examples are not compared"


def test_the_best_one_is_dropped_in_at_most_five_percent_of_races():
    """Five configurations that are equally good at both rungs, so that any of them is the best."""
    rng, wrong, races = np.random.default_rng(0), 0, 400
    for _ in range(races):
        easy = rng.random(200)  # the same examples are easy for all
        dropped = set()
        for n in (100, 200):
            scores = {f"c{i}": (rng.random(n) < 0.4 + 0.5 * easy[:n]).astype(float) for i in range(5)}
            entries = {name: Entry([], list(range(n)), some, [None] * n, 0.0) for name, some in scores.items()}
            dropped |= set(behind(entries, 2))
        wrong += "c0" in dropped
    assert 0 < wrong / races <= 0.075, "five percent, and what 400 races can vary"


def test_the_upper_bound_holds_as_often_as_it_says():
    rng, n = np.random.default_rng(1), 100
    above = [
        stats.most(first, second) >= -0.2
        for first, second in (
            ((rng.random(n) < 0.7).astype(float).tolist(), (rng.random(n) < 0.5).astype(float).tolist())
            for _ in range(1000)
        )
    ]
    assert 0.92 <= np.mean(above) <= 0.98
    assert stats.most([1.0] * 4, [0.0] * 4, clusters=["a"] * 4) == np.inf


def test_a_median_is_above_a_bound_with_confidence():
    assert median_bound([]) == 0.0 and median_bound([5.0, 6.0]) == 0.0, "two requests tell nothing"
    times = [float(ms) for ms in range(1, 21)]
    assert median_bound(times) == 6.0  # P(at most 5 of 20 below the median) = 0.02, at most 6: 0.06
    rng = np.random.default_rng(2)
    holds = [median_bound(rng.lognormal(size=20).tolist()) <= 1.0 for _ in range(1000)]
    assert np.mean(holds) >= 0.94


@pytest.mark.parametrize(
    "limits, why",
    [((None, None), None), ((50, None), None), ((5, None), "more than"), ((None, 2), None), ((None, 0.5), "memory")],
)
def test_limits(tmp_path, limits, why):
    (tmp_path / "run").mkdir()
    row = write_run(tmp_path / "run", result_row(), [True, False] * 10)
    lines = (tmp_path / "run/predictions.jsonl").read_text().replace("}\n", ', "latency_ms": 10.0}\n')
    (tmp_path / "run/predictions.jsonl").write_text(lines)
    found = dropping.over_limits([row], tmp_path, _Limits(*limits))
    assert found is None if why is None else why in found
    assert entry([row], tmp_path, 0.0).scores.mean() == 0.5


class _Limits:
    def __init__(self, latency_ms, memory_gb):
        self.latency_ms, self.memory_gb = latency_ms, memory_gb
