"""What a cell holds: a text, a list or an object, in the forms that JSON, parquet and tables give them."""

import ast
import json
import re

import utils

HALF_PAIR = re.compile("[\ud800-\udfff]")
QUOTED = r"'(?:[^'\\]|\\.)*+'|\"(?:[^\"\\]|\\.)*+\""
NUMPY_TEXTS = re.compile(rf"\[\s*(?:{QUOTED})(?:\s+(?:{QUOTED}))+\s*\]", re.S)  # ['a' 'b'], as pandas writes an array
NUMPY_NUMBERS = re.compile(r"\[\s*-?\d+\.?(?:\s+-?\d+\.?)+\s*\]")  # [0 1]
NUMPY_ARRAY = re.compile(r"array\((\[.*?\])(?:,\s*dtype=[^)]*)?\)", re.S)


class Written(str):
    """A cell of a CSV or TSV that begins like a list or an object: such a file can hold these only as text."""

    __slots__ = ()


def clean(value):
    """A JSON value whose texts can be written as UTF-8: half of a surrogate pair becomes a question mark."""
    if isinstance(value, str):
        return HALF_PAIR.sub("?", value)
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    return value


def parse(value):
    """The list or object that a text writes down, in JSON, Python or numpy; any other value as it is."""
    if not isinstance(value, str) or (value[:1], value[-1:]) not in (("[", "]"), ("{", "}")):
        return value
    if NUMPY_TEXTS.fullmatch(value):  # before Python, which would join the texts
        return [ast.literal_eval(text) for text in re.findall(QUOTED, value, re.S)]
    if NUMPY_NUMBERS.fullmatch(value):
        return [int(number) for number in re.findall(r"-?\d+", value)]
    for read, text in (
        (json.loads, value),
        (ast.literal_eval, value),
        (ast.literal_eval, NUMPY_ARRAY.sub(r"\1", value)),
    ):
        try:
            return clean(read(text))
        except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two: brackets nested too deeply
            continue
    return value


def is_empty(value):
    """True for None, NaN, a blank text and a list without items."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value != value or (isinstance(value, (list, tuple, dict)) and not value)


def text(value, where, join=None):
    """A cell as text; None and NaN are empty. join: what stands between several texts, which are an error without it.

    where: names the cell. UserError for an object, and for a list of anything but texts and numbers.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        if any(isinstance(item, (list, tuple, dict)) for item in value) or (len(value) > 1 and join is None):
            raise utils.UserError(f"{where} holds a list ({_short(value)}); a text is wanted")
        return (join or "").join(filter(None, (text(item, where) for item in value)))
    if isinstance(value, dict):
        raise utils.UserError(f"{where} holds an object ({_short(value)}); a text is wanted")
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise utils.UserError(f"{where} holds bytes that are not UTF-8 text") from None
    return "" if value is None or value != value else str(value)


def texts(value, where):
    """The texts of a cell, none of them empty: one, a list of them, or a list that a CSV or TSV writes down as text.

    A text in brackets in any other file is one text. Also the answers of SQuAD, {"text": [..]} or [{"text": ..}], and
    of TriviaQA, {"value": .., "aliases": [..]}.
    """
    found = read(value)
    if isinstance(found, dict):
        if not {"text", "value"} & set(found):
            raise utils.UserError(f"{where} holds an object ({_short(found)}); a text or a list of texts is wanted")
        aliases = found.get("aliases") if isinstance(found.get("aliases"), list) else []
        aliases = [alias for alias in aliases if alias != found.get("value")]
        found = found["text"] if "text" in found else [found["value"], *aliases]
    items = found if isinstance(found, (list, tuple)) else [found]
    items = [item["text"] if isinstance(item, dict) and "text" in item else item for item in items]
    return tuple(filter(None, (text(item, where).strip() for item in items)))


def is_written_list(value):
    """True for a cell of a CSV or TSV whose text `texts` reads as a list or an object of texts."""
    return read(value) is not value


def read(value):
    """What a Written cell writes down, unless that holds no answers, such as a matrix; any other value as it is."""
    found = parse(value) if isinstance(value, Written) else value
    return value if found is not value and _is_nested(found) else found


def _is_nested(value):
    """True for a list of lists, and for objects that are no answers."""
    items = value if isinstance(value, list) else [value]
    return any(isinstance(item, (list, dict)) and not ("text" in item or "value" in item) for item in items)


def _short(value):
    """The beginning of a value, for a message."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
