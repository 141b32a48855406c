"""A suite file of sweep.py: YAML whose values stay as they were typed -> cells, each a script and its flags.

YAML reads an unquoted no as False, 1:30 as 90 and 2024-05-01 as a date; a suite's label words, names and dates are what
the person typed. So a plain scalar stays text (`Plain`), and `as_typed` makes of it what the flag takes.
"""

import collections
import functools
import itertools
import math
import re
from pathlib import Path
from typing import NamedTuple

import yaml

import utils
from harness.errors import short

BLOCK_KEYS = ("script", "flags", "grid", "experiments", "needs")
# what a block may ask of the data: a kind (answers: qa or instruction), no pairs of texts, passages to retrieve
NEEDS = ("classification", "qa", "instruction", "answers", "one_text", "passages")
SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
NULLS = ("", "~", "null", "Null", "NULL")
MOST_CELLS, MOST_BYTES, MOST_VALUES = 10_000, 4 * utils.MB, 500_000  # of a grid; of a file; of a file, aliases expanded


class Plain(str):
    """A scalar that was typed without quotes, tags ignored."""

    __slots__ = ()


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML of mappings, lists and text; `<<` merges. Keys given twice are refused."""

    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("^<<$"))]}
    yaml_constructors = {}

    def scalar(self, node):
        return node.value if node.style else Plain(node.value)  # plain: None or ""

    def mapping(self, node):
        own = collections.Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        twice = sorted(key for key, n in own.items() if n > 1)
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is given twice", node.start_mark)
        return self.construct_yaml_map(node)


for tag in ("str", "int", "float", "bool", "null"):
    Loader.add_constructor(f"tag:yaml.org,2002:{tag}", Loader.scalar)
Loader.add_constructor("tag:yaml.org,2002:map", Loader.mapping)
Loader.add_constructor("tag:yaml.org,2002:seq", Loader.construct_yaml_seq)
Loader.add_constructor(None, Loader.construct_undefined)


def n_values(node, known):
    """How many values a YAML node stands for, aliases expanded; inf if it contains itself. known: {id: number}"""
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is counted
        children = [] if isinstance(node, yaml.ScalarNode) else node.value
        parts = itertools.chain(*children) if isinstance(node, yaml.MappingNode) else children
        known[id(node)] = 1 + sum(n_values(part, known) for part in parts)
    return known[id(node)]


def read_yaml(path):
    """The value of a suite file: mappings, lists, str and Plain. UserError for anything that is no such file."""
    path = Path(path)
    utils.look(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise utils.UserError(f"{path} is larger than {MOST_BYTES // utils.MB} MB; that is no suite")
        loader = Loader(path.read_text(encoding="utf-8-sig"))
        node = loader.get_single_node()
        if node is not None and n_values(node, {}) > MOST_VALUES:
            raise utils.UserError(
                f"{path}: its aliases stand for more than {MOST_VALUES:,} values or contain themselves"
            )
        return None if node is None else loader.construct_document(node)
    except RecursionError:
        raise utils.UserError(f"{path}: nested too deeply") from None
    except (FileNotFoundError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise utils.UserError(f"{path} cannot be read as a suite: {short(error, 400)}") from None


class Setting(NamedTuple):
    """One cell of a suite, as the file has it."""

    name: str
    script: str
    flags: dict  # {flag: value}, a str, a Plain or a list of these
    needs: tuple = ()  # what the data must be, of NEEDS


def value_of(text):
    """The value of `--set NAME=text` as a suite file would have it: [a, b] is a list, anything else stands as typed."""
    if not (text.startswith("[") and text.endswith("]")):
        return Plain(text)
    try:
        return yaml.load(text, Loader)  # noqa: S506  Loader makes text, lists and mappings alone
    except yaml.YAMLError as error:
        raise utils.UserError(f"--set {short(text)} cannot be read as a list: {short(error)}") from None


def with_parameters(path, value, parameters):
    """The value, in which each plain $NAME stands for the parameter of that name. UserError for an unknown one."""
    if isinstance(value, dict):
        return {key: with_parameters(path, item, parameters) for key, item in value.items()}
    if isinstance(value, list):
        return [with_parameters(path, item, parameters) for item in value]
    if not (isinstance(value, Plain) and parameters and re.fullmatch(r"\$[A-Za-z_]\w*", value)):
        return value
    if value[1:] not in parameters:
        raise utils.UserError(f"{path}: {short(value)} is none of its parameters {', '.join(parameters)}")
    return parameters[value[1:]]


def load_suite(path, changes=None, override=None):
    """(name, [Setting], names of its parameters) of a YAML file; UserError where it is not a suite.

    changes: {name: value} instead of the file's, of its parameters; override makes of a cell's script, its flags and
    those changes that are no parameters the flags to take.
    """
    suite = read_yaml(path)
    if not isinstance(suite, dict):
        raise utils.UserError(f"{path}: a suite is a mapping with suite_name, script, flags, and grid or experiments")
    name = suite.pop("suite_name", Path(path).stem)
    # it begins the names of the log files, which stay in runs_dir
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w .+-]{0,99}", name):
        words = "letters, digits, blanks and _ . + -, at most 100, and no dot in front"
        raise utils.UserError(f"{path}: suite_name {short(repr(name), 60)}: {words}")
    suite.pop("description", None)
    parameters = mapping(path, "parameters", suite.pop("parameters", None))
    check_flags(path, parameters)
    changes = changes or {}
    rest = {key: value for key, value in changes.items() if key not in parameters}
    parameters |= {key: value for key, value in changes.items() if key in parameters}
    suite = with_parameters(path, suite, parameters)
    blocks = suite.pop("runs", None) or [{}]
    if not (isinstance(blocks, list) and all(isinstance(block, dict) for block in blocks)):
        raise utils.UserError(f"{path}: runs must be a list of blocks with script, flags, and grid or experiments")
    cells = []
    for block in blocks:
        cells += expand(path, suite, block, MOST_CELLS - len(cells), override and functools.partial(override, rest))
    return name, cells, tuple(parameters)


def mapping(path, name, value):
    """The value of a key that holds flags, {} where it is empty; UserError for anything but a mapping."""
    if not isinstance(value, dict | None) and value not in NULLS:
        raise utils.UserError(f"{path}: {name} must be a mapping of flags to their values")
    return value or {}


def expand(path, suite, block, most=MOST_CELLS, override=None):
    """[Setting] of one block of `runs`; what it lacks is taken from the suite itself. override: (script, flags) ->
    flags to take instead.
    """
    unknown = [str(key) for key in block if key not in BLOCK_KEYS]
    if unknown:
        known = ", ".join(BLOCK_KEYS)
        raise utils.UserError(f"{path}: a block of runs has {short(', '.join(unknown))}; known are {known}")
    parts = {key: block.get(key, suite.get(key)) for key in BLOCK_KEYS}
    script, grid, experiments = parts["script"] or "peft_finetune.py", parts["grid"] or {}, parts["experiments"] or [{}]
    if not isinstance(script, str):
        raise utils.UserError(f"{path}: script must be the name of one script")
    needs = parts["needs"] or []
    if not isinstance(needs, list) or not all(need in NEEDS for need in needs):
        raise utils.UserError(f"{path}: needs is a list of {', '.join(NEEDS)}")
    lists = isinstance(grid, dict) and all(isinstance(values, list) and values for values in grid.values())
    if not lists or not isinstance(experiments, list) or not all(isinstance(one, dict) for one in experiments):
        raise utils.UserError(f"{path}: grid needs a list of values for each flag, experiments a list of mappings")
    size = len(experiments) * math.prod(map(len, grid.values()))
    if size > most:
        raise utils.UserError(f"{path}: a grid of {size:,} cells; a suite has at most {MOST_CELLS:,}, divide it")
    common = {
        key: value for key, value in suite.items() if key not in BLOCK_KEYS
    }  # base_model: .. at the top is a flag
    flags_of = (mapping(path, "flags", some.get("flags")) for some in (suite, block))
    settings = {**common, **next(flags_of), **next(flags_of)}
    cells = []
    for experiment, values in itertools.product(experiments, itertools.product(*grid.values())):
        own = {key: value for key, value in experiment.items() if key not in ("name", "description")}
        nested = [mapping(path, name, own.pop(name, None)) for name in ("flags", "lora", "training")]
        chosen = dict(zip(grid, values))
        flags = {**settings, **nested[0], **nested[1], **nested[2], **own, **chosen}
        check_flags(path, flags)
        name = experiment.get("name", Path(script).stem)
        if not isinstance(name, str):
            raise utils.UserError(f"{path}: the name of an experiment must be text")
        flags = override(script, flags) if override else flags
        axes = [f"{key}={value}" for key, value in chosen.items() if flags.get(key) == value]
        cells.append(Setting(" ".join([short(name), *axes]), script, flags, tuple(needs)))
    return cells


def check_flags(path, flags):
    """UserError unless each key can be a flag, and each value is text or a list of texts."""
    for key, value in flags.items():
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z]\w*", key):
            raise utils.UserError(f"{path}: {short(repr(key), 60)} is no flag's name")
        if not all(isinstance(item, str) for item in (value if isinstance(value, list) else [value])):
            raise utils.UserError(f"{path}: {key} takes a value or a list of values")


def as_typed(value, action=None):
    """What a suite's value means to a flag: text as it was typed, numbers as numbers, true and false as switches.

    yes, no, on and off are switches only to a flag that is one. action: the flag's argparse.Action, None if unknown.
    Values that are not of a suite file are returned as they are.
    """
    kind = getattr(action, "type", None)
    numeric = kind in (int, float) or getattr(kind, "of_numbers", False)
    if isinstance(value, list):
        return [_number(item) if numeric else item for item in value]
    if not isinstance(value, Plain):
        return value
    if value in NULLS:
        return None
    word = value.lower()
    if word in SWITCH and (word in ("true", "false") or (action is not None and action.nargs == 0)):
        return SWITCH[word]
    return _number(value) if numeric else str(value)


def _number(text):
    """An int or a float where a text is one, the text itself otherwise."""
    for kind in (int, float):
        try:
            return kind(text)
        except (ValueError, OverflowError):
            continue
    return text
