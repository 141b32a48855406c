import json
import shutil

import numpy as np
import pytest
import torch
from retrieval_helpers import arguments, filled, retriever_of, sentences
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense

import rag_eval
import utils
from harness.models import sentence_transformer
from harness.retrieval.documents import Document
from harness.retrieval.embedder import Embedder


@pytest.fixture
def copy(tiny_embedder, tmp_path):
    """A copy of the tiny embedder that a test may break."""
    return shutil.copytree(tiny_embedder, tmp_path / "copy")


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def add_dense(folder, safe):
    Dense(64, 16).save(str(folder / "2_Dense"), safe_serialization=safe)
    modules = json.loads((folder / "modules.json").read_text())
    kind = "sentence_transformers.models.Dense"
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": kind})
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize("safe", [True, False])
def test_no_module_may_have_pickled_weights(safe, copy):
    (copy / "2_Dense").mkdir()
    add_dense(copy, safe)
    if safe:
        assert retriever_of(str(copy)).embedder.dimension == 16
        return
    with pytest.raises(utils.UserError, match="pytorch_model.bin is a pickle"):
        retriever_of(str(copy))
    assert torch.load.__module__ == "torch.serialization"


def test_weights_that_are_not_there_are_not_made_up(copy):
    change_weights(copy, lambda weights: {k: v for k, v in weights.items() if "pooler" not in k})
    retriever_of(str(copy))  # its pooling reads the last layer
    change_weights(copy, lambda weights: {k: v for k, v in weights.items() if "layer.1.output.dense" not in k})
    with pytest.raises(utils.UserError, match="2 of its weights are missing, such as encoder.layer.1.output.dense"):
        retriever_of(str(copy))


def test_a_reranker_without_its_head_is_refused(tiny_bert):
    with pytest.raises(utils.UserError, match="--reranker .* of its weights are missing, such as classifier"):
        sentence_transformer.load(CrossEncoder, tiny_bert, "--reranker", "cpu", arguments(tiny_bert))


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("modules.json", '["a"]', "cannot be loaded"),
        ("modules.json", "[" * 100_000, "cannot be loaded"),
        ("1_Pooling/config.json", "[]", "cannot be loaded"),
        ("config_sentence_transformers.json", '"x"', "cannot be loaded"),
        ("sentence_bert_config.json", '{"max_seq_length": 0}', "not a whole number above 0"),
        ("model.safetensors", "no safetensors", "cannot be loaded"),
    ],
)
def test_a_broken_folder_is_one_line(file, text, message, copy):
    (copy / file).write_text(text)
    with pytest.raises(utils.UserError, match=message):
        retriever_of(str(copy))


def test_a_model_without_pooling_is_told_what_it_lacks(copy):
    modules = json.loads((copy / "modules.json").read_text())
    (copy / "modules.json").write_text(json.dumps(modules[:1]))
    with pytest.raises(utils.UserError, match="ends with a pooling"):
        retriever_of(str(copy))


def test_vectors_that_are_no_numbers_fail_the_run(copy, questions, out, only_row, tmp_path, capsys):
    change_weights(copy, lambda weights: {k: v * float("nan") for k, v in weights.items()})
    flags = ["--embed_model", str(copy), "--device", "cpu"]
    for more in (
        ["--dataset", questions, "--retrieval_only", *out],
        ["--build_only", "--index_dir", str(tmp_path / "index"), "--docs", questions, "--text_column", "passage"],
    ):
        with pytest.raises(SystemExit) as stopped:
            rag_eval.main([*flags, *more])
        assert stopped.value.code == 1 and "no numbers" in capsys.readouterr().err.splitlines()[-1]
    assert only_row()["status"] == "failed" and "no numbers" in only_row()["note"]


