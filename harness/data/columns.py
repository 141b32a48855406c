"""Rows -> examples: which column plays which role, and what a cell means."""

import re
from dataclasses import replace

import utils
from harness.data import cells, choices
from harness.data.examples import Example

# column names in the wild, the first match wins
TEXT = ("sentence", "text", "premise", "sentence1", "question1", "review", "snippet", "content")
PAIR = ("hypothesis", "sentence2", "question2")
LABEL = ("label", "labels", "gold_label", "sentiment", "class")
QUESTION = ("question", "query", "question_stem")
CONTEXT = ("context", "passage", "support", "input")
ANSWER, OPTIONS = ("answers", "answer", "answerkey", "answer_key"), ("options", "choices")
INSTRUCTION, RESPONSE = ("instruction", "prompt"), ("output", "response", "completion")
GROUP = ("heuristic", "source", "category")  # groups that are also scored one by one
CLUSTER = ("cluster",)  # examples that share it vary together, see Example.cluster
CATEGORY = ("category",)  # the label of a text that has no other
# a first line with one of these is a header, a JSON object with one a row
KNOWN = frozenset((*TEXT, *LABEL, *QUESTION, *ANSWER, *INSTRUCTION))

# kind -> the roles that must have a column
NEEDED = {"classification": ("text", "label"), "qa": ("question", "answer"), "instruction": ("instruction", "response")}
# roles whose column a flag names
FORCED = ("text", "text_pair", "label", "question", "context", "options", "answer", "cluster")


def column_names(rows):
    """{name of a column: True if it has a filled cell} of all the rows."""
    names = {}
    for row in rows:
        for name, cell in row.items():
            if not names.get(name):
                names[name] = not cells.is_empty(cell)
    return names


def recognise(splits, options):
    """(kind, {role: column name or None}) from the columns of all rows of {split: rows}, and from the flags.

    options: {kind, text_column, text_pair_column, label_column, question_column, context_column, options_column,
    answer_column, cluster_column}, as the flags have them; what is missing counts as None. The role "boolean" is there
    where the labels are yes and no in the words of BoolQ; the role "options" may be several columns. UserError for
    columns that fit no kind.
    """
    names, kind = column_names(row for rows in splits.values() for row in rows), options["kind"]
    forced = {role: options.get(f"{role}_column") for role in FORCED}
    usual = {"text": TEXT, "text_pair": PAIR, "label": LABEL, "question": QUESTION, "context": CONTEXT}
    usual |= {"options": OPTIONS, "answer": ANSWER, "instruction": INSTRUCTION, "response": RESPONSE, "group": GROUP}
    usual["cluster"] = CLUSTER
    columns = {role: _pick(names, some, forced.get(role), f"--{role}_column") for role, some in usual.items()}
    _place_instruction(names, columns, kind, forced)
    if columns["text"] and not columns["label"]:
        columns["label"] = _pick(names, CATEGORY)
    if columns["question"] and not columns["options"]:
        columns["options"] = choices.option_columns(names) or None
    if columns["question"] and columns["options"] and not columns["text"] and not columns["answer"]:
        columns["answer"], columns["label"] = columns["label"], None  # multiple choice whose label is the right option
    if kind == "auto":
        kind = _guess_kind(splits.get("train") or next(iter(splits.values())), columns, forced)
    if kind == "classification":
        _place_question(columns)
    if columns["cluster"] == columns["label"] and not forced["cluster"]:
        columns["cluster"] = None  # the label of clustered texts
    needed = NEEDED.get(kind)
    if needed is None or any(columns[role] is None for role in needed):
        raise utils.UserError(
            f"the columns {', '.join(names)[:300]} are not recognised as classification (text, label), qa (question, "
            "answer) or instruction (instruction, output); name them: --text_column and --label_column, or "
            "--question_column and --answer_column, these with --kind instruction for instructions and responses"
        )
    return kind, columns


def input_columns(rows, text=None, text_pair=None):
    """(column of the text, column of the second text) of rows whose labels are not wanted, None for what is not there.

    text, text_pair: the names that flags give.
    """
    names = column_names(rows)
    columns = {
        "text": _pick(names, TEXT, text, "--text_column"),
        "text_pair": _pick(names, PAIR, text_pair, "--text_pair_column"),
        "question": None if text else _pick(names, QUESTION),
        "context": _pick(names, CONTEXT),
        "label": LABEL[0],  # there or not, a question stands where it would with labels
        "answer": None,
    }
    _place_question(columns)
    return columns["text"], columns["text_pair"]


def _pick(names, known, forced=None, flag=None):
    """The first of `known` that is a column, in any case; a name forced by a flag must be there.

    names: of `column_names`. A column with no filled cell counts only where no other one is known.
    """
    if forced:
        if forced not in names:
            raise utils.UserError(f"{flag} {forced}: no such column; there are {', '.join(names)[:300]}")
        return forced
    lower = {name.lower(): name for name in names}
    there = [lower[name] for name in known if name in lower]
    return next((name for name in there if names[name]), there[0] if there else None)


def _place_instruction(names, columns, kind, forced):
    """Set the roles of instruction data from what also holds an instruction and its response."""
    if kind == "instruction":  # the flags of questions name these roles as well
        columns["instruction"] = forced["question"] or columns["instruction"]
        columns["response"] = forced["answer"] or columns["response"]
    if columns["response"] and not columns["instruction"]:
        if columns["question"] and not columns["answer"]:  # OpenOrca: question, response
            columns["instruction"] = columns["question"]
        else:  # input, output
            columns["instruction"] = _pick(names, ("input",))
    if columns["context"] and columns["context"] in (columns["instruction"], columns["question"]):
        columns["context"] = None


