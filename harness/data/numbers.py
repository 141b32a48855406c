"""Numbers in texts, as answers that are numbers are compared."""

import re
from decimal import Decimal, InvalidOperation

import utils

NUMBER = re.compile(r"(?<![\w.])[-\u2212]?\$?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")


def last_number(text):
    """The last number of a text, in one form for equal numbers ("1,000.0" and "$1000." are "1000"); None without one.

    As GSM8K is scored (Cobbe et al. 2021).
    """
    found = NUMBER.findall(text)
    if not found:
        return None
    try:
        value = Decimal(found[-1].replace(",", "").replace("$", "").replace("\u2212", "-"))
    except InvalidOperation:
        return None
    return format(value.normalize() + 0, "f")  # + 0: minus zero is zero


def reference_numbers(task):
    """[N] tuples: the last number of each reference of the evaluation examples. UserError for one without any."""
    for ex in task.evaluation:
        odd = next((text for text in ex.references if last_number(text) is None), None)
        if odd is not None:
            raise utils.UserError(f"--answer_format number: the reference {odd[:60]!r} of {ex.id} has no number")
    return [tuple(map(last_number, ex.references)) for ex in task.evaluation]
