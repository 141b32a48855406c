import pytest
from helpers import write_jsonl
from retrieval_helpers import SCIFACT

import utils
from harness.data.examples import Example
from harness.retrieval import qrels
from harness.retrieval.documents import Skipped


@pytest.mark.real
@pytest.mark.skipif(not SCIFACT.is_dir(), reason="no shared data here")
def test_scifact_is_read_whole():
    documents, queries, judgements = qrels.load_beir(SCIFACT)
    assert (len(documents), len(queries), sum(map(len, judgements.values()))) == (5183, 300, 339)


def beir(folder, documents, queries, judged):
    (folder / "qrels").mkdir(parents=True)
    write_jsonl(folder / "corpus.jsonl", [{"_id": id, "title": "", "text": f"text {id}"} for id in documents])
    write_jsonl(folder / "queries.jsonl", [{"_id": id, "text": "which ?"} for id in queries])
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"{line}\n" for line in judged))
    return folder


@pytest.mark.parametrize("documents, queries", [(["1", "2"], ["7"]), ([1, 2], [7]), ([1.0, 2.0], [7.0])])
@pytest.mark.parametrize(
    "judged", [["7\t1\t1", "7\t2\t2"], ["7\t1\t1.0", "7\t2\t2.00"], ["7.0\t1.0\t1e0", "7\t2.0\t2"]]
)
def test_numbers_are_the_same_ids_and_grades_however_they_are_written(documents, queries, judged, tmp_path):
    found, asked, judgements = qrels.load_beir(beir(tmp_path / "b", documents, queries, judged))
    assert [doc.id for doc in found] == ["1", "2"] and asked == {"7": "which ?"}
    assert judgements == {"7": {"1": 1, "2": 2}}


def test_grades_that_are_no_numbers_and_lost_documents_are_told(tmp_path):
    skipped = Skipped()
    qrels.load_beir(beir(tmp_path / "a", ["1"], ["7"], ["7\t1\t0.5", "7\t9\t1", "7\t8\t-1"]), skipped=skipped)
    assert "1 judged documents are not in the corpus" in skipped.summary() and not len(skipped)
    with pytest.raises(utils.UserError, match="'high' is no grade"):
        qrels.load_beir(beir(tmp_path / "b", ["1"], ["7"], ["7\t1\thigh"]))
    with pytest.raises(utils.UserError, match="none of the judged documents"):
        qrels.load_beir(beir(tmp_path / "c", ["1"], ["7"], ["7\td1\t1"]))
    with pytest.raises(utils.UserError, match="'inf' is no grade"):
        qrels.load_beir(beir(tmp_path / "e", ["1"], ["7"], ["7\t1\tinf"]))
    with pytest.raises(utils.UserError, match="id is a list"):
        qrels.load_beir(beir(tmp_path / "d", ["1"], [["7"]], ["7\t1\t1"]))


def test_a_query_is_not_its_own_document_unless_it_was_judged_so():
    examples = [Example("a", "one"), Example("b", "two"), Example("c", "three")]
    assert qrels.own_documents(examples, {"a": {"x": 1}, "b": {"b": 1}, "c": {"x": 1}}, {"a", "b", "x"}) == [
        "a",
        None,
        None,
    ]


def test_judgements_of_trec_are_read(tmp_path):
    folder = beir(tmp_path / "a", ["1"], ["7"], [])
    (folder / "qrels/test.tsv").write_text("7\t0\t1\t2\n")
    assert qrels.load_beir(folder)[2] == {"7": {"1": 2}}
    (folder / "queries.jsonl").write_text('{"_id": "7", "text": ["a", "list"]}\n')
    with pytest.raises(utils.UserError, match="of which 1 have no text in queries.jsonl"):
        qrels.load_beir(folder)
    (folder / "qrels/test.tsv").write_text("7\t1\tnan\n7\t1\t1\n")  # the first line is no header
    with pytest.raises(utils.UserError, match="'nan' is no grade"):
        qrels.load_beir(folder)
    (folder / "qrels/test.tsv").write_text("7 1 2\n")
    with pytest.raises(utils.UserError, match="with tabs between them are wanted"):
        qrels.load_beir(folder)
