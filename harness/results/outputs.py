"""Every file that a script writes where a person points it: a foreign file is refused, an own one replaced whole.

A file counts as own if it is empty or has the mark of its kind, see KINDS; an own file of another kind is foreign too.
"""

import contextlib
import json
import os
import re
import sqlite3
import stat
import tempfile
from pathlib import Path

import utils
from harness.results import schema

HEAD = 2**20  # bytes of a file's beginning and of its end that are searched for its mark
SCRIPTS = {"answers": "chat_eval.py", "conversation": "chat_eval.py"}  # the key "script" of these JSON files
PNG_SOFTWARE = "plot_results.py"  # begins the PNG's text chunk Software
SQLITE_ID = int.from_bytes(b"harn")  # the database's application_id
RUN_TAG = "rag_eval:"  # begins the last column of a TREC run
REPORT = re.compile(rb"# Results\r?\n\r?\nFrom \d+ of \d+ rows of `")
NAME_BYTES = 255  # of a file's name, on all usual file systems
UMASK = os.umask(0)
os.umask(UMASK)


def known_columns(names):
    """True if most of these names, run_id among them, are columns of the results CSV."""
    names = list(names)
    return "run_id" in names and sum(name in schema.TYPES for name in names) > len(names) / 2


def _lines(data):
    """The first and the last line of a file's bytes, without its line breaks."""
    lines = [line for line in data.splitlines() if line.strip()]
    return lines[:1] + lines[-1:]


def _first_record(data):
    """The first value of a JSON list, or the whole where it is none; None where it cannot be read."""
    text = data.decode("utf-8", "replace").lstrip("\ufeff \t\r\n[")
    try:
        return json.JSONDecoder().raw_decode(text)[0]
    except (ValueError, RecursionError):
        return None


def _written_by(kind, data):
    record = _first_record(data)
    return isinstance(record, dict) and record.get("script") == SCRIPTS[kind]


def _is_json_export(data, path):
    record = _first_record(data)
    return data.strip() == b"[]" or (data.lstrip()[:1] == b"[" and isinstance(record, dict) and known_columns(record))


def _is_database(data, path):
    if not data.startswith(b"SQLite format 3\0"):
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as database:
            (number,) = database.execute("PRAGMA application_id").fetchone()
            columns = [column[1] for column in database.execute("PRAGMA table_info(results)")]
    except sqlite3.Error:
        return False
    # exports of earlier versions have no application_id
    return number == SQLITE_ID or (number == 0 and known_columns(columns))


def _is_run(data, path):
    cells = [line.split() for line in _lines(data)]
    return all(len(row) == 6 and row[1] == b"Q0" and row[5].startswith(RUN_TAG.encode()) for row in cells)


def _is_benchmark(data, path):
    record = _first_record(data)
    return isinstance(record, dict) and "results" in record and bool({"groups", "leave_one_out"} & set(record))


def _is_race(data, path):
    return data.startswith(b"[") and b'"name": "1 ' in data[:200] and b'"rungs": ' in data


def _is_png(data, path):
    return data.startswith(b"\x89PNG") and b"Software\0" + PNG_SOFTWARE.encode() in data[:4096]


# kind -> (what it is called, function of the bytes of its beginning and end, and its path, that knows an own file)
KINDS = {
    "report": ("report", lambda data, path: bool(REPORT.match(data))),
    "chart": ("chart", _is_png),
    "json": ("JSON export", _is_json_export),
    "benchmark": ("benchmark result", _is_benchmark),
    "race": ("record of a race", _is_race),
    "database": ("SQLite export", _is_database),
    "run": ("TREC run of rag_eval.py", _is_run),
    "answers": ("file of answers", lambda data, path: all(_written_by("answers", line) for line in _lines(data))),
    "conversation": ("saved chat", lambda data, path: _written_by("conversation", data)),
}


