import random
import re

import numpy as np
import pandas as pd
import pytest
from helpers import MINILM, predictions, write_jsonl
from retrieval_helpers import SCIFACT, filled, retriever_of, sentences

import rag_eval
from harness.data import tasks
from harness.evaluation import metrics
from harness.results import store
from harness.retrieval import index_folder, qrels
from harness.retrieval.documents import Document, read_documents
from harness.retrieval.reader import NOT_FOUND


def models(embedder, generator):
    return ["--embed_model", embedder, "--gen_model", generator]


@pytest.mark.real
@pytest.mark.skipif(not SCIFACT.is_dir(), reason="no shared data here")
def test_bm25_on_scifact_is_what_is_published(out, only_row):
    rag_eval.main(["--embed_model", MINILM, "--dataset", str(SCIFACT), "--retriever", "bm25", "--k", "10", *out])
    row = only_row()
    assert float(row["ndcg_at_10"]) == pytest.approx(0.665, abs=0.01) and row["n_eval"] == "300"


@pytest.mark.slow
def test_an_index_of_other_documents_is_not_measured_as_if_it_were_these(
    questions, tiny_embedder, tmp_path, out, only_row, capsys
):
    """Its passages are d0, d1, .. too, which must not count as found."""
    index = str(tmp_path / "index")
    filled(tiny_embedder, "--index_dir", index)
    flags = ["--embed_model", tiny_embedder, "--dataset", questions, "--index_dir", index, "--retrieval_only", *out]
    with pytest.raises(SystemExit):
        rag_eval.main(flags)
    assert "no question has a passage" in capsys.readouterr().err
    whole, beir = str(tmp_path / "whole"), beir_folder(tmp_path / "beir", seed=5)
    filled(tiny_embedder, "--index_dir", whole, "--whole_documents").add([Document("other", "", "the good film")])
    with pytest.raises(SystemExit):
        rag_eval.main(["--embed_model", tiny_embedder, "--dataset", beir, "--index_dir", whole, *out])
    assert "documents that are not of" in capsys.readouterr().err
    few = str(tmp_path / "few")  # fewer than the data set's, under the same names: not to be written over
    retriever_of(tiny_embedder, "--index_dir", few).add(
        [Document(f"d{i}", "", text) for i, text in enumerate(sentences(5))]
    )
    with pytest.raises(SystemExit):
        rag_eval.main([*flags[:4], "--index_dir", few, "--retrieval_only", *out])
    assert sorted(index_folder.open_index(few)[0].table["text"].to_pylist()) == sorted(sentences(5))
    again = retriever_of(tiny_embedder, "--index_dir", few)
    again.remove([f"d{i}" for i in range(5)])
    again = retriever_of(tiny_embedder, "--index_dir", few)
    again.add([Document("new", "", "the good film")])  # an index that became empty is still this index
    assert list(index_folder.open_index(few)[0].documents) == ["new"]
    rag_eval.main([*flags[:4], "--index_dir", str(tmp_path / "own"), "--retrieval_only", *out])
    first = only_row()
    (tmp_path / "results.csv").unlink()
    rag_eval.main([*flags[:4], "--index_dir", str(tmp_path / "own"), "--retrieval_only", *out])
    again = only_row()
    assert (first["score"], first["recall_at_k"]) == (again["score"], again["recall_at_k"]) and float(
        first["score"]
    ) > 0.3
    assert first["index_seconds"] and not again["index_seconds"]


def test_a_passage_within_a_document_is_found_there(questions, tiny_embedder, tmp_path, out, only_row):
    (tmp_path / "docs").mkdir()
    task = tasks.load_task(questions)
    for i in range(0, 20, 2):
        two = f"{task.evaluation[i].context}\n\n{task.evaluation[i + 1].context}"
        (tmp_path / "docs" / f"{i}.txt").write_text(two)
    rag_eval.main(
        [
            "--embed_model",
            tiny_embedder,
            "--dataset",
            questions,
            "--docs",
            str(tmp_path / "docs"),
            "--retrieval_only",
            *out,
        ]
    )
    row = only_row()
    assert float(row["recall_at_k"]) > 0.5 and "is scored on the" not in row["note"]
    relevant = qrels.relevant_documents(
        task, *(lambda d: (d, {doc.id: doc.digest for doc in d}))(read_documents([tmp_path / "docs"]))
    )
    assert [list(found) for found in relevant] == [[str(tmp_path / "docs" / f"{i - i % 2}.txt")] for i in range(20)]


