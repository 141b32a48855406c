"""What a row was measured with: code, input files, versions."""

import ast
import contextlib
import functools
import glob
import hashlib
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import utils
from harness import hub

ROOT = Path(__file__).resolve().parents[2]
# packages whose versions can change a score or a time
PACKAGES = ("torch", "transformers", "peft", "datasets", "accelerate", "bitsandbytes", "sentence-transformers")
PACKAGES += ("faiss-cpu", "bm25s", "scikit-learn")
GLOB_FLAGS = ("docs",)  # flags whose values may be globs
# flags that say where a run writes and change nothing of what it measures
OUTPUT_FLAGS = ("results", "runs_dir", "resume", "save_run", "index_dir", "answers_dir", "output")


def of_checkout():
    """The cells git_commit, git_dirty and versions (JSON) of this checkout and environment; None where unknown."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
        "versions": json.dumps(versions),
    }


def _git(*command):
    """What a git command prints in the checkout, None where it fails."""
    try:
        done = subprocess.run(("git", *command), cwd=ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def model_source(name):
    """Where a model's weights come from, in words; None where nothing is known.

    A folder's SOURCE.json says it, or the row.json of the run that trained it; else it is the folder itself. A hub name
    in the cache has its commit.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        commit = hub.commit(name)
        return commit and f"{name}@{commit}"
    facts, row = _object(folder / "SOURCE.json"), _object(folder.parent / "row.json")
    if facts.get("origin"):
        return "; ".join(filter(None, [facts.get("model"), facts["origin"]]))
    if row.get("run_id"):
        return f"trained by run {row['run_id']} from {row.get('model_source') or row.get('model')}"
    return str(folder)


def _object(path):
    """The dict in a JSON file, {} where there is none."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def fingerprint(path):
    """sha256 over a file's contents and size, or over names, sizes and contents of a folder's files but hidden ones.

    What lies in a hidden folder below, such as the .cache of `hf download --local-dir`, is hidden too.

    Whole files are read: half a second for a GB. Within a process nothing is read twice that has kept its size and
    time. Pipes and devices are passed over.
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        there = path.rglob("*")
        files = sorted(f for f in there if not any(part.startswith(".") for part in f.relative_to(path).parts))
    known = [(file, os.stat(file)) for file in files if file.is_file()]
    places = tuple(
        (str(file), str(file.relative_to(path)) if path.is_dir() else "", found.st_size, found.st_mtime_ns)
        for file, found in known
    )
    return _fingerprint(places)


@functools.lru_cache(maxsize=1000)
def _fingerprint(places):
    """places: (file, name that counts, bytes, time of the last change in ns) of each file."""
    digest = hashlib.sha256()
    for file, name, size, _ in places:
        digest.update(f"{name}\0{size}\0".encode("utf-8", "surrogateescape"))
        with open(file, "rb") as opened:
            while part := opened.read(utils.MB):
                digest.update(part)
    return digest.hexdigest()


def input_id(args):
    """Hash (16 hex digits) of the local files and folders that flags name: models and data. None if they name none.

    args: {flag: value}; ~ and globs are expanded as the scripts do. Only the contents count, not the paths.
    UserError for a file that cannot be read.
    """
    prints = {}
    for flag, value in args.items():
        for item in value if isinstance(value, list) else [value]:
            if flag in OUTPUT_FLAGS or not isinstance(item, str) or not item:
                continue
            for place in _places(item, flag in GLOB_FLAGS):
                try:
                    prints[flag, place] = fingerprint(place)
                except OSError as error:
                    raise utils.UserError(f"--{flag} {place} cannot be read: {error.strerror}") from None
    return hashlib.sha256(repr(sorted(prints.values())).encode()).hexdigest()[:16] if prints else None


def _places(item, is_glob):
    """The file or folder that a flag's value names, or the files that match where it may be a glob."""
    item = os.path.expanduser(item)
    if os.path.exists(item):  # False for what can be no path
        return [item]
    return [place for place in glob.glob(item, recursive=True) if os.path.isfile(place)] if is_glob else []


def code_id(script):
    """Hash (16 hex digits) of a script and of all that it imports from its own folder, packages included.

    Comments, docstrings and formatting do not count: what is hashed is the syntax tree.
    """
    script = Path(script).resolve()
    folder, todo, digests = script.parent, [script], {}
    while todo:
        file = todo.pop()
        if file not in digests:
            digests[file], imported = _module(file, folder, file.read_text(encoding="utf-8"))
            todo += imported
    named = sorted((file.relative_to(folder).as_posix(), digest) for file, digest in digests.items())
    return hashlib.sha256(repr(named).encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=1000)  # a sweep asks for each of its cells
def _module(file, folder, text):
    """(hash of a module's syntax tree without docstrings, the files under `folder` that it imports)."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            first.value = ast.Constant("")  # the docstring
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), _imported_files(tree, file, folder)


def _imported_files(tree, file, folder):
    """The files under `folder` that the module `file` imports: modules, their packages, `from package import module`.

    tree: the module's ast.
    """
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = file.relative_to(folder).parts[: -node.level] if node.level else ()
            module = ".".join([*package, *filter(None, [node.module])])
            names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    files = set()
    for name in filter(None, names):
        parts = name.split(".")
        for i in range(1, len(parts) + 1):  # `import a.b.c` runs a and a.b too
            place = folder.joinpath(*parts[:i])
            candidates = (place.with_name(f"{place.name}.py"), place / "__init__.py")
            files.update(path for path in candidates if path.is_file())
    return sorted(files)
