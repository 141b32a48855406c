"""Files of the formats that people bring -> rows. Every file of data is read here, whatever room asks for it."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet

import utils
from harness import flags, inputs
from harness.data import delimited, json_rows
from harness.data.columns import KNOWN

MARKS = {  # a byte order mark -> encoding, the longer ones first
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}


def decode(data, path, encoding=None, kind="text"):
    """The bytes of a file as text: by its byte order mark, else UTF-8, else `encoding`. UserError where none fits."""
    marked = next((name for mark, name in MARKS.items() if data.startswith(mark)), None)
    if not marked and not encoding and b"\0" in data:
        raise utils.UserError(
            f"{path} cannot be read as {kind}: it holds zero bytes; if it is UTF-16 give --encoding utf-16-le, else it "
            "is no text"
        )
    tried = [marked] if marked else [encoding] if b"\0" in data else ["utf-8", *([encoding] if encoding else [])]
    for name in tried:
        try:
            return data.decode(name)
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            where = f"byte {data[error.start]:#04x} in line {line}"
    ways = f"neither UTF-8 nor {encoding}" if len(tried) > 1 else f"not {tried[0].upper()}"
    hint = "" if encoding else "; name its encoding, such as --encoding cp1252"
    raise utils.UserError(f"{path} cannot be read as {kind}: {where} is {ways}{hint}")


def read_text(path, encoding=None, kind="text"):
    """The text of a file, as `decode` reads it."""
    return decode(inputs.read_bytes(path), path, encoding, kind)


def read_table(path, columns=None, named=(), encoding=None, notes=None):
    """Rows of one local file as dicts. UserError for a missing file, an unknown format and what cannot be read as such.

    columns: names for a CSV or TSV without a header line; named: column names that a person has named; encoding: of a
    text that is not UTF-8; notes: a list that gets what a person has to know of how the file was read.
    """
    rows = read_parts(path, columns, named, encoding, notes)
    if isinstance(rows, dict):
        if len(rows) > 1:
            raise utils.UserError(
                f"{path} holds the splits {', '.join(rows)}; a file of one list of rows is wanted here"
            )
        (rows,) = rows.values()
    return rows


def read_parts(path, columns=None, named=(), encoding=None, notes=None):
    """As `read_table`, but {split: rows} of a JSON file whose one object holds the splits."""
    kind = file_kind(path)
    if kind is None:
        raise utils.UserError(f"{path}: unknown file type; known are {', '.join(flags.DATA_FORMATS)}")
    if columns and kind not in ("csv", "tsv"):
        raise utils.UserError(f"--columns names the columns of a CSV or TSV without a header line, {path} has its own")
    if kind == "parquet":
        return _read_parquet(path)[0]
    text = read_text(path, encoding, kind)
    if kind in ("csv", "tsv"):
        return delimited.read(text, path, kind, columns, {*KNOWN, *named}, notes)
    return json_rows.read(text, path, kind)


def file_kind(path):
    """The data format of a file by its name: one of flags.DATA_FORMATS, else None."""
    kind = Path(path).suffix.lstrip(".").lower()
    return kind if kind in flags.DATA_FORMATS else None


def class_names(path):
    """{column: label names} that a parquet file of `datasets` declares; {} for any other file."""
    return _read_parquet(path, schema_only=True)[1] if file_kind(path) == "parquet" else {}


def _read_parquet(path, schema_only=False):
    """(rows, {column: label names}) of a parquet file."""
    if inputs.look(path) != "file":
        raise utils.UserError(f"{path}: {'a folder, a file is wanted' if inputs.look(path) else 'no such file'}")
    place = inputs.expand_path(path)
    try:
        declared = _declared(pyarrow.parquet.read_schema(place))
        # lists stay lists, where pandas would give arrays
        return [] if schema_only else pyarrow.parquet.ParquetFile(place).read().to_pylist(), declared
    # a date beyond Python's is an OverflowError, Arrow's ArrowInvalid a ValueError
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise utils.UserError(f"{path} cannot be read as parquet: {reason}") from None


def _declared(schema):
    """{column: label names} of the ClassLabel columns in the metadata that `datasets` writes."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = features.get("info", {}).get("features", {})
        named = {name: kind["names"] for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
    except (ValueError, RecursionError, AttributeError, KeyError):
        return {}
    return {name: list(map(str, names)) for name, names in named.items() if isinstance(names, list) and names}
