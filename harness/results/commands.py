"""Flags <-> argv: the command that made a row, the argv of a suite's cell. The only module that imports scripts."""

import argparse
import functools
import importlib
import shlex
from pathlib import Path

import utils
from harness import flags, suites
from harness.results import configurations, provenance

ROOT = Path(__file__).resolve().parents[2]
NAMED = ("model", "gen_model", "embed_model", "dataset")  # flags that a command names although they are the defaults

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


def parse(script, argv):
    """The arguments as the script itself reads them; SystemExit with its message on stderr where it refuses them."""
    return importlib.import_module(Path(script).stem).parse_args(argv)


@functools.cache
def defaults(script):
    """{flag: value} of the script without any flag; {} for a script that this checkout does not have."""
    return vars(parse(script, [])) if is_here(script) else {}


def is_here(script):
    return Path(script).name == script and (ROOT / script).is_file()


class _Parsing(Exception):
    """Raised with a script's parser at the moment it begins to parse."""


@functools.cache
def actions(script):
    """{flag, or name of what needs none: argparse.Action} of the script's own parser; {} for a script that this
    checkout does not have.
    """

    def stop(parser, *_):
        raise _Parsing(parser)

    if not is_here(script):
        return {}
    flags.ArgumentParser.parse_args = stop  # the parser is local to the script's parse_args, so it is caught at work
    try:
        parse(script, [])
    except _Parsing as caught:
        (parser,) = caught.args
    finally:
        del flags.ArgumentParser.parse_args  # argparse's own is found again
    names = {action: [n[2:] for n in action.option_strings if n.startswith("--")] for action in parser._actions}
    return {name: action for action, some in names.items() for name in some or [action.dest]}


def words(name, value, action=None):
    """A flag with its value as argv; [] for None, and for False where the flag has no --no- form.

    action: the flag's argparse.Action, None if it is not known. A list becomes several words where the action takes
    several (nargs), else one word with commas. A whole float is written as an int, as a person would type it.
    """
    if value is None or value == []:
        return []
    if action is not None and not action.option_strings:
        return list(map(_text, value))
    if isinstance(value, bool):
        negated = [f"--no-{name}"] if isinstance(action, argparse.BooleanOptionalAction) else []
        return [f"--{name}"] if value else negated
    if isinstance(value, list) and action is not None and action.nargs is not None:
        return [f"--{name}", *map(_text, value)]
    text = ",".join(map(_text, value)) if isinstance(value, list) else _text(value)
    # after a blank, argparse takes a word that begins with a dash for another flag
    return [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]


def _text(value):
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def command(row, always=(), **changes):
    """The command that makes a row again: its script and the flags that are not the script's defaults.

    always: flags that are written even if they are the defaults, for instance NAMED. changes: {flag: value} to take
    instead of the row's; None leaves a flag out. Flags that only say where a run writes are left out, and so are flags
    that the script does not have any more.
    """
    script = row["script"]
    usual, known = defaults(script), actions(script)
    settings = {**configurations.flags(row), **changes}
    left_out = set(configurations.NO_CONFIGURATION)
    if settings.get("mmap") or settings.get("prune"):
        left_out.remove("index_dir")  # these two flags are refused without it
    if any(settings.get(f"{split}_file") for split in ("train", "validation", "test")):
        left_out.add("dataset")  # the files are given instead
    if settings.get("max_steps"):
        left_out.add("epochs")  # the steps replace them
    if settings.get("label_budget"):  # without these flags a budget chooses them
        always = (*always, "k_shots", *(["calibrate"] if settings.get("k_shots") is None else []))
    argv = []
    for name, value in settings.items():
        if name in left_out or (known and name not in known):
            continue
        if name in always or value != usual.get(name):
            argv += words(name, value, known.get(name))
    return shlex.join(["python", script, *utils.without_credentials(argv, within=False)])  # an older row may hold some


def to_argv(settings, script=""):
    """{flag: value} of a suite -> argv, see `words`. script: whose flags they are; without it lists get commas.

    UserError for a comma within an item of a list that is joined with commas.
    """
    argv = []
    for key, value in settings.items():
        name = OTHER_KEYS.get(str(key), str(key))
        action = actions(script).get(name)
        value = suites.as_typed(value, action)
        if name == "quantize":
            value = QUANTIZATIONS.get(str(value), value)
        if isinstance(value, list) and not (action and action.nargs) and any("," in str(item) for item in value):
            raise utils.UserError(f"{name}: an item holds a comma, which would divide it: {', '.join(map(str, value))}")
        argv += words(name, value, action)
    return argv


def what_counts(settings):
    """The flags that make a run what it is: all but those that only say where it writes."""
    return {key: value for key, value in settings.items() if key not in provenance.OUTPUT_FLAGS}
