"""Measured configurations against limits: what fits, what is best, what is nearest."""

import json
import math
from dataclasses import dataclass, field

from harness.results import commands, configurations

PREFER = ("accuracy", "latency", "memory", "cost")


NEAR = 3.0  # models within this factor of each other's parameters are of a like size


TIE = 0.1  # of a latency, a memory or a cost: closer ones are not told apart


@dataclass(frozen=True)
class Limits:
    """What a choice must keep; None: no limit. requests: to be answered over the horizon."""

    memory_gb: float | None = None
    latency_ms: float | None = None
    data_size: int | None = None
    required_accuracy: float | None = None
    requests: float = 30_000.0


@dataclass(frozen=True)
class Candidate:
    """One configuration. Errors are standard errors: of the score, and of the natural logarithms of latency and memory."""

    name: str
    strategy: str
    score: float
    latency_ms: float | None
    memory_gb: float | None
    labels: float
    train_seconds: float
    score_error: float = 0.0
    latency_error: float = 0.0
    memory_error: float = 0.0
    majority: float | None = None
    configuration: configurations.Configuration | None = field(default=None, compare=False)

    def cost_seconds(self, requests):
        """Machine seconds to train once and to answer that many requests one at a time; infinite where the latency is not known."""
        return self.train_seconds + (math.inf if self.latency_ms is None else self.latency_ms / 1000 * requests)

    def spread(self, column):
        """Relative standard deviation of a column over the runs, 0 where it is not known."""
        c = self.configuration
        return (c.spread(column) or 0.0) / c.mean(column) if c and c.mean(column) else 0.0


def eligible(c):
    """Could one choose it? Not a baseline, not retrieval alone, not a checkpoint whose training another row tells."""
    return (
        c["variant"] not in configurations.BASELINES
        and configurations.task_kind(c.rows[0]) != "retrieval"
        and not configurations.scored_again(c.rows[0])
    )


def measured(found):
    """Candidates of a panel's Configurations."""
    return [
        Candidate(
            c.name,
            c["strategy"],
            c.mean(),
            c.mean("latency_ms_p50"),
            c.mean("memory"),
            c.mean("labels_used"),
            c.mean("train_seconds") or 0.0,
            c.standard_error or 0.0,
            majority=configurations.value(c.rows[0], "majority_baseline"),
            configuration=c,
        )
        for c in found
        if eligible(c)
    ]


def obstacles(candidate, limits):
    """[(limit, what it would have to be, relative excess, sentence)]: where a candidate breaks the limits; empty where it keeps them."""
    found = []
    for limit, wanted, has, text in (
        ("memory_gb", limits.memory_gb, candidate.memory_gb, "{:.2f} GB"),
        ("latency_ms", limits.latency_ms, candidate.latency_ms, "{:.0f} ms"),
        ("data_size", limits.data_size, candidate.labels, "{:.0f} labelled examples"),
    ):
        if wanted is None or (has is not None and has <= wanted):
            continue
        if has is None:
            found.append(
                (limit, None, math.inf, f"its {'memory' if limit == 'memory_gb' else 'latency'} was not measured")
            )
        else:
            found.append(
                (limit, has, (has - wanted) / wanted if wanted else has, f"over by {text.format(has - wanted)}")
            )
    if limits.required_accuracy is not None and candidate.score < limits.required_accuracy:
        short = limits.required_accuracy - candidate.score
        found.append(("required_accuracy", candidate.score, short / limits.required_accuracy, f"short by {short:.3f}"))
    return found


def choose(candidates, limits, prefer="accuracy"):
    """(the best of the candidates that keep the limits or None, those that tie with it, all that keep them, from the best on).

    By accuracy: the best score, where scores within one standard error of it count as ties (the one-standard-error rule, Breiman
    et al. 1984) and the tie that costs least over the horizon is taken. By latency, memory or cost: the least, among those above
    the majority class; amounts within TIE of it, or within the spread of its runs, are ties and the best score is taken.
    """
    kept = [c for c in candidates if not obstacles(c, limits)]
    if prefer != "accuracy" and limits.required_accuracy is None:
        kept = [c for c in kept if c.majority is None or c.score > c.majority] or kept
    if not kept:
        return None, [], []
    if prefer == "accuracy":
        kept = sorted(kept, key=lambda c: -c.score)
        ties = [c for c in kept if c.score >= kept[0].score - kept[0].score_error]
        choice = min(ties, key=lambda c: (c.cost_seconds(limits.requests), -c.score))
        return choice, [c for c in ties if c is not choice], kept
    amount = {
        "latency": lambda c: c.latency_ms,
        "memory": lambda c: c.memory_gb,
        "cost": lambda c: c.cost_seconds(limits.requests),
    }[prefer]
    kept = sorted(kept, key=lambda c: (math.inf if amount(c) is None else amount(c), -c.score))
    if amount(kept[0]) in (None, math.inf):
        return kept[0], [], kept
    noise = max(TIE, kept[0].spread("memory" if prefer == "memory" else "latency_ms_p50"))
    ties = [c for c in kept if amount(c) is not None and amount(c) <= amount(kept[0]) * (1 + noise)]
    choice = max(ties, key=lambda c: c.score)
    return choice, [c for c in ties if c is not choice], kept


def nearest(candidates, limits):
    """(the candidate that is over by least, [(limit, the value that would let something in with the other limits kept)], alone).

    alone: is any one of these enough? Where no single limit is, they are those that the nearest candidate breaks, all to be relaxed.
    """
    if not candidates:
        return None, [], True
    near = min(candidates, key=lambda c: max((excess for _, _, excess, _ in obstacles(c, limits)), default=0.0))
    relaxed = []
    for name in ("latency_ms", "memory_gb", "data_size", "required_accuracy"):
        needs = []
        for candidate in candidates:
            broken = obstacles(candidate, limits)
            if [limit for limit, *_ in broken] == [name] and broken[0][1] is not None:
                needs.append(broken[0][1])
        if needs:
            relaxed.append((name, max(needs) if name == "required_accuracy" else min(needs)))
    if relaxed:
        return near, relaxed, True
    return near, [(limit, value) for limit, value, _, _ in obstacles(near, limits) if value is not None], False


def tokens_of(candidate):
    """Tokens that one request reads, None where the rows did not count them."""
    c = candidate.configuration
    tokens = c.mean("prompt_tokens") if c else None
    return tokens / c.n_eval if tokens and c.n_eval else None


def break_even(trained, other, requests_per_day):
    """(requests after which the training is paid back by faster answers, days), None where the answers are not faster."""
    if trained.latency_ms is None or other.latency_ms is None or trained.latency_ms >= other.latency_ms:
        return None
    requests = max(0.0, trained.train_seconds - other.train_seconds) / ((other.latency_ms - trained.latency_ms) / 1000)
    return requests, requests / requests_per_day


def as_json(candidate):
    """What a script wants to know of a candidate."""
    if candidate is None:
        return None
    c = candidate.configuration
    return {
        "name": candidate.name,
        "strategy": candidate.strategy,
        "score": candidate.score,
        "score_error": candidate.score_error,
        "latency_ms": candidate.latency_ms,
        "memory_gb": candidate.memory_gb,
        "labels": candidate.labels,
        "train_seconds": candidate.train_seconds,
        "rows": [row["run_id"] for row in c.rows] if c else [],
        "command": commands.command(c.rows[0]) if c else None,
    }


def dumps(decision):
    """A decision as JSON."""
    return json.dumps(decision, indent=2, allow_nan=False)
