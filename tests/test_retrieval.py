"""Documents, chunks, the index and its folder, ranking, and what rag_eval.py measures of them."""

import io
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import GOOD, ROOT, THINGS, write_jsonl

import documents as docs
import metrics
import rag_eval
import retrieval
import tasks
import utils

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


def arguments(embedder, *flags):
    return rag_eval.parse_args(["--embed_model", embedder, *flags])


def retriever_of(embedder, *flags):
    return retrieval.Retriever(arguments(embedder, *flags), "cpu")


def predictions(row):
    return [json.loads(line) for line in (Path(row["run_dir"]) / "predictions.jsonl").read_text().splitlines()]


def sentences(n, seed=0):
    rng = random.Random(seed)
    return [f"the {rng.choice(GOOD)} {rng.choice(THINGS)} number{i} was {rng.choice(GOOD)} ." for i in range(n)]


# --------------------------------------------------------------------------------------------------------------- documents


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
    (folder / "page.html").write_text("<html><head><title>The joke</title><style>p{}</style></head><body><script>var x</script>"
                                      "<p>the poor joke</p><p>is in <b>rome</b> .</p></body></html>")  # fmt: skip
    (folder / "paper.pdf").write_bytes(PDF)
    (folder / "broken.pdf").write_bytes(PDF[:60])
    (folder / "rows.csv").write_text("id,title,text\n1,One,the awful scene\n2,Two,\n")
    (folder / "labels.csv").write_text("text2,label\nx,1\n")
    write_jsonl(folder / "more.jsonl", [{"_id": "1", "text": "another one with the same id"}])
    pd.DataFrame({"text": ["the fine story"]}).to_parquet(folder / "t.parquet")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


def test_a_mixed_folder_is_read_and_what_is_left_out_is_told(mixed):
    skipped = docs.Skipped()
    found = docs.distinct(docs.read_documents([mixed], skipped, max_file_mb=1), skipped)
    by_name = {Path(doc.source).name: doc for doc in found}
    assert set(by_name) == {"a.txt", "c.md", "windows.txt", "page.html", "paper.pdf", "rows.csv", "more.jsonl", "t.parquet"}
    assert by_name["page.html"].title == "The joke" and by_name["page.html"].text == "the poor joke\n\nis in rome ."
    assert "lovely ending was in rome" in by_name["paper.pdf"].text
    assert by_name["windows.txt"].text == "the superb score is in paris ."
    ids = [doc.id for doc in found]
    assert len(set(ids)) == len(ids) and by_name["t.parquet"].id == f"{mixed}/t.parquet#0"
    reasons = {reason: sorted(Path(what).name for what in names) for reason, names in skipped.reasons.items()}
    assert reasons == {
        "empty": ["empty.txt", "rows.csv#2"], "binary": ["binary.txt"], "not UTF-8, see --encoding": ["latin.txt"],
        "above --max_file_mb 1": ["large.txt"], "of an unknown type .png": ["picture.png"], "the same as another": ["b.txt"],
        "table without texts in a column text, see --text_column (seen: text2, label)": ["labels.csv"],
        next(r for r in reasons if r.startswith("PDF")): ["broken.pdf"],
    }  # fmt: skip
    assert skipped.summary().startswith(f"skipped {len(skipped)}: ") and len(skipped) == 9


def test_places_are_files_folders_and_globs(mixed):
    assert [doc.text for doc in docs.read_documents([str(mixed / "[ab].txt")])][0] == "the good film is in paris ."
    assert len(docs.read_documents([mixed / "a.txt", mixed / "a.txt", mixed / "deep"])) == 2
    both = docs.read_documents([mixed / "latin.txt", mixed / "a.txt"], encoding="latin-1")
    assert [doc.text for doc in both] == ["caf\xe9 au lait", "the good film is in paris ."]
    assert docs.read_documents([mixed / "labels.csv"], text_column="text2")[0].text == "x"
    assert docs.read_documents([mixed / "deep/../a.txt"])[0].id == docs.read_documents([mixed / "a.txt"])[0].id == str(mixed / "a.txt")
    with pytest.raises(tasks.DataError, match="nowhere: no such file or folder"):
        docs.read_documents([mixed / "nowhere"])
    for name in ("nowhere", "x" * 5000, "a\0b"):
        with pytest.raises(tasks.DataError, match="no such file or folder"):
            docs.read_documents([name])
    with pytest.raises(tasks.DataError, match="no document with text; skipped 1: 1 binary"):
        docs.read_documents([mixed / "binary.txt"])


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
        retriever.add(docs.read_documents([tmp_path / place]))
        assert len(retriever.index.documents) == n
    assert len(set(retriever.index.table["text"].to_pylist())) == 8
    assert [doc.id for doc in docs.read_documents([tmp_path / "cats/t.jsonl"], bare_ids=True)] == ["0", "1"]


