"""From a model's outputs on the evaluation examples to a row and predictions.jsonl: one code for every strategy.

A row's quality can always be computed again from predictions.jsonl. Imports nothing heavy at the top.
"""

import bisect
import statistics

import numpy as np

import metrics
import tasks
import utils


def record_classification(run, task, predictions, log_probs, spent, latencies, extras=None):
    """Fill in the quality, time and memory of a classification run and write predictions.jsonl.

    predictions: [N] class index, or None for an answer that could not be read; log_probs: [N, L] normalised over the labels,
    or None; spent: the Measurement of the batched pass; latencies: ms of the first requests, each alone; extras: [N] dicts.
    """
    targets = [ex.label for ex in task.evaluation]
    probabilities = None if log_probs is None else np.exp(log_probs)
    run.row.update(metrics.classification_scores(predictions, targets, len(task.labels), probabilities))
    records = []
    for i, (ex, p) in enumerate(zip(task.evaluation, predictions)):
        records.append({
            "id": ex.id, "target": task.labels[ex.label], "prediction": None if p is None else task.labels[p],
            "target_index": ex.label, "prediction_index": p,
            "scores": None if log_probs is None else dict(zip(task.labels, map(float, log_probs[i]))),
            **(extras[i] if extras else {}),
        })  # fmt: skip
    _finish(run, records, predictions, spent, latencies, len(task.labels))
    record_groups(run, task.evaluation, [{"accuracy": float(p == target)} for p, target in zip(predictions, targets)], "accuracy")


def record_groups(run, examples, values, metric):
    """groups.json: mean scores over the examples of each group (UnifiedQA's sources), where the data have groups.

    values: [N] dicts of scores; metric: the one that the note tells.
    """
    groups = {}
    for example, value in zip(examples, values, strict=True):
        groups.setdefault(example.group, []).append(value)
    if set(groups) != {None}:
        found = {str(group): {"n": len(some), **{name: float(np.mean([scores[name] for scores in some])) for name in some[0]}}
                 for group, some in sorted(groups.items(), key=str)}  # fmt: skip
        run.write_json("groups.json", found)
        if len(found) <= 12:
            run.note(f"{metric} by group: " + ", ".join(f"{group} {cell[metric]:.3f} (n = {cell['n']})" for group, cell in found.items()))


def record_ood(run, task, other, predictions):
    """score_ood, ood.json and predictions_ood.jsonl. other: a tasks.OutOfDomain; predictions: [N] index into task.labels or None."""
    mapped = [None if p is None else other.mapping[p] for p in predictions]
    right = [float(p == ex.label) for p, ex in zip(mapped, other.evaluation, strict=True)]
    low, high = metrics.wilson_interval(sum(right), len(right))
    run.row["score_ood"] = float(np.mean(right))
    groups = {}
    for example, value in zip(other.evaluation, right):
        for group in {"all", f"label {other.labels[example.label]}", example.group, example.group
                      and f"{example.group}, {other.labels[example.label]}"} - {None}:  # fmt: skip
            groups.setdefault(group, []).append(value)
    found = {"dataset": other.name, "metric": "accuracy", "score": run.row["score_ood"], "score_low": low, "score_high": high,
             "groups": {name: {"n": len(some), "accuracy": float(np.mean(some))} for name, some in sorted(groups.items())}}  # fmt: skip
    run.write_json("ood.json", found)
    run.write_jsonl("predictions_ood.jsonl", [
        {"id": ex.id, "group": ex.group, "target": other.labels[ex.label], "prediction": None if p is None else task.labels[p],
         "mapped": None if m is None else other.labels[m]} for ex, p, m in zip(other.evaluation, predictions, mapped)
    ])  # fmt: skip
    run.note(f"out of domain on {other.name}: {found['score']:.3f} [{low:.3f}, {high:.3f}], n = {len(right)}")


