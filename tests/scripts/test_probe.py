import json
from pathlib import Path

import numpy as np
import pytest
from helpers import MINILM, check_classification, predictions, write_jsonl
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import finetune
import probe
import utils
from harness.data import tasks
from harness.results import store

MODEL = {"embedder": "tiny_embedder", "lm": "tiny_llama"}


def probed(path):
    return [(p["id"], p["prediction"], p["scores"]) for p in predictions(path)]


@pytest.mark.parametrize("features", ["embedder", "lm", "tfidf"])
@pytest.mark.parametrize("head", ["logreg", "knn"])
def test_a_probe_and_its_saved_form(features, head, sentiment, out, tmp_path, request, capsys):
    model = ["--model", request.getfixturevalue(MODEL[features])] if features in MODEL else []
    flags = ["--dataset", sentiment, "--max_eval_samples", "50", *out]
    probe.main([*flags, "--features", features, "--head", head, *model, "--max_train_samples", "60"])
    assert "trained in" in capsys.readouterr().out
    (row,) = store.read_results(tmp_path / "results.csv")
    assert (row["strategy"], row["variant"], row["n_train"], row["labels_used"]) == (
        "probe",
        f"{features}_{head}",
        "60",
        "60",
    )
    if features in MODEL:
        check_classification(row, 50)
        assert float(row["predicted_gb"]) > 0
    for name in ("train_seconds", "load_seconds", "artifact_mb", "examples_per_s", "peak_rss_gb", "calibration_error"):
        assert float(row[name]) > 0, name
    width = {"embedder": 64, "lm": 64}.get(features, 0)
    assert row["trainable_params"] == (str(2 * (width + 1)) if head == "logreg" and width else row["trainable_params"])
    if features != "lm":  # a bag of words decides; the tiny language model is random
        assert float(row["accuracy"]) > (0.9 if head == "logreg" else 0.7)
    assert (row["prompt_tokens"] != "") == (features == "lm")
    saved = {file.suffix for file in (Path(row["run_dir"]) / "probe").iterdir()}
    assert saved == {".json", ".safetensors"}

    probe.main([*flags, "--probe", row["run_dir"]])
    again = store.read_results(tmp_path / "results.csv")[1]
    assert probed(again) == probed(row)
    assert again["variant"] == "checkpoint" and not again["train_seconds"] and not again["n_train"]
    assert again["labels_used"] == "60" and not (Path(again["run_dir"]) / "probe").exists()


def test_a_probe_is_a_few_lines_of_scikit_learn(sentiment, tiny_embedder, out, tmp_path):
    probe.main(["--dataset", sentiment, "--model", tiny_embedder, "--label_budget", "40", *out])
    (row,) = store.read_results(tmp_path / "results.csv")
    task = tasks.load_task(sentiment, label_budget=40)
    embed = SentenceTransformer(tiny_embedder, device="cpu").encode
    x, t = (embed([ex.text for ex in some], normalize_embeddings=True) for some in (task.train, task.evaluation))
    c = json.loads((Path(row["run_dir"]) / "probe" / "probe.json").read_text())["settings"]["C"]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
    model.fit(x, [ex.label for ex in task.train])
    expected = model.predict_proba(t)
    found = [[p["scores"][label] for label in task.labels] for p in predictions(row)]
    order = {ex.id: i for i, ex in enumerate(task.evaluation)}
    expected = expected[[order[p["id"]] for p in predictions(row)]]
    assert np.exp(found) == pytest.approx(expected, abs=1e-4)
    assert row["labels_used"] == "40" and f"C {c}" in row["note"]


@pytest.mark.parametrize("features", ["embedder", "lm", "tfidf"])
def test_pairs_and_out_of_domain(features, nli, out, tmp_path, request):
    model = ["--model", request.getfixturevalue(MODEL[features])] if features in MODEL else []
    flags = ["--dataset", str(nli / "mnli"), "--eval_ood", str(nli / "hans"), *out, "--repeats", "2"]
    probe.main([*flags, "--features", features, *model, "--max_train_samples", "60"])
    rows = store.read_results(tmp_path / "results.csv")
    assert [row["data_seed"] for row in rows] == ["0", "1"] and all(row["score_ood"] for row in rows)
    assert all((Path(row["run_dir"]) / "ood.json").is_file() for row in rows)
    width = {"embedder": 4 * 64, "lm": 64}.get(features)  # a language model reads the pair in one prompt
    assert width is None or rows[0]["trainable_params"] == str(3 * (width + 1))
    if features != "lm":
        assert all(float(row["accuracy"]) > 0.6 for row in rows)


