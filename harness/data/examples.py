"""The one shape of data that every strategy sees: Example and Task."""

import hashlib
import json
import random
import statistics
from dataclasses import dataclass, field

import utils


@dataclass(frozen=True)
class Example:
    """One example.

    label: index into Task.labels (classification); references: the accepted answers (qa, instruction).
    """

    id: str
    text: str
    text_pair: str | None = None
    context: str | None = None
    options: tuple = ()
    label: int | None = None
    references: tuple = ()
    group: str | None = None  # HANS' heuristic, UnifiedQA's source, Dolly's category
    about: str | None = None  # what the data set's own column of clusters says

    @property
    def cluster(self):
        """12 hex digits that examples about one thing share: what the data set's column of clusters names, else the
        context or the first text of a pair (a passage with several questions, a premise with several hypotheses); None
        for an example without any.
        """
        shared = self.about or self.context or (self.text if self.text_pair is not None else None)
        return shared and hashlib.sha256(" ".join(shared.lower().split()).encode()).hexdigest()[:12]

    def key(self):
        """Equal for two examples with the same input, apart from case and white space."""
        parts = (self.text, self.text_pair, self.context, *self.options)
        return tuple(None if part is None else " ".join(part.lower().split()) for part in parts)


@dataclass
class Task:
    """A data set ready for use."""

    name: str
    subset: str | None
    kind: str  # classification, qa or instruction
    labels: tuple = ()  # [L] names of the classes
    words: tuple = ()  # [L] what a language model reads and says for each label
    descriptions: tuple = ()  # [L] a sentence about each label, or none at all
    answer_format: str = "text"  # of qa: text, or number, where the last number of an answer counts
    instruction: str = ""
    template: str = ""
    train: list = field(default_factory=list)  # Examples, drawn by --data_seed
    validation: list = field(default_factory=list)  # choose the checkpoint; empty under a label budget
    unlabelled: list = field(default_factory=list)  # other training inputs, whose labels nobody looks at
    evaluation: list = field(default_factory=list)  # give the score
    eval_split: str = "test"
    notes: list = field(default_factory=list)
    passages: list = field(default_factory=list)  # the distinct contexts of all splits
    retrieved: bool = False  # contexts are what was found for the question, not its own passage

    @property
    def eval_id(self):
        """12 hex digits over the contents of the evaluation examples: rows are comparable only where it is equal."""
        contents = sorted(
            json.dumps(
                [ex.text, ex.text_pair, ex.context, *ex.options, ex.label, *ex.references, *filter(None, [ex.about])]
            )
            for ex in self.evaluation
        )
        return hashlib.sha256("\n".join(contents).encode()).hexdigest()[:12]

    def target(self, example):
        """The text of a perfect answer: the label's word, or the first reference."""
        return self.words[example.label] if self.kind == "classification" else example.references[0]

    def summary(self):
        """For a person: the kind that was recognised, the sizes and the word of each label, a line; then the notes."""
        sizes = (
            f"{len(self.train)} train, {len(self.validation)} validation, {len(self.evaluation)} evaluation examples"
        )
        words = ", ".join(
            name if name == word else f"{name} as {word!r}" for name, word in zip(self.labels, self.words)
        )
        line = f"{self.name}: {self.kind}, {sizes} ({self.eval_split})" + (f"; labels {words}" if words else "")
        return "\n".join([line, *(f"  note: {note}" for note in self.notes)])

    def row(self):
        """The data cells of a results row."""
        cells = {
            "dataset": self.name,
            "subset": self.subset,
            "split": self.eval_split,
            "eval_id": self.eval_id,
            "n_eval": len(self.evaluation),
            "input_chars": statistics.median(map(characters, self.evaluation)) if self.evaluation else None,
            "note": "; ".join(self.notes) or None,
        }
        if self.kind == "classification":
            counts = [sum(ex.label == i for ex in self.evaluation) for i in range(len(self.labels))]
            cells.update(n_classes=len(self.labels), majority_baseline=max(counts) / len(self.evaluation))
        return cells


def characters(example):
    """Of an example's input: its texts, its passage and its options."""
    return sum(len(text or "") for text in (example.text, example.text_pair, example.context, *example.options))


@dataclass
class OutOfDomain:
    """Evaluation examples of another data set, and what each label of the task counts as there."""

    name: str
    labels: tuple
    mapping: list  # [labels of the task] -> index into `labels`
    evaluation: list


def draw(examples, k, seed, balanced=True):
    """k examples drawn by `seed`, the classes in turn, so as balanced as the data allow. k=None: all, in their order.

    balanced: False where labels may not be looked at. UserError where there are fewer than k examples. The first k of a
    larger draw are the draw of k.
    """
    if k is None:
        return list(examples)
    if k > len(examples):
        raise utils.UserError(f"{k} training examples or demonstrations are asked for, the data have {len(examples)}")
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    if not balanced:
        return shuffled[:k]
    by_label = {}
    for example in shuffled:
        by_label.setdefault(example.label, []).append(example)
    turns = [(turn, example) for group in by_label.values() for turn, example in enumerate(group)]
    return [example for _, example in sorted(turns, key=lambda pair: pair[0])[:k]]


def draw_in_proportion(examples, n, seed):
    """n examples drawn by `seed` in the class proportions of the examples, each class at least once where n allows.

    Seats go to classes by Webster's divisors after the first of each, so a smaller draw is a subset of a larger one.
    The order is that of the shuffle. Without labels: n at random. There must be n of them.
    """
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    places = {}
    for place, example in enumerate(shuffled):
        places.setdefault(example.label, []).append(place)
    seats = [(i > 0, -len(some) / (2 * i + 1), place) for some in places.values() for i, place in enumerate(some)]
    return [shuffled[place] for place in sorted(place for *_, place in sorted(seats)[:n])]
