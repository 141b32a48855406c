"""An index in a folder: written whole or not at all, checked when it is read."""

import contextlib
import hashlib
import json
import os
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
from filelock import FileLock

import utils
from harness.results import provenance
from harness.retrieval.index import Index

FORMAT = 1  # of the folder; another is refused


def checksum(path):
    with open(path, "rb") as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def read_meta(folder):
    """meta.json, None where there is none; UserError where it is none of ours."""
    path = Path(folder) / "meta.json"
    if not path.is_file():
        return None
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        ours = meta["format"] == FORMAT and isinstance(meta["files"], dict)
    except (ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise utils.UserError(
            f"{path} is not the description of an index that this version wrote; delete the folder and build it again"
        )
    return meta


def finish(folder, meta):
    """Put the files that meta.json names in their places, and remove what an unfinished save left."""
    for name in ("index.faiss", "chunks.parquet", "vectors.npy", "meta.json"):
        new = folder / f"{name}.new"
        if new.exists():
            if meta and name in meta["files"] and checksum(new) == meta["files"][name]:
                os.replace(new, folder / name)
            else:
                new.unlink()
        if name != "meta.json" and (not meta or name not in meta["files"]):
            (folder / name).unlink(missing_ok=True)  # of another kind, or of a save that never came to its end
    with contextlib.suppress(OSError):  # a folder cannot be synchronised everywhere
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def refuse_foreign(folder, meta):
    """UserError for a folder that holds somebody's files and no index: they would be overwritten."""
    ours = ("lock", "index.faiss.new", "chunks.parquet.new", "vectors.npy.new", "meta.json.new")
    if meta is None and any(path.name not in ours for path in folder.iterdir()):
        raise utils.UserError(f"--index_dir {folder} holds other files and no index; give a new or empty folder")


def save_index(index, folder, made_with):
    """Write index.faiss, chunks.parquet, meta.json (and vectors.npy of lossy kinds): all of them, or none.

    The new files are written beside the old ones; meta.json, which holds the others' checksums, takes the old one's place
    first, and that is the moment of saving: `open_index` finishes what a killed process left. made_with: what another
    session must match. UserError where another process saved since this one opened the folder.
    """
    index.check_writable()
    if index.faiss is not None and index.faiss.ntotal != len(index):
        raise utils.UserError("the index was interrupted while it changed, and is not saved; open it again")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(index, folder, made_with)
    except OSError as error:  # a full disk, for instance
        raise utils.UserError(f"--index_dir {folder} cannot be written: {error}") from None


def _write(index, folder, made_with):
    with FileLock(folder / "lock"):
        there = read_meta(folder)
        refuse_foreign(folder, there)
        if (there or {}).get("generation", 0) != index.generation:
            raise utils.UserError(f"--index_dir {folder}: another process saved it since it was opened; open it again")
        finish(folder, there)
        files = ["chunks.parquet"]
        pq.write_table(index.table, folder / "chunks.parquet.new")
        if index.faiss is not None:
            faiss.write_index(index.faiss, str(folder / "index.faiss.new"))
            files.append("index.faiss")
        if index.vectors is not None:
            with open(folder / "vectors.npy.new", "wb") as file:
                np.save(file, index.vectors, allow_pickle=False)
            files.append("vectors.npy")
        sums = {}
        for name in files:
            with open(folder / f"{name}.new", "rb+") as file:
                os.fsync(file.fileno())
            sums[name] = checksum(folder / f"{name}.new")
        meta = {
            "format": FORMAT,
            "generation": index.generation + 1,
            "index": index.kind,
            "metric": index.metric,
            "dimension": index.dimension,
            "options": index.options,
            "documents": len(set(index.table["document"].to_pylist())),
            "chunks": len(index),
            "next_id": index.next_id,
            "files": sums,
            "made_with": made_with,
            "versions": json.loads(provenance.of_checkout()["versions"]),
        }
        with open(folder / "meta.json.new", "w", encoding="utf-8") as file:
            json.dump(meta, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(folder / "meta.json.new", folder / "meta.json")
        index.generation += 1
        finish(folder, meta)


def open_index(folder, mmap=False):
    """(Index, what it was made with) as last saved, None where the folder holds none. mmap: read only what a search touches.

    UserError where a file is damaged or missing. Checksums are compared, of a memory-mapped index the sizes alone.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise utils.UserError(f"--index_dir {folder} is a file; give a folder")
    if not folder.is_dir():
        return None
    refuse_foreign(folder, read_meta(folder))
    writable = os.access(folder, os.W_OK)
    with FileLock(folder / "lock") if writable else contextlib.nullcontext():
        meta = read_meta(folder)
        if writable:
            finish(folder, meta)
        if meta is None:
            return None
        for name, wanted in meta["files"].items():
            path = folder / name
            damaged = not path.is_file() or path.stat().st_size != wanted["bytes"]
            if damaged or (not (mmap and name != "chunks.parquet") and checksum(path) != wanted):
                raise utils.UserError(
                    f"{path} is missing or damaged: its size or checksum is not what meta.json says; delete {folder} "
                    "and build it again"
                )
        index = Index(meta["dimension"], meta["index"], meta["metric"], meta["options"])
        index.table, index.next_id, index.generation = (
            pq.read_table(folder / "chunks.parquet"),
            meta["next_id"],
            meta["generation"],
        )
        if "index.faiss" in meta["files"]:
            index.faiss = faiss.read_index(str(folder / "index.faiss"), faiss.IO_FLAG_MMAP_IFC if mmap else 0)
            if index.faiss.ntotal != len(index):
                raise utils.UserError(
                    f"{folder} holds {index.faiss.ntotal} vectors for {len(index)} chunks; delete it and build it again"
                )
        if "vectors.npy" in meta["files"]:
            index.vectors = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        index.mapped = mmap
    return index, meta["made_with"]
