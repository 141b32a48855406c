"""TF-IDF, which needs no model, and what becomes of examples of two texts: no torch, for the selector reads it too."""

import numpy as np
import scipy.sparse
from sklearn.feature_extraction.text import TfidfVectorizer

import utils


class TfIdf:
    """TF-IDF of words and pairs of words, and of the 2 to 5 characters within words: sparse vectors [N, D].

    Each of the two has unit length, with logarithmic counts.
    """

    OPTIONS = {
        "words": {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b", "sublinear_tf": True},
        "characters": {"analyzer": "char_wb", "ngram_range": (2, 5), "sublinear_tf": True},
    }
    model, limit, precision, batch_size = None, None, None, None

    def __init__(self, saved=None):
        """saved: {name of a part: (terms in their order, idf [terms])} of `state`; without it `fit` comes first."""
        self.parts = {name: TfidfVectorizer(**options) for name, options in self.OPTIONS.items()}
        for name, (terms, idf) in (saved or {}).items():
            self.parts[name] = TfidfVectorizer(**self.OPTIONS[name], vocabulary=terms)
            self.parts[name].idf_ = idf

    def fit(self, texts):
        """Learn terms and idf. UserError for texts without any word."""
        try:
            for part in self.parts.values():
                part.fit(texts)
        except ValueError as error:  # "empty vocabulary": texts of punctuation alone
            raise utils.UserError(f"--features tfidf: the training texts have no words ({error})") from None

    def state(self):
        """What `__init__` takes as `saved`."""
        return {name: (list(part.get_feature_names_out()), part.idf_) for name, part in self.parts.items()}

    def __call__(self, texts, size=None, progress=None):
        """Sparse vectors [N, terms], float64. size, progress: as of the other kinds, and of no use here."""
        return scipy.sparse.hstack([part.transform(texts) for part in self.parts.values()], format="csr")


def texts_of(examples):
    """The texts [N] of N examples, in one list, or in two for pairs."""
    firsts = [ex.text for ex in examples]
    return [firsts] if examples[0].text_pair is None else [firsts, [ex.text_pair for ex in examples]]


def vectors_of(extract, texts, size=None, progress=None):
    """Features [N, D] of N texts, or [N, 4D] of N pairs. extract: a TfIdf, or of `features`; texts: of texts_of."""
    vectors = [extract(part, size, progress) for part in texts]
    return vectors[0] if len(vectors) == 1 else pair(*vectors)


def pair(u, v):
    """(u, v, |u - v|, u * v) [N, 4D] of the vectors of two texts (Conneau et al. 2017), dense or sparse."""
    if scipy.sparse.issparse(u):
        return scipy.sparse.hstack([u, v, abs(u - v), u.multiply(v)], format="csr")
    return np.hstack([u, v, np.abs(u - v), u * v])
