"""What stands where a person points: a file, a folder, nothing, or what no program should open. And JSON files."""

import errno
import json
import os
import stat
from pathlib import Path

from harness.errors import UserError, short

KINDS = {dict: "an object", list: "a list"}  # of JSON, in the words of a message


def expand_path(path):
    """A Path with ~ written out. `~nobody` stays as it is, so that it is missed like any other missing file."""
    return Path(os.path.expanduser(path))


def _kind(path):
    """ "file", "folder", "other", or None for nothing and for names that no file can have; OSError if it is hidden."""
    try:
        mode = os.stat(expand_path(path)).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"


def exists(path):
    """True where there is such a file or folder; what cannot be seen may be there, and who opens it is told."""
    try:
        return _kind(path) is not None
    except OSError:
        return True


def look(path, flag=""):
    """What stands at a path: "file", "folder", or None for nothing. A ~ at its start is the home folder.

    UserError for a FIFO, a device or a socket, which would be waited for or never end, and for what may not be seen.
    flag: what to call the path in the message, such as --dataset.
    """
    name = f"{flag} {short(path)}".strip()
    try:
        kind = _kind(path)
    except OSError as error:
        raise UserError(f"{name}: {error.strerror or error}") from None
    if kind == "other":
        raise UserError(f"{name}: a pipe or device; write what it gives into an ordinary file, and give that")
    return kind


def read_bytes(path, flag=""):
    """The bytes of a regular file; UserError where there is none or it cannot be read."""
    there = look(path, flag)
    name = f"{flag} {short(path)}".strip()
    if there != "file":
        raise UserError(f"{name}: {'a folder, a file is wanted' if there else 'no such file'}")
    try:
        return expand_path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from None


def read_json(path, kind=None, flag=""):
    """The value of a JSON file. UserError for a broken one, one nested too deeply, and one that is no `kind`.

    kind: dict, list or None for any. flag: what to call the file in the message.
    """
    name = f"{flag} {short(path)}".strip()
    try:
        value = json.loads(read_bytes(path, flag))  # by its byte order mark, else UTF-8
    except RecursionError:
        raise UserError(f"{name}: JSON nested too deeply") from None
    except UserError:  # a ValueError too
        raise
    except ValueError as error:
        raise UserError(f"{name} cannot be read as JSON: {short(error)}") from None
    if kind is not None and not isinstance(value, kind):
        raise UserError(f"{name}: {KINDS[kind]} is expected, not {type(value).__name__}")
    return value
