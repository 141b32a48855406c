"""Heads on frozen features: multinomial logistic regression, k nearest neighbours (scikit-learn), or the labels' names.

What regulates a head is chosen by stratified cross-validation on its training labels, so it costs no further label.
Shapes: N examples, D features, C classes that were trained on, L labels of the task.
"""

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy.sparse
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import utils

FOLDS = 5
GRIDS = {
    "logreg": {"C": np.logspace(-4, 4, 9).tolist()},
    "knn": {"n_neighbors": [1, 3, 5, 9, 15, 25], "metric": ["cosine", "euclidean"], "weights": ["uniform", "distance"]},
}
# where there are too few labels for cross-validation
USUAL = {"logreg": {"C": 0.1}, "knn": {"n_neighbors": 1, "metric": "cosine", "weights": "uniform"}}
SCALE = 20.0  # of cosines that become log-odds: what sentence-transformers' losses multiply them with
HISTORY = 20  # two for each of the 10 steps that scipy's L-BFGS remembers
NEVER = 1e-9  # the probability of a label that no training example has


@dataclass
class Head:
    """A trained head, as plain arrays: nothing of it needs a pickle."""

    kind: str  # logreg, knn or names
    classes: list  # [C] indices of the task's labels
    arrays: dict  # coef [D, C], intercept [C]; of a kNN labels [N] and vectors [N, D], or the parts of a sparse one
    settings: dict = field(default_factory=dict)  # what was chosen: C, or n_neighbors, metric, weights
    notes: list = field(default_factory=list)

    def __post_init__(self):
        if self.kind == "knn":
            vectors = self.arrays.get("vectors")
            if vectors is None:
                parts = [self.arrays[name] for name in ("data", "indices", "indptr")]
                vectors = scipy.sparse.csr_matrix(tuple(parts), shape=tuple(map(int, self.arrays["shape"])))
            # fitting is remembering
            self.neighbours = KNeighborsClassifier(**self.settings).fit(vectors, self.arrays["labels"])

    @property
    def n_params(self):
        """Trained parameters: none of a kNN, which keeps its examples."""
        return sum(array.size for array in self.arrays.values()) if self.kind == "logreg" else 0

    def log_probs(self, vectors, n_labels):
        """Log-probabilities [N, L]; those of labels that no training example has are NEVER's.

        kNN: shares of the votes with one more vote, which all classes share, so that none is impossible.
        """
        if self.kind != "knn":
            scores = vectors @ self.arrays["coef"] + self.arrays["intercept"]  # [N, C]
        else:
            k = self.settings["n_neighbors"]
            scores = np.log((self.neighbours.predict_proba(vectors) * k + 1 / len(self.classes)) / (k + 1))
        scores = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
        found = np.full((len(scores), n_labels), np.log(NEVER))
        found[:, self.classes] = scores
        return found - np.logaddexp.reduce(found, axis=1, keepdims=True)


def log_likelihood(estimator, vectors, labels):
    """Mean log-probability of the labels: scikit-learn's neg_log_loss that takes folds without a rare class."""
    share = estimator.predict_proba(vectors)  # [N, classes of the fold's training part]
    place = {label: i for i, label in enumerate(estimator.classes_)}
    k = getattr(estimator, "n_neighbors", None)
    share = share if k is None else (share * k + 1 / share.shape[1]) / (k + 1)  # as Head.log_probs
    found = [share[i, place[label]] if label in place else NEVER for i, label in enumerate(labels)]
    return float(np.log(np.maximum(found, NEVER)).mean())


def n_folds(counts, most=FOLDS):
    """Folds of the cross-validation, 0 where there can be none. counts: training examples of each class.

    Two classes need two examples, so that no fold is trained on one class alone.
    """
    counts = np.asarray(counts)
    return int(min(most, counts.max())) if (counts >= 2).sum() >= 2 else 0


def from_names(vectors):
    """The Head without any label: the class whose name's unit vector [L, D] is nearest by cosine."""
    arrays = {"coef": np.ascontiguousarray(SCALE * vectors.T, dtype=float), "intercept": np.zeros(len(vectors))}
    return Head("names", list(range(len(vectors))), arrays)


