"""What a race drops, and what it must not."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from row_helpers import result_row, write_run
from scipy.stats import t

import finetune
from harness import arguments
from harness.sweeps import dropping
from harness.sweeps.cells import Size
from harness.sweeps.dropping import (
    NONE,
    Entry,
    Gain,
    Rung,
    at_most_seconds,
    at_rung,
    behind,
    chance_to_be_better,
    entry,
    for_limits,
    for_time,
    median_bound,
    training_seconds,
    whole_of,
    whole_seconds,
)
from harness.training import trainer

MANY = 10**9
RUNG = Rung(training=1 / 16, examples=1 / 4, gains={})


def made(scores, n=100, clusters=None, seconds=1.0):
    """An Entry of n examples, so many of which are right."""
    values = np.zeros(n)
    values[: round(scores * n)] = 1.0
    np.random.default_rng(round(100 * scores)).shuffle(values)
    scores = dict(enumerate(values.tolist()))
    return Entry(scores, dict(enumerate(clusters or [None] * n)), MANY, 0.0, NONE, "steps", seconds)


def test_a_rung_is_a_share_of_steps_or_labels_and_of_examples():
    size = Size(2000, 500, 12, "classification")
    args = {"label_budget": 1600, "max_eval_samples": 400, "unlabelled": None}
    whole = whole_of(args, size, "labels")
    assert whole == {"label_budget": 1600, "max_eval_samples": 400}
    assert at_rung(whole, RUNG, size.classes) == {"label_budget": 100, "max_eval_samples": 100}
    whole = whole_of({"max_eval_samples": None, "unlabelled": 5000}, size, "labels")
    assert whole == {"max_train_samples": 2000, "unlabelled": 2000, "max_eval_samples": 500}
    assert at_rung(whole, RUNG, 12) == {"max_train_samples": 125, "unlabelled": 125, "max_eval_samples": 125}
    steps = whole_of({"max_steps": 100, "max_eval_samples": 400}, size, "steps")
    assert for_limits(steps) == {"max_steps": 1, "max_eval_samples": 20} and for_limits(whole) == {}
    more = {"max_train_samples": 5000, "max_eval_samples": 400}
    assert whole_of(more, size, "labels")["max_train_samples"] == 2000, "no more than there are"
    prompt = whole_of({"k_shots": 4, **args}, size, "nothing")
    assert prompt == {"max_eval_samples": 400} and for_limits(prompt) == {"max_eval_samples": 20}
    assert at_rung(prompt, RUNG, 12) == {}, "a rung of it would cost what it may save"
    assert at_rung({**steps, "max_steps": 160}, RUNG, 12) == {"max_steps": 20, "max_eval_samples": 100}
    assert at_rung({**steps, "max_steps": 159}, RUNG, 12) == {}, "20 steps are more than an eighth"
    assert at_rung({**steps, "max_steps": 159}, RUNG, 12, timed=True) == {"max_steps": 20, "max_eval_samples": 100}
    assert at_rung(prompt, RUNG, 12, timed=True) == {"max_eval_samples": 64}, "to know what the whole run takes"
    assert at_rung({}, RUNG, 12, timed=True) == {}
    assert whole_of(args, size, "at_once") == at_rung({}, RUNG, 2) == for_limits({}) == {}, "a probe"
    few = whole_of({"label_budget": 100}, Size(2000, 60, 12, "classification"), "labels")
    assert at_rung(few, RUNG, 12) == {"label_budget": 24}, "two labels a class; 60 examples are few already"
    assert at_rung(few, RUNG, 60) == {}, "where 100 labels are fewer than two a class nothing is saved"


def test_a_whole_run_is_put_from_its_short_one():
    """10 s to start, 40 of training, 30 of scoring."""
    cells = {"run_seconds": 80.0, "train_seconds": 40, "eval_seconds": 30, "n_eval": 100}
    short = {name: "" for name in ("cpu_seconds", "load_seconds")} | {name: str(n) for name, n in cells.items()}
    row = {**short, "device": "cpu", "args": json.dumps({"max_steps": 20, "max_eval_samples": 100})}
    whole = {"max_steps": 320, "max_eval_samples": 400}
    assert whole_seconds(row, whole) == pytest.approx(10 + 16 * 40 + 4 * 30)
    assert training_seconds(row, whole) == 16 * 40


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


def test_what_is_dropped_saves_most_seconds_for_its_risk():
    entries = {"best": made(0.8), "near": made(0.75), "far": made(0.45), "last": made(0.1)}
    chances = {name: chance_to_be_better(one, entries["best"]) for name, one in entries.items()}
    assert chances["near"] > 0.1 > 0.001 > chances["far"] > chances["last"]
    dropped, risk = behind(entries, 0.05)
    assert set(dropped) == {"far", "last"} and risk == pytest.approx(chances["far"] + chances["last"])
    assert set(behind(entries, chances["near"] + 0.01)[0]) == {"near", "far", "last"}
    assert "0.700 behind best after 100 examples" in dropped["last"].why
    assert dropped["last"].leader == "best" and dropped["last"].chance == chances["last"]
    assert behind({"alone": made(0.1)}, 0.05) == ({}, 0.0)
    slow, quick = made(0.72, seconds=900), made(0.70, seconds=1)
    both = {"best": made(0.8), "slow": slow, "quick": quick}
    one = max(chance_to_be_better(slow, both["best"]), chance_to_be_better(quick, both["best"]))
    assert set(behind(both, one)[0]) == {"slow"}, "only one of them may be dropped"


def test_what_ties_with_the_best_one_and_costs_more_is_not_better():
    other, best = made(0.75)._replace(cost=9.0), made(0.8)._replace(cost=8.0, n_whole=400)
    tie = 0.02  # the standard error of 0.8 on 400 examples
    wanted = chance_to_be_better(other._replace(gain=Gain(-tie / other.lack, 0.0, 0.0, 9)), best._replace(cost=10.0))
    assert chance_to_be_better(other, best) == pytest.approx(wanted, rel=0.01)
    assert chance_to_be_better(other, best) < chance_to_be_better(other._replace(cost=7.0), best), "it would be taken"


def test_the_examples_are_a_sample_of_those_of_the_whole_run():
    entries = [made(0.75, n=200), made(0.8, n=200)]
    chances = [chance_to_be_better(*(one._replace(n_whole=n) for one in entries)) for n in (MANY, 400, 200)]
    assert chances[0] > chances[1] > chances[2] == 0.0, "all of them leave nothing to chance"


def test_an_error_that_is_known_from_few_data_sets_leaves_more_to_chance():
    best, other = made(0.8)._replace(n_whole=100, cost=1.0), made(0.6)._replace(n_whole=100)
    few, many = (chance_to_be_better(other._replace(gain=Gain(0.0, 0.2, 0.0, n)), best) for n in (2, 1000))
    assert few == pytest.approx(t.sf((0.01 + 0.2) / (0.2 * 0.4), 2), rel=0.05) and few > 3 * many


def test_parts_that_are_known_from_the_same_data_sets_are_not_surer_together():
    """3 degrees of freedom, however the variance is divided. A paired difference has two pseudo-examples."""
    best, other = made(0.8, n=100)._replace(n_whole=100, cost=1.0), made(0.4, n=100)._replace(n_whole=100)
    for own, shared in ((0.2, 0.0), (0.12, 0.16), (0.0, 0.2)):
        one = other._replace(gain=Gain(0.0, shared, own, 3), learns="steps", cost=0.0)
        two = best._replace(gain=Gain(0.0, shared, own, 3), learns="labels")
        error = 0.2 * np.hypot(0.6, 0.2)
        assert chance_to_be_better(one, two) == pytest.approx(t.sf((0.01 + 0.4 * 100 / 102) / error, 3))


def test_what_a_configuration_may_gain_keeps_it():
    entries = {"best": made(0.8), "far": made(0.45)}
    assert set(behind(entries, 0.05)[0]) == {"far"}
    for gain in (
        Gain(0.7, 0.0, 0.0, 9),
        Gain(0.4, 0.4, 0.0, 9),
        Gain(0.4, 0.0, 0.4, 9),
    ):  # to 0.835; to 0.67, but not for sure
        assert behind({**entries, "far": entries["far"]._replace(gain=gain)}, 0.05) == ({}, 0.0)
    late = {**entries, "far": entries["far"]._replace(gain=Gain(0.9, 0.0, 0.0, 9))}
    assert set(behind(late, 0.05)[0]) == {"best"}, "it is the best one that is expected to be best"


def test_few_examples_and_few_clusters_tell_little():
    few, many = ({name: made(share, n=n) for name, share in (("best", 0.8), ("far", 0.4))} for n in (10, 100))
    assert behind(few, 0.025) == ({}, 0.0) and set(behind(many, 0.025)[0]) == {"far"}
    for clusters in ([i // 50 for i in range(100)], [0] * 100):
        clustered = {name: made(share, clusters=clusters) for name, share in (("best", 0.8), ("last", 0.45))}
        assert behind(clustered, 0.05) == ({}, 0.0)
    far = made(0.1)
    elsewhere = {"best": made(0.8), "far": far._replace(scores={-key - 1: x for key, x in far.scores.items()})}
    assert behind(elsewhere, 0.05) == ({}, 0.0), "other examples are not compared"
    assert behind({"best": made(1.0, n=1), "far": made(0.0, n=1)}, 0.05) == ({}, 0.0)
    longer = {"best": made(0.8, n=400), "far": far}
    assert set(behind(longer, 0.05)[0]) == {"far"}, "those that both have are"
    assert behind({"best": made(0.8), "far": made(0.1, seconds=0.0)}, 0.05) == ({}, 0.0), "nothing would be saved"


@pytest.mark.parametrize("shared, own", [(0.0, 0.1), (0.3, 0.0), (0.3, 0.1)])
def test_a_chance_is_kept(shared, own):
    """Of configurations whose whole run gains as Gain says, as many are better as the chances add up to."""
    gain, said, better = Gain(0.2, shared, own, 99), 0.0, 0
    rng = np.random.default_rng(0)
    for _ in range(1000):
        sure = rng.random(100) < 0.7
        other = rng.random(100) < rng.uniform(0.5, 0.8)
        alone = dict.fromkeys(range(100))
        one, best = (Entry(dict(enumerate(map(float, x))), alone, MANY, 0.0, gain, "steps", 1.0) for x in (other, sure))
        # the truth given what was seen: a new sample's share, and gains
        shares = [rng.beta(x.sum() + 1, 101 - x.sum()) for x in (other, sure)]
        of_data = rng.normal(gain.mean, shared)
        whole = [share + (1 - share) * rng.normal(of_data, own) for share in shares]
        said, better = said + chance_to_be_better(one, best), better + (whole[0] - whole[1] > dropping.MARGIN)
    assert said == pytest.approx(better, rel=0.15)


def test_what_a_data_set_gains_alike_says_little_of_who_is_ahead():
    best, other = made(0.6, n=400)._replace(n_whole=400), made(0.55, n=400)._replace(n_whole=400)
    alike, apart = (
        chance_to_be_better(*(one._replace(gain=gain) for one in (other, best)))
        for gain in (Gain(0.2, 0.4, 0.0, 9), Gain(0.2, 0.0, 0.4, 9))
    )
    assert alike < 0.05 < 0.3 < apart
    known = best._replace(gain=NONE)  # as a probe, whose gain is none: then it may be overtaken
    assert chance_to_be_better(other._replace(gain=Gain(0.2, 0.4, 0.0, 9)), known) > 0.3


def test_what_others_gained_on_a_data_set_tells_what_one_will_gain():
    """The normal posterior, beside what draws say."""
    rng, gain, lacks = np.random.default_rng(0), Gain(0.1, 0.3, 0.15, 9), np.array([0.1, 0.8])
    seen = lacks * [0.5, 0.3]
    of_data = rng.normal(gain.mean, gain.shared, 2_000_000)
    gained = lacks * rng.normal(of_data[:, None], gain.own, (len(of_data), 2))
    ratios, seen_ratio = (some @ lacks / np.sum(lacks**2) for some in (gained, seen))  # by least squares
    near = np.abs(ratios - seen_ratio) < 0.005
    found = dropping.given(gain, list(zip(lacks, seen)))
    assert found.mean == pytest.approx(of_data[near].mean(), abs=0.02)
    assert found.shared == pytest.approx(of_data[near].std(), abs=0.01) and found.own == gain.own
    assert (
        dropping.given(gain, []) == gain == dropping.given(gain, [(0.0, 0.0)])
        and dropping.given(NONE, [(0.3, 0.1)]) == NONE
    )
    short, whole = made(0.6, n=50), made(0.8, n=100)
    on_both = np.mean([whole.scores[i] for i in range(50)])
    assert short.gained(whole) == (pytest.approx(0.4), pytest.approx(on_both - 0.6))


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
    assert entry([row], tmp_path, {}, NONE, "steps", 1.0).lack == 0.5


class _Limits:
    def __init__(self, latency_ms, memory_gb):
        self.latency_ms, self.memory_gb = latency_ms, memory_gb


def test_what_fits_into_the_time_does_so_on_its_worker():
    entries = {"a": made(0.9, seconds=40.0), "b": made(0.8, seconds=40.0), "c": made(0.7, seconds=5.0)}
    assert at_most_seconds(entries.values(), 1) == 85 and at_most_seconds(entries.values(), 2) == 62.5
    assert for_time(entries, 62.5, workers=2) == ({}, 0.0)
    assert set(for_time(entries, 30.0, workers=4)[0]) == {"a", "b"}, "no number of workers shortens one run"
    assert set(for_time(entries, 50.0, workers=1)[0]) == {"b"}
    done = {name: one._replace(seconds=0.0) for name, one in entries.items()}
    assert for_time(done, 0.0) == ({}, 0.0), "what is whole needs no time"
