"""The flags of rag_eval.py that say where the index is and of which kind."""

import re

from harness import flags


def add_index_args(parser):
    add, count = parser.add_argument_group("index").add_argument, {"type": flags.positive_int, "metavar": "N"}
    add("--index_dir", metavar="DIR", help="where the index is stored; what it has already is not embedded again")
    workers = "processes that embed passages, one a GPU or shares of the processor (default: %(default)s)"
    add("--embed_workers", type=flags.small_count, default=1, metavar="N", help=workers)
    url = "or a database that serves it: postgresql://.. with pgvector, http://.. of Milvus; --index flat or hnsw"
    add("--index_url", metavar="URL", help=url)
    add("--index_name", metavar="NAME", default="rag_index", help="its table or collection (default: %(default)s)")
    add("--half_vectors", action="store_true", help="PostgreSQL, hnsw: the graph holds vectors of 16 bits")
    add("--import_index", metavar="DIR", help="with --build_only: copy a folder's index to --index_url")
    add("--export_index", metavar="DIR", help="with --build_only: copy the index at --index_url to a folder")
    add("--delete", metavar="ID", nargs="+", default=[], help="documents to delete from the index, with --build_only")
    add("--prune", action="store_true", help="delete the documents of the index that are no longer in --docs")
    add("--index", choices=("auto", *flags.INDEX_KINDS), default="auto", help="auto: by size and free memory")
    add("--metric", choices=("cosine", "l2"), default="cosine", help="similarity of vectors (default: %(default)s)")
    add("--mmap", action="store_true", help="memory-map the index instead of reading it; it cannot be changed then")
    add("--nlist", **count, help="ivf, ivfpq: clusters (default: 4 x the square root of the number of vectors)")
    add("--nprobe", **count, help="ivf, ivfpq: clusters to search (default: a 16th of them, at least 32)")
    add("--hnsw_m", "--M", **count, help="hnsw: links per vector (default: 32)")
    add("--ef_construction", "--efConstruction", **count, help="hnsw: candidates while building (default: 200)")
    add("--ef_search", "--efSearch", **count, help="hnsw: candidates while searching (default: 64)")
    add("--pq_m", "--m", **count, help="ivfpq: bytes per vector (default: a fourth of the dimensions)")


def check_index_args(parser, args):
    """Cross-checks that need no library."""
    stored, copies = args.index_dir or args.index_url, args.import_index or args.export_index
    if args.build_only and not (stored and (args.docs or args.delete or copies)):
        parser.error(
            "--build_only needs --index_dir or --index_url, and --docs, --delete, --import_index or --export_index"
        )
    if (args.delete and not args.build_only) or (args.prune and not (stored and args.docs)):
        parser.error("--delete goes with --build_only, --prune with --docs and --index_dir or --index_url")
    if args.mmap and (not args.index_dir or args.build_only):
        parser.error("--mmap is for searching in an --index_dir")
    if args.hnsw_m == 1:
        parser.error("--hnsw_m must be at least 2")
    if copies and not (args.build_only and args.index_url):
        parser.error("--import_index and --export_index go with --build_only and --index_url")
    if not args.index_url:
        if args.half_vectors:
            parser.error("--half_vectors belongs to --index_url postgresql://.. --index hnsw")
        return
    if args.index_dir:
        parser.error("--index_url and --index_dir exclude each other; --export_index writes a folder")
    if args.index not in ("auto", "flat", "hnsw"):
        parser.error(f"--index {args.index}: a database has flat (exact search) or hnsw")
    if args.half_vectors and (args.index != "hnsw" or not args.index_url.startswith("postgres")):
        parser.error("--half_vectors belongs to --index hnsw in PostgreSQL")
    if args.ef_search and args.ef_search > 1000 and args.index_url.startswith("postgres"):
        parser.error(f"--ef_search {args.ef_search}: pgvector takes at most 1000")
    if not re.fullmatch(r"[A-Za-z_]\w{0,40}", args.index_name, re.ASCII):
        parser.error(f"--index_name {args.index_name}: letters, digits and _, at most 41, not a digit first")
