"""What a label budget buys a prompt: k, demonstrations, template and calibration, chosen on the labels themselves.

Half of the labels at most are demonstrations; up to HELD_OUT of the others score every candidate. Without a number of
candidates first k and the calibration are chosen with one set of demonstrations, then the set; with one, k,
demonstrations and template are drawn at random (random search, Bergstra & Bengio 2012). Where each input has the
demonstrations nearest to it, all labels are demonstrations, and score a candidate with themselves left out. Nothing is
looked at but the budget's labels.
"""

import random
from dataclasses import dataclass, field

import numpy as np

import utils
from harness.data.examples import Task, draw, draw_in_proportion
from harness.evaluation import metrics, prompting
from harness.models import generation, properties, scoring

CANDIDATES = (0, 4, 8, 16)  # demonstrations in a prompt
SETS = 3  # disjoint sets of demonstrations
HELD_OUT = 200  # labels that score a candidate; more only cost time
LEAST = 8  # labels; of fewer, all are demonstrations and nothing is chosen


@dataclass
class Chosen:
    """A prompt, and the Examples whose labels led to it."""

    demonstrations: list  # or a demonstrations.Nearest
    calibrate: str  # none, contextual or batch
    prior: np.ndarray | None  # the log label prior [L] to divide out
    used: list
    note: str
    seconds: float
    task: Task | None = None  # with the instruction and the template
    trials: list = field(default_factory=list)  # a dict for each candidate with each calibration


@dataclass
class Trial:
    """A candidate with a calibration, and its score on the held-out labels."""

    value: float
    task: Task
    demonstrations: list
    calibrate: str
    prior: np.ndarray | None

    @property
    def order(self):
        """Larger is better: ties go to fewer demonstrations, then to no calibration."""
        return self.value, -len(self.demonstrations), self.calibrate == "none"


def choose(model, tokenizer, task, seed, chat, *, search=None, demos="balanced", nearest=None, least=0, **options):
    """The Chosen prompt for the labels task.train.

    search: (number of candidates, [F] tasks of `prompts.forms`), None for k and the set alone; demos: how a set is
    drawn, balanced or random; nearest: a demonstrations.Nearest over task.train, instead of sets; least: fewest
    demonstrations; options: of `Trials`.
    """
    with utils.measure() as spent:
        trials = Trials(model, tokenizer, task, chat, seed, shared=nearest is None, **options)
        chosen = trials.choose(search, demos == "balanced", nearest, least)
    chosen.seconds = spent.seconds
    return chosen


