"""The results CSV (read, append) and JSON-lines files. Imports nothing heavy: every script imports it."""

import contextlib
import csv
import filecmp
import io
import json
import math
import os
import re
import shutil
import stat
from pathlib import Path

import utils
from harness.results import earlier, label_counts, outputs, schema

csv.field_size_limit(2**31 - 1)  # a cell may be longer than the csv module's 128 kB
# a spreadsheet takes a text that begins so for a formula; an apostrophe before it makes it a text
FORMULA, ESCAPED = re.compile(r"'*[=+\-@\t\r]"), re.compile(r"'+[=+\-@\t\r]")


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
            raise utils.UserError(
                f"{path}, line {i}: not a JSON object: {line[:50].decode('utf-8', 'replace')!r}; mend or delete it"
            )
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


def to_cell(value):
    """One CSV cell: unknown (None, NaN) is empty; line breaks become spaces, so that a row is a line.

    A text that a spreadsheet would run as a formula gets an apostrophe in front, which `read_results` takes off again.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = " ".join(str(value).splitlines())
    return f"'{text}" if FORMULA.match(text) and not _is_number(text) else text


def _is_number(text):
    with contextlib.suppress(ValueError):
        return float(text) is not None
    return False


def read_header(path):
    """The column names of a results CSV, of this version or an earlier one, as they are in the file.

    UserError for a file that is no results CSV, and for columns that this version does not know.
    """
    with _reader(path) as reader:
        return _header(path, reader)


@contextlib.contextmanager
def _reader(path):
    """A csv.reader of a file, with or without the byte order mark of `CSV UTF-8`; UserError where it cannot be read."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            yield csv.reader(file, strict=True)
    except OSError as error:
        raise utils.UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise utils.UserError(
            f"{path} cannot be read as a results CSV: it is not UTF-8 ({error.reason}); save it as CSV UTF-8"
        ) from None
    except csv.Error as error:
        raise utils.UserError(f"{path} cannot be read as a results CSV: {error}") from None


def _header(path, reader):
    header = next(reader, [])
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        names = header[0].split(separator) if header else []
        if len(names) > 1 and outputs.known_columns(names):
            raise utils.UserError(
                f"{path} is separated by {name}, as some spreadsheets save it: save it as CSV UTF-8 with commas and "
                "decimal points, and check its numbers"
            )
    unknown = [name for name in header if name not in schema.TYPES and name not in earlier.GONE]
    if not outputs.known_columns(header):
        raise utils.UserError(f"{path} is not a results CSV: it begins with {','.join(header)[:60]!r}")
    if unknown:
        raise utils.UserError(
            f"{path} has columns that this version does not know: {', '.join(unknown)}; "
            "delete these columns, or pass another file with --results"
        )
    if len(set(header)) < len(header):
        twice = sorted({name for name in header if header.count(name) > 1})
        raise utils.UserError(f"{path} has columns more than once: {', '.join(twice)}; keep one of each")
    return header


def locked(path):
    """A lock of PATH.lock between processes."""
    from filelock import FileLock  # not at the top: --help answers before anything is installed

    return FileLock(f"{path}.lock")


def check_results_file(path):
    """Raise UserError now, before hours of work, if a row could not be appended to `path` later."""
    found = outputs.check_place(path, "--results")
    if found and found.st_size:
        read_results(path)


def append_result(path, row):
    """Append one row, whole or not at all: under a lock, a copy with the row replaces the file (os.replace is atomic).

    A process killed at any moment leaves the old file or the new one, never half a row. A file of an earlier version
    gets the columns that it lacks, and is kept as it was beside the new one.
    row: dict with keys from RESULT_COLUMNS; what is missing or None becomes an empty cell.
    Raises UserError where the file is no results CSV or cannot be written, ValueError for an unknown column.
    """
    unknown = [name for name in row if name not in schema.TYPES]
    if unknown:
        raise ValueError(f"not in RESULT_COLUMNS: {unknown}")
    outputs.check_place(path, "--results")
    path = Path(os.path.realpath(path))
    try:
        with locked(path):
            outputs.remove_stale(path)
            _append(path, row)
    except OSError as error:
        raise utils.UserError(f"--results {path} cannot be written: {error.strerror or error}") from None


