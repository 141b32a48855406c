import os
from pathlib import Path

import pandas as pd
import pytest
from helpers import write_jsonl
from retrieval_helpers import retriever_of

import utils
from harness.retrieval import files
from harness.retrieval.documents import Skipped, distinct, read_documents

PDF = b"""%PDF-1.4
1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj
2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj
3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 300]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>endobj
4 0 obj<</Length 60>>stream
BT /F1 12 Tf 20 200 Td (the lovely ending was in rome) Tj ET
endstream endobj
5 0 obj<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>endobj
trailer<</Root 1 0 R>>
startxref
0
%%EOF
"""


@pytest.fixture
def mixed(tmp_path):
    """A folder as people have them."""
    folder = tmp_path / "mixed"
    (folder / "deep/.hidden").mkdir(parents=True)
    (folder / "a.txt").write_text("the good film is in paris .")
    (folder / "b.txt").write_text("the  good film\nis in paris .")
    (folder / "deep/c.md").write_text("# the dull plot\n\nis in rome .")
    (folder / "deep/.hidden/secret.txt").write_text("never read")
    (folder / "empty.txt").write_text("  \n")
    (folder / "binary.txt").write_bytes(b"\x7fELF\0\1\2\0")
    (folder / "latin.txt").write_bytes("caf\xe9 au lait".encode("latin-1"))
    (folder / "windows.txt").write_bytes("the superb score is in paris .".encode("utf-16"))
    (folder / "large.txt").write_text("the weak cast " * 100_000)
    (folder / "page.html").write_text(
        "<html><head><title>The joke</title><style>p{}</style></head><body><script>var x</script>"
        "<p>the poor joke</p><p>is in <b>rome</b> .</p></body></html>"
    )
    (folder / "paper.pdf").write_bytes(PDF)
    (folder / "broken.pdf").write_bytes(PDF[:60])
    (folder / "rows.csv").write_text("id,title,text\n1,One,the awful scene\n2,Two,\n3,,\n")
    (folder / "labels.csv").write_text("text2,label\nx,1\n")
    write_jsonl(folder / "more.jsonl", [{"_id": "1", "text": "another one with the same id"}])
    pd.DataFrame({"text": ["the fine story"]}).to_parquet(folder / "t.parquet")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


def test_a_mixed_folder_is_read_and_what_is_left_out_is_told(mixed):
    skipped = Skipped()
    found = distinct(read_documents([mixed], skipped, max_file_mb=1), skipped)
    by_name = {Path(doc.source).name: doc for doc in found}
    assert set(by_name) == {
        "a.txt",
        "c.md",
        "windows.txt",
        "page.html",
        "paper.pdf",
        "rows.csv",
        "more.jsonl",
        "t.parquet",
    }
    assert by_name["page.html"].title == "The joke" and by_name["page.html"].text == "the poor joke\n\nis in rome ."
    assert "lovely ending was in rome" in by_name["paper.pdf"].text
    assert by_name["windows.txt"].text == "the superb score is in paris ."
    ids = [doc.id for doc in found]
    assert len(set(ids)) == len(ids) and by_name["t.parquet"].id == f"{mixed}/t.parquet#0"
    reasons = {reason: sorted(Path(what).name for what in names) for reason, names in skipped.reasons.items()}
    assert reasons == {
        "empty": ["empty.txt", "rows.csv#3"],
        "binary": ["binary.txt"],
        "not UTF-8, see --encoding": ["latin.txt"],
        "above --max_file_mb 1": ["large.txt"],
        "of an unknown type .png": ["picture.png"],
        "the same as another": ["b.txt"],
        "table without texts in a column text, see --text_column (seen: text2, label)": ["labels.csv"],
        next(r for r in reasons if r.startswith("PDF")): ["broken.pdf"],
    }
    assert skipped.summary().startswith(f"skipped {len(skipped)}: ") and len(skipped) == 9


def test_places_are_files_folders_and_globs(mixed):
    assert [doc.text for doc in read_documents([str(mixed / "[ab].txt")])][0] == "the good film is in paris ."
    assert len(read_documents([mixed / "a.txt", mixed / "a.txt", mixed / "deep"])) == 2
    both = read_documents([mixed / "latin.txt", mixed / "a.txt"], encoding="latin-1")
    assert [doc.text for doc in both] == ["caf\xe9 au lait", "the good film is in paris ."]
    assert read_documents([mixed / "labels.csv"], text_column="text2")[0].text == "x"
    assert (
        read_documents([mixed / "deep/../a.txt"])[0].id
        == read_documents([mixed / "a.txt"])[0].id
        == str(mixed / "a.txt")
    )
    with pytest.raises(utils.UserError, match="nowhere: no such file or folder"):
        read_documents([mixed / "nowhere"])
    for name in ("nowhere", "x" * 5000, "a\0b"):
        with pytest.raises(utils.UserError, match="no such file or folder"):
            read_documents([name])
    with pytest.raises(utils.UserError, match="no document with text; skipped 1: 1 binary"):
        read_documents([mixed / "binary.txt"])


