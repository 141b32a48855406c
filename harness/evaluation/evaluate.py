"""A model's outputs on the evaluation examples: by label likelihood, by generation, by a classification head."""

import numpy as np

import utils
from harness.evaluation import metrics, prompting, record
from harness.models import generation, loading, memory_forecast, prefix_cache, scoring
from harness.results import stats


def evaluate_classifier(model, tokenizer, task, run, batch_size, latency_runs, max_length=None, other=None):
    """Score a model with a classification head on the evaluation examples. Returns the log-probabilities [N, C].

    The head's order of the labels (model.config.id2label) may be another than the task's. other: a tasks.OutOfDomain.
    """
    order = [model.config.label2id[label] for label in task.labels]
    batch_size = 32 if batch_size == "auto" else batch_size
    run.row["batch_size"] = batch_size

    def classify(examples, size=batch_size, progress=None):  # -> [N, L]
        pairs = None if examples[0].text_pair is None else [ex.text_pair for ex in examples]
        return scoring.classify(model, tokenizer, [ex.text for ex in examples], pairs, size, max_length, progress)[
            :, order
        ]

    with utils.measure() as spent:
        log_probs = np.concatenate(
            utils.over_processes(lambda some: classify(some, progress="evaluating"), task.evaluation)
        )
    # one request, from text in to label out
    latencies = utils.time_requests(lambda example: classify([example], 1).argmax(), task.evaluation[:latency_runs])
    record.record_classification(run, task, [int(i) for i in log_probs.argmax(axis=1)], log_probs, spent, latencies)
    if run.row.get("train_seconds") is None:
        limit = scoring.classifier_length(model, tokenizer, max_length)
        longest = max(
            len(tokenizer(ex.text, ex.text_pair, truncation=True, max_length=limit).input_ids) for ex in task.evaluation
        )
        memory_forecast.predict_inference(run, model, min(batch_size, len(task.evaluation)), longest, "classified")
    if other:
        elsewhere = np.concatenate(utils.over_processes(classify, other.evaluation))
        record.record_ood(run, task, other, [int(i) for i in elsewhere.argmax(axis=1)])
    return log_probs


def _cached_times(run, model, prefix_ids, request, inputs):
    """What `request(x, prefix)` returns for each input, the prompts' common prefix in a cache; [] where that cannot be."""
    if (
        len(inputs) < 2 or model.config.is_encoder_decoder
    ):  # nothing to share; an encoder reads the whole prompt both ways
        return []
    prefix = prefix_cache.prefill(model, prefix_ids)
    if prefix_ids and prefix.cache is None:
        return []
    run.note(f"cached latency with {len(prefix.ids)} tokens of the prompt in the cache")
    return utils.one_by_one(lambda x: request(x, prefix), inputs)


def _joined(parts):
    """What each process found, and lost of its prompts -> that of all of them."""
    return generation.joined([found for found, _ in parts]), [
        sum(numbers) for numbers in zip(*(lost for _, lost in parts))
    ]