def _append(path, row):
    """The work of append_result, under its lock. path: without links."""
    header, rows = schema.RESULT_COLUMNS, None
    if path.exists() and path.stat().st_size:
        header = read_header(path)
        if set(header) != set(schema.RESULT_COLUMNS):
            header, rows = schema.RESULT_COLUMNS, read_results(path)
    with outputs.new_file(path, "--results") as temporary:
        if rows is not None:
            cells = ([to_cell(cell) for cell in each.values()] for each in rows)
            temporary.write_bytes(csv_lines([header, *cells]))
        elif path.exists() and path.stat().st_size:
            shutil.copyfile(path, temporary)
        else:
            temporary.write_bytes(csv_lines([header]))
        with open(temporary, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) not in (b"\n", b"\r"):  # a file edited by hand may lack its last line break
                file.write(b"\r\n")
            file.write(csv_lines([[to_cell(row.get(name)) for name in header]]))
        if rows is not None:
            print(f"{path} has new columns now; the file as it was is {keep_copy(path)}")


def merge(files, path):
    """Append to `path` the rows of other results CSVs that it does not have yet, by their run_id; returns how many."""
    n, path = 0, os.path.realpath(path)
    with locked(f"{path}.merge"):  # two that merge the same files see each other's rows
        known = {row["run_id"] for row in read_if_there(path)}
        for file in files:
            for row in read_if_there(file):
                if row["run_id"] not in known:
                    append_result(path, row)
                    known.add(row["run_id"])
                    n += 1
    return n


def csv_lines(rows):
    """Rows of cells as the bytes of CSV lines; a byte of a file's name that is not UTF-8 becomes an escape, \\udce9."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


def keep_copy(path):
    """Copy a CSV to PATH.before-new-columns, or to that name with -2, -3, ... where it is taken. Returns the copy.

    A copy with the same contents is not made again. Call it under the lock.
    """
    kept, n = path.with_name(f"{path.name}.before-new-columns"), 1
    while kept.exists() and not filecmp.cmp(path, kept, shallow=False):
        n += 1
        kept = path.with_name(f"{path.name}.before-new-columns-{n}")
    if not kept.exists():
        outputs.remove_stale(kept)
        with outputs.new_file(kept) as temporary:  # a killed process leaves no half copy under this name
            shutil.copy2(path, temporary)
    return kept


def read_if_there(path):
    """read_results; [] where the file is not there yet or is empty."""
    return read_results(path) if Path(path).is_file() and Path(path).stat().st_size else []


def read_results(path):
    """Rows of a results CSV as a list of dicts of strings, with all of RESULT_COLUMNS in order.

    Unknown is "", and so is every cell of a column that an older file lacks, but labels_used (see label_counts);
    columns that had another name there are renamed (see earlier). UserError for a missing, foreign or broken file.
    """
    path = Path(path)
    check_there(path)
    rows = []
    with _reader(path) as reader:
        header = _header(path, reader)
        for cells in reader:
            if not any(cells) or cells == header:  # a row that was cleared by hand; files that were joined
                continue
            if len(cells) != len(header):
                raise utils.UserError(f"{path}, line {reader.line_num}: {len(cells)} cells where {len(header)} belong")
            cells = [cell[1:] if cell[:1] == "'" and ESCAPED.match(cell) else cell for cell in cells]
            row = earlier.current(dict(zip(header, cells)))
            rows.append({**dict.fromkeys(schema.RESULT_COLUMNS, ""), **row})
            if "labels_used" not in header:
                rows[-1]["labels_used"] = label_counts.derived(rows[-1])
    return rows


def check_there(path):
    """UserError where there is no ordinary file with something in it."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise utils.UserError(f"there is no results file {path}; run a script first, or pass --results") from None
    except (OSError, ValueError) as error:
        raise utils.UserError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from None
    if stat.S_ISDIR(found.st_mode):
        raise utils.UserError(f"{path} is a folder; give a results CSV")
    if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
        raise utils.UserError(f"{path} is a pipe or a device; give a results CSV")
    if found.st_size == 0:
        raise utils.UserError(f"{path} is empty; delete it and run a script to begin a new one")


def number(cell):
    """A cell as a float, None where it is empty; UserError where it is no number."""
    try:
        return float(cell) if cell else None
    except ValueError:
        comma = "; write numbers with a decimal point" if re.fullmatch(r"[+-]?\d+,\d+", cell.strip()) else ""
        raise utils.UserError(f"the results CSV holds {cell!r} where a number belongs{comma}") from None