def record_answers(run, task, answers, spent, latencies, extras=None, metric="token_f1"):
    """The same for free answers. answers: [N] texts; metric: what the note tells of groups."""
    cells, each = metrics.answer_scores(answers, [ex.references for ex in task.evaluation])
    run.row.update(cells)
    contains = float(np.mean([scores["contains_answer"] for scores in each]))
    run.note(f"{contains:.3f} of the outputs contain a reference answer")
    records = [{"id": ex.id, "target": list(ex.references), "prediction": answer, "scores": scores, **(extras[i] if extras else {})}
               for i, (ex, answer, scores) in enumerate(zip(task.evaluation, answers, each))]  # fmt: skip
    _finish(run, records, answers, spent, latencies)
    record_groups(run, task.evaluation, each, metric)


def record_retrieval(run, task, judged, spent, latencies, extras):
    """The same for retrieval alone: the metric is nDCG@10. judged: dicts of scores, one for each question with judgements."""
    values = [scores["ndcg_at_10"] for scores in judged]
    low, high = metrics.bootstrap_interval(values)
    run.row.update(metric="ndcg_at_10", score=float(np.mean(values)), score_low=low, score_high=high)
    _finish(
        run,
        [{"id": ex.id, **extra} for ex, extra in zip(task.evaluation, extras)],
        [ex.id for ex in task.evaluation],
        spent,
        latencies,
    )


def _finish(run, records, predictions, spent, latencies, n_labels=None):
    for i, record in enumerate(records):
        record["latency_ms"] = latencies[i] if i < len(latencies) else None
    run.write_jsonl("predictions.jsonl", records)
    run.row.update(utils.latency_columns(latencies), eval_seconds=spent.seconds, examples_per_s=len(records) / spent.seconds)
    if run.row.get("train_seconds") is None:  # where there was training, the row keeps its peak
        run.row.update(spent.memory_columns())
    useless = metrics.degenerate(predictions, n_labels)
    if useless:
        run.row["status"] = "degenerate"
        run.note(useless)


def predict(run, model, batch_size, longest, kind, shared=0):
    """predicted_gb of a run that trains nothing, from its configuration and its longest batch.

    longest: tokens of the longest row; kind: packed (label words scored behind a shared prefix), generated or classified.
    """
    if run.row.get("train_seconds") is not None:
        return
    import forecast
    import shared_prefix

    packed = shared_prefix.PACK_TOKENS[run.row["device"]]
    kind = "classified" if kind == "packed" and model.config.is_encoder_decoder else kind  # those have no packed rows
    shape = {
        "packed": forecast.Shape(1, max(packed, longest - shared), batch_size, packed + longest),
        "generated": forecast.Shape(batch_size, longest - shared, 1, batch_size * longest),
        "classified": forecast.Shape(batch_size, longest),
    }[kind]
    adapter = next(iter(getattr(model, "peft_config", {}).values()), None)
    forecast.record(
        run, forecast.inference, model.config, forecast.kind_of(model), shape, precision=run.row["precision"], peft_config=adapter,
        device=run.row["device"],
    )  # fmt: skip


def evaluate_classifier(model, tokenizer, task, run, batch_size, latency_runs, max_length=None, other=None):
    """Score a model with a classification head on the evaluation examples. Returns the log-probabilities [N, C].

    The head's order of the labels (model.config.id2label) may be another than the task's. other: a tasks.OutOfDomain.
    """
    import inference

    order = [model.config.label2id[label] for label in task.labels]
    batch_size = 32 if batch_size == "auto" else batch_size
    run.row["batch_size"] = batch_size

    def classify(examples, size=batch_size, progress=None):  # -> [N, L]
        pairs = None if examples[0].text_pair is None else [ex.text_pair for ex in examples]
        return inference.classify(model, tokenizer, [ex.text for ex in examples], pairs, size, max_length, progress)[:, order]

    with utils.measure() as spent:
        log_probs = np.concatenate(utils.over_processes(lambda some: classify(some, progress="evaluating"), task.evaluation))
    # one request, from text in to label out
    latencies = utils.time_requests(lambda example: classify([example], 1).argmax(), task.evaluation[:latency_runs])
    record_classification(run, task, [int(i) for i in log_probs.argmax(axis=1)], log_probs, spent, latencies)
    if run.row.get("train_seconds") is None:
        limit = inference.classifier_length(model, tokenizer, max_length)
        longest = max(len(tokenizer(ex.text, ex.text_pair, truncation=True, max_length=limit).input_ids) for ex in task.evaluation)
        predict(run, model, min(batch_size, len(task.evaluation)), longest, "classified")
    if other:
        elsewhere = np.concatenate(utils.over_processes(classify, other.evaluation))
        record_ood(run, task, other, [int(i) for i in elsewhere.argmax(axis=1)])
    return log_probs


