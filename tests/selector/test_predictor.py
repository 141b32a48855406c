import dataclasses
import math
import random

import pytest
from row_helpers import made_up_rows, results_csv

from harness.results import configurations, store
from harness.selector import predictor
from harness.selector.candidates import Candidate, Limits


def test_the_model_predicts_a_group_it_has_not_seen(tmp_path):
    kept, _ = configurations.select(store.read_results(results_csv(tmp_path / "r.csv", made_up_rows())))
    found, tokens = predictor.groups_of(kept), predictor.prompt_tokens(kept)
    assert tokens == {f"d{g}": 30.0 for g in range(6)}
    for left_out in ("d2", "d3"):
        learned = predictor.Predictor([(group, c) for group, c in found if group[0] != left_out], tokens)
        for group, c in found:
            if group[0] == left_out:
                wanted = predictor.spec(c, tokens[left_out])
                guess = learned.candidate(wanted, c.name)
                assert learned.refusal(wanted) is None
                assert abs(guess.score - c.mean()) < 0.06 and guess.latency_ms == pytest.approx(
                    c.mean("latency_ms_p50"), rel=0.35
                )
                assert guess.memory_gb == pytest.approx(c.mean("memory"), rel=0.35) and 0 < guess.score_error < 0.2


def test_a_chance_is_that_of_independent_normal_errors():
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
