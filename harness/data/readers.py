"""Files of the formats that people bring -> rows; hub data sets through `datasets`."""

import json
import warnings
from pathlib import Path

import pandas as pd
import pyarrow.parquet

import utils

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet")


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


# column names in the wild, the first match wins
TEXT = ("sentence", "text", "premise", "sentence1", "question1", "review", "snippet", "content")


PAIR = ("hypothesis", "sentence2", "question2")


LABEL = ("label", "labels", "gold_label", "sentiment", "class")


QUESTION, CONTEXT = ("question", "query"), ("context", "passage", "support", "input")


ANSWER, OPTIONS = ("answers", "answer"), ("options", "choices")


RESPONSE = ("output", "response", "completion")


GROUP = ("heuristic", "source", "category")  # scored apart, besides all together


def read_table(path, columns=None, named=()):
    """Rows of one local file as dicts.

    TSV is read without quoting, as SST-2, MNLI and UnifiedQA are written, and its first line is a header if it holds a name
    that this module knows or one of `named`; the first line of a CSV is a header unless `columns` are given.
    """
    path = Path(path)
    kind = path.suffix.lstrip(".").lower()
    if kind not in FORMATS:
        raise utils.UserError(f"{path}: unknown file type; known are {', '.join(FORMATS)}")
    if not path.is_file():
        raise utils.UserError(f"{path}: no such file")
    try:
        if kind in ("csv", "tsv"):
            options = {"sep": "\t", "quoting": 3} if kind == "tsv" else {}
            header = None if columns or (kind == "tsv" and not _has_header(path, named)) else 0
            with warnings.catch_warnings():  # a row with too many cells is only a warning to pandas, which cuts it
                warnings.simplefilter("error", pd.errors.ParserWarning)
                frame = pd.read_csv(
                    path,
                    dtype=str,
                    keep_default_na=False,
                    header=header,
                    encoding="utf-8-sig",
                    index_col=False,
                    **options,
                )
            if header is None:
                names = columns or _guess_columns(frame, path)
                if list(frame.iloc[0]) == list(names):  # --columns repeated the header line that is there
                    frame = frame.iloc[1:]
                if len(names) != frame.shape[1]:
                    raise utils.UserError(
                        f"{path} has {frame.shape[1]} columns, --columns names {len(names)}: {','.join(names)}"
                    )
                frame.columns = names
            return frame.to_dict("records")
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


def _has_header(path, named):
    """Does the first line of a TSV hold a column name that this module knows, or one of `named`?"""
    with open(path, encoding="utf-8-sig") as file:
        cells = [cell.strip() for cell in file.readline().rstrip("\r\n").split("\t")]
    return any(cell in named or cell.lower() in (*TEXT, *LABEL, *QUESTION, *ANSWER, "instruction") for cell in cells)


def _guess_columns(frame, path):
    """Names for a file without a header line: `text, label` where the second column holds whole numbers, else UnifiedQA's pair."""
    if frame.shape[1] == 2:
        return ["text", "label"] if frame[1].str.fullmatch(r"-?\d+").all() else ["question", "answer"]
    raise utils.UserError(
        f"{path}: no header line with a known column name, and {frame.shape[1]} columns; name them with --columns, or with "
        "--text_column and --label_column where the first line is a header"
    )


def _local_files(folder):
    """{split: path} of a folder: train|validation|test.*, also as a word of the name (sent_dev.tsv)."""
    files = [f for f in sorted(folder.iterdir()) if f.suffix.lstrip(".").lower() in FORMATS]
    found = {}
    for file in files:
        stem = file.stem.lower()
        words = [stem, *stem.replace("-", "_").replace(".", "_").split("_")]
        split = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)
        if split and split in found:
            raise utils.UserError(
                f"{folder}: both {found[split].name} and {file.name} look like the {split} split; use --{split}_file"
            )
        if split:
            found[split] = file
    if not found and len(files) == 1:
        return {"all": files[0]}
    if not found:
        names = ", ".join(f.name for f in files) or "no data files"
        raise utils.UserError(
            f"{folder}: no train|validation|test.({'|'.join(FORMATS)}) in this folder, it has {names}"
        )
    return found


def read_splits(dataset, subset, files, columns, named):
    """{split: rows} and {column: label names} of the hub's ClassLabel columns."""
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

    from datasets import ClassLabel, load_dataset

    try:
        loaded = load_dataset(dataset, subset)
    except (OSError, ValueError, RuntimeError) as error:  # unknown name or subset, no connection, no cache
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise utils.UserError(
            f"--dataset {dataset} {subset or ''}: not a local path and not to be had from the hub ({reason}); "
            "give a folder or file, or run `python prepare_data.py demo` for assets/data/movie_reviews"
        ) from None
    features = next(iter(loaded.values())).features
    names = {name: feature.names for name, feature in features.items() if isinstance(feature, ClassLabel)}
    splits = {SPLIT_NAMES[split]: rows.to_list() for split, rows in loaded.items() if split in SPLIT_NAMES}
    return splits, names
