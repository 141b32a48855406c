"""What a measured choice promises: its score on examples that did not choose it, and what to know before."""

import dataclasses
import math

from harness.results import champions
from harness.selector import candidates


def promised(members, choice, limits, prefer="accuracy"):
    """The champions.Champion of a choice: its score on examples that did not choose it, if that can be known.

    It is chosen among the candidates that are within the limits of memory, latency and labels.
    """
    without_score = dataclasses.replace(limits, required_accuracy=None)
    possible = [c for c in members if not candidates.obstacles(c, without_score)]

    def choose_by(scores):
        again = [dataclasses.replace(c, score=float(score)) for c, score in zip(possible, scores)]
        best = candidates.choose(again, limits, prefer)[0] or max(again, key=lambda c: c.score)
        return next(i for i, c in enumerate(again) if c is best)

    return champions.promise([c.configuration for c in possible], choice.configuration, choose_by)


def with_promise(choice, promise):
    """The Candidate with the score that its Champion promises."""
    error = math.sqrt(sum(variance for variance, _ in promise.parts()))
    return dataclasses.replace(choice, score=promise.mean(), score_error=error)


def how_scored(choice, promise):
    """[how the promised score was found]; [] where nothing was chosen."""
    if not promise.cross_fitted:
        return []
    return [f"its score is the {promise.how()}: on examples that did not choose it; {choice.score:.3f} on all examples"]


def cautions_of(choice, promise, considered, limits):
    """What to know before relying on a measured choice. promise: its Champion."""
    c, needed, cautions = choice.configuration, limits.required_accuracy, []
    low = choice.score - choice.half_interval if promise.interval[0] is None else promise.interval[0]
    if needed is not None and low < needed:
        cautions.append(f"its 95 % interval reaches below the {needed:g} needed")
    if limits.serving_memory_gb is not None and c.mean("serving_memory") is None:
        cautions.append("its memory of serving was not measured apart: the peak of its run stands for it")
    if not candidates.surely_within(choice, limits):
        cautions.append("its latency or memory is so near the limit that another run may be beyond it")
    if limits.cached and choice.latency_column != candidates.CACHED:
        cautions.append("its latency was measured without a cache alone")
    if choice.majority is not None and low <= choice.majority:
        cautions.append(f"it is not shown to be above always answering the most frequent class, {choice.majority:.3f}")
    if promise.among > 1 and not promise.cross_fitted:
        cautions.append(f"its score is the {promise.how()}")
    if c.degenerate:
        cautions.append(f"{c.degenerate} of its {len(c.rows)} runs are degenerate; its score counts them")
    if c.varies and c.seeds is None:
        cautions.append("too few runs to know what other seeds change: its interval counts the examples alone")
    if considered == 1:
        cautions.append("nothing else was measured to compare it with")
    return cautions
