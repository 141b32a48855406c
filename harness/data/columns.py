"""Rows -> examples: which column plays which role, and what a cell means."""

import ast
import contextlib
import re
from dataclasses import replace

import utils
from harness.data import readers
from harness.data.examples import Example


def _pick(row, names, forced=None, flag=None):
    """The first of `names` that is a column of `row`; a forced name must be there."""
    if forced:
        if forced not in row:
            raise utils.UserError(f"{flag} {forced}: no such column; there are {', '.join(row)}")
        return forced
    lower = {name.lower(): name for name in row}
    return next((lower[name] for name in names if name in lower), None)


def recognise(rows, options):
    """(kind, {role: column}) from the column names of the first row and the flags."""
    first, kind = rows[0], options["kind"]
    columns = {
        "text": _pick(first, readers.TEXT, options["text_column"], "--text_column"),
        "text_pair": _pick(first, readers.PAIR, options["text_pair_column"], "--text_pair_column"),
        "label": _pick(first, readers.LABEL, options["label_column"], "--label_column"),
        "question": _pick(first, readers.QUESTION),
        "context": _pick(first, readers.CONTEXT),
        "options": _pick(first, readers.OPTIONS),
        "answer": _pick(first, readers.ANSWER),
        "instruction": _pick(first, ("instruction",)),
        "response": _pick(first, readers.RESPONSE),
        "group": _pick(first, readers.GROUP),
    }
    if kind == "auto":
        boolean = columns["answer"] and all(yes_no(row.get(columns["answer"])) in ("yes", "no", "") for row in rows)
        if columns["instruction"] and columns["response"]:
            kind = "instruction"
        elif columns["label"] and (columns["text"] or columns["question"]):
            kind = "classification"
        elif columns["question"] and columns["answer"]:
            kind = "classification" if boolean and columns["context"] else "qa"
            columns["boolean"] = columns["answer"] if kind == "classification" else None
    needed = {"instruction": ("instruction", "response"), "qa": ("question", "answer"), "classification": ()}.get(kind)
    if (
        kind == "classification" and not columns["text"] and columns["question"]
    ):  # BoolQ: passage, question -> yes or no
        pair = columns["context"] and columns["question"]
        columns.update(
            text=columns["context"] or columns["question"], text_pair=pair, label=columns["label"] or columns["answer"]
        )
    if (
        kind == "classification"
        and columns["question"]
        and columns["label"]
        and columns["text"]
        and not columns["text_pair"]
    ):
        columns.update(text=columns["question"], text_pair=columns["text"])  # QNLI: question, sentence
    if kind == "classification" and not (columns["text"] and columns["label"]):
        needed = ("text", "label")
    if needed is None or any(columns[role] is None for role in needed):
        raise utils.UserError(
            f"the columns {', '.join(first)} are not recognised as classification (text, label), qa (question, answer) "
            "or instruction (instruction, output); name them with --text_column, --label_column, or --columns"
        )
    return kind, columns


def yes_no(value):
    """BoolQ's answers, True, "false", ["yes"], as yes or no; anything else as it is, so that it is found not to be a label."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    return {"true": "yes", "false": "no"}.get(_text(value).strip().lower(), _text(value).strip().lower())


def _strings(value):
    """One answer, a list of answers, SQuAD's {'text': [...]}, or a list written as text -> a tuple of strings."""
    if isinstance(value, dict):
        value = value.get("text", [])
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
    values = [] if value is None else [value] if isinstance(value, (str, int, float, bool)) else list(value)
    return tuple(str(v).strip() for v in values if str(v).strip())


def _split_unifiedqa(text):
    """UnifiedQA's `question \\n (a) .. (b) .. \\n context`, with the two characters backslash and n, -> question, options, context."""
    question, *rest = [part.strip() for part in text.split("\\n")]
    options = ()
    if rest and rest[0].startswith("(a)"):
        listed = rest.pop(0)
        options = tuple(part.strip() for part in re.split(r"(?:^|\s)\([a-z]\)\s", listed)[1:])
    return question, options, " ".join(rest) or None


def no_label(rows, column, declared):
    """The label texts that mean unlabelled: an empty cell, -1 in the hub's splits and in one of nothing else, MNLI's - for a tie."""
    only_minus_one = {_label_name(row.get(column)) for row in rows} == {"-1"}
    return {""} | ({"-1"} if declared or only_minus_one else set()) | ({"-"} if column == "gold_label" else set())


def to_examples(rows, split, kind, columns, label_index, no_label):
    """Rows -> examples of one kind; rows without a label or an answer are left out."""
    examples = []
    for number, row in enumerate(rows):

        def cell(role, row=row, number=number):
            if not columns[role]:
                return None
            if columns[role] not in row:
                raise utils.UserError(f"{split} row {number} has no column {columns[role]}; it has {', '.join(row)}")
            return row[columns[role]]

        where, context = f"{split}-{number}", None
        if kind == "classification":
            label = _label_name(row.get(columns["label"]))
            if label in no_label:
                continue
            if label not in label_index:
                raise utils.UserError(
                    f"{split} row {number}: label {label!r} is not in the label set {list(label_index)}"
                )
            pair = _text(cell("text_pair")) if columns["text_pair"] else None
            example = Example(where, _text(cell("text")), pair, label=label_index[label])
        elif kind == "qa":
            question, options = _text(cell("question")), ()
            if "\\n" in question:
                question, options, context = _split_unifiedqa(question)
            if row.get(columns["options"]) is not None:
                listed = row[columns["options"]]
                options = tuple(listed.split("\n")) if isinstance(listed, str) else _strings(listed)
            if columns["context"]:
                context = _text(row.get(columns["context"])) or None
            example = Example(where, question, None, context, options, references=_strings(cell("answer")))
        else:
            context = _text(row.get(columns["context"])) or None
            response = _text(cell("response")).strip()
            example = Example(
                where, _text(cell("instruction")), None, context, references=(response,) if response else ()
            )
        if columns["group"] not in (None, columns["label"]) and _text(row.get(columns["group"])):
            example = replace(example, group=_text(row[columns["group"]]))
        if example.text.strip() and (kind == "classification" or example.references):
            examples.append(example)
    return examples


def _label_name(value):
    """A label as text: 1, 1.0 and '1' have one spelling; an unknown one is empty."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _text(value).strip()


def _text(value):
    """A cell as text; None and NaN are empty."""
    return "" if value is None or value != value else str(value)


def label_names(splits, column, declared):
    """The label set: what the hub declares, else what the training split holds (the others, where there is none)."""
    if declared:
        return declared, {str(i): i for i in range(len(declared))}
    source = "train" if splits.get("train") else next(iter(splits))
    names = {_label_name(row.get(column)) for row in splits[source]} - no_label(splits[source], column, None)
    if len(names) > 200 or any("." in name and name.replace(".", "").isdigit() for name in names):
        raise utils.UserError(
            f"--label_column {column} holds {len(names)} different values, numbers among them; a class label is wanted"
        )
    ordered = sorted(names, key=lambda name: (0, int(name), "") if name.lstrip("-").isdigit() else (1, 0, name))
    return ordered, {name: i for i, name in enumerate(ordered)}
