"""An index that a database serves (--index_url): chunks and vectors are there, this process keeps ids and digests."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import utils
from harness.retrieval.index import SCHEMA, Index

CANDIDATES = 64  # ef_search where none is asked for, as in the index folder
EXACT_UP_TO = 50_000  # vectors; a database scans more slowly than FAISS
PACKAGES = {"postgres": "'psycopg[binary]' pgvector", "http": "pymilvus"}


def connect(url, name):
    """The store behind --index_url. UserError for an address of another kind, and for a package that is missing."""
    kind = {"postgresql": "postgres", "https": "http"}.get(scheme := url.partition("://")[0], scheme)
    if kind not in PACKAGES:
        raise utils.UserError(
            f"--index_url {utils.without_credentials(url)}: give postgresql://.. (pgvector) or http://.. (Milvus)"
        )
    try:  # optional packages, of which a person has one
        if kind == "postgres":
            from harness.retrieval.postgres import PostgresStore as Store  # see above
        else:
            from harness.retrieval.milvus import MilvusStore as Store  # see above
    except ImportError as error:
        raise utils.UserError(f"--index_url {scheme}://: {error}; pip install {PACKAGES[kind]}") from None
    return Store(url, name)


class ServedIndex(Index):
    """An Index whose `store` (PostgresStore, MilvusStore) holds the chunks and the vectors, and searches them.

    Row i of `table` is the chunk with the i-th smallest id on the server; its text is null here and read when it is
    asked for. What `add` and `remove` have done is on the server when they return. kind: "flat" or "hnsw"; half: the
    graph holds vectors of 16 bits. made_with: settings that a later run must match.
    """

    served = True

    def __init__(self, store, dimension, kind, metric, options, half, made_with):
        super().__init__(dimension, kind, metric, options)
        self.store, self.half, self.made_with, self.block = store, half, made_with, store.block
        self.finished = False
        self.ids = np.empty(0, np.int64)
        if store.settings:
            self._read()

    def _read(self, gone=None):
        """Read the rows of the server, all of them; or, without the documents `gone`, what has come since."""
        last = int(self.ids[-1]) if gone is not None and len(self.ids) else -1
        new = self.store.rows(SCHEMA, last)
        if last >= 0:
            kept = self.table
            if gone:
                kept = kept.filter(pc.invert(pc.is_in(kept["document"], pa.array(list(gone), pa.string()))))
            new = pa.concat_tables([kept, new])
        self.table, self.ids = new, new["id"].to_numpy()

    @property
    def candidates(self):
        return (self.options.get("ef_search") or CANDIDATES) if self.kind == "hnsw" else None

    def settle(self, n):
        if self.kind == "auto":
            self.kind = "flat" if n <= EXACT_UP_TO else "hnsw"
            exact = "exact, and fast enough up to" if self.kind == "flat" else "as exact search is slow above"
            self.why = f"{self.kind}: {n:,} vectors; {exact} {EXACT_UP_TO:,} in a database"

    def add(self, chunks, digests, vectors, expected=None, cut=None, replacing=()):
        """As Index.add. A document that another process has added in the meantime stays as that process left it."""
        self.settle(len(self) + max(len(chunks), expected or 0))
        if not self.store.settings:
            self.store.create(
                {
                    "kind": self.kind,
                    "metric": self.metric,
                    "dimension": self.dimension,
                    "half": self.half,
                    "options": {name: value for name, value in self.options.items() if name != "ef_search"},
                    "made_with": self.made_with,
                }
            )
            if self.store.settings["made_with"] != json.loads(json.dumps(self.made_with)):
                raise utils.UserError("another process has just made this index with other settings; start again")
        self.store.add(chunks, digests, np.ascontiguousarray(vectors, np.float32), cut, replacing)
        self.finished = False
        self._read(replacing)

    def remove(self, documents):
        if not documents or not self.store.settings:
            return 0
        n = self.store.delete(documents)
        self._read(documents)
        return n

    def finish(self):
        """Build the graph, if one belongs and is missing."""
        if self.store.settings and not self.finished:
            self.store.finish()
            self.finished = True

    def chunks(self, rows):
        ids = self.ids[np.asarray(rows, np.int64)].tolist()
        return self._all_of(self.store.chunks(ids) if ids else {}, ids)

    def _all_of(self, there, ids):
        """The values of these ids; UserError where another process has deleted some since the index was opened."""
        if any(id not in there for id in ids):
            raise utils.UserError("another process has deleted chunks of the index since it was opened; start again")
        return [there[id] for id in ids]

    def chunk(self, row):
        return self.chunks([row])[0]

    def texts(self):
        return self._all_of(self.store.texts(), self.ids.tolist())

    def vectors_of(self, rows):
        return self.store.vectors(self.ids[np.asarray(rows, np.int64)].tolist())

    def search(self, queries, k, exact=False):
        k = min(k, len(self))
        if not k:
            return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
        self.finish()
        ids, distances = self.store.search(np.ascontiguousarray(queries, np.float32), k, exact, self.candidates)
        # chunks that another process has added since this one read the ids are not known here, and left out
        rows = np.searchsorted(self.ids, ids)
        rows[(ids < 0) | (self.ids[np.minimum(rows, len(self.ids) - 1)] != ids)] = -1
        return rows, -distances if self.metric == "cosine" else -(distances**2)

    def gb(self):
        return self.store.gb() if self.store.settings else 0.0
