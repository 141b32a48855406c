"""An index in a folder: written whole or not at all, and checked when it is read."""

import contextlib
import hashlib
import json
import os
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

import utils
from harness.results import provenance
from harness.retrieval.index import SCHEMA, Index

FORMAT = 2  # of the folder; 1 had no checksum of meta.json itself and no column "cut"
DATA_FILES = ("index.faiss", "chunks.parquet", "vectors.npy")


def checksum(path):
    """{"bytes", "sha256"} of a file."""
    with open(path, "rb") as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def own_checksum(meta):
    """The sha256 of what meta.json says besides its own checksum."""
    rest = {key: value for key, value in meta.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_meta(folder):
    """The contents of meta.json, None if there is none; UserError if this version did not write it, or not so."""
    path = Path(folder) / "meta.json"
    if not path.is_file():
        return None
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        checked = meta["sha256"] == own_checksum(meta) if "sha256" in meta or meta["format"] != 1 else True
        ours = meta["format"] in (1, FORMAT) and isinstance(meta["files"], dict) and checked
    except (ValueError, KeyError, TypeError, RecursionError):
        ours = False
    if not ours:
        raise utils.UserError(
            f"{path} is damaged or does not describe an index that this version wrote; delete the folder and build it "
            "again"
        )
    return meta


def finish(folder, meta):
    """Complete the save that meta.json describes (meta, None without), and remove what an unfinished save left."""
    for name in (*DATA_FILES, "meta.json"):
        new = folder / f"{name}.new"
        if new.exists():
            if meta and name in meta["files"] and checksum(new) == meta["files"][name]:
                os.replace(new, folder / name)
            else:
                new.unlink()
        if name != "meta.json" and (not meta or name not in meta["files"]):
            (folder / name).unlink(missing_ok=True)  # of another kind of index, or of a save that was cut off
    with contextlib.suppress(OSError):  # not every file system can synchronise a folder
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def refuse_foreign(folder, meta):
    """UserError for a folder that has other files and no index in it: a save would overwrite them."""
    ours = ("lock", "meta.json.new", *(f"{name}.new" for name in DATA_FILES))
    if meta is None and any(path.name not in ours for path in folder.iterdir()):
        raise utils.UserError(f"--index_dir {folder} holds other files and no index; give a new or empty folder")


def save_index(index, folder, made_with):
    """Write chunks.parquet, index.faiss, meta.json and, for lossy kinds, vectors.npy: all of them, or none.

    The new files are written beside the old ones. Then meta.json, which has the checksums of the others, replaces the
    old one; this one step is the save. If the process is killed after it, `open_index` moves the other files into
    place. made_with: settings that a later run must match. Raises UserError if another process saved the folder since
    this one opened it, or if it cannot be written.
    """
    index.check_writable()
    if index.faiss is not None and index.faiss.ntotal != len(index):
        raise utils.UserError("the index was interrupted while it changed, and is not saved; open it again")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            _write(index, folder, made_with)
    except OSError as error:  # a full disk, for example
        raise utils.UserError(f"--index_dir {folder} cannot be written: {error}") from None


def _write(index, folder, made_with):
    old = read_meta(folder)
    refuse_foreign(folder, old)
    if (old or {}).get("generation", 0) != index.generation:
        raise utils.UserError(f"--index_dir {folder}: another process saved it since it was opened; open it again")
    finish(folder, old)
    names = ["chunks.parquet"]
    pq.write_table(index.table, folder / "chunks.parquet.new")
    if index.faiss is not None:
        faiss.write_index(index.faiss, str(folder / "index.faiss.new"))
        names.append("index.faiss")
    if index.vectors is not None:
        with open(folder / "vectors.npy.new", "wb") as file:
            np.save(file, index.vectors, allow_pickle=False)
        names.append("vectors.npy")
    checksums = {}
    for name in names:
        with open(folder / f"{name}.new", "rb+") as file:
            os.fsync(file.fileno())
        checksums[name] = checksum(folder / f"{name}.new")
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
        "files": checksums,
        "made_with": made_with,
        "versions": json.loads(provenance.of_checkout()["versions"]),
    }
    meta = json.loads(json.dumps(meta))  # as it will be read again
    meta["sha256"] = own_checksum(meta)
    with open(folder / "meta.json.new", "w", encoding="utf-8") as file:
        json.dump(meta, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(folder / "meta.json.new", folder / "meta.json")
    index.generation += 1
    finish(folder, meta)


def open_index(folder, mmap=False):
    """(Index, made_with) as last saved, None if the folder has no index. mmap: load only what a search touches.

    Raises UserError for a damaged or missing file. Sizes and checksums are compared; with mmap, of index.faiss and
    vectors.npy the sizes only.
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
        try:
            return _read(folder, meta, mmap), meta["made_with"]
        except (RuntimeError, ValueError, KeyError, TypeError) as error:  # faiss' errors are RuntimeErrors
            if isinstance(error, utils.UserError) or utils.is_out_of_memory(error):
                raise
            raise utils.UserError(
                f"{folder} holds an index that cannot be read ({str(error).splitlines()[0]}); delete it and build it "
                "again"
            ) from None


def _read(folder, meta, mmap):
    index = Index(meta["dimension"], meta["index"], meta["metric"], meta["options"])
    table = pq.read_table(folder / "chunks.parquet")
    if "cut" not in table.column_names:
        table = table.append_column("cut", pa.nulls(len(table), pa.bool_()))
    index.table = table.cast(SCHEMA)
    index.next_id, index.generation, index.mapped = meta["next_id"], meta["generation"], mmap
    if "index.faiss" in meta["files"]:
        index.faiss = faiss.read_index(str(folder / "index.faiss"), faiss.IO_FLAG_MMAP_IFC if mmap else 0)
        held, wanted = (index.faiss.ntotal, index.faiss.d), (len(index), index.dimension)
        if held != wanted:
            raise utils.UserError(
                f"{folder} holds {held[0]} vectors of {held[1]} dimensions for {wanted[0]} chunks of {wanted[1]}; "
                "delete it and build it again"
            )
    if "vectors.npy" in meta["files"]:
        index.vectors = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
    return index