def fit(vectors, labels, kind, seed=0, tuned=False):
    """The Head trained on vectors [N, D] and labels [N]; what regulates it is chosen by cross-validation.

    tuned: the features were trained on the same labels, so that cross-validation would believe anything; a logistic
    regression is then setfit's, C 1 on the vectors as they are.
    UserError for labels of one class. Dense features of a logistic regression are standardized, and likelihood is the
    criterion: chosen on SST-2, MNLI and AG News with MiniLM and 40 to 500 labels (see docs/probe.md).
    """
    labels = np.asarray(labels)
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise utils.UserError(
            f"all {len(labels)} training examples have one label, and a probe needs two; give it more with "
            "--max_train_samples, or other data"
        )
    folds, sparse, notes = 0 if tuned else n_folds(counts), scipy.sparse.issparse(vectors), []
    given, back = vectors, None
    if sparse and kind == "logreg" and cheaper_rotated(vectors):
        vectors, back = rotated(vectors)
    if kind == "logreg":
        steps = [] if sparse or tuned else [StandardScaler()]
        estimator, prefix = make_pipeline(*steps, LogisticRegression(max_iter=1000)), "logisticregression__"
    else:
        estimator, prefix = KNeighborsClassifier(), ""
    grid = {prefix + name: values for name, values in GRIDS[kind].items()}
    if kind == "knn":  # no more neighbours than the smallest training part has examples
        grid["n_neighbors"] = [k for k in grid["n_neighbors"] if k <= len(labels) - -(-len(labels) // max(folds, 1))]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore", UserWarning)  # classes with fewer examples than folds
        warnings.simplefilter("always", ConvergenceWarning)
        if folds:
            cv = StratifiedKFold(folds, shuffle=True, random_state=seed)
            search = GridSearchCV(estimator, grid, scoring=log_likelihood, cv=cv).fit(vectors, labels)
            chosen, best = search.best_params_, search.best_estimator_
        else:
            usual = {"C": 1.0} if tuned else USUAL[kind]
            chosen = {prefix + name: value for name, value in usual.items()}
            best = estimator.set_params(**chosen).fit(vectors, labels)
            notes += [] if tuned else ["too few labels of a class for cross-validation"]
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught) and not _converged(best):
        notes.append("the logistic regression had not converged")
    settings = {name.removeprefix(prefix): value for name, value in chosen.items()}
    words = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
    notes.insert(0, f"{words} chosen by {folds}-fold cross-validation" if folds else words)
    arrays = _linear(best) if kind == "logreg" else _examples(given, labels)
    if back is not None:
        arrays["coef"] = np.ascontiguousarray(given.T @ (back @ arrays["coef"]))
    return Head(kind, classes.tolist(), arrays, settings, notes)


def cheaper_rotated(vectors):
    """Whether an iteration of L-BFGS, which reads the vectors [N, D] and HISTORY arrays of the weights, takes less in N
    dense coordinates than in D sparse ones.
    """
    n, d = vectors.shape
    return n * n + HISTORY * n < vectors.nnz + HISTORY * d


def rotated(vectors):
    """(coordinates [N, R] of N sparse vectors [N, D] in the space that they span, what brings weights back [N, R]).

    The coordinates have the same products, and weights that are penalized by their length lie in that space, so that a
    logistic regression on them is that on the vectors, in N coordinates instead of D (the representer theorem;
    Schölkopf et al. 2001).
    """
    values, directions = np.linalg.eigh((vectors @ vectors.T).toarray())
    kept = values > values[-1] * 1e-12
    lengths, directions = np.sqrt(values[kept]), directions[:, kept]
    return directions * lengths, directions / lengths


def _converged(pipeline):
    return bool((pipeline[-1].n_iter_ < pipeline[-1].max_iter).all())


def _linear(pipeline):
    """{coef [D, C], intercept [C]} of a fitted pipeline, standardization multiplied in. Two classes: scores 0 and x."""
    model = pipeline[-1]
    coef, intercept = model.coef_.T, model.intercept_
    if len(pipeline) > 1:
        coef = coef / pipeline[0].scale_[:, None]
        intercept = intercept - pipeline[0].mean_ @ coef
    if coef.shape[1] == 1:
        coef, intercept = np.hstack([np.zeros_like(coef), coef]), np.concatenate([[0.0], intercept])
    return {"coef": np.ascontiguousarray(coef), "intercept": np.ascontiguousarray(intercept)}


def _examples(vectors, labels):
    if not scipy.sparse.issparse(vectors):
        return {"labels": labels, "vectors": np.ascontiguousarray(vectors)}
    parts = {name: getattr(vectors, name) for name in ("data", "indices", "indptr")}
    return {"labels": labels, **parts, "shape": np.array(vectors.shape)}


def save(folder, head, about, tfidf=None):
    """Write probe.json and head.safetensors into a folder, which is made.

    about: what else a reader must know, as JSON's types; tfidf: the state of a tfidf.TfIdf, which belongs to it.
    """
    folder, arrays = Path(folder), dict(head.arrays)
    folder.mkdir(parents=True, exist_ok=True)
    terms = {name: words for name, (words, _) in (tfidf or {}).items()}
    arrays.update({f"idf.{name}": idf for name, (_, idf) in (tfidf or {}).items()})
    what = {**about, "head": head.kind, "classes": head.classes, "settings": head.settings, "terms": terms}
    (folder / "probe.json").write_text(json.dumps(what, ensure_ascii=False) + "\n", encoding="utf-8")
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "head.safetensors")


def load(folder, about):
    """(the Head, the state of its tfidf.TfIdf or None) that `save` wrote. about: the contents of its probe.json.

    UserError for a file that is not there or is broken.
    """
    path = Path(folder) / "head.safetensors"
    try:
        arrays = load_file(path)
        tfidf = {name: (terms, arrays.pop(f"idf.{name}")) for name, terms in about["terms"].items()}
        return Head(about["head"], about["classes"], arrays, about["settings"]), tfidf or None
    except (OSError, SafetensorError, LookupError, ValueError) as error:
        raise utils.UserError(f"{path} cannot be read as a probe's head ({str(error).splitlines()[0]})") from None
