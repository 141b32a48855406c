"""The results CSV: read, append, export; JSON lines."""

import csv
import io
import json
import math
import os
import shutil
import sqlite3
from pathlib import Path

from filelock import FileLock

import utils
from harness.results import schema

TEXT = {
    "run_id",
    "created_at",
    "script",
    "strategy",
    "variant",
    "model",
    "dataset",
    "subset",
    "split",
    "eval_id",
    "precision",
    "device",
    "device_name",
    "metric",
    "status",
    "note",
    "input_id",
    "code_id",
    "git_commit",
    "git_dirty",
    "versions",
    "args",
    "run_dir",
}


def export(path, found):
    """The rows as a SQLite database with one table, `results`, or as JSON, by the file's ending; numbers as numbers, unknown as null."""
    path = Path(path)
    typed = [{name: (cell or None) if name in TEXT else typed(cell) for name, cell in row.items()} for row in found]
    if path.suffix == ".json":
        path.write_text(json.dumps(typed, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return
    path.unlink(missing_ok=True)
    kinds = {name: "TEXT" if name in TEXT else "NUMERIC" for name in schema.RESULT_COLUMNS}
    with sqlite3.connect(path) as database:
        database.execute(f"CREATE TABLE results ({', '.join(f'{name} {kind}' for name, kind in kinds.items())})")
        places = ", ".join("?" * len(kinds))
        database.executemany(f"INSERT INTO results VALUES ({places})", [[row[name] for name in kinds] for row in typed])
    database.close()


def typed(cell):
    """A cell as a whole number or a number, None where it is empty or not finite."""
    found = number(cell)
    if found is None or not math.isfinite(found):
        return None
    return int(found) if found.is_integer() and "." not in cell else found


def read_jsonl(path):
    """The records (dicts) of a JSON-lines file, [] where there is no file; blank lines do not count.

    A last line without a line break that cannot be read is what a killed process left: it is skipped. Any other line
    that is no JSON object is a UserError with the file and the line's number.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise utils.UserError(f"{path} cannot be read: {error.strerror}") from None
    records = []
    for i, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _json_object(line)
        if record is not None:
            records.append(record)
        elif i < len(lines):
            raise utils.UserError(f"{path}, line {i}: not a JSON object: {line[:60].decode('utf-8', 'replace')!r}")
    return records


def write_jsonl(path, records, default=None):
    """Write records (dicts) as JSON lines. default: as json.dumps takes it, for values that JSON does not know.

    Half of a surrogate pair, which UTF-8 cannot hold, becomes a question mark.
    """
    with open(path, "w", encoding="utf-8", errors="replace", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False, default=default) + "\n")


def append_jsonl(path, records):
    """Append records (dicts) as JSON lines, in ASCII, so that any text can be written. One writer at a time.

    A half-written last line, which a killed process left, is cut off first.
    """
    with open(path, "ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                last = file.read().split(b"\n")[-1]
                if _json_object(last) is not None:  # whole, only its line break is missing
                    file.write(b"\n")
                else:
                    file.truncate(file.tell() - len(last))
        file.write("".join(json.dumps(record) + "\n" for record in records).encode("ascii"))


def _json_object(line):
    """The dict that a line (bytes) holds, None where it holds none."""
    try:
        record = json.loads(line)
    except ValueError:  # UnicodeDecodeError is one
        return None
    return record if isinstance(record, dict) else None


read_records, append_records = read_jsonl, append_jsonl  # until every caller uses the new names


def to_cell(value):
    """One CSV cell: unknown (None, NaN) is empty; line breaks become spaces, so that a row is a line."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(str(value).splitlines())


def check_header(path):
    with open(path, newline="", encoding="utf-8") as file:
        header = next(csv.reader(file), [])
    if header != list(schema.RESULT_COLUMNS):
        missing = [name for name in schema.RESULT_COLUMNS if name not in header]
        if len(missing) > len(schema.RESULT_COLUMNS) // 2:
            raise utils.UserError(
                f"{path} is not a results CSV, or one with another header: it begins with {','.join(header)[:60]!r}"
            )
        extra = [name for name in header if name not in schema.RESULT_COLUMNS]
        detail = f"missing {missing}, unexpected {extra}" if missing or extra else "the same columns in another order"
        raise utils.UserError(
            f"{path} has another header than this version writes: {detail}; move it away or pass --results"
        )


def check_results_file(path):
    """Raise UserError now, before hours of work, if a row could not be appended to `path` later."""
    path = Path(path)
    if path.is_dir():
        raise utils.UserError(f"--results {path} is a folder; give a CSV file")
    if not path.parent.is_dir():
        raise utils.UserError(f"--results {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise utils.UserError(
            f"--results {path} cannot be written"
        )  # the folder counts too: a whole new file takes the old one's place
    if path.exists() and path.stat().st_size:
        read_results(path)


def append_result(path, row):
    """Append one row, whole or not at all: under a lock, a copy with the row replaces the file (`os.replace` is atomic).

    A process killed at any moment leaves the old file or the new one, never half a row.
    row: dict with keys from RESULT_COLUMNS; what is missing or None becomes an empty cell.
    Raises UserError where the file has another header, ValueError for an unknown column.
    """
    unknown = [name for name in row if name not in schema.RESULT_COLUMNS]
    if unknown:
        raise ValueError(f"not in RESULT_COLUMNS: {unknown}")
    path = Path(os.path.realpath(path))
    line = io.StringIO()
    csv.writer(line).writerow([to_cell(row.get(name)) for name in schema.RESULT_COLUMNS])
    with FileLock(f"{path}.lock"):
        temporary = path.with_name(path.name + ".tmp")
        if path.exists() and path.stat().st_size:
            check_header(path)
            shutil.copy(path, temporary)
        else:
            header = io.StringIO()
            csv.writer(header).writerow(schema.RESULT_COLUMNS)
            temporary.write_text(header.getvalue(), encoding="utf-8", newline="")
        with open(temporary, "rb+") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():  # a file edited by hand may lack its last line break
                file.seek(-1, os.SEEK_END)
                if file.read(1) not in (b"\n", b"\r"):
                    file.write(b"\r\n")
            file.write(line.getvalue().encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def read_results(path):
    """Rows of a results CSV as a list of dicts of strings (unknown = ""). UserError for a missing, foreign or broken file."""
    path = Path(path)
    if path.is_dir():
        raise utils.UserError(f"{path} is a folder; give a results CSV")
    if not path.is_file():
        raise utils.UserError(f"there is no results file {path}; run a script first, or pass --results")
    if path.stat().st_size == 0:
        raise utils.UserError(f"{path} is empty; delete it and run a script to begin a new one")
    try:
        check_header(path)
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            next(reader)
            rows = []
            for cells in reader:
                if len(cells) != len(schema.RESULT_COLUMNS):
                    raise utils.UserError(
                        f"{path}, line {reader.line_num}: {len(cells)} cells where {len(schema.RESULT_COLUMNS)} belong"
                    )
                rows.append(dict(zip(schema.RESULT_COLUMNS, cells)))
            return rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise utils.UserError(f"{path} cannot be read as a results CSV: {error}") from None


def number(cell):
    """A cell as a float, None where it is empty; UserError where it is no number."""
    try:
        return float(cell) if cell else None
    except ValueError:
        raise utils.UserError(f"the results CSV holds {cell!r} where a number belongs") from None
