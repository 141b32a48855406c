"""A model's outputs on the evaluation examples: by label likelihood, by generation, by a classification head.

Everything here computes and returns an Outcome; record.py writes it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

import utils
from harness import flags
from harness.data import numbers
from harness.evaluation import calibration, metrics, perplexity, prompting, reading, remarks
from harness.models import engine, generation, prefix_cache, properties, scoring
from harness.results import configurations, stats


@dataclass
class Outcome:
    """What a model gave for the N evaluation examples, its scores, and what that cost."""

    predictions: list  # [N] class indices, None where an answer could not be read; or the answers, as text
    scores: dict  # quality cells of the row
    spent: utils.Measurement  # of the batched pass over all examples
    latencies: list  # ms of the first requests, each alone, from text in to answer out
    each: list | None = None  # [N] dicts: scores of each answer
    log_probs: np.ndarray | None = None  # [N, L], normalised over the labels
    extras: list | None = None  # [N] dicts: further fields of predictions.jsonl
    cells: dict = field(default_factory=dict)  # further cells of the row: tokens, times, batch size
    notes: list = field(default_factory=list)
    warnings: list = field(default_factory=list)  # notes that are printed as well
    workload: dict | None = None  # the arguments of memory_forecast.predict_inference
    # computed only after the row has the rest, so that a run that then has no memory left keeps its score
    perplexity: Callable | None = None  # () -> cells: perplexity of the references or texts, bits per byte
    tuned: Callable | None = None  # () -> cells: calibration after a temperature, which is fitted on `labelled`
    labelled: list = field(default_factory=list)  # Examples of other splits
    out_of_domain: Callable | None = None  # () -> [M] class indices for the examples of --eval_ood
    group_metric: str = "accuracy"  # that the note tells for each group of examples


def by_head(model, tokenizer, task, batch_size, latency_runs, max_length=None, other=None, labelled=()):
    """Classify with a classification head. Returns an Outcome with log_probs [N, L].

    The head may have its labels (model.config.id2label) in another order than the task. max_length: tokens an input is
    cut to; other: an OutOfDomain, classified as well; labelled: examples whose labels may be used, for a temperature.
    """
    order = properties.label_order(model, task.labels)
    batch_size = 32 if batch_size == "auto" else batch_size

    def classify(examples, size, progress=None):
        pairs = None if examples[0].text_pair is None else [ex.text_pair for ex in examples]
        texts = [ex.text for ex in examples]
        return scoring.classify(model, tokenizer, texts, pairs, size, max_length, progress)[:, order]

    outcome = by_probabilities(classify, task, batch_size, latency_runs, other, labelled, model.device.type)
    limit = scoring.classifier_length(model, tokenizer, max_length)
    lengths = [len(tokenizer(ex.text, ex.text_pair, verbose=False).input_ids) for ex in task.evaluation]
    outcome.warnings += remarks.cuts(lengths, limit)
    sizes = {"batch_size": min(batch_size, len(task.evaluation)), "longest": min(max(lengths), limit)}
    outcome.workload = {**sizes, "kind": "classified"}
    return outcome


def by_probabilities(classify, task, batch_size, latency_runs, other=None, labelled=(), device="cpu"):
    """Classify with any function (examples, batch size, title of a progress bar or None) -> log-probabilities [N, L].

    Returns an Outcome with log_probs [N, L]. other: an OutOfDomain, classified as well; labelled: Examples that a
    temperature may be fitted on; device: the type of that on which it computes.
    """

    def classify_all(examples, progress=None):
        return np.concatenate(utils.over_processes(lambda part: classify(part, batch_size, progress), examples))

    utils.warm_up(device, lambda some: classify(some, batch_size, None), task.evaluation)
    with utils.measure() as spent:
        log_probs = classify_all(task.evaluation, "evaluating")
    latencies, memory = serve(lambda example: classify([example], 1, None).argmax(), task.evaluation[:latency_runs])
    outcome = _classified(task, _argmax(log_probs), log_probs, spent, latencies)
    outcome.cells.update(memory, batch_size=batch_size)
    outcome.out_of_domain = lambda: _argmax(classify_all(other.evaluation))
    if labelled:
        outcome.labelled = labelled
        targets, labels = ([ex.label for ex in some] for some in (task.evaluation, labelled))
        outcome.tuned = lambda: calibration.tuned_cells(log_probs, targets, classify_all(labelled), labels)
    return outcome


def by_likelihood(
    model, tokenizer, task, batch_size, latency_runs, chat, demonstrations=(), prior=None, per_token=False, other=None
):
    """Classify by the likelihood of the label words after the prompt. Returns an Outcome with log_probs [N, L].

    prior: None, or a function of (examples -> log-probabilities [N, L], log-probabilities of the evaluation examples)
    that returns the log label prior [L] to divide out; per_token: compare a label's mean log-probability per token
    instead of the sum over its tokens; other: an OutOfDomain, classified as well.
    """
    score, room = _scorer(model, tokenizer, task, batch_size, chat, demonstrations, lambda ex: task.words)

    def normalised(label_scores):  # -> [N, L]
        return metrics.log_normalise(label_scores.mean if per_token else label_scores.total)

    def calibrated(raw):  # -> [N, L] and the log prior [L] that was divided out
        shift = 0.0 if prior is None else prior(lambda examples: normalised(score(examples)[0]), raw)
        return metrics.log_normalise(raw - shift), shift

    utils.warm_up(model.device.type, score, task.evaluation)
    with utils.measure() as spent:
        found, lost = _over_processes(lambda part: score(part, progress="scoring"), task.evaluation)
    log_probs, shift = calibrated(normalised(found))  # apart: it may score other inputs

    def request(example, prefix=None):
        return utils.milliseconds(lambda: normalised(score([example], 1, None, prefix)[0]) - shift)

    timed = task.evaluation[:latency_runs]
    latencies, memory = utils.serve(request, timed)
    cached, notes = _cached_requests(model, found.prefix, request, timed)
    outcome = _classified(task, _argmax(log_probs), log_probs, spent, latencies)
    outcome.extras = [
        {"log_probs_sum": list(map(float, total)), "log_probs_mean": list(map(float, mean))}
        for total, mean in zip(found.total, found.mean)
    ]
    outcome.cells.update(memory, **utils.latency_columns(cached, "cached_"))
    outcome.cells["label_mass"] = metrics.label_mass(found.total)
    outcome.notes += notes
    if all(re.fullmatch(r"[-0-9.]+", word) for word in task.words):
        outcome.notes.append("the labels are numbers, which tell a language model little; name them by --label_words")

    def elsewhere():
        found, _ = _over_processes(lambda part: score(part, progress="scoring"), other.evaluation)
        return _argmax(calibrated(normalised(found))[0])

    outcome.out_of_domain = elsewhere
    return _scored(outcome, found, lost, room)


def by_options(model, tokenizer, task, batch_size, latency_runs, chat, demonstrations=(), per_token=False):
    """Multiple choice by likelihood: the answer is the likeliest option after the prompt; its exact match is the
    accuracy.

    UserError where a question has no options, or none of them is its answer.
    """
    _check_options(task)
    score, room = _scorer(model, tokenizer, task, batch_size, chat, demonstrations, lambda ex: ex.options)

    def choose(examples, label_scores):
        best = (label_scores.mean if per_token else label_scores.total).argmax(axis=1)
        return [ex.options[int(i)] for ex, i in zip(examples, best)]

    utils.warm_up(model.device.type, score, task.evaluation)
    with utils.measure() as spent:
        found, lost = _over_processes(lambda part: score(part, progress="scoring"), task.evaluation)
        answers = choose(task.evaluation, found)
    latencies, memory = serve(lambda ex: choose([ex], score([ex], 1)[0]), task.evaluation[:latency_runs])
    outcome = answered(task, answers, spent, latencies)
    outcome.cells.update(memory)
    outcome.extras = [
        {"log_probs_sum": dict(zip(ex.options, map(float, values)))} for ex, values in zip(task.evaluation, found.total)
    ]
    right = outcome.scores["exact_match"]
    rights = [scores["exact_match"] for scores in outcome.each]
    low, high = stats.score_interval(rights, [ex.cluster for ex in task.evaluation])
    outcome.scores.update(metric="accuracy", score=right, accuracy=right, score_low=low, score_high=high)
    once = [dict(zip(ex.options, values)).values() for ex, values in zip(task.evaluation, found.total)]
    outcome.cells["label_mass"] = metrics.label_mass(once)  # an option that is given twice counts once
    outcome.group_metric = "exact_match"
    return _scored(outcome, found, lost, room)


def by_generation(
    model,
    tokenizer,
    task,
    batch_size,
    latency_runs,
    chat,
    max_new_tokens,
    demonstrations=(),
    decoding=None,
    reasons=False,
    samples=1,
):
    """Generated answers to questions and instructions, or to a classification prompt. Returns an Outcome.

    decoding: options of `model.generate` for another decoding method, by which the single requests are timed. The
    batched answers are always decoded plainly, so their throughput is then left out. reasons: the answer stands behind
    them; samples: so many answers are sampled, and their vote counts (self-consistency, Wang et al. 2023).
    """
    limit = properties.context_length(model)
    room = limit and limit - (0 if model.config.is_encoder_decoder else max_new_tokens)
    stop = prompting.task_stop(model, tokenizer, task, chat, reasons)
    options = {"stop": stop, "add_special_tokens": not chat}
    if samples > 1:
        options.update(do_sample=True, temperature=flags.SAMPLING_TEMPERATURE)

    def prompts_of(examples):
        return prompting.fit_prompts(task, examples, demonstrations, tokenizer, chat, room)

    def generate(examples):
        prompts, _, *lost = prompts_of(examples)
        prompts = [prompt for prompt in prompts for _ in range(samples)]
        answers = generation.generate(
            model, tokenizer, prompts, max_new_tokens, batch_size, progress="generating", **options
        )
        return answers, lost

    def request(example, prefix=None):
        def prompt():
            return prompts_of([example])[0][0]

        several = {"samples": samples, "prefix": prefix}
        return generation.time_request(
            model, tokenizer, prompt, max_new_tokens, **several, **options, **(decoding or {})
        )

    utils.warm_up(model.device.type, generate, task.evaluation)
    with utils.measure() as spent:
        found, lost = _over_processes(generate, task.evaluation)
    examples = task.evaluation[:latency_runs]
    timed, memory = utils.serve(request, examples)
    cached, notes = ([], []) if decoding else _cached_requests(model, found.prefix, request, examples)
    latencies = [t.total_ms for t in timed]
    answers = reading.answers(task, found.answers, reasons, samples)
    if task.kind == "classification":
        outcome = _classified(task, answers, None, spent, latencies)
    else:
        outcome = answered(task, answers, spent, latencies)
    outcome.extras = [{"generated": found.texts[i : i + samples]} for i in range(0, len(found.texts), samples)]
    if samples == 1:
        name = "answer" if task.kind == "classification" else "generated"
        outcome.extras = remarks.with_thoughts(found.texts, [None if name == "answer" else a for a in answers], name)
        outcome.perplexity = (
            None
            if engine.is_engine(model)
            else lambda: target_perplexity(model, tokenizer, task, prompts_of, batch_size, chat)
        )
    outcome.cells.update(
        memory,
        **utils.latency_columns([t.total_ms for t in cached], "cached_"),
        ttft_ms=metrics.median([t.ttft_ms for t in timed]),
        cached_ttft_ms=metrics.median([t.ttft_ms for t in cached]),
        tpot_ms=metrics.median([t.tpot_ms for t in timed]),
        **token_cells(found, None if decoding else spent),
    )
    outcome.notes += notes
    outcome.workload = workload(found, "generated")
    outcome.warnings += remarks.truncation(room, *lost, found.truncated) + remarks.unfinished(
        found.unfinished, len(found.texts)
    )
    return outcome


def trained(model, tokenizer, task, args, chat, other, latency_runs=None):
    """The Outcome of a model that was trained by the flags `args`: by its head, or by generated answers.

    latency_runs: requests to time; None: --latency_runs.
    """
    timed = args.latency_runs if latency_runs is None else latency_runs
    if task.kind == "classification":
        options = {"max_length": args.max_length, "other": other, "labelled": task.validation}
        return by_head(model, tokenizer, task, args.batch_size, timed, **options)
    return by_generation(model, tokenizer, task, "auto", timed, chat, prompting.answer_length(args, task))


# -------------------------------------------------------------------------------------------------------------------
# parts


def serve(answer, examples):
    """(milliseconds of `answer(example)` for each example alone, cells of the memory of serving)."""
    return utils.serve(lambda example: utils.milliseconds(lambda: answer(example)), examples)


def answered(task, answers, spent, latencies):
    """The Outcome of free answers [N], scored against the examples' references; of numbers, by the last one of each.

    UserError for a reference without a number where numbers are asked for.
    """
    clusters = [ex.cluster for ex in task.evaluation]
    given = task.kind == "qa" and not task.retrieved and any(ex.context for ex in task.evaluation)
    own = [configurations.OWN_PASSAGE] if given else []
    if task.answer_format == "number":
        said = [numbers.last_number(answer) or "" for answer in answers]
        scores, each = metrics.number_scores(said, numbers.reference_numbers(task), clusters)
        return Outcome(said, scores, spent, latencies, each, group_metric="exact_match", notes=own)
    scores, each = metrics.answer_scores(answers, [ex.references for ex in task.evaluation], clusters)
    contains = float(np.mean([example["contains_answer"] for example in each]))
    outcome = Outcome(answers, scores, spent, latencies, each, group_metric="token_f1", notes=own)
    outcome.notes.append(f"{contains:.3f} of the outputs contain a reference answer")
    return outcome


def token_cells(found, spent):
    """Token counts, batch size and throughput of generation.Answers; spent: their Measurement, or None for no
    throughput.
    """
    return {
        "prompt_tokens": found.prompt_tokens,
        "generated_tokens": found.new_tokens,
        "batch_size": found.batch_size,
        "tokens_per_s": spent and found.new_tokens / spent.seconds,
    }


def target_perplexity(model, tokenizer, task, prompts_of, batch_size, chat):
    """The cells perplexity.reference_cells of the examples' first references after their prompts."""
    prompts, separator, *_ = prompts_of(task.evaluation)
    references = [separator + task.target(ex) for ex in task.evaluation]
    return perplexity.reference_cells(model, tokenizer, prompts, references, batch_size, chat)


