"""Documents in, the best chunks for a question out."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sentence_transformers import CrossEncoder, SentenceTransformer
from tqdm.auto import tqdm

import utils
from harness.models import loading
from harness.retrieval import index_folder
from harness.retrieval.documents import OVERLAP, Chunk, Skipped, distinct, read_documents, split_into_chunks
from harness.retrieval.index import CLUSTERED, TRAINED, Index
from harness.retrieval.ranking import Bm25, maximal_marginal_relevance, reciprocal_rank_fusion

RANKED = 100  # chunks that are ranked for MRR, MAP and nDCG@10, whatever k is


FUSED_DEPTH = 100  # first ranks of each retriever that are fused


DIVERSE_DEPTH = 50  # first ranks out of which diverse ones are chosen


BLOCK = 20_000  # chunks that are embedded between two saves


# texts whose vectors tell one embedder from another, and the cosine from which they count as the same
PROBES, SAME_VECTOR = ("The quick brown fox jumps over the lazy dog.", "How much is 17 times 3?", "Paris"), 0.9999


@dataclass(frozen=True)
class Hit:
    chunk: Chunk
    score: float
    row: int  # in the index, -1 for a passage that did not come from it


class Retriever:
    """An embedder, an index, and how they are searched. args: rag_eval.py's flags; opens args.index_dir where it is given."""

    def __init__(self, args, device):
        loading.quiet()
        self.args, name = args, args.embed_model
        self.embedder = _load(SentenceTransformer, name, "--embed_model", device, args)
        limit = self.embedder.max_seq_length
        limit = 10**9 if limit is None else limit - 2  # its two special tokens
        if args.chunk_tokens and args.chunk_tokens > limit:
            raise utils.UserError(f"--chunk_tokens {args.chunk_tokens}: {name} takes {limit} tokens at once")
        self.size = None if args.whole_documents else args.chunk_tokens or min(limit, 512)
        if args.chunk_overlap is not None and self.size and args.chunk_overlap > self.size // 2:
            raise utils.UserError(
                f"--chunk_overlap {args.chunk_overlap} must be at most half of the {self.size} tokens of a chunk"
            )
        self.overlap = min(OVERLAP, (self.size or 0) // 4) if args.chunk_overlap is None else args.chunk_overlap
        self.batch_size = 32 if args.batch_size == "auto" else max(args.batch_size, 32)
        self.reranker = None
        if args.reranker:
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
        self.index = (
            opened
            if opened is not None
            else Index(self.embedder.get_embedding_dimension(), kind, args.metric, self._options())
        )

    def gb(self):
        """GB of the embedder's weights, the reranker's and the index."""
        modules = [self.embedder, self.reranker] if self.reranker else [self.embedder]
        weights = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
        return weights / utils.GB + (0.0 if self.index.kind == "none" else self.index.gb())

    def _options(self):
        return {
            name: getattr(self.args, name)
            for name in ("nlist", "nprobe", "hnsw_m", "ef_construction", "ef_search", "pq_m")
        }

    def _opened(self):
        """The index in --index_dir; UserError where it was made with another embedder, chunking, metric or kind."""
        if self.args.index_dir and not self.args.mmap:
            try:
                os.makedirs(self.args.index_dir, exist_ok=True)  # before anything is embedded
            except FileExistsError:
                raise utils.UserError(f"--index_dir {self.args.index_dir} is a file; give a folder") from None
            except OSError as error:
                raise utils.UserError(f"--index_dir {self.args.index_dir} cannot be made: {error}") from None
        found = index_folder.open_index(self.args.index_dir, self.args.mmap) if self.args.index_dir else None
        if found is None:
            if self.args.mmap:
                raise utils.UserError(
                    f"--mmap: there is no index in {self.args.index_dir}; build it first with --build_only --docs PATH"
                )
            return None
        index, theirs = found
        ours = {**self.made_with, "metric": self.args.metric, "index": self.args.index}
        theirs = {**theirs, "metric": index.metric, "index": index.kind}
        if (self.args.index == "auto" and index.kind != "none") or (
            self.args.retriever == "bm25" and self.args.mmr is None
        ):
            ours["index"] = index.kind
        a, b = np.asarray(ours.pop("probes")), np.asarray(theirs.pop("probes"))
        same = (
            a.shape == b.shape
            and ((a * b).sum(1) >= SAME_VECTOR * np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)).all()
        )
        other = [
            f"{key} {theirs[key]}, not {ours[key]}"
            for key in ours
            if key not in ("embedder", "embedder_revision") and ours[key] != theirs.get(key)
        ]
        if not same:
            other.insert(0, f"the embedder {theirs['embedder']}, whose vectors are not those of {ours['embedder']}")
        fixed = ("nlist", "hnsw_m", "ef_construction", "pq_m")  # what an index was built with stays
        given = self._options()
        other += [
            f"{key} {index.options.get(key) or 'by default'}, not {given[key]}"
            for key in fixed
            if given[key] is not None and given[key] != index.options.get(key)
        ]
        if index.kind == "none" and ours["index"] != "none":
            raise utils.UserError(
                f"--index_dir {self.args.index_dir} was built for BM25 and holds no vectors; give --retriever bm25"
            )
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
        found = (
            encode(
                texts,
                prompt=prompt,
                batch_size=self.batch_size,
                normalize_embeddings=self.args.metric == "cosine",
                show_progress_bar=False,
            )
            if not progress
            else self._embed_with_bar(encode, prompt, texts)
        )
        return np.ascontiguousarray(found, dtype=np.float32)

    def _embed_with_bar(self, encode, prompt, texts):
        order, parts, step = np.argsort([-len(text) for text in texts], kind="stable"), [], 8 * self.batch_size
        with tqdm(total=len(texts), desc="embedding", unit="chunk") as bar:
            for begin in range(0, len(texts), step):
                some = [texts[i] for i in order[begin : begin + step]]
                parts.append(
                    encode(
                        some,
                        prompt=prompt,
                        batch_size=self.batch_size,
                        normalize_embeddings=self.args.metric == "cosine",
                        show_progress_bar=False,
                    )
                )
                bar.update(len(some))
        found = np.empty((len(texts), parts[0].shape[1]), np.float32)
        found[order] = np.concatenate(parts)
        return found

    def add(self, documents, skipped=None, keep_duplicates=False):
        """Chunk, embed and index documents: {"added", "updated", "unchanged", "chunks"}.

        A document whose id is there with another text takes the old one's place; one that is there with the same text is left
        alone. With --index_dir the index is saved, a large one also whenever it has grown by a quarter.
        """
        skipped = Skipped() if skipped is None else skipped
        known = self.index.documents
        fresh = [doc for doc in documents if known.get(doc.id) != doc.digest]
        found = {"added": 0, "updated": 0, "unchanged": len(documents) - len(fresh), "chunks": 0}
        stale = {doc.id for doc in fresh if doc.id in known}
        if not keep_duplicates:
            fresh = distinct(fresh, skipped, [digest for id, digest in known.items() if id not in stale])
        self.index.remove(stale - {doc.id for doc in fresh})  # whose new text stands elsewhere already
        found["updated"] = sum(doc.id in stale for doc in fresh)
        found["added"] = len(fresh) - found["updated"]
        chunks = split_into_chunks(fresh, self.embedder.tokenizer, self.size, self.overlap)
        digests = {doc.id: doc.digest for doc in fresh}
        found["chunks"] = len(chunks)
        first, saved = BLOCK, len(self.index)
        if chunks:
            self.index.settle(len(self.index) + len(chunks))
            if (
                self.index.faiss is None and self.index.kind in TRAINED
            ):  # to train on: 50 vectors for each of the clusters
                first = max(BLOCK, 50 * int(self.args.nlist or 4 * len(chunks) ** 0.5))
                self.index.check(min(first, len(chunks)))
        for block in _blocks(chunks, first, BLOCK):
            vectors = (
                None
                if self.index.kind == "none"
                else self.embed([chunk.full for chunk in block], progress=len(chunks) > 200)
            )
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
            raise utils.UserError(
                f"no document {', '.join(map(repr, lost[:5]))} in the index; `sources` in --interactive lists them"
            )
        self.bm25, n = None, self.index.remove(ids)
        self.save()
        return n

    def save(self, folder=None):
        if folder or self.args.index_dir:
            index_folder.save_index(self.index, folder or self.args.index_dir, self.made_with)

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
            texts = [
                f"{title} {text}".strip() for title, text in zip(table["title"].to_pylist(), table["text"].to_pylist())
            ]
            self.bm25 = Bm25(texts, self.args.language, len(texts) > 20_000)

    def search(self, questions, k):
        """For each question its k best hits, best first; milliseconds of the stages go to `spent` (embed, search, rerank)."""
        args, n = self.args, len(self.index)
        if not n or not questions:
            return [[] for _ in questions]
        self.prepare()
        depth = max(
            k,
            FUSED_DEPTH if args.retriever == "hybrid" else 0,
            args.rerank_depth if self.reranker else 0,
            DIVERSE_DEPTH if args.mmr is not None else 0,
        )
        queries = None
        if args.retriever != "bm25" or args.mmr is not None:
            queries = self._timed("embed", lambda: self.embed(questions, questions=True))
        ranked = self._timed("search", lambda: self._rank(questions, queries, depth))
        if self.reranker:
            ranked = self._timed("rerank", lambda: self._rerank(questions, ranked))
        if args.min_score is not None:
            ranked = [
                [pair for pair, value in zip(pairs, self._strengths(queries, i, pairs)) if value >= args.min_score]
                for i, pairs in enumerate(ranked)
            ]
        if args.mmr is not None:
            ranked = self._timed(
                "search", lambda: [self._diverse(query, pairs, k) for query, pairs in zip(queries, ranked)]
            )
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
        return [
            reciprocal_rank_fusion([[row for row, _ in a[:FUSED_DEPTH]], [row for row, _ in b[:FUSED_DEPTH]]])
            for a, b in zip(dense, lexical)
        ]

    def _rerank(self, questions, ranked):
        pairs = [
            (question, self.index.chunk(row).full)
            for question, some in zip(questions, ranked)
            for row, _ in some[: self.args.rerank_depth]
        ]
        scores = iter(
            self.reranker.predict(pairs, batch_size=self.batch_size, show_progress_bar=len(pairs) > 1000)
            if pairs
            else ()
        )
        found = []
        for some in ranked:
            scored = sorted(
                ((row, float(next(scores))) for row, _ in some[: self.args.rerank_depth]), key=lambda pair: -pair[1]
            )
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
        return kind(
            name, device=device, trust_remote_code=args.trust_remote_code, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError) as error:
        if utils.is_out_of_memory(error):
            raise
        raise utils.UserError(f"{flag} {name} cannot be loaded: {str(error).splitlines()[0]}") from None


