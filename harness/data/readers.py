"""Files of the formats that people bring -> rows; hub data sets through `datasets`."""

import json
import warnings
from pathlib import Path

import datasets
import pandas as pd
import pyarrow.parquet

import utils
from harness import flags
from harness.data.columns import ANSWER, INSTRUCTION, LABEL, QUESTION, TEXT

# word of a file's or hub split's name -> split
SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "validation_matched": "validation",
    "dev_matched": "validation",
}
HEADER_NAMES = (
    *TEXT,
    *LABEL,
    *QUESTION,
    *ANSWER,
    *INSTRUCTION,
)  # the first line of a TSV with one of these is a header


def read_table(path, columns=None, named=()):
    """Rows of one local file as dicts. UserError for a missing file, an unknown format and what cannot be read as such.

    A TSV is read without quoting, as SST-2, MNLI and UnifiedQA are written; its first line is a header if it holds one
    of HEADER_NAMES or of `named`. The first line of a CSV is a header unless `columns` are given.
    """
    path = Path(path)
    kind = path.suffix.lstrip(".").lower()
    if kind not in flags.DATA_FORMATS:
        raise utils.UserError(f"{path}: unknown file type; known are {', '.join(flags.DATA_FORMATS)}")
    if not path.is_file():
        raise utils.UserError(f"{path}: no such file")
    try:
        if kind in ("csv", "tsv"):
            return _read_cells(path, kind, columns, named)
        if kind == "parquet":
            return pyarrow.parquet.read_table(path).to_pylist()  # lists stay lists, where pandas would give arrays
        text = path.read_text(encoding="utf-8-sig")
        rows = json.loads(text) if kind == "json" else [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, OSError, pd.errors.ParserWarning) as error:  # pandas' parser errors and json's are ValueErrors
        if isinstance(error, utils.UserError):
            raise
        raise utils.UserError(f"{path} cannot be read as {kind}: {str(error).splitlines()[0]}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise utils.UserError(f"{path}: a list of JSON objects is wanted")
    return rows


def _read_cells(path, kind, columns, named):
    """Rows of a CSV or TSV as dicts of strings."""
    quoting = {"sep": "\t", "quoting": 3} if kind == "tsv" else {}  # 3: quotation marks are ordinary characters
    header = None if columns or (kind == "tsv" and not _has_header(path, named)) else 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # pandas would cut a row with too many cells
        frame = pd.read_csv(
            path, dtype=str, keep_default_na=False, header=header, encoding="utf-8-sig", index_col=False, **quoting
        )
    if header is None:
        names = columns or _guess_columns(frame, path)
        if list(frame.iloc[0]) == list(names):  # the file has a header line, and --columns repeats it
            frame = frame.iloc[1:]
        if len(names) != frame.shape[1]:
            given = f"--columns names {len(names)}: {','.join(names)}"
            raise utils.UserError(f"{path} has {frame.shape[1]} columns, {given}")
        frame.columns = names
    return frame.to_dict("records")


def _has_header(path, named):
    """True if the first line of a TSV holds one of HEADER_NAMES, in any case, or one of `named`."""
    with open(path, encoding="utf-8-sig") as file:
        cells = [cell.strip() for cell in file.readline().rstrip("\r\n").split("\t")]
    return any(cell in named or cell.lower() in HEADER_NAMES for cell in cells)


def _guess_columns(frame, path):
    """Names for a file without a header line: text, label if its second column is whole numbers, else UnifiedQA's."""
    if frame.shape[1] == 2:
        return ["text", "label"] if frame[1].str.fullmatch(r"-?\d+").all() else ["question", "answer"]
    raise utils.UserError(
        f"{path}: no header line with a known column name, and {frame.shape[1]} columns; name them with --columns, or "
        "with --text_column and --label_column where the first line is a header"
    )


def _local_files(folder):
    """{split: file} of a folder: train|validation|test.*, also as a word of the name (sent_dev.tsv).

    {"all": file} where the folder has one data file of another name.
    """
    files = [f for f in sorted(folder.iterdir()) if f.suffix.lstrip(".").lower() in flags.DATA_FORMATS]
    splits = {}
    for file in files:
        stem = file.stem.lower()
        words = [stem, *stem.replace("-", "_").replace(".", "_").split("_")]
        split = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)
        if split and split in splits:
            both = f"both {splits[split].name} and {file.name} look like the {split} split"
            raise utils.UserError(f"{folder}: {both}; use --{split}_file")
        if split:
            splits[split] = file
    if not splits and len(files) == 1:
        return {"all": files[0]}
    if not splits:
        names = ", ".join(f.name for f in files) or "no data files"
        wanted = f"train|validation|test.({'|'.join(flags.DATA_FORMATS)})"
        raise utils.UserError(f"{folder}: no {wanted} in this folder, it has {names}")
    return splits


def read_splits(dataset, subset, files, columns, named):
    """({split: rows}, {column: label names}) of {split: file}, of a local folder or file, or of a hub data set.

    The label names are those of the hub's ClassLabel columns. columns, named: as for read_table.
    """
    if files:
        return {split: read_table(path, columns, named) for split, path in files.items()}, {}
    path = Path(dataset).expanduser()
    if path.exists() and subset:
        path = path / subset
        if not path.is_dir():
            raise utils.UserError(f"--subset {subset}: {dataset} is a local path and has no such subfolder")
    if path.is_dir():
        return {split: read_table(file, columns, named) for split, file in _local_files(path).items()}, {}
    if path.is_file():
        return {"all": read_table(path, columns, named)}, {}
    try:
        loaded = datasets.load_dataset(dataset, subset)
    except (OSError, ValueError, RuntimeError) as error:  # unknown name or subset, no connection, no cache
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise utils.UserError(
            f"--dataset {dataset} {subset or ''}: no such local path, and the hub does not give it ({reason}); "
            "give a folder or file, or run `python prepare_data.py demo` for assets/data/movie_reviews"
        ) from None
    features = next(iter(loaded.values())).features
    names = {name: feature.names for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)}
    return {SPLIT_NAMES[split]: rows.to_list() for split, rows in loaded.items() if split in SPLIT_NAMES}, names
