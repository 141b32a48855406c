"""Demonstrations that are chosen for each input: the labelled examples nearest to it (Liu et al. 2022, KATE)."""

import copy

import numpy as np


class Nearest:
    """For each input the k labelled examples whose embeddings are nearest by cosine, the nearest one last.

    Prompts then have no demonstrations in common, so nothing of them can be computed once for all.
    """

    def __init__(self, embed, pool, k):
        """embed: texts [N] -> unit vectors [N, D]; pool: the labelled Examples to choose from, at least k."""
        self.embed, self.pool, self.k = embed, pool, k
        self.vectors = embed([text_of(ex) for ex in pool])  # [P, D]
        self.places = {}  # {Example.key: where it stands in the pool}
        for i, ex in enumerate(pool):
            self.places.setdefault(ex.key(), []).append(i)

    def of(self, k):
        """The same with another k; the pool is not embedded again."""
        other = copy.copy(self)
        other.k = k
        return other

    def __len__(self):
        return self.k

    def __call__(self, examples):
        """[N] lists of k Examples. An example of the pool never demonstrates itself, nor a copy of itself."""
        if not self.k or not examples:
            return [[] for _ in examples]
        likeness = self.embed([text_of(ex) for ex in examples]) @ self.vectors.T  # [N, P]
        for n, ex in enumerate(examples):
            likeness[n, self.places.get(ex.key(), [])] = -np.inf
        order = np.argsort(-likeness, axis=1, kind="stable")[:, : self.k]
        return [
            [self.pool[i] for i in reversed(row) if np.isfinite(likeness[n, i])] for n, row in enumerate(order.tolist())
        ]


def text_of(example):
    """What is embedded of an example: its text or both texts of a pair, without a passage."""
    return "\n".join(filter(None, [example.text, example.text_pair]))


def of_each(demonstrations, examples):
    """[N] lists of demonstrations for N examples. demonstrations: one list for all, or a Nearest."""
    return demonstrations(examples) if callable(demonstrations) else [demonstrations] * len(examples)
