"""From a model's outputs on the evaluation examples to a row and predictions.jsonl: one code for every strategy.

A row's quality can always be computed again from predictions.jsonl. Imports nothing heavy at the top.
"""

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


def record_answers(run, task, answers, spent, latencies, extras=None):
    """The same for free answers. answers: [N] texts."""
    cells, each = metrics.answer_scores(answers, [ex.references for ex in task.evaluation])
    run.row.update(cells)
    contains = float(np.mean([scores["contains_answer"] for scores in each]))
    run.note(f"{contains:.3f} of the outputs contain a reference answer")
    records = [{"id": ex.id, "target": list(ex.references), "prediction": answer, "scores": scores, **(extras[i] if extras else {})}
               for i, (ex, answer, scores) in enumerate(zip(task.evaluation, answers, each))]  # fmt: skip
    _finish(run, records, answers, spent, latencies)


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


def evaluate_classifier(model, tokenizer, task, run, batch_size, latency_runs, max_length=None):
    """Score a model with a classification head on the evaluation examples. Returns the log-probabilities [N, C].

    The head's order of the labels (model.config.id2label) may be another than the task's.
    """
    import inference

    order = [model.config.label2id[label] for label in task.labels]

    texts = [ex.text for ex in task.evaluation]
    pairs = None if task.evaluation[0].text_pair is None else [ex.text_pair for ex in task.evaluation]
    with utils.measure() as spent:
        log_probs = inference.classify(model, tokenizer, texts, pairs, batch_size, max_length, progress="evaluating")[:, order]

    def answer(i):  # one request, from text in to label out
        return inference.classify(model, tokenizer, [texts[i]], None if pairs is None else [pairs[i]], 1, max_length).argmax()

    latencies = utils.time_requests(answer, range(min(latency_runs, len(texts))))
    record_classification(run, task, [int(i) for i in log_probs.argmax(axis=1)], log_probs, spent, latencies)
    return log_probs


def evaluate_labels(model, tokenizer, task, run, batch_size, latency_runs, chat, demonstrations=(), prior=None, per_token=False):
    """Classification by label likelihood.

    prior: None, or a function of (examples -> log-probabilities, the evaluation log-probabilities [N, L]) that gives the
    log label prior [L] to divide out; per_token: compare a label's mean log-probability per token instead of the sum.
    """
    import inference

    def score(examples, size=batch_size, progress=None):
        rendered = [tasks.render(task, ex, demonstrations, tokenizer if chat else None) for ex in examples]
        labels = [rendered[0][1] + word for word in task.words]
        return inference.score_labels(model, tokenizer, [prompt for prompt, _ in rendered], labels, size, not chat, progress)

    def normalised(scores):  # -> [N, L]
        return metrics.log_normalise(scores.mean if per_token else scores.total)

    with utils.measure() as spent:
        scores = score(task.evaluation, progress="scoring")
        raw = normalised(scores)
        shift = 0.0 if prior is None else prior(lambda examples: normalised(score(examples)), raw)
        log_probs = metrics.log_normalise(raw - shift)
    latencies = utils.time_requests(lambda ex: normalised(score([ex], 1)) - shift, task.evaluation[:latency_runs])
    extras = [{"log_probs_sum": list(map(float, t)), "log_probs_mean": list(map(float, m))} for t, m in zip(scores.total, scores.mean)]
    record_classification(run, task, [int(i) for i in log_probs.argmax(axis=1)], log_probs, spent, latencies, extras)
    run.row.update(prompt_tokens=scores.prompt_tokens, generated_tokens=0)
    _note_truncation(run, scores.truncated)


def evaluate_answers(model, tokenizer, task, run, batch_size, latency_runs, chat, max_new_tokens, demonstrations=(), read=None):
    """Generated answers: question answering, instructions, or classification where `read(answer, words)` finds the label's index."""
    import inference

    prompts = [tasks.render(task, ex, demonstrations, tokenizer if chat else None)[0] for ex in task.evaluation]
    stop = () if chat or model.config.is_encoder_decoder else ("\n",)  # a plain prompt's answer is one line

    def answer(some, size, progress=None):
        return inference.generate(model, tokenizer, some, max_new_tokens, size, stop, not chat, progress)

    with utils.measure() as spent:
        answers, counts, prompt_tokens, truncated = answer(prompts, batch_size, "generating")
    latencies = utils.time_requests(lambda prompt: answer([prompt], 1), prompts[:latency_runs])
    if task.kind == "classification":
        predictions = [read(text, task.words) for text in answers]
        record_classification(run, task, predictions, None, spent, latencies, [{"answer": text} for text in answers])
    else:
        record_answers(run, task, answers, spent, latencies)
    run.row.update(prompt_tokens=prompt_tokens, generated_tokens=sum(counts), tokens_per_s=sum(counts) / spent.seconds)
    _note_truncation(run, truncated)


def _note_truncation(run, truncated):
    if truncated:
        run.note(f"{truncated} prompts were cut on the left to fit the model's context")
