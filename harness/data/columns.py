"""Rows -> examples: which column plays which role, and what a cell means."""

import ast
import contextlib
import re
from dataclasses import replace

import utils
from harness.data.examples import Example

# column names in the wild, the first match wins
TEXT = ("sentence", "text", "premise", "sentence1", "question1", "review", "snippet", "content")
PAIR = ("hypothesis", "sentence2", "question2")
LABEL = ("label", "labels", "gold_label", "sentiment", "class")
QUESTION, CONTEXT = ("question", "query"), ("context", "passage", "support", "input")
ANSWER, OPTIONS = ("answers", "answer"), ("options", "choices")
INSTRUCTION, RESPONSE = ("instruction",), ("output", "response", "completion")
GROUP = ("heuristic", "source", "category")  # groups that are also scored one by one

# kind -> the roles that must have a column
NEEDED = {"classification": ("text", "label"), "qa": ("question", "answer"), "instruction": ("instruction", "response")}
MAX_LABELS = 200  # a column with more different values is not a class label


def recognise(rows, options):
    """(kind, {role: column name or None}) from the column names of the first row and the flags.

    options: {kind, text_column, text_pair_column, label_column}, as the flags have them. The role "boolean" is there
    where the labels are yes and no in the words of BoolQ. UserError for columns that fit no kind.
    """
    first, kind = rows[0], options["kind"]
    columns = {
        "text": _pick(first, TEXT, options["text_column"], "--text_column"),
        "text_pair": _pick(first, PAIR, options["text_pair_column"], "--text_pair_column"),
        "label": _pick(first, LABEL, options["label_column"], "--label_column"),
        "question": _pick(first, QUESTION),
        "context": _pick(first, CONTEXT),
        "options": _pick(first, OPTIONS),
        "answer": _pick(first, ANSWER),
        "instruction": _pick(first, INSTRUCTION),
        "response": _pick(first, RESPONSE),
        "group": _pick(first, GROUP),
    }
    if kind == "auto":
        kind = _guess_kind(rows, columns)
    if kind == "classification":
        _place_question(columns)
    needed = NEEDED.get(kind)
    if needed is None or any(columns[role] is None for role in needed):
        raise utils.UserError(
            f"the columns {', '.join(first)} are not recognised as classification (text, label), qa (question, answer) "
            "or instruction (instruction, output); name them with --text_column, --label_column, or --columns"
        )
    return kind, columns


def _pick(row, names, forced=None, flag=None):
    """The first of `names` that is a column of `row`, in any case; a name forced by a flag must be there."""
    if forced:
        if forced not in row:
            raise utils.UserError(f"{flag} {forced}: no such column; there are {', '.join(row)}")
        return forced
    lower = {name.lower(): name for name in row}
    return next((lower[name] for name in names if name in lower), None)


def _guess_kind(rows, columns):
    """The kind that the columns fit, "auto" if they fit none. Sets columns["boolean"] for questions of yes and no."""
    if columns["instruction"] and columns["response"]:
        return "instruction"
    if columns["label"] and (columns["text"] or columns["question"]):
        return "classification"
    if columns["question"] and columns["answer"]:
        yes_or_no = all(yes_no(row.get(columns["answer"])) in ("yes", "no", "") for row in rows)
        columns["boolean"] = columns["answer"] if yes_or_no and columns["context"] else None
        return "classification" if columns["boolean"] else "qa"
    return "auto"


def _place_question(columns):
    """Give a question of a classification task its place among the two texts."""
    question, context = columns["question"], columns["context"]
    if question and not columns["text"]:  # BoolQ: passage, question -> yes or no
        label = columns["label"] or columns["answer"]
        columns.update(text=context or question, text_pair=context and question, label=label)
    if question and columns["label"] and columns["text"] and not columns["text_pair"]:  # QNLI: question, sentence
        columns.update(text=question, text_pair=columns["text"])


def label_names(splits, column, declared):
    """(label names [L], {label as text: index}): what the hub declares, else what the training split holds.

    splits: {split: rows}; without a training split the first one counts. UserError where the column holds numbers or
    more values than a class label has.
    """
    if declared:
        return declared, {str(i): i for i in range(len(declared))}
    source = splits["train"] if splits.get("train") else next(iter(splits.values()))
    names = {_label_text(row.get(column)) for row in source} - no_label(source, column, None)
    if len(names) > MAX_LABELS or any("." in name and name.replace(".", "").isdigit() for name in names):
        raise utils.UserError(
            f"--label_column {column} holds {len(names)} different values, numbers among them; a class label is wanted"
        )
    ordered = sorted(names, key=lambda name: (0, int(name), "") if name.lstrip("-").isdigit() else (1, 0, name))
    return ordered, {name: i for i, name in enumerate(ordered)}


