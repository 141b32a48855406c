"""BM25, reciprocal rank fusion, maximal marginal relevance."""

import bm25s
import numpy as np
import Stemmer

RRF_CONSTANT = 60  # of reciprocal rank fusion, as in its paper


STEMMED = {
    "english": "en",
    "german": "de",
    "french": "fr",
    "spanish": "es",
    "italian": "it",
    "portuguese": "pt",
    "dutch": "nl",
    "swedish": "sv",
    "norwegian": "no",
    "russian": "ru",
    "turkish": "tr",
    "none": None,
}


class Bm25:
    """Okapi BM25 as Lucene has it, with bm25s and its defaults; stop words and a Snowball stemmer of a language, or neither."""

    def __init__(self, texts, language="none", progress=False):
        self.stem = Stemmer.Stemmer(language) if language != "none" else None
        self.stopwords, self.n = STEMMED[language] or [], len(texts)
        self.bm25 = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        tokens = self._tokens(texts, progress)
        self.empty = not tokens.vocab  # no text has a word
        if not self.empty:
            self.bm25.index(tokens, show_progress=progress)

    def _tokens(self, texts, progress=False):
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