def evaluate_labels(
    model,
    tokenizer,
    task,
    run,
    batch_size,
    latency_runs,
    chat,
    demonstrations=(),
    prior=None,
    per_token=False,
    other=None,
):
    """Classification by label likelihood. Returns the log-probabilities [N, L]. other: a tasks.OutOfDomain.

    prior: None, or a function of (examples -> log-probabilities, the evaluation log-probabilities [N, L]) that gives the
    log label prior [L] to divide out; per_token: compare a label's mean log-probability per token instead of the sum.
    """
    limit = loading.context_length(model)
    longest = max(len(tokenizer(f" {word}", add_special_tokens=False).input_ids) for word in task.words)
    room = limit and limit - longest

    def score(examples, size=batch_size, progress=None, prefix=None):
        prompts, separator, *lost = prompting.fit_prompts(task, examples, demonstrations, tokenizer, chat, room)
        labels = [separator + word for word in task.words]
        return scoring.score_labels(model, tokenizer, prompts, labels, size, not chat, progress, prefix), lost

    def normalised(scores):  # -> [N, L]
        return metrics.log_normalise(scores.mean if per_token else scores.total)

    def score_all(examples):
        parts = utils.over_processes(lambda some: score(some, progress="scoring"), examples)
        return _joined(parts)

    def calibrated(raw):  # -> [N, L]; and the log prior [L] that was divided out
        shift = 0.0 if prior is None else prior(lambda examples: normalised(score(examples)[0]), raw)
        return metrics.log_normalise(raw - shift), shift

    with utils.measure() as spent:
        scores, lost = score_all(task.evaluation)
        log_probs, shift = calibrated(normalised(scores))

    def request(example, prefix=None):
        return utils.milliseconds(lambda: normalised(score([example], 1, None, prefix)[0]) - shift)

    timed = task.evaluation[:latency_runs]
    latencies = utils.one_by_one(request, timed)
    cached = _cached_times(run, model, scores.prefix, request, timed)
    extras = [
        {"log_probs_sum": list(map(float, t)), "log_probs_mean": list(map(float, m))}
        for t, m in zip(scores.total, scores.mean)
    ]
    record.record_classification(
        run, task, [int(i) for i in log_probs.argmax(axis=1)], log_probs, spent, latencies, extras
    )
    run.row.update(
        utils.latency_columns(cached, "cached_"),
        prompt_tokens=scores.prompt_tokens,
        generated_tokens=0,
        batch_size=scores.batch_size,
    )
    memory_forecast.predict_inference(run, model, scores.batch_size, scores.longest, "packed", len(scores.prefix))
    record.note_truncation(run, room, *lost, scores.truncated)
    if other:
        elsewhere, _ = calibrated(normalised(score_all(other.evaluation)[0]))
        record.record_ood(run, task, other, [int(i) for i in elsewhere.argmax(axis=1)])
    return log_probs


def evaluate_options(model, tokenizer, task, run, batch_size, latency_runs, chat, demonstrations=(), per_token=False):
    """Multiple choice by likelihood: the answer is the option that is likeliest after the prompt. Accuracy is its exact match."""
    without = sum(len(ex.options) < 2 for ex in task.evaluation)
    if without:
        raise utils.UserError(
            f"{without} of {len(task.evaluation)} questions of {task.name} have no options to choose from; "
            "use --scoring generate"
        )
    strange = sum(
        metrics.normalise_answer(ex.references[0]) not in map(metrics.normalise_answer, ex.options)
        for ex in task.evaluation
    )
    if strange:
        raise utils.UserError(
            f"the answers of {strange} of {len(task.evaluation)} questions of {task.name} are none of their options; "
            "use --scoring generate"
        )
    limit = loading.context_length(model)
    longest = max(
        len(tokenizer(f" {option}", add_special_tokens=False).input_ids)
        for ex in task.evaluation
        for option in ex.options
    )
    room = limit and limit - longest

    def score(examples, size=batch_size, progress=None):
        prompts, separator, *lost = prompting.fit_prompts(task, examples, demonstrations, tokenizer, chat, room)
        labels = [[separator + option for option in ex.options] for ex in examples]
        return scoring.score_labels(model, tokenizer, prompts, labels, size, not chat, progress), lost

    def chosen(examples, scores):
        return [
            ex.options[int(i)] for ex, i in zip(examples, (scores.mean if per_token else scores.total).argmax(axis=1))
        ]

    with utils.measure() as spent:
        parts = utils.over_processes(lambda some: score(some, progress="scoring"), task.evaluation)
        scores, lost = _joined(parts)
        answers = chosen(task.evaluation, scores)
    latencies = utils.time_requests(lambda ex: chosen([ex], score([ex], 1)[0]), task.evaluation[:latency_runs])
    extras = [
        {"log_probs_sum": dict(zip(ex.options, map(float, values)))}
        for ex, values in zip(task.evaluation, scores.total)
    ]
    record.record_answers(run, task, answers, spent, latencies, extras, "exact_match")
    right = run.row["exact_match"]
    low, high = stats.wilson_interval(round(right * len(answers)), len(answers))
    run.row.update(
        metric="accuracy",
        score=right,
        accuracy=right,
        score_low=low,
        score_high=high,
        prompt_tokens=scores.prompt_tokens,
        generated_tokens=0,
        batch_size=scores.batch_size,
    )
    memory_forecast.predict_inference(run, model, scores.batch_size, scores.longest, "packed", len(scores.prefix))
    record.note_truncation(run, room, *lost, scores.truncated)


