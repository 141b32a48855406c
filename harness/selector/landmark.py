"""How hard a data set is, by what a simple learner scores on it: landmarking (Pfahringer et al. 2000)."""

from harness.models import frozen_heads, tfidf
from harness.results import configurations

LABELS = 125  # that it learns from


def of_task(task, seed=0):
    """Accuracy on the evaluation examples of a classification Task, of what `probe.py --features tfidf` trains."""
    extract = tfidf.TfIdf()
    train, evaluation = (tfidf.texts_of(examples) for examples in (task.train, task.evaluation))
    extract.fit([text for part in train for text in part])
    head = frozen_heads.fit(tfidf.vectors_of(extract, train), [ex.label for ex in task.train], "logreg", seed)
    chosen = head.log_probs(tfidf.vectors_of(extract, evaluation), len(task.labels)).argmax(axis=1)
    return float((chosen == [ex.label for ex in task.evaluation]).mean())


def is_it(row):
    """Whether a row measures it."""
    return row["variant"] == "tfidf_logreg" and configurations.flags(row).get("label_budget") == LABELS


def of_rows(rows):
    """The same from rows of one data set, the mean over draws of the labels; None where none has it."""
    scores = [configurations.value(row, "accuracy") for row in rows if is_it(row)]
    return sum(scores) / len(scores) if scores else None
