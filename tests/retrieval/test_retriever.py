import numpy as np
import pytest
from helpers import ASSETS, MINILM
from retrieval_helpers import filled, retriever_of, sentences

import rag_eval
import utils
from harness.data import tasks
from harness.retrieval import qrels
from harness.retrieval.documents import Document
from harness.retrieval.ranking import reciprocal_rank_fusion
from harness.retrieval.retriever import Retriever


@pytest.mark.real
def test_retrieval_finds_the_passages_of_real_questions():
    retriever = Retriever(rag_eval.parse_args(["--embed_model", MINILM]), "cpu")
    task = tasks.load_task(str(ASSETS / "data/disfl_qa"), max_eval_samples=20)
    documents = [
        Document(f"d{i}", "", text) for i, text in enumerate(dict.fromkeys(ex.context for ex in task.evaluation))
    ]
    retriever.add(documents)
    relevant = qrels.relevant_documents(task, documents, retriever.index.documents)
    hits = retriever.search([ex.text for ex in task.evaluation], 4)
    assert np.mean([qrels.retrieval_scores(h, r, 4)["recall_at_k"] for h, r in zip(hits, relevant)]) >= 0.95


def test_an_hnsw_graph_is_judged_by_the_search_that_is_timed(tiny_embedder):
    retriever = filled(tiny_embedder, "--index", "hnsw", "--ef_search", "16")
    assert retriever.depth == 16 and filled(tiny_embedder).depth == 100


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory, tiny_classifier):
    """A random reranker: what it says is meaningless, and the same each time."""
    from sentence_transformers import CrossEncoder

    folder = str(tmp_path_factory.mktemp("cross") / "encoder")
    CrossEncoder(
        tiny_classifier, num_labels=1, device="cpu", model_kwargs={"ignore_mismatched_sizes": True}
    ).save_pretrained(folder)
    return folder


def test_dense_search_is_the_matrix_product(tiny_embedder):
    retriever, asked = filled(tiny_embedder, "--retriever", "dense"), sentences(5, seed=7)
    similarity = retriever.embedder.embed(asked, questions=True) @ retriever.embedder.embed(sentences(60)).T
    for row, hits in zip(similarity, retriever.search(asked, 5)):
        assert [hit.score for hit in hits] == pytest.approx(sorted(row, reverse=True)[:5], abs=1e-5)
        assert [row[int(hit.chunk.document[1:])] for hit in hits] == pytest.approx(
            [hit.score for hit in hits], abs=1e-5
        )
    assert len(retriever.search(asked, 99)[0]) == 60 and retriever.search([], 3) == []
    assert set(retriever.spent) == {"embed", "search"} and all(ms > 0 for ms in retriever.spent.values())


def test_hybrid_is_the_fusion_of_both(tiny_embedder):
    asked = sentences(5, seed=7)
    dense, lexical, hybrid = (
        filled(tiny_embedder, "--retriever", name).search(asked, 100) for name in ("dense", "bm25", "hybrid")
    )
    for d, b, h in zip(dense, lexical, hybrid):
        wanted = reciprocal_rank_fusion([[hit.row for hit in d], [hit.row for hit in b]])
        assert [hit.score for hit in h] == pytest.approx([score for _, score in wanted])
        assert [hit.row for hit in h][:10] == [row for row, _ in wanted][:10]


def test_a_reranker_orders_the_first_ones_again(tiny_embedder, cross_encoder):
    asked = sentences(3, seed=7)
    first = filled(tiny_embedder).search(asked, 12)
    again = filled(tiny_embedder, "--reranker", cross_encoder, "--rerank_depth", "12").search(asked, 12)
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(cross_encoder, device="cpu")
    for question, before, after in zip(asked, first, again):
        scores = model.predict([(question, hit.chunk.full) for hit in before])
        assert {hit.row for hit in after} == {hit.row for hit in before}
        assert [hit.score for hit in after] == pytest.approx(sorted(scores.tolist(), reverse=True), abs=1e-5)


@pytest.mark.parametrize("retriever", ["dense", "hybrid", "bm25"])
def test_what_is_below_the_minimum_is_not_returned(retriever, tiny_embedder):
    asked = sentences(4, seed=7)
    everything = filled(tiny_embedder, "--retriever", retriever).search(asked, 60)
    line = np.median(
        [
            hit.score
            for hits in filled(tiny_embedder, "--retriever", retriever.replace("hybrid", "dense")).search(asked, 60)
            for hit in hits
        ]
    )
    kept = filled(tiny_embedder, "--retriever", retriever, "--min_score", str(line)).search(asked, 60)
    assert 0 < sum(map(len, kept)) < sum(map(len, everything))
    if retriever != "hybrid":  # whose scores are fused ranks, its likeness is asked for
        assert all(hit.score >= line for hits in kept for hit in hits)
    assert filled(tiny_embedder, "--retriever", retriever, "--min_score", "1e9").search(asked, 5) == [[]] * 4


