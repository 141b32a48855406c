"""Whether an engine answers as transformers does, on the first examples of a run."""

import argparse
from dataclasses import replace

import numpy as np

import utils

TIE = 1e-3  # two log-probabilities that are closer may change places between two ways to compute them


def record(run, engine, outcome, again):
    """The row's engine and engine_agreement. again: () -> the Outcome of transformers on the first examples, or None
    where --engine_check is 0; it is called when the engine has given its memory back.
    """
    # after the rest of the row, which an error of the comparison must not cost
    run.row["engine"] = engine.name
    if hasattr(engine, "cached"):
        hits, asked = engine.cached()
        run.note(f"{engine.name} had {hits:,.0f} of {asked:,.0f} tokens of its prompts in its prefix cache")
    engine.close()
    if not hasattr(engine, "cached"):  # another machine's
        run.row.update(device=None, device_name=None, precision=None, tf32=None)
    for text in engine.notes:
        run.note(text)
    if again is None:
        return
    try:
        other = again()
    except (utils.UserError, RuntimeError, MemoryError) as error:  # an endpoint's model may not be here, or not fit
        if not (isinstance(error, (utils.UserError, utils.RunFailed)) or utils.is_out_of_memory(error)):
            raise
        return run.note(f"not compared with hf: {' '.join(str(error).split())[:200]}")
    n = len(other.predictions)
    same, furthest = agreement(outcome, other)
    run.row["engine_agreement"] = float(np.mean(same))
    distance = "" if furthest is None else f", log-probabilities of labels within {furthest:.1g}"
    run.note(f"{sum(same)} of {n} answers are those of hf{distance}")


def agreement(outcome, other):
    """([n] bools whether the first n answers are the same, largest difference of two log-probabilities or None).

    n: the examples of `other`. Labels are compared by their log-probabilities before calibration; where hf's two
    likeliest are a tie, either is the same.
    """
    n = len(other.predictions)
    if "log_probs_sum" not in (other.extras or [{}])[0] or "log_probs_sum" not in (outcome.extras or [{}])[0]:
        return [a == b for a, b in zip(outcome.predictions[:n], other.predictions)], None
    same, furthest = [], 0.0
    for ours, theirs in zip(outcome.extras[:n], other.extras):
        a, b = (_values(extra["log_probs_sum"]) for extra in (ours, theirs))
        furthest = max(furthest, float(np.abs(a - b).max()))
        same.append(bool(b[a.argmax()] >= b.max() - TIE))
    return same, furthest


def _values(scores):
    return np.array(list(scores.values()) if isinstance(scores, dict) else scores)


def first(task, n):
    """The task with its first n evaluation examples."""
    return replace(task, evaluation=task.evaluation[:n])


def hf_args(args):
    """The flags with which transformers answers the same."""
    return argparse.Namespace(**{**vars(args), "engine": "hf", "latency_runs": 1, "batch_size": "auto"})