def divide(examples, seed, balanced=True):
    """([sets of demonstrations], held-out examples) of the labels.

    The held-out ones are drawn first, in the proportions of the classes: balanced sets would leave few of rare classes.
    """
    largest = max(k for k in CANDIDATES if k <= len(examples) // 2)
    n_sets = min(SETS, len(examples) // 2 // largest)
    held_out = draw_in_proportion(examples, min(HELD_OUT, len(examples) - largest * n_sets), seed)
    apart = {ex.id for ex in held_out}
    rest = [ex for ex in examples if ex.id not in apart]
    if not balanced:
        drawn = draw(rest, largest * n_sets, seed, balanced)
        return [drawn[i * largest : (i + 1) * largest] for i in range(n_sets)], held_out
    by_class = sorted(draw(rest, None, seed), key=lambda ex: (ex.label is None, ex.label))
    return [draw(by_class[i::n_sets], largest, seed) for i in range(n_sets)], held_out


def candidates(number, tasks, pool, seed, balanced, least=0):
    """[number] (task, demonstrations) drawn at random by seed: the form, k, and k of the pool.

    The first is the task's own form without demonstrations, or with `least`. pool: Examples, or a Nearest over them.
    """
    rng = random.Random(seed)
    counts = [k for k in CANDIDATES if least <= k <= len(getattr(pool, "pool", pool))]
    chosen = [(tasks[0], counts[0])] + [(rng.choice(tasks), rng.choice(counts)) for _ in range(number - 1)]
    sets = [pool.of(k) if callable(pool) else draw(pool, k, rng.random(), balanced) for _, k in chosen]
    return [(task, shown) for (task, _), shown in zip(chosen, sets)]


class Trials:
    """The candidates and what they score on the held-out labels."""

    def __init__(
        self,
        model,
        tokenizer,
        task,
        chat,
        seed,
        batch_size="auto",
        likelihood=True,
        per_token=False,
        calibrations=None,
        shared=True,
    ):
        """likelihood: label words or options are scored, so the criterion is accuracy; else answers are generated, and
        it is the log-likelihood of the references per token, which needs no generation. calibrations: to try (default:
        none, and for classes batch, and contextual where inputs share their demonstrations); shared: do they.
        """
        self.model, self.tokenizer, self.task, self.chat, self.batch_size = model, tokenizer, task, chat, batch_size
        self.per_token, self.seed = per_token, seed
        self.classes = task.kind == "classification" and likelihood
        self.options = task.kind == "qa" and likelihood
        self.seen = []  # a dict for each Trial
        usual = ["none", *["contextual"] * shared, "batch"] if self.classes else ["none"]
        self.calibrations = calibrations or usual

    def choose(self, search=None, balanced=True, nearest=None, least=0):
        """The Chosen prompt, its seconds not filled in. search, nearest, least: as for the function choose."""
        labels = self.task.train
        if len(labels) < LEAST:
            note = f"all {len(labels)} labels are demonstrations"
            return Chosen(draw(labels, None, self.seed), "none", None, list(labels), note, 0.0, self.task)
        if nearest is not None:
            sets, held_out = [nearest], draw(labels, min(len(labels), HELD_OUT), self.seed, balanced=False)
        else:
            sets, held_out = divide(labels, self.seed, balanced)
        if search:
            shown = {ex.id for ex in held_out}
            pool = [ex for ex in labels if ex.id not in shown] if nearest is None else nearest
            tried = candidates(*search, pool, self.seed, balanced, least)
            best, how = self.best(tried, held_out), f"best of {len(tried)} random candidates"
        else:
            best, how, tried = self.step_by_step(sets, held_out, least)
        k = len(best.demonstrations)
        apart = "apart from the demonstrations" if nearest is None else "each left out of its own prompt"
        criterion = "accuracy" if self.classes or self.options else "log-likelihood a token"
        note = f"prompt chosen on {len(held_out)} labels, {apart}: k {k}, {how}, calibration {best.calibrate}; "
        note += f"{criterion} there {best.value:.3f}"
        used = labels if nearest is not None else [*(ex for _, shown in tried for ex in shown), *held_out]
        used = list({ex.id: ex for ex in used}.values())
        return Chosen(best.demonstrations, best.calibrate, best.prior, used, note, 0.0, best.task, self.seen)

    def step_by_step(self, sets, held_out, least):
        """(the best Trial, how it was chosen, [(task, demonstrations)] tried): first k, then the set."""
        most = len(getattr(sets[0], "pool", sets[0]))
        counts = [k for k in CANDIDATES if least <= k <= most]
        tried = [(self.task, sets[0].of(k) if callable(sets[0]) else sets[0][:k]) for k in counts]
        best, how = self.best(tried, held_out), f"of {', '.join(map(str, counts))}"
        k = len(best.demonstrations)
        if k and len(sets) > 1:
            more = [(self.task, some[:k]) for some in sets[1:]]
            best, tried = max(best, self.best(more, held_out), key=lambda trial: trial.order), [*tried, *more]
        return best, how if callable(sets[0]) else f"{how}, the best of {len(sets)} sets of demonstrations", tried

    def best(self, tried, held_out):
        """The best Trial of (task, demonstrations) with each calibration; the first of those that are equal."""
        trials = []
        for task, demonstrations in tried:
            found = self.scores(held_out, demonstrations, task)
            for calibrate in self.calibrations:
                value, prior = self.value(found, held_out, demonstrations, calibrate, task)
                trials.append(Trial(value, task, demonstrations, calibrate, prior))
                about = {"k": len(demonstrations), "calibrate": calibrate, "value": value}
                self.seen.append({**about, "instruction": task.instruction, "template": task.template})
        return max(trials, key=lambda trial: trial.order)

    def scores(self, examples, demonstrations, task=None):
        """LabelScores of the label words, options or first references after the prompts."""
        task = task or self.task

        def continuations(ex):
            return task.words if self.classes else ex.options if self.options else [task.target(ex)]

        texts = {text for ex in examples for text in continuations(ex)}
        limit = properties.context_length(self.model)
        room = limit and limit - max(len(self.tokenizer(f" {t}", add_special_tokens=False).input_ids) for t in texts)

        def work(part):
            prompts, separator, *_ = prompting.fit_prompts(task, part, demonstrations, self.tokenizer, self.chat, room)
            labels = [[separator + text for text in continuations(ex)] for ex in part]
            return scoring.score_labels(
                self.model, self.tokenizer, prompts, labels, self.batch_size, not self.chat, "choosing the prompt"
            )

        return generation.joined(utils.over_processes(work, examples))

    def value(self, found, held_out, demonstrations, calibrate, task):
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
            prior = shift = prompting.contextual_prior(task, lambda some: self._log_probs(some, demonstrations, task))
        right = (log_probs - shift).argmax(axis=1) == [ex.label for ex in held_out]
        return float(right.mean()), prior

    def _log_probs(self, examples, demonstrations, task):
        found = self.scores(examples, demonstrations, task)
        return metrics.log_normalise(found.mean if self.per_token else found.total)


def left_out_priors(log_probs):
    """[N, L]: for each example the log label prior that the other examples give."""
    probabilities = np.exp(log_probs)
    others = probabilities.sum(axis=0) - probabilities
    return np.log(np.maximum(others, np.finfo(float).tiny) / (len(log_probs) - 1))