def _argmax(log_probs):
    return [int(i) for i in log_probs.argmax(axis=1)]


def _classified(task, predictions, log_probs, spent, latencies):
    targets = [ex.label for ex in task.evaluation]
    clusters = [ex.cluster for ex in task.evaluation]
    scores = metrics.classification_scores(predictions, targets, len(task.labels), clusters)
    if log_probs is not None:
        scores.update(calibration.cells(np.exp(log_probs), targets))
    each = [{"accuracy": float(p == target)} for p, target in zip(predictions, targets)]
    return Outcome(predictions, scores, spent, latencies, each, log_probs)


def _check_options(task):
    """UserError where a question has fewer than two options, or an answer that is none of them."""
    n = len(task.evaluation)
    without = sum(len(ex.options) < 2 for ex in task.evaluation)
    if without:
        raise utils.UserError(
            f"{without} of {n} questions of {task.name} have no options to choose from; use --scoring generate"
        )
    plain = metrics.normalise_answer
    strange = sum(plain(ex.references[0]) not in map(plain, ex.options) for ex in task.evaluation)
    if strange:
        raise utils.UserError(
            f"the answers of {strange} of {n} questions of {task.name} are none of their options; "
            "use --scoring generate"
        )


def _scorer(model, tokenizer, task, batch_size, chat, demonstrations, continuations):
    """(function of examples -> LabelScores of their continuations and what the prompts lost, tokens left for a prompt).

    continuations: example -> the texts that may follow its prompt, label words or options.
    """
    texts = dict.fromkeys(text for ex in task.evaluation for text in continuations(ex))
    limit = properties.context_length(model)
    room = limit and limit - max(len(tokenizer(f" {text}", add_special_tokens=False).input_ids) for text in texts)

    def score(examples, size=batch_size, progress=None, prefix=None):
        prompts, separator, *lost = prompting.fit_prompts(task, examples, demonstrations, tokenizer, chat, room)
        labels = [[separator + text for text in continuations(ex)] for ex in examples]
        return scoring.score_labels(model, tokenizer, prompts, labels, size, not chat, progress, prefix), lost

    return score, room


