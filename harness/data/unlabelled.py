"""Inputs without labels: a file of texts or pairs of texts."""

import os
from pathlib import Path

import utils
from harness.data import cells, readers
from harness.data.columns import input_columns
from harness.data.examples import Example


def inputs_of(task, label_budget):
    """The training Examples of a Task as inputs, without those whose labels a budget pays for. Others were drawn by
    their classes (--max_train_samples), so they are not taken alone.
    """
    return task.unlabelled if label_budget else [*task.train, *task.unlabelled]


def read_inputs(path, task, text_column=None, text_pair_column=None, encoding=None):
    """Examples without labels for a classification task: the lines of a .txt, else the rows of a data file.

    A column of labels is not read. UserError where there are no texts, or two where the task has one.
    """
    paired = task.evaluation[0].text_pair is not None
    if Path(path).suffix.lower() == ".txt":
        rows = [{"text": line} for line in readers.read_text(os.path.expanduser(path), encoding).splitlines()]
    else:
        rows = readers.read_table(path, named=[n for n in (text_column, text_pair_column) if n], encoding=encoding)
    text, pair = input_columns(rows, text_column, text_pair_column)
    if text is None or paired != bool(pair):
        raise utils.UserError(
            f"{path}: {'two columns of texts are' if paired else 'one column of texts is'} wanted, as {task.name} has; "
            "name them with --text_column and --text_pair_column"
        )
    found = []
    for i, row in enumerate(rows):
        texts = [
            None if name is None else cells.text(row.get(name), f"{path} row {i}: {name}") for name in (text, pair)
        ]
        if texts[0].strip() and not (pair and cells.is_empty(row.get(pair))):
            found.append(Example(f"unlabelled-{i}", *texts))
    if not found:
        raise utils.UserError(f"{path}: no row has a text")
    return found