def test_a_prompt_takes_its_room_from_the_chunks(tiny_embedder, tmp_path):
    prompt = "the passage is a review . " * 2  # 12 of the 30 tokens
    retriever = retriever_of(tiny_embedder, "--passage_prompt", prompt)
    assert (retriever.size, retriever.embedder.max_tokens) == (18, 18)
    retriever.add([Document("d", "", " ".join(sentences(40)))])
    lengths = [
        len(retriever.embedder.tokenizer(prompt + text).input_ids) for text in retriever.index.table["text"].to_pylist()
    ]
    assert max(lengths) == 32 and retriever.index.n_cut == 0
    with pytest.raises(utils.UserError, match="takes 18 tokens of a passage at once, besides its prompt"):
        retriever_of(tiny_embedder, "--passage_prompt", prompt, "--chunk_tokens", "20")
    with pytest.raises(utils.UserError, match="leaves none for the text"):
        retriever_of(tiny_embedder, "--passage_prompt", prompt * 3)
    model = SentenceTransformer(tiny_embedder, device="cpu")
    plain = retriever_of(tiny_embedder).embedder.embed(["the passage : the film"])
    for name in ("document", "passage"):  # every model has a "document", without words
        model.prompts = {"query": "", "document": "", name: "the passage : "}
        model.save(str(tmp_path / name))
        embedder = retriever_of(str(tmp_path / name)).embedder
        assert embedder.max_tokens == 27 and np.abs(embedder.embed(["the film"]) - plain).max() < 1e-5


def test_a_length_beyond_the_positions_is_that_of_the_positions(copy):
    (copy / "sentence_bert_config.json").write_text('{"max_seq_length": 5000}')
    retriever = retriever_of(str(copy), "--whole_documents")
    retriever.add([Document("long", "", " ".join(sentences(40))), Document("short", "", "the good film")])
    assert retriever.embedder.max_tokens == 62 and retriever.index.n_cut == 1
    assert "1 of 2 documents are longer than the 62 tokens" in retriever.told_cut()


def test_cut_documents_are_told_also_by_an_index_that_was_saved(tiny_embedder, tmp_path):
    flags = ("--whole_documents", "--index_dir", str(tmp_path / "index"))
    retriever = retriever_of(tiny_embedder, *flags)
    retriever.add([Document("long", "", " ".join(sentences(40))), Document("short", "", "the good film")])
    assert "1 of 2 documents" in retriever_of(tiny_embedder, *flags).told_cut()
    retriever.remove(["long"])
    assert retriever_of(tiny_embedder, *flags).told_cut() == ""
    assert retriever.embedder.cut(["the film " * 20, "the film"], questions=True) == [True, False]


def test_cut_questions_and_documents_stand_in_the_row(questions, tiny_embedder, out, only_row, tmp_path):
    (tmp_path / "q.jsonl").write_text(
        json.dumps({"question": "what is the good film ? " * 9, "answer": "rome", "passage": "the good film . " * 20})
        + "\n"
    )
    flags = ["--embed_model", tiny_embedder, "--test_file", str(tmp_path / "q.jsonl")]
    rag_eval.main([*flags, "--train_file", f"{questions}/train.jsonl", "--whole_documents", "--retrieval_only", *out])
    note = only_row()["note"]
    assert "1 of 21 documents are longer than the 30 tokens" in note and "1 of 1 questions are longer" in note


def test_an_index_built_for_bm25_gets_its_vectors_when_they_are_asked_for(tiny_embedder, tmp_path, capsys):
    bare = ("--index_dir", str(tmp_path / "index"), "--retriever", "bm25")
    filled(tiny_embedder, *bare)
    dense = retriever_of(tiny_embedder, *bare[:2], "--metric", "l2", "--index", "sq8")
    assert "its 60 chunks are embedded now" in capsys.readouterr().out
    asked = sentences(4, seed=7)
    wanted = filled(tiny_embedder, "--metric", "l2", "--index", "sq8").search(asked, 5)
    again = retriever_of(tiny_embedder, *bare[:2], "--metric", "l2", "--retriever", "hybrid")
    assert "embedded now" not in capsys.readouterr().out and again.index.kind == "sq8"
    found = dense.search(asked, 5)
    assert [[hit.row for hit in hits] for hits in found] == [[hit.row for hit in hits] for hits in wanted]
    assert np.isfinite([hit.score for hits in again.search(asked, 5) for hit in hits]).all()
    assert [hit.row for hit in retriever_of(tiny_embedder, *bare, "--metric", "l2").search(["number7"], 3)[0]] == [7]


def test_workers_give_the_same_vectors(tiny_embedder, monkeypatch):
    monkeypatch.setattr("harness.retrieval.embedder.MANY", 50)
    texts = sentences(60) + ["short", "a very long text " * 40]
    one, two = (Embedder(arguments(tiny_embedder, "--embed_workers", n), "cpu") for n in ("1", "2"))
    alone, together = one.embed(texts), two.embed(texts)
    assert len(two.pool["processes"]) == 2 and one.pool is None
    assert np.allclose(alone, together, atol=1e-5)
    two.end_workers()
    assert two.pool is None
