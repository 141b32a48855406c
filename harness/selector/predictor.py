"""Gaussian processes over the rows (scikit-learn): score, latency and memory of a configuration on new data."""

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
from harness.arguments import auto_epochs
from harness.results import configurations, names
from harness.selector.candidates import Candidate, Limits, choose, eligible

MIN_CONFIGURATIONS, MIN_GROUPS = 20, 3  # that the predictor needs to learn from
TIE_POINTS = 0.01  # predicted scores closer than this are ties
# rules of thumb: ten times the labels give a trained model a few points; int8 and nf4 weights cost a little
# (Dettmers et al. 2022, 2023)
PER_DECADE, NARROW = 0.05, {"int8": 0.01, "nf4": 0.02}
ROUNDS = 3  # of backfitting
CONFIDENCE = 0.9  # probability of being within the limits that a prediction needs to be recommended as likely
BEYOND = 2  # a feature may lie outside the measured range by this factor
STRATEGIES = ("full_finetuning", "peft", "probe", "setfit", "prompting", "rag", "context_distillation", "distillation")
SETFIT_STEPS = 2.5  # optimizer steps a label: 40 pairs in batches of 16


@dataclass(frozen=True)
class Spec:
    """What is known of a configuration before it runs."""

    strategy: str
    kind: str
    params: float
    labels: float
    shots: float
    precision: str
    trainable: float
    passages: float
    tokens: float  # of one example's prompt, without demonstrations and passages
    new_tokens: float
    steps: float  # of the optimizer; 0 without training
    majority: float | None
    predicted_gb: float | None
    encoder: bool  # a classification head on the text, no prompt
    calibrated: bool = False  # label scores are divided by the label prior

    def input_tokens(self):
        """Input tokens of one request, roughly: 64 a passage."""
        return self.tokens * (1 + self.shots) + 64 * self.passages

    def numbers(self):
        """[(name, log10 of the value)] of the features that are sizes."""
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
        """Expected score above the majority class, by rules of thumb; the Gaussian process learns the rest."""
        return PER_DECADE * (math.log10(1 + self.labels) - 2 if self.steps else 0) - NARROW.get(self.precision, 0.0)

    def vector(self):
        """Features of the score: sizes, strategy, kind.

        Precision is left to `prior`, because few rows differ in it alone. Optimizer steps are left out, because they
        grow with the labels.
        """
        strategies = [float(self.strategy == name) for name in STRATEGIES]
        sizes = [x for name, x in self.numbers() if name != "optimizer steps"]
        return [*sizes, *strategies, float(self.encoder), float(self.kind == "classification"), float(self.calibrated)]

    def work(self):
        """Features of latency: log10 of parameters times tokens read and written, precision, kind of model."""
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
    """{data set: tokens of one prompt without demonstrations or passages, median over the rows that counted them}."""
    counts = {}
    for row in rows:
        tokens, n = configurations.value(row, "prompt_tokens"), configurations.value(row, "n_eval")
        plain = row["strategy"] != "rag" and not configurations.value(row, "k_shots")
        if tokens and n and plain and row["variant"] not in configurations.BASELINES:
            counts.setdefault(configurations.data_name(row), []).append(tokens / n)
    return {name: statistics.median(values) for name, values in counts.items()}


def spec(configuration, tokens):
    """The Spec of a Configuration. tokens: of one example's prompt on its data set."""
    row, flags = configuration.rows[0], configurations.flags(configuration.rows[0])
    trained_on, epochs = configuration.mean("n_train") or 0, flags.get("epochs") or 0
    if epochs == "auto":
        epochs = auto_epochs(trained_on, configurations.value(row, "batch_size") or 1, configurations.task_kind(row))
    trainable = configuration.mean("trainable_params") or 0.0
    steps = (
        (flags.get("max_steps") or math.ceil(epochs * trained_on / (configurations.value(row, "batch_size") or 1)))
        if row["train_seconds"]
        else 0
    )
    kind = configurations.task_kind(row)
    strategy = "prompting" if row["strategy"] == "quantized" else names.strategy(row)  # the same at another precision
    probe = strategy == "probe"
    steps = 1 if probe and row["train_seconds"] else steps  # a head that is fitted once
    steps = SETFIT_STEPS * trained_on if strategy == "setfit" else steps
    encoder = kind == "classification" and strategy in ("full_finetuning", "peft", "probe", "setfit")
    encoder = encoder and not (probe and row["variant"].startswith("lm_"))
    new = 0 if kind == "classification" else flags.get("max_new_tokens") or 32
    passages = flags.get("k") or 0 if row["strategy"] == "rag" else 0
    return Spec(
        strategy,
        kind,
        configuration.mean("total_params") or 1.0,
        configuration.mean("labels_used") or 0,
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
        flags.get("calibrate") not in (None, "none"),
    )


