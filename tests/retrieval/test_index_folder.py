import json
import os
import random
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import ROOT
from retrieval_helpers import EXACT_OPTIONS, add_vectors, clustered, found_by

import utils
from harness.flags import INDEX_KINDS
from harness.retrieval import index_folder
from harness.retrieval.index import Index


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_an_index_closed_and_opened_again_finds_the_same(kind, metric, tmp_path):
    index = Index(32, kind, metric, EXACT_OPTIONS[kind])
    vectors, queries = clustered(700, metric=metric), clustered(30, seed=1, metric=metric)
    add_vectors(index, [f"d{i}" for i in range(700)], vectors)
    index_folder.save_index(index, tmp_path / "index", {"embedder": "e"})
    before = found_by(index, queries)
    exact = index.search(queries, 10, exact=True)
    value = queries @ vectors.T if metric == "cosine" else -((queries[:, None] - vectors) ** 2).sum(-1)
    assert np.allclose(exact[1], -np.sort(-value, axis=1)[:, :10], atol=1e-3)
    assert [[f"d{r}" for r in rows] for rows in np.argsort(-value, axis=1)[:, :10]] == [
        [index.chunk(int(r)).document for r in rows] for rows in exact[0]
    ]
    assert {path.name for path in (tmp_path / "index").iterdir()} - {"lock", "vectors.npy"} == {
        "index.faiss",
        "chunks.parquet",
        "meta.json",
    }
    for mmap in (False, True):
        other, made_with = index_folder.open_index(tmp_path / "index", mmap)
        again = found_by(other, queries)
        assert again[0] == before[0] and np.array_equal(again[1], before[1]) and made_with == {"embedder": "e"}
        assert other.recall(queries) == index.recall(queries) > (0.6 if kind == "ivfpq" else 0.95)
        assert np.allclose(other.vectors_of([3, 650]), vectors[[3, 650]], atol=1e-6)
    with pytest.raises(utils.UserError, match="cannot be changed"):
        other.remove(["d1"])
    assert other.gb() == pytest.approx((tmp_path / "index/index.faiss").stat().st_size / utils.GB, rel=0.01)