def no_label(rows, column, declared):
    """The label texts that mean unlabelled.

    An empty cell; -1 where the hub declares the names or where no row has another label; MNLI's - for a tie.
    """
    only_minus_one = {_label_text(row.get(column)) for row in rows} == {"-1"}
    return {""} | ({"-1"} if declared or only_minus_one else set()) | ({"-"} if column == "gold_label" else set())


def to_examples(rows, split, kind, columns, label_index, no_label):
    """Examples of one kind; rows without a text, a label or an answer are left out.

    columns: {role: column} of `recognise`; label_index: {label as text: index}; no_label: texts that mean unlabelled.
    """
    examples = []
    for number, row in enumerate(rows):
        cells = _Cells(row, columns, f"{split} row {number}")
        if kind == "classification":
            example = _classification(cells, label_index, no_label)
        else:
            example = _question(cells) if kind == "qa" else _instruction(cells)
        if example is None or not example.text.strip() or not (kind == "classification" or example.references):
            continue
        group = _text(cells.get("group")) if columns["group"] != columns["label"] else ""
        examples.append(replace(example, id=f"{split}-{number}", group=group or None))
    return examples


class _Cells:
    """The cells of one row by their role."""

    def __init__(self, row, columns, where):
        self.row, self.columns, self.where = row, columns, where

    def get(self, role):
        """The cell, None where the row has none for this role."""
        return self.row.get(self.columns[role])

    def need(self, role):
        """The cell; UserError where the row lacks the column that other rows have."""
        if self.columns[role] not in self.row:
            names = ", ".join(self.row)
            raise utils.UserError(f"{self.where} has no column {self.columns[role]}; it has {names}")
        return self.row[self.columns[role]]


def _classification(cells, label_index, no_label):
    """An Example with a label, None for a row without one."""
    label = _label_text(cells.get("label"))
    if label in no_label:
        return None
    if label not in label_index:
        raise utils.UserError(f"{cells.where}: label {label!r} is not in the label set {list(label_index)}")
    pair = _text(cells.need("text_pair")) if cells.columns["text_pair"] else None
    return Example("", _text(cells.need("text")), pair, label=label_index[label])


def _question(cells):
    """An Example of question answering, its options and context split off a UnifiedQA question where they are in it."""
    question, options, context = _text(cells.need("question")), (), None
    if "\\n" in question:
        question, options, context = split_unifiedqa(question)
    listed = cells.get("options")
    if listed is not None:
        options = tuple(listed.split("\n")) if isinstance(listed, str) else _strings(listed)
    if cells.columns["context"]:
        context = _text(cells.get("context")) or None
    return Example("", question, None, context, options, references=_strings(cells.need("answer")))


def _instruction(cells):
    """An Example of an instruction with its one response."""
    response = _text(cells.need("response")).strip()
    context = _text(cells.get("context")) or None
    return Example("", _text(cells.need("instruction")), None, context, references=(response,) if response else ())


def split_unifiedqa(text):
    """(question, options, context or None) of UnifiedQA's `question \\n (a) .. (b) .. \\n context`.

    The separator is the two characters backslash and n (Khashabi et al. 2020).
    """
    question, *rest = [part.strip() for part in text.split("\\n")]
    options = ()
    if rest and rest[0].startswith("(a)"):
        listed = rest.pop(0)
        options = tuple(part.strip() for part in re.split(r"(?:^|\s)\([a-z]\)\s", listed)[1:])
    return question, options, " ".join(rest) or None


def yes_no(value):
    """BoolQ's answers (True, "false", ["yes"]) as yes or no; any other value as its text in lower case."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    text = _text(value).strip().lower()
    return {"true": "yes", "false": "no"}.get(text, text)


def _strings(value):
    """One answer, a list of answers, SQuAD's {'text': [...]}, or a list written as text -> a tuple of strings."""
    if isinstance(value, dict):
        value = value.get("text", [])
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
    values = [] if value is None else [value] if isinstance(value, (str, int, float, bool)) else list(value)
    return tuple(str(v).strip() for v in values if str(v).strip())


def _label_text(value):
    """A label as text: 1, 1.0 and '1' have one spelling; an unknown one is empty."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _text(value).strip()


def _text(value):
    """A cell as text; None and NaN are empty."""
    return "" if value is None or value != value else str(value)
