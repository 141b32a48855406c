"""What is known of a configuration before it runs, as features for predictions."""

import math
import statistics
from dataclasses import dataclass

from harness.arguments import optimizer_steps
from harness.results import configurations, names
from harness.selector import landmark

CHARS_A_TOKEN = 4  # of English text, roughly: for rows that counted tokens alone, and for --tokens
STRATEGIES = ("full_finetuning", "peft", "probe", "setfit", "prompting", "rag", "context_distillation", "distillation")
PASSAGE_TOKENS = 64


@dataclass(frozen=True)
class Data:
    """What is known of a data set without a run."""

    chars: float  # of an input, median
    classes: float  # 1 where there are none
    majority: float | None  # share of the most frequent class
    landmark: float | None = None  # accuracy of a simple learner, see `landmark`


@dataclass(frozen=True)
class Spec:
    """What is known of a configuration before it runs."""

    strategy: str
    kind: str
    data: Data
    params: float
    labels: float
    shots: float
    precision: str
    trainable: float
    passages: float
    new_tokens: float
    steps: float  # of the optimizer; 0 without training
    encoder: bool  # a classification head on the text, no prompt
    calibrated: bool = False  # label scores are divided by the label prior
    searched: bool = False  # a prompt that is chosen on the labels

    @property
    def family(self):
        """Configurations whose errors are alike."""
        return f"{self.strategy}, {'encoder' if self.encoder else 'language model'}"

    @property
    def learns(self):
        """Whether it learns from labels, in training or in a search."""
        return bool(self.steps or self.searched)

    def tokens(self):
        """Of one example's input."""
        return self.data.chars / CHARS_A_TOKEN

    def input_tokens(self):
        """Input tokens of one request, roughly."""
        return self.tokens() * (1 + self.shots) + PASSAGE_TOKENS * self.passages

    def numbers(self):
        """[(name, log10 of the value)] of the features that are sizes."""
        trained_on = self.labels if self.steps else 0
        return [
            ("parameters", math.log10(self.params)),
            ("examples trained on", math.log10(1 + trained_on)),
            ("demonstrations", math.log10(1 + self.shots)),
            ("tokens of a request", math.log10(1 + self.input_tokens())),
            ("new tokens", math.log10(1 + self.new_tokens)),
            ("trained parameters", math.log10(1 + self.trainable)),
            ("optimizer steps", math.log10(1 + self.steps)),
            ("passages", math.log10(1 + self.passages)),
            ("classes", math.log10(self.data.classes)),
        ]

    def vector(self):
        """Features of the score.

        Labels count by class, and apart for each strategy: what a hundred labels give a probe they do not give a
        prompt. So do the classes.
        """
        learnt_from = self.labels if self.learns else 0
        labels = math.log10(1 + learnt_from / self.data.classes)
        classes = math.log10(self.data.classes)
        is_strategy = [float(self.strategy == name) for name in STRATEGIES]
        own = [x * size for size in (labels, classes) for x in is_strategy]
        flags = [float(x) for x in (self.encoder, self.kind == "classification", self.calibrated, self.searched)]
        narrow = [float(self.precision == name) for name in ("int8", "nf4")]
        sizes = [math.log10(self.params), math.log10(1 + self.shots), math.log10(1 + self.data.chars)]
        sizes += [math.log10(1 + self.passages), labels, classes, self.data.majority or 0.0]
        sizes += [math.log10(1 + self.steps)]
        return [*sizes, *is_strategy, *own, *flags, *narrow]

    def vector_by_landmark(self):
        """`vector`, with what a simple learner scores on the data."""
        return [*self.vector(), self.data.landmark - (self.data.majority or 0.0)]

    def work(self):
        """Features of latency: log10 of parameters times tokens read and written, precision, kind of model."""
        read, written = self.params * self.input_tokens(), self.params * (1 + self.new_tokens)
        bits = [float(self.precision in some) for some in (("bf16", "fp16"), ("int8",), ("nf4",))]
        read_by_class = 0.0 if self.encoder else math.log10(self.data.classes)  # each label is scored
        flags = [float(x) for x in (self.encoder, self.passages > 0, self.trainable > 0, self.searched)]
        return [math.log10(1 + read), math.log10(1 + written), read_by_class, *bits, *flags]

    def room(self):
        """Features of memory: bytes of fp32 weights, gradients and Adam's moments of what is trained, and what tells
        how far they are from the peak. The forecast of a run is none: it depends on the longest inputs of its data.
        """
        trained = 12 * self.trainable if self.steps else 0.0
        flags = [self.steps > 0, self.searched, self.encoder, self.passages > 0]
        flags += [self.precision in some for some in (("int8", "nf4"), ("bf16", "fp16"))]
        sizes = [math.log10(4 * self.params + trained), math.log10(1 + self.trainable), math.log10(1 + self.tokens())]
        return [*sizes, *map(float, flags), *(float(self.strategy == name) for name in STRATEGIES)]

    def effort(self):
        """Features of the seconds of training."""
        return [
            math.log10(self.params * (1 + self.tokens())),
            math.log10(1 + self.steps),
            math.log10(1 + self.trainable),
            float(self.strategy in ("context_distillation", "distillation")),
        ]


