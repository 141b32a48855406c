"""BM25, reciprocal rank fusion and maximal marginal relevance."""

import re
import unicodedata
from itertools import pairwise

import bm25s
import numpy as np
import regex
import Stemmer

from harness.data.script_tokens import UNSPACED, script_tokens

RRF_CONSTANT = 60  # of reciprocal rank fusion, as in its paper
WORDS = re.compile(r"\b\w\w+\b")  # as bm25s and scikit-learn find them
WIDTHS = regex.compile("[\uff00-\uffef]+")  # full-width Latin, half-width kana
# a run of characters without spaces between words, or what stands between two runs and two spaces
PARTS = regex.compile(rf"(?V1)(?:{UNSPACED}\p{{M}}*)+|(?:(?!{UNSPACED})\S)+")
MARKED = regex.compile(r"[\w\p{M}\u200c\u200d]{2,}")  # WORDS breaks at combining marks, such as Hindi's vowel signs
UNUSUAL = regex.compile(rf"(?V1){UNSPACED}|\p{{M}}|[\uff00-\uffef]")


def bm25_words(text):
    """The words of a text in lower case; of scripts without spaces the characters and pairs of neighbours.

    A pair is what Lucene's analyzer for Chinese, Japanese and Korean indexes; a word of one character is found, too.
    Words with spaces are the same ones whatever stands beside them.
    """
    if not UNUSUAL.search(text):
        return WORDS.findall(text.lower())
    words, pairs = [], []
    for part in PARTS.findall(WIDTHS.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)):
        if regex.match(UNSPACED, part, regex.V1):
            words += (characters := script_tokens(part))
            pairs += [a + b for a, b in pairwise(characters)]
        else:
            part = unicodedata.normalize("NFC", part.lower()) if regex.search(r"\p{M}", part) else part.lower()
            words += (MARKED if regex.search(r"\p{M}", part) else WORDS).findall(part)
    return words + pairs


class Bm25:
    """Okapi BM25 in Lucene's form (bm25s, its default k1 and b), with a language's stop words and Snowball stemmer.

    texts: [N]; language: one of flags.BM25_LANGUAGES, "none" for neither stop words nor a stemmer.
    """

    def __init__(self, texts, language="none", progress=False):
        self.stemmer, self.stopwords = (None, []) if language == "none" else (Stemmer.Stemmer(language), language)
        self.n = len(texts)
        self.bm25 = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        tokens = self._tokens(texts, progress)
        self.empty = not tokens.vocab  # no text has a word in it
        if not self.empty:
            self.bm25.index(tokens, show_progress=progress)

    def _tokens(self, texts, progress=False):
        words = [" ".join(bm25_words(text)) for text in texts]
        options = {"stopwords": self.stopwords, "stemmer": self.stemmer, "show_progress": progress}
        return bm25s.tokenize(words, token_pattern=r"\S+", **options)

    def search(self, questions, k):
        """[Q] lists of at most k (row, score), best first; texts without a word of the question are left out."""
        if self.empty:
            return [[] for _ in questions]
        rows, scores = self.bm25.retrieve(self._tokens(questions), k=min(k, self.n), show_progress=False)
        return [[(int(r), float(s)) for r, s in zip(some, values) if s > 0] for some, values in zip(rows, scores)]


def reciprocal_rank_fusion(rankings, constant=RRF_CONSTANT):
    """[(item, score)], best first. score: the sum over the rankings of 1 / (constant + rank), ranks from 1.

    rankings: lists of items, best first. Source: Cormack et al. 2009.
    """
    scores = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + 1 / (constant + rank)
    return sorted(scores.items(), key=lambda pair: -pair[1])


def maximal_marginal_relevance(query, vectors, k, weight):
    """Positions of k of the vectors, chosen one after the other for relevance and diversity.

    Each is the best by weight x cosine to the query - (1 - weight) x the highest cosine to one chosen before: weight 1
    is relevance only, lower is more diverse. query: [D]; vectors: [N, D]. Source: Carbonell and Goldstein 1998.
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