def test_the_prompt_may_be_a_chat_and_is_saved_with_the_probe(sentiment, tiny_llama, out, tmp_path):
    flags = ["--dataset", sentiment, *out, "--max_eval_samples", "20"]
    words = ["--instruction", "is the film good ?", "--prompt_format", "chat"]
    probe.main([*flags, *words, "--features", "lm", "--model", tiny_llama, "--max_train_samples", "20"])
    (row,) = store.read_results(tmp_path / "results.csv")
    probe.main([*flags, "--probe", row["run_dir"]])
    again = store.read_results(tmp_path / "results.csv")[1]
    assert probed(again) == probed(row) and again["prompt_tokens"] == row["prompt_tokens"]
    probe.main([*flags, "--features", "lm", "--model", tiny_llama, "--max_train_samples", "20"])
    plain = store.read_results(tmp_path / "results.csv")[2]
    assert int(plain["prompt_tokens"]) < int(row["prompt_tokens"])


def test_texts_that_are_cut_are_counted_by_the_probe_and_by_a_classifier(sentiment, tiny_embedder, out, tmp_path):
    flags = ["--dataset", sentiment, "--model", tiny_embedder, *out, "--max_train_samples", "20", "--max_length"]
    probe.main([*flags, "8"])
    finetune.main([*flags, "8", "--max_steps", "1"])
    finetune.main([*flags, "60", "--max_steps", "1"])
    rows = store.read_results(tmp_path / "results.csv")
    assert all("60 of 60 evaluation texts were cut to 8 tokens" in row["note"] for row in rows[:2])
    assert "were cut" not in rows[2]["note"]


def test_a_label_without_training_examples(tiny_embedder, out, tmp_path):
    words = ("good", "bad", "dull")
    rows = [{"text": f"the {thing} was {word}", "label": word} for thing in ("film", "plot", "cast") for word in words]
    write_jsonl(tmp_path / "train.jsonl", rows[:6])
    write_jsonl(tmp_path / "test.jsonl", rows[6:])
    probe.main(["--dataset", str(tmp_path), "--model", tiny_embedder, "--max_train_samples", "2", *out])
    (row,) = store.read_results(tmp_path / "results.csv")
    assert "1 of 3 labels have no training example" in row["note"] and row["n_eval"] == "3"
    assert len({p["prediction"] for p in predictions(row)}) <= 2


def test_a_saved_probe_of_other_labels_or_pairs_is_refused(sentiment, nli, tiny_embedder, out, tmp_path):
    probe.main(["--dataset", sentiment, "--model", tiny_embedder, "--max_train_samples", "20", *out])
    (row,) = store.read_results(tmp_path / "results.csv")
    args, about, folder = probe.saved_probe(probe.parse_args(["--probe", row["run_dir"]]))
    task = tasks.load_task(str(nli / "mnli"))
    assert args.model == tiny_embedder and folder == Path(row["run_dir"]) / "probe"
    with pytest.raises(utils.UserError, match="was trained for the labels negative, positive"):
        probe.load_probe(about, folder, task, 2)
    with pytest.raises(utils.UserError, match="examples of 1 texts"):
        probe.load_probe({**about, "labels": list(task.labels)}, folder, task, 2)


@pytest.mark.real
@pytest.mark.slow
def test_real_embeddings_of_reviews(out, tmp_path):
    flags = ["--model", MINILM, "--dataset", "assets/data/movie_reviews", "--max_train_samples", "500"]
    probe.main([*flags, "--max_eval_samples", "400", *out])
    (row,) = store.read_results(tmp_path / "results.csv")
    assert float(row["accuracy"]) > 0.68