def evaluate_answers(
    model,
    tokenizer,
    task,
    run,
    batch_size,
    latency_runs,
    chat,
    max_new_tokens,
    demonstrations=(),
    read=None,
    decoding=None,
):
    """Generated answers: question answering, instructions, or classification where `read(answer, words)` finds the label's index.

    decoding: options of `model.generate` for another way of decoding, by which requests are timed one at a time; the batched
    answers are decoded plainly, so that their throughput stays out of the row.
    """
    limit = loading.context_length(model)
    room = limit and limit - (0 if model.config.is_encoder_decoder else max_new_tokens)
    options = {"stop": prompting.answer_stop(model, tokenizer, task.kind, chat), "add_special_tokens": not chat}

    def prompts_of(examples):
        return prompting.fit_prompts(task, examples, demonstrations, tokenizer, chat, room)

    def generate(examples):
        prompts, _, *lost = prompts_of(examples)
        return generation.generate(
            model, tokenizer, prompts, max_new_tokens, batch_size, progress="generating", **options
        ), lost

    with utils.measure() as spent:
        parts = utils.over_processes(generate, task.evaluation)
        found, lost = _joined(parts)

    def request(example, prefix=None):
        return generation.time_request(
            model,
            tokenizer,
            lambda: prompts_of([example])[0][0],
            max_new_tokens,
            prefix=prefix,
            **options,
            **(decoding or {}),
        )

    examples = task.evaluation[:latency_runs]
    timed = utils.one_by_one(request, examples)
    cached = [] if decoding else _cached_times(run, model, found.prefix, request, examples)
    latencies = [t.total_ms for t in timed]
    if task.kind == "classification":
        predictions = [read(text, task.words) for text in found.texts]
        record.record_classification(
            run, task, predictions, None, spent, latencies, [{"answer": text} for text in found.texts]
        )
    else:
        record.record_answers(run, task, found.texts, spent, latencies)
        run.row["perplexity"] = target_perplexity(model, tokenizer, task, prompts_of, batch_size, chat)
    run.row.update(
        utils.latency_columns([t.total_ms for t in cached], "cached_"),
        ttft_ms=record.median([t.ttft_ms for t in timed]),
        cached_ttft_ms=record.median([t.ttft_ms for t in cached]),
        tpot_ms=record.median([t.tpot_ms for t in timed]),
    )
    record.record_tokens(run, found, None if decoding else spent)
    memory_forecast.predict_inference(run, model, found.batch_size, found.longest, "generated", len(found.prefix))
    record.note_truncation(run, room, *lost, found.truncated)


def target_perplexity(model, tokenizer, task, prompts_of, batch_size, chat):
    """Perplexity of the evaluation examples' first references after their prompts, per token, the end token left out."""

    def score(examples):
        prompts, separator, *_ = prompts_of(examples)
        return scoring.score_labels(
            model, tokenizer, prompts, [[separator + task.target(ex)] for ex in examples], batch_size, not chat
        )

    scores = generation.joined(utils.over_processes(score, task.evaluation))
    return metrics.perplexity(-scores.total.sum(), scores.n_tokens.sum())
