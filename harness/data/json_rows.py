"""JSON and JSON lines -> rows, in the shapes that people's tools write."""

import json
import re

import utils
from harness.data import cells
from harness.data.columns import KNOWN
from harness.data.splits import split_of

WRAPPERS = ("data", "rows", "examples", "instances", "items", "records", "samples", "entries", "questions")
# lists of objects that are a part of one row
IN_ROWS = {
    "messages",
    "conversations",
    "conversation",
    "answers",
    "choices",
    "options",
    "turns",
    "prompt",
    "completion",
}
IN_ROWS |= {"chosen", "rejected", "qas", "paragraphs"}
ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def read(text, path, kind):
    """Rows (dicts) of a text of JSON or JSON lines, or {split: rows} where one object holds the splits.

    kind: json or jsonl, as the file is named; either is read under the other name. An object around the rows is
    unwrapped: {"data": [..]}, SQuAD's articles, what pandas' to_json writes. UserError, with the line, for broken JSON.
    """
    if not text.strip():
        return []
    try:
        value = _parse(text, path, kind)
        value = cells.clean(value) if ESCAPED_HALF.search(text) else value
    except RecursionError:
        raise utils.UserError(f"{path} cannot be read as {kind}: its brackets are nested too deeply") from None
    if isinstance(value, dict):
        value = _unwrap(value, path, kind)
    for part in value.values() if isinstance(value, dict) else [value]:
        _check_rows(part, path)
    return value


def _parse(text, path, kind):
    """The JSON value of the whole text, or the list of those of its lines."""
    whole, lines = kind == "json" or text.lstrip()[0] == "[", None
    if not whole:
        try:
            lines = _parse_lines(text, path, kind)
            return lines[0] if len(lines) == 1 and isinstance(lines[0], dict) else lines
        except utils.UserError:
            if "\n" not in text.strip():
                raise
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if not whole or error.msg == "Extra data":  # a value ends before the text does: JSON lines
            return _parse_lines(text, path, kind)
        raise utils.UserError(f"{path} cannot be read as {kind}: line {error.lineno}: {_reason(error)}") from None
    except ValueError as error:  # a number of too many digits
        raise utils.UserError(f"{path} cannot be read as {kind}: {error}") from None


def _parse_lines(text, path, kind):
    """The values of JSON lines; UserError with the number of the first broken one."""
    values = []
    # JSON strings may hold other line breaks of Unicode, so that splitlines() would cut rows
    for number, line in enumerate(text.split("\n" if "\n" in text else "\r"), start=1):
        try:
            if line.strip():
                values.append(json.loads(line))
        except ValueError as error:
            shown = f"in {line.strip()[:50]!r}" if len(line) > 50 else f"in {line.strip()!r}"
            raise utils.UserError(
                f"{path} cannot be read as {kind}: line {number}: {_reason(error)} {cells.clean(shown)}"
            ) from None
    return values


def _reason(error):
    return f"{error.msg} (column {error.colno})" if isinstance(error, json.JSONDecodeError) else str(error)


def _check_rows(rows, path):
    """UserError unless `rows` is a list of objects."""
    wrong = next((i for i, row in enumerate(rows) if not isinstance(row, dict)), None) if isinstance(rows, list) else 0
    if wrong is not None:
        there = f"item {wrong + 1} is {json.dumps(rows[wrong])[:40]}" if isinstance(rows, list) else "it is one value"
        raise utils.UserError(f"{path}: a list of JSON objects is wanted; {there}")


def _unwrap(value, path, kind):
    """The rows in an object, or {split: rows}; [value] where it is itself a row.

    The one line of a JSONL file is a row if a text or number stands in it under a known column name.
    """
    if kind == "jsonl" and any(
        name.lower() in KNOWN and not isinstance(cell, (list, dict)) for name, cell in value.items()
    ):
        return [value]
    lists = {
        name: part
        for name, part in value.items()
        if isinstance(part, list) and part and all(isinstance(row, dict) for row in part) and name not in IN_ROWS
    }
    splits = {name: part for name, part in lists.items() if split_of(name, whole=True)}
    if splits and len(splits) == len(lists):
        return splits
    usual = [name for name in WRAPPERS if name in lists] or (list(lists) if kind == "json" else [])
    if len(usual) == 1:
        rows = lists[usual[0]]
        if all(isinstance(row.get("paragraphs"), list) for row in rows):
            return _squad(rows, path)
        return [row["row"] for row in rows] if all(isinstance(row.get("row"), dict) for row in rows) else rows
    if usual:
        raise utils.UserError(f"{path}: its rows may be under any of {', '.join(usual)}; keep one list in the file")
    return (_table(value) if kind == "json" else None) or [value]


def _table(value):
    """The rows of what pandas' to_json writes, by its orient: split, columns, index or list; None for no table."""
    names, columns = value.get("columns"), list(value.values())
    cells_of = value.get("data") if isinstance(names, list) and isinstance(value.get("data"), list) else []
    if cells_of and all(isinstance(row, list) and len(row) == len(names) for row in cells_of):
        return [dict(zip(map(str, names), row)) for row in cells_of]
    if len(columns) > 1 and all(isinstance(part, list) and len(part) == len(columns[0]) for part in columns):
        return [dict(zip(value, row)) for row in zip(*columns)]
    if columns and all(isinstance(part, dict) and part for part in columns):
        keys = [key for part in columns for key in part]
        if all(key.isdigit() for key in keys):  # {column: {row number: cell}}
            order = dict.fromkeys(keys)
            return [{name: part.get(key) for name, part in value.items()} for key in order]
        return columns  # {id: row}
    return None


def _squad(articles, path):
    """SQuAD's articles of paragraphs of questions as one row a question."""
    rows = []
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                shared = {"title": article.get("title"), "context": paragraph["context"]}
                for item in paragraph["qas"]:
                    answers = [] if item.get("is_impossible") else item.get("answers", [])
                    rows.append({**shared, "id": item.get("id"), "question": item["question"], "answers": answers})
    except (TypeError, KeyError, AttributeError):
        raise utils.UserError(f"{path}: its paragraphs are not as SQuAD writes them (context, qas)") from None
    return rows