def test_a_second_run_embeds_only_what_changed(tiny_embedder, tmp_path, capsys):
    folder, index = tmp_path / "notes", str(tmp_path / "index")
    folder.mkdir()
    for i, text in enumerate(sentences(6)):
        (folder / f"{i}.txt").write_text(text)
    flags = ["--embed_model", tiny_embedder, "--build_only", "--docs", str(folder), "--index_dir", index]
    rag_eval.main(flags)
    assert "6 documents added, 6 chunks added, 6 in all" in capsys.readouterr().out.replace(";", ",")
    (folder / "0.txt").write_text("the dull plot is another one now .")
    (folder / "6.txt").write_text("the new joke .")
    (folder / "7.txt").write_text("the new  joke .")
    (folder / "5.txt").unlink()
    rag_eval.main(flags)
    said = capsys.readouterr().out
    assert "1 documents added, 1 documents updated, 4 documents unchanged" in said and "1 the same as another" in said
    assert "flat, which is exact" not in said and "7 chunks in" in said
    (folder / "4.txt").write_bytes(b"\xff\xff")  # there, but not to be read this time: it keeps its old text
    rag_eval.main([*flags, "--prune"])
    assert "1 chunks of 1 documents forgotten" in capsys.readouterr().out
    rag_eval.main([*flags[:3], *flags[5:], "--delete", str(folder / "6.txt")])
    opened, _ = index_folder.open_index(index)
    texts = sorted(opened.table["text"].to_pylist())
    assert texts == sorted([*sentences(6)[1:5], "the dull plot is another one now ."]) and len(opened) == 5
    fresh = retriever_of(tiny_embedder, "--retriever", "dense")
    fresh.add([Document(str(i), "", text) for i, text in enumerate(texts)])
    again = retriever_of(tiny_embedder, "--retriever", "dense", "--index_dir", index)
    for a, b in zip(fresh.search(sentences(3, seed=5), 5), again.search(sentences(3, seed=5), 5)):
        assert [hit.chunk.text for hit in a] == [hit.chunk.text for hit in b]
        assert [hit.score for hit in a] == pytest.approx([hit.score for hit in b], abs=1e-6)


def beir_folder(folder, n_documents=80, n_queries=25, seed=0):
    """Queries with graded judgements, of which a bag of words finds some."""
    rng, texts = random.Random(3), sentences(n_documents, seed)
    (folder / "qrels").mkdir(parents=True)
    write_jsonl(folder / "corpus.jsonl", [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)])
    asked, judged = [], ["query-id\tcorpus-id\tscore"]
    for q in range(n_queries):
        picked = rng.sample(range(n_documents), rng.randint(1, 4))
        asked.append({"_id": f"q{q}", "text": texts[picked[0]].replace(f"number{picked[0]}", "")})
        judged += [f"q{q}\td{d}\t{rng.randint(1, 2)}" for d in picked]
    write_jsonl(folder / "queries.jsonl", asked)
    (folder / "qrels/test.tsv").write_text("\n".join(judged) + "\n")
    return str(folder)


@pytest.mark.parametrize(
    "flags",
    [(), ("--retriever", "hybrid"), ("--mmr", "0.5"), ("--retriever", "bm25"), ("--index", "hnsw", "--metric", "l2")],
)
def test_an_independent_evaluator_reads_the_same_scores_from_the_run_file(
    flags, tiny_embedder, tmp_path, out, only_row
):
    ir_measures = pytest.importorskip("ir_measures")
    from ir_measures import AP, RR, P, R, nDCG

    folder = beir_folder(tmp_path / "beir")
    rag_eval.main(
        [
            "--embed_model",
            tiny_embedder,
            "--dataset",
            folder,
            "--save_run",
            str(tmp_path / "run.txt"),
            "--k",
            "5",
            *flags,
            *out,
        ]
    )
    row = only_row()
    judged = pd.read_csv(tmp_path / "beir/qrels/test.tsv", sep="\t", dtype=str)
    qrels = [ir_measures.Qrel(q, d, int(grade)) for q, d, grade in judged.itertuples(index=False)]
    run = list(ir_measures.read_trec_run(str(tmp_path / "run.txt")))
    wanted = ir_measures.calc_aggregate([nDCG @ 10, RR, AP, R @ 5, P @ 5], qrels, run)
    for measure, column in (
        (nDCG @ 10, "ndcg_at_10"),
        (RR, "mrr"),
        (AP, "map"),
        (R @ 5, "recall_at_k"),
        (P @ 5, "precision_at_k"),
    ):
        assert float(row[column]) == pytest.approx(wanted[measure], abs=2e-6), column
    assert row["metric"] == "ndcg_at_10" and row["score"] == row["ndcg_at_10"] and row["status"] == "ok"
    assert (
        (row["index_recall"] == "") == ("bm25" in flags)
        and float(row["search_ms"]) > 0
        and "80 documents in 80 chunks" in row["note"]
    )


