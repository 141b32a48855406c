"""Which files a list of files, folders and globs names. Imports nothing heavy: flags are checked with it."""

import glob
import os
from pathlib import Path

import utils
from harness import flags, inputs

TABLES = (".jsonl", ".csv", ".tsv", ".parquet")  # a document per row; of the other types, a document per file
SUFFIXES = (".txt", ".md", ".html", ".htm", ".pdf", *TABLES)
MAX_FILE_MB = 20  # of text: a few million tokens


def find_files(places, left_out=lambda reason, what: None):
    """The files that `places` (files, folders, globs) name, each once, sorted within a place.

    A folder is searched recursively without its hidden files; of a BEIR folder only corpus.jsonl is taken. left_out: is
    told what of a folder cannot be read. Raises UserError for a place that names no file.
    """
    files = {}
    for place in places:
        path = inputs.expand_path(place)
        if not str(place).strip():
            raise utils.UserError("--docs: an empty name; give a file, a folder or a glob (. is this folder)")
        if _holds(path.is_dir):
            found = [path / "corpus.jsonl"] if is_beir(path) else _walk(path, left_out)
        elif _holds(path.is_file):
            found = [path]
        else:
            found = [file for file in map(Path, sorted(glob.glob(str(path), recursive=True))) if _holds(file.is_file)]
        if not found:
            if _holds(path.exists) and not path.is_dir():
                raise utils.UserError(f"--docs {place}: not a regular file, but a pipe or a device; give a file")
            raise utils.UserError(
                f"--docs {place}: no such file or folder, or nothing in it; known types are {', '.join(SUFFIXES)}"
            )
        files.update(dict.fromkeys(found))
    return list(files)


def _walk(folder, left_out):
    """The files of a folder and its subfolders that are not hidden."""

    def unreadable(error):
        left_out(f"folder that cannot be read ({error.strerror})", error.filename)

    files = []
    for parent, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            if _holds(path.is_file):
                files.append(path)
            else:
                left_out("no regular file", path)
    return sorted(files)


def is_beir(folder):
    """True for a folder in BEIR's layout (Thakur et al. 2021). A corpus.jsonl without queries is an ordinary table."""
    folder = Path(folder)
    return _holds((folder / "corpus.jsonl").is_file) and _holds((folder / "queries.jsonl").is_file)


def _holds(test):
    try:
        return test()
    except (OSError, ValueError):  # the name is too long or has a zero byte in it
        return False


def data_folder(args):
    """The data set's folder, which need not exist; none at all if the splits are given as files."""
    return Path(flags.source(args) or "no folder", args.subset or "")