@pytest.mark.parametrize("overlap", [0, 4])
def test_chunks_end_with_sentences_keep_to_their_size_and_lose_nothing(tiny_bert, overlap):
    tokenizer, rng = utils.load_tokenizer(tiny_bert), random.Random(0)
    text = ""
    for i in range(60):
        text += " ".join(rng.choices(THINGS, k=rng.randint(2, 9))) + rng.choice(".?!") + ("\n\n" if i % 7 == 6 else " ")
    chunks = docs.split_into_chunks([docs.Document("d", "the score", text, "file")], tokenizer, 20, overlap)
    counts = [len(tokenizer(chunk.full, add_special_tokens=False).input_ids) for chunk in chunks]
    assert max(counts) <= 20 and min(counts[:-1]) >= 10 and len(chunks) > 20
    assert all(text[c.position : c.position + len(c.text)] == c.text and c.source == "file" for c in chunks)
    assert all(c.text[-1] in ".?!" for c in chunks), "with sentences of ten tokens at most there is an end in each second half"
    covered = {i for c in chunks for i in range(c.position, c.position + len(c.text))}
    assert all(ch.isspace() for i, ch in enumerate(text) if i not in covered)
    shared = [len(tokenizer(text[b.position : a.position + len(a.text)], add_special_tokens=False).input_ids)
              for a, b in zip(chunks, chunks[1:])]  # fmt: skip
    assert max(shared) <= overlap and (sum(n > 0 for n in shared) > 5) == bool(overlap)


def test_text_without_an_end_is_cut_between_words(tiny_bert):
    tokenizer = utils.load_tokenizer(tiny_bert)
    text = "the good film was dull and very fine " * 8
    chunks = docs.split_into_chunks([docs.Document("d", "", text)], tokenizer, 10, 2)
    words = text.split()
    starts = [len(text[: chunk.position].split()) for chunk in chunks]
    assert starts == list(range(0, 8 * len(chunks), 8))  # ten words, two of them shared
    assert all(chunk.text.split() == words[start : start + 10] for chunk, start in zip(chunks, starts))
    whole = docs.split_into_chunks([docs.Document("d", "film", text)], tokenizer, None, 3)
    assert len(whole) == 1 and whole[0].full == f"film {text.strip()}"
    long_title = docs.split_into_chunks([docs.Document("d", "good " * 30, text)], tokenizer, 10, 2)
    assert all(len(tokenizer(chunk.full, add_special_tokens=False).input_ids) <= 10 for chunk in long_title)


def test_tokens_that_begin_with_a_space_end_chunks_at_sentences(tiny_llama):
    tokenizer, text = utils.load_tokenizer(tiny_llama), "the good film was fine . the dull plot is poor . a great cast , a weak joke . " * 4
    chunks = docs.split_into_chunks([docs.Document("d", "", text)], tokenizer, 24, 0)
    assert len(chunks) > 4 and all(chunk.text.endswith(".") for chunk in chunks)
    assert all(text[c.position : c.position + len(c.text)] == c.text for c in chunks)


def test_scripts_without_spaces_are_chunked_too(tiny_bert):
    tokenizer = utils.load_tokenizer(tiny_bert)
    text = "film?good!" * 30
    chunks = docs.split_into_chunks([docs.Document("d", "", text)], tokenizer, 8, 2)
    assert chunks[0].position == 0 and chunks[-1].position + len(chunks[-1].text) == len(text)
    assert all(b.position <= a.position + len(a.text) for a, b in zip(chunks, chunks[1:]))


# --------------------------------------------------------------------------------------------------------------- the index


def clustered(n, dimension=32, seed=0, metric="cosine"):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(20, dimension))
    vectors = (centres[rng.integers(0, 20, n)] + 0.5 * rng.normal(size=(n, dimension))).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if metric == "cosine" else vectors


def add(index, names, vectors):
    index.add([docs.Chunk(name, 0, f"text of {name}") for name in names], [f"digest {name}" for name in names], vectors)


def found_by(index, queries, k=10):
    rows, scores = index.search(queries, k)
    return [[index.chunk(int(row)).document for row in some] for some in rows], scores


# parameters at which approximate kinds find what exact search finds, so that results can be compared
EXACT = {
    "flat": {},
    "ivf": {"nlist": 10, "nprobe": 10},
    "hnsw": {"ef_search": 500},
    "ivfpq": {"nlist": 5, "nprobe": 5, "pq_m": 16},
    "sq8": {},
}


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("kind", retrieval.KINDS)
def test_an_index_closed_and_opened_again_finds_the_same(kind, metric, tmp_path):
    index = retrieval.Index(32, kind, metric, EXACT[kind])
    vectors, queries = clustered(700, metric=metric), clustered(30, seed=1, metric=metric)
    add(index, [f"d{i}" for i in range(700)], vectors)
    index.save(tmp_path / "index", {"embedder": "e"})
    before = found_by(index, queries)
    exact = index.search(queries, 10, exact=True)
    value = queries @ vectors.T if metric == "cosine" else -((queries[:, None] - vectors) ** 2).sum(-1)
    assert np.allclose(exact[1], -np.sort(-value, axis=1)[:, :10], atol=1e-3)
    assert [[f"d{r}" for r in rows] for rows in np.argsort(-value, axis=1)[:, :10]] == [[index.chunk(int(r)).document for r in rows]
                                                                                    for rows in exact[0]]  # fmt: skip
    assert {path.name for path in (tmp_path / "index").iterdir()} - {"lock", "vectors.npy"} == {
        "index.faiss",
        "chunks.parquet",
        "meta.json",
    }
    for mmap in (False, True):
        other, made_with = retrieval.open_index(tmp_path / "index", mmap)
        again = found_by(other, queries)
        assert again[0] == before[0] and np.array_equal(again[1], before[1]) and made_with == {"embedder": "e"}
        assert other.recall(queries) == index.recall(queries) > (0.6 if kind == "ivfpq" else 0.95)
        assert np.allclose(other.vectors_of([3, 650]), vectors[[3, 650]], atol=1e-6)
    with pytest.raises(utils.UserError, match="cannot be changed"):
        other.remove(["d1"])
    assert other.gb() == pytest.approx((tmp_path / "index/index.faiss").stat().st_size / utils.GB, rel=0.01)


