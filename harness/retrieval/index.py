"""Vectors in FAISS with their chunks."""

import tempfile

import faiss
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tqdm.auto import tqdm

import utils
from harness.retrieval.documents import Chunk

KINDS = ("flat", "ivf", "hnsw", "ivfpq", "sq8")


TRAINED, CLUSTERED, LOSSY = ("ivf", "ivfpq", "sq8"), ("ivf", "ivfpq"), ("ivfpq", "sq8")


EXACT_UP_TO = 1_000_000  # vectors; the libraries' authors advise exact search up to about there (FAISS wiki, sentence-transformers)


PRODUCT = 2**25  # scores of a block of exact search, 128 MB


def choose_kind(n, dimension, free_gb):
    """(index kind, why) for n vectors. free_gb: of memory; an index may take half of it."""
    vectors = n * dimension * 4 / utils.GB
    size = f"{n:,} vectors of {dimension} dimensions, {vectors:.2f} GB, {free_gb:.1f} GB of memory free"
    if vectors <= free_gb / 2 and n <= EXACT_UP_TO:
        return "flat", f"flat, which is exact: {size}, and exact search is fast enough up to about a million"
    if vectors / 4 <= free_gb / 2 and n <= EXACT_UP_TO:
        return "sq8", f"sq8, a byte a dimension: {size}, and half of the memory would not hold four bytes"
    graph = n * 64 * 4 / utils.GB  # 2 M links of four bytes at the lowest level
    if vectors + graph <= free_gb / 2:
        return "hnsw", f"hnsw: {size}; exact search would be slow, and half of the memory holds vectors and graph"
    return "ivfpq", f"ivfpq: {size}; half of the memory would not hold the vectors"


