"""Made-up documents and vectors, and retrievers filled with them."""

import random

import numpy as np
from helpers import GOOD, SHARED, THINGS

import rag_eval
from harness.retrieval.chunking import Chunk
from harness.retrieval.documents import Document
from harness.retrieval.retriever import Retriever


def arguments(embedder, *flags):
    return rag_eval.parse_args(["--embed_model", embedder, *flags])


def retriever_of(embedder, *flags):
    return Retriever(arguments(embedder, *flags), "cpu")


def sentences(n, seed=0):
    rng = random.Random(seed)
    return [f"the {rng.choice(GOOD)} {rng.choice(THINGS)} number{i} was {rng.choice(GOOD)} ." for i in range(n)]


def clustered(n, dimension=32, seed=0, metric="cosine"):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(20, dimension))
    vectors = (centres[rng.integers(0, 20, n)] + 0.5 * rng.normal(size=(n, dimension))).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if metric == "cosine" else vectors


def add_vectors(index, names, vectors):
    index.add([Chunk(name, 0, f"text of {name}") for name in names], [f"digest {name}" for name in names], vectors)


def found_by(index, queries, k=10):
    rows, scores = index.search(queries, k)
    return [[index.chunk(int(row)).document for row in some] for some in rows], scores


# parameters at which approximate kinds find what exact search finds, so that results can be compared
EXACT_OPTIONS = {
    "flat": {},
    "ivf": {"nlist": 10, "nprobe": 10},
    "hnsw": {"ef_search": 500},
    "ivfpq": {"nlist": 5, "nprobe": 5, "pq_m": 16},
    "sq8": {},
}


def filled(embedder, *flags):
    retriever = retriever_of(embedder, *flags)
    retriever.add([Document(f"d{i}", "", text) for i, text in enumerate(sentences(60))])
    return retriever


SCIFACT = SHARED / "scifact"
