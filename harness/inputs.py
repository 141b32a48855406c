"""Checks and readers of what people name as input: an ordinary file, a JSON file of the right kind."""

import json
import os
import stat
from pathlib import Path

from harness.errors import UserError, short

KINDS = {dict: "an object", list: "a list"}  # of JSON, in the words of a message


def expand_path(path):
    """A Path with ~ written out. `~nobody` stays as it is, so that it is missed like any other missing file."""
    return Path(os.path.expanduser(path))


def exists(path):
    """True where there is such a file or folder; False also for names that no file can have (too long, NUL)."""
    try:
        os.stat(expand_path(path))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        return isinstance(error, PermissionError)  # it may be there; who opens it is told
    return True


def check_file(path, flag=""):
    """UserError for a path that is neither a file nor a folder: a FIFO, a device, a socket.

    Opening a FIFO waits for ever, reading a device never ends. What does not exist is no matter of this check.
    flag: what to call the path in the message, such as --dataset.
    """
    try:
        mode = os.stat(expand_path(path)).st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{flag} {short(path)}: a pipe or device; give an ordinary file".strip())


def read_json(path, kind=None, flag=""):
    """The value of a JSON file. UserError for a broken one, one nested too deeply, and one that is no `kind`.

    kind: dict, list or None for any. flag: what to call the file in the message.
    """
    path, name = Path(path), f"{flag} {short(path)}".strip()
    check_file(path, flag)
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise UserError(f"{name}: JSON nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{name} cannot be read as JSON: {short(error)}") from None
    if kind is not None and not isinstance(value, kind):
        raise UserError(f"{name}: {KINDS[kind]} is expected, not {type(value).__name__}")
    return value
