import json
from pathlib import Path

import numpy as np
import pytest
from helpers import FAST, predictions
from sklearn.metrics import brier_score_loss

import finetune
from harness.evaluation import calibration, metrics


def test_calibration_error_by_hand():
    probabilities = [[0.95, 0.05], [0.95, 0.05], [0.35, 0.65], [0.35, 0.65]]
    # 0.95: one of two right; 0.65: both right
    assert calibration.calibration_error(probabilities, [0, 1, 1, 1]) == pytest.approx(
        0.5 * abs(0.5 - 0.95) + 0.5 * abs(1 - 0.65)
    )
    # three classes, bins 0.4-0.5 (one, wrong), 0.6-0.7 (two, one right), 1.0 in the last (one, right)
    probabilities = [[0.45, 0.35, 0.2], [0.62, 0.2, 0.18], [0.1, 0.68, 0.22], [0.0, 0.0, 1.0]]
    assert calibration.calibration_error(probabilities, [2, 0, 0, 2]) == pytest.approx(
        (1 * 0.45 + 2 * abs(0.5 - 0.65) + 1 * 0.0) / 4
    )


def test_brier_by_hand_and_as_in_scikit_learn():
    assert calibration.brier([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0]], [0, 2]) == pytest.approx(
        (0.25 + 0.09 + 0.04 + 0 + 1 + 1) / 2
    )
    rng = np.random.default_rng(0)
    p, targets = rng.uniform(size=50), rng.integers(0, 2, 50)
    assert calibration.brier(np.stack([1 - p, p], 1), targets) == pytest.approx(2 * brier_score_loss(targets, p))
    some = rng.dirichlet(np.ones(4), 50)
    labels = rng.integers(0, 4, 50)
    assert calibration.brier(some, labels) == pytest.approx(
        brier_score_loss(labels, some, labels=range(4), scale_by_half=False)
    )


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_spoilt_the_scores_is_found(temperature):
    """Labels drawn from known probabilities, scores multiplied by the temperature: dividing by it is best."""
    rng = np.random.default_rng(1)
    true = metrics.log_normalise(rng.normal(0, 1.5, (20_000, 3)))
    targets = np.array([rng.choice(3, p=p) for p in np.exp(true)])
    spoilt = metrics.log_normalise(true * temperature)
    half = len(true) // 2
    assert calibration.fit_temperature(spoilt[:half], targets[:half]) == pytest.approx(temperature, rel=0.05)
    cells = calibration.tuned_cells(spoilt[half:], targets[half:], spoilt[:half], targets[:half])
    before = calibration.calibration_error(np.exp(spoilt[half:]), targets[half:])
    assert cells["calibration_error_tuned"] < 0.02 and (temperature == 1.0 or before > 0.1)


def test_too_few_labels_give_no_temperature():
    few = np.log(np.full((19, 2), 0.5))
    assert calibration.tuned_cells(few, [0] * 19, few, [0] * 19) == {}


def test_the_temperature_comes_from_the_validation_labels_alone(sentiment, tiny_bert, out, only_row, monkeypatch):
    """And the row's cells are computed again from predictions.jsonl; without validation labels there are none."""
    seen = []
    fit = calibration.fit_temperature
    monkeypatch.setattr(calibration, "fit_temperature", lambda *a: seen.append(a) or fit(*a))
    finetune.main(["--model", tiny_bert, "--dataset", sentiment, *FAST, *out])
    row = only_row()
    validation = [json.loads(line) for line in Path(sentiment, "validation.jsonl").read_text().splitlines()]
    ((log_probs, labels),) = seen
    assert len(labels) == len(log_probs) == len(validation) == 40
    found = predictions(row)
    scores = np.array([list(p["scores"].values()) for p in found])
    targets = [p["target_index"] for p in found]
    tuned = np.exp(metrics.log_normalise(scores / float(row["calibration_temperature"])))
    assert calibration.calibration_error(tuned, targets) == pytest.approx(
        float(row["calibration_error_tuned"]), abs=1e-4
    )
    assert calibration.calibration_error(np.exp(scores), targets) == pytest.approx(
        float(row["calibration_error"]), abs=1e-5
    )
    assert calibration.brier(np.exp(scores), targets) == pytest.approx(float(row["brier"]), abs=1e-5)


def test_without_validation_examples_nothing_is_tuned(sentiment, tiny_bert, out, only_row):
    few = ["--max_validation_samples", "0", "--max_steps", "2"]
    finetune.main(["--model", tiny_bert, "--dataset", sentiment, *few, *out])
    row = only_row()
    assert row["brier"] and row["calibration_error"] and not row["calibration_error_tuned"]
    assert not row["calibration_temperature"]