def _guess_kind(rows, columns, forced):
    """The kind that flags and columns fit, "auto" if none. Sets columns["boolean"] for questions of yes and no."""
    if forced["label"] and (columns["text"] or columns["question"]):
        return "classification"
    asked = forced["question"] or forced["answer"]
    if columns["instruction"] and columns["response"] and not asked and not (forced["text"] and columns["label"]):
        return "instruction"
    if columns["label"] and (columns["text"] or columns["question"]) and not asked:
        return "classification"
    if columns["question"] and columns["answer"]:
        yes_or_no = all(yes_no(row.get(columns["answer"])) in ("yes", "no", "") for row in rows)
        columns["boolean"] = columns["answer"] if yes_or_no and columns["context"] else None
        return "classification" if columns["boolean"] else "qa"
    return "auto"


def _place_question(columns):
    """Give a question of a classification task its place among the two texts."""
    question, context, had_text = columns["question"], columns["context"], columns["text"]
    if question and not had_text:  # BoolQ: passage, question -> yes or no
        label = columns["label"] or columns["answer"]
        columns.update(text=context or question, text_pair=question if context else None, label=label)
    if question and columns["label"] and had_text and had_text != question and not columns["text_pair"]:
        columns.update(text=question, text_pair=had_text)  # QNLI: question, sentence


def to_examples(rows, split, kind, columns, label_index, no_label, chosen=None):
    """Examples of one kind; rows without a text, a label or an answer are left out.

    columns: {role: column} of `recognise`; label_index: {label as text: index}; no_label: texts that mean unlabelled;
    chosen: how answers name options, as `choices.rule` found.
    """
    examples = []
    for number, row in enumerate(rows):
        row_cells = _Cells(row, columns, f"{split} row {number}")
        if kind == "classification":
            example = _classification(row_cells, label_index, no_label)
        else:
            example = _question(row_cells, chosen) if kind == "qa" else _instruction(row_cells)
        if example is None or not example.text.strip() or not (kind == "classification" or example.references):
            continue
        group = _group(row_cells) if columns["group"] != columns["label"] else ""
        about = row_cells.get("cluster") if columns["cluster"] else None
        about = None if cells.is_empty(about) else str(about).strip()
        examples.append(replace(example, id=f"{split}-{number}", group=group or None, about=about or None))
    return examples


def _group(row_cells):
    """The text of a cell whose column nobody named; "" for what is no text."""
    try:
        return row_cells.text("group", join=", ")
    except utils.UserError:
        return ""


class _Cells:
    """The cells of one row by their role."""

    def __init__(self, row, columns, where):
        self.row, self.columns, self.where = row, columns, where

    def get(self, role):
        """The cell, None where the row has none for this role."""
        return self.row.get(self.columns[role])

    def text(self, role, join=None):
        """The cell as text, empty where the row has none; UserError where it holds no text. join: as in cells.text."""
        return cells.text(self.get(role), self.name(role), join)

    def need(self, role):
        """The cell; UserError where the row lacks the column that other rows have."""
        if self.columns[role] not in self.row:
            names = ", ".join(self.row)
            raise utils.UserError(f"{self.where} has no column {self.columns[role]}; it has {names}")
        return self.row[self.columns[role]]

    def need_text(self, role):
        return cells.text(self.need(role), self.name(role))

    def name(self, role):
        return f"{self.where}: {self.columns[role]}"


def _classification(row, label_index, no_label):
    """An Example with a label, None for a row without one."""
    label = row.get("label") or ""
    if label in no_label:
        return None
    if label not in label_index:
        names = list(label_index)
        shown = names if len(names) <= 20 else [*names[:20], "..."]
        raise utils.UserError(f"{row.where}: label {label!r} is not in the label set {shown}")
    pair = row.need_text("text_pair") if row.columns["text_pair"] else None
    return Example("", row.need_text("text"), pair, label=label_index[label])


def _question(row, chosen):
    """An Example of question answering, its options and context split off a UnifiedQA question where they are in it."""
    question, options, context, names = row.need_text("question"), (), None, None
    if "\\n" in question:
        question, options, context = split_unifiedqa(question)
    listed, names = choices.options_of(row.row, row.columns["options"]) if row.columns["options"] else ((), None)
    listed = listed or options
    options = tuple(filter(None, listed))
    if row.columns["context"]:
        context = row.text("context", join="\n") or None
    references = choices.resolve(row.need("answer"), listed, names, chosen, row.name("answer"))
    if references is None:
        shown = f"{row.get('answer')!r}"[:60]
        raise utils.UserError(f"{row.name('answer')} {shown} names none of the {len(options)} options of the row")
    return Example("", question, None, context, options, references=references)


def _instruction(row):
    """An Example of an instruction with its responses, of which the first is learned."""
    response, context = row.need("response"), row.text("context", join="\n") or None
    several = (
        [cells.text(item, row.name("response")) for item in response] if isinstance(response, list) else [response]
    )
    responses = tuple(filter(None, (cells.text(item, row.name("response")).strip() for item in several)))
    return Example("", row.need_text("instruction"), None, context, references=responses)


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
    text = "" if cells.is_empty(value) else str(value).strip().lower()
    return {"true": "yes", "false": "no"}.get(text, text)
