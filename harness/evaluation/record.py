"""From an Outcome to the row and the files of a run folder: the only writer of quality cells and predictions."""

import numpy as np

import utils
from harness.data import numbers
from harness.evaluation import metrics
from harness.models import memory_forecast
from harness.results import stats


def outcome(run, task, found, model=None, other=None):
    """Write an evaluate.Outcome: quality, time and memory cells, predictions.jsonl, groups.json, ood.json.

    model: for the memory forecast of a run that trains nothing (predicted_gb); other: the OutOfDomain that
    found.out_of_domain belongs to.
    """
    run.row.update(found.scores)
    for text in found.notes:
        run.note(text)
    costs(run, found.spent, found.latencies, len(found.predictions))
    files(run, task, found)
    told = clusters(task.evaluation)
    if told:
        run.note(told)
    classes = task.kind == "classification"
    targets = [ex.label if classes else ex.references for ex in task.evaluation]
    if task.answer_format == "number":
        targets = numbers.reference_numbers(task)
    degenerate(run, found.predictions, len(task.labels) or None, targets)
    run.row.update(found.cells)
    if found.labelled:
        run.use_labels(found.labelled)
    for later in (found.tuned, found.perplexity):
        run.row.update(later() if later else {})
    if found.workload and run.row.get("train_seconds") is None:
        memory_forecast.predict_inference(run, model, **found.workload)
    for text in found.warnings:
        print(text)
        run.note(text)
    if other:
        run.row["score_ood"], told = out_of_domain(run, task, other, found.out_of_domain())
        run.note(told)


def side(run, task, found, name, other=None):
    """The files of another side of a comparison (teacher_predictions.jsonl, ..); returns the cells that its row would
    have.
    """
    files(run, task, found, f"{name}_")
    cells = {**found.scores, **found.cells, **utils.latency_columns(found.latencies)}
    cells.update(found.perplexity() if found.perplexity else {})
    if other:
        cells["score_ood"], _ = out_of_domain(run, task, other, found.out_of_domain(), f"{name}_")
    for text in found.warnings:
        print(f"{name}: {text}")
    return cells


def files(run, task, found, prefix=""):
    """predictions.jsonl, and groups.json if the examples have groups. prefix: of the names, for a second side."""
    fields = _label_fields if task.kind == "classification" else _answer_fields
    records = [
        {"id": ex.id, "cluster": ex.cluster, **fields(task, ex, found, i), **(found.extras[i] if found.extras else {})}
        for i, ex in enumerate(task.evaluation)
    ]
    predictions(run, records, found.latencies, prefix)
    told = groups(run, task.evaluation, found.each, found.group_metric, prefix)
    if told and not prefix:
        run.note(told)


def clusters(examples):
    """The note's text on examples that share a cluster, which the interval counts; None where none do."""
    names = [ex.cluster for ex in examples]
    n = stats.n_clusters(names, len(names))
    return f"{len(names)} examples in {n} clusters, which the interval counts" if stats.is_clustered(names) else None


def predictions(run, records, latencies, prefix=""):
    """predictions.jsonl: a record for each evaluation example, with the latency of those that were timed alone (ms)."""
    for i, record in enumerate(records):
        record["latency_ms"] = latencies[i] if i < len(latencies) else None
    run.write_jsonl(f"{prefix}predictions.jsonl", records)


def costs(run, spent, latencies, n):
    """Time cells and, unless training has filled them in, memory cells. spent: the Measurement of the pass over n
    examples.
    """
    run.row.update(utils.latency_columns(latencies), eval_seconds=spent.seconds, examples_per_s=n / spent.seconds)
    if run.row.get("train_seconds") is None:  # where there was training, the row keeps its peak
        run.row.update(spent.memory_columns())


def degenerate(run, predicted, n_labels=None, targets=None):
    """Mark a run whose answers are useless: (nearly) one class only, most of them unreadable or empty."""
    reason = metrics.degenerate(predicted, n_labels, targets)
    if reason:
        run.row["status"] = "degenerate"
        run.note(reason)


def groups(run, examples, scores, metric, prefix=""):
    """groups.json: mean scores over the examples of each group (UnifiedQA's sources); the note's text, None without
    groups.

    scores: [N] dicts; metric: the one that the text tells, of at most 12 groups.
    """
    by_group = {}
    for example, each in zip(examples, scores, strict=True):
        by_group.setdefault(example.group, []).append(each)
    if set(by_group) == {None}:
        return None
    means = {
        str(group): {"n": len(some), **{name: float(np.mean([each[name] for each in some])) for name in some[0]}}
        for group, some in sorted(by_group.items(), key=str)
    }
    run.write_json(f"{prefix}groups.json", means)
    told = ", ".join(f"{group} {cell[metric]:.3f} (n = {cell['n']})" for group, cell in means.items())
    return f"{metric} by group: {told}" if len(means) <= 12 else None


def out_of_domain(run, task, other, predicted, prefix=""):
    """ood.json and predictions_ood.jsonl; returns (accuracy, the note's text).

    other: an OutOfDomain; predicted: [N] indices into task.labels, or None; prefix: of the file names.
    """
    mapped = [None if p is None else other.mapping[p] for p in predicted]
    right = [float(p == ex.label) for p, ex in zip(mapped, other.evaluation, strict=True)]
    low, high = stats.score_interval(right, [ex.cluster for ex in other.evaluation])
    score = float(np.mean(right))
    by_group = {}
    for ex, value in zip(other.evaluation, right):
        label = other.labels[ex.label]
        names = {"all", f"label {label}"} | ({ex.group, f"{ex.group}, {label}"} if ex.group else set())
        for name in names:
            by_group.setdefault(name, []).append(value)
    means = {name: {"n": len(some), "accuracy": float(np.mean(some))} for name, some in sorted(by_group.items())}
    table = {"dataset": other.name, "metric": "accuracy", "score": score, "score_low": low, "score_high": high}
    run.write_json(f"{prefix}ood.json", {**table, "groups": means})
    records = [
        {
            "id": ex.id,
            "cluster": ex.cluster,
            "group": ex.group,
            "target": other.labels[ex.label],
            "prediction": None if p is None else task.labels[p],
            "mapped": None if m is None else other.labels[m],
        }
        for ex, p, m in zip(other.evaluation, predicted, mapped)
    ]
    run.write_jsonl(f"{prefix}predictions_ood.jsonl", records)
    interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"  # unknown where all are about one thing
    return score, f"out of domain on {other.name}: {score:.3f}{interval}, n = {len(right)}"


def _label_fields(task, example, found, i):
    predicted, log_probs = found.predictions[i], found.log_probs
    return {
        "target": task.labels[example.label],
        "prediction": None if predicted is None else task.labels[predicted],
        "target_index": example.label,
        "prediction_index": predicted,
        "scores": None if log_probs is None else dict(zip(task.labels, map(float, log_probs[i]))),
    }


def _answer_fields(task, example, found, i):
    return {"target": list(example.references), "prediction": found.predictions[i], "scores": found.each[i]}
