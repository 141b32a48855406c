"""How far probabilities of classes can be believed: calibration error, Brier score, temperature.

Shapes: N examples, C classes. Probabilities sum to one in each row; targets are class indices.
"""

import math

import numpy as np
from scipy.optimize import minimize_scalar

from harness.evaluation.metrics import log_normalise

TEMPERATURES = (0.05, 20.0)  # between these it is searched
MIN_LABELS = 20  # a temperature from fewer is mostly noise


def cells(probabilities, targets):
    """The row's cells of probabilities [N, C] as the model gives them. targets: [N]."""
    return {"brier": brier(probabilities, targets), "calibration_error": calibration_error(probabilities, targets)}


def calibration_error(probabilities, targets, n_bins=10):
    """Expected calibration error (Guo et al. 2017): |accuracy - confidence| over equal-width bins, weighted by their
    size.

    probabilities: [N, C]; targets: [N].
    """
    probabilities, targets = np.asarray(probabilities), np.asarray(targets)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    gaps = [abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in set(bins)]
    return float(sum(gaps))


def brier(probabilities, targets):
    """Brier's score (1950): the squared error summed over the classes, mean over the examples; from 0 to 2.

    For two classes it is twice scikit-learn's brier_score_loss of one class. probabilities: [N, C]; targets: [N].
    """
    probabilities = np.asarray(probabilities, dtype=float)
    wanted = np.eye(probabilities.shape[1])[np.asarray(targets)]
    return float(((probabilities - wanted) ** 2).sum(axis=1).mean())


def fit_temperature(log_probs, targets):
    """The temperature whose division of the scores makes the labels likeliest (Guo et al. 2017).

    log_probs: [N, C] of labelled examples that the scores are not reported on; targets: [N].
    """
    log_probs, targets = np.asarray(log_probs), np.asarray(targets)

    def loss(log_temperature):  # mean negative log-likelihood
        scaled = log_normalise(log_probs / math.exp(log_temperature))
        return -scaled[np.arange(len(targets)), targets].mean()

    return math.exp(minimize_scalar(loss, bounds=[math.log(t) for t in TEMPERATURES], method="bounded").x)


def tuned_cells(log_probs, targets, known, labels):
    """{cells of the row} of the calibration error after a temperature; {} with fewer than MIN_LABELS labels to fit it.

    log_probs, targets: [N, C] and [N] of the evaluation examples; known, labels: [M, C] and [M] of others.
    """
    if len(labels) < MIN_LABELS:
        return {}
    temperature = fit_temperature(known, labels)
    probabilities = np.exp(log_normalise(np.asarray(log_probs) / temperature))
    return {
        "calibration_error_tuned": calibration_error(probabilities, targets),
        "calibration_temperature": temperature,
    }
