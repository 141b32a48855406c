"""Configurations against limits: which are within them, which is best, which is nearest, when training pays off."""

import dataclasses
import json
import math
import statistics
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import norm, t

from harness.results import configurations

NEAR = 3.0  # models count as of similar size up to this ratio of their parameters
CACHED = "cached_latency_ms_p50"
SURE = 0.9  # probability of being within the limits of latency and memory that a measured choice should have
LABEL_FLAGS = ("label_budget", "max_train_samples", "max_validation_samples")
TIE = 0.1  # latencies, memories and costs count as equal up to this relative difference


@dataclass(frozen=True)
class Limits:
    """The limits of the question; None: no limit."""

    memory_gb: float | None = None
    latency_ms: float | None = None
    data_size: int | None = None
    required_accuracy: float | None = None
    requests: float = 30_000.0  # to be answered over the whole horizon; costs are summed over them
    serving_memory_gb: float | None = None  # with it, memory_gb is that of training alone
    cached: bool = False  # latencies with the prompt's beginning in a cache, where a row has them


@dataclass(frozen=True)
class Candidate:
    """One measured or predicted configuration.

    score_error is the standard error of the score, latency_error and memory_error those of the natural logarithms: all
    are scales of Student's t with so many degrees of freedom, of what is measured for latency and memory alone.
    """

    name: str
    strategy: str
    score: float
    latency_ms: float | None
    memory_gb: float | None
    labels: float | None
    train_seconds: float
    score_error: float = 0.0
    latency_error: float = 0.0
    memory_error: float = 0.0
    majority: float | None = None
    configuration: configurations.Configuration | None = field(default=None, compare=False)
    command: str | None = field(default=None, compare=False)  # that measures it
    serving_gb: float | None = None
    latency_column: str = "latency_ms_p50"  # that latency_ms is of
    degrees: float = math.inf
    spread_degrees: float = math.inf  # of latency_error and memory_error of what is measured
    predicted: bool = False  # its configuration was measured on other data
    serving_error: float | None = None  # of serving_gb; None: memory_error

    @property
    def half_interval(self):
        """Half of the 95 % interval of the score."""
        return float(t.ppf(0.975, self.degrees)) * self.score_error

    @property
    def error_of_serving(self):
        return self.memory_error if self.serving_error is None else self.serving_error

    def cost_seconds(self, requests):
        """Machine seconds to train once and answer the requests one by one; infinite if the latency is unknown."""
        return self.train_seconds + (math.inf if self.latency_ms is None else self.latency_ms / 1000 * requests)

    def spread(self, column):
        """Relative standard deviation of a column over the runs, 0 if unknown."""
        c = self.configuration
        return (c.spread(column) or 0.0) / c.mean(column) if c and c.mean(column) else 0.0


def eligible(configuration):
    """True if it can be recommended: no baseline, not retrieval alone, no checkpoint trained by another row's run."""
    row = configuration.rows[0]
    return (
        not configurations.is_baseline(configuration["variant"])
        and configurations.task_kind(row) != "retrieval"
        and not configurations.scored_again(row)
    )


def latency_column(configuration, cached):
    """The column of its latency: cached: that with the prompt's beginning in a cache, if it is known."""
    known = cached and configuration.mean(CACHED) is not None
    return CACHED if known else "latency_ms_p50"


def score_error(configuration):
    """Standard error of the mean score; where all its examples have one score, what the 95 % interval says of it."""
    if configuration.standard_error:
        return configuration.standard_error
    low, high = configuration.interval
    return 0.0 if low is None else (high - low) / 2 / norm.ppf(0.975)


def amount(x):
    """Two significant digits, without an exponent."""
    return f"{x:,.0f}" if x >= 99.5 else np.format_float_positional(x, 2, fractional=False, trim="-")


def milliseconds(x):
    """In whole ones, from one on."""
    return f"{x:.0f} ms" if x >= 0.995 else f"{amount(x)} ms"


def measured(members, cached=False):
    """The Candidates of one panel's Configurations; one whose runs are all degenerate is none. cached: as for
    latency_column.

    The peak stands for a memory of serving that was not measured apart, which is less.
    """
    return [
        Candidate(
            c.name,
            c.strategy,
            c.mean(),
            c.mean(latency_column(c, cached)),
            c.mean("memory"),
            c.mean("labels_used"),
            c.mean("train_seconds") or 0.0,
            score_error(c),
            majority=configurations.value(c.rows[0], "majority_baseline"),
            configuration=c,
            serving_gb=c.mean("memory") if c.mean("serving_memory") is None else c.mean("serving_memory"),
            latency_column=latency_column(c, cached),
        )
        for c in members
        if eligible(c) and c.usable
    ]