def data_of_rows(rows):
    """{data set: Data}, of those whose rows say how long inputs are.

    Older rows do not: of them the tokens of prompts without demonstrations and passages stand for it, and classes are
    as many as the share of the most frequent one leaves room for.
    """
    by_data = {}
    for row in rows:
        by_data.setdefault(configurations.data_name(row), []).append(row)
    found = {name: _data(some) for name, some in by_data.items()}
    return {name: data for name, data in found.items() if data is not None}


def _data(rows):
    def median(numbers):
        known = [x for x in numbers if x is not None]
        return statistics.median(known) if known else None

    chars = median(configurations.value(row, "input_chars") for row in rows)
    if chars is None:
        tokens = median(map(_prompt_tokens, rows))
        chars = tokens and tokens * CHARS_A_TOKEN
    majority = median(configurations.value(row, "majority_baseline") for row in rows)
    classes = median(configurations.value(row, "n_classes") for row in rows)
    classes = classes or (max(2, round(1 / majority)) if majority else 1)
    return None if chars is None else Data(chars, classes, majority, landmark.of_rows(rows))


def _prompt_tokens(row):
    """Tokens of one prompt of a row without demonstrations and passages; None of other rows."""
    tokens, n = configurations.value(row, "prompt_tokens"), configurations.value(row, "n_eval")
    plain = row["strategy"] != "rag" and not configurations.value(row, "k_shots")
    return tokens / n if tokens and n and plain and not configurations.is_baseline(row["variant"]) else None


def steps_of(row, trained_on):
    """Optimizer steps of a row's configuration with so many training examples; 0 without training, 1 of a head that is
    fitted once.
    """
    if not row["train_seconds"]:
        return 0
    if names.strategy(row) == "probe":
        return 1
    flags = {"batch_size": configurations.value(row, "batch_size") or 1, **configurations.flags(row)}
    return optimizer_steps(flags, trained_on, configurations.task_kind(row))


def spec(configuration, data):
    """The Spec of a Configuration. data: of its data set."""
    row, flags = configuration.rows[0], configurations.flags(configuration.rows[0])
    kind, searched = configurations.task_kind(row), row["variant"].startswith("searched")
    strategy = "prompting" if row["strategy"] == "quantized" else names.strategy(row)  # the same at another precision
    encoder = kind == "classification" and strategy in ("full_finetuning", "peft", "probe", "setfit")
    encoder = encoder and not (strategy == "probe" and row["variant"].startswith("lm_"))
    return Spec(
        strategy,
        kind,
        data,
        configuration.mean("total_params") or 1.0,
        configuration.mean("labels_used") or 0,
        0 if searched else configurations.value(row, "k_shots") or 0,  # what a search chooses is not known before
        row["precision"],
        configuration.mean("trainable_params") or 0.0,
        flags.get("k") or 0 if row["strategy"] == "rag" else 0,
        0 if kind == "classification" else flags.get("max_new_tokens") or (256 if kind == "instruction" else 32),
        steps_of(row, configuration.mean("n_train") or 0),
        encoder,
        flags.get("calibrate") not in (None, "none"),
        searched,
    )
