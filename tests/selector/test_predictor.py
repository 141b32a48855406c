import dataclasses
import math
import random

import numpy as np
import pytest
from row_helpers import made_up_rows, results_csv
from scipy.stats import t

from harness.results import configurations, store
from harness.selector import predictor
from harness.selector.candidates import Candidate, Limits
from harness.selector.regression import Regression
from harness.selector.spec import Data, data_of_rows, spec


@pytest.mark.parametrize("regression", ["ridge", "knn", "gp"])
def test_the_model_predicts_a_data_set_it_has_not_seen(tmp_path, regression):
    kept, _ = configurations.select(store.read_results(results_csv(tmp_path / "r.csv", made_up_rows())))
    found, data = predictor.groups_of(kept), data_of_rows(kept)
    assert data == {f"d{g}": Data(120.0, 2, 0.5) for g in range(6)}, "30 tokens, and two classes of equal size"
    near = {"ridge": (0.06, 0.35), "gp": (0.06, 0.35), "knn": (0.1, 1.5)}[regression]
    for left_out in ("d2", "d3"):
        learned = predictor.Predictor([(g, c) for g, c in found if g[0] != left_out], data, regression)
        for group, c in found:
            if group[0] == left_out:
                wanted = spec(c, data[left_out])
                guess = learned.candidate(wanted, c.name)
                assert learned.refusal(wanted) is None
                assert abs(guess.score - c.mean()) < near[0]
                assert guess.latency_ms == pytest.approx(c.mean("latency_ms_p50"), rel=near[1])
                assert guess.memory_gb == pytest.approx(c.mean("memory"), rel=near[1])
                assert 0 < guess.score_error < 0.2 and guess.degrees == 4


def test_what_is_unlike_anything_measured_is_refused(tmp_path):
    kept, _ = configurations.select(store.read_results(results_csv(tmp_path / "r.csv", made_up_rows())))
    learned = predictor.Predictor(predictor.groups_of(kept), data_of_rows(kept))
    trained = max((s for s in learned.specs if s.steps), key=lambda s: (s.params, s.labels))
    assert learned.refusal(trained) is None
    few = min((s for s in learned.specs if s.steps), key=lambda s: s.params)
    odd = dataclasses.replace(few, trainable=0.0, shots=0.0, params=trained.params)  # each size alone was measured
    assert "nothing like it was measured; the nearest is" in learned.refusal(odd)
    assert "classes are beyond" in learned.refusal(dataclasses.replace(few, data=Data(120.0, 77, 0.05)))
    assert learned.refusal(dataclasses.replace(few, strategy="rag")) == "no row of rag"


def test_errors_are_those_on_data_sets_that_were_left_out():
    """Data sets differ by 0.1 (standard deviation) in a way that no feature tells."""
    rng = np.random.default_rng(0)
    inside, n = [], 400
    for _ in range(n):
        sets = rng.normal(0, 0.1, 9)
        features = rng.normal(size=(8, 6, 2))
        targets = features[..., 0] * 0.2 + sets[:8, None] + rng.normal(0, 0.02, (8, 6))
        names = np.repeat(np.arange(8), 6)
        fitted = Regression("ridge", features.reshape(-1, 2), targets.ravel(), names, ["f"] * 48)
        new = rng.normal(size=2)
        guess = fitted.guess(new, "f")
        truth = new[0] * 0.2 + sets[8] + rng.normal(0, 0.02)
        inside.append(truth >= guess.centre + guess.scale * t.ppf(0.1, guess.degrees))
    assert 0.86 <= np.mean(inside) <= 0.94, "a bound of 90 % holds for 90 % of new data sets"


def test_families_with_larger_errors_have_wider_ones():
    rng = np.random.default_rng(1)
    features, families = rng.normal(size=(120, 1)), np.array(["calm", "wild"] * 60)
    targets = rng.normal(0, np.where(families == "calm", 0.01, 0.2))
    fitted = Regression("ridge", features, targets, np.repeat(np.arange(10), 12), families.tolist())
    calm, wild, new = (fitted.guess([0.0], family).scale for family in ("calm", "wild", "unknown"))
    assert calm < new < wild


def test_a_chance_is_that_of_independent_errors():
    c = Candidate("c", "peft", 0.8, 100.0, 2.0, 10, 0.0, 0.05, 0.2, 0.1)
    rng = random.Random(0)
    limits = Limits(2.2, 120.0, 50, 0.75)
    drawn = [
        100 * math.exp(rng.gauss(0, 0.2)) <= 120
        and 2 * math.exp(rng.gauss(0, 0.1)) <= 2.2
        and rng.gauss(0.8, 0.05) >= 0.75
        for _ in range(20000)
    ]
    assert predictor.chance(c, limits) == pytest.approx(sum(drawn) / len(drawn), abs=0.01)
    assert predictor.chance(c, dataclasses.replace(limits, data_size=5)) == 0
