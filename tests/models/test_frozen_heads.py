import json

import numpy as np
import pytest
import scipy.sparse
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import utils
from harness.models import frozen_heads


def blobs(n, classes, seed=0, spread=3.0):
    """Vectors [n, 8] around a centre for each class, and their labels [n]."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return (rng.normal(size=(classes, 8))[labels] * 2 + rng.normal(size=(n, 8)) * spread).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 5])
def test_logistic_regression_is_scikit_learns(classes):
    x, y = blobs(120, classes)
    head = frozen_heads.fit(x[:80], y[:80], "logreg")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=head.settings["C"], max_iter=1000)).fit(x[:80], y[:80])
    found = head.log_probs(x[80:], classes)
    assert np.exp(found) == pytest.approx(model.predict_proba(x[80:]), abs=1e-6)
    assert head.n_params == 9 * classes
    assert (found.argmax(1) == y[80:]).mean() > 1.3 / classes


@pytest.mark.parametrize("sparse", [False, True])
def test_nearest_neighbours_are_scikit_learns(sparse):
    x, y = blobs(120, 3)
    x = scipy.sparse.csr_matrix(x) if sparse else x
    head = frozen_heads.fit(x[:80], y[:80], "knn")
    share = KNeighborsClassifier(**head.settings).fit(x[:80], y[:80]).predict_proba(x[80:])
    found = np.exp(head.log_probs(x[80:], 3))
    k = head.settings["n_neighbors"]
    assert found == pytest.approx((share * k + 1 / 3) / (k + 1), abs=1e-6) and found.min() > 0 and head.n_params == 0


def test_regularisation_is_chosen_by_the_training_labels():
    """Noise wants strong regularisation, clear classes hardly any."""
    rng = np.random.default_rng(0)
    noise = frozen_heads.fit(rng.normal(size=(60, 50)), rng.integers(0, 2, 60), "logreg")
    clear = frozen_heads.fit(*blobs(60, 2, spread=0.1), "logreg")
    assert noise.settings["C"] <= 1e-2 and clear.settings["C"] >= 1
    assert "5-fold cross-validation" in clear.notes[0]


@pytest.mark.parametrize("kind", ["logreg", "knn"])
@pytest.mark.parametrize(
    "labels, folds",
    [([0, 1], 0), ([0, 0, 0, 1], 0), ([0, 0, 1, 1], 2), ([0] * 9 + [1] * 2 + [3], 5), (list(range(6)), 0)],
)
def test_rare_classes(labels, folds, kind):
    x, _ = blobs(len(labels), 2)
    assert frozen_heads.n_folds(np.unique(labels, return_counts=True)[1]) == folds
    head = frozen_heads.fit(x, labels, kind)
    assert any("too few labels" in note for note in head.notes) == (folds == 0)
    probabilities = np.exp(head.log_probs(x, 7))
    assert probabilities.sum(1) == pytest.approx(1) and probabilities.shape == (len(labels), 7)
    never = [i for i in range(7) if i not in labels]
    assert np.isfinite(head.log_probs(x, 7)).all() and probabilities[:, never].max() < 1e-8


def test_one_class_is_refused():
    with pytest.raises(utils.UserError, match="all 4 training examples have one label"):
        frozen_heads.fit(np.eye(4), [1] * 4, "logreg")


@pytest.mark.parametrize("kind", ["logreg", "knn"])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_saved_head_gives_the_same(kind, sparse, tmp_path):
    x, y = blobs(60, 3)
    x = scipy.sparse.csr_matrix(x) if sparse else x
    head = frozen_heads.fit(x[:40], y[:40], kind)
    frozen_heads.save(
        tmp_path / "probe", head, {"labels": ["a", "b", "c"]}, {"words": (["é", "z"], np.array([1.0, 0.1]))}
    )
    assert {file.name for file in (tmp_path / "probe").iterdir()} == {"probe.json", "head.safetensors"}
    about = json.loads((tmp_path / "probe" / "probe.json").read_text(encoding="utf-8"))
    again, tfidf = frozen_heads.load(tmp_path / "probe", about)
    assert about["labels"] == ["a", "b", "c"] and tfidf["words"][0] == ["é", "z"] and tfidf["words"][1][1] == 0.1
    assert (again.log_probs(x[40:], 3) == head.log_probs(x[40:], 3)).all()
    (tmp_path / "probe" / "head.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(utils.UserError, match="head.safetensors cannot be read"):
        frozen_heads.load(tmp_path / "probe", about)


@pytest.mark.parametrize("classes", [2, 4])
def test_sparse_vectors_with_more_terms_than_examples_give_scikit_learns_weights_in_fewer_coordinates(classes):
    rng, y = np.random.default_rng(0), np.arange(40) % classes
    dense = (rng.random((70, 600)) < 0.05) * rng.random((70, 600)) + (np.arange(70) % classes)[:, None] * 0.01
    dense[3] = dense[7]  # the same text twice: they span fewer than 40 dimensions
    x = scipy.sparse.csr_matrix(dense)
    head = frozen_heads.fit(x[:40], y, "logreg")
    assert frozen_heads.rotated(x[:40])[0].shape == (40, 39)
    model = LogisticRegression(C=head.settings["C"], max_iter=1000).fit(x[:40], y)
    assert head.arrays["coef"].shape == (600, classes)
    assert np.exp(head.log_probs(x[40:], classes)) == pytest.approx(model.predict_proba(x[40:]), abs=1e-6)
