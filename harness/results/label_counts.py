"""labels_used of weights that an earlier run trained, and of rows from before the column."""

import json
import math
import re
from pathlib import Path

CHOSE = re.compile(r"(\d+) validation examples chose the checkpoint")
FILE = "labelled.json"  # of a run folder: the ids of the labelled examples, and how many the weights came with
SOURCE = ("dataset", "subset", "train_file")  # flags that say where the labelled examples come from
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
    """Labelled examples that models and adapters were trained with by runs of this project, each once, None where
    unknown.

    A model from elsewhere counts as untrained; what an adapter from elsewhere was trained with is unknown.
    """
    runs = []
    for path in [*model_paths, *adapter_paths]:
        found = run_of(path)
        if found:
            runs.append(found)
        elif path in adapter_paths:
            return None
    return of_runs(runs)[0] if runs else 0


def run_of(path):
    """(folder, row.json) of the run of this project in whose folder weights lie (RUN/model, RUN/probe/encoder), None
    for weights from elsewhere.
    """
    for folder in list(Path(path).parents)[:2]:
        try:
            row = json.loads((folder / "row.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(row, dict):
            return folder, row
    return None


def row_of(path):
    """The row.json of run_of, {} for weights from elsewhere."""
    return (run_of(path) or (None, {}))[1]


def of_runs(runs):
    """(labelled examples that influenced any of several runs, a note), each example once; None where one is unknown.

    runs: [(folder, its row of row.json)]. The ids are in the folder's FILE. Without it, or where the runs drew from
    other files, the numbers are added up, and the note says so; so are those that weights came with.
    """
    runs = list(runs)
    counts = [number_of(row) for _, row in runs]
    if None in counts:
        return None, None
    known = [_known(folder) if count else {"ids": [], "trained_with": 0} for (folder, _), count in zip(runs, counts)]
    sources = {json.dumps([flags_of(row).get(name) for name in SOURCE]) for _, row in runs}
    if None in known or (len(sources) > 1 and all(counts)):
        return sum(counts), "labels of both runs added up, though they may share some"
    return len({i for each in known for i in each["ids"]}) + sum(each["trained_with"] for each in known), None


def number_of(row):
    """labels_used of a row of row.json as a number, None where it is unknown."""
    used = row["labels_used"] if "labels_used" in row else derived(row)
    return None if used in (None, "") else int(used)


def _known(folder):
    """The contents of a run folder's FILE, None where it has none."""
    try:
        found = json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kinds = {"ids": list, "trained_with": int}
    return found if isinstance(found, dict) and all(isinstance(found.get(k), t) for k, t in kinds.items()) else None


def flags_of(row):
    """{flag: value} of a row's args; {} where they are missing or cannot be read."""
    try:
        flags = json.loads(row.get("args") or "{}")
    except ValueError:
        return {}
    return flags if isinstance(flags, dict) else {}