@pytest.mark.parametrize("kind", retrieval.KINDS)
def test_added_deleted_and_updated_is_as_built_anew(kind, tmp_path):
    """Of four hundred documents, a hundred more, fifty fewer, ten with another vector; closed and opened in between."""
    old, new, changed, queries = clustered(400), clustered(100, seed=1), clustered(10, seed=2), clustered(40, seed=3)
    index = retrieval.Index(32, kind, "cosine", EXACT[kind])
    add(index, [f"d{i}" for i in range(400)], old)
    index.save(tmp_path, {})
    index, _ = retrieval.open_index(tmp_path)
    add(index, [f"n{i}" for i in range(100)], new)
    index.save(tmp_path, {})
    index, _ = retrieval.open_index(tmp_path)
    assert index.remove([f"d{i}" for i in range(0, 100, 2)]) == 50
    assert index.remove([f"d{i}" for i in range(101, 111)]) == 10
    add(index, [f"d{i}" for i in range(101, 111)], changed)
    index.save(tmp_path, {})
    index, _ = retrieval.open_index(tmp_path)
    fresh = retrieval.Index(32, kind, "cosine", EXACT[kind])
    kept = [i for i in range(400) if not (i < 100 and i % 2 == 0) and not 101 <= i < 111]
    names = [f"d{i}" for i in kept] + [f"n{i}" for i in range(100)] + [f"d{i}" for i in range(101, 111)]
    vectors = np.concatenate([old[kept], new, changed])
    add(fresh, names, vectors)
    assert len(index) == len(fresh) == 450 and set(index.documents) == set(names)
    assert np.allclose(index.vectors_of(range(450)), vectors, atol=1e-6)
    got, wanted = found_by(index, queries), found_by(fresh, queries)
    exact = (found[1] for found in (index.search(queries, 10, exact=True), fresh.search(queries, 10, exact=True)))
    assert np.allclose(*exact, atol=1e-6)
    if kind in retrieval.LOSSY:  # its codes depend on the vectors that it was trained on, so that neighbours may change places
        assert np.mean([len(set(a) & set(b)) for a, b in zip(got[0], wanted[0])]) > {"sq8": 9.5, "ivfpq": 6}[kind]
    else:
        assert got[0] == wanted[0] and np.allclose(got[1], wanted[1], atol=1e-6)


KILLED = """
import sys, numpy as np
sys.path.insert(0, {root!r})
import documents, retrieval
index, _ = retrieval.open_index({folder!r})
print("open", flush=True)
n = len(index) // 50
while True:
    chunks = [documents.Chunk(f"b{{n}}-{{i}}", 0, "text") for i in range(50)]
    index.add(chunks, ["digest"] * 50, np.random.default_rng(n).normal(size=(50, 32)).astype(np.float32))
    print("saving", flush=True)
    index.save({folder!r}, {{}})
    n += 1
    print(n, flush=True)
"""


@pytest.mark.parametrize("kind", ["flat", "sq8"])
def test_killed_at_random_moments_it_opens_as_last_saved(kind, tmp_path):
    def block(n):
        return np.random.default_rng(n).normal(size=(50, 32)).astype(np.float32)

    index = retrieval.Index(32, kind, "l2")
    add(index, [f"b0-{i}" for i in range(50)], block(0))
    index.save(tmp_path, {})
    begin = time.perf_counter()
    index.save(tmp_path, {})
    typical = time.perf_counter() - begin  # seconds of a save
    program, rng, saved, leftovers = KILLED.format(root=str(ROOT), folder=str(tmp_path)), random.Random(0), 1, 0
    for _ in range(10):
        child = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        said = []
        wanted = rng.randint(1, 3)
        while said.count("saving") < wanted:
            said.append(child.stdout.readline().strip())
            assert said[-1], "the child ended by itself"
        time.sleep(rng.uniform(0, 1.5 * typical))
        child.kill()
        numbers = [int(word) for word in [*said, *child.stdout.read().split()] if word.isdigit()]
        child.wait()
        leftovers += any(tmp_path.glob("*.new"))
        index, _ = retrieval.open_index(tmp_path)
        blocks = len(index) // 50
        assert len(index) % 50 == 0 and blocks - (numbers or [saved])[-1] in (0, 1), "what was said to be saved is there"
        saved = blocks
        assert list(index.documents) == [f"b{n}-{i}" for n in range(blocks) for i in range(50)]
        wanted = np.concatenate([block(n) for n in range(blocks)])
        assert np.array_equal(index.search(wanted[::25], 1, exact=True)[0][:, 0], np.arange(len(wanted))[::25])
        assert not any(tmp_path.glob("*.new"))
    assert saved > 5 and leftovers, "it was killed while it was saving, too"