@pytest.mark.slow
def test_the_baselines(questions, tiny_llama, tiny_embedder, tmp_path, out):
    rag_eval.main(
        [
            *models(tiny_embedder, tiny_llama),
            "--dataset",
            questions,
            "--max_new_tokens",
            "5",
            "--k",
            "3",
            "--baselines",
            *out,
        ]
    )
    rows = store.read_results(tmp_path / "results.csv")
    names = ["no_retrieval", "gold_passage", "random_passages", "all_that_fits", "k3_hybrid_flat"]
    assert [row["variant"] for row in rows] == names
    assert [row["strategy"] for row in rows] == ["prompting", "rag", "rag", "rag", "rag"]
    assert len({row["eval_id"] for row in rows}) == 1 and len({row["run_dir"] for row in rows}) == 5
    none, gold, random_, everything, retrieved = map(predictions, rows)
    assert [bool(row["index_seconds"]) for row in rows] == [False, False, True, True, True]
    shown = [len(p["retrieved"]) for p in everything]
    assert min(shown) > 3 and float(rows[3]["prompt_tokens"]) > 2 * float(rows[4]["prompt_tokens"])
    for many, few in zip(everything, retrieved):
        assert many["retrieved"][:3] == few["retrieved"] and len(many["retrieved"]) == len(everything[0]["retrieved"])
    rows = [rows[0], rows[2], rows[4], rows[1]]
    task = tasks.load_task(questions)
    assert [p["retrieved"] for p in none] == [[]] * 20
    assert [[hit["text"] for hit in p["retrieved"]] for p in gold] == [[ex.context] for ex in task.evaluation]
    assert all(len({hit["document"] for hit in p["retrieved"]}) == 3 for p in random_)
    assert len({p["retrieved"][0]["document"] for p in random_}) > 5
    inside = [float(row["answer_in_context"]) for row in rows[1:]]
    assert inside[2] == 1.0 and rows[0]["answer_in_context"] == ""
    assert inside[1] == pytest.approx(
        np.mean([any(metrics.contains_answer(hit["text"], p["target"]) for hit in p["retrieved"]) for p in retrieved]),
        abs=1e-6,
    )
    assert rows[2]["recall_at_k"] and not rows[1]["recall_at_k"] and not rows[3]["recall_at_k"]
    split = sum(float(rows[2][name]) for name in ("embed_ms", "search_ms", "generate_ms"))
    assert split == pytest.approx(float(rows[2]["latency_ms_mean"]), rel=1e-4)


def test_a_context_too_small_loses_passages_from_the_end(questions, tiny_llama, tiny_embedder, out, only_row, capsys):
    rag_eval.main(
        [
            *models(tiny_embedder, tiny_llama),
            "--dataset",
            questions,
            "--max_new_tokens",
            "3",
            "--k",
            "4",
            "--context_tokens",
            "30",
            *out,
        ]
    )
    row = only_row()
    assert (
        "did not fit the context and were left out" in row["note"]
        and "did not fit the context" in capsys.readouterr().out
    )
    shown, lost = 4 * int(row["n_eval"]), int(re.search(r"(\d+) passages of", row["note"])[1])
    assert 0 < lost < shown and float(row["recall_at_k"]) < 1.0, "of what is shown"