def fit_prompts(task, examples, demonstrations, tokenizer, chat, room):
    """Render the examples' prompts, each with as many of the last demonstrations as leave it at most `room` tokens.

    room: None for no limit. Returns ([N] prompts, the separator before an answer, prompts that lost demonstrations, the
    demonstrations they lost). A prompt that is too long with none of them is left as it is, for inference.py to cut.
    """
    prompts, shortened, lost = [], 0, 0

    def rendered(example, start):
        return tasks.render(task, example, demonstrations[start:], tokenizer if chat else None)

    def fits(example, start):
        prompt = rendered(example, start)[0]
        # a token is a byte at least, so that most prompts need no counting
        return len(prompt.encode()) < room or len(tokenizer(prompt, add_special_tokens=not chat, verbose=False).input_ids) <= room

    for example in examples:
        start = 0
        if room is not None and demonstrations and not fits(example, 0):
            start = bisect.bisect_left(range(len(demonstrations)), True, key=lambda n, ex=example: fits(ex, n))
            shortened, lost = shortened + 1, lost + start
        prompt, separator = rendered(example, start)
        prompts.append(prompt)
    return prompts, separator, shortened, lost


def note_truncation(run, room, shortened, lost, cut):
    """Say and record that prompts were longer than the model takes."""
    for text in (
        f"{shortened} prompts were longer than the {room} tokens that the model's context leaves them: {lost} demonstrations left out, "
        "from the first on" if shortened else None,
        f"{cut} prompts were cut on the left to fit the model's context" if cut else None,
    ):  # fmt: skip
        if text:
            print(text)
            run.note(text)


def _cached_times(run, model, prefix_ids, request, inputs):
    """What `request(x, prefix)` returns for each input, the prompts' common prefix in a cache; [] where that cannot be."""
    import inference

    if len(inputs) < 2 or model.config.is_encoder_decoder:  # nothing to share; an encoder reads the whole prompt both ways
        return []
    prefix = inference.prefill(model, prefix_ids)
    if prefix_ids and prefix.cache is None:
        return []
    run.note(f"cached latency with {len(prefix.ids)} tokens of the prompt in the cache")
    return utils.one_by_one(lambda x: request(x, prefix), inputs)


def _joined(parts):
    """What each process found, and lost of its prompts -> that of all of them."""
    import inference

    return inference.joined([found for found, _ in parts]), [sum(numbers) for numbers in zip(*(lost for _, lost in parts))]


CONTENT_FREE = ("N/A", "", "[MASK]")  # the inputs of contextual calibration, as in its paper


def contextual_prior(task, score):
    """Log label prior [L]: the mean probability of each label after inputs without content (Zhao et al. 2021).

    score: examples -> log-probabilities [N, L].
    """
    blank = [tasks.Example("content-free", text, text if task.evaluation[0].text_pair is not None else None) for text in CONTENT_FREE]
    return np.log(np.exp(score(blank)).mean(axis=0))


def batch_prior(log_probs):
    """Log label prior [L]: the mean probability of each label over the evaluation inputs (Zhou et al. 2024)."""
    return np.log(np.exp(log_probs).mean(axis=0))


def label_prior(method, task):
    """What `evaluate_labels` takes as its prior for --calibrate none, contextual or batch."""
    return {"none": None, "contextual": lambda score, _: contextual_prior(task, score),
            "batch": lambda _, log_probs: batch_prior(log_probs)}[method]  # fmt: skip


