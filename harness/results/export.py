"""The rows as a SQLite database or JSON, with the types of the schema."""

import contextlib
import sqlite3
from pathlib import Path

import pandas as pd

import utils
from harness.results import schema, store

SQLITE_TYPES = {"str": "TEXT", "json": "TEXT", "int": "INTEGER", "float": "REAL", "bool": "INTEGER"}


def export(path, rows):
    """Write rows as read from a results CSV: JSON for .json, else the table `results` of a SQLite database.

    Unknown is null. What was in the JSON file or the table before is replaced. UserError for a cell of a wrong type.
    """
    frame = pd.DataFrame({c.name: typed([row[c.name] for row in rows], c.type) for c in schema.COLUMNS})
    if Path(path).suffix == ".json":
        frame.to_json(path, orient="records", indent=1, double_precision=15)
        return
    types = {c.name: SQLITE_TYPES[c.type] for c in schema.COLUMNS}
    try:
        with contextlib.closing(sqlite3.connect(path)) as database:
            frame.to_sql("results", database, index=False, if_exists="replace", dtype=types)
            database.commit()
    except (sqlite3.DatabaseError, pd.errors.DatabaseError) as error:
        reason = str(error).strip().rsplit(": ", 1)[-1]  # pandas puts the SQL before it
        raise utils.UserError(f"--export {path}: {reason}; give a new file or a SQLite database") from None


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
