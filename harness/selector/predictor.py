"""Gaussian processes over the rows: scores, latencies and memory of configurations on new data."""

import dataclasses
import math
import statistics
import warnings
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel
from sklearn.preprocessing import StandardScaler

import utils
from harness.results import configurations
from harness.selector.candidates import Candidate, Limits, choose, eligible

MIN_CONFIGURATIONS, MIN_GROUPS = 20, 3  # that a model is trained on


TIE_POINTS = 0.01  # of a predicted score


# rules of thumb: ten times the labels bring a trained model a few points; rounded weights cost some (Dettmers et al. 2022, 2023: little)
PER_DECADE, NARROW = 0.05, {"int8": 0.01, "nf4": 0.02}


ROUNDS = 3  # of backfitting


CONFIDENCE = 0.9  # that a predicted configuration keeps the limits


BEYOND = 2  # a number may be outside of those seen by this factor


@dataclass(frozen=True)
class Spec:
    """A configuration as it is known before it runs. tokens: of one example's prompt without demonstrations and passages."""

    strategy: str
    kind: str
    params: float
    labels: float
    shots: float
    precision: str
    trainable: float
    passages: float
    tokens: float
    new_tokens: float
    steps: float
    majority: float | None
    predicted_gb: float | None
    encoder: bool  # a classification head reads the text, no prompt
    calibrated: bool = False  # the label prior is divided out

    def input_tokens(self):
        """Tokens that one request reads, roughly."""
        return self.tokens * (1 + self.shots) + 64 * self.passages

    def numbers(self):
        """The features that are sizes: (name, value), as logarithms."""
        return [
            ("parameters", math.log10(self.params)),
            ("examples trained on", math.log10(1 + (self.labels if self.steps else 0))),
            ("demonstrations", math.log10(1 + self.shots)),
            ("tokens of a request", math.log10(1 + self.input_tokens())),
            ("new tokens", math.log10(1 + self.new_tokens)),
            ("trained parameters", math.log10(1 + self.trainable)),
            ("optimizer steps", math.log10(1 + self.steps)),
            ("passages", math.log10(1 + self.passages)),
        ]

    def prior(self):
        """What is expected of the score before any row speaks: above the majority class, by rules of thumb that the rows correct."""
        return PER_DECADE * (math.log10(1 + self.labels) - 2 if self.steps else 0) - NARROW.get(self.precision, 0.0)

    def vector(self):
        """Features of the score: sizes, strategy, kind.

        The precision is left to `prior`, since logs seldom have it in pairs to learn from; optimizer steps go with the labels, and are
        left out.
        """
        strategies = [
            float(self.strategy == name)
            for name in ("full_finetuning", "peft", "prompting", "rag", "context_distillation")
        ]
        sizes = [x for name, x in self.numbers() if name != "optimizer steps"]
        return [*sizes, *strategies, float(self.encoder), float(self.kind == "classification"), float(self.calibrated)]

    def work(self):
        """Features of latency: the logarithms of what is read and written, times the parameters, and the precision."""
        read, written = self.params * self.input_tokens(), self.params * (1 + self.new_tokens)
        bits = [float(self.precision in names) for names in (("bf16", "fp16"), ("int8",), ("nf4",))]
        return [
            math.log10(read),
            math.log10(written),
            float(self.encoder),
            *bits,
            float(self.passages > 0),
            float(self.trainable > 0),
        ]


def prompt_tokens(rows):
    """{data set: mean tokens of a prompt without demonstrations or passages}, from the rows that counted them."""
    found = {}
    for row in rows:
        tokens, n = configurations.value(row, "prompt_tokens"), configurations.value(row, "n_eval")
        if (
            tokens
            and n
            and not configurations.value(row, "k_shots")
            and row["strategy"] != "rag"
            and row["variant"] not in configurations.BASELINES
        ):
            found.setdefault(configurations.data_name(row), []).append(tokens / n)
    return {name: statistics.median(values) for name, values in found.items()}


