"""Which runs does a results CSV have? By the script, all flags, the code and the contents of the input files."""

import collections
import functools
import json
from pathlib import Path

import utils
from harness import hub
from harness.results import commands, configurations, provenance

# flags that name files and folders of this machine, models and data aside
FILES = (
    "adapter",
    "runs",
    "docs",
    "train_file",
    "validation_file",
    "test_file",
    "unlabelled_file",
    "label_descriptions",
)


@functools.cache
def code_id(script):
    return provenance.code_id(commands.ROOT / script)


def whole(value):
    """A value with its whole floats as ints: 3.0 and 3 are one setting, but two JSON texts."""
    if isinstance(value, list):
        return [whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def identity(script, settings):
    """A text that is equal for two runs of one script with the same flags, wherever they write.

    A flag that settings lack, since the script did not have it when they were written, has its default.
    """
    defaults = {name: action.default for name, action in commands.actions(script).items()}
    counts = {key: whole(value) for key, value in commands.what_counts({**defaults, **settings}).items()}
    return f"{script} {json.dumps(counts, sort_keys=True)}"


class DoneRuns:
    """The rows of a results CSV by their identity, so that many cells are found in many rows in linear time."""

    def __init__(self, rows):
        self.rows = collections.defaultdict(list)  # {identity: [row], the newest last}
        self.input_ids = {}  # {texts among a cell's flags: its input_id}, for as long as this object lives
        for row in rows:
            if row["status"] == "dropped":
                continue  # a copy of a row of a race's rung
            try:
                settings = json.loads(row["args"])
            except (ValueError, RecursionError):
                continue
            if isinstance(settings, dict):
                self.rows[identity(row["script"], settings)].append(row)

    def status(self, script, settings, ignore_code=False):
        """The status of that row; None without one."""
        row = self.row(script, settings, ignore_code)
        return row and row["status"]

    def row(self, script, settings, ignore_code=False):
        """The newest row with these flags, input files and this code; None without one."""
        for row in reversed(self.rows.get(identity(script, settings), [])):
            if (ignore_code or row["code_id"] == code_id(script)) and row["input_id"] == self.input_id(settings):
                return row
        return None

    def is_stale(self, row, dataset):
        """Whether a row is of other contents than its models and a local data set of the same name have now. None
        where that cannot be told: some of the files that its flags name are not here.
        """
        settings = configurations.flags(row)
        if Path(str(settings.get("dataset"))).name == Path(dataset).name:
            settings = {**settings, "dataset": str(dataset)}  # which may lie elsewhere now
        gone = not row["input_id"] or not utils.exists(dataset)
        for flag, value in settings.items():
            for name in value if isinstance(value, list) else [value]:
                local = flag in FILES or (flag in hub.MODELS and isinstance(name, str) and hub.is_path(name))
                gone |= bool(local and isinstance(name, str) and not utils.exists(name))
        return None if gone else self.input_id(settings) != row["input_id"]

    def input_id(self, settings):
        """provenance.input_id, "" for None; cells of the same files hash them once."""
        texts = {name: value for name, value in settings.items() if isinstance(value, str | list)}
        key = json.dumps(texts, sort_keys=True)
        if key not in self.input_ids:
            self.input_ids[key] = provenance.input_id(texts) or ""
        return self.input_ids[key]
