"""What a row was measured with: code, inputs, versions."""

import ast
import contextlib
import hashlib
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import utils


def of_checkout():
    """git_commit, git_dirty and versions (JSON) of this checkout and environment; empty where unknown."""

    def git(*command):
        try:
            done = subprocess.run(
                ("git", *command), cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    versions = {"python": platform.python_version()}
    for name in (
        "torch",
        "transformers",
        "peft",
        "datasets",
        "accelerate",
        "bitsandbytes",
        "sentence-transformers",
        "faiss-cpu",
        "bm25s",
    ):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    status = git("status", "--porcelain", "--untracked-files=no")
    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
        "versions": json.dumps(versions),
    }


OUTPUT_FLAGS = (
    "results",
    "runs_dir",
    "resume",
    "save_run",
    "index_dir",
    "answers_dir",
    "output",
)  # that change where a run writes and nothing of what it measures


LARGE = 8 * utils.MB  # of a larger file only the first and last MB enter its fingerprint


def fingerprint(path):
    """sha256 of a file's or folder's names, sizes and contents; hidden files do not count."""
    path, digest = Path(path), hashlib.sha256()
    files = (
        sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")) if path.is_dir() else [path]
    )
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path) if path.is_dir() else ''}\0{size}\0".encode())
        with open(file, "rb") as opened:
            if size <= LARGE:
                digest.update(opened.read())
            else:
                digest.update(opened.read(utils.MB))
                opened.seek(-utils.MB, os.SEEK_END)
                digest.update(opened.read())
    return digest.hexdigest()


def input_id(args):
    """Hash of the local files and folders that the flags name, models and data; None where they name none. args: a dict."""
    found = {}
    for flag, value in args.items():
        for item in value if isinstance(value, list) else [value]:
            if flag not in OUTPUT_FLAGS and isinstance(item, str) and item and os.path.exists(item):
                found[flag, item] = fingerprint(item)
    return hashlib.sha256(repr(sorted(found.values())).encode()).hexdigest()[:16] if found else None


def code_id(script):
    """Hash of a script and of all it imports from its own folder, packages included; comments and docstrings left out."""
    script = Path(script).resolve()
    folder, todo, dumps = script.parent, [script], {}
    while todo:
        file = todo.pop()
        if file in dumps:
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if (
                isinstance(body, list)
                and body
                and isinstance(body[0], ast.Expr)
                and isinstance(body[0].value, ast.Constant)
            ):
                body[0].value = ast.Constant("")
        dumps[file] = ast.dump(tree)
        todo += _imported_files(tree, file, folder)
    named = sorted((file.relative_to(folder).as_posix(), dump) for file, dump in dumps.items())
    return hashlib.sha256(repr(named).encode()).hexdigest()[:16]


def _imported_files(tree, file, folder):
    """Files under `folder` that the module `file` imports: modules, the packages they are in, and `from package import module`."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = file.relative_to(folder).parts[: -node.level] if node.level else ()
            module = ".".join([*package, *filter(None, [node.module])])
            names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    found = set()
    for name in filter(None, names):
        parts = name.split(".")
        for i in range(1, len(parts) + 1):  # `import a.b.c` runs a and a.b too
            place = folder.joinpath(*parts[:i])
            found.update(
                path for path in (place.with_name(f"{place.name}.py"), place / "__init__.py") if path.is_file()
            )
    return sorted(found)