def evaluate_labels(model, tokenizer, task, run, batch_size, latency_runs, chat, demonstrations=(), prior=None, per_token=False,
                    other=None):  # fmt: skip
    """Classification by label likelihood. Returns the log-probabilities [N, L]. other: a tasks.OutOfDomain.

    prior: None, or a function of (examples -> log-probabilities, the evaluation log-probabilities [N, L]) that gives the
    log label prior [L] to divide out; per_token: compare a label's mean log-probability per token instead of the sum.
    """
    import inference
    import models

    limit = models.context_length(model)
    longest = max(len(tokenizer(f" {word}", add_special_tokens=False).input_ids) for word in task.words)
    room = limit and limit - longest

    def score(examples, size=batch_size, progress=None, prefix=None):
        prompts, separator, *lost = fit_prompts(task, examples, demonstrations, tokenizer, chat, room)
        labels = [separator + word for word in task.words]
        return inference.score_labels(model, tokenizer, prompts, labels, size, not chat, progress, prefix), lost

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
    extras = [{"log_probs_sum": list(map(float, t)), "log_probs_mean": list(map(float, m))} for t, m in zip(scores.total, scores.mean)]
    record_classification(run, task, [int(i) for i in log_probs.argmax(axis=1)], log_probs, spent, latencies, extras)
    run.row.update(utils.latency_columns(cached, "cached_"), prompt_tokens=scores.prompt_tokens, generated_tokens=0,
                   batch_size=scores.batch_size)  # fmt: skip
    predict(run, model, scores.batch_size, scores.longest, "packed", len(scores.prefix))
    note_truncation(run, room, *lost, scores.truncated)
    if other:
        elsewhere, _ = calibrated(normalised(score_all(other.evaluation)[0]))
        record_ood(run, task, other, [int(i) for i in elsewhere.argmax(axis=1)])
    return log_probs


def evaluate_options(model, tokenizer, task, run, batch_size, latency_runs, chat, demonstrations=(), per_token=False):
    """Multiple choice by likelihood: the answer is the option that is likeliest after the prompt. Accuracy is its exact match."""
    import inference
    import models

    without = sum(len(ex.options) < 2 for ex in task.evaluation)
    if without:
        raise tasks.DataError(f"{without} of {len(task.evaluation)} questions of {task.name} have no options to choose from; "
                              "use --scoring generate")  # fmt: skip
    strange = sum(metrics.normalise_answer(ex.references[0]) not in map(metrics.normalise_answer, ex.options) for ex in task.evaluation)
    if strange:
        raise tasks.DataError(f"the answers of {strange} of {len(task.evaluation)} questions of {task.name} are none of their options; "
                              "use --scoring generate")  # fmt: skip
    limit = models.context_length(model)
    longest = max(len(tokenizer(f" {option}", add_special_tokens=False).input_ids) for ex in task.evaluation for option in ex.options)
    room = limit and limit - longest

    def score(examples, size=batch_size, progress=None):
        prompts, separator, *lost = fit_prompts(task, examples, demonstrations, tokenizer, chat, room)
        labels = [[separator + option for option in ex.options] for ex in examples]
        return inference.score_labels(model, tokenizer, prompts, labels, size, not chat, progress), lost

    def chosen(examples, scores):
        return [ex.options[int(i)] for ex, i in zip(examples, (scores.mean if per_token else scores.total).argmax(axis=1))]

    with utils.measure() as spent:
        parts = utils.over_processes(lambda some: score(some, progress="scoring"), task.evaluation)
        scores, lost = _joined(parts)
        answers = chosen(task.evaluation, scores)
    latencies = utils.time_requests(lambda ex: chosen([ex], score([ex], 1)[0]), task.evaluation[:latency_runs])
    extras = [{"log_probs_sum": dict(zip(ex.options, map(float, values)))} for ex, values in zip(task.evaluation, scores.total)]
    record_answers(run, task, answers, spent, latencies, extras, "exact_match")
    right = run.row["exact_match"]
    low, high = metrics.wilson_interval(round(right * len(answers)), len(answers))
    run.row.update(metric="accuracy", score=right, accuracy=right, score_low=low, score_high=high, prompt_tokens=scores.prompt_tokens,
                   generated_tokens=0, batch_size=scores.batch_size)  # fmt: skip
    predict(run, model, scores.batch_size, scores.longest, "packed", len(scores.prefix))
    note_truncation(run, room, *lost, scores.truncated)