def _revision(embedder, name):
    """The hub's commit, or the checksum of a local folder's weights; None where neither is known."""
    config = getattr(getattr(embedder[0], "auto_model", None), "config", None)
    weights = sorted(Path(name).glob("*.safetensors")) if Path(name).is_dir() else []
    return getattr(config, "_commit_hash", None) or (index_folder.checksum(weights[0])["sha256"] if weights else None)


def summary(found, retriever, skipped):
    """One line on what `Retriever.add` did."""
    parts = [f"{n} documents {what}" for what, n in found.items() if what != "chunks" and n]
    return "; ".join(
        filter(
            None,
            [
                ", ".join(parts) or "no new documents",
                f"{found['chunks']} chunks added, {len(retriever.index)} in all",
                skipped.summary(),
            ],
        )
    )


def read(places, skipped, args, **options):
    """docs.read_documents with the flags that say how."""
    return read_documents(places, skipped, args.max_file_mb, args.encoding, args.text_column, **options)


def fill(retriever, documents, args, skipped, whole=False):
    """Bring the index up to the documents; {"added", ...}, or None where it stays as it was opened.

    That is where it holds others and there is no --docs: a person's own index, asked with a data set's questions. whole: the
    documents are a collection with judgements, which keeps its duplicates and takes no others in.
    """
    known, texts = retriever.index.documents, {doc.digest for doc in documents}
    strange = [id for id, digest in known.items() if digest not in texts]
    if whole and strange:
        raise utils.UserError(
            f"--index_dir {args.index_dir} holds {len(strange)} documents that are not of {args.dataset}; give another"
        )
    if strange and not args.docs:
        return None
    if args.prune:
        # a file that is there and could not be read this time is not forgotten
        unread = {what for names in skipped.reasons.values() for what in names}
        sources = dict(zip(retriever.index.table["document"].to_pylist(), retriever.index.table["source"].to_pylist()))
        gone = {id for id in set(known) - {doc.id for doc in documents} if not {id, sources[id]} & unread}
        print(f"{retriever.remove(gone)} chunks of {len(gone)} documents forgotten, which are no longer there")
    return retriever.add(documents, skipped, keep_duplicates=whole)
