"""Questions with their right passage and hard negatives, to train embedders and rerankers on.

A hard negative is a passage that a retriever ranks high and that is not the right one (Karpukhin et al. 2020).
"""

import random
from dataclasses import dataclass

from harness.data.examples import Example, draw
from harness.evaluation import metrics
from harness.retrieval import qrels
from harness.retrieval.raft import gold_chunk, rows_of
from harness.retrieval.retriever import Hit

DEPTH = 50  # first ranks that the negatives are taken from


@dataclass(frozen=True)
class Triple:
    """A question, a passage that answers it, and passages that do not."""

    question: str
    positive: str
    negatives: list  # of texts


def beir_examples(folder, n, seed, evaluation):
    """([N] Examples, {query id: {document id: grade}}) of the judged queries of a BEIR folder's qrels/train.tsv.

    n: so many of them, drawn by the seed, None for all; evaluation: Examples whose ids and texts are left out.
    """
    _, queries, judgements = qrels.load_beir(folder, "train")
    seen = {ex.id for ex in evaluation} | {ex.text for ex in evaluation}
    unseen = [Example(query, text) for query, text in queries.items() if not {query, text} & seen]
    return draw(unseen, n, seed), judgements


def mine(examples, relevant, own, retriever, n, seed):
    """[P] Triples with n negatives each: one for each question and each of its relevant documents.

    relevant: [N] {document id: grade}; own: [N] id of the document that is the question itself, or None. The positive
    is the document's chunk with the answer, or the one that the retriever ranks best. Negatives are its first hits of
    other documents without the answer; where these are too few, chunks drawn by the seed.
    """
    rows, rng, size, triples = rows_of(retriever.index), random.Random(seed), len(retriever.index), []
    ranked = retriever.search([ex.text for ex in examples], DEPTH, own)
    for ex, hits, right, itself in zip(examples, ranked, relevant, own):
        drawn = (Hit(retriever.index.chunk(row), 0.0, row) for row in rng.sample(range(size), min(size, DEPTH)))
        wrong = [hit.chunk.full for hit in [*hits, *drawn] if is_wrong(hit.chunk, ex, {*right, itself})]
        negatives = list(dict.fromkeys(wrong))[:n]
        for document in right if len(negatives) == n else ():
            if rows[document]:  # a judged document may not be in the corpus
                positive = gold_chunk(ex, rows[document], hits, retriever.index)
                triples.append(Triple(ex.text, positive.chunk.full, negatives))
    return triples


def is_wrong(chunk, example, right):
    """True for a chunk of another document that does not contain the answer either."""
    return chunk.document not in right and not metrics.contains_answer(chunk.full, example.references)
