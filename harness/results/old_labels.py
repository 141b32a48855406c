"""labels_used of rows that were measured before the column was there."""

import json
import math
import re

CHOSE = re.compile(r"(\d+) validation examples chose the checkpoint")
TRAINS = ("finetune.py", "peft_finetune.py")  # context_distill.py chooses by unlabelled inputs


def labels_used(row):
    """A row of strings (n_train, k_shots, note, ..) -> the cell, "" where it cannot be known.

    n_train and k_shots counted the same examples; the validation examples stand in the note alone.
    """
    try:
        counts = [float(row.get(column) or 0) for column in ("n_train", "k_shots")]
        args = json.loads(row.get("args") or "{}")
    except ValueError:
        return ""  # a cell that cannot be read is refused by whoever asks for it
    others = row.get("variant") == "checkpoint" or (isinstance(args, dict) and args.get("adapter"))
    if others or not all(map(math.isfinite, counts)):  # another run's labels are in the weights
        return ""
    chose = CHOSE.search(row.get("note") or "") if row.get("script") in TRAINS else None
    return str(int(max(counts)) + int(chose[1] if chose else 0))
