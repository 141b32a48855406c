"""labels_used of weights that an earlier run trained, and of rows from before the column."""

import json
import math
import re
from pathlib import Path

import utils

CHOSE = re.compile(r"(\d+) validation examples chose the checkpoint")
FILE = "labelled.json"  # of a run folder: the ids of the labelled examples, and how many the weights came with
TRAINS = ("finetune.py", "peft_finetune.py")  # context_distill.py chooses by unlabelled inputs


def derived(row):
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


def of_weights(model_paths, adapter_paths=()):
    """Labelled examples that models and adapters were trained with by runs of this project, None where unknown.

    Weights lie in the folder of their run, beside its row.json. A model from elsewhere counts as untrained; what an
    adapter from elsewhere was trained with is unknown.
    """
    total = 0
    for path in [*model_paths, *adapter_paths]:
        record = Path(path).parent / "row.json"
        try:
            row = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None
        except (OSError, ValueError):
            row = None
        if isinstance(row, dict):
            used = row["labels_used"] if "labels_used" in row else derived(row)
            if used in (None, ""):
                return None
            total += int(used)
        elif path in adapter_paths:
            return None
    return total


def of_runs(runs):
    """(labelled examples that influenced any of several runs, a note), each example once; None where one is unknown.

    runs: [(folder, its row of row.json)] on one data set. The ids are in the folder's FILE; without it the numbers are
    added up, and the note says so.
    """
    runs = list(runs)
    counts = [row.get("labels_used") for _, row in runs]
    if any(count is None for count in counts):
        return None, None
    ids, trained_with = set(), 0
    for (folder, _), count in zip(runs, counts):
        try:
            known = json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
            ids.update(known["ids"])
            trained_with += known["trained_with"]
        except FileNotFoundError:
            if count:
                return sum(counts), "labels of both runs added up, since they do not say which labels they used"
        except (OSError, ValueError, TypeError, KeyError):
            raise utils.UserError(f"{folder}/{FILE} cannot be read") from None
    return len(ids) + trained_with, None
