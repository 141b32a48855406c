"""An index from a folder into a database and back, with its vectors: nothing is embedded again."""

from itertools import groupby
from pathlib import Path

import utils
from harness.retrieval import index_folder, opening
from harness.retrieval.index import Index


def blocks(index, size):
    """Lists of rows of about `size` chunks that end where a document ends."""
    rows = []
    for _, of_document in groupby(range(len(index)), index.table["document"].to_pylist().__getitem__):
        rows += of_document
        if len(rows) >= size:
            yield rows
            rows = []
    if rows:
        yield rows


def copy(source, target, known):
    """Add the chunks of one Index to another, without documents that `known` has ({id: digest}). Returns how many."""
    digests, cut = source.table["digest"].to_pylist(), source.table["cut"].to_pylist()
    documents, before = source.table["document"].to_pylist(), len(target)
    for some in blocks(source, target.block):
        rows = [row for row in some if known.get(documents[row]) != digests[row]]
        if rows:
            replaced = {documents[row] for row in rows} & set(known)
            target.add(
                source.chunks(rows),
                [digests[row] for row in rows],
                source.vectors_of(rows),
                len(source),
                [cut[row] for row in rows],
                replaced,
            )
    return len(target) - before


def from_folder(retriever, folder):
    """Copy a folder's index into the database; what is there already stays. Returns how many chunks were added."""
    opened = index_folder.open_index(folder)
    if opened is None or opened[0].kind == "none":
        raise utils.UserError(f"--import_index {folder}: no index with vectors there")
    index, made_with = opened
    args = opening.settings_of_folder(retriever.args, folder)
    opening.check_settings(args, index, made_with, retriever.made_with)
    n = copy(index, retriever.index, retriever.index.documents)
    retriever.save()
    return n


def to_folder(retriever, folder):
    """Copy the database's index into a new folder, of a kind that suits its size. Returns how many chunks."""
    if index_folder.open_index(folder) is not None:
        raise utils.UserError(f"--export_index {folder} has an index already; give a new folder")
    source = retriever.index
    if not len(source):
        raise utils.UserError(f"{opening.place(retriever.args)}: no index there")
    target = Index(source.dimension, "auto", source.metric)
    target.block = max(target.block, len(source))  # at once: a trained kind learns from all
    n = copy(source, target, {})
    Path(folder).mkdir(parents=True, exist_ok=True)
    index_folder.save_index(target, folder, source.made_with)
    return n