@pytest.mark.parametrize("kind", retrieval.KINDS)
def test_an_interrupted_add_leaves_the_index_as_it_was(kind, tmp_path, monkeypatch):
    index = retrieval.Index(32, kind, options=EXACT[kind])
    add(index, [f"d{i}" for i in range(600)], clustered(600))
    before = found_by(index, clustered(20, seed=1))
    monkeypatch.setattr(retrieval.Index, "_keep", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    real, name = index.faiss, "add_with_ids" if kind in retrieval.CLUSTERED else "add"
    if kind not in retrieval.LOSSY:  # after faiss has the vectors, as a key pressed during a long add
        method = getattr(real, name)

        def interrupted(*args):
            method(*args)
            raise KeyboardInterrupt

        monkeypatch.setattr(real, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        add(index, [f"n{i}" for i in range(50)], clustered(50, seed=2))
    monkeypatch.undo()
    assert len(index) == index.faiss.ntotal == 600
    again = found_by(index, clustered(20, seed=1))
    assert again[0] == before[0] and np.allclose(again[1], before[1], atol=1e-6)
    index.save(tmp_path, {})
    assert len(retrieval.open_index(tmp_path)[0]) == 600


def test_a_save_that_was_decided_is_finished(tmp_path):
    """The moment after meta.json took its place, before the other files did."""
    index = retrieval.Index(32, "flat")
    add(index, ["a"], clustered(1))
    index.save(tmp_path, {})
    before = {name: (tmp_path / name).read_bytes() for name in ("index.faiss", "chunks.parquet", "meta.json")}
    add(index, ["b"], clustered(1, seed=1))
    index.save(tmp_path, {})
    for name in ("index.faiss", "chunks.parquet"):
        os.replace(tmp_path / name, tmp_path / f"{name}.new")
        (tmp_path / name).write_bytes(before[name])
    assert set(retrieval.open_index(tmp_path)[0].documents) == {"a", "b"}
    for name in ("index.faiss", "chunks.parquet"):  # and the moment before: the old state
        os.replace(tmp_path / name, tmp_path / f"{name}.new")
        (tmp_path / name).write_bytes(before[name])
    (tmp_path / "meta.json").write_bytes(before["meta.json"])
    assert set(retrieval.open_index(tmp_path)[0].documents) == {"a"} and not list(tmp_path.glob("*.new"))


def test_folders_that_are_no_index_or_damaged_are_refused(tmp_path):
    assert retrieval.open_index(tmp_path / "nowhere") is None
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    index = retrieval.Index(32, "flat")
    add(index, ["a", "b"], clustered(2))
    for attempt in (lambda: retrieval.open_index(tmp_path / "mine"), lambda: index.save(tmp_path / "mine", {})):
        with pytest.raises(utils.UserError, match="holds other files"):
            attempt()
    assert (tmp_path / "mine/thesis.txt").read_text() == "precious"
    index.save(tmp_path / "index", {})
    mine, theirs = retrieval.open_index(tmp_path / "index")[0], retrieval.open_index(tmp_path / "index")[0]
    add(theirs, ["c"], clustered(1, seed=1))
    theirs.save(tmp_path / "index", {})
    add(mine, ["d"], clustered(1, seed=2))
    with pytest.raises(utils.UserError, match="another process saved it"):
        mine.save(tmp_path / "index", {})
    assert set(retrieval.open_index(tmp_path / "index")[0].documents) == {"a", "b", "c"}
    for name, change in (
        ("chunks.parquet", lambda b: b[:-9] + b"x" * 9),
        ("index.faiss", lambda b: b[:-4]),
        ("meta.json", lambda b: b"{}"),
    ):
        good = (tmp_path / "index" / name).read_bytes()
        (tmp_path / "index" / name).write_bytes(change(good))
        with pytest.raises(utils.UserError, match=name):
            retrieval.open_index(tmp_path / "index")
        (tmp_path / "index" / name).write_bytes(good)
    retrieval.open_index(tmp_path / "index")


def test_an_index_of_other_documents_is_not_measured_as_if_it_were_these(questions, tiny_embedder, tmp_path, out, only_row, capsys):
    """Its passages are d0, d1, .. too, which must not count as found."""
    index = str(tmp_path / "index")
    filled(tiny_embedder, "--index_dir", index)
    flags = ["--embed_model", tiny_embedder, "--dataset", questions, "--index_dir", index, "--retrieval_only", *out]
    with pytest.raises(SystemExit):
        rag_eval.main(flags)
    assert "no question has a passage" in capsys.readouterr().err
    whole, beir = str(tmp_path / "whole"), beir_folder(tmp_path / "beir", seed=5)
    filled(tiny_embedder, "--index_dir", whole, "--whole_documents").add([docs.Document("other", "", "the good film")])
    with pytest.raises(SystemExit):
        rag_eval.main(["--embed_model", tiny_embedder, "--dataset", beir, "--index_dir", whole, *out])
    assert "documents that are not of" in capsys.readouterr().err
    few = str(tmp_path / "few")  # fewer than the data set's, under the same names: not to be written over
    retriever_of(tiny_embedder, "--index_dir", few).add([docs.Document(f"d{i}", "", text) for i, text in enumerate(sentences(5))])
    with pytest.raises(SystemExit):
        rag_eval.main([*flags[:4], "--index_dir", few, "--retrieval_only", *out])
    assert sorted(retrieval.open_index(few)[0].table["text"].to_pylist()) == sorted(sentences(5))
    again = retriever_of(tiny_embedder, "--index_dir", few)
    again.remove([f"d{i}" for i in range(5)])
    again = retriever_of(tiny_embedder, "--index_dir", few)
    again.add([docs.Document("new", "", "the good film")])  # an index that became empty is still this index
    assert list(retrieval.open_index(few)[0].documents) == ["new"]
    rag_eval.main([*flags[:4], "--index_dir", str(tmp_path / "own"), "--retrieval_only", *out])
    first = only_row()
    (tmp_path / "results.csv").unlink()
    rag_eval.main([*flags[:4], "--index_dir", str(tmp_path / "own"), "--retrieval_only", *out])
    again = only_row()
    assert (first["score"], first["recall_at_k"]) == (again["score"], again["recall_at_k"]) and float(first["score"]) > 0.3
    assert first["index_seconds"] and not again["index_seconds"]


def test_a_passage_within_a_document_is_found_there(questions, tiny_embedder, tmp_path, out, only_row):
    (tmp_path / "docs").mkdir()
    task = tasks.load_task(questions)
    for i in range(0, 20, 2):
        two = f"{task.evaluation[i].context}\n\n{task.evaluation[i + 1].context}"
        (tmp_path / "docs" / f"{i}.txt").write_text(two)
    rag_eval.main(["--embed_model", tiny_embedder, "--dataset", questions, "--docs", str(tmp_path / "docs"), "--retrieval_only", *out])
    row = only_row()
    assert float(row["recall_at_k"]) > 0.5 and "is scored on the" not in row["note"]
    relevant = rag_eval.relevant_documents(
        task, *(lambda d: (d, {doc.id: doc.digest for doc in d}))(docs.read_documents([tmp_path / "docs"]))
    )
    assert [list(found) for found in relevant] == [[str(tmp_path / "docs" / f"{i - i % 2}.txt")] for i in range(20)]


def test_an_hnsw_graph_is_judged_by_the_search_that_is_timed(tiny_embedder):
    retriever = filled(tiny_embedder, "--index", "hnsw", "--ef_search", "16")
    assert retriever.depth == 16 and filled(tiny_embedder).depth == 100


def test_one_letter_texts_have_no_words_for_bm25():
    assert retrieval.Bm25(["?", "a"]).search(["a"], 3) == [[]]


@pytest.mark.parametrize("n, free, kind", [(5_000, 16, "flat"), (1_000_000, 16, "flat"), (1_000_000, 2, "sq8"), (5_000_000, 64, "hnsw"),
                                           (5_000_000, 8, "ivfpq")])  # fmt: skip
def test_the_kind_is_chosen_by_size_and_memory_and_says_why(n, free, kind):
    chosen, why = retrieval.choose_kind(n, 384, free)
    assert chosen == kind and why.startswith(kind) and f"{n:,} vectors" in why


def test_an_approximate_index_tells_what_it_misses():
    queries = clustered(50, seed=1)
    recalls = []
    for nprobe in (1, 4, 16):
        index = retrieval.Index(32, "ivf", options={"nlist": 16, "nprobe": nprobe})
        add(index, [f"d{i}" for i in range(1000)], clustered(1000))
        recalls.append(index.recall(queries))
    assert recalls[0] < recalls[1] <= recalls[2] == 1.0


# ----------------------------------------------------------------------------------------------------------------- ranking


def test_fused_ranks_by_hand():
    fused = retrieval.reciprocal_rank_fusion([["a", "b", "c"], ["c", "a"]])
    assert [name for name, _ in fused] == ["a", "c", "b"]
    assert [value for _, value in fused] == pytest.approx([1 / 61 + 1 / 62, 1 / 63 + 1 / 61, 1 / 62])


def test_marginal_relevance_by_hand():
    query = np.array([1.0, 0.0])
    vectors = np.array([[1.0, 0.1], [1.0, 0.12], [0.8, -0.6]])
    assert retrieval.maximal_marginal_relevance(query, vectors, 2, 1.0) == [0, 1], "likeness alone takes twins"
    assert retrieval.maximal_marginal_relevance(query, vectors, 2, 0.5) == [0, 2], "less of it takes the other"
    assert sorted(retrieval.maximal_marginal_relevance(query, vectors, 9, 0.5)) == [0, 1, 2]


def test_bm25_stems_where_a_language_is_named():
    texts = ["the endings of plots", "a joke"]
    assert retrieval.Bm25(texts).search(["ending plot"], 2) == [[]]
    assert [row for row, _ in retrieval.Bm25(texts, "english").search(["ending plot"], 2)[0]] == [0]


def test_bm25_by_its_formula():
    texts = ["plot plot cast", "cast scene story ending", "joke"]
    found = retrieval.Bm25(texts).search(["plot cast", "unknown"], 3)
    k1, b, lengths = 1.5, 0.75, [3, 4, 1]
    mean = sum(lengths) / 3

    def part(tf, length, df):  # Lucene's, which leaves out the constant factor (k1 + 1)
        return np.log(1 + (3 - df + 0.5) / (df + 0.5)) * tf / (tf + k1 * (1 - b + b * length / mean))

    assert [row for row, _ in found[0]] == [0, 1] and found[1] == []
    assert [score for _, score in found[0]] == pytest.approx([part(2, 3, 1) + part(1, 3, 2), part(1, 4, 2)], rel=1e-4)


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory, tiny_classifier):
    """A random reranker: what it says is meaningless, and the same each time."""
    from sentence_transformers import CrossEncoder

    folder = str(tmp_path_factory.mktemp("cross") / "encoder")
    CrossEncoder(tiny_classifier, num_labels=1, device="cpu", model_kwargs={"ignore_mismatched_sizes": True}).save_pretrained(folder)
    return folder


def filled(embedder, *flags):
    retriever = retriever_of(embedder, *flags)
    retriever.add([docs.Document(f"d{i}", "", text) for i, text in enumerate(sentences(60))])
    return retriever


def test_dense_search_is_the_matrix_product(tiny_embedder):
    retriever, asked = filled(tiny_embedder), sentences(5, seed=7)
    similarity = retriever.embed(asked, questions=True) @ retriever.embed(sentences(60)).T
    for row, hits in zip(similarity, retriever.search(asked, 5)):
        assert [hit.score for hit in hits] == pytest.approx(sorted(row, reverse=True)[:5], abs=1e-5)
        assert [row[int(hit.chunk.document[1:])] for hit in hits] == pytest.approx([hit.score for hit in hits], abs=1e-5)
    assert len(retriever.search(asked, 99)[0]) == 60 and retriever.search([], 3) == []
    assert set(retriever.spent) == {"embed", "search"} and all(ms > 0 for ms in retriever.spent.values())


def test_hybrid_is_the_fusion_of_both(tiny_embedder):
    asked = sentences(5, seed=7)
    dense, lexical, hybrid = (filled(tiny_embedder, "--retriever", name).search(asked, 100) for name in ("dense", "bm25", "hybrid"))
    for d, b, h in zip(dense, lexical, hybrid):
        wanted = retrieval.reciprocal_rank_fusion([[hit.row for hit in d], [hit.row for hit in b]])
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
    line = np.median([hit.score for hits in filled(tiny_embedder, "--retriever", retriever.replace("hybrid", "dense")).search(asked, 60)
                      for hit in hits])  # fmt: skip
    kept = filled(tiny_embedder, "--retriever", retriever, "--min_score", str(line)).search(asked, 60)
    assert 0 < sum(map(len, kept)) < sum(map(len, everything))
    if retriever != "hybrid":  # whose scores are fused ranks, its likeness is asked for
        assert all(hit.score >= line for hits in kept for hit in hits)
    assert filled(tiny_embedder, "--retriever", retriever, "--min_score", "1e9").search(asked, 5) == [[]] * 4


def test_diversity_changes_what_is_taken(tiny_embedder):
    asked = sentences(4, seed=7)
    plain, diverse, alike = (filled(tiny_embedder, *flags).search(asked, 5) for flags in ((), ("--mmr", "0.3"), ("--mmr", "1")))
    rows = [[[hit.row for hit in hits] for hits in found] for found in (plain, diverse, alike)]
    scores = [[[hit.score for hit in hits] for hits in found] for found in (plain, diverse, alike)]  # twins may change places
    assert np.allclose(scores[0], scores[2], atol=1e-6) and not np.allclose(scores[0], scores[1], atol=1e-3)
    assert np.allclose([some[0] for some in scores[0]], [some[0] for some in scores[1]], atol=1e-6)

    def likeness(retriever, found):
        vectors = [retriever.index.vectors_of(some) for some in found]
        return np.mean([(v @ v.T)[np.triu_indices(5, 1)].mean() for v in vectors])

    retriever = filled(tiny_embedder)
    assert likeness(retriever, rows[1]) < likeness(retriever, rows[0])


def test_prompts_for_questions_and_passages(tiny_embedder):
    plain, asked = retriever_of(tiny_embedder), retriever_of(tiny_embedder, "--query_prompt", "question ", "--passage_prompt", "passage ")
    text = "the good film"
    assert np.allclose(asked.embed([text], questions=True), plain.embed(["question " + text]), atol=1e-6)
    assert np.allclose(asked.embed([text]), plain.embed(["passage " + text]), atol=1e-6)


# ------------------------------------------------------------------------------------------------------- retriever and folder


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
    opened, _ = retrieval.open_index(index)
    texts = sorted(opened.table["text"].to_pylist())
    assert texts == sorted([*sentences(6)[1:5], "the dull plot is another one now ."]) and len(opened) == 5
    fresh = retriever_of(tiny_embedder)
    fresh.add([docs.Document(str(i), "", text) for i, text in enumerate(texts)])
    again = retriever_of(tiny_embedder, "--index_dir", index)
    for a, b in zip(fresh.search(sentences(3, seed=5), 5), again.search(sentences(3, seed=5), 5)):
        assert [hit.chunk.text for hit in a] == [hit.chunk.text for hit in b]
        assert [hit.score for hit in a] == pytest.approx([hit.score for hit in b], abs=1e-6)


def test_a_document_that_became_another_ones_twin_is_forgotten(tiny_embedder):
    retriever = retriever_of(tiny_embedder)
    retriever.add([docs.Document("a", "", "the good film"), docs.Document("b", "", "the dull plot")])
    retriever.add([docs.Document("a", "", "the good film"), docs.Document("b", "", "the good film")])
    assert list(retriever.index.documents) == ["a"]


def test_bm25_alone_embeds_nothing(tiny_embedder, tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK", 25)  # and a large corpus is saved on its way
    retriever = filled(tiny_embedder, "--retriever", "bm25", "--index_dir", str(tmp_path / "index"))
    assert retriever.index.faiss is None and not (tmp_path / "index/index.faiss").exists() and retriever.index.generation == 3
    again = retriever_of(tiny_embedder, "--retriever", "bm25", "--index_dir", str(tmp_path / "index"))
    assert [hit.row for hit in again.search(["number7"], 3)[0]] == [7]
    with pytest.raises(utils.UserError, match="holds no vectors; give --retriever bm25"):
        retriever_of(tiny_embedder, "--index_dir", str(tmp_path / "index"))


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


# ------------------------------------------------------------------------------------------------------------- measurement


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
    "flags", [(), ("--retriever", "hybrid"), ("--mmr", "0.5"), ("--retriever", "bm25"), ("--index", "hnsw", "--metric", "l2")]
)
def test_an_independent_evaluator_reads_the_same_scores_from_the_run_file(flags, tiny_embedder, tmp_path, out, only_row):
    ir_measures = pytest.importorskip("ir_measures")
    from ir_measures import AP, RR, P, R, nDCG

    folder = beir_folder(tmp_path / "beir")
    rag_eval.main(["--embed_model", tiny_embedder, "--dataset", folder, "--save_run", str(tmp_path / "run.txt"), "--k", "5", *flags, *out])
    row = only_row()
    judged = pd.read_csv(tmp_path / "beir/qrels/test.tsv", sep="\t", dtype=str)
    qrels = [ir_measures.Qrel(q, d, int(grade)) for q, d, grade in judged.itertuples(index=False)]
    run = list(ir_measures.read_trec_run(str(tmp_path / "run.txt")))
    wanted = ir_measures.calc_aggregate([nDCG @ 10, RR, AP, R @ 5, P @ 5], qrels, run)
    for measure, column in ((nDCG @ 10, "ndcg_at_10"), (RR, "mrr"), (AP, "map"), (R @ 5, "recall_at_k"), (P @ 5, "precision_at_k")):
        assert float(row[column]) == pytest.approx(wanted[measure], abs=2e-6), column
    assert row["metric"] == "ndcg_at_10" and row["score"] == row["ndcg_at_10"] and row["status"] == "ok"
    assert (row["index_recall"] == "") == ("bm25" in flags) and float(row["search_ms"]) > 0 and "80 documents in 80 chunks" in row["note"]


def test_the_four_baselines(questions, tiny_llama, tiny_embedder, tmp_path, out):
    rag_eval.main(["--embed_model", tiny_embedder, "--gen_model", tiny_llama, "--dataset", questions, "--max_new_tokens", "5", "--k", "3",
                   "--baselines", *out])  # fmt: skip
    rows = utils.read_results(tmp_path / "results.csv")
    assert [row["variant"] for row in rows] == ["no_retrieval", "gold_passage", "random_passages", "k3_flat"]
    assert [row["strategy"] for row in rows] == ["prompting", "rag", "rag", "rag"]
    assert len({row["eval_id"] for row in rows}) == 1 and len({row["run_dir"] for row in rows}) == 4
    none, gold, random_, retrieved = map(predictions, rows)
    assert [bool(row["index_seconds"]) for row in rows] == [False, False, True, True]
    rows = [rows[0], rows[2], rows[3], rows[1]]
    task = tasks.load_task(questions)
    assert [p["retrieved"] for p in none] == [[]] * 20
    assert [[hit["text"] for hit in p["retrieved"]] for p in gold] == [[ex.context] for ex in task.evaluation]
    assert all(len({hit["document"] for hit in p["retrieved"]}) == 3 for p in random_)
    assert len({p["retrieved"][0]["document"] for p in random_}) > 5
    inside = [float(row["answer_in_context"]) for row in rows[1:]]
    assert inside[2] == 1.0 and rows[0]["answer_in_context"] == ""
    assert inside[1] == pytest.approx(np.mean([any(metrics.contains_answer(hit["text"], p["target"]) for hit in p["retrieved"])
                                               for p in retrieved]), abs=1e-6)  # fmt: skip
    assert rows[2]["recall_at_k"] and not rows[1]["recall_at_k"] and not rows[3]["recall_at_k"]
    split = sum(float(rows[2][name]) for name in ("embed_ms", "search_ms", "generate_ms"))
    assert split == pytest.approx(float(rows[2]["latency_ms_mean"]), rel=1e-4)


def test_a_context_too_small_loses_passages_from_the_end(questions, tiny_llama, tiny_embedder, out, only_row, capsys):
    rag_eval.main(["--embed_model", tiny_embedder, "--gen_model", tiny_llama, "--dataset", questions, "--max_new_tokens", "3", "--k", "4",
                   "--context_tokens", "30", *out])  # fmt: skip
    row = only_row()
    assert "did not fit the context and were left out" in row["note"] and "did not fit the context" in capsys.readouterr().out
    args = arguments(tiny_embedder, "--gen_model", tiny_llama, "--context_tokens", "40")
    reader = rag_eval.Reader(args, "cpu", tasks.load_task(questions))
    hits = [retrieval.Hit(docs.Chunk(f"d{i}", 0, text), 1.0, i) for i, text in enumerate(sentences(4))]
    prompt, left = reader.prompt("what is the good film ?", hits)
    n = 4 - left
    assert 0 < left < 4 and [hit.chunk.text in prompt for hit in hits] == [True] * n + [False] * left
    places = [prompt.index(hit.chunk.text) for hit in hits[:n]]
    assert places == sorted(places, reverse=True) and prompt.index("what is") > places[0], "the best stands beside the question"
    args.context_tokens, reader.room = None, len(reader.tokenizer(prompt).input_ids)
    assert reader.prompt("what is the good film ?", hits) == (prompt, left), "the model's own limit does the same"


def test_citations_are_asked_for_counted_and_not_scored(questions, tiny_llama, tiny_embedder, out, only_row, monkeypatch):
    assert rag_eval.without_citations("in Paris [2] , maybe[1].") == ("in Paris , maybe.", [2, 1])
    args = arguments(tiny_embedder, "--gen_model", tiny_llama, "--citations")
    reader = rag_eval.Reader(args, "cpu", tasks.load_task(questions))
    hits = [retrieval.Hit(docs.Chunk(f"d{i}", 0, text), 1.0, i) for i, text in enumerate(sentences(2))]
    prompt, _ = reader.prompt("what is the good film ?", hits)
    assert f"[1] {sentences(2)[0]}" in prompt and f"[2] {sentences(2)[1]}" in prompt and "as in [1]" in prompt
    rag_eval.main(
        ["--embed_model", tiny_embedder, "--gen_model", tiny_llama, "--dataset", questions, "--max_new_tokens", "3", "--citations", *out]
    )
    assert "answers cite a passage" in only_row()["note"]


def test_nothing_above_the_minimum_is_not_in_the_documents(questions, tiny_llama, tiny_embedder, out, only_row):
    rag_eval.main(["--embed_model", tiny_embedder, "--gen_model", tiny_llama, "--dataset", questions, "--max_new_tokens", "3",
                   "--retriever", "bm25", "--min_score", "1e9", *out])  # fmt: skip
    row = only_row()
    assert {p["prediction"] for p in predictions(row)} == {rag_eval.NOT_FOUND} and row["status"] == "degenerate"
    assert "20 questions without a passage above --min_score" in row["note"] and row["generated_tokens"] == ""
    assert float(row["latency_ms_p50"]) > 0 and row["score"] == "0"


def test_a_session_asks_adds_saves_and_survives_bad_lines(tiny_llama, tiny_embedder, tmp_path, monkeypatch, capsys):
    (tmp_path / "note.txt").write_text("the dull plot is rome .")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff\xff\xff")
    index = str(tmp_path / "index")
    lines = ["", "what is the dull plot ?", "add the good film is paris .", f"add {tmp_path / 'note.txt'}", f"add {tmp_path / 'bad.txt'}",
             "add", "add ~/nowhere.txt", "add the weak joke", "delete typed-1", "delete nobody", "k x", "k -1", "k 1",
             "k 3 musketeers were who ?", "save money how ?", "what is the dull plot ?", "sources", "history", "save", f"save {tmp_path}",
             f"save {index}", "\0\x07", "x" * 5000, "add the poor joke", "Help", "QUIT", "never read"]  # fmt: skip
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    common = ["--interactive", "--embed_model", tiny_embedder, "--gen_model", tiny_llama, "--max_new_tokens", "3"]
    rag_eval.main([*common, "--k", "2"])
    printed = capsys.readouterr().out
    assert "1 chunks added, 1 in all" in printed and "1 chunks added, 2 in all" in printed and "k is 1" in printed
    assert printed.count("that did not work") == 8 and "bad.txt" in printed and "save where?" in printed and "other files" in printed
    assert "2 documents, 2 chunks" in printed and "what is the dull plot ?  ->" in printed and "never read" not in printed
    assert "2 chunks saved" in printed and "[1]" in printed
    assert "k 3 musketeers were who ?  ->" in printed and "save money how ?  ->" in printed and "1 chunks forgotten" in printed
    monkeypatch.setattr(sys, "stdin", io.StringIO("sources\n"))
    rag_eval.main([*common, "--index_dir", index])
    assert "3 chunks indexed" in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("add the weak joke\n"))
    rag_eval.main(common)
    assert "is not saved" in capsys.readouterr().out