def spec(configuration, tokens):
    """The Spec of a Configuration. tokens: of its data set's examples."""
    row, flags = configuration.rows[0], configurations.flags(configuration.rows[0])
    labels, epochs = configuration.mean("labels_used"), flags.get("epochs") or 0
    trainable = configuration.mean("trainable_params") or 0.0
    steps = (
        (flags.get("max_steps") or math.ceil(epochs * labels / (configurations.value(row, "batch_size") or 1)))
        if row["train_seconds"]
        else 0
    )
    kind = configurations.task_kind(row)
    encoder = kind == "classification" and row["strategy"] in ("full_finetuning", "peft")
    new = 0 if kind == "classification" else flags.get("max_new_tokens") or 32
    passages = flags.get("k") or 0 if row["strategy"] == "rag" else 0
    strategy = "prompting" if row["strategy"] == "quantized" else row["strategy"]  # the same at another precision
    return Spec(
        strategy,
        kind,
        configuration.mean("total_params") or 1.0,
        labels,
        configurations.value(row, "k_shots") or 0,
        row["precision"],
        trainable,
        passages,
        tokens,
        new,
        steps,
        configurations.value(row, "majority_baseline"),
        configuration.mean("predicted_gb"),
        encoder,
        flags.get("calibrate", "none") != "none",
    )


class Predictor:
    """Gaussian processes for score, log latency, log memory and log training time, trained on Configurations of one kind of device."""

    def __init__(self, found, tokens):
        """found: [(group, Configuration)] with their data set and model as group; tokens: as of `prompt_tokens`. UserError: too few."""
        known = [(group, c, spec(c, tokens[group[0]])) for group, c in found if group[0] in tokens and eligible(c)]
        known = [(group, c, s) for group, c, s in known if s.kind]
        groups = {group for group, _, _ in known}
        if len(known) < MIN_CONFIGURATIONS or len(groups) < MIN_GROUPS:
            raise utils.UserError(
                f"{len(known)} configurations of {len(groups)} data sets and models are too few to learn from "
                f"({MIN_CONFIGURATIONS} and {MIN_GROUPS} are wanted)"
            )
        self.specs = [s for _, _, s in known]
        self.known = known
        self.score, self.levels = _fit_levels(
            [s.vector() for s in self.specs],
            [c.mean() - (s.majority or 0.0) - s.prior() for _, c, s in known],
            [group[0] for group, _, _ in known],
        )
        self.latency = self._fit_log("latency_ms_p50", Spec.work)
        self.memory = self._fit_log("memory", _memory_features)
        self.training = self._fit_log("train_seconds", _training_features)

    def _fit_log(self, column, features):
        pairs = [(features(s), math.log(c.mean(column))) for _, c, s in self.known if c.mean(column)]
        return (*_fit(*zip(*pairs)), features) if len(pairs) >= 5 else None

    def refusal(self, wanted):
        """Why a Spec is beyond what the rows cover, None where it is not."""
        for name in ("strategy", "kind"):
            if getattr(wanted, name) not in {getattr(s, name) for s in self.specs}:
                return f"no row of {getattr(wanted, name)}"
        edge = math.log10(BEYOND)
        for i, (name, value) in enumerate(wanted.numbers()):
            seen = [s.numbers()[i][1] for s in self.specs]
            if not min(seen) - edge <= value <= max(seen) + edge:
                return f"{10**value:,.0f} {name} are beyond the {10 ** min(seen):,.0f} to {10 ** max(seen):,.0f} that were measured"
        return None

    def candidate(self, wanted, name, configuration=None, data=None):
        """The Candidate of a Spec, with predicted score, latency and memory and their errors. data: the data set, where rows know it."""
        score, error = _predict(self.score, wanted.vector())
        if data in self.levels:
            score += self.levels[data]
        else:
            error = math.hypot(error, statistics.pstdev(self.levels.values()))
        found = {}
        for quantity, model in (("latency", self.latency), ("memory", self.memory), ("training", self.training)):
            found[quantity] = _predict(model[:2], model[2](wanted)) if model else (None, 0.0)
        (latency, latency_error), (memory, memory_error), (training, _) = (
            found["latency"],
            found["memory"],
            found["training"],
        )
        seconds = math.exp(training) if training is not None and wanted.steps else 0.0
        score += wanted.prior() + (wanted.majority or 0.0)
        return Candidate(
            name,
            wanted.strategy,
            score,
            latency and math.exp(latency),
            memory and math.exp(memory),
            wanted.labels,
            seconds,
            error,
            latency_error,
            memory_error,
            wanted.majority,
            configuration,
        )


