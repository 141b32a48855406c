"""The rows as a SQLite database or JSON, with the types of the schema."""

import contextlib
import os
import sqlite3
from pathlib import Path

import pandas as pd

import utils
from harness.results import outputs, schema, store

SQLITE_TYPES = {"str": "TEXT", "json": "TEXT", "int": "INTEGER", "float": "REAL", "bool": "INTEGER"}


def kind_of(path):
    """json or database, the kind of an export by its file's name."""
    return "json" if Path(path).suffix == ".json" else "database"


def export(path, rows):
    """Write rows as read from a results CSV: JSON for .json, else the table `results` of a SQLite database.

    Unknown is null. What an earlier export wrote is replaced; other tables of its database stay. UserError for a cell
    of a wrong type and for a file that is no export.
    """
    frame = pd.DataFrame({c.name: typed([row[c.name] for row in rows], c.type) for c in schema.COLUMNS})
    outputs.check(path, kind_of(path), "--export")
    with outputs.new_file(path, "--export") as temporary:
        if kind_of(path) == "json":
            return frame.to_json(temporary, orient="records", indent=1, double_precision=15)
        try:
            _write_database(frame, temporary, path)
        except (sqlite3.DatabaseError, pd.errors.DatabaseError) as error:
            reason = str(error).strip().rsplit(": ", 1)[-1]  # pandas puts the SQL before it
            raise utils.UserError(f"--export {path}: {reason}; give a new file or a SQLite database") from None


def _write_database(frame, path, old):
    """Write the table results into a new database at `path`, with the other tables of the one at `old`."""
    types = {c.name: SQLITE_TYPES[c.type] for c in schema.COLUMNS}
    with contextlib.closing(sqlite3.connect(path)) as database:
        if os.path.exists(old) and os.path.getsize(old):
            with contextlib.closing(sqlite3.connect(old)) as before:
                before.backup(database)
        frame.to_sql("results", database, index=False, if_exists="replace", dtype=types)
        database.execute("PRAGMA journal_mode = DELETE")  # all is in the one file that is moved
        database.execute(f"PRAGMA application_id = {outputs.SQLITE_ID}")
        database.commit()


def typed(cells, kind):
    """Cells (texts, "" is unknown) as a pandas Series of a column's type, unknown as missing."""
    if kind in ("str", "json"):
        return pd.Series([cell or None for cell in cells], dtype=object)
    if kind == "bool":
        wrong = set(cells) - {"True", "False", ""}
        if wrong:
            raise utils.UserError(f"the results CSV holds {wrong.pop()!r} where True or False belongs")
        return pd.Series([cell == "True" if cell else None for cell in cells], dtype="boolean")
    numbers = pd.Series([store.number(cell) for cell in cells], dtype=float).replace(
        [float("inf"), -float("inf")], None
    )
    whole = kind == "int" and (numbers.isna() | (numbers % 1 == 0)).all()
    return numbers.astype("Int64" if whole else float)