class Predictor:
    """Gaussian processes for score, log latency, log memory and log training time, for one kind of device."""

    def __init__(self, groups, tokens):
        """groups: [((data set, model), Configuration)]. tokens: from `prompt_tokens`. UserError if they are too few."""
        known = [(group, c, spec(c, tokens[group[0]])) for group, c in groups if group[0] in tokens and eligible(c)]
        known = [(group, c, s) for group, c, s in known if s.kind]
        n_groups = len({group for group, _, _ in known})
        if len(known) < MIN_CONFIGURATIONS or n_groups < MIN_GROUPS:
            raise utils.UserError(
                f"the rows are too few to predict from: {len(known)} configurations on {n_groups} pairs of data set "
                f"and model, at least {MIN_CONFIGURATIONS} and {MIN_GROUPS} are needed"
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
        self.serving = self._fit_log("serving_memory", _memory_features) or self.memory
        self.training = self._fit_log("train_seconds", _training_features)

    def _fit_log(self, column, features):
        pairs = [(features(s), math.log(c.mean(column))) for _, c, s in self.known if c.mean(column)]
        return (*_fit(*zip(*pairs)), features) if len(pairs) >= 5 else None

    def refusal(self, wanted):
        """Why a Spec is outside the range of the rows; None if it is within."""
        for name in ("strategy", "kind"):
            if getattr(wanted, name) not in {getattr(s, name) for s in self.specs}:
                return f"no row of {getattr(wanted, name)}"
        edge = math.log10(BEYOND)
        for i, (name, value) in enumerate(wanted.numbers()):
            seen = [s.numbers()[i][1] for s in self.specs]
            if not min(seen) - edge <= value <= max(seen) + edge:
                low, high = 10 ** min(seen), 10 ** max(seen)
                return f"{10**value:,.0f} {name} are beyond the {low:,.0f} to {high:,.0f} that were measured"
        return None

    def candidate(self, wanted, name, configuration=None, data=None):
        """The Candidate of a Spec, with predicted score, latency and memory and their errors.

        data: the data set's name. If rows measure it, its random effect is added; else its spread widens the error.
        """
        score, error = _predict(self.score, wanted.vector())
        if data in self.levels:
            score += self.levels[data]
        else:
            error = math.hypot(error, statistics.pstdev(self.levels.values()))
        (latency, latency_error), (memory, memory_error), (training, _), (serving, _) = (
            _predict(model[:2], model[2](wanted)) if model else (None, 0.0)
            for model in (self.latency, self.memory, self.training, self.serving)
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
            serving_gb=serving and math.exp(serving),
        )


def _memory_features(s):
    quantized = float(s.precision in ("int8", "nf4"))  # their peaks are further above the forecast
    return [
        math.log10(s.params),
        math.log10(s.predicted_gb or s.params * 4 / utils.GB),
        float(s.steps > 0),
        float(s.passages > 0),
        quantized,
    ]


def _training_features(s):
    return [
        math.log10(s.params * (1 + s.tokens)),
        math.log10(1 + s.steps),
        math.log10(1 + s.trainable),
        float(s.strategy in ("context_distillation", "distillation")),
    ]


def _fit(features, targets):
    """(scaler, Gaussian process): one length scale over standardised features, a linear kernel, and noise."""
    scaler = StandardScaler().fit(features)
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * RBF(2.0, (0.5, 20)) + ConstantKernel(0.1, (1e-4, 1e1)) * DotProduct(
        1.0, (0.1, 10)
    )
    process = GaussianProcessRegressor(kernel + WhiteKernel(0.1, (1e-3, 1)), normalize_y=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # an optimum at a bound is expected
        return scaler, process.fit(scaler.transform(features), targets)


def _fit_levels(features, targets, groups):
    """(what `_fit` returns, {group: its random effect}).

    One random effect for each data set, by backfitting (Breiman and Friedman 1985) with shrinkage: a hard data set must
    not make the strategies tried on it look bad.
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
    """Probability that a predicted candidate is within the limits.

    The score and the logarithms of latency and memory are taken as independent normal variables.
    """
    if limits.data_size is not None and candidate.labels > limits.data_size:
        return 0.0
    p, apart = 1.0, limits.serving_memory_gb is not None
    for limit, value, error in (
        (limits.latency_ms, candidate.latency_ms, candidate.latency_error),
        (
            None if apart and not candidate.train_seconds else limits.memory_gb,
            candidate.memory_gb,
            candidate.memory_error,
        ),
        (limits.serving_memory_gb, candidate.serving_gb, candidate.memory_error),
    ):
        if limit is not None:
            p *= norm.cdf((math.log(limit) - math.log(value)) / max(error, 1e-9)) if value else 0.0
    if limits.required_accuracy is not None:
        p *= norm.cdf((candidate.score - limits.required_accuracy) / max(candidate.score_error, 1e-9))
    return float(p)


def choose_predicted(candidates, limits, prefer="accuracy"):
    """(choice or None if none can be within the limits, its probability to be, [others, best first]).

    Candidates that are within the limits with a probability of CONFIDENCE are compared like measured ones, scores
    within TIE_POINTS as ties. If there are none, the one with the highest probability is taken, without others.
    """
    chances = {id(c): chance(c, limits) for c in candidates}
    sure = [c for c in candidates if chances[id(c)] >= CONFIDENCE]
    if not sure:
        best = max((c for c in candidates if chances[id(c)]), key=lambda c: chances[id(c)], default=None)
        return best, chances.get(id(best), 0.0), []
    even = [dataclasses.replace(c, score_error=TIE_POINTS) for c in sure]  # most of the error is common to all
    choice, _, kept = choose(even, Limits(requests=limits.requests), prefer)
    original = {id(e): c for e, c in zip(even, sure)}
    return original[id(choice)], chances[id(original[id(choice)])], [original[id(c)] for c in kept if c is not choice]


def groups_of(rows):
    """[((data set, model), Configuration)] of rows of one kind of device that `configurations.select` kept."""
    return [
        ((panel.data, Path(c["model"]).name), c)
        for panel, members in configurations.panels(rows).items()
        for c in configurations.group_seeds(members)
    ]
