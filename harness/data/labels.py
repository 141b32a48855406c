"""Class labels: what a cell of the label column means, and which classes there are."""

import re

import utils
from harness.data import cells

MAX_LABELS = 200  # a column with more different values is not a class label


def tidy(splits, column):
    """Make the label cells of {split: rows} texts, in place: 1, 1.0, "1.0" and [1] are "1", unknown ones are empty.

    A column of floats with decimal commas (1,0) counts the same. UserError for rows of several labels.
    """
    for split, rows in splits.items():
        held = [(i, row) for i, row in enumerate(rows) if column in row]
        found = [_one(row[column], f"{split} row {i}: {column}", column) for i, row in held]
        filled = [label for label in found if label]
        commas = bool(filled) and all(re.fullmatch(r"-?\d+,0+", label) for label in filled)
        for (_, row), label in zip(held, found):
            row[column] = _whole(label.replace(",", ".") if commas else label)


def _one(value, where, column):
    """The text of the one label in a cell; UserError where there are several."""
    found = cells.parse(value)
    if isinstance(found, dict):
        found = value if isinstance(value, str) else cells.text(value, where)  # the latter is an error
    if isinstance(found, (list, tuple)):
        if len(found) > 1:
            raise utils.UserError(
                f"{where} holds several labels ({str(value)[:60]}), and an example here has one; keep one label a "
                "row, or name another column with --label_column"
            )
        found = found[0] if found else None
    return cells.text(found, where).strip()


def _whole(label):
    """A whole number written as a float, as a whole number."""
    return re.sub(r"\.0+", "", label) if re.fullmatch(r"-?\d+\.0+", label) else label


def label_names(splits, column, declared):
    """(label names [L], {label as text: index}): what the hub declares, else what the training split holds.

    splits: {split: rows} after `tidy`; without a training split the first one counts. UserError where the column holds
    numbers, lists or more values than a class label has.
    """
    if declared:
        return declared, {**{name: i for i, name in enumerate(declared)}, **{str(i): i for i in range(len(declared))}}
    source = splits["train"] if splits.get("train") else next(iter(splits.values()))
    names = {row.get(column) or "" for row in source} - no_label(source, column, None)
    odd = next((name for name in names if re.fullmatch(r"-?\d*[.,]\d+([.,]\d+)*", name)), None)
    if odd:
        several = ", or rows of several labels" if "," in odd else ""
        raise utils.UserError(
            f"--label_column {column} holds {len(names)} different values, numbers among them ({odd}){several}; "
            "a class label is wanted"
        )
    if len(names) > MAX_LABELS:
        raise utils.UserError(
            f"--label_column {column} holds {len(names)} different values; a class label has at most {MAX_LABELS}"
        )
    ordered = sorted(
        names, key=lambda name: (0, int(name), name) if re.fullmatch("-?[0-9]{1,18}", name) else (1, 0, name)
    )
    return ordered, {name: i for i, name in enumerate(ordered)}


def spellings(names):
    """[a note] on label names that differ in case or spaces alone."""
    groups = {}
    for name in names:
        groups.setdefault(" ".join(name.lower().split()), []).append(name)
    alike = [" and ".join(map(repr, some)) for some in groups.values() if len(some) > 1]
    return [f"labels {'; '.join(alike)} count as different classes"] if alike else []


def no_label(rows, column, declared):
    """The label texts that mean unlabelled. rows: after `tidy`.

    An empty cell; -1 where the hub declares the names or where no row has another label; MNLI's - for a tie.
    """
    only_minus_one = {row.get(column) or "" for row in rows} == {"-1"}
    return {""} | ({"-1"} if declared or only_minus_one else set()) | ({"-"} if column == "gold_label" else set())
