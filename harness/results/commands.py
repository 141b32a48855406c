"""Flags <-> argv: the command that made a row, the argv of a suite's cell."""

import functools
import importlib
import shlex
from pathlib import Path

from harness import flags
from harness.results import configurations, provenance

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def defaults(script):
    if Path(script).name != script or not (ROOT / script).is_file():  # a row of another checkout's script
        return {}
    return vars(parse(script, []))


def parse(script, argv):
    """The arguments as the script itself reads them; SystemExit with its message on stderr where it refuses them."""
    return importlib.import_module(Path(script).stem).parse_args(argv)


def command(row, **changes):
    """The command that made a row: its script and the flags that are not the script's defaults. changes: flags to take instead."""
    words, usual = ["python", row["script"]], defaults(row["script"])
    for name, found in {**configurations.flags(row), **changes}.items():
        if name in configurations.NO_CONFIGURATION or found is None or found == usual.get(name, False):
            continue
        if isinstance(found, bool):
            words.append(f"--{name}" if found else f"--no-{name}")
        else:
            words += [f"--{name}", *(map(str, found) if isinstance(found, list) else [str(found)])]
    return shlex.join(words)


# what other suites of LoRA studies call our flags
OTHER_KEYS = {
    **{old[2:]: new[2:] for old, new in flags.ArgumentParser.OTHER_NAMES.items() if " " not in new},
    "base_model": "model",
    "model_name": "model",
    "dataset_path": "dataset",
    "r": "rank",
    "num_epochs": "epochs",
    "quantization": "quantize",
}


QUANTIZATIONS = {"4bit": "nf4", "8bit": "int8", "None": "none"}


def to_argv(settings):
    """{flag: value} -> argv: true is the flag alone, false its --no- form or nothing, null nothing, a list its values with commas."""
    argv = []
    for key, value in settings.items():
        key = OTHER_KEYS.get(str(key), str(key))
        if key == "quantize":
            value = QUANTIZATIONS.get(str(value), value)
        if value is True:
            argv.append(f"--{key}")
        elif isinstance(value, list):
            argv += [f"--{key}", ",".join(map(str, value))]
        elif value is not None and value is not False:
            argv += [f"--{key}", str(value)]
    return argv


def what_counts(settings):
    return {key: value for key, value in settings.items() if key not in provenance.OUTPUT_FLAGS}
