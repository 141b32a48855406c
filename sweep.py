"""Runs a suite of experiments, one command a cell, and resumes where it stopped.

A suite is a YAML file that names a script, its fixed flags, and a grid or a list of variants; `suites/` has some.
Every command is printed before it runs. A cell is skipped if the results CSV has a row of the same identity: script,
all flags, the contents of the local files that they name, the code of the script and of what it imports. A cell that
failed is run again with --retry.

    python sweep.py suites/demo.yaml --dry_run
    python sweep.py suites/rank.yaml --results rank.csv
    # on two GPUs, two at a time
    python sweep.py suites/rank.yaml --workers 2 --devices 0,1 --continue_on_error

    suite_name: rank
    script: peft_finetune.py
    flags: {dataset: assets/data/movie_reviews, max_train_samples: 1000}
    grid: {rank: [4, 8, 16], data_seed: [0, 1, 2]}  # every combination
    experiments: [{name: small, alpha: 8}, ...]     # or a list of variants
    # a suite of several scripts has `runs`, a list of such blocks
"""

import concurrent.futures
import contextlib
import fcntl
import functools
import hashlib
import io
import itertools
import json
import os
import queue
import shlex
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import yaml
from tqdm import tqdm

import utils
from harness import flags
from harness.results import provenance, store

