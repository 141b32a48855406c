"""What a measured choice promises: its score on examples that did not choose it, and what to know before."""

import dataclasses
import math

from harness.results import champions, configurations
from harness.selector import candidates

LISTED = 4  # names in a caution
UNSTEADY = 2.0  # by which the median latency of a run may differ from another one's, on a machine that does other work


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


def with_fewer_labels(choice, others, limits):
    """[a remark] where more labels may change the answer: the choice has fewer than there are, or another one that is
    trained has fewer than the choice.
    """
    told = []
    if choice.train_seconds and choice.labels and limits.data_size and budget(choice) < limits.data_size:
        told.append(f"it was measured with {choice.labels:,.0f} of the {limits.data_size:,} labels that you have")
    return [*told, *fewer_labels(choice, others, "measured with")]


def budget(candidate):
    """Labels that a Candidate was given; those that it used are fewer where a search needed no more."""
    given = None if candidate.predicted else candidate.configuration and candidate.configuration.flag("label_budget")
    return given or candidate.labels


def fewer_labels(choice, others, how):
    """[a remark] on other Candidates that are trained with fewer labels than the choice. how: measured with, .."""
    trained = [c for c in others if c.train_seconds and c.labels and choice.labels]
    fewer = [c.name for c in trained if budget(c) < budget(choice)]
    more = f" and {len(fewer) - LISTED} more" if len(fewer) > LISTED else ""
    names = f"{'; '.join(fewer[:LISTED])}{more}"
    return [f"{how} fewer labels than it, so that they may be better: {names}"] if fewer else []


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
    if limits.latency_ms is not None and not choice.latency_error and choice.latency_ms * UNSTEADY > limits.latency_ms:
        cautions.append("nothing ran twice, so how much its latency varies from run to run is not known")
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
    if configurations.OWN_PASSAGE in c["note"]:
        cautions.append(f"{configurations.OWN_PASSAGE}, as it has to do in use; retrieval (RAG, RAFT) had to find it")
    if considered == 1:
        cautions.append("nothing else was measured to compare it with")
    return cautions
