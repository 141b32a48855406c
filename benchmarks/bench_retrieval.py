"""How fast, how large and how exact is each kind of index? Ours (FAISS), hnswlib, and a plain matrix product (exact).

Vectors are all-MiniLM-L6-v2 embeddings of movie reviews, or of the chunks of --docs. For sizes above their number the
vectors and queries are synthetic: a mixture with the clusters of the real embeddings (k-means) and the real covariance
within clusters, on the unit sphere. That is harder than text, which varies in fewer dimensions. The subjects of a size
are built in one process and take turns at the same queries; recall@10 is against exact search.

    pip install -r benchmarks/requirements.txt -c constraints.txt
    OMP_NUM_THREADS=2 python benchmarks/bench_retrieval.py --sizes 10000 --readme docs/retrieval.md
    OMP_NUM_THREADS=2 python benchmarks/bench_retrieval.py --sizes 100000 --readme docs/retrieval.md \\
        --docs SCIFACT_DIR assets/data/*/corpus.jsonl
    # a million, and a database beside FAISS (index_url: of a PostgreSQL with pgvector)
    OMP_NUM_THREADS=2 python benchmarks/bench_retrieval.py --sizes 1000000 --section bench_retrieval_scale --rounds 3 \\
        --readme docs/scale.md --subjects flat sq8 ivf ivfpq hnsw
    OMP_NUM_THREADS=2 python benchmarks/bench_retrieval.py --sizes 100000 --section bench_retrieval_scale --rounds 3 \\
        --readme docs/scale.md --subjects flat hnsw 'pgvector flat' 'pgvector hnsw' 'pgvector hnsw half' \\
        --index_url postgresql://localhost/bench
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import torch
from common import add_output_args, machine, markdown, measured_at, publish, run_child, saved
from sentence_transformers import SentenceTransformer

import utils
from harness import flags
from harness.data import tasks
from harness.retrieval import served
from harness.retrieval.chunking import Chunk, split_into_chunks
from harness.retrieval.documents import read_documents
from harness.retrieval.index import Index

SUBJECTS = ("flat", "ivf", "hnsw", "ivfpq", "sq8", "hnswlib", "matrix product")
SERVED = ("pgvector flat", "pgvector hnsw", "pgvector hnsw half")  # of --index_url
N_QUERIES = 512
K = 10


def parse_args():
    parser = flags.ArgumentParser(__doc__)
    parser.add_argument(
        "--sizes", type=flags.positive_int, nargs="+", default=[10_000, 100_000], help="(default: 10000 100000)"
    )
    parser.add_argument(
        "--subjects",
        nargs="+",
        choices=(*SUBJECTS, *SERVED),
        default=list(SUBJECTS),
        help="(default: all but pgvector)",
    )
    parser.add_argument(
        "--index_url", help="of the pgvector subjects: a PostgreSQL, where tables bench_.. are made and dropped"
    )
    parser.add_argument("--embed_model", default="assets/models/all-MiniLM-L6-v2", help="(default: %(default)s)")
    parser.add_argument("--texts", default="assets/data/movie_reviews", help="what is embedded (default: %(default)s)")
    parser.add_argument("--docs", nargs="+", help="documents whose chunks are embedded instead")
    parser.add_argument("--chunk_tokens", type=flags.positive_int, default=24, help="of --docs (default: %(default)s)")
    parser.add_argument("--rounds", type=flags.positive_int, default=5, help="turns (default: %(default)s)")
    section = "name of the figures' file and of the page's marks (default: %(default)s)"
    parser.add_argument("--section", default="bench_retrieval", help=section)
    add_output_args(parser)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


# ----------------------------------------------------------------------------------------------------------------- data


def embeddings(args):
    """Unit vectors [N, D] of distinct texts, in random order, no more than the largest size and its queries want."""
    if args.docs:
        chunks = split_into_chunks(
            read_documents(args.docs), utils.load_tokenizer(args.embed_model), args.chunk_tokens, 0
        )
        texts = [chunk.full for chunk in chunks]
    else:
        task = tasks.load_task(args.texts)
        texts = [ex.text for ex in [*task.train, *task.validation, *task.evaluation]]
    texts = list(dict.fromkeys(texts))
    texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[: max(args.sizes) + N_QUERIES]]
    model = SentenceTransformer(args.embed_model, device="cpu")
    return model.encode(texts, batch_size=64, normalize_embeddings=True, show_progress_bar=True).astype(np.float32)


def like(real, n, seed, n_clusters=100):
    """n unit vectors [n, D] of the mixture described above."""
    kmeans = faiss.Kmeans(real.shape[1], n_clusters, niter=20, seed=0)
    kmeans.train(real)
    nearest = kmeans.index.search(real, 1)[1][:, 0]
    rest = real - kmeans.centroids[nearest]
    variance, axes = np.linalg.eigh(np.cov(rest.T))
    shape = (axes * np.sqrt(np.maximum(variance, 0))).astype(np.float32)  # shape @ shape.T is the covariance
    rng, parts = np.random.default_rng(seed), []
    for begin in range(0, n, 100_000):
        m = min(100_000, n - begin)
        x = (
            kmeans.centroids[nearest[rng.integers(0, len(real), m)]]
            + rng.standard_normal((m, real.shape[1]), np.float32) @ shape.T
        )
        parts.append(x / np.linalg.norm(x, axis=1, keepdims=True))
    return np.concatenate(parts).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------- subjects


def build(name, vectors, url=None):
    """(search, GB of the index, seconds to build it): search takes queries [Q, D] and returns rows [Q, K]."""
    ours = name in flags.INDEX_KINDS or name in SERVED
    chunks = [Chunk(str(i), 0, "") for i in range(len(vectors))] if ours else None
    begin = time.perf_counter()
    search, gb = at_server(name, vectors, chunks, url) if name in SERVED else make(name, vectors, chunks)
    return search, gb, time.perf_counter() - begin


def at_server(name, vectors, chunks, url):
    """The same of a table in PostgreSQL, by one connection."""
    kind, half, table = name.split()[1], name.endswith("half"), f"bench_{name.replace(' ', '_')}"
    store = served.connect(url, table)
    with store._transaction() as cursor:
        cursor.execute(store._sql("drop table if exists {table}"))
    index = served.ServedIndex(store, vectors.shape[1], kind, "cosine", {}, half, {})
    for start in range(0, len(vectors), store.block):
        some = slice(start, start + store.block)
        index.add(chunks[some], [""] * len(chunks[some]), vectors[some], len(vectors))
    index.finish()
    return lambda queries: index.search(queries, K)[0], index.gb()


def make(name, vectors, chunks):
    if name == "matrix product":
        table = torch.from_numpy(vectors)
        return (
            lambda queries: (torch.from_numpy(queries) @ table.T).topk(K, dim=1).indices.numpy(),
            vectors.nbytes / utils.GB,
        )
    if name == "hnswlib":
        import hnswlib  # only here: the other subjects do without it

        index = hnswlib.Index(space="ip", dim=vectors.shape[1])
        index.init_index(max_elements=len(vectors), ef_construction=200, M=32)
        index.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
        index.add_items(vectors)
        index.set_ef(64)
        return lambda queries: index.knn_query(queries, K)[0].astype(np.int64), index.index_file_size() / utils.GB
    index = Index(vectors.shape[1], name)
    index.add(chunks, [""] * len(vectors), vectors)
    return lambda queries: index.search(queries, K)[0], index.gb()


def child(folder, subjects, rounds, url):
    """Build each subject and time them in turns; the last line of output is JSON."""
    vectors, queries = np.load(Path(folder) / "vectors.npy"), np.load(Path(folder) / "queries.npy")
    rows, searches = {}, {}
    for name in subjects:
        searches[name], gb, seconds = build(name, vectors, url)
        rows[name] = {"build_seconds": seconds, "index_gb": gb}
    exact = build("matrix product", vectors)[0](queries)
    for name, search in searches.items():
        found = search(queries)
        rows[name]["recall"] = float(
            np.mean([len(set(f) & set(e)) / K for f, e in zip(found.tolist(), exact.tolist())])
        )
        rows[name].update(rate_1=[], rate_32=[])
    slow = len(vectors) > 300_000
    for _ in range(rounds):
        for name, search in searches.items():
            for size, key in ((1, "rate_1"), (32, "rate_32")):
                some = [queries[i : i + size] for i in range(0, (32 if slow else 128) * (1 if size == 1 else 4), size)]
                for batch in some[:2]:
                    search(batch)
                begin = time.perf_counter()
                for batch in some:
                    search(batch)
                rows[name][key].append(sum(map(len, some)) / (time.perf_counter() - begin))
    print(json.dumps(rows))


# --------------------------------------------------------------------------------------------------------------- report


def table(rows):
    """The Markdown table of all sizes."""
    lines = []
    for row in sorted(rows, key=lambda row: (row["n"], (*SUBJECTS, *SERVED).index(row["subject"]))):
        same = {other["subject"]: other for other in rows if other["n"] == row["n"]}
        rate = {key: statistics.median(row[key]) for key in ("rate_1", "rate_32")}
        against = [
            f"{statistics.median(a / b for a, b in zip(row[key], same['flat'][key])):.2f}" if "flat" in same else ""
            for key in ("rate_1", "rate_32")
        ]
        lines.append(
            [
                f"{row['n']:,}",
                row["vectors"],
                row["subject"],
                f"{row['build_seconds']:.1f}",
                f"{row['index_gb']:.3f}",
                f"{row['recall']:.3f}",
                f"{rate['rate_1']:,.0f}",
                against[0],
                f"{rate['rate_32']:,.0f}",
                against[1],
            ]
        )
    header = [
        "n",
        "vectors",
        "index",
        "build s",
        "index GB",
        "recall@10",
        "queries/s, 1",
        "times flat",
        "queries/s, 32",
        "times flat",
    ]
    return markdown(header, lines)


def main():
    args = parse_args()
    if args.child:
        return child(args.child, args.subjects, args.rounds, args.index_url)
    real = embeddings(args)
    done = {(n, subject) for n in args.sizes for subject in args.subjects}
    rows = [row for row in saved(args.section).get("rows", []) if (row["n"], row["subject"]) not in done]
    for n in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            genuine = n + N_QUERIES <= len(real)  # as many as the timed batches take
            vectors = real[:n] if genuine else like(real, n, seed=1)
            queries = real[n : n + N_QUERIES] if genuine else like(real, N_QUERIES, seed=2)
            np.save(Path(folder) / "vectors.npy", vectors)
            np.save(Path(folder) / "queries.npy", queries)
            given = ["--rounds", args.rounds, *(["--index_url", args.index_url] if args.index_url else [])]
            found = run_child(__file__, "--child", folder, *given, "--subjects", *args.subjects)
        kind = "synthetic" if not genuine else "chunks" if args.docs else "reviews"
        for name, row in found.items():
            rows.append(
                {"n": n, "dimension": vectors.shape[1], "vectors": kind, "subject": name, **row, **measured_at()}
            )
            print(rows[-1], flush=True)
    about = machine("cpu", "faiss-cpu", *(["hnswlib"] if "hnswlib" in args.subjects else []))
    text = (
        f"Vectors of {real.shape[1]} dimensions, cosine, {K} neighbours, on {about}. Medians of {args.rounds} turns; "
        "queries/s one at a time and 32 together; hnsw, hnswlib and pgvector with M 32, efConstruction 200, ef 64. "
        "GB is that of the index as it is saved, at a database of the table with its graph; build seconds include ours "
        "of the table of chunks.\n\n"
        f"{table(rows)}"
    )
    publish(args.section, text, {"machine": about, "rows": rows}, args.readme, args.output)


if __name__ == "__main__":
    main()