def test_diversity_changes_what_is_taken(tiny_embedder):
    asked = sentences(4, seed=7)
    plain, diverse, alike = (
        filled(tiny_embedder, "--retriever", "dense", *flags).search(asked, 5)
        for flags in ((), ("--mmr", "0.3"), ("--mmr", "1"))
    )
    rows = [[[hit.row for hit in hits] for hits in found] for found in (plain, diverse, alike)]
    scores = [
        [[hit.score for hit in hits] for hits in found] for found in (plain, diverse, alike)
    ]  # twins may change places
    assert np.allclose(scores[0], scores[2], atol=1e-6) and not np.allclose(scores[0], scores[1], atol=1e-3)
    assert np.allclose([some[0] for some in scores[0]], [some[0] for some in scores[1]], atol=1e-6)

    def likeness(retriever, found):
        vectors = [retriever.index.vectors_of(some) for some in found]
        return np.mean([(v @ v.T)[np.triu_indices(5, 1)].mean() for v in vectors])

    retriever = filled(tiny_embedder)
    assert likeness(retriever, rows[1]) < likeness(retriever, rows[0])


def test_prompts_for_questions_and_passages(tiny_embedder):
    plain = retriever_of(tiny_embedder).embedder
    asked = retriever_of(tiny_embedder, "--query_prompt", "question ", "--passage_prompt", "passage ").embedder
    text = "the good film"
    assert np.allclose(asked.embed([text], questions=True), plain.embed(["question " + text]), atol=1e-6)
    assert np.allclose(asked.embed([text]), plain.embed(["passage " + text]), atol=1e-6)


def test_a_document_that_became_another_ones_twin_is_forgotten(tiny_embedder):
    retriever = retriever_of(tiny_embedder)
    retriever.add([Document("a", "", "the good film"), Document("b", "", "the dull plot")])
    retriever.add([Document("a", "", "the good film"), Document("b", "", "the good film")])
    assert list(retriever.index.documents) == ["a"]


def test_bm25_alone_embeds_nothing(tiny_embedder, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.retrieval.index.Index.block", 25)  # and a large corpus is saved on its way
    retriever = filled(tiny_embedder, "--retriever", "bm25", "--index_dir", str(tmp_path / "index"))
    assert (
        retriever.index.faiss is None
        and not (tmp_path / "index/index.faiss").exists()
        and retriever.index.generation == 3
    )
    again = retriever_of(tiny_embedder, "--retriever", "bm25", "--index_dir", str(tmp_path / "index"))
    assert [hit.row for hit in again.search(["number7"], 3)[0]] == [7]
    with pytest.raises(utils.UserError, match="holds no vectors; give --retriever bm25"):
        retriever_of(tiny_embedder, "--index_dir", str(tmp_path / "index"), "--mmap")


def test_another_embedder_chunking_metric_or_kind_is_refused(tiny_embedder, tiny_bert, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    index = str(tmp_path / "index")
    filled(tiny_embedder, "--index_dir", index, "--chunk_tokens", "20")
    other = SentenceTransformer(modules=[Transformer(tiny_bert, max_seq_length=32), Pooling(64, "max")], device="cpu")
    other.save(str(tmp_path / "other"))
    fits = ["--chunk_tokens", "20", "--index_dir", index]
    for embedder, flags, message in (
        (str(tmp_path / "other"), fits, "whose vectors are not those of"),
        (tiny_embedder, ["--chunk_tokens", "16", "--index_dir", index], "chunk_tokens 20, not 16"),
        (tiny_embedder, [*fits, "--metric", "l2"], "metric cosine, not l2"),
        (tiny_embedder, [*fits, "--index", "hnsw"], "index flat, not hnsw"),
        (tiny_embedder, [*fits, "--passage_prompt", "passage"], "passage_prompt None, not passage"),
        (tiny_embedder, [*fits, "--nlist", "4"], "nlist by default, not 4"),
    ):
        with pytest.raises(utils.UserError, match=message):
            retriever_of(embedder, *flags)
    assert len(retriever_of(tiny_embedder, *fits, "--mmap").index) == 60


@pytest.mark.parametrize("flags", [("dense",), ("bm25",), ("hybrid",), ("dense", "--chunk_tokens", "8")])
def test_a_document_that_must_not_be_found_makes_room_for_the_next(flags, tiny_embedder):
    retriever = filled(tiny_embedder, "--retriever", *flags)
    asked = sentences(60)[:3]
    everything, rest = retriever.search(asked, 30), retriever.search(asked, 5, ["d0", None, "d2"])
    assert {hit.chunk.document for hit in rest[0]}.isdisjoint({"d0"}) and rest[1][0].chunk.document == "d1"
    for before, after, own in zip(everything, rest, ("d0", None, "d2")):
        if "hybrid" not in flags:  # whose scores are ranks
            kept = [hit.score for hit in before if hit.chunk.document != own]
            assert [hit.score for hit in after] == pytest.approx(kept[:5], abs=1e-6)
        assert len(after) == 5


def test_a_home_folder_is_written_out(tiny_embedder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    filled(tiny_embedder, "--index_dir", "~/index")
    assert (tmp_path / "index/meta.json").exists() and not (tmp_path / "~").exists()
    with pytest.raises(utils.UserError, match="no such home folder"):
        retriever_of(tiny_embedder, "--index_dir", "~nobody_is_called_so/index")