def with_all_labels(candidates, data_size):
    """The Candidates without those that use fewer of the labels that one has, and are otherwise as another one."""
    if data_size is None:
        return candidates

    def rank(c):  # the most labels that one has, else the fewest; last a number that is not known
        labels = math.inf if c.labels is None else c.labels
        return labels <= data_size, labels if labels <= data_size else -labels

    most = {}
    for c in candidates:
        settings = c.configuration.settings if c.configuration else {"name": c.name}
        key = json.dumps({k: v for k, v in settings.items() if k not in (*LABEL_FLAGS, "run_id")}, sort_keys=True)
        most[key] = max(most.get(key, c), c, key=rank)
    return list(most.values())


def with_spread(candidates):
    """The Candidates with latency_error and memory_error: how much these vary from run to run, pooled over those that
    ran several times.
    """
    errors, known = {}, []
    for name, column in (("latency_error", None), ("memory_error", "memory")):
        squares, degrees = 0.0, 0
        for c in candidates:
            values = [math.log(x) for x in c.configuration.values(column or c.latency_column) if x]
            if len(values) > 1:
                squares += statistics.variance(values) * (len(values) - 1)
                degrees += len(values) - 1
        errors[name] = math.sqrt(squares / degrees) if degrees else 0.0
        known += [degrees] if degrees else []
    return [dataclasses.replace(c, **errors, spread_degrees=min(known, default=math.inf)) for c in candidates]


def surely_within(candidate, limits):
    """Whether it is within the limits of latency and memory with a probability of SURE, since these vary from run to
    run.
    """
    apart, sure = limits.serving_memory_gb is not None, t.ppf(SURE, candidate.spread_degrees)
    pairs = (
        (limits.latency_ms, candidate.latency_ms, candidate.latency_error),
        (
            None if apart and not candidate.train_seconds else limits.memory_gb,
            candidate.memory_gb,
            candidate.memory_error,
        ),
        (limits.serving_memory_gb, candidate.serving_gb, candidate.error_of_serving),
    )
    return all(limit is None or (value and value * math.exp(sure * error) <= limit) for limit, value, error in pairs)


def obstacles(candidate, limits):
    """[(limit, value that it would have to be, relative excess, sentence)] of the limits that a candidate breaks."""
    broken, memory_gb = [], limits.memory_gb
    if limits.serving_memory_gb is not None and not candidate.train_seconds:
        memory_gb = None  # it needs no machine to train on
    for limit, allowed, value, quantity, told in (
        ("memory_gb", memory_gb, candidate.memory_gb, "memory", "{:.2f} GB".format),
        ("serving_memory_gb", limits.serving_memory_gb, candidate.serving_gb, "memory of serving", "{:.2f} GB".format),
        ("latency_ms", limits.latency_ms, candidate.latency_ms, "latency", milliseconds),
        ("data_size", limits.data_size, candidate.labels, "number of labels", "{:.0f} labelled examples".format),
    ):
        if allowed is None or (value is not None and value <= allowed):
            continue
        if value is None:
            broken.append((limit, None, math.inf, f"its {quantity} was not measured"))
        else:
            over = value - allowed
            broken.append((limit, value, over / allowed if allowed else value, f"{quantity} over by {told(over)}"))
    if limits.required_accuracy is not None and candidate.score < limits.required_accuracy:
        short = limits.required_accuracy - candidate.score
        broken.append(
            ("required_accuracy", candidate.score, short / limits.required_accuracy, f"score short by {short:.3f}")
        )
    return broken


def choose(candidates, limits, prefer="accuracy"):
    """(best candidate within the limits or None, those that tie with it, all within the limits, best first).

    By accuracy: the best score. Scores within one standard error of it are ties (the one-standard-error rule, Breiman
    et al. 1984), and the tie with the lowest cost over the horizon is taken. By latency, memory or cost: the smallest,
    among those above the majority class. Amounts within TIE of it, or within the spread of its runs, are ties, and the
    best score is taken. If some are surely within the limits, they are all that is compared.
    """
    kept = [c for c in candidates if not obstacles(c, limits)]
    kept = [c for c in kept if surely_within(c, limits)] or kept
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
    noise = max(TIE, kept[0].spread("memory" if prefer == "memory" else kept[0].latency_column))
    ties = [c for c in kept if amount(c) is not None and amount(c) <= amount(kept[0]) * (1 + noise)]
    choice = max(ties, key=lambda c: c.score)
    return choice, [c for c in ties if c is not choice], kept


