"""From outcomes to the row, predictions.jsonl and the other files of a run folder."""

import statistics

import numpy as np

import utils
from harness.evaluation import metrics
from harness.results import stats


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
        records.append(
            {
                "id": ex.id,
                "target": task.labels[ex.label],
                "prediction": None if p is None else task.labels[p],
                "target_index": ex.label,
                "prediction_index": p,
                "scores": None if log_probs is None else dict(zip(task.labels, map(float, log_probs[i]))),
                **(extras[i] if extras else {}),
            }
        )
    _finish(run, records, predictions, spent, latencies, len(task.labels))
    record_groups(
        run, task.evaluation, [{"accuracy": float(p == target)} for p, target in zip(predictions, targets)], "accuracy"
    )


def record_groups(run, examples, values, metric):
    """groups.json: mean scores over the examples of each group (UnifiedQA's sources), where the data have groups.

    values: [N] dicts of scores; metric: the one that the note tells.
    """
    groups = {}
    for example, value in zip(examples, values, strict=True):
        groups.setdefault(example.group, []).append(value)
    if set(groups) != {None}:
        found = {
            str(group): {
                "n": len(some),
                **{name: float(np.mean([scores[name] for scores in some])) for name in some[0]},
            }
            for group, some in sorted(groups.items(), key=str)
        }
        run.write_json("groups.json", found)
        if len(found) <= 12:
            run.note(
                f"{metric} by group: "
                + ", ".join(f"{group} {cell[metric]:.3f} (n = {cell['n']})" for group, cell in found.items())
            )


def record_ood(run, task, other, predictions):
    """score_ood, ood.json and predictions_ood.jsonl. other: a tasks.OutOfDomain; predictions: [N] index into task.labels or None."""
    mapped = [None if p is None else other.mapping[p] for p in predictions]
    right = [float(p == ex.label) for p, ex in zip(mapped, other.evaluation, strict=True)]
    low, high = stats.wilson_interval(sum(right), len(right))
    run.row["score_ood"] = float(np.mean(right))
    groups = {}
    for example, value in zip(other.evaluation, right):
        for group in {
            "all",
            f"label {other.labels[example.label]}",
            example.group,
            example.group and f"{example.group}, {other.labels[example.label]}",
        } - {None}:
            groups.setdefault(group, []).append(value)
    found = {
        "dataset": other.name,
        "metric": "accuracy",
        "score": run.row["score_ood"],
        "score_low": low,
        "score_high": high,
        "groups": {name: {"n": len(some), "accuracy": float(np.mean(some))} for name, some in sorted(groups.items())},
    }
    run.write_json("ood.json", found)
    run.write_jsonl(
        "predictions_ood.jsonl",
        [
            {
                "id": ex.id,
                "group": ex.group,
                "target": other.labels[ex.label],
                "prediction": None if p is None else task.labels[p],
                "mapped": None if m is None else other.labels[m],
            }
            for ex, p, m in zip(other.evaluation, predictions, mapped)
        ],
    )
    run.note(f"out of domain on {other.name}: {found['score']:.3f} [{low:.3f}, {high:.3f}], n = {len(right)}")


def record_answers(run, task, answers, spent, latencies, extras=None, metric="token_f1"):
    """The same for free answers. answers: [N] texts; metric: what the note tells of groups."""
    cells, each = metrics.answer_scores(answers, [ex.references for ex in task.evaluation])
    run.row.update(cells)
    contains = float(np.mean([scores["contains_answer"] for scores in each]))
    run.note(f"{contains:.3f} of the outputs contain a reference answer")
    records = [
        {
            "id": ex.id,
            "target": list(ex.references),
            "prediction": answer,
            "scores": scores,
            **(extras[i] if extras else {}),
        }
        for i, (ex, answer, scores) in enumerate(zip(task.evaluation, answers, each))
    ]
    _finish(run, records, answers, spent, latencies)
    record_groups(run, task.evaluation, each, metric)


def record_retrieval(run, task, judged, spent, latencies, extras):
    """The same for retrieval alone: the metric is nDCG@10. judged: dicts of scores, one for each question with judgements."""
    values = [scores["ndcg_at_10"] for scores in judged]
    low, high = stats.bootstrap_interval(values)
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
    run.row.update(
        utils.latency_columns(latencies), eval_seconds=spent.seconds, examples_per_s=len(records) / spent.seconds
    )
    if run.row.get("train_seconds") is None:  # where there was training, the row keeps its peak
        run.row.update(spent.memory_columns())
    useless = metrics.degenerate(predictions, n_labels)
    if useless:
        run.row["status"] = "degenerate"
        run.note(useless)


def note_truncation(run, room, shortened, lost, cut):
    """Say and record that prompts were longer than the model takes."""
    for text in (
        f"{shortened} prompts were longer than the {room} tokens that the model's context leaves them: {lost} demonstrations left out, "
        "from the first on"
        if shortened
        else None,
        f"{cut} prompts were cut on the left to fit the model's context" if cut else None,
    ):
        if text:
            print(text)
            run.note(text)


def record_tokens(run, found, spent):
    """The token counts, the batch size and, unless spent is None, the throughput of batched answers."""
    run.row.update(
        prompt_tokens=found.prompt_tokens,
        generated_tokens=found.new_tokens,
        batch_size=found.batch_size,
        tokens_per_s=spent and found.new_tokens / spent.seconds,
    )


def median(values):
    """The median of the values that are known, None without any."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
