"""Chunks -> vectors -> a FAISS index that lives in a folder -> ranked chunks: dense, BM25, both fused, reranked, diverse.

A score is always higher for the better: cosine similarity or the negative squared distance (dense), BM25, a fused reciprocal rank,
or what a reranker says. Times are milliseconds. faiss, sentence-transformers and bm25s are imported where they are used.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

import documents as docs
import utils

KINDS = ("flat", "ivf", "hnsw", "ivfpq", "sq8")
TRAINED, CLUSTERED, LOSSY = ("ivf", "ivfpq", "sq8"), ("ivf", "ivfpq"), ("ivfpq", "sq8")
EXACT_UP_TO = 1_000_000  # vectors; the libraries' authors advise exact search up to about there (FAISS wiki, sentence-transformers)
RANKED = 100  # chunks that are ranked for MRR, MAP and nDCG@10, whatever k is
RRF_CONSTANT = 60  # of reciprocal rank fusion, as in its paper
FUSED_DEPTH = 100  # first ranks of each retriever that are fused
DIVERSE_DEPTH = 50  # first ranks out of which diverse ones are chosen
PRODUCT = 2**25  # scores of a block of exact search, 128 MB
BLOCK = 20_000  # chunks that are embedded between two saves
# texts whose vectors tell one embedder from another, and the cosine from which they count as the same
PROBES, SAME_VECTOR = ("The quick brown fox jumps over the lazy dog.", "How much is 17 times 3?", "Paris"), 0.9999
FORMAT = 1  # of the folder; another is refused
STEMMED = {"english": "en", "german": "de", "french": "fr", "spanish": "es", "italian": "it", "portuguese": "pt", "dutch": "nl",
           "swedish": "sv", "norwegian": "no", "russian": "ru", "turkish": "tr", "none": None}  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- the index


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
    """Vectors with their chunks, in memory; `save` and `open_index` for the folder that they live in.

    Row i of `table` (pyarrow: id, document, digest, title, source, position, text) is vector i, and its id never changes.
    kind: one of KINDS, 'auto', settled by the first `add`, or 'none': chunks without vectors, for BM25. metric: 'cosine' (of
    unit vectors) or 'l2'. options: nlist, nprobe, hnsw_m, ef_construction, ef_search, pq_m; None is the default for the size.
    The original vectors of lossy kinds are kept beside the index, so that its recall can be measured.
    """

    def __init__(self, dimension, kind="auto", metric="cosine", options=None):
        import pyarrow as pa

        self.dimension, self.kind, self.metric, self.options, self.why = dimension, kind, metric, dict(options or {}), ""
        self.faiss, self.vectors, self.next_id, self.generation, self.mapped = None, None, 0, 0, False
        text = ("document", "digest", "title", "source")
        self.schema = pa.schema([("id", pa.int64()), *((name, pa.string()) for name in text), ("position", pa.int64()),
                                 ("text", pa.large_string())])  # fmt: skip
        self.table = self.schema.empty_table()

    def __len__(self):
        return self.table.num_rows

    @property
    def documents(self):
        """{document id: digest}."""
        return dict(zip(self.table["document"].to_pylist(), self.table["digest"].to_pylist()))

    def chunk(self, row):
        found = self.table.slice(row, 1).to_pylist()[0]
        return docs.Chunk(found["document"], found["position"], found["text"], found["title"], found["source"])

    def settle(self, n):
        """Choose the kind for n vectors where it is 'auto', and say why."""
        if self.kind == "auto":
            import psutil

            self.kind, self.why = choose_kind(n, self.dimension, psutil.virtual_memory().available / utils.GB)

    def add(self, chunks, digests, vectors, expected=None):
        """Append chunks, their documents' digests and vectors [N, D] float32 (None where the kind is 'none').

        expected: how many there will be in the end.
        """
        import pyarrow as pa

        self._writable()
        self.settle(len(self) + max(len(chunks), expected or 0))
        ids = np.arange(self.next_id, self.next_id + len(chunks), dtype=np.int64)
        columns = [ids, [c.document for c in chunks], digests, [c.title for c in chunks], [c.source for c in chunks],
                   [c.position for c in chunks], [c.text for c in chunks]]  # fmt: skip
        new = pa.table([pa.array(column, field.type) for column, field in zip(columns, self.schema)], schema=self.schema)
        if self.kind != "none":
            self._add_vectors(vectors, ids, max(len(vectors), expected or 0))
        self.table, self.next_id = pa.concat_tables([self.table, new]), self.next_id + len(chunks)

    def _add_vectors(self, vectors, ids, expected):
        """To faiss and to the originals of lossy kinds: all of them, or, interrupted, none."""
        from tqdm.auto import tqdm

        if self.faiss is None:
            self.faiss = self._new(vectors, expected)
        before, step = self.faiss.ntotal, 10_000
        try:
            for begin in tqdm(range(0, len(vectors), step), desc="indexing", unit="10k vectors", disable=len(vectors) <= step):
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
        self.vectors = np.memmap(file, np.float32, "r", shape=(n, self.dimension)) if n else np.empty((0, self.dimension), np.float32)

    def check(self, n):
        """UserError where the options cannot be for n vectors to train on."""
        nlist, pq_m = self.options.get("nlist"), self.options.get("pq_m")
        if self.kind in CLUSTERED and nlist and nlist > n:
            raise utils.UserError(f"--nlist {nlist}: there are {n} vectors; give at most a 39th of them")
        if self.kind == "ivfpq" and ((pq_m and self.dimension % pq_m) or n < 256):
            raise utils.UserError(f"--index ivfpq wants --pq_m to divide the {self.dimension} dimensions (given: {pq_m}) and 256 vectors "
                                  f"at least to train on (there are {n}); take --index flat")  # fmt: skip

    def _new(self, vectors, n):
        """An empty faiss index for n vectors, trained on (a sample of) those given."""
        import faiss

        options = self.options
        self.check(len(vectors))
        # four times the root of n (FAISS wiki), but 39 vectors a list, below which faiss calls k-means unfounded
        nlist = options.get("nlist") or max(1, min(int(4 * n**0.5), len(vectors) // 39))
        pq_m = options.get("pq_m") or next(m for m in range(max(1, self.dimension // 4), 0, -1) if self.dimension % m == 0)
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
            sample = np.random.default_rng(0).permutation(len(vectors))[: max(64 * nlist, 65_536)]  # faiss wants 39 a cluster
            index.train(np.ascontiguousarray(vectors[np.sort(sample)]))
        return index

    def remove(self, documents):
        """Forget documents; returns how many chunks went. An HNSW graph cannot forget, and is built again from its vectors."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if not documents:
            return 0
        self._writable()
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

    def _writable(self):
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
        import faiss

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
        import faiss
        import torch

        n = len(self)
        vectors = torch.from_numpy(faiss.rev_swig_ptr(self.faiss.get_xb(), n * self.dimension).reshape(n, self.dimension))
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
        import faiss

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

    # ------------------------------------------------------------------------------------------------------- the folder

    def save(self, folder, made_with):
        """Write index.faiss, chunks.parquet, meta.json (and vectors.npy of lossy kinds): all of them, or none.

        The new files are written beside the old ones; meta.json, which holds the others' checksums, takes the old one's place
        first, and that is the moment of saving: `open_index` finishes what a killed process left. made_with: what another
        session must match. UserError where another process saved since this one opened the folder.
        """
        self._writable()
        if self.faiss is not None and self.faiss.ntotal != len(self):
            raise utils.UserError("the index was interrupted while it changed, and is not saved; open it again")
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._write(folder, made_with)
        except OSError as error:  # a full disk, for instance
            raise utils.UserError(f"--index_dir {folder} cannot be written: {error}") from None

    def _write(self, folder, made_with):
        import faiss
        import pyarrow.parquet as pq

        with FileLock(folder / "lock"):
            there = _read_meta(folder)
            _refuse_foreign(folder, there)
            if (there or {}).get("generation", 0) != self.generation:
                raise utils.UserError(f"--index_dir {folder}: another process saved it since it was opened; open it again")
            _finish(folder, there)
            files = ["chunks.parquet"]
            pq.write_table(self.table, folder / "chunks.parquet.new")
            if self.faiss is not None:
                faiss.write_index(self.faiss, str(folder / "index.faiss.new"))
                files.append("index.faiss")
            if self.vectors is not None:
                with open(folder / "vectors.npy.new", "wb") as file:
                    np.save(file, self.vectors, allow_pickle=False)
                files.append("vectors.npy")
            sums = {}
            for name in files:
                with open(folder / f"{name}.new", "rb+") as file:
                    os.fsync(file.fileno())
                sums[name] = _checksum(folder / f"{name}.new")
            meta = {"format": FORMAT, "generation": self.generation + 1, "index": self.kind, "metric": self.metric,
                    "dimension": self.dimension, "options": self.options, "documents": len(set(self.table["document"].to_pylist())),
                    "chunks": len(self), "next_id": self.next_id, "files": sums, "made_with": made_with,
                    "versions": json.loads(utils.provenance()["versions"])}  # fmt: skip
            with open(folder / "meta.json.new", "w", encoding="utf-8") as file:
                json.dump(meta, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(folder / "meta.json.new", folder / "meta.json")
            self.generation += 1
            _finish(folder, meta)


def _checksum(path):
    with open(path, "rb") as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _read_meta(folder):
    """meta.json, None where there is none; UserError where it is none of ours."""
    path = Path(folder) / "meta.json"
    if not path.is_file():
        return None
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        ours = meta["format"] == FORMAT and isinstance(meta["files"], dict)
    except (ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise utils.UserError(f"{path} is not the description of an index that this version wrote; delete the folder and build it again")
    return meta


def _finish(folder, meta):
    """Put the files that meta.json names in their places, and remove what an unfinished save left."""
    for name in ("index.faiss", "chunks.parquet", "vectors.npy", "meta.json"):
        new = folder / f"{name}.new"
        if new.exists():
            if meta and name in meta["files"] and _checksum(new) == meta["files"][name]:
                os.replace(new, folder / name)
            else:
                new.unlink()
        if name != "meta.json" and (not meta or name not in meta["files"]):
            (folder / name).unlink(missing_ok=True)  # of another kind, or of a save that never came to its end
    with contextlib.suppress(OSError):  # a folder cannot be synchronised everywhere
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _refuse_foreign(folder, meta):
    """UserError for a folder that holds somebody's files and no index: they would be overwritten."""
    ours = ("lock", "index.faiss.new", "chunks.parquet.new", "vectors.npy.new", "meta.json.new")
    if meta is None and any(path.name not in ours for path in folder.iterdir()):
        raise utils.UserError(f"--index_dir {folder} holds other files and no index; give a new or empty folder")


def open_index(folder, mmap=False):
    """(Index, what it was made with) as last saved, None where the folder holds none. mmap: read only what a search touches.

    UserError where a file is damaged or missing. Checksums are compared, of a memory-mapped index the sizes alone.
    """
    import faiss
    import pyarrow.parquet as pq

    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise utils.UserError(f"--index_dir {folder} is a file; give a folder")
    if not folder.is_dir():
        return None
    _refuse_foreign(folder, _read_meta(folder))
    writable = os.access(folder, os.W_OK)
    with FileLock(folder / "lock") if writable else contextlib.nullcontext():
        meta = _read_meta(folder)
        if writable:
            _finish(folder, meta)
        if meta is None:
            return None
        for name, wanted in meta["files"].items():
            path = folder / name
            damaged = not path.is_file() or path.stat().st_size != wanted["bytes"]
            if damaged or (not (mmap and name != "chunks.parquet") and _checksum(path) != wanted):
                raise utils.UserError(f"{path} is missing or damaged: its size or checksum is not what meta.json says; delete {folder} "
                                      "and build it again")  # fmt: skip
        index = Index(meta["dimension"], meta["index"], meta["metric"], meta["options"])
        index.table, index.next_id, index.generation = pq.read_table(folder / "chunks.parquet"), meta["next_id"], meta["generation"]
        if "index.faiss" in meta["files"]:
            index.faiss = faiss.read_index(str(folder / "index.faiss"), faiss.IO_FLAG_MMAP_IFC if mmap else 0)
            if index.faiss.ntotal != len(index):
                raise utils.UserError(f"{folder} holds {index.faiss.ntotal} vectors for {len(index)} chunks; delete it and build it again")
        if "vectors.npy" in meta["files"]:
            index.vectors = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        index.mapped = mmap
    return index, meta["made_with"]


# ----------------------------------------------------------------------------------------------------------------- ranking


class Bm25:
    """Okapi BM25 as Lucene has it, with bm25s and its defaults; stop words and a Snowball stemmer of a language, or neither."""

    def __init__(self, texts, language="none", progress=False):
        import bm25s
        import Stemmer

        self.stem = Stemmer.Stemmer(language) if language != "none" else None
        self.stopwords, self.n = STEMMED[language] or [], len(texts)
        self.bm25 = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        tokens = self._tokens(texts, progress)
        self.empty = not tokens.vocab  # no text has a word
        if not self.empty:
            self.bm25.index(tokens, show_progress=progress)

    def _tokens(self, texts, progress=False):
        import bm25s

        return bm25s.tokenize(texts, stopwords=self.stopwords, stemmer=self.stem, show_progress=progress)

    def search(self, questions, k):
        """[Q] lists of (row, score), best first; chunks that share no word with the question are left out."""
        if self.empty:
            return [[] for _ in questions]
        rows, scores = self.bm25.retrieve(self._tokens(questions), k=min(k, self.n), show_progress=False)
        return [[(int(r), float(s)) for r, s in zip(some, values) if s > 0] for some, values in zip(rows, scores)]


def reciprocal_rank_fusion(rankings, constant=RRF_CONSTANT):
    """[(item, score)], best first: the sum over the rankings of 1 / (constant + rank), ranks from 1 (Cormack et al. 2009)."""
    scores = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + 1 / (constant + rank)
    return sorted(scores.items(), key=lambda pair: -pair[1])


def maximal_marginal_relevance(query, vectors, k, weight):
    """Positions of k vectors, each the best by weight x likeness to the query - (1 - weight) x likeness to one chosen before.

    query: [D]; vectors: [N, D]; likeness: cosine (Carbonell and Goldstein 1998).
    """

    def unit(x):
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

    query, vectors = unit(query), unit(vectors)
    relevance, nearest, chosen = vectors @ query, np.full(len(vectors), -np.inf), []
    for _ in range(min(k, len(vectors))):
        value = weight * relevance - (1 - weight) * np.where(np.isinf(nearest), 0.0, nearest)
        value[chosen] = -np.inf
        chosen.append(int(value.argmax()))
        nearest = np.maximum(nearest, vectors @ vectors[chosen[-1]])
    return chosen


@dataclass(frozen=True)
class Hit:
    chunk: docs.Chunk
    score: float
    row: int  # in the index, -1 for a passage that did not come from it


class Retriever:
    """An embedder, an index, and how they are searched. args: rag_eval.py's flags; opens args.index_dir where it is given."""

    def __init__(self, args, device):
        import models

        models.quiet()
        from sentence_transformers import SentenceTransformer

        self.args, name = args, args.embed_model
        self.embedder = _load(SentenceTransformer, name, "--embed_model", device, args)
        limit = self.embedder.max_seq_length
        limit = 10**9 if limit is None else limit - 2  # its two special tokens
        if args.chunk_tokens and args.chunk_tokens > limit:
            raise utils.UserError(f"--chunk_tokens {args.chunk_tokens}: {name} takes {limit} tokens at once")
        self.size = None if args.whole_documents else args.chunk_tokens or min(limit, 512)
        if args.chunk_overlap is not None and self.size and args.chunk_overlap > self.size // 2:
            raise utils.UserError(f"--chunk_overlap {args.chunk_overlap} must be at most half of the {self.size} tokens of a chunk")
        self.overlap = min(docs.OVERLAP, (self.size or 0) // 4) if args.chunk_overlap is None else args.chunk_overlap
        self.batch_size = 32 if args.batch_size == "auto" else max(args.batch_size, 32)
        self.reranker = None
        if args.reranker:
            from sentence_transformers import CrossEncoder

            self.reranker = _load(CrossEncoder, args.reranker, "--reranker", device, args)
        self.bm25, self.spent = None, {}
        self.made_with = {
            "embedder": name,
            "embedder_revision": _revision(self.embedder, name),
            "passage_prompt": args.passage_prompt,
            "chunk_tokens": self.size,
            "chunk_overlap": self.overlap if self.size else None,
            "probes": [[round(float(x), 6) for x in vector] for vector in self.embed(PROBES)],
        }
        kind = "none" if args.retriever == "bm25" and args.mmr is None else args.index
        opened = self._opened()
        self.index = opened if opened is not None else Index(self.embedder.get_embedding_dimension(), kind, args.metric, self._options())

    def gb(self):
        """GB of the embedder's weights, the reranker's and the index."""
        modules = [self.embedder, self.reranker] if self.reranker else [self.embedder]
        weights = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
        return weights / utils.GB + (0.0 if self.index.kind == "none" else self.index.gb())

    def _options(self):
        return {name: getattr(self.args, name) for name in ("nlist", "nprobe", "hnsw_m", "ef_construction", "ef_search", "pq_m")}

    def _opened(self):
        """The index in --index_dir; UserError where it was made with another embedder, chunking, metric or kind."""
        if self.args.index_dir and not self.args.mmap:
            try:
                os.makedirs(self.args.index_dir, exist_ok=True)  # before anything is embedded
            except FileExistsError:
                raise utils.UserError(f"--index_dir {self.args.index_dir} is a file; give a folder") from None
            except OSError as error:
                raise utils.UserError(f"--index_dir {self.args.index_dir} cannot be made: {error}") from None
        found = open_index(self.args.index_dir, self.args.mmap) if self.args.index_dir else None
        if found is None:
            if self.args.mmap:
                raise utils.UserError(f"--mmap: there is no index in {self.args.index_dir}; build it first with --build_only --docs PATH")
            return None
        index, theirs = found
        ours = {**self.made_with, "metric": self.args.metric, "index": self.args.index}
        theirs = {**theirs, "metric": index.metric, "index": index.kind}
        if (self.args.index == "auto" and index.kind != "none") or (self.args.retriever == "bm25" and self.args.mmr is None):
            ours["index"] = index.kind
        a, b = np.asarray(ours.pop("probes")), np.asarray(theirs.pop("probes"))
        same = a.shape == b.shape and (
            (a * b).sum(1) >= SAME_VECTOR * np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)).all()  # fmt: skip
        other = [f"{key} {theirs[key]}, not {ours[key]}" for key in ours
                 if key not in ("embedder", "embedder_revision") and ours[key] != theirs.get(key)]  # fmt: skip
        if not same:
            other.insert(0, f"the embedder {theirs['embedder']}, whose vectors are not those of {ours['embedder']}")
        fixed = ("nlist", "hnsw_m", "ef_construction", "pq_m")  # what an index was built with stays
        given = self._options()
        other += [f"{key} {index.options.get(key) or 'by default'}, not {given[key]}" for key in fixed
                  if given[key] is not None and given[key] != index.options.get(key)]  # fmt: skip
        if index.kind == "none" and ours["index"] != "none":
            raise utils.UserError(f"--index_dir {self.args.index_dir} was built for BM25 and holds no vectors; give --retriever bm25")
        if other:
            raise utils.UserError(
                f"--index_dir {self.args.index_dir} was built with {'; '.join(other)}: give the same flags, or another folder"
            )
        changed = {name: value for name, value in self._options().items() if value is not None}
        if index.kind == "hnsw" and "ef_search" in changed:
            index.faiss.hnsw.efSearch = changed["ef_search"]
        if index.kind in CLUSTERED and "nprobe" in changed:
            index.faiss.nprobe = min(changed["nprobe"], index.faiss.nlist)
        index.options.update(changed)
        return index

    def embed(self, texts, questions=False, progress=False):
        """Vectors [N, D], float32, of unit length under the cosine metric."""
        encode = self.embedder.encode_query if questions else self.embedder.encode_document
        prompt = self.args.query_prompt if questions else self.args.passage_prompt
        found = encode(texts, prompt=prompt, batch_size=self.batch_size, normalize_embeddings=self.args.metric == "cosine",
                       show_progress_bar=False) if not progress else self._embed_with_bar(encode, prompt, texts)  # fmt: skip
        return np.ascontiguousarray(found, dtype=np.float32)

    def _embed_with_bar(self, encode, prompt, texts):
        from tqdm.auto import tqdm

        order, parts, step = np.argsort([-len(text) for text in texts], kind="stable"), [], 8 * self.batch_size
        with tqdm(total=len(texts), desc="embedding", unit="chunk") as bar:
            for begin in range(0, len(texts), step):
                some = [texts[i] for i in order[begin : begin + step]]
                parts.append(encode(some, prompt=prompt, batch_size=self.batch_size, normalize_embeddings=self.args.metric == "cosine",
                                    show_progress_bar=False))  # fmt: skip
                bar.update(len(some))
        found = np.empty((len(texts), parts[0].shape[1]), np.float32)
        found[order] = np.concatenate(parts)
        return found

    def add(self, documents, skipped=None, keep_duplicates=False):
        """Chunk, embed and index documents: {"added", "updated", "unchanged", "chunks"}.

        A document whose id is there with another text takes the old one's place; one that is there with the same text is left
        alone. With --index_dir the index is saved, a large one also whenever it has grown by a quarter.
        """
        skipped = docs.Skipped() if skipped is None else skipped
        known = self.index.documents
        fresh = [doc for doc in documents if known.get(doc.id) != doc.digest]
        found = {"added": 0, "updated": 0, "unchanged": len(documents) - len(fresh), "chunks": 0}
        stale = {doc.id for doc in fresh if doc.id in known}
        if not keep_duplicates:
            fresh = docs.distinct(fresh, skipped, [digest for id, digest in known.items() if id not in stale])
        self.index.remove(stale - {doc.id for doc in fresh})  # whose new text stands elsewhere already
        found["updated"] = sum(doc.id in stale for doc in fresh)
        found["added"] = len(fresh) - found["updated"]
        chunks = docs.split_into_chunks(fresh, self.embedder.tokenizer, self.size, self.overlap)
        digests = {doc.id: doc.digest for doc in fresh}
        found["chunks"] = len(chunks)
        first, saved = BLOCK, len(self.index)
        if chunks:
            self.index.settle(len(self.index) + len(chunks))
            if self.index.faiss is None and self.index.kind in TRAINED:  # to train on: 50 vectors for each of the clusters
                first = max(BLOCK, 50 * int(self.args.nlist or 4 * len(chunks) ** 0.5))
                self.index.check(min(first, len(chunks)))
        for block in _blocks(chunks, first, BLOCK):
            vectors = None if self.index.kind == "none" else self.embed([chunk.full for chunk in block], progress=len(chunks) > 200)
            self.index.remove(stale & {chunk.document for chunk in block})
            self.index.add(block, [digests[chunk.document] for chunk in block], vectors, len(chunks))
            if len(self.index) > 1.25 * saved:  # not after each block: a save writes everything
                self.save()
                saved = len(self.index)
        if stale or len(self.index) != saved:
            self.save()
        self.bm25 = None
        return found

    def remove(self, ids):
        """Forget documents by id; returns how many chunks went. UserError for an id that is not there."""
        lost = sorted(set(ids) - set(self.index.documents))
        if lost:
            raise utils.UserError(f"no document {', '.join(map(repr, lost[:5]))} in the index; `sources` in --interactive lists them")
        self.bm25, n = None, self.index.remove(ids)
        self.save()
        return n

    def save(self, folder=None):
        if folder or self.args.index_dir:
            self.index.save(folder or self.args.index_dir, self.made_with)

    def _timed(self, what, work):
        utils.synchronize()
        start = time.perf_counter()
        found = work()
        utils.synchronize()
        self.spent[what] = self.spent.get(what, 0.0) + 1000 * (time.perf_counter() - start)
        return found

    @property
    def depth(self):
        """How many chunks to rank for the measures of rankings: an HNSW search for more than its candidates would be a better one."""
        return min(RANKED, self.index.faiss.hnsw.efSearch) if self.index.kind == "hnsw" and self.index.faiss else RANKED

    def prepare(self):
        """Build what the first search would build: the BM25 index of the chunks."""
        if self.args.retriever != "dense" and self.bm25 is None and len(self.index):
            table = self.index.table
            texts = [f"{title} {text}".strip() for title, text in zip(table["title"].to_pylist(), table["text"].to_pylist())]
            self.bm25 = Bm25(texts, self.args.language, len(texts) > 20_000)

    def search(self, questions, k):
        """For each question its k best hits, best first; milliseconds of the stages go to `spent` (embed, search, rerank)."""
        args, n = self.args, len(self.index)
        if not n or not questions:
            return [[] for _ in questions]
        self.prepare()
        depth = max(k, FUSED_DEPTH if args.retriever == "hybrid" else 0, args.rerank_depth if self.reranker else 0,
                    DIVERSE_DEPTH if args.mmr is not None else 0)  # fmt: skip
        queries = None
        if args.retriever != "bm25" or args.mmr is not None:
            queries = self._timed("embed", lambda: self.embed(questions, questions=True))
        ranked = self._timed("search", lambda: self._rank(questions, queries, depth))
        if self.reranker:
            ranked = self._timed("rerank", lambda: self._rerank(questions, ranked))
        if args.min_score is not None:
            ranked = [[pair for pair, value in zip(pairs, self._strengths(queries, i, pairs)) if value >= args.min_score]
                      for i, pairs in enumerate(ranked)]  # fmt: skip
        if args.mmr is not None:
            ranked = self._timed("search", lambda: [self._diverse(query, pairs, k) for query, pairs in zip(queries, ranked)])
        return [[Hit(self.index.chunk(row), score, row) for row, score in pairs[:k]] for pairs in ranked]

    def _rank(self, questions, queries, depth):  # -> [Q] lists of (row, score)
        dense, lexical = None, None
        if self.args.retriever != "bm25":
            rows, scores = self.index.search(queries, depth)
            dense = [[(int(r), float(s)) for r, s in zip(some, values) if r >= 0] for some, values in zip(rows, scores)]
        if self.args.retriever != "dense":
            lexical = self.bm25.search(questions, depth)
        if dense is None or lexical is None:
            return lexical if dense is None else dense
        return [reciprocal_rank_fusion([[row for row, _ in a[:FUSED_DEPTH]], [row for row, _ in b[:FUSED_DEPTH]]])
                for a, b in zip(dense, lexical)]  # fmt: skip

    def _rerank(self, questions, ranked):
        pairs = [(question, self.index.chunk(row).full) for question, some in zip(questions, ranked)
                 for row, _ in some[: self.args.rerank_depth]]  # fmt: skip
        scores = iter(self.reranker.predict(pairs, batch_size=self.batch_size, show_progress_bar=len(pairs) > 1000) if pairs else ())
        found = []
        for some in ranked:
            scored = sorted(((row, float(next(scores))) for row, _ in some[: self.args.rerank_depth]), key=lambda pair: -pair[1])
            rest = some[len(scored) :] if self.args.min_score is None else []  # after them, in their old order
            found.append(scored + [(row, scored[-1][1] - n) for n, (row, _) in enumerate(rest, start=1)])
        return found

    def _strengths(self, queries, i, pairs):
        """What --min_score is compared with: the hits' scores; of fused ranks, which have no scale, the dense likeness."""
        if self.args.retriever != "hybrid" or self.reranker or not pairs:
            return [score for _, score in pairs]
        vectors = self.index.vectors_of([row for row, _ in pairs])
        return vectors @ queries[i] if self.args.metric == "cosine" else -((vectors - queries[i]) ** 2).sum(axis=1)

    def _diverse(self, query, pairs, k):
        first, rest = pairs[:DIVERSE_DEPTH], pairs[DIVERSE_DEPTH:]
        if not first:
            return []
        order = maximal_marginal_relevance(query, self.index.vectors_of([row for row, _ in first]), k, self.args.mmr)
        left = [pair for i, pair in enumerate(first) if i not in set(order)]
        return [first[i] for i in order] + left + rest


def _blocks(chunks, first, size):
    """Consecutive parts of at least `size` chunks, the first of `first`, that end where a document ends."""
    begin = 0
    while begin < len(chunks):
        end = min(begin + (size if begin else first), len(chunks))
        while end < len(chunks) and chunks[end].document == chunks[end - 1].document:
            end += 1
        yield chunks[begin:end]
        begin = end


def _load(kind, name, flag, device, args):
    try:
        return kind(name, device=device, trust_remote_code=args.trust_remote_code, model_kwargs={"use_safetensors": True})
    except (OSError, ValueError) as error:
        if utils.is_out_of_memory(error):
            raise
        raise utils.UserError(f"{flag} {name} cannot be loaded: {str(error).splitlines()[0]}") from None


def _revision(embedder, name):
    """The hub's commit, or the checksum of a local folder's weights; None where neither is known."""
    config = getattr(getattr(embedder[0], "auto_model", None), "config", None)
    weights = sorted(Path(name).glob("*.safetensors")) if Path(name).is_dir() else []
    return getattr(config, "_commit_hash", None) or (_checksum(weights[0])["sha256"] if weights else None)