def nearest(candidates, limits):
    """If no candidate is within the limits: (the nearest, [(limit, value at which one is within them all)], alone).

    alone: True if relaxing any one of these limits is enough. If no single limit is, they are those that the nearest
    candidate breaks, and all of them must be relaxed.
    """
    if not candidates:
        return None, [], True
    near = min(candidates, key=lambda c: max((excess for _, _, excess, _ in obstacles(c, limits)), default=0.0))
    relaxed = []
    for name in ("latency_ms", "memory_gb", "serving_memory_gb", "data_size", "required_accuracy"):
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
    """Prompt tokens of one request, None if the rows did not count them, and of what is predicted for other data."""
    c = candidate.configuration
    tokens = c.mean("prompt_tokens") if c and not candidate.predicted else None
    return tokens / c.n_eval if tokens and c.n_eval else None


def break_even(trained, other, requests_per_day):
    """(requests, days) after which faster answers have paid for the training; None if the answers are not faster."""
    if trained.latency_ms is None or other.latency_ms is None or trained.latency_ms >= other.latency_ms:
        return None
    requests = max(0.0, trained.train_seconds - other.train_seconds) / ((other.latency_ms - trained.latency_ms) / 1000)
    return requests, requests / requests_per_day


def endpoint_sentence(candidate, requests, price_in, price_out):
    """What an endpoint that is paid by the token takes for a candidate's requests; None without prices or counts.

    price_in, price_out: per million tokens; requests: of the horizon.
    """
    c, read = candidate.configuration, tokens_of(candidate)
    if price_in is None or read is None:
        return None
    wrote = (c.mean("generated_tokens") or 0.0) / c.n_eval
    each = (read * price_in + wrote * price_out) / 1e6
    return (
        f"{amount(1000 * each)} for 1,000 requests at an endpoint ({read:.0f} tokens in and {wrote:.0f} out each, at "
        f"{price_in:g} and {price_out:g} a million), {amount(each * requests)} over the horizon"
    )


def cost_sentence(candidate, requests_per_day, horizon_days, price_per_hour):
    """What a candidate costs, its requests one by one on a machine that is paid for while it works; None without a
    price or a latency.
    """
    if price_per_hour is None or candidate.latency_ms is None:
        return None
    price, requests = price_per_hour / 3600, requests_per_day * horizon_days
    training = f"{amount(candidate.train_seconds * price)} to train, " if candidate.train_seconds else ""
    thousand = candidate.latency_ms * price  # so many ms each: as many s
    text = f"{training}{amount(thousand)} for 1,000 requests one by one"
    over = f"{amount(candidate.cost_seconds(requests) * price)} over {horizon_days:g} days"
    return f"{text}, {over}, at {price_per_hour:g} an hour"


def break_even_sentence(choice, others, requests_per_day, horizon_days, price_per_hour=None):
    """What the best trained candidate costs against the best untrained one, in words; None if either is missing."""
    timed = [c for c in [choice, *others] if c.latency_ms is not None]
    trained, untrained = ([c for c in timed if bool(c.train_seconds) == wanted] for wanted in (True, False))
    if not trained or not untrained:
        return None
    first, second = (max(some, key=lambda c: (c is choice, c.score)) for some in (trained, untrained))
    text = f"{first.name} ({first.score:.3f}, {first.train_seconds:.0f} s of training)"
    text += f" against {second.name} ({second.score:.3f})"
    paid_back = break_even(first, second, requests_per_day)
    if paid_back is None:
        return f"{text}: its answers are not faster, so they never make up for the training time"
    requests, days = paid_back
    planned = requests_per_day * horizon_days
    saved = (second.cost_seconds(planned) - first.cost_seconds(planned)) / 3600
    text += f": answers come {second.latency_ms - first.latency_ms:.0f} ms sooner"
    tokens = [tokens_of(c) for c in (first, second)]
    if None not in tokens:
        fewer = tokens[1] - tokens[0]
        text += f" and read {abs(fewer):.0f} tokens {'fewer' if fewer >= 0 else 'more'}"
    text += f"; paid back after {math.ceil(requests):,} requests, {amount(days)} days at {requests_per_day:g} a day"
    text += f"; over {horizon_days:g} days it {'saves' if saved > 0 else 'loses'} {abs(saved):.1f} machine hours"
    return text if price_per_hour is None else f"{text}, which cost {amount(abs(saved) * price_per_hour)}"
