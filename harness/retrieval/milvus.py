"""Chunks and vectors in a collection of a Milvus server (https://milvus.io/docs), 2.5 or newer."""

import contextlib
import json
import logging
import urllib.parse

import faiss
import grpc
import numpy as np
import pyarrow as pa
import pymilvus
from pymilvus import DataType

import utils
from harness.retrieval.chunking import Chunk

MOST_BYTES = 65_535  # of a text in a VARCHAR field
PAGE = 1000  # rows of one reply
MOST_FOUND = 16_384  # rows that one search returns
FIELDS = ("document", "digest", "title", "source", "position", "cut", "text")


class MilvusStore:
    """A collection `name`, and `name`_settings, whose one row holds the settings as JSON.

    There are no transactions: one `add` is one request, confirmed as a whole; what it replaces is deleted afterwards.
    `rows` drops what a process that was killed in between, or two that added the same document, have left twice.
    """

    block = 1000  # chunks in one add: a request may have 64 MB

    def __init__(self, url, name):
        self.public, self.name, self.settings = utils.without_credentials(url), name, None
        self.about = f"{name}_settings"
        parts = urllib.parse.urlsplit(url)
        login = {
            "user": urllib.parse.unquote(parts.username or ""),
            "password": urllib.parse.unquote(parts.password or ""),
        }
        uri = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        logging.getLogger("pymilvus").setLevel(logging.ERROR)  # notes on its own page reads
        with self._errors():
            self.client = pymilvus.MilvusClient(uri, timeout=10, **login)

    @contextlib.contextmanager
    def _errors(self):
        """UserError, without credentials, for what the server or the connection refuses."""
        try:
            yield
        except (pymilvus.MilvusException, grpc.RpcError) as error:
            text = utils.without_credentials((str(error).strip().splitlines() or [type(error).__name__])[0])
            raise utils.UserError(
                f"--index_url {self.public}: {text[:300]}; what was confirmed is there: run the same command again"
            ) from None

    def version(self):
        """ "Milvus 2.6.1" """
        with self._errors():
            return f"Milvus {self.client.get_server_version()}"

    # --------------------------------------------------------------------------------------------------- the collection

    def read_settings(self):
        """The settings that the collection was created with, None if there is none; UserError for another's."""
        with self._errors():
            if not self.client.has_collection(self.name):
                return None
            known = self.client.has_collection(self.about)
            rows = self.client.query(self.about, filter="id >= 0", output_fields=["settings"]) if known else []
            if not rows:
                raise utils.UserError(
                    f"--index_url {self.public} has a collection {self.name} that is no index of this project; give "
                    "another --index_name"
                )
            self.client.load_collection(self.name)
        self.settings = json.loads(rows[0]["settings"])
        return self.settings

    def create(self, settings):
        """Make the collection, unless another process just did. settings: as of PostgresStore.create."""
        schema = pymilvus.MilvusClient.create_schema(auto_id=True)
        schema.add_field("id", DataType.INT64, is_primary=True)
        for name in ("document", "digest", "title", "source", "text"):
            schema.add_field(name, DataType.VARCHAR, max_length=MOST_BYTES)
        schema.add_field("position", DataType.INT64)
        schema.add_field("cut", DataType.BOOL, nullable=True)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=settings["dimension"])
        options, index = settings["options"], pymilvus.MilvusClient.prepare_index_params()
        graph = {"M": options.get("hnsw_m") or 32, "efConstruction": options.get("ef_construction") or 200}
        index.add_index(
            "embedding",
            index_type=settings["kind"].upper(),
            metric_type=self._metric(settings),
            params=graph if settings["kind"] == "hnsw" else {},
        )
        with self._errors():
            if not self.client.has_collection(self.name):
                self._write_settings(settings)  # first: a collection without them is somebody else's
                self.client.create_collection(self.name, schema=schema, index_params=index, consistency_level="Strong")
        self.read_settings()
        self._check_applied(graph)

    def _write_settings(self, settings):
        if self.client.has_collection(self.about):  # of a process that was killed before it made the other one
            self.client.drop_collection(self.about)
        schema = pymilvus.MilvusClient.create_schema()
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("settings", DataType.VARCHAR, max_length=MOST_BYTES)
        schema.add_field("unused", DataType.FLOAT_VECTOR, dim=2)  # every collection has vectors
        index = pymilvus.MilvusClient.prepare_index_params()
        index.add_index("unused", index_type="FLAT", metric_type="L2")
        self.client.create_collection(self.about, schema=schema, index_params=index, consistency_level="Strong")
        self.client.insert(self.about, [{"id": 0, "settings": json.dumps(settings), "unused": [0.0, 0.0]}])

    @staticmethod
    def _metric(settings):
        return "IP" if settings["metric"] == "cosine" else "L2"  # unit vectors: the inner product is the cosine

    def _check_applied(self, graph):
        """UserError if the server has built another index than it was asked for."""
        with self._errors():
            there = self.client.describe_index(self.name, "embedding")
        kind = self.settings["kind"].upper()
        other = there.get("index_type") != kind
        other = other or (
            kind == "HNSW" and any(str(there.get(name, value)) != str(value) for name, value in graph.items())
        )
        if other:
            raise utils.UserError(f"--index_url {self.public}: asked for {kind} {graph}, the server has {there}")

    def finish(self):
        """Nothing: the server builds its graph by itself."""

    # -------------------------------------------------------------------------------------------------- add and delete

    def add(self, chunks, digests, vectors, cut, replacing=()):
        """Put chunks and vectors [N, D] in place of the documents `replacing`. Returns how many rows went in."""
        long = max((len(text.encode()) for chunk in chunks for text in (chunk.text, chunk.title)), default=0)
        if long > MOST_BYTES:
            raise utils.UserError(
                f"--index_url {self.public}: a chunk has {long:,} bytes, and Milvus takes {MOST_BYTES:,}; give "
                "--chunk_tokens, or use PostgreSQL"
            )
        rows = [
            {
                "document": chunk.document,
                "digest": digests[i],
                "title": chunk.title or "",
                "source": chunk.source or "",
                "text": chunk.text,
                "position": chunk.position,
                "cut": None if cut is None or cut[i] is None else bool(cut[i]),
                "embedding": vectors[i],
            }
            for i, chunk in enumerate(chunks)
        ]
        old = self._ids(replacing)
        with self._errors():
            n = self.client.insert(self.name, rows)["insert_count"] if rows else 0
        self._delete(old)
        return n

    def delete(self, documents):
        """Delete the chunks of these documents; returns how many those were."""
        ids = self._ids(documents)
        self._delete(ids)
        return len(ids)

    def _delete(self, ids):
        with self._errors():
            for begin in range(0, len(ids), PAGE):
                self.client.delete(self.name, ids=ids[begin : begin + PAGE])

    def _ids(self, documents):
        wanted, ids = list(documents), []
        for begin in range(0, len(wanted), 100):
            names = json.dumps(wanted[begin : begin + 100], ensure_ascii=False)
            ids += [row["id"] for row in self._pages(["id"], filter=f"document in {names}")]
        return ids

    # ---------------------------------------------------------------------------------------------------------- reading

    def _pages(self, fields, **options):
        """The rows, a page of them at a time, in the order of the server."""
        with self._errors():
            pages = self.client.query_iterator(self.name, batch_size=PAGE, output_fields=fields, **options)
            while page := pages.next():
                yield from page
            pages.close()

    def count(self):
        """How many chunks the server has confirmed."""
        with self._errors():
            return self.client.query(self.name, output_fields=["count(*)"])[0]["count(*)"]

    def rows(self, schema, after=-1):
        """A pyarrow table of the chunks whose id is larger than `after`, in the order of their ids. Their texts stay on
        the server.
        """
        found = sorted(self._pages(["id", *FIELDS[:-1]], filter=f"id > {after}"), key=lambda row: row["id"])
        latest = {row["document"]: row["digest"] for row in found}
        kept = {}
        for row in found:
            if row["digest"] == latest[row["document"]]:
                kept.setdefault((row["document"], row["position"]), row)
        rows = list(kept.values())
        if len(rows) < len(found):
            self._delete(sorted({row["id"] for row in found} - {row["id"] for row in rows}))
        return pa.table({name: [row.get(name) for row in rows] for name in schema.names}, schema=schema)

    def chunks(self, ids):
        """{id: Chunk} of these rows."""
        there = {}
        with self._errors():
            for begin in range(0, len(ids), PAGE):
                for row in self.client.get(self.name, ids=list(ids[begin : begin + PAGE]), output_fields=list(FIELDS)):
                    cells = (row["document"], row["position"], row["text"], row["title"], row["source"])
                    there[row["id"]] = Chunk(*cells)
        return there

    def texts(self):
        """{id: "title text"} of all chunks."""
        found = self._pages(["id", "title", "text"])
        return {row["id"]: f"{row['title']} {row['text']}".strip() for row in found}

    def vectors(self, ids):
        """The vectors [N, D] of these rows."""
        there = {}
        with self._errors():
            for begin in range(0, len(ids), PAGE):
                some = self.client.get(self.name, ids=list(ids[begin : begin + PAGE]), output_fields=["embedding"])
                there.update((row["id"], row["embedding"]) for row in some)
        return np.array([there[id] for id in ids], np.float32)

    def search(self, queries, k, exact, candidates):
        """(ids [Q, K], distances [Q, K]) of the nearest rows, nearest first; id -1 where fewer were found.

        queries: [Q, D] float32. exact: read all vectors and compare them here (Milvus has no exact search in a
        collection with a graph). candidates: ef of HNSW.
        """
        if exact and self.settings["kind"] != "flat":
            return self._scan(queries, k)
        k = min(k, MOST_FOUND)
        params = {"ef": max(candidates, k)} if candidates else {}
        ids, distances = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), np.inf, np.float32)
        sign = -1 if self._metric(self.settings) == "IP" else 1
        with self._errors():
            for begin in range(0, len(queries), 100):
                some = list(queries[begin : begin + 100])
                for i, hits in enumerate(
                    self.client.search(self.name, some, limit=k, search_params={"params": params}), start=begin
                ):
                    ids[i, : len(hits)] = [hit["id"] for hit in hits]
                    distances[i, : len(hits)] = [sign * hit["distance"] for hit in hits]
        return ids, distances if sign == -1 else np.sqrt(np.maximum(distances, 0))

    def _scan(self, queries, k):
        """Exact search over all vectors, read in pages."""
        ids, vectors = [], []
        for row in self._pages(["id", "embedding"]):
            ids.append(row["id"])
            vectors.append(np.asarray(row["embedding"], np.float32))
        metric = faiss.METRIC_INNER_PRODUCT if self._metric(self.settings) == "IP" else faiss.METRIC_L2
        distances, found = faiss.knn(queries, np.stack(vectors), min(k, len(ids)), metric=metric)
        return np.array(ids)[found], -distances if metric == faiss.METRIC_INNER_PRODUCT else np.sqrt(distances)

    def gb(self):
        """None: a client is not told what a collection takes."""