class Terminal:
    """A program at a pseudo-terminal of its own."""

    def __init__(self, command):
        import pty

        self.pid, self.end = pty.fork()
        if not self.pid:
            os.chdir(ROOT)
            os.execv(command[0], command)
        self.seen = ""

    def type(self, text):
        os.write(self.end, text.encode())

    def wait_for(self, text, seconds=30):
        """Read until `text` was printed; what was read is forgotten."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert select.select([self.end], [], [], max(0, deadline - time.monotonic()))[0], f"no {text!r} in {self.seen!r}"
            self.seen += os.read(self.end, 4096).decode(errors="replace")
        self.seen = self.seen.split(text, 1)[1]

    def close(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.end)


def test_a_session_at_a_terminal(tiny_llama, tiny_embedder):
    ended = 0
    terminal = Terminal([sys.executable, "rag_eval.py", "--interactive", "--embed_model", tiny_embedder, "--gen_model", tiny_llama,
                         "--max_new_tokens", "3"])  # fmt: skip
    try:
        terminal.wait_for("no documents yet")
        terminal.wait_for("> ")
        terminal.type("add the good film is paris .\n")
        terminal.wait_for("1 in all")
        terminal.wait_for("> ")
        time.sleep(0.5)  # let it wait for a key
        terminal.type("\x03")  # control-C ends no session
        terminal.wait_for("quit ends")
        terminal.type("\x1b[A\n")  # arrow up: the line before, again
        terminal.wait_for("the same as another")
        terminal.type("quit\n")
        deadline = time.monotonic() + 20
        ended = 0
        while not ended and time.monotonic() < deadline:
            ended, status = os.waitpid(terminal.pid, os.WNOHANG)
            time.sleep(0.05)
        assert ended and os.waitstatus_to_exitcode(status) == 0
    finally:
        if not ended:
            terminal.close()
