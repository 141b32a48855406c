"""The rules of the house, read from the sources: imports, the length of lines and modules, what --help loads."""

import ast
import functools
import subprocess
import sys

import pytest
from helpers import ROOT

FILES = [path.relative_to(ROOT) for path in (*ROOT.glob("*.py"), *ROOT.glob("harness/**/*.py"))]
SCRIPTS = sorted(path.stem for path in FILES if len(path.parts) == 1 and path.stem != "utils")
ALL_FILES = FILES + [
    path.relative_to(ROOT) for name in ("tests", "benchmarks") for path in ROOT.glob(f"{name}/**/*.py")
]

# a module imports from its own room and from lower levels
LEVELS = [
    {"errors"},
    {"inputs"},
    {"utils"},
    {"arguments"},
    {"data_flags", "adapter_flags"},
    {"flags", "hub", "terminal", "suites", "processes"},
    {"engine_flags"},
    {"models"},
    {"data", "results"},
    {"evaluation"},
    {"chat", "retrieval", "training", "selector", "sweeps"},
    set(SCRIPTS),
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
EXCEPTIONS = {("data", "harness.results.store")}  # JSON lines
# utils.load_tokenizer, which stays importable from utils; nothing but its call reaches a model
EXCEPTIONS |= {("utils", "harness.models.tokenizer")}

HEAVY = ("torch", "transformers", "datasets", "pandas", "sklearn", "scipy", "matplotlib")
MAX_LOCAL_IMPORTS, MAX_FMT_SKIPS, MAX_LINE = 22, 59, 120


def module_name(path):
    """harness/data/tasks.py -> harness.data.tasks, harness/data/__init__.py -> harness.data"""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def room(module):
    """harness.data.tasks -> data, harness.flags -> flags, finetune -> finetune"""
    return module.removeprefix("harness.").split(".")[0]


@functools.cache
def source(path):
    return (ROOT / path).read_text(encoding="utf-8")


@functools.cache
def imports(path):
    """[(imported name, import statement, names of the functions around it, outermost first)] of a file.

    `from a.b import c` is a.b.c where that is a module of the project, else a.b.
    """
    found = []

    def visit(node, functions):
        if isinstance(node, ast.Import):
            found.extend((alias.name, node, functions) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found.extend((name if name in MODULES else node.module, node, functions) for name in sorted(names))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            functions = (*functions, getattr(node, "name", "lambda"))
        for child in ast.iter_child_nodes(node):
            visit(child, functions)

    visit(ast.parse(source(path)), ())
    return found


def in_script_main(path, functions):
    """True for the place where a script imports heavy modules: main or import_heavy of a top-level script."""
    return len(path.parts) == 1 and functions[:1] in (("main",), ("import_heavy",))


def test_every_room_has_a_level():
    assert {room(module) for module in MODULES} - {"harness"} <= set(LEVEL)


def test_imports_point_downwards():
    wrong = []
    for module, path in MODULES.items():
        for name, node, _ in imports(path):
            if name not in MODULES or name == "harness" or (room(module), name) in EXCEPTIONS:
                continue
            if room(name) != room(module) and LEVEL[room(name)] >= LEVEL[room(module)]:
                wrong.append(f"{path}:{node.lineno} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_only_commands_imports_a_script_by_its_name():
    """And no module calls importlib or __import__ for anything else."""
    dynamic = {
        str(path)
        for path in FILES
        for node in ast.walk(ast.parse(source(path)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__")
    }
    # libraries that a user may not have, no modules of the project
    optional = {"harness/models/runtimes.py", "harness/models/vllm_engine.py"}
    assert dynamic <= {"harness/results/commands.py", *optional}


def reached(start, without=()):
    """{module: who imports it} of the project modules that `start` imports, also through others and in functions."""
    found, todo = {start: None}, [start]
    while todo:
        module = todo.pop()
        for name, _, _ in imports(MODULES[module]):
            called_only = (module, name) == ("utils", "harness.models.tokenizer")
            if name in MODULES and name not in found and name not in without and not called_only:
                found[name] = module
                todo.append(name)
    return found


WITHOUT_TORCH = sorted(name for name in MODULES if name.startswith("harness.results."))
WITHOUT_TORCH += ["plot_results", "sweep", "adaptive_selector"]


def test_results_and_the_scripts_that_only_read_them_never_reach_torch():
    """Not through other modules of the project, and not through the libraries that these import."""
    wrong, modules = [], set()
    for start in WITHOUT_TORCH:
        without = ("harness.selector.memory",) if start == "adaptive_selector" else ()  # --forecast
        found = reached(start, without)
        modules |= set(found)
        for module, by in found.items():
            for name, node, functions in imports(MODULES[module]):
                # elsewhere a function of a lower module may import torch, as those of utils for the GPU do
                counts = not functions or module in WITHOUT_TORCH
                if name.split(".")[0] in ("torch", "transformers") and counts:
                    wrong.append(f"{start}: {MODULES[module]}:{node.lineno}, imported by {by}, imports {name}")
    assert not wrong, "\n".join(sorted(set(wrong)))
    code = f"import sys, {', '.join(sorted(modules))}; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_imports_within_functions_are_few_and_say_why():
    statements = {}  # (file, first line) -> last line
    for path in FILES:
        for _, node, functions in imports(path):
            if functions and not in_script_main(path, functions):
                statements[path, node.lineno] = node.end_lineno
    silent = []
    for (path, first), last in statements.items():
        lines = ["", *source(path).splitlines()]
        before = first - 1
        while any(
            (path, start) in statements and start <= before <= statements[path, start] for start in range(before + 1)
        ):
            before -= 1  # a comment may stand above several imports
        if not any("#" in line for line in lines[first : last + 1]) and not lines[before].strip().startswith("#"):
            silent.append(f"{path}:{first} {lines[first].strip()}")
    assert not silent, f"{len(silent)} without a comment that gives the reason:\n" + "\n".join(silent)
    listed = "\n".join(f"{path}:{first}" for path, first in statements)
    assert len(statements) <= MAX_LOCAL_IMPORTS, f"{len(statements)} imports within functions:\n{listed}"


def test_lines_fit():
    wrong = [
        f"{path}:{number} has {len(line)} characters"
        for path in ALL_FILES
        for number, line in enumerate(source(path).splitlines(), 1)
        if len(line) > MAX_LINE
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("files", [FILES, ALL_FILES], ids=["house", "with tests and benchmarks"])
def test_modules_are_short(files):
    lengths = {str(path): len(source(path).splitlines()) for path in files if source(path).strip()}
    long = {path: n for path, n in sorted(lengths.items(), key=lambda item: -item[1]) if n > 300}
    assert not [path for path, n in long.items() if n > 400], long
    assert len(long) <= 0.1 * len(lengths), f"{len(long)} of {len(lengths)} have more than 300 lines: {long}"


def test_formatting_is_left_to_ruff():
    skips = sum(source(path).count("# fmt" + ": skip") + source(path).count("# fmt" + ": off") for path in ALL_FILES)
    assert skips <= MAX_FMT_SKIPS


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_wrong_flags_load_nothing_heavy(script):
    code = (
        f"import sys, {script}\ntry:\n    {script}.main(sys.argv[1:])\n"
        f"finally:\n    heavy = set({HEAVY}) & set(sys.modules)\n    assert not heavy, heavy\n"
    )
    shown = subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0 and shown.stderr == "", shown.stderr
    assert "usage:" in shown.stdout and f"python {script}.py" in shown.stdout
    wrong = subprocess.run([sys.executable, "-c", code, "--no_such_flag"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and wrong.stdout == "", wrong.stderr