def test_setfit_moves_the_encoder_and_is_scored_again_with_it(tiny_embedder, sentiment, out, tmp_path):
    flags = ["--dataset", sentiment, *out]
    probe.main([*flags, "--model", tiny_embedder, "--tune", "contrastive", "--max_train_samples", "16"])
    (row,) = store.read_results(tmp_path / "results.csv")
    assert (row["variant"], row["labels_used"], row["strategy"]) == ("embedder_logreg_contrastive", "16", "probe")
    assert int(row["trainable_params"]) > int(row["total_params"]) and float(row["train_seconds"]) > 0
    tuned = SentenceTransformer(f"{row['run_dir']}/probe/encoder", device="cpu")
    frozen = SentenceTransformer(tiny_embedder, device="cpu")
    task = tasks.load_task(sentiment, max_train_samples=16)

    def similarity(model):  # of texts of one class, and of two
        vectors = model.encode([ex.text for ex in task.train], normalize_embeddings=True)
        same = np.equal.outer(*[[ex.label for ex in task.train]] * 2)
        cosines = vectors @ vectors.T
        return cosines[same & ~np.eye(16, dtype=bool)].mean() - cosines[~same].mean()

    assert similarity(tuned) > 1.2 * similarity(frozen) > 0
    head = LogisticRegression(max_iter=1000)  # setfit's own head: C 1, the vectors as they are
    head.fit(tuned.encode([ex.text for ex in task.train], normalize_embeddings=True), [ex.label for ex in task.train])
    vectors = tuned.encode([ex.text for ex in task.evaluation], normalize_embeddings=True)
    expected = head.predict_proba(vectors)
    found = [[p["scores"][label] for label in task.labels] for p in predictions(row)]
    assert np.exp(found) == pytest.approx(expected, abs=1e-3)
    probe.main([*flags, "--probe", row["run_dir"]])
    again = store.read_results(tmp_path / "results.csv")[1]
    assert probed(again) == probed(row)
    assert float(row["predicted_gb"]) > float(again["predicted_gb"]) > 0, "gradients and the optimizer"
    with pytest.raises(SystemExit):
        probe.main([*flags, "--probe", row["run_dir"], "--model", tiny_embedder])


def test_setfit_needs_two_classes(tiny_embedder, sentiment, out, capsys):
    flags = ["--model", tiny_embedder, "--dataset", sentiment, "--max_train_samples", "1", *out]
    with pytest.raises(SystemExit) as stopped:
        probe.main([*flags, "--tune", "contrastive"])
    assert stopped.value.code == 2 and "are all of one" in capsys.readouterr().err


def test_zero_shot_by_the_names_of_the_labels(tiny_embedder, sentiment, out, tmp_path):
    flags = ["--dataset", sentiment, "--model", tiny_embedder, *out, "--head", "names"]
    probe.main([*flags, "--label_words", "bad,good"])
    about = {"negative": "the dull film was awful", "positive": "a lovely film"}
    (tmp_path / "about.json").write_text(json.dumps(about))
    probe.main([*flags, "--label_descriptions", str(tmp_path / "about.json")])
    rows = store.read_results(tmp_path / "results.csv")
    assert [row["labels_used"] for row in rows] == ["0", "0"] and rows[0]["variant"] == "embedder_names"
    embed = SentenceTransformer(tiny_embedder, device="cpu").encode
    task = tasks.load_task(sentiment)
    texts = embed([ex.text for ex in task.evaluation], normalize_embeddings=True)
    for row, names in zip(rows, (["This is bad.", "This is good."], [about[label] for label in task.labels])):
        nearest = (texts @ embed(names, normalize_embeddings=True).T).argmax(axis=1)
        assert [p["prediction_index"] for p in predictions(row)] == nearest.tolist()


@pytest.mark.parametrize("flags", ["--tune contrastive", "--head names"])
def test_pairs_of_texts_are_refused_where_one_text_is_needed(flags, nli, tiny_embedder, out, capsys):
    with pytest.raises(SystemExit) as stopped:
        probe.main(["--dataset", str(nli / "mnli"), "--model", tiny_embedder, *out, *flags.split()])
    assert stopped.value.code == 2 and "examples of one text" in capsys.readouterr().err


@pytest.mark.parametrize("features", ["embedder", "tfidf"])
def test_a_saved_probe_stays_with_its_model(features, sentiment, tiny_embedder, tiny_bert, out, tmp_path, capsys):
    model = ["--model", tiny_embedder] if features == "embedder" else []
    probe.main(["--dataset", sentiment, "--features", features, *model, "--max_train_samples", "20", *out])
    (row,) = store.read_results(tmp_path / "results.csv")
    with pytest.raises(SystemExit) as stopped:
        probe.main(["--probe", row["run_dir"], "--model", tiny_bert, "--dataset", sentiment, *out])
    assert stopped.value.code == 2 and "is another; leave it out" in capsys.readouterr().err
    assert len(store.read_results(tmp_path / "results.csv")) == 1