def _memory_features(s):
    rounded = float(s.precision in ("int8", "nf4"))  # their peaks are further above the forecast
    return [
        math.log10(s.params),
        math.log10(s.predicted_gb or s.params * 4 / utils.GB),
        float(s.steps > 0),
        float(s.passages > 0),
        rounded,
    ]


def _training_features(s):
    return [
        math.log10(s.params * (1 + s.tokens)),
        math.log10(1 + s.steps),
        math.log10(1 + s.trainable),
        float(s.strategy == "context_distillation"),
    ]


def _fit(features, targets):
    """(scaler, Gaussian process) with one length scale over standardised features and a noise of its own."""
    scaler = StandardScaler().fit(features)
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * RBF(2.0, (0.5, 20)) + ConstantKernel(0.1, (1e-4, 1e1)) * DotProduct(
        1.0, (0.1, 10)
    )
    process = GaussianProcessRegressor(kernel + WhiteKernel(0.1, (1e-3, 1)), normalize_y=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # an optimum at one of the bounds is what they are for
        return scaler, process.fit(scaler.transform(features), targets)


def _fit_levels(features, targets, groups):
    """(what `_fit` gives, {group: how far it is above what its features say}).

    A random effect for each data set, by backfitting (Breiman and Friedman 1985) with shrinkage: a hard data set must not make the
    ways tried on it look bad.
    """
    levels = dict.fromkeys(groups, 0.0)
    for _ in range(ROUNDS):
        model = _fit(features, [y - levels[g] for y, g in zip(targets, groups)])
        rest = {g: [] for g in levels}
        for x, y, g in zip(features, targets, groups):
            rest[g].append(y - _predict(model, x)[0])
        levels = {g: sum(some) / (len(some) + 1) for g, some in rest.items()}
    return model, levels


def _predict(model, features):
    scaler, process = model
    mean, deviation = process.predict(scaler.transform([features]), return_std=True)
    return float(mean[0]), float(deviation[0])


def chance(candidate, limits):
    """Probability that a predicted candidate keeps the limits, latency, memory and score taken as independent normal variables."""
    if limits.data_size is not None and candidate.labels > limits.data_size:
        return 0.0
    p = 1.0
    for limit, value, error in (
        (limits.latency_ms, candidate.latency_ms, candidate.latency_error),
        (limits.memory_gb, candidate.memory_gb, candidate.memory_error),
    ):
        if limit is not None:
            p *= norm.cdf((math.log(limit) - math.log(value)) / max(error, 1e-9)) if value else 0.0
    if limits.required_accuracy is not None:
        p *= norm.cdf((candidate.score - limits.required_accuracy) / max(candidate.score_error, 1e-9))
    return float(p)


def choose_predicted(candidates, limits, prefer="accuracy"):
    """(choice or None where none can keep the limits, its chance to, [the others that are as sure, from the best on]).

    Those that keep the limits with CONFIDENCE are compared as measured ones are, scores within TIE_POINTS as ties; where none is that
    sure, the surest is taken.
    """
    chances = {id(c): chance(c, limits) for c in candidates}
    sure = [c for c in candidates if chances[id(c)] >= CONFIDENCE]
    if not sure:
        best = max((c for c in candidates if chances[id(c)]), key=lambda c: chances[id(c)], default=None)
        return best, chances.get(id(best), 0.0), []
    even = [dataclasses.replace(c, score_error=TIE_POINTS) for c in sure]  # the error that all share tells none apart
    choice, _, kept = choose(even, Limits(requests=limits.requests), prefer)
    original = {id(e): c for e, c in zip(even, sure)}
    return original[id(choice)], chances[id(original[id(choice)])], [original[id(c)] for c in kept if c is not choice]


def groups_of(rows):
    """[((data set, model), Configuration)] of rows that `rows.select` kept, of one kind of device."""
    found = []
    for panel, members in configurations.panels(rows).items():
        found += [((panel.data, Path(c["model"]).name), c) for c in configurations.group_seeds(members)]
    return found
