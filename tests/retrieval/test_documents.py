import random
from pathlib import Path

import pandas as pd
import pytest
from helpers import THINGS, write_jsonl
from retrieval_helpers import retriever_of

import utils
from harness.retrieval.documents import Document, Skipped, distinct, read_documents, split_into_chunks

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
    (folder / "rows.csv").write_text("id,title,text\n1,One,the awful scene\n2,Two,\n")
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
        "empty": ["empty.txt", "rows.csv#2"],
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


@pytest.mark.parametrize("overlap", [0, 4])
def test_chunks_end_with_sentences_keep_to_their_size_and_lose_nothing(tiny_bert, overlap):
    tokenizer, rng = utils.load_tokenizer(tiny_bert), random.Random(0)
    text = ""
    for i in range(60):
        text += " ".join(rng.choices(THINGS, k=rng.randint(2, 9))) + rng.choice(".?!") + ("\n\n" if i % 7 == 6 else " ")
    chunks = split_into_chunks([Document("d", "the score", text, "file")], tokenizer, 20, overlap)
    counts = [len(tokenizer(chunk.full, add_special_tokens=False).input_ids) for chunk in chunks]
    assert max(counts) <= 20 and min(counts[:-1]) >= 10 and len(chunks) > 20
    assert all(text[c.position : c.position + len(c.text)] == c.text and c.source == "file" for c in chunks)
    assert all(c.text[-1] in ".?!" for c in chunks), (
        "with sentences of ten tokens at most there is an end in each second half"
    )
    covered = {i for c in chunks for i in range(c.position, c.position + len(c.text))}
    assert all(ch.isspace() for i, ch in enumerate(text) if i not in covered)
    shared = [
        len(tokenizer(text[b.position : a.position + len(a.text)], add_special_tokens=False).input_ids)
        for a, b in zip(chunks, chunks[1:])
    ]
    assert max(shared) <= overlap and (sum(n > 0 for n in shared) > 5) == bool(overlap)


def test_text_without_an_end_is_cut_between_words(tiny_bert):
    tokenizer = utils.load_tokenizer(tiny_bert)
    text = "the good film was dull and very fine " * 8
    chunks = split_into_chunks([Document("d", "", text)], tokenizer, 10, 2)
    words = text.split()
    starts = [len(text[: chunk.position].split()) for chunk in chunks]
    assert starts == list(range(0, 8 * len(chunks), 8))  # ten words, two of them shared
    assert all(chunk.text.split() == words[start : start + 10] for chunk, start in zip(chunks, starts))
    whole = split_into_chunks([Document("d", "film", text)], tokenizer, None, 3)
    assert len(whole) == 1 and whole[0].full == f"film {text.strip()}"
    long_title = split_into_chunks([Document("d", "good " * 30, text)], tokenizer, 10, 2)
    assert all(len(tokenizer(chunk.full, add_special_tokens=False).input_ids) <= 10 for chunk in long_title)


def test_tokens_that_begin_with_a_space_end_chunks_at_sentences(tiny_llama):
    tokenizer, text = (
        utils.load_tokenizer(tiny_llama),
        "the good film was fine . the dull plot is poor . a great cast , a weak joke . " * 4,
    )
    chunks = split_into_chunks([Document("d", "", text)], tokenizer, 24, 0)
    assert len(chunks) > 4 and all(chunk.text.endswith(".") for chunk in chunks)
    assert all(text[c.position : c.position + len(c.text)] == c.text for c in chunks)


def test_scripts_without_spaces_are_chunked_too(tiny_bert):
    tokenizer = utils.load_tokenizer(tiny_bert)
    text = "film?good!" * 30
    chunks = split_into_chunks([Document("d", "", text)], tokenizer, 8, 2)
    assert chunks[0].position == 0 and chunks[-1].position + len(chunks[-1].text) == len(text)
    assert all(b.position <= a.position + len(a.text) for a, b in zip(chunks, chunks[1:]))
