"""What a label budget buys a prompt: k, the demonstrations and the calibration, chosen on the labels themselves.

Half of the labels at most are demonstrations; up to HELD_OUT of the others score every candidate. First k and the
calibration are chosen with one set of demonstrations, then the set. Nothing is looked at but the budget's labels.
"""

from dataclasses import dataclass

import numpy as np

import utils
from harness.data.examples import draw
from harness.evaluation import metrics, prompting
from harness.models import generation, loading, scoring

CANDIDATES = (0, 4, 8, 16)  # demonstrations in a prompt
SETS = 3  # disjoint sets of demonstrations
HELD_OUT = 200  # labels that score a candidate; more only cost time
LEAST = 8  # labels; of fewer, all are demonstrations and nothing is chosen


@dataclass
class Chosen:
    """A prompt, and the Examples whose labels led to it."""

    demonstrations: list
    calibrate: str  # none, contextual or batch
    prior: np.ndarray | None  # the log label prior [L] to divide out
    used: list
    note: str
    seconds: float


def choose(
    model, tokenizer, task, seed, chat, batch_size="auto", likelihood=True, per_token=False, calibrations=None, least=0
):
    """The Chosen prompt for the labels task.train.

    likelihood: label words or options are scored, so the criterion is accuracy; else answers are generated, and it is
    the log-likelihood of the references per token, which needs no generation. Ties go to fewer demonstrations, then to
    no calibration. calibrations: to try (default: none, and batch for classes); least: fewest demonstrations.
    """
    with utils.measure() as spent:
        trials = Trials(model, tokenizer, task, chat, batch_size, likelihood, per_token, seed)
        chosen = trials.choose(calibrations, least)
    chosen.seconds = spent.seconds
    return chosen


def divide(examples, seed):
    """([sets of demonstrations], held-out examples) of the labels; the first set is what draw() gives for its size."""
    largest = max(k for k in CANDIDATES if k <= len(examples) // 2)
    n_sets = min(SETS, len(examples) // 2 // largest)
    drawn = draw(examples, largest * n_sets, seed)
    shown = {ex.id for ex in drawn}
    held_out = [ex for ex in examples if ex.id not in shown][:HELD_OUT]
    return [drawn[i * largest : (i + 1) * largest] for i in range(n_sets)], held_out


class Trials:
    """The candidates and what they score on the held-out labels."""

    def __init__(self, model, tokenizer, task, chat, batch_size, likelihood, per_token, seed):
        self.model, self.tokenizer, self.task, self.chat, self.batch_size = model, tokenizer, task, chat, batch_size
        self.per_token, self.seed = per_token, seed
        self.classes = task.kind == "classification" and likelihood
        self.options = task.kind == "qa" and likelihood

    def choose(self, calibrations, least):
        """The Chosen prompt, its seconds not filled in. calibrations, least: as for the function choose."""
        task = self.task
        if len(task.train) < LEAST:
            note = f"all {len(task.train)} labels are demonstrations"
            return Chosen(draw(task.train, None, self.seed), "none", None, list(task.train), note, 0.0)
        calibrations = calibrations or (("none", "batch") if self.classes else ("none",))
        sets, held_out = divide(task.train, self.seed)
        counts = [k for k in CANDIDATES if least <= k <= len(sets[0])]
        best = self.best([sets[0][:k] for k in counts], held_out, calibrations)
        k = len(best[1])
        if k:
            best = max(best, self.best([some[:k] for some in sets[1:]], held_out, calibrations), key=lambda one: one[0])
        (value, *_), demonstrations, calibrate, prior = best
        tried = {ex.id: ex for ex in [*sets[0][: max(counts)], *(ex for some in sets[1:] for ex in some[:k])]}
        criterion = "accuracy" if self.classes or self.options else "log-likelihood a token"
        note = (
            f"prompt chosen on {len(held_out)} labels apart from the demonstrations: k {k} of "
            f"{', '.join(map(str, counts))}, the best of {len(sets)} sets of demonstrations, calibration {calibrate}; "
            f"{criterion} there {value:.3f}"
        )
        return Chosen(list(demonstrations), calibrate, prior, [*tried.values(), *held_out], note, 0.0)

    def best(self, candidates, held_out, calibrations):
        """((value, and what breaks ties), demonstrations, calibration, prior) of the best candidate; ((-inf,), ..) of
        none.
        """
        trials = [((-np.inf,), (), "none", None)]
        for demonstrations in candidates:
            found = self.scores(held_out, demonstrations)
            for calibrate in calibrations:
                value, prior = self.value(found, held_out, demonstrations, calibrate)
                trials.append(((value, -len(demonstrations), calibrate == "none"), demonstrations, calibrate, prior))
        return max(trials, key=lambda trial: trial[0])  # the first of those that are equal

    def scores(self, examples, demonstrations):
        """LabelScores of the label words, options or first references after the prompts."""
        task = self.task

        def continuations(ex):
            return task.words if self.classes else ex.options if self.options else [task.target(ex)]

        texts = {text for ex in examples for text in continuations(ex)}
        limit = loading.context_length(self.model)
        room = limit and limit - max(len(self.tokenizer(f" {t}", add_special_tokens=False).input_ids) for t in texts)

        def work(part):
            prompts, separator, *_ = prompting.fit_prompts(task, part, demonstrations, self.tokenizer, self.chat, room)
            labels = [[separator + text for text in continuations(ex)] for ex in part]
            return scoring.score_labels(
                self.model, self.tokenizer, prompts, labels, self.batch_size, not self.chat, "choosing the prompt"
            )

        return generation.joined(utils.over_processes(work, examples))

    def value(self, found, held_out, demonstrations, calibrate):
        """(value of the criterion, log label prior [L] or None) of LabelScores.

        The prior of batch calibration is that of the other examples: none calibrates itself.
        """
        label_scores = found.mean if self.per_token else found.total
        if self.options:
            answers = [ex.options[i] for ex, i in zip(held_out, label_scores.argmax(axis=1))]
            right = [
                metrics.normalise_answer(answer) in map(metrics.normalise_answer, ex.references)
                for ex, answer in zip(held_out, answers)
            ]
            return float(np.mean(right)), None
        if not self.classes:
            return float(found.total.sum() / found.n_tokens.sum()), None
        log_probs, prior, shift = metrics.log_normalise(label_scores), None, 0.0
        if calibrate == "batch":
            prior, shift = prompting.batch_prior(log_probs), left_out_priors(log_probs)
        elif calibrate == "contextual":
            prior = shift = prompting.contextual_prior(self.task, lambda some: self._log_probs(some, demonstrations))
        right = (log_probs - shift).argmax(axis=1) == [ex.label for ex in held_out]
        return float(right.mean()), prior

    def _log_probs(self, examples, demonstrations):
        found = self.scores(examples, demonstrations)
        return metrics.log_normalise(found.mean if self.per_token else found.total)


def left_out_priors(log_probs):
    """[N, L]: for each example the log label prior that the other examples give."""
    probabilities = np.exp(log_probs)
    others = probabilities.sum(axis=0) - probabilities
    return np.log(np.maximum(others, np.finfo(float).tiny) / (len(log_probs) - 1))
