"""The index that a run's flags name: in a folder, at a database, or a new one in memory."""

import argparse
import os

import utils
from harness import inputs
from harness.retrieval import embedder, index_folder, served
from harness.retrieval.index import CLUSTERED, OPTIONS, Index

NO_OPTIONS = dict.fromkeys(OPTIONS)
FIXED = ("nlist", "hnsw_m", "ef_construction", "pq_m")  # options that cannot change once an index is built


def place(args):
    """How messages name where the index is stored; "" where it is not."""
    if args.index_url:
        return f"--index_url {utils.without_credentials(args.index_url)} ({args.index_name})"
    return f"--index_dir {args.index_dir}" if args.index_dir else ""


def options(args):
    return {name: getattr(args, name) for name in OPTIONS}


def open_or_new(args, made_with, dimension, needs_vectors):
    """The Index of --index_url or --index_dir; a new one where there is none yet.

    made_with: settings that it must have been made with; UserError if it was not. needs_vectors: False for BM25 alone,
    whose new index in memory or in a folder has none.
    """
    if args.index_url:
        return _at_database(args, made_with, dimension)
    index = _in_folder(args, made_with, needs_vectors)
    if index is None:
        return Index(dimension, args.index if needs_vectors else "none", args.metric, options(args))
    changed = {name: value for name, value in options(args).items() if value is not None}
    if index.kind == "hnsw" and "ef_search" in changed:
        index.faiss.hnsw.efSearch = changed["ef_search"]
    if index.kind in CLUSTERED and "nprobe" in changed:
        index.faiss.nprobe = min(changed["nprobe"], index.faiss.nlist)
    index.options.update(changed)
    return index


def _at_database(args, made_with, dimension):
    store = served.connect(args.index_url, args.index_name)
    settings = store.read_settings()
    if settings is None:
        return served.ServedIndex(
            store, dimension, args.index, args.metric, options(args), args.half_vectors, made_with
        )
    index = served.ServedIndex(
        store,
        settings["dimension"],
        settings["kind"],
        settings["metric"],
        settings["options"],
        settings["half"],
        settings["made_with"],
    )
    if args.half_vectors and not settings["half"]:
        raise utils.UserError(f"{place(args)} was built without --half_vectors; leave it out, or give another name")
    check_settings(args, index, settings["made_with"], made_with)
    index.options.update({name: value for name, value in options(args).items() if value is not None})
    return index


def _in_folder(args, made_with, needs_vectors):
    """The index in --index_dir, None if there is none; UserError if it was made with other settings."""
    if not args.index_dir:
        return None
    args.index_dir = str(inputs.expand_path(args.index_dir))
    if args.index_dir.startswith("~"):
        raise utils.UserError(f"--index_dir {args.index_dir}: there is no such home folder; write the path out")
    if not args.mmap:
        try:
            os.makedirs(args.index_dir, exist_ok=True)  # fails before anything is embedded, if it fails
        except FileExistsError:
            raise utils.UserError(f"--index_dir {args.index_dir} is a file; give a folder") from None
        except OSError as error:
            raise utils.UserError(f"--index_dir {args.index_dir} cannot be made: {error}") from None
    opened = index_folder.open_index(args.index_dir, args.mmap)
    if opened is None:
        if args.mmap:
            raise utils.UserError(
                f"--mmap: there is no index in {args.index_dir}; build it first with --build_only --docs PATH"
            )
        return None
    index, theirs = opened
    check_settings(args, index, theirs, made_with, needs_vectors)
    return index


def check_settings(args, index, theirs, ours, needs_vectors=True):
    """UserError if an opened index has another embedder, chunking, metric, kind or options than the flags.

    theirs, ours: the settings that it was made with and those of this run.
    """
    # none: there are no vectors yet
    any_kind = not needs_vectors or args.index == "auto" or index.kind == "none"
    ours = {**ours, "index": index.kind if any_kind else args.index}
    theirs = {**theirs, "index": index.kind}
    if index.kind != "none":
        ours["metric"], theirs["metric"] = args.metric, index.metric
    other = []
    if not embedder.same_vectors(ours["probes"], theirs["probes"]):
        other.append(f"the embedder {theirs['embedder']}, whose vectors are not those of {ours['embedder']}")
    for name, value in ours.items():  # the same embedder may have another name here
        if name not in ("embedder", "embedder_revision", "probes") and value != theirs.get(name):
            other.append(f"{name} {theirs[name]}, not {value}")
    asked = options(args)
    for name in FIXED if index.kind != "none" else ():
        if asked[name] is not None and asked[name] != index.options.get(name):
            other.append(f"{name} {index.options.get(name) or 'by default'}, not {asked[name]}")
    if other:
        text = f"{place(args)} was built with {'; '.join(other)}"
        raise utils.UserError(f"{text}: give the same flags, or another {'name' if args.index_url else 'folder'}")


def settings_of_folder(args, folder):
    """args as if the folder's index, of whatever kind, were asked for."""
    return argparse.Namespace(**{**vars(args), "index_url": None, "index_dir": folder, "index": "auto"} | NO_OPTIONS)