def test_citations_are_asked_for_counted_and_not_scored(questions, tiny_llama, tiny_embedder, out, only_row):
    rag_eval.main(
        [*models(tiny_embedder, tiny_llama), "--dataset", questions, "--max_new_tokens", "3", "--citations", *out]
    )
    assert "answers cite a passage" in only_row()["note"]


def test_nothing_above_the_minimum_is_not_in_the_documents(questions, tiny_llama, tiny_embedder, out, only_row):
    rag_eval.main(
        [
            *models(tiny_embedder, tiny_llama),
            "--dataset",
            questions,
            "--max_new_tokens",
            "3",
            "--retriever",
            "bm25",
            "--min_score",
            "1e9",
            *out,
        ]
    )
    row = only_row()
    assert {p["prediction"] for p in predictions(row)} == {NOT_FOUND} and row["status"] == "degenerate"
    assert "20 questions without a passage above --min_score" in row["note"] and row["generated_tokens"] == ""
    assert float(row["latency_ms_p50"]) > 0 and row["score"] == "0"


def test_rag_and_the_same_questions_without_retrieval(questions, tiny_llama, tiny_embedder, tmp_path, out, only_row):
    common = [*models(tiny_embedder, tiny_llama), "--dataset", questions, "--max_new_tokens", "5", *out]
    rag_eval.main([*common, "--k", "3"])
    row = only_row()
    found = predictions(row)
    assert (row["strategy"], row["variant"], row["metric"], row["n_eval"]) == (
        "rag",
        "k3_hybrid_flat",
        "token_f1",
        "20",
    )
    assert all(len(p["retrieved"]) == 3 for p in found)
    assert all(p["retrieved"][0]["score"] >= p["retrieved"][-1]["score"] for p in found)
    task = tasks.load_task(questions)
    passages = {ex.id: ex.context for ex in task.evaluation}
    hits = [passages[p["id"]] in [hit["text"] for hit in p["retrieved"]] for p in found]
    assert (
        float(row["recall_at_k"]) == pytest.approx(np.mean(hits), abs=1e-5) and np.mean(hits) > 0.3
    )  # 3 of 40 by chance: 0.075
    assert float(row["score"]) == pytest.approx(
        np.mean([metrics.token_f1(p["prediction"], p["target"]) for p in found]), abs=1e-5
    )
    assert "40 documents in 40 chunks" in row["note"]
    rag_eval.main([*common, "--k", "0", "--results", str(tmp_path / "without.csv")])
    (without,) = store.read_results(tmp_path / "without.csv")
    assert (without["variant"], without["recall_at_k"], without["eval_id"]) == ("no_retrieval", "", row["eval_id"])
    assert int(without["prompt_tokens"]) < int(row["prompt_tokens"]) and predictions(without)[0]["retrieved"] == []


def test_labelled_questions_as_demonstrations_are_counted(questions, tiny_llama, tiny_embedder, out, tmp_path):
    common = [*models(tiny_embedder, tiny_llama), "--dataset", questions, "--max_new_tokens", "4", "--k", "2", *out]
    rag_eval.main(common)
    rag_eval.main([*common, "--k_shots", "3"])
    plain, few = store.read_results(tmp_path / "results.csv")
    assert (few["variant"], few["k_shots"], few["labels_used"]) == ("k2_hybrid_flat_3_shot", "3", "3")
    assert (plain["variant"], plain["k_shots"], plain["labels_used"]) == ("k2_hybrid_flat", "", "0")
    assert few["eval_id"] == plain["eval_id"] and few["recall_at_k"] == plain["recall_at_k"]
    assert int(few["prompt_tokens"]) > int(plain["prompt_tokens"]) + 20 * 3 * 15


def test_a_context_that_holds_no_passage_is_a_row(questions, tiny_llama, tiny_embedder, out, tmp_path):
    models = ["--embed_model", tiny_embedder, "--gen_model", tiny_llama, "--dataset", questions, *out]
    rag_eval.main([*models, "--baselines", "--context_tokens", "1", "--max_new_tokens", "4"])
    row = next(row for row in store.read_results(tmp_path / "results.csv") if row["variant"] == "all_that_fits")
    assert row["status"] in ("ok", "degenerate") and float(row["answer_in_context"]) == 0
    assert "did not fit the context" in row["note"] and "--min_score" not in row["note"]
