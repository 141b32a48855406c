"""Vectors in FAISS (Douze et al. 2024) with the chunks they belong to."""

import tempfile

import faiss
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tqdm.auto import tqdm

import utils
from harness.retrieval.chunking import Chunk

TRAINED, CLUSTERED, LOSSY = ("ivf", "ivfpq", "sq8"), ("ivf", "ivfpq"), ("ivfpq", "sq8")  # of flags.INDEX_KINDS
OPTIONS = ("nlist", "nprobe", "hnsw_m", "ef_construction", "ef_search", "pq_m")
EXACT_UP_TO = 1_000_000  # vectors; FAISS' wiki and sentence-transformers advise exact search up to about this size
PRODUCT = 2**25  # scores in one block of exact search: 128 MB
STEP = 10_000  # vectors that are added or written at once

TEXT_COLUMNS = ("document", "digest", "title", "source")
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        *((name, pa.string()) for name in TEXT_COLUMNS),
        ("position", pa.int64()),
        ("text", pa.large_string()),
        ("cut", pa.bool_()),  # longer than the embedder takes; null where nothing was embedded
    ]
)


def choose_kind(n, dimension, free_gb):
    """(index kind, why) for n vectors, which may take half of the `free_gb` of memory."""
    vectors = n * dimension * 4 / utils.GB
    size = f"{n:,} vectors of {dimension} dimensions, {vectors:.2f} GB, {free_gb:.1f} GB of memory free"
    if vectors <= free_gb / 2 and n <= EXACT_UP_TO:
        return "flat", f"flat, which is exact: {size}, and exact search is fast enough up to about a million"
    if vectors / 4 <= free_gb / 2 and n <= EXACT_UP_TO:
        return "sq8", f"sq8, one byte per dimension: {size}, and four bytes would not fit into half of the memory"
    graph = n * 64 * 4 / utils.GB  # 2 M = 64 links of four bytes at the lowest level
    if vectors + graph <= free_gb / 2:
        return "hnsw", f"hnsw: {size}; exact search would be slow, and vectors and graph fit into half of the memory"
    return "ivfpq", f"ivfpq: {size}; the vectors would not fit into half of the memory"