KILLED = """
import sys, numpy as np
sys.path.insert(0, {root!r})
from harness.retrieval import chunking, index_folder
index, _ = index_folder.open_index({folder!r})
print("open", flush=True)
n = len(index) // 50
while True:
    chunks = [chunking.Chunk(f"b{{n}}-{{i}}", 0, "text") for i in range(50)]
    index.add(chunks, ["digest"] * 50, np.random.default_rng(n).normal(size=(50, 32)).astype(np.float32))
    print("saving", flush=True)
    index_folder.save_index(index, {folder!r}, {{}})
    n += 1
    print(n, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flat", "sq8"])
def test_killed_at_random_moments_it_opens_as_last_saved(kind, tmp_path):
    def block(n):
        return np.random.default_rng(n).normal(size=(50, 32)).astype(np.float32)

    index = Index(32, kind, "l2")
    add_vectors(index, [f"b0-{i}" for i in range(50)], block(0))
    index_folder.save_index(index, tmp_path, {})
    begin = time.perf_counter()
    index_folder.save_index(index, tmp_path, {})
    typical = time.perf_counter() - begin  # seconds of a save
    program, rng, saved, leftovers = KILLED.format(root=str(ROOT), folder=str(tmp_path)), random.Random(0), 1, 0
    for _ in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
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
        index, _ = index_folder.open_index(tmp_path)
        blocks = len(index) // 50
        assert len(index) % 50 == 0 and blocks - (numbers or [saved])[-1] in (0, 1), (
            "what was said to be saved is there"
        )
        saved = blocks
        assert list(index.documents) == [f"b{n}-{i}" for n in range(blocks) for i in range(50)]
        wanted = np.concatenate([block(n) for n in range(blocks)])
        assert np.array_equal(index.search(wanted[::25], 1, exact=True)[0][:, 0], np.arange(len(wanted))[::25])
        assert not any(tmp_path.glob("*.new"))
    assert saved > 3 and leftovers, "it was killed while it was saving, too"


def test_a_save_that_was_decided_is_finished(tmp_path):
    """The moment after meta.json took its place, before the other files did."""
    index = Index(32, "flat")
    add_vectors(index, ["a"], clustered(1))
    index_folder.save_index(index, tmp_path, {})
    before = {name: (tmp_path / name).read_bytes() for name in ("index.faiss", "chunks.parquet", "meta.json")}
    add_vectors(index, ["b"], clustered(1, seed=1))
    index_folder.save_index(index, tmp_path, {})
    for name in ("index.faiss", "chunks.parquet"):
        os.replace(tmp_path / name, tmp_path / f"{name}.new")
        (tmp_path / name).write_bytes(before[name])
    assert set(index_folder.open_index(tmp_path)[0].documents) == {"a", "b"}
    for name in ("index.faiss", "chunks.parquet"):  # and the moment before: the old state
        os.replace(tmp_path / name, tmp_path / f"{name}.new")
        (tmp_path / name).write_bytes(before[name])
    (tmp_path / "meta.json").write_bytes(before["meta.json"])
    assert set(index_folder.open_index(tmp_path)[0].documents) == {"a"} and not list(tmp_path.glob("*.new"))


def test_folders_that_are_no_index_or_damaged_are_refused(tmp_path):
    assert index_folder.open_index(tmp_path / "nowhere") is None
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    index = Index(32, "flat")
    add_vectors(index, ["a", "b"], clustered(2))
    for attempt in (
        lambda: index_folder.open_index(tmp_path / "mine"),
        lambda: index_folder.save_index(index, tmp_path / "mine", {}),
    ):
        with pytest.raises(utils.UserError, match="holds other files"):
            attempt()
    assert (tmp_path / "mine/thesis.txt").read_text() == "precious"
    index_folder.save_index(index, tmp_path / "index", {})
    mine, theirs = index_folder.open_index(tmp_path / "index")[0], index_folder.open_index(tmp_path / "index")[0]
    add_vectors(theirs, ["c"], clustered(1, seed=1))
    index_folder.save_index(theirs, tmp_path / "index", {})
    add_vectors(mine, ["d"], clustered(1, seed=2))
    with pytest.raises(utils.UserError, match="another process saved it"):
        index_folder.save_index(mine, tmp_path / "index", {})
    assert set(index_folder.open_index(tmp_path / "index")[0].documents) == {"a", "b", "c"}
    for name, change in (
        ("chunks.parquet", lambda b: b[:-9] + b"x" * 9),
        ("index.faiss", lambda b: b[:-4]),
        ("meta.json", lambda b: b"{}"),
    ):
        good = (tmp_path / "index" / name).read_bytes()
        (tmp_path / "index" / name).write_bytes(change(good))
        with pytest.raises(utils.UserError, match=name):
            index_folder.open_index(tmp_path / "index")
        (tmp_path / "index" / name).write_bytes(good)
    index_folder.open_index(tmp_path / "index")


def test_a_value_that_changed_in_meta_json_is_noticed(tmp_path):
    index = Index(32, "flat")
    add_vectors(index, ["a", "b"], clustered(2))
    index_folder.save_index(index, tmp_path, {"chunk_tokens": 64, "probes": [[0.1, 1e-6]]})
    path = tmp_path / "meta.json"
    good = path.read_text()
    assert index_folder.open_index(tmp_path)[1] == {"chunk_tokens": 64, "probes": [[0.1, 1e-6]]}
    for before, after in (
        ('"cosine"', '"l2"'),
        ('"generation": 1', '"generation": 2'),
        ('"chunk_tokens": 64', '"chunk_tokens": 65'),
        ('"next_id": 2', '"next_id": 1'),
        ('"sha256": "', '"sha256": "0'),
        ('"made_with"', '"made_without"'),
    ):
        assert good.count(before) >= 1
        path.write_text(good.replace(before, after))
        with pytest.raises(utils.UserError, match="damaged or does not describe"):
            index_folder.open_index(tmp_path)
    for text in ("[" * 100_000, "[]", "\x00", '{"format": 2}'):
        path.write_text(text)
        with pytest.raises(utils.UserError, match="damaged or does not describe"):
            index_folder.open_index(tmp_path)
    path.write_text(good)
    assert len(index_folder.open_index(tmp_path)[0]) == 2


def test_a_folder_of_the_first_format_is_read_and_saved_anew(tmp_path):
    index = Index(32, "flat")
    add_vectors(index, ["a", "b"], clustered(2))
    index_folder.save_index(index, tmp_path, {"embedder": "e"})
    table = pq.read_table(tmp_path / "chunks.parquet").drop_columns(["cut"])
    pq.write_table(table, tmp_path / "chunks.parquet")
    meta = json.loads((tmp_path / "meta.json").read_text())
    meta.update(format=1)
    del meta["sha256"]
    meta["files"]["chunks.parquet"] = index_folder.checksum(tmp_path / "chunks.parquet")
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    old, made_with = index_folder.open_index(tmp_path)
    assert list(old.documents) == ["a", "b"] and old.n_cut == 0 and made_with == {"embedder": "e"}
    index_folder.save_index(old, tmp_path, made_with)
    assert json.loads((tmp_path / "meta.json").read_text())["format"] == 2
    meta.update(dimension=16)
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(utils.UserError):
        index_folder.open_index(tmp_path)


def test_a_mapped_index_that_cannot_be_read_is_one_line(tmp_path):
    index = Index(32, "flat")
    add_vectors(index, ["a", "b"], clustered(2))
    index_folder.save_index(index, tmp_path, {})
    size = (tmp_path / "index.faiss").stat().st_size  # mapped, the contents are not read for a checksum
    (tmp_path / "index.faiss").write_bytes(b"x" * size)
    with pytest.raises(utils.UserError, match="cannot be read"):
        index_folder.open_index(tmp_path, mmap=True)
