"""Multiple choice: the options of a question, and answers that are an option's letter or place."""

import re

import utils
from harness.data import cells

# columns with an option each: what is before the letter or number -> how many there must be to be options
PREFIXES = {"": 3, "option": 2, "option_": 2, "choice": 2, "choice_": 2, "op": 2, "ending": 2, "ending_": 2, "opt": 2}
LETTER = re.compile(r"\(?([A-Za-z])[).:]?")
RULES = ("names", "letters", 0, 1)  # how answers name options: by their own names, letters, places from 0, from 1
MEANT = {
    "names": "the names of the options",
    "letters": "letters of the options",
    0: "places of the options, counted from 0",
    1: "places of the options, counted from 1",
}


def option_columns(names):
    """The columns that hold an option each (A, B, C, D or option1, option2 ..), in order; () for none."""
    lower = {name.lower(): name for name in names}
    for prefix, least in PREFIXES.items():
        for keys in ("abcdefghij", *(("0123456789", "123456789") if prefix else ())):
            found = []
            for key in keys:
                if prefix + key not in lower:
                    break
                found.append(lower[prefix + key])
            if len(found) >= least:
                return tuple(found)
    return ()


def options_of(row, column):
    """(texts, their names or None) of the options in a row; ((), None) for none. An empty one keeps its place, as "".

    column: one column with a list, lines of text, {"text": [..], "label": [..]} or {name: text}; or a tuple of columns
    with an option each.
    """
    where = f"column {column}"
    if isinstance(column, tuple):
        filled = [(name[-1].upper(), row.get(name)) for name in column if not cells.is_empty(row.get(name))]
        return tuple(cells.text(text, where).strip() for _, text in filled), tuple(name for name, _ in filled)
    value = cells.parse(row.get(column))
    if cells.is_empty(value):
        return (), None
    if isinstance(value, dict) and isinstance(value.get("text"), (list, tuple)):
        value, labels = value["text"], value.get("label")
        names = tuple(map(str, labels)) if isinstance(labels, (list, tuple)) and len(labels) == len(value) else None
    elif isinstance(value, dict):
        names = tuple(map(str, (name for name, text in value.items() if not cells.is_empty(text))))
        value = [text for text in value.values() if not cells.is_empty(text)]
    elif isinstance(value, (list, tuple)) and all(isinstance(item, dict) and "text" in item for item in value):
        names = tuple(str(item.get("label", item.get("key", ""))) for item in value)
        value, names = [item["text"] for item in value], names if all(names) else None
    else:
        names, value = None, list(filter(str.strip, value.split("\n"))) if isinstance(value, str) else value
    value = value if isinstance(value, (list, tuple)) else [value]
    texts = tuple(cells.text(item, where).strip() for item in value)
    return (texts, names) if any(texts) else ((), None)


def rule(rows, answer, options):
    """How the answers of `rows` name options: (one of RULES, True if an option's text goes before it), else None.

    None: they are the options' texts, or other texts. answer, options: columns, as in `options_of`. The rule is the one
    that most answers fit which are no option's text; texts go first where most answers are an option's text. UserError
    where nothing tells places from 0 from places from 1: no answer is 0 or the number of its row's options.
    """
    read = [(*options_of(row, options), cells.texts(_place(row.get(answer)), answer)) for row in rows]
    read = [(texts, names, answers) for texts, names, answers in read if texts and answers]
    other = [each for each in read if not all(_same(text, each[0]) for text in each[2])]
    if not other:
        return None
    fits = {}
    for candidate in RULES:
        fits[candidate] = [all(_index(text, *each[:2], candidate) is not None for text in each[2]) for each in other]
    best = max(RULES, key=lambda candidate: sum(fits[candidate]))
    if sum(fits[best]) <= len(other) / 2:
        return None
    texts_first = len(other) < len(read) / 2
    if best == 0 and fits[0] == fits[1]:
        if texts_first:  # a few numbers beside options are other texts
            return None
        raise utils.UserError(
            f"column {answer}: whether the answers are places of the options counted from 0 or from 1 cannot be told: "
            "none is 0 or the number of options; write letters (A, B, ..) or the options' texts instead"
        )
    return best, texts_first


def resolve(value, texts, names, chosen, where):
    """The answers (texts) of a cell whose answers name options as `rule` found.

    texts, names: of the row's options; chosen: of `rule`. None where a letter or place is beyond the options. A text
    that is neither is itself. None, too, where it names an empty option.
    """
    answers = cells.texts(_place(value), where)
    if chosen is None or not texts:
        return answers
    found = []
    for answer in answers:
        itself = chosen[1] and _same(answer, texts)
        index = None if itself else _index(answer, texts, names, chosen[0])
        if index is None and not _same(answer, texts) and (answer.isdigit() or LETTER.fullmatch(answer)):
            return None
        if index is not None and not texts[index]:
            return None
        found.append(answer if index is None else texts[index])
    return tuple(found)


def _place(value):
    """2.0, as pandas makes of a column of places with a gap, as 2."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _same(answer, texts):
    """True if an answer is one of the texts, apart from case and white space."""
    return " ".join(answer.lower().split()) in {" ".join(text.lower().split()) for text in texts}


def _index(answer, texts, names, chosen):
    """The place of the option that an answer names by a rule, None if it names none."""
    if chosen == "names":
        index = names.index(answer) if names and answer in names else None
    elif chosen == "letters":
        letter = LETTER.fullmatch(answer)
        index = ord(letter[1].upper()) - ord("A") if letter else None
    else:
        place = re.fullmatch(r"([0-9]{1,3})(?:\.0)?", answer)
        index = int(place[1]) - chosen if place else None
    return index if index is not None and 0 <= index < len(texts) else None
