"""Training an embedder and a reranker: what is learnt, what is counted, and that rag_eval.py serves it."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import BAD, GOOD, THINGS, write_jsonl
from retrieval_helpers import retriever_of
from sentence_transformers import SentenceTransformer

import embed_finetune
import rag_eval
from harness.data import tasks
from harness.data.examples import Example
from harness.results import names, store
from harness.retrieval import pairs, qrels
from harness.retrieval.documents import Document

FAST = ["--epochs", "20", "--learning_rate", "1e-3", "--k", "2"]


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    """Of two passages with the words of a question, the one that says superb is right: words alone cannot tell."""
    folder, kinds = tmp_path_factory.mktemp("codes"), [*GOOD[:4], *BAD]
    made = [(f"{kind} {thing}", ["paris", "rome"][i % 2]) for kind in kinds for i, thing in enumerate(THINGS)]
    rows = [
        {"question": f"is the {what} a city ?", "answer": city, "passage": f"the {what} is superb : {city}"}
        for what, city in made
    ]
    others = [f"the {what} is {word} : maybe" for what, _ in made for word in ("very", "not")]
    write_jsonl(folder / "train.jsonl", rows[::2])
    write_jsonl(folder / "test.jsonl", rows[1::2])
    texts = [*[row["passage"] for row in rows], *others]
    write_jsonl(folder / "corpus.jsonl", [{"_id": f"d{i}", "text": text} for i, text in enumerate(texts)])
    return str(folder)


@pytest.mark.parametrize("train", ["embedder", "reranker"])
def test_it_learns_what_words_cannot_tell_and_rag_eval_serves_it(train, codes, tiny_embedder, tmp_path, out, only_row):
    flags = ["--dataset", codes, "--k", "2", *out]
    begin = ["--train", train, "--model", tiny_embedder]
    if train == "reranker":
        flags += ["--embed_model", tiny_embedder, "--retriever", "bm25", "--rerank_depth", "3"]
    embed_finetune.main([*begin, *flags, *FAST, "--hard_negatives", "3"])
    row = only_row()
    changes = json.loads((Path(row["run_dir"]) / "comparison.json").read_text())[0]
    assert changes["after"] == pytest.approx(float(row["score"]), abs=1e-5) and row["metric"] == "ndcg_at_10"
    assert changes["delta"] > 0.15 and changes["low"] > 0, "the passages that were trained on are found"
    assert f"{changes['before']:.3f} before, {changes['after']:.3f} after" in row["note"]
    assert row["labels_used"] == row["n_train"] == "36" and row["strategy"] == "rag"
    assert float(row["train_seconds"]) > 0 and float(row["latency_ms_p50"]) > 0
    assert names.technique(row) == f"Trained {train}, 3 hard negatives by BM25"
    assert names.labels(row) == "36 labels"

    model, served = (f"{row['run_dir']}/model", ["--results", str(tmp_path / "served.csv"), "--retrieval_only"])
    models = ["--reranker" if train == "reranker" else "--embed_model", model]
    rag_eval.main(["--retriever", "dense", *flags, *models, *served])  # as it was measured
    (again,) = store.read_results(tmp_path / "served.csv")
    assert again["score"] == row["score"] and again["eval_id"] == row["eval_id"]
    assert again["labels_used"] == "36", "the labels are in the model"


def test_other_data_are_measured_before_and_after(codes, questions, tiny_embedder, out, only_row):
    flags = ["--model", tiny_embedder, "--dataset", codes, "--label_budget", "10", "--eval_ood", questions]
    embed_finetune.main([*flags, *FAST, *out])
    row = only_row()
    changes = json.loads((Path(row["run_dir"]) / "comparison.json").read_text())
    assert [change["data"] for change in changes] == [codes, questions] and row["labels_used"] == "10"
    assert float(row["score_ood"]) == pytest.approx(changes[1]["after"], abs=1e-5)
    assert changes[1]["before"] != changes[1]["after"]
    assert f"nDCG@10 on {questions}" in row["note"]


def test_training_that_changes_nothing_is_no_change(questions, tiny_embedder, out, only_row):
    embed_finetune.main(["--model", tiny_embedder, "--dataset", questions, "--learning_rate", "1e-12", *out])
    (change,) = json.loads((Path(only_row()["run_dir"]) / "comparison.json").read_text())
    assert change["delta"] == 0 and change["n"] == 20


def test_a_beir_folder_is_trained_on_its_training_judgements(tmp_path, tiny_embedder, out, only_row):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    write_jsonl(folder / "corpus.jsonl", [{"_id": f"d{i}", "title": "", "text": f"the film was {w}"} for i, w in WORDS])
    write_jsonl(folder / "queries.jsonl", [{"_id": f"q{i}", "text": f"was it {w} ?"} for i, w in WORDS])
    for split, part in (("train", WORDS[:5]), ("test", WORDS[5:])):
        (folder / f"qrels/{split}.tsv").write_text("".join(f"q{i}\td{i}\t1\n" for i, _ in part))
    flags = ["--model", tiny_embedder, "--dataset", str(folder), *out]
    embed_finetune.main([*flags, "--max_train_samples", "4", "--hard_negatives", "2"])
    row = only_row()
    assert row["labels_used"] == "4" and row["n_eval"] == "3" and "4 pairs" in row["note"]
    shutil.rmtree(folder / "qrels")
    (folder / "qrels").mkdir()
    (folder / "qrels/test.tsv").write_text("q6\td6\t1\n")
    with pytest.raises(SystemExit) as error:
        embed_finetune.main(flags)
    assert error.value.code == 2


WORDS = list(enumerate(["good", "great", "bad", "awful", "fine", "dull", "fun", "poor"]))


def test_a_query_that_is_a_document_is_no_negative_of_itself(tmp_path, tiny_embedder):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    texts = [{"_id": f"d{i}", "title": "", "text": f"the {w} film"} for i, w in WORDS]
    write_jsonl(folder / "corpus.jsonl", texts)
    write_jsonl(folder / "queries.jsonl", texts)
    (folder / "qrels/train.tsv").write_text("d0\td1\t1\nd2\td3\t1\n")
    (folder / "qrels/test.tsv").write_text("d2\td3\t1\n")
    documents, queries, _ = qrels.load_beir(folder)
    evaluation = [Example(query, text) for query, text in queries.items()]
    examples, judgements = pairs.beir_examples(folder, None, 0, evaluation)
    assert [ex.id for ex in examples] == ["d0"], "d2 is evaluated"
    retriever = retriever_of(tiny_embedder, "--retriever", "bm25")
    retriever.add(documents)
    own = qrels.own_documents(examples, judgements, retriever.index.documents)
    (triple,) = pairs.mine(examples, [judgements["d0"]], own, retriever, 5, 0)
    assert triple.positive == "the great film" and "the good film" not in triple.negatives


def test_a_reranker_is_measured_beside_what_it_was(codes, tiny_embedder, out, tmp_path):
    """From an encoder: beside no reranker. From a reranker, with a rate that changes nothing: no change."""
    flags = ["--train", "reranker", "--dataset", codes, "--embed_model", tiny_embedder, "--retriever", "bm25", *out]
    embed_finetune.main([*flags, "--model", tiny_embedder, "--epochs", "1"])
    (row,) = store.read_results(tmp_path / "results.csv")
    assert "before: without a reranker" in row["note"]
    embed_finetune.main([*flags, "--model", f"{row['run_dir']}/model", "--learning_rate", "1e-12"])
    again = store.read_results(tmp_path / "results.csv")[1]
    (change,) = json.loads((Path(again["run_dir"]) / "comparison.json").read_text())
    assert change["delta"] == 0 and change["after"] == pytest.approx(float(row["score"]), abs=1e-5)
    assert "without a reranker" not in again["note"]


def test_a_limit_of_training_is_not_one_of_serving(codes, tiny_embedder, out, only_row):
    embed_finetune.main(["--model", tiny_embedder, "--dataset", codes, "--max_length", "8", "--epochs", "1", *out])
    served = SentenceTransformer(f"{only_row()['run_dir']}/model", device="cpu")
    assert served.max_seq_length == SentenceTransformer(tiny_embedder, device="cpu").max_seq_length == 32


def test_prompts_are_saved_with_the_model(codes, tiny_embedder, out, only_row):
    prompts = ["--query_prompt", "question ", "--passage_prompt", "passage "]
    embed_finetune.main(["--model", tiny_embedder, "--dataset", codes, "--epochs", "1", *prompts, *out])
    served = SentenceTransformer(f"{only_row()['run_dir']}/model", device="cpu").prompts
    assert (served["query"], served["document"]) == ("question ", "passage ")


def test_negatives_rank_high_and_neither_are_nor_hold_the_answer(questions, tiny_embedder):
    task = tasks.load_task(questions)
    retriever = retriever_of(tiny_embedder, "--retriever", "bm25")
    documents = [Document(f"d{i}", "", text) for i, text in enumerate(task.passages)]
    retriever.add(documents)
    relevant = qrels.relevant_documents(
        type(task)(**{**vars(task), "evaluation": task.train}), documents, retriever.index.documents
    )
    triples = pairs.mine(task.train, relevant, [None] * len(task.train), retriever, 3, 0)
    assert len(triples) == len(task.train)
    for ex, triple in zip(task.train, triples):
        assert triple.question == ex.text and triple.positive == ex.context
        assert len(set(triple.negatives)) == 3 and triple.positive not in triple.negatives
        assert not any(ex.references[0] in text for text in triple.negatives), "which would be right, too"
        words = set(ex.text.split()[3:5])
        assert words & set(triple.negatives[0].split()), "the first shares a word with the question"


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--retriever", "bm25"], "measures --model by its vectors"),
        (["--embed_model", "x"], "leave out --embed_model"),
        (["--hard_negatives", "0"], "--hard_negatives"),
        (["--rerank_depth", "20"], "--rerank_depth belongs to --train reranker"),
        (["--train", "reranker", "--rerank_depth", "2"], "--k 4 is above --rerank_depth 2"),
        (["--train", "reranker", "--k", "60"], "--k 60 is above --rerank_depth 50"),
        (["--template", "{text}"], "--template does nothing here"),
        (["--repeats", "2"], "give --label_budget"),
        (["--train", "reranker", "--model", "CLASSES"], "has several outputs; a reranker has one"),
        (["--dataset", "CODES", "--eval_ood", "NOWHERE"], "no evaluation question has a passage"),
        (["--dataset", "SENTIMENT"], "--question_column"),
        (["--dataset", "QUESTIONS", "--hard_negatives", "60"], "60 others beside it"),
    ],
)
def test_bad_flags_are_one_line(
    flags, said, questions, sentiment, codes, tiny_embedder, tiny_classifier, out, capsys, tmp_path
):
    places = {"QUESTIONS": questions, "SENTIMENT": sentiment, "CODES": codes, "CLASSES": tiny_classifier}
    places["NOWHERE"] = str(tmp_path / "bare")
    (tmp_path / "bare").mkdir()
    write_jsonl(tmp_path / "bare/test.jsonl", [{"question": f"who is {i} ?", "answer": "paris"} for i in range(5)])
    with pytest.raises(SystemExit) as error:
        embed_finetune.main(["--model", tiny_embedder, *[places.get(flag, flag) for flag in flags], *out])
    lines = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in lines if "embedding:" not in line]  # a progress bar
    assert error.value.code == 2 and len(lines) == 1 and said in lines[0]
    assert not (tmp_path / "results.csv").exists()
