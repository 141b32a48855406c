"""The cells of a suite: commands, each parsed by its script, with what --set changes."""

import contextlib
import difflib
import functools
import io
import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import utils
from harness import data_flags, flags, hub, suites
from harness.errors import short
from harness.results import commands
from harness.results.done_runs import identity

ROOT = Path(__file__).resolve().parents[2]
TOLD = set()  # data sets whose summary was printed
WORDING = ("label_words", "label_descriptions", "instruction", "template")  # of prompts about the same data
DRAWS = ("max_train_samples", "max_validation_samples", "max_eval_samples", "label_budget")  # of the same data


class Size(NamedTuple):
    """Of a data set."""

    train: int
    evaluation: int
    classes: int
    kind: str


@dataclass(frozen=True)
class Cell:
    """One command of a suite."""

    name: str
    script: str
    argv: tuple
    args: dict  # {flag: value}, every flag, as the script itself reads argv
    settings: dict = field(default_factory=dict, compare=False)  # {flag: value} as the suite has them

    @property
    def command(self):
        return shlex.join(["python", self.script, *utils.without_credentials(self.argv, within=False)])


def available():
    """The suites that are shipped, for a message."""
    return ", ".join(sorted(str(file.relative_to(ROOT)) for file in (ROOT / "suites").glob("*.yaml")))


def is_script(script):
    return script != "utils.py" and commands.is_here(script)


def parsed(script, settings, args):
    """(argv, {flag: value}) of one cell, as its script reads them. UserError where the script refuses them."""
    if not is_script(script):
        raise utils.UserError(f"there is no script {short(script)} here")
    argv = [*commands.to_argv(settings, script), "--results", args.results, "--runs_dir", args.runs_dir]
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message), contextlib.redirect_stdout(io.StringIO()):
            values = vars(commands.parse(script, argv))
    except SystemExit:
        said = message.getvalue().strip()
        said = said.partition(": error: ")[2] or said  # without the name of this script, sweep.py
        raise utils.UserError(said or "it prints the help and runs nothing") from None
    if values.get("trust_remote_code"):
        raise utils.UserError("a suite may not set trust_remote_code; run such a command by hand")
    if values.get("repeats", 1) > 1:
        raise utils.UserError("instead of repeats give data_seed a list in the grid, so that each run can be resumed")
    return argv, values


def changed(used, changes, script, settings):
    """A cell's flags, with those of `changes` that its script has instead of its own; their names go into `used`."""
    known = commands.actions(script) if is_script(script) else {}
    own = {name: value for name, value in changes.items() if commands.OTHER_KEYS.get(name, name) in known}
    used.update(own)
    names = {commands.OTHER_KEYS.get(name, name) for name in own}
    return {key: value for key, value in settings.items() if commands.OTHER_KEYS.get(key, key) not in names} | own


@functools.cache
def traits(which):
    """(what the data of a cell are, of suites.NEEDS; their Size). which: JSON of the flags that say which they are."""
    asked = SimpleNamespace(**json.loads(which))
    hub.check_names({}, {"--dataset": flags.source(asked)})
    from harness.data import tasks  # only suites that ask for it read the data

    try:
        task = tasks.from_args(asked)
    except utils.UserError as error:
        raise utils.UserError(f"{error} (flags of the data are given as --set NAME=VALUE)") from None
    n_train = len(task.train) + len(task.unlabelled)  # under a budget all but that are unlabelled
    task.train += task.unlabelled
    if task.name not in TOLD:
        TOLD.add(task.name)
        print(task.summary())
    known = {
        task.kind: True,
        "answers": task.kind != "classification",
        "one_text": not any(ex.text_pair for ex in task.train),
        "passages": task.kind == "qa" and any(ex.context for ex in task.train),
    }
    return {trait for trait, has in known.items() if has}, Size(
        n_train, len(task.evaluation), len(task.labels), task.kind
    )


def examples_of(cell):
    """{flag: value} that say which data a cell is about, not which of these are drawn or how prompts put them."""
    return {name: cell.args[name] for name in data_flags.names() if name not in (*DRAWS, *WORDING, "data_seed")}


def about_data(cell, strict=True):
    """(what the data of a cell are, of suites.NEEDS; their Size). UserError for a script that reads no such data, and
    if strict for a label budget that they do not have.
    """
    missing = [name for name in data_flags.names() if name not in cell.args]
    if missing:
        raise utils.UserError(f"{cell.script} does not say which examples it is scored on: it has no --{missing[0]}")
    budget = cell.args.get("label_budget") or 0
    # with any budget the validation examples are for training, too
    which = {name: cell.args[name] for name in data_flags.names()} | dict.fromkeys(DRAWS)
    which["label_budget"] = 1 if budget else None
    found, size = traits(json.dumps(which, sort_keys=True))
    if strict and budget > size.train:
        raise utils.UserError(f"label_budget {budget}: the data have {size.train} labelled training examples")
    return found, size


def make_cell(label, script, settings, args):
    """The Cell of one command. UserError where its script refuses it."""
    argv, values = parsed(script, settings, args)
    # as a row's args cell has them
    values = utils.without_credentials(json.loads(json.dumps(values)), within=False)
    return Cell(utils.without_credentials(label), script, tuple(argv), values, settings)


def make_cells(suite, args):
    """(name, [Cell]) of a suite, each parsed by its script. UserError for a wrong flag and for two equal cells.

    Cells that --set has made equal are one. Cells whose block needs other data are left out.
    """
    if not utils.exists(suite):
        raise utils.UserError(f"there is no suite {short(suite)}; available suites: {available()}")
    used, told = set(), set()
    name, settings_of_cells, parameters = suites.load_suite(suite, args.changes, functools.partial(changed, used))
    unknown = sorted(set(args.changes) - used - set(parameters))
    if unknown:
        there = f"its parameters are {', '.join(parameters)}" if parameters else "it has no parameters"
        scripts = {setting.script for setting in settings_of_cells if is_script(setting.script)}
        known = {*parameters, *(flag for script in scripts for flag in commands.actions(script))}
        near = difflib.get_close_matches(unknown[0], known, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise utils.UserError(f"--set {unknown[0]}: no script of {suite} has such a flag, and {there}{meant}")
    cells, seen, unsuited = [], {}, 0
    for label, script, settings, needs in settings_of_cells:
        try:
            cell = make_cell(label, script, settings, args)
        except utils.UserError as error:
            raise utils.UserError(f"{suite}, {short(label)}: {error}") from None
        if needs:
            known, size = about_data(cell, strict="label_budget" in args.changes)
            if not set(needs) <= known:
                unsuited += 1
                continue
            if (cell.args.get("label_budget") or 0) > size.train:
                told.add(f"{name}: there are {size.train} labels, fewer than {cell.args['label_budget']}: all are used")
                cell = make_cell(label, script, settings | {"label_budget": suites.Plain(size.train)}, args)
        key = identity(script, cell.args)
        if key in seen and args.changes:
            continue
        if key in seen:
            raise utils.UserError(f"{suite}: {label} and {seen[key]} are the same run")
        seen[key] = label
        cells.append(cell)
    if unsuited:
        told.add(f"{name}: {unsuited} of {len(settings_of_cells)} runs are for other kinds of data and left out")
    for text in sorted(told):
        print(text)
    return name, cells
