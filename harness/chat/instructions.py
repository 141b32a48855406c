"""IFEval's columns of a file of prompts: which instructions a prompt has, and whether they can be checked."""

import json

import utils
from harness.chat import ifeval

UNREADABLE = "unreadable"  # the name of a check whose row has no lists of names and arguments


def of_row(row):
    """((instruction id, arguments), ..) of IFEval's two columns; one check named UNREADABLE where they are not so."""
    names, arguments = _list_cell(row.get("instruction_id_list")), _list_cell(row.get("kwargs"))
    usable = None not in (names, arguments) and len(names) == len(arguments)
    if not usable or not all(isinstance(name, str) for name in names):
        return ((UNREADABLE, {}),)
    if not all(isinstance(each, dict | None) for each in arguments):
        return ((UNREADABLE, {}),)
    return tuple(
        (name, {key: ifeval.whole(value) for key, value in (given or {}).items() if value is not None})
        for name, given in zip(names, arguments)
    )


def check_questions(questions, file):
    """UserError where no prompt's instructions can be checked and one is at fault; a few rows are just not counted."""
    asked = [question for question in questions if question.checks]
    if any(all(ifeval.can(*check) for check in question.checks) for question in asked):
        return
    for question in asked:
        for check in question.checks:
            wrong = ifeval.unusable(*check)
            if check[0] == UNREADABLE:
                wrong = "instruction_id_list and kwargs must be lists of the same length, of names and of objects"
            if wrong:
                raise utils.UserError(f"{file}, row {question.index + 1}: {wrong}")


def _list_cell(cell):
    """A list, or the JSON text of one (in a table); [] for an empty cell, None for anything else."""
    if isinstance(cell, str) and cell.strip():
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return None
    return cell if isinstance(cell, list) else None if cell else []