def test_rows_of_tables_are_documents_of_their_own(tmp_path, tiny_embedder):
    for name, texts in (("cats", ["one cat", "two cats"]), ("dogs", ["one dog", "two dogs"])):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "t.jsonl", [{"id": i, "text": text} for i, text in enumerate(texts)])
    write_jsonl(
        tmp_path / "same.jsonl",
        [{"_id": "9", "text": text} for text in ("a fish", "two fish", "three fish")] + [{"_id": "8", "text": None}],
    )
    (tmp_path / "odd.jsonl").write_text('{"text": "bad \\ud83d"}\n')
    retriever = retriever_of(tiny_embedder)
    for place, n in (("cats", 2), ("dogs", 4), ("same.jsonl", 7), ("same.jsonl", 7), ("odd.jsonl", 8), ("cats", 8)):
        retriever.add(read_documents([tmp_path / place]))
        assert len(retriever.index.documents) == n
    assert len(set(retriever.index.table["text"].to_pylist())) == 8
    assert [doc.id for doc in read_documents([tmp_path / "cats/t.jsonl"], bare_ids=True)] == ["0", "1"]


def test_a_title_alone_is_a_document(tmp_path):
    rows = [{"_id": 1, "title": "the lovely film", "text": ""}, {"_id": 2, "title": "a joke", "text": None}]
    write_jsonl(tmp_path / "corpus.jsonl", [*rows, {"_id": 3, "title": ["a", "list"], "text": ""}])
    skipped = Skipped()
    found = read_documents([tmp_path / "corpus.jsonl"], skipped, bare_ids=True)
    assert [(doc.id, doc.title, doc.text) for doc in found] == [("1", "", "the lovely film"), ("2", "", "a joke")]
    assert dict(skipped.reasons) == {"empty": ["3"]}


def test_ids_that_are_lists_are_told_and_missing_ones_are_numbers(tmp_path):
    rows = [{"_id": [1], "text": "a"}, {"_id": None, "id": 7.0, "text": "b"}, {"_id": float("nan"), "text": "c"}]
    write_jsonl(tmp_path / "t.jsonl", rows)
    skipped = Skipped()
    assert [doc.id for doc in read_documents([tmp_path / "t.jsonl"], skipped, bare_ids=True)] == ["7", "2"]
    assert "row whose id is a list" in skipped.summary()


def test_rows_of_one_id_have_names_of_their_own(tmp_path):
    ids = ["x", "x", "x~2", "y", "x", "x~2"]
    write_jsonl(tmp_path / "t.jsonl", [{"_id": id, "text": f"text {i}"} for i, id in enumerate(ids)])
    found = [doc.id for doc in read_documents([tmp_path / "t.jsonl"], bare_ids=True)]
    assert found == ["x", "x~2", "x~2~2", "y", "x~3", "x~2~3"]


def test_what_is_no_regular_file_is_never_opened(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.txt").write_text("the good film")
    os.mkfifo(tmp_path / "docs/pipe.txt")
    skipped = Skipped()
    assert len(read_documents([tmp_path / "docs"], skipped)) == 1
    assert skipped.reasons == {"no regular file": [str(tmp_path / "docs/pipe.txt")]}
    with pytest.raises(utils.UserError, match="a pipe or a device"):
        read_documents([tmp_path / "docs/pipe.txt"])
    assert not files.is_beir("x" * 5000)


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    for name in ("open", "shut"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(f"the {name} film")
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)  # for root no folder is shut
    skipped = Skipped()
    assert [doc.text for doc in read_documents([tmp_path], skipped)] == ["the open film"]
    assert skipped.summary() == f"skipped 1: 1 folder that cannot be read (Permission denied) ({tmp_path}/shut)"


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_the_encoding_is_that_of_tables_too(encoding, tmp_path):
    (tmp_path / "t.csv").write_bytes("id,title,text\n1,Café,au lait\n".encode(encoding))
    assert read_documents([tmp_path / "t.csv"], encoding=encoding)[0].title == "Café"
    with pytest.raises(utils.UserError, match="--encoding"):
        read_documents([tmp_path / "t.csv"])