class Index:
    """Vectors and their chunks, in memory; index_folder.save_index and open_index write and read the folder.

    Row i of `table` (pyarrow, SCHEMA) belongs to vector i; its id never changes. kind: one of flags.INDEX_KINDS, "auto"
    (the first `add` chooses), or "none" (chunks without vectors, for BM25 alone). metric: "cosine" (vectors have unit
    length) or "l2". options: {name of OPTIONS: value}; None is the default for the size. Lossy kinds keep the original
    vectors beside the index, so that its recall can be measured.
    """

    served = False  # by a database, as ServedIndex is
    block = 20_000  # chunks that are embedded between two saves

    def __init__(self, dimension, kind="auto", metric="cosine", options=None):
        self.dimension, self.kind, self.metric, self.options = dimension, kind, metric, dict(options or {})
        self.why = ""  # the kind was chosen, where it was
        self.faiss = None
        self.vectors = None  # [N, D] originals of lossy kinds
        self.table, self.next_id = SCHEMA.empty_table(), 0
        self.generation, self.mapped = 0, False  # how often it was saved; opened with --mmap

    def __len__(self):
        return self.table.num_rows

    @property
    def documents(self):
        """{document id: digest} of all that is indexed."""
        return dict(zip(self.table["document"].to_pylist(), self.table["digest"].to_pylist()))

    @property
    def n_cut(self):
        """How many of the chunks the embedder has cut, as far as is known."""
        return pc.sum(self.table["cut"]).as_py() or 0

    @property
    def candidates(self):
        """How many vectors an HNSW search considers, None for other kinds."""
        return self.faiss.hnsw.efSearch if self.kind == "hnsw" and self.faiss else None

    def chunks(self, rows):
        """The Chunks in these rows of the table."""
        return [self.chunk(row) for row in rows]

    def texts(self):
        """[N] title and text of each chunk, for BM25."""
        pairs = zip(self.table["title"].to_pylist(), self.table["text"].to_pylist())
        return [f"{title} {text}".strip() for title, text in pairs]

    def chunk(self, row):
        """The Chunk in this row of the table."""
        cells = self.table.slice(row, 1).to_pylist()[0]
        return Chunk(cells["document"], cells["position"], cells["text"], cells["title"], cells["source"])

    def settle(self, n):
        """Replace the kind "auto" by the one for n vectors; `why` says what decided."""
        if self.kind == "auto":
            self.kind, self.why = choose_kind(n, self.dimension, psutil.virtual_memory().available / utils.GB)

    def add(self, chunks, digests, vectors, expected=None, cut=None, replacing=()):
        """Append chunks, their documents' digests and their vectors, in place of the documents `replacing`.

        vectors: [N, D] float32, None for the kind "none"; expected: chunks that this and later calls add, if known;
        cut: [N] whether the embedder cut the chunk, None where that is not known.
        """
        self.check_writable()
        self.remove(replacing)
        self.settle(len(self) + max(len(chunks), expected or 0))
        ids = np.arange(self.next_id, self.next_id + len(chunks), dtype=np.int64)
        columns = {
            "id": ids,
            "document": [chunk.document for chunk in chunks],
            "digest": digests,
            "title": [chunk.title for chunk in chunks],
            "source": [chunk.source for chunk in chunks],
            "position": [chunk.position for chunk in chunks],
            "text": [chunk.text for chunk in chunks],
            "cut": [None] * len(chunks) if cut is None else cut,
        }
        if self.kind != "none":
            self._add_vectors(vectors, ids, max(len(vectors), expected or 0))
        self.table = pa.concat_tables([self.table, pa.table(columns, schema=SCHEMA)])
        self.next_id += len(chunks)

    def _add_vectors(self, vectors, ids, expected):
        """Add vectors to faiss, and to the originals of lossy kinds; all of them, or none if it is interrupted."""
        if self.faiss is None:
            self.faiss = self._new(vectors, expected)
        before, n = self.faiss.ntotal, len(vectors)
        try:
            for begin in tqdm(range(0, n, STEP), desc="indexing", unit="10k vectors", disable=n <= STEP):
                some = vectors[begin : begin + STEP]
                if self.kind in CLUSTERED:
                    self.faiss.add_with_ids(some, ids[begin : begin + STEP])
                else:
                    self.faiss.add(some)
            if self.kind in LOSSY:
                self._keep(vectors)
        except BaseException:
            if self.kind == "hnsw":  # a graph cannot forget: build it again from the old vectors
                old = self.faiss.reconstruct_n(0, before) if before else np.empty((0, self.dimension), np.float32)
                self.faiss = self._new(old, expected)
                self.faiss.add(old)
            else:
                self.faiss.remove_ids(ids if self.kind in CLUSTERED else np.arange(before, self.faiss.ntotal))
            raise

    def _keep(self, vectors, rows=None):
        """Append to the originals, a memory-mapped temporary file. rows: of the old ones to keep (default: all)."""
        file = tempfile.TemporaryFile()  # noqa: SIM115 -- lives as long as the array
        old = [] if self.vectors is None else [self.vectors if rows is None else self.vectors[rows]]
        n = sum(map(len, [*old, vectors]))
        for part in (*old, vectors):
            for begin in range(0, len(part), STEP):
                file.write(np.ascontiguousarray(part[begin : begin + STEP], np.float32))
        file.flush()
        shape = (n, self.dimension)
        self.vectors = np.memmap(file, np.float32, "r", shape=shape) if n else np.empty(shape, np.float32)

    def check(self, n):
        """UserError if the options do not allow an index trained on n vectors."""
        nlist, pq_m = self.options.get("nlist"), self.options.get("pq_m")
        if self.kind in CLUSTERED and nlist and nlist > n:
            raise utils.UserError(f"--nlist {nlist}: there are {n} vectors; give at most a 39th of them")
        if self.kind == "ivfpq" and ((pq_m and self.dimension % pq_m) or n < 256):
            raise utils.UserError(
                f"--index ivfpq needs a --pq_m that divides the {self.dimension} dimensions (given: {pq_m}) and at "
                f"least 256 vectors to train on (there are {n}); use --index flat"
            )

    def _new(self, vectors, n):
        """An empty faiss index for n vectors, trained on (a sample of) those given."""
        self.check(len(vectors))
        options = self.options
        # 4 sqrt(n) clusters (FAISS wiki), but at least 39 vectors in each: with fewer faiss warns about its k-means
        nlist = options.get("nlist") or max(1, min(int(4 * n**0.5), len(vectors) // 39))
        # bytes of a vector: the largest divisor of the dimensions up to a fourth of them
        divisors = (m for m in range(max(1, self.dimension // 4), 0, -1) if self.dimension % m == 0)
        factory = {
            "flat": "Flat",
            "ivf": f"IVF{nlist},Flat",
            "hnsw": f"HNSW{options.get('hnsw_m') or 32},Flat",
            # np: without training polysemous codes, which are not used here and take a second per byte
            "ivfpq": f"IVF{nlist},PQ{options.get('pq_m') or next(divisors)}x8np",
            "sq8": "SQ8",
        }
        index = faiss.index_factory(self.dimension, factory[self.kind], self._faiss_metric)
        if self.kind == "hnsw":
            index.hnsw.efConstruction = options.get("ef_construction") or 200
            index.hnsw.efSearch = options.get("ef_search") or 64
        if self.kind in CLUSTERED:
            index.nprobe = min(nlist, options.get("nprobe") or max(32, nlist // 16))
            index.set_direct_map_type(faiss.DirectMap.Hashtable)  # to read a vector by its id
        if self.kind in TRAINED:
            most = max(64 * nlist, 65_536)  # faiss asks for at least 39 per cluster
            sample = np.random.default_rng(0).permutation(len(vectors))[:most]
            index.train(np.ascontiguousarray(vectors[np.sort(sample)]))
        return index

    @property
    def _faiss_metric(self):
        return faiss.METRIC_INNER_PRODUCT if self.metric == "cosine" else faiss.METRIC_L2

    def remove(self, documents):
        """Delete documents by id; returns how many chunks that were. An HNSW graph is built again from its vectors."""
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
        """UserError for an index that was opened with --mmap."""
        if self.mapped:
            raise utils.UserError("an index opened with --mmap cannot be changed; open it without")

    def vectors_of(self, rows):
        """The vectors [N, D] of these N rows; those of a lossy kind are the originals."""
        rows = np.asarray(rows, dtype=np.int64)
        if self.vectors is not None:
            return np.ascontiguousarray(self.vectors[rows])
        return self.faiss.reconstruct_batch(self.table["id"].to_numpy()[rows] if self.kind in CLUSTERED else rows)

    def search(self, queries, k, exact=False):
        """(rows [Q, K], scores [Q, K]) of the nearest K = min(k, all) chunks, best first; row -1 if fewer were found.

        queries: [Q, D] float32. scores: the cosine, or minus the squared distance. exact: compare with every original
        vector, whatever the kind.
        """
        k = min(k, len(self))
        if not k:
            return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
        found_ids = self.kind in CLUSTERED
        if exact and self.vectors is not None:
            originals = np.ascontiguousarray(self.vectors)
            scores, rows = faiss.knn(queries, originals, k, metric=self._faiss_metric)
            found_ids = False
        elif self.kind == "flat" and self.metric == "cosine":
            scores, rows = self._product(queries, k)
        elif exact and self.kind == "hnsw":
            scores, rows = self.faiss.storage.search(queries, k)
        elif exact and self.kind == "ivf":
            scores, rows = self.faiss.search(queries, k, params=faiss.SearchParametersIVF(nprobe=self.faiss.nlist))
        else:
            scores, rows = self.faiss.search(queries, k)
        if found_ids:
            rows = np.where(rows < 0, -1, np.searchsorted(self.table["id"].to_numpy(), rows))
        return rows, scores if self.metric == "cosine" else -scores

    def _product(self, queries, k):
        """Exact search as a matrix product over faiss' own vectors: BLAS is faster than faiss' scan of a flat index."""
        n = len(self)
        vectors = faiss.rev_swig_ptr(self.faiss.get_xb(), n * self.dimension).reshape(n, self.dimension)
        vectors = torch.from_numpy(vectors)  # a view: nothing is copied
        step, parts = max(1, PRODUCT // n), []  # queries at a time, so that [step, N] scores stay small
        for begin in range(0, len(queries), step):
            parts.append((torch.from_numpy(queries[begin : begin + step]) @ vectors.T).topk(k, dim=1))
        return torch.cat([part.values for part in parts]).numpy(), torch.cat([part.indices for part in parts]).numpy()

    def recall(self, queries, k=10):
        """Mean over the queries [Q, D] of the share of the exact k nearest chunks that `search` finds."""
        found, exact = self.search(queries, k)[0], self.search(queries, k, exact=True)[0]
        return float(np.mean([len(set(f) & set(e)) / len(e) for f, e in zip(found.tolist(), exact.tolist())]))

    def gb(self):
        """GB of the faiss index as it would be written, without writing it."""
        if self.faiss is None:
            return 0.0
        written = [0]

        def count(data):
            written[0] += len(data)
            return len(data)

        writer = faiss.BufferedIOWriter(faiss.PyCallbackIOWriter(count), 2**20)
        faiss.write_index(self.faiss, writer)
        del writer  # flushes its buffer
        return written[0] / utils.GB
