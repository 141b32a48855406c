"""Questions with their right passage and hard negatives, to train embedders and rerankers on.

A hard negative is a passage that a retriever ranks high and that is not the right one (Karpukhin et al. 2020).
"""

import random
from collections import defaultdict
from dataclasses import dataclass

from harness.data.examples import Example, draw
from harness.evaluation import metrics
from harness.retrieval import qrels
from harness.retrieval.raft import best_chunk
from harness.retrieval.retriever import Hit

DEPTH = 50  # first ranks that the negatives are taken from


@dataclass(frozen=True)
class Triple:
    """A question, a passage that answers it, and passages that do not."""

    question: str
    positive: str
    negatives: list  # of texts


def beir_examples(folder, n, seed):
    """([N] Examples, [N] {document id: grade}) of the judged queries of a BEIR folder's qrels/train.tsv; n: so many of
    them, drawn by the seed, None for all.
    """
    _, queries, judgements = qrels.load_beir(folder, "train")
    examples = draw([Example(query, text) for query, text in queries.items()], n, seed)
    return examples, [judgements[ex.id] for ex in examples]


def mine(examples, relevant, retriever, n, seed):
    """[P] Triples with n negatives each: one for each question and each of its relevant documents.

    relevant: [N] {document id: grade}. The positive is the document's chunk with the answer, or the one that the
    retriever ranks best. Negatives are its first hits of other documents without the answer; where these are too few,
    chunks drawn by the seed.
    """
    rows, rng, size = defaultdict(list), random.Random(seed), len(retriever.index)
    for row, document in enumerate(retriever.index.table["document"].to_pylist()):
        rows[document].append(row)
    triples = []
    for ex, hits, right in zip(examples, retriever.search([ex.text for ex in examples], DEPTH), relevant):
        rank = {hit.row: place for place, hit in enumerate(hits)}
        drawn = (Hit(retriever.index.chunk(row), 0.0, row) for row in rng.sample(range(size), min(size, DEPTH)))
        wrong = [hit.chunk.full for hit in [*hits, *drawn] if is_wrong(hit.chunk, ex, right)]
        negatives = list(dict.fromkeys(wrong))[:n]
        for document in right if len(negatives) == n else ():
            ordered = sorted(rows[document], key=lambda row: rank.get(row, DEPTH))
            own = [Hit(retriever.index.chunk(row), 0.0, row) for row in ordered]
            if own:  # a judged document may not be in the corpus
                triples.append(Triple(ex.text, best_chunk(ex, own).chunk.full, negatives))
    return triples


def is_wrong(chunk, example, right):
    """True for a chunk of another document that does not contain the answer either."""
    return chunk.document not in right and not metrics.contains_answer(chunk.full, example.references)
