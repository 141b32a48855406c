"""Which files a list of files, folders and globs names. Imports nothing heavy: flags are checked with it."""

import glob
from pathlib import Path

import utils
from harness import flags

TABLES = (".jsonl", ".csv", ".tsv", ".parquet")  # a document per row; of the other types, a document per file
SUFFIXES = (".txt", ".md", ".html", ".htm", ".pdf", *TABLES)
MAX_FILE_MB = 20  # of text: a few million tokens


def find_files(places):
    """The files that `places` (files, folders, globs) name, each once, sorted within a place.

    A folder is searched recursively without its hidden files; of a BEIR folder only corpus.jsonl is taken. Raises
    UserError for a place that names no file.
    """
    files = {}
    for place in places:
        path = Path(place)
        if _holds(path.is_dir):
            found = [file for file in sorted(path.rglob("*")) if file.is_file() and not _hidden(file, path)]
            found = [path / "corpus.jsonl"] if is_beir(path) else found
        elif _holds(path.is_file):
            found = [path]
        else:
            found = [file for file in map(Path, sorted(glob.glob(str(place), recursive=True))) if file.is_file()]
        if not found:
            raise utils.UserError(
                f"--docs {place}: no such file or folder, or nothing in it; known types are {', '.join(SUFFIXES)}"
            )
        files.update(dict.fromkeys(found))
    return list(files)


def is_beir(folder):
    """True for a folder in BEIR's layout (Thakur et al. 2021). A corpus.jsonl without queries is an ordinary table."""
    folder = Path(folder)
    return (folder / "corpus.jsonl").is_file() and (folder / "queries.jsonl").is_file()


def _holds(test):
    try:
        return test()
    except (OSError, ValueError):  # the name is too long or has a zero byte in it
        return False


def _hidden(file, folder):
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def data_folder(args):
    """The data set's folder, which need not exist; none at all if the splits are given as files."""
    return Path(flags.source(args) or "no folder", args.subset or "")