def check_place(path, flag):
    """The file's status (os.stat_result), None where there is none yet. UserError where no file can be written."""
    name = f"{flag} {path}".strip()
    try:
        target = Path(os.path.realpath(path))
        try:
            found = os.stat(target)
        except FileNotFoundError:
            found = None
        folder = target.parent
        if found and stat.S_ISDIR(found.st_mode):
            raise utils.UserError(f"{name} is a folder; give a file name")
        if found and not stat.S_ISREG(found.st_mode):
            raise utils.UserError(f"{name} is a pipe or a device; give the name of an ordinary file")
        if not folder.is_dir():
            raise utils.UserError(f"{name}: there is no folder {folder}")
    except OSError as error:
        raise utils.UserError(f"{name} cannot be written: {error.strerror}") from None
    except ValueError as error:
        if isinstance(error, utils.UserError):
            raise
        raise utils.UserError(f"{name!r} is no file name: {error}") from None  # a NUL, half of a surrogate pair
    # the folder must be writable too: a new file replaces the old one
    if not os.access(folder, os.W_OK | os.X_OK) or (found and not os.access(target, os.W_OK)):
        raise utils.UserError(f"{name} cannot be written: no permission")
    _try_to_write(folder, name)
    return found


def _try_to_write(folder, name):
    """UserError unless something new can be made in a folder: permissions do not tell in /proc or on a full disk."""
    try:
        os.rmdir(tempfile.mkdtemp(dir=folder))
    except OSError as error:
        raise utils.UserError(f"{name} cannot be written: nothing can be made in {folder} ({error.strerror})") from None


def check_folder(path, flag):
    """UserError unless `path` is a folder that can be written to, or one that can be made with all above it."""
    name, place = f"{flag} {path}".strip(), Path(os.path.abspath(path))
    if any(len(os.fsencode(part)) > NAME_BYTES for part in place.parts):
        raise utils.UserError(f"{name}: a name of more than {NAME_BYTES} bytes; give a shorter one")
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise utils.UserError(f"{name}: {place} is a file; give a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise utils.UserError(f"{name} cannot be written: no permission for {place}")
    _try_to_write(place, name)


def check(path, kind, flag=""):
    """UserError unless a file of this kind can be written at `path` without a loss. Call it before hours of work.

    kind: a key of KINDS. flag: what named the path, for the message. Only ordinary files are replaced, and only those
    that are empty or that this project wrote as the same kind.
    """
    found = check_place(path, flag)
    if not found or not found.st_size:
        return
    what, ours = KINDS[kind]
    try:
        with open(path, "rb") as file:
            data = file.read(HEAD)
            if found.st_size > HEAD:
                file.seek(max(HEAD, found.st_size - HEAD))
                data += file.read()
    except OSError as error:
        raise utils.UserError(f"{flag} {path} cannot be read: {error.strerror}") from None
    if not ours(data, path):
        raise utils.UserError(
            f"{flag} {path} is there and is no {what} that this version wrote, so it is not replaced; name another "
            "file, or delete it".strip()
        )


@contextlib.contextmanager
def new_file(path, flag="", failure=utils.UserError):
    """A new file in the folder of `path`, to be written to; leaving the block puts it into its place, whole.

    Yields its Path. Nobody else has that name, so no link can lead elsewhere. The file at `path`, if there is one,
    stays as it is until then, and after an exception. failure: the error class for a full disk and its like.
    """
    target, temporary = Path(os.path.realpath(path)), None
    try:
        handle, name = tempfile.mkstemp(prefix=_prefix(target), suffix=".tmp", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~UMASK)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise failure(f"{flag} {path} cannot be written: {error.strerror or error}".strip()) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _prefix(target):
    return f".{target.name[:60]}-"  # short: a name may have 255 bytes


def remove_stale(path):
    """Remove the new files of `path` that killed processes left. Call it under a lock that all its writers take."""
    target = Path(os.path.realpath(path))
    mine = re.compile(re.escape(_prefix(target)) + r"[a-z0-9_]{8}\.tmp")
    for name in os.listdir(target.parent):
        if mine.fullmatch(name):
            (target.parent / name).unlink(missing_ok=True)


def write(path, data, kind, flag="", failure=utils.UserError):
    """Write a file of a kind, see `check` and `new_file`. data: text, which is written as UTF-8, or bytes.

    Half of a surrogate pair, which UTF-8 cannot hold, becomes a question mark.
    """
    check(path, kind, flag)
    with new_file(path, flag, failure) as temporary:
        temporary.write_bytes(data.encode("utf-8", "replace") if isinstance(data, str) else data)


def beside(results, ending):
    """A file beside the results CSV: mine.csv -> mine_rungs.csv, whose rows are of short runs and few examples."""
    return str(Path(results).with_name(Path(results).stem + ending))