ROOT = Path(__file__).resolve().parent
BLOCK_KEYS = ("script", "flags", "grid", "experiments")


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    add = parser.add_argument
    add("suite", help="the YAML file")
    add("--dry_run", action="store_true", help="print the commands and which would be skipped; run nothing")
    statuses = ("failed", "oom", "degenerate")
    add("--retry", nargs="+", choices=statuses, default=[], help="run cells again whose row has one of these statuses")
    add("--ignore_code", action="store_true", help="count a row as done even if the code has changed since")
    add("--continue_on_error", action="store_true", help="go on after a cell that failed")
    workers = "cells that run at the same time; on one device they slow each other down (default: %(default)s)"
    add("--workers", type=flags.positive_int, default=1, help=workers)
    add("--devices", help="CUDA devices that the workers take in turn, as in 0,1")
    add("--results", default="results.csv", help="the CSV that gets the rows (default: %(default)s)")
    add("--runs_dir", default="runs", help="where the run folders are made (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.devices and not all(part.strip().isdecimal() for part in args.devices.split(",")):
        parser.error(f"--devices {args.devices}: give numbers separated by commas, as in 0,1")
    return args


def import_heavy():
    """What needs scipy, after the arguments were checked."""
    global commands
    from harness.results import commands


# ------------------------------------------------------------------------------------------------------------ the suite


@dataclass(frozen=True)
class Cell:
    """One command of a suite."""

    name: str
    script: str
    argv: tuple
    args: dict  # {flag: value}, every flag, as the script itself reads argv

    @property
    def command(self):
        return shlex.join(["python", self.script, *utils.without_credentials(self.argv)])


def load_suite(path):
    """(name, [(cell name, script, {flag: value})]) of a YAML file; UserError where it is not a suite."""
    try:
        suite = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        known = ", ".join(sorted(str(file.relative_to(ROOT)) for file in (ROOT / "suites").glob("*.yaml")))
        hint = f"; available suites: {known}" if isinstance(error, FileNotFoundError) else ""
        raise utils.UserError(f"{path} cannot be read as a suite: {error}{hint}") from None
    if not isinstance(suite, dict):
        raise utils.UserError(f"{path}: a suite is a mapping with suite_name, script, flags, and grid or experiments")
    name = str(suite.pop("suite_name", Path(path).stem))
    suite.pop("description", None)
    blocks = suite.pop("runs", None) or [{}]
    if not (isinstance(blocks, list) and all(isinstance(block, dict) for block in blocks)):
        raise utils.UserError(f"{path}: runs must be a list of blocks with script, flags, and grid or experiments")
    return name, [cell for block in blocks for cell in expand(path, suite, block)]


def expand(path, suite, block):
    """[(cell name, script, {flag: value})] of one block of `runs`; what it lacks is taken from the suite itself."""
    unknown = [key for key in block if key not in BLOCK_KEYS]
    if unknown:
        known = ", ".join(BLOCK_KEYS)
        raise utils.UserError(f"{path}: a block of runs has {', '.join(unknown)}; known are {known}")
    parts = {key: block.get(key, suite.get(key)) for key in BLOCK_KEYS}
    script, grid, experiments = parts["script"] or "peft_finetune.py", parts["grid"] or {}, parts["experiments"] or [{}]
    if not all(isinstance(some, dict | None) for some in (suite.get("flags"), block.get("flags"))):
        raise utils.UserError(f"{path}: flags must be a mapping of flags to their values")
    lists = isinstance(grid, dict) and all(isinstance(values, list) and values for values in grid.values())
    if not lists or not isinstance(experiments, list) or not all(isinstance(one, dict) for one in experiments):
        raise utils.UserError(f"{path}: grid needs a list of values for each flag, experiments a list of mappings")
    common = {
        key: value for key, value in suite.items() if key not in BLOCK_KEYS
    }  # base_model: .. at the top is a flag
    settings = {**common, **(suite.get("flags") or {}), **(block.get("flags") or {})}
    cells = []
    for experiment, values in itertools.product(experiments, itertools.product(*grid.values())):
        own = {key: value for key, value in experiment.items() if key not in ("name", "description")}
        own = {**own.pop("flags", {}), **own.pop("lora", {}), **own.pop("training", {}), **own}
        chosen = dict(zip(grid, values))
        label = [str(experiment.get("name", Path(script).stem)), *(f"{key}={value}" for key, value in chosen.items())]
        cells.append((" ".join(label), script, {**settings, **own, **chosen}))
    return cells


def make_cells(suite, args):
    """(name, [Cell]) of a suite, each parsed by its script. UserError for a wrong flag and for two equal cells."""
    name, settings_of_cells = load_suite(suite)
    cells, seen = [], {}
    for label, script, settings in settings_of_cells:
        if not (ROOT / script).is_file() or Path(script).name != script:
            raise utils.UserError(f"{suite}, {label}: there is no script {script} here")
        argv = [*commands.to_argv(settings, script), "--results", args.results, "--runs_dir", args.runs_dir]
        message = io.StringIO()
        try:
            with contextlib.redirect_stderr(message):
                parsed = vars(commands.parse(script, argv))
        except SystemExit:
            raise utils.UserError(f"{suite}, {label}: {message.getvalue().strip()}") from None
        if parsed.get("repeats", 1) > 1:
            advice = "instead of repeats give data_seed a list in the grid, so that each run can be resumed"
            raise utils.UserError(f"{suite}, {label}: {advice}")
        parsed = utils.without_credentials(json.loads(json.dumps(parsed)))  # as a row's args cell has them
        cell = Cell(utils.without_credentials(label), script, tuple(argv), parsed)
        key = script, json.dumps(commands.what_counts(cell.args), sort_keys=True)
        if key in seen:
            raise utils.UserError(f"{suite}: {label} and {seen[key]} are the same run")
        seen[key] = label
        cells.append(cell)
    return name, cells


# --------------------------------------------------------------------------------------------------------- what is done


@functools.cache
def code_id(script):
    return provenance.code_id(ROOT / script)


def status_of(cell, rows, ignore_code=False):
    """The status of the newest row with this cell's identity, None without one. rows: of the results CSV."""
    for row in reversed(rows):
        if row["script"] != cell.script or not (ignore_code or row["code_id"] == code_id(cell.script)):
            continue
        try:
            flags_of_row = commands.what_counts(json.loads(row["args"]))
        except ValueError:
            continue
        same_flags = flags_of_row == commands.what_counts(cell.args)
        if same_flags and row["input_id"] == (provenance.input_id(cell.args) or ""):
            return row["status"]
    return None


def read_rows(path):
    """The rows of the results CSV, none where it does not exist yet or is empty."""
    return store.read_results(path) if Path(path).is_file() and Path(path).stat().st_size else []


def plan(cells, args):
    """[(cell, status of its row or None, whether it will run)]."""
    rows = read_rows(args.results)
    statuses = [(cell, status_of(cell, rows, args.ignore_code)) for cell in cells]
    return [(cell, status, status is None or status in args.retry) for cell, status in statuses]


# -------------------------------------------------------------------------------------------------------------- running


@contextlib.contextmanager
def claimed(cell, args):
    """A lock on one cell of one CSV. The run inherits it: one that outlives its sweep is waited for, not repeated."""
    key = json.dumps([os.path.realpath(args.results), cell.script, commands.what_counts(cell.args)], sort_keys=True)
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    with open(Path(args.runs_dir) / "sweeps" / f"{name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            tqdm.write(f"    {cell.name}: another process runs it already, waiting for its end")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def run_cell(cell, log, device=None, lock=None):
    """Run a command, its output into a log file; returns its exit code. lock: a file descriptor that it keeps open."""
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": device} if device is not None else {})}
    command, keep = [sys.executable, ROOT / cell.script, *cell.argv], (lock,) if lock else ()
    with open(log, "w", encoding="utf-8") as file:
        file.write(f"$ {cell.command}\n")
        file.flush()
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, pass_fds=keep)
        return done.returncode


def run_all(name, cells, args):
    """Run the cells, --workers at a time; returns those that failed."""
    logs = Path(args.runs_dir) / "sweeps"
    logs.mkdir(parents=True, exist_ok=True)
    devices, failed, stop = queue.Queue(), [], threading.Event()
    names = args.devices.split(",") if args.devices else [None]
    for i in range(args.workers):
        devices.put(names[i % len(names)])

    def work(number, cell):
        if stop.is_set():
            return
        device = devices.get()
        log = logs / f"{name}-{number:03d}.log"
        try:
            with claimed(cell, args) as lock:
                _, _, wanted = plan([cell], args)[0]
                if wanted:
                    tqdm.write(cell.command)
                    code = run_cell(cell, log, device, lock)
        finally:
            devices.put(device)
        if not wanted:
            tqdm.write(f"    {cell.name}: meanwhile done by another process")
            return
        last = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][-2:]
        tqdm.write("\n".join(f"    {line[-300:]}" for line in last))
        if code:
            failed.append(cell)
            tqdm.write(f"    FAILED with exit code {code}, see {log}")
            if not args.continue_on_error:
                stop.set()

    with (
        concurrent.futures.ThreadPoolExecutor(args.workers) as pool,
        tqdm(total=len(cells), desc=name, unit="run") as bar,
    ):
        waiting = [pool.submit(work, number, cell) for number, cell in enumerate(cells)]
        for done in concurrent.futures.as_completed(waiting):
            done.result()
            bar.update()
    return failed


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    import_heavy()
    name, cells = make_cells(args.suite, args)
    store.check_results_file(args.results)
    planned = plan(cells, args)
    for cell, status, wanted in planned:
        print(f"{'run ' if wanted else 'skip'}  {cell.name}{f' ({status})' if status else ''}: {cell.command}")
    todo = [cell for cell, _, wanted in planned if wanted]
    ended = [status for _, status, wanted in planned if not wanted]
    counts = ", ".join(f"{ended.count(status)} {status}" for status in sorted(set(ended)))
    print(f"{name}: {len(todo)} of {len(cells)} to run" + (f"; there already: {counts}" if counts else ""))
    if not args.ignore_code:
        rows, new = read_rows(args.results), [cell for cell, status, _ in planned if status is None]
        old = sum(status_of(cell, rows, ignore_code=True) is not None for cell in new)
        if old:
            print(f"{name}: {old} of them have rows from other code; --ignore_code counts those as done")
    if args.dry_run or not todo:
        return
    failed = run_all(name, todo, args)
    print(f"{name}: {len(failed)} of {len(todo)} failed; rows in {args.results}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
