import random

import pytest
from row_helpers import result_row, results_csv

from harness.results import store
from harness.selector import memory


def test_a_calibration_finds_the_offset_and_the_factor():
    rng = random.Random(0)
    pairs = [(p, (0.4 + 1.3 * p) * rng.uniform(0.97, 1.03)) for p in (0.2, 0.5, 1, 2, 4, 8)]
    assert memory.calibrate(pairs) == pytest.approx((0.4, 1.3), rel=0.1)
    assert memory.calibrate(pairs[:4]) == (0.0, 1.0)
    offset, factor = memory.calibrate(
        [(0.31, 0.5 + i / 100) for i in range(6)]
    )  # rows of one size say nothing of the factor
    assert factor == pytest.approx(1) and offset == pytest.approx(0.215, abs=0.01)


def test_the_measured_memory_is_what_the_run_added(tmp_path):
    rows = store.read_results(
        results_csv(
            tmp_path / "r.csv",
            [
                result_row(score=0.5, peak_rss_gb=2.0, start_rss_gb=0.5, predicted_gb=1.2, trainable_params=9),
                result_row(
                    score=0.6, peak_rss_gb=2.0, start_rss_gb=0.5, peak_gpu_gb=3.0, device="cuda", predicted_gb=2.5
                ),
                result_row(score=0.7, peak_rss_gb=2.0, predicted_gb=1.2),
            ],
        )
    )
    assert [memory.measured_gb(row) for row in rows] == [1.5, 3.0, None]
    assert memory.known_pairs(rows, "cpu", "training", True) == [(1.2, 1.5)] and memory.known_pairs(
        rows, "cuda", "inference", True
    ) == [(2.5, 3.0)]
    probe = {**rows[0], "strategy": "probe", "variant": "embedder_logreg"}
    assert [memory.phase_of(row) for row in (rows[0], probe)] == ["training", "inference"]
    assert memory.phase_of({**probe, "variant": "embedder_logreg_contrastive"}) == "training", "its encoder is trained"
    many = [
        {**rows[0], "precision": precision, "predicted_gb": f"{i}"}
        for i, precision in enumerate(["fp32"] * 6 + ["nf4"] * 4, start=1)
    ]
    assert (
        len(memory.known_pairs(many, "cpu", "training", True)) == 6
        and len(memory.known_pairs(many, "cpu", "training", False)) == 10
    )
