"""Documents in, the best chunks for a question out."""

import time
from collections import defaultdict
from dataclasses import dataclass

from sentence_transformers import CrossEncoder

import utils
from harness.models import loading, sentence_transformer
from harness.retrieval import index_folder, opening
from harness.retrieval.chunking import OVERLAP, Chunk, split_into_chunks
from harness.retrieval.documents import Skipped, distinct
from harness.retrieval.embedder import Embedder
from harness.retrieval.index import TRAINED, Index
from harness.retrieval.ranking import Bm25, maximal_marginal_relevance, reciprocal_rank_fusion

MAX_CHUNK_TOKENS = 512  # of a chunk, unless --chunk_tokens asks for more
RANKED = 100  # chunks that are ranked for MRR, MAP and nDCG@10, whatever k is
FUSED_DEPTH = 100  # first ranks of each retriever that are fused
DIVERSE_DEPTH = 50  # first ranks from which diverse ones are chosen
BAR_FROM = 200  # chunks from which embedding shows a progress bar


@dataclass(frozen=True)
class Hit:
    """A chunk that was found for a question."""

    chunk: Chunk
    score: float  # higher is better; its scale depends on the retriever
    row: int  # in the index, -1 for a passage that does not come from it


class Retriever:
    """An embedder, an index, and the ways to search it. args: rag_eval.py's; opens the index that they name."""

    def __init__(self, args, device):
        loading.quiet()
        self.args, self.embedder = args, Embedder(args, device)
        self.size, self.overlap = self._chunking()
        self.reranker = None
        if args.reranker:
            self.reranker = sentence_transformer.load(CrossEncoder, args.reranker, "--reranker", device, args)
            if (getattr(self.reranker.config, "num_labels", None) or 1) != 1:
                raise utils.UserError(f"--reranker {args.reranker} has several outputs; a reranker has one")
        self.bm25 = None  # built by the first search
        self.rows = None  # {document id: its rows}, made by the first search without some documents
        self.spent = {}  # milliseconds of searches by stage: embed, search, rerank
        self.only_bm25 = args.retriever == "bm25" and args.mmr is None  # needs no vectors
        self.made_with = {
            "embedder": args.embed_model,
            "embedder_revision": self.embedder.revision(),
            "passage_prompt": args.passage_prompt,
            "chunk_tokens": self.size,
            "chunk_overlap": self.overlap if self.size else None,
            "probes": self.embedder.rounded_probes(),
        }
        self.index = opening.open_or_new(args, self.made_with, self.embedder.dimension, not self.only_bm25)
        if self.index.kind == "none" and not self.only_bm25:
            self.index = self._with_vectors(self.index)

    def _chunking(self):
        """(tokens of a chunk or None for whole documents, tokens of overlap); UserError if the embedder takes fewer."""
        args, most = self.args, self.embedder.max_tokens
        if args.chunk_tokens and args.chunk_tokens > most:
            raise utils.UserError(
                f"--chunk_tokens {args.chunk_tokens}: {args.embed_model} takes {most} tokens of a passage at once, "
                "besides its prompt"
            )
        size = None if args.whole_documents else args.chunk_tokens or min(most, MAX_CHUNK_TOKENS)
        if args.chunk_overlap is None:
            return size, min(OVERLAP, (size or 0) // 4)
        if size and args.chunk_overlap > size // 2:
            raise utils.UserError(
                f"--chunk_overlap {args.chunk_overlap} must be at most half of the {size} tokens of a chunk"
            )
        return size, args.chunk_overlap

    def gb(self):
        """GB of the weights of the embedder and the reranker; on a CPU also of an index in this process' memory."""
        modules = [self.embedder.model, self.reranker] if self.reranker else [self.embedder.model]
        weights = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
        elsewhere = self.index.kind == "none" or self.index.served or self.embedder.model.device.type != "cpu"
        return weights / utils.GB + (0.0 if elsewhere else self.index.gb())

    def told_cut(self):
        """One line on how many chunks the embedder has cut, "" if none."""
        n, what = self.index.n_cut, "chunks" if self.size else "documents"
        if not n:
            return ""
        return (
            f"{n} of {len(self.index)} {what} are longer than the {self.embedder.max_tokens} tokens that "
            f"{self.args.embed_model} takes, and only their beginning is embedded"
        )

    # ----------------------------------------------------------------------------------------------- the index's folder

    def _with_vectors(self, bare):
        """An index with the chunks of one that was built for BM25 alone: they are embedded, and it is saved."""
        args = self.args
        if args.mmap:
            raise utils.UserError(
                f"--index_dir {args.index_dir} was built for BM25 and holds no vectors; give --retriever bm25, or open "
                "it once without --mmap, which embeds its chunks"
            )
        print(f"--index_dir {args.index_dir} was built for BM25 alone; its {len(bare)} chunks are embedded now")
        index = Index(self.embedder.dimension, args.index, args.metric, opening.options(args))
        index.generation = bare.generation
        chunks, digests = [bare.chunk(row) for row in range(len(bare))], bare.table["digest"].to_pylist()
        begin = 0
        for block in _blocks(chunks, self._first_block(index, len(chunks)), index.block):
            self._embed_into(index, block, digests[begin : begin + len(block)], len(chunks))
            begin += len(block)
        index_folder.save_index(index, args.index_dir, self.made_with)
        return index

    def save(self, folder=None):
        """Save the index in the folder, or in --index_dir; without either nothing is saved. At a database it is saved
        already, and only its graph may be missing.
        """
        if self.index.served:
            self.index.finish()
        elif folder or self.args.index_dir:
            index_folder.save_index(self.index, folder or self.args.index_dir, self.made_with)

    # ------------------------------------------------------------------------------------------------- add and remove

    def add(self, documents, skipped=None, keep_duplicates=False):
        """Chunk, embed and index documents; returns counts {"added", "updated", "unchanged", "chunks"}.

        A document replaces the one with its id, if the text differs. Without keep_duplicates a text that is indexed
        already is skipped. With --index_dir the index is saved, a large one also whenever it has grown by a quarter; a
        database confirms each block.
        """
        skipped = Skipped() if skipped is None else skipped
        known = self.index.documents
        fresh = [doc for doc in documents if known.get(doc.id) != doc.digest]
        counts = {"added": 0, "updated": 0, "unchanged": len(documents) - len(fresh), "chunks": 0}
        stale = {doc.id for doc in fresh if doc.id in known}
        if not keep_duplicates:
            fresh = distinct(fresh, skipped, [digest for id, digest in known.items() if id not in stale])
        self.index.remove(stale - {doc.id for doc in fresh})  # their new text is indexed under another id already
        counts["updated"] = sum(doc.id in stale for doc in fresh)
        counts["added"] = len(fresh) - counts["updated"]
        chunks = split_into_chunks(fresh, self.embedder.tokenizer, self.size, self.overlap)
        digests = {doc.id: doc.digest for doc in fresh}
        counts["chunks"] = len(chunks)
        saved = len(self.index)
        for block in _blocks(chunks, self._first_block(self.index, len(chunks)), self.index.block):
            of_block = [digests[chunk.document] for chunk in block]
            self._embed_into(self.index, block, of_block, len(chunks), stale & {chunk.document for chunk in block})
            if (
                not self.index.served and len(self.index) > 1.25 * saved
            ):  # not after each block: a save writes everything
                self.save()
                saved = len(self.index)
        if stale or len(self.index) != saved or self.index.served:
            self.save()
        self.bm25 = self.rows = None
        self.embedder.end_workers()
        return counts

    def _first_block(self, index, n):
        """How many of n new chunks the first block needs: it trains the index, 50 vectors for each of the clusters."""
        if not n:
            return index.block
        index.settle(len(index) + n)
        if index.faiss is not None or index.kind not in TRAINED:
            return index.block
        first = max(index.block, 50 * int(self.args.nlist or 4 * n**0.5))
        index.check(min(first, n))
        return first

    def _embed_into(self, index, chunks, digests, expected, stale=()):
        """Embed chunks, if the index holds vectors, and put them in place of the documents `stale`."""
        vectors = cut = None
        if index.kind != "none":
            texts = [chunk.full for chunk in chunks]
            vectors, cut = self.embedder.embed(texts, progress=expected > BAR_FROM), self.embedder.cut(texts)
        index.add(chunks, digests, vectors, expected, cut, replacing=stale)

    def remove(self, ids):
        """Delete documents by id; returns how many chunks that were. UserError for an id that is not in the index."""
        unknown = sorted(set(ids) - set(self.index.documents))
        if unknown:
            raise utils.UserError(
                f"no document {', '.join(map(repr, unknown[:5]))} in the index; `sources` in --interactive lists them"
            )
        self.bm25 = self.rows = None
        n = self.index.remove(ids)
        self.save()
        return n

    # --------------------------------------------------------------------------------------------------------- search

    @property
    def depth(self):
        """Chunks to rank for MRR, MAP and nDCG; of HNSW its candidates, as more would beat the search that is timed."""
        return min(RANKED, self.index.candidates or RANKED)

    def prepare(self):
        """Build the BM25 index of the chunks now, so that the first search does not."""
        if self.args.retriever != "dense" and self.bm25 is None and len(self.index):
            texts = self.index.texts()
            self.bm25 = Bm25(texts, self.args.language, progress=len(texts) > 20_000)

    def search(self, questions, k, without=None):
        """[Q] lists of at most k hits, best first. The milliseconds of each stage are added to `spent`.

        without: [Q] ids of the one document that this question must not find, or None.
        """
        args = self.args
        if not len(self.index) or not questions:
            return [[] for _ in questions]
        self.prepare()
        depth = max(  # the later stages need more than k
            k,
            FUSED_DEPTH if args.retriever == "hybrid" else 0,
            args.rerank_depth if self.reranker else 0,
            DIVERSE_DEPTH if args.mmr is not None else 0,
        )
        own = self._rows_of(without or [None] * len(questions))
        queries = None  # [Q, D]
        if args.retriever != "bm25" or args.mmr is not None:
            queries = self._timed("embed", lambda: self.embedder.embed(questions, questions=True))
        ranked = self._timed("search", lambda: self._rank(questions, queries, depth, own))
        if self.reranker:
            ranked = self._timed("rerank", lambda: self._rerank(questions, ranked))
        if args.min_score is not None:
            for i, pairs in enumerate(ranked):
                values = self._strengths(queries, i, pairs)
                ranked[i] = [pair for pair, value in zip(pairs, values) if value >= args.min_score]
        if args.mmr is not None:
            ranked = self._timed("search", lambda: [self._diverse(*pair, k) for pair in zip(queries, ranked)])
        chunks = iter(self.index.chunks([row for pairs in ranked for row, _ in pairs[:k]]))
        return [[Hit(next(chunks), score, row) for row, score in pairs[:k]] for pairs in ranked]

    def _timed(self, stage, work):
        utils.synchronize()
        start = time.perf_counter()
        result = work()
        utils.synchronize()
        self.spent[stage] = self.spent.get(stage, 0.0) + 1000 * (time.perf_counter() - start)
        return result

    def _rows_of(self, documents):
        """[Q] sets of the rows of these documents, empty for None."""
        if self.rows is None and any(documents):
            self.rows = defaultdict(set)
            for row, document in enumerate(self.index.table["document"].to_pylist()):
                self.rows[document].add(row)
        return [self.rows.get(document, set()) if document else set() for document in documents]

    def _rank(self, questions, queries, depth, own):
        """[Q] lists of (row, score) of dense search, BM25, or both fused. own: [Q] sets of rows that do not count."""
        depth += max(map(len, own))
        dense = lexical = None
        if self.args.retriever != "bm25":
            rows, scores = self.index.search(queries, depth)
            dense = [
                [(int(r), float(s)) for r, s in zip(some, values) if r >= 0 and int(r) not in gone]
                for some, values, gone in zip(rows, scores, own)
            ]
        if self.args.retriever != "dense":
            found = self.bm25.search(questions, depth)
            lexical = [[pair for pair in pairs if pair[0] not in gone] for pairs, gone in zip(found, own)]
        if dense is None or lexical is None:
            return lexical if dense is None else dense
        return [
            reciprocal_rank_fusion([[row for row, _ in pairs[:FUSED_DEPTH]] for pairs in both])
            for both in zip(dense, lexical)
        ]

    def _rerank(self, questions, ranked):
        """The first --rerank_depth of each list in the cross-encoder's order; --min_score drops the others."""
        depth, texts = self.args.rerank_depth, []
        for question, pairs in zip(questions, ranked):
            chunks = self.index.chunks([row for row, _ in pairs[:depth]])
            texts += [(question, chunk.full) for chunk in chunks]
        options = {"batch_size": self.embedder.batch_size, "show_progress_bar": len(texts) > 1000}
        scores = iter(self.reranker.predict(texts, **options) if texts else ())
        reranked = []
        for pairs in ranked:
            scored = [(row, float(next(scores))) for row, _ in pairs[:depth]]
            scored.sort(key=lambda pair: -pair[1])
            # the others have no score of the reranker: they follow in their old order, with scores that fall
            rest = pairs[depth:] if self.args.min_score is None else []
            reranked.append(scored + [(row, scored[-1][1] - n) for n, (row, _) in enumerate(rest, start=1)])
        return reranked

    def _strengths(self, queries, i, pairs):
        """What --min_score is compared with: the scores; for fused ranks, which have no scale, the dense similarity."""
        if self.args.retriever != "hybrid" or self.reranker or not pairs:
            return [score for _, score in pairs]
        vectors = self.index.vectors_of([row for row, _ in pairs])
        return vectors @ queries[i] if self.args.metric == "cosine" else -((vectors - queries[i]) ** 2).sum(axis=1)

    def _diverse(self, query, pairs, k):
        """The pairs with k diverse ones of the first DIVERSE_DEPTH in front."""
        first, rest = pairs[:DIVERSE_DEPTH], pairs[DIVERSE_DEPTH:]
        if not first:
            return []
        order = maximal_marginal_relevance(query, self.index.vectors_of([row for row, _ in first]), k, self.args.mmr)
        left = [pair for i, pair in enumerate(first) if i not in set(order)]
        return [first[i] for i in order] + left + rest


def _blocks(chunks, first, size):
    """Consecutive parts of at least `size` chunks (the first: of `first`) that end where a document ends."""
    begin = 0
    while begin < len(chunks):
        end = min(begin + (size if begin else first), len(chunks))
        while end < len(chunks) and chunks[end].document == chunks[end - 1].document:
            end += 1
        yield chunks[begin:end]
        begin = end