class Index:
    """Vectors with their chunks, in memory; index_folder.save_index and open_index for the folder that they live in.

    Row i of `table` (pyarrow: id, document, digest, title, source, position, text) is vector i, and its id never changes.
    kind: one of KINDS, 'auto', settled by the first `add`, or 'none': chunks without vectors, for BM25. metric: 'cosine' (of
    unit vectors) or 'l2'. options: nlist, nprobe, hnsw_m, ef_construction, ef_search, pq_m; None is the default for the size.
    The original vectors of lossy kinds are kept beside the index, so that its recall can be measured.
    """

    def __init__(self, dimension, kind="auto", metric="cosine", options=None):
        self.dimension, self.kind, self.metric, self.options, self.why = (
            dimension,
            kind,
            metric,
            dict(options or {}),
            "",
        )
        self.faiss, self.vectors, self.next_id, self.generation, self.mapped = None, None, 0, 0, False
        text = ("document", "digest", "title", "source")
        self.schema = pa.schema(
            [
                ("id", pa.int64()),
                *((name, pa.string()) for name in text),
                ("position", pa.int64()),
                ("text", pa.large_string()),
            ]
        )
        self.table = self.schema.empty_table()

    def __len__(self):
        return self.table.num_rows

    @property
    def documents(self):
        """{document id: digest}."""
        return dict(zip(self.table["document"].to_pylist(), self.table["digest"].to_pylist()))

    def chunk(self, row):
        found = self.table.slice(row, 1).to_pylist()[0]
        return Chunk(found["document"], found["position"], found["text"], found["title"], found["source"])

    def settle(self, n):
        """Choose the kind for n vectors where it is 'auto', and say why."""
        if self.kind == "auto":
            self.kind, self.why = choose_kind(n, self.dimension, psutil.virtual_memory().available / utils.GB)

    def add(self, chunks, digests, vectors, expected=None):
        """Append chunks, their documents' digests and vectors [N, D] float32 (None where the kind is 'none').

        expected: how many there will be in the end.
        """
        self.check_writable()
        self.settle(len(self) + max(len(chunks), expected or 0))
        ids = np.arange(self.next_id, self.next_id + len(chunks), dtype=np.int64)
        columns = [
            ids,
            [c.document for c in chunks],
            digests,
            [c.title for c in chunks],
            [c.source for c in chunks],
            [c.position for c in chunks],
            [c.text for c in chunks],
        ]
        new = pa.table(
            [pa.array(column, field.type) for column, field in zip(columns, self.schema)], schema=self.schema
        )
        if self.kind != "none":
            self._add_vectors(vectors, ids, max(len(vectors), expected or 0))
        self.table, self.next_id = pa.concat_tables([self.table, new]), self.next_id + len(chunks)

    def _add_vectors(self, vectors, ids, expected):
        """To faiss and to the originals of lossy kinds: all of them, or, interrupted, none."""
        if self.faiss is None:
            self.faiss = self._new(vectors, expected)
        before, step = self.faiss.ntotal, 10_000
        try:
            for begin in tqdm(
                range(0, len(vectors), step), desc="indexing", unit="10k vectors", disable=len(vectors) <= step
            ):
                some = vectors[begin : begin + step]
                if self.kind in CLUSTERED:
                    self.faiss.add_with_ids(some, ids[begin : begin + step])
                else:
                    self.faiss.add(some)
            if self.kind in LOSSY:
                self._keep(vectors)
        except BaseException:
            if self.kind == "hnsw":
                whole = self.faiss.reconstruct_n(0, before) if before else np.empty((0, self.dimension), np.float32)
                self.faiss = self._new(whole, expected)
                self.faiss.add(whole)
            else:
                self.faiss.remove_ids(ids if self.kind in CLUSTERED else np.arange(before, self.faiss.ntotal))
            raise

    def _keep(self, vectors, rows=None):
        """Append to the originals, which lie in a file and are mapped into memory; rows: of the old ones, those that stay."""
        file = tempfile.TemporaryFile()  # noqa: SIM115 -- lives as long as the array
        old = [] if self.vectors is None else [self.vectors if rows is None else self.vectors[rows]]
        n = sum(map(len, [*old, vectors]))
        for part in (*old, vectors):
            for begin in range(0, len(part), 10_000):
                file.write(np.ascontiguousarray(part[begin : begin + 10_000], np.float32))
        file.flush()
        self.vectors = (
            np.memmap(file, np.float32, "r", shape=(n, self.dimension))
            if n
            else np.empty((0, self.dimension), np.float32)
        )

    def check(self, n):
        """UserError where the options cannot be for n vectors to train on."""
        nlist, pq_m = self.options.get("nlist"), self.options.get("pq_m")
        if self.kind in CLUSTERED and nlist and nlist > n:
            raise utils.UserError(f"--nlist {nlist}: there are {n} vectors; give at most a 39th of them")
        if self.kind == "ivfpq" and ((pq_m and self.dimension % pq_m) or n < 256):
            raise utils.UserError(
                f"--index ivfpq wants --pq_m to divide the {self.dimension} dimensions (given: {pq_m}) and 256 vectors "
                f"at least to train on (there are {n}); take --index flat"
            )

    def _new(self, vectors, n):
        """An empty faiss index for n vectors, trained on (a sample of) those given."""
        options = self.options
        self.check(len(vectors))
        # four times the root of n (FAISS wiki), but 39 vectors a list, below which faiss calls k-means unfounded
        nlist = options.get("nlist") or max(1, min(int(4 * n**0.5), len(vectors) // 39))
        pq_m = options.get("pq_m") or next(
            m for m in range(max(1, self.dimension // 4), 0, -1) if self.dimension % m == 0
        )
        hnsw_m = options.get("hnsw_m") or 32
        factory = {
            "flat": "Flat",
            "ivf": f"IVF{nlist},Flat",
            "hnsw": f"HNSW{hnsw_m},Flat",
            "ivfpq": f"IVF{nlist},PQ{pq_m}x8np",
            "sq8": "SQ8",
        }
        # np: without the training for polysemous codes, which nothing here uses and which takes a second a byte
        metric = faiss.METRIC_INNER_PRODUCT if self.metric == "cosine" else faiss.METRIC_L2
        index = faiss.index_factory(self.dimension, factory[self.kind], metric)
        if self.kind == "hnsw":
            index.hnsw.efConstruction = options.get("ef_construction") or 200
            index.hnsw.efSearch = options.get("ef_search") or 64
        if self.kind in CLUSTERED:
            index.nprobe = min(nlist, options.get("nprobe") or max(32, nlist // 16))
            index.set_direct_map_type(faiss.DirectMap.Hashtable)  # to read a vector by its id
        if self.kind in TRAINED:
            sample = np.random.default_rng(0).permutation(len(vectors))[
                : max(64 * nlist, 65_536)
            ]  # faiss wants 39 a cluster
            index.train(np.ascontiguousarray(vectors[np.sort(sample)]))
        return index

    def remove(self, documents):
        """Forget documents; returns how many chunks went. An HNSW graph cannot forget, and is built again from its vectors."""
        if not documents:
            return 0
        self.check_writable()
        gone = pc.is_in(self.table["document"], value_set=pa.array(list(documents), pa.string())).to_numpy()
        if not gone.any():
            return 0
        rows = np.flatnonzero(~gone)
        if self.kind == "hnsw":
            kept = self.vectors_of(rows)
            fresh = self._new(kept, len(kept))
            fresh.add(kept)
            self.faiss = fresh
        elif self.kind != "none":
            ids = self.table["id"].to_numpy()
            self.faiss.remove_ids(ids[gone] if self.kind in CLUSTERED else np.flatnonzero(gone))
        if self.vectors is not None:
            self._keep(np.empty((0, self.dimension), np.float32), rows)
        self.table = self.table.filter(pa.array(~gone))
        return int(gone.sum())

    def check_writable(self):
        if self.mapped:
            raise utils.UserError("an index opened with --mmap cannot be changed; open it without")

    def vectors_of(self, rows):
        """The vectors [N, D] of these rows."""
        rows = np.asarray(rows, dtype=np.int64)
        if self.vectors is not None:
            return np.ascontiguousarray(self.vectors[rows])
        return self.faiss.reconstruct_batch(self.table["id"].to_numpy()[rows] if self.kind in CLUSTERED else rows)

    def search(self, queries, k, exact=False):
        """(rows [Q, K], scores [Q, K]) of the K = min(k, all) nearest, best first; row -1 where fewer were found.

        exact: by every vector, whatever the kind.
        """
        k = min(k, len(self))
        if not k:
            return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
        metric = faiss.METRIC_INNER_PRODUCT if self.metric == "cosine" else faiss.METRIC_L2
        clustered = self.kind in CLUSTERED
        if exact and self.vectors is not None:
            scores, rows = faiss.knn(queries, np.ascontiguousarray(self.vectors), k, metric=metric)
            clustered = False
        elif self.kind == "flat" and self.metric == "cosine":
            scores, rows = self._product(queries, k)
        elif exact and self.kind == "hnsw":
            scores, rows = self.faiss.storage.search(queries, k)
        elif exact and self.kind == "ivf":
            scores, rows = self.faiss.search(queries, k, params=faiss.SearchParametersIVF(nprobe=self.faiss.nlist))
        else:
            scores, rows = self.faiss.search(queries, k)
        if clustered:
            rows = np.where(rows < 0, -1, np.searchsorted(self.table["id"].to_numpy(), rows))
        return rows, scores if self.metric == "cosine" else -scores

    def _product(self, queries, k):
        """Exact search by a matrix product over faiss' own vectors, which BLAS computes faster than faiss' flat search scans them."""
        n = len(self)
        vectors = torch.from_numpy(
            faiss.rev_swig_ptr(self.faiss.get_xb(), n * self.dimension).reshape(n, self.dimension)
        )
        step, parts = max(1, PRODUCT // n), []  # queries at a time, so that their scores stay small
        for begin in range(0, len(queries), step):
            parts.append((torch.from_numpy(queries[begin : begin + step]) @ vectors.T).topk(k, dim=1))
        return torch.cat([part.values for part in parts]).numpy(), torch.cat([part.indices for part in parts]).numpy()

    def recall(self, queries, k=10):
        """Mean share of the exact k nearest that the index finds."""
        found, exact = self.search(queries, k)[0], self.search(queries, k, exact=True)[0]
        return float(np.mean([len(set(f) & set(e)) / len(e) for f, e in zip(found.tolist(), exact.tolist())]))

    def gb(self):
        """GB of the faiss index as it is written."""
        if self.faiss is None:
            return 0.0
        counted = [0]

        def count(data):
            counted[0] += len(data)
            return len(data)

        writer = faiss.BufferedIOWriter(faiss.PyCallbackIOWriter(count), 2**20)
        faiss.write_index(self.faiss, writer)
        del writer
        return counted[0] / utils.GB