def evaluate_answers(model, tokenizer, task, run, batch_size, latency_runs, chat, max_new_tokens, demonstrations=(), read=None,
                     decoding=None):  # fmt: skip
    """Generated answers: question answering, instructions, or classification where `read(answer, words)` finds the label's index.

    decoding: options of `model.generate` for another way of decoding, by which requests are timed one at a time; the batched
    answers are decoded plainly, so that their throughput stays out of the row.
    """
    import inference
    import models

    limit = models.context_length(model)
    room = limit and limit - (0 if model.config.is_encoder_decoder else max_new_tokens)
    options = {"stop": answer_stop(model, tokenizer, task.kind, chat), "add_special_tokens": not chat}

    def prompts_of(examples):
        return fit_prompts(task, examples, demonstrations, tokenizer, chat, room)

    def generate(examples):
        prompts, _, *lost = prompts_of(examples)
        return inference.generate(model, tokenizer, prompts, max_new_tokens, batch_size, progress="generating", **options), lost

    with utils.measure() as spent:
        parts = utils.over_processes(generate, task.evaluation)
        found, lost = _joined(parts)

    def request(example, prefix=None):
        return inference.time_request(model, tokenizer, lambda: prompts_of([example])[0][0], max_new_tokens, prefix=prefix, **options,
                                      **(decoding or {}))  # fmt: skip

    examples = task.evaluation[:latency_runs]
    timed = utils.one_by_one(request, examples)
    cached = [] if decoding else _cached_times(run, model, found.prefix, request, examples)
    latencies = [t.total_ms for t in timed]
    if task.kind == "classification":
        predictions = [read(text, task.words) for text in found.texts]
        record_classification(run, task, predictions, None, spent, latencies, [{"answer": text} for text in found.texts])
    else:
        record_answers(run, task, found.texts, spent, latencies)
        run.row["perplexity"] = target_perplexity(model, tokenizer, task, prompts_of, batch_size, chat)
    run.row.update(utils.latency_columns([t.total_ms for t in cached], "cached_"), ttft_ms=median([t.ttft_ms for t in timed]),
                   cached_ttft_ms=median([t.ttft_ms for t in cached]), tpot_ms=median([t.tpot_ms for t in timed]))  # fmt: skip
    record_tokens(run, found, None if decoding else spent)
    predict(run, model, found.batch_size, found.longest, "generated", len(found.prefix))
    note_truncation(run, room, *lost, found.truncated)


def record_tokens(run, found, spent):
    """The token counts, the batch size and, unless spent is None, the throughput of batched answers."""
    run.row.update(prompt_tokens=found.prompt_tokens, generated_tokens=found.new_tokens, batch_size=found.batch_size,
                   tokens_per_s=spent and found.new_tokens / spent.seconds)  # fmt: skip


def target_perplexity(model, tokenizer, task, prompts_of, batch_size, chat):
    """Perplexity of the evaluation examples' first references after their prompts, per token, the end token left out."""
    import inference

    def score(examples):
        prompts, separator, *_ = prompts_of(examples)
        return inference.score_labels(model, tokenizer, prompts, [[separator + task.target(ex)] for ex in examples], batch_size, not chat)

    scores = inference.joined(utils.over_processes(score, task.evaluation))
    return metrics.perplexity(-scores.total.sum(), scores.n_tokens.sum())


def answer_stop(model, tokenizer, kind, chat):
    """Where an answer ends besides its end-of-sequence token. kind: of the task.

    A plain prompt's answer is one line, a plain instruction's response ends before the next heading; a chat template may close
    a turn with a text that is no special token.
    """
    if model.config.is_encoder_decoder:
        return ()
    if chat:
        end = tasks.answer_end(tokenizer, chat)
        return () if end in tokenizer.all_special_tokens else (end,)
    return ("\n###",) if kind == "instruction" else ("\n",)


def median(values):
    """The median of the values that are known, None without any."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