def _over_processes(work, examples):
    """(LabelScores or Answers of all processes joined, what their prompts lost in all)."""
    parts = utils.over_processes(work, examples)
    lost = [sum(numbers) for numbers in zip(*(lost for _, lost in parts))]
    return generation.joined([found for found, _ in parts]), lost


def _cached_requests(model, prefix_ids, request, inputs):
    """([request(x, prefix) for each input], notes) with the prompts' common prefix in a cache; ([], []) where none can
    be.
    """
    if len(inputs) < 2 or engine.is_engine(model):  # an engine keeps its own cache, also in the plain requests
        return [], []
    if model.config.is_encoder_decoder:  # an encoder reads the whole prompt in both directions
        return [], []
    prefix = prefix_cache.prefill(model, prefix_ids)
    if prefix_ids and prefix.cache is None:
        return [], []
    note = f"cached latency with {len(prefix.ids)} tokens of the prompt in the cache"
    return utils.one_by_one(lambda x: request(x, prefix), inputs), [note]


def workload(found, kind):
    """The arguments of memory_forecast.predict_inference for LabelScores or Answers. kind: packed or generated."""
    return {"batch_size": found.batch_size, "longest": found.longest, "kind": kind, "shared": len(found.prefix)}


def _scored(outcome, found, lost, room):
    """The Outcome with the token counts and warnings of LabelScores."""
    outcome.cells.update(prompt_tokens=found.prompt_tokens, generated_tokens=0, batch_size=found.batch_size)
    outcome.workload = workload(found, "packed") | {"positions": found.positions}
    outcome.warnings += remarks.truncation(room, *lost, found.truncated)
    return outcome
