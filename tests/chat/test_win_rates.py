import math
import statistics

import pytest
from chat_helpers import needs_mt_bench
from helpers import SHARED

from harness.chat import win_rates


@needs_mt_bench
def test_mt_bench_means_are_those_of_the_rows():
    import pandas as pd

    kind, graded = win_rates.read_judgements(SHARED / "mt_bench/gpt-4_single_judgments.jsonl")
    frame = pd.DataFrame(graded)
    frame = frame[frame.score != -1]
    found = win_rates.mt_bench_scores(graded)
    assert kind == "mt_bench" and set(found) == set(frame.model)
    for (model, turn), mean in frame.groupby(["model", "turn"]).score.mean().items():
        assert found[model]["turns"][turn] == pytest.approx(mean, abs=1e-12)
    for model, mean in frame.groupby("model").score.mean().items():
        assert found[model]["mean"] == pytest.approx(mean, abs=1e-12)
    assert sum(each["n_unreadable"] for each in found.values()) == 4


def test_win_rates_of_draws_and_of_what_cannot_be_read():
    found = win_rates.win_rate([1, 2, 1.5, 0, None, float("nan"), "2", 7, -1])
    wins = [0, 1, 0.5, 0.5, 1]
    assert found["n_total"] == 5 and found["n_unreadable"] == 4 and found["n_draws"] == 2
    assert found["win_rate"] == pytest.approx(100 * statistics.fmean(wins))
    assert found["standard_error"] == pytest.approx(100 * statistics.stdev(wins) / math.sqrt(5))
    assert found["discrete_win_rate"] == pytest.approx(100 * (2 + 1) / 5)
    assert win_rates.win_rate([])["win_rate"] is None and win_rates.win_rate([2])["standard_error"] is None


def test_the_place_that_wins_twice_is_a_bias():
    always_first, always_second, fair = (0.1, 0.9), (0.8, 0.3), (0.9, 0.7)
    found = win_rates.position_bias([always_first, always_second, fair, (0.2, 0.4), (None, 0.5)])
    assert found == {"rate": 0.5, "first": 0.25, "n": 4}
