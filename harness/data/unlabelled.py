"""Inputs without labels: a file of texts or pairs of texts."""

import os
from pathlib import Path

import utils
from harness.data import readers
from harness.data.columns import input_columns
from harness.data.examples import Example


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
    found = [
        Example(f"unlabelled-{i}", str(row[text]), str(row[pair]) if pair else None)
        for i, row in enumerate(rows)
        if str(row.get(text) or "").strip() and (not pair or row.get(pair) is not None)
    ]
    if not found:
        raise utils.UserError(f"{path}: no row has a text")
    return found
