"""Runs a suite of experiments, one command a cell, and resumes where it stopped.

A suite is a YAML file that names a script, its fixed flags, and a grid or a list of variants; `suites/` has some. Every command is
printed before it runs. A cell whose whole identity (script, all flags, the contents of the local files that they name, the code of
the script and of what it imports) has a row already is skipped; one that failed is tried again with --retry.

    python sweep.py suites/demo.yaml --dry_run
    python sweep.py suites/rank.yaml --results rank.csv
    # on two GPUs, two at a time
    python sweep.py suites/rank.yaml --workers 2 --devices 0,1 --continue_on_error

    suite_name: rank
    script: peft_finetune.py
    flags: {dataset: assets/data/movie_reviews, max_train_samples: 1000}
    grid: {rank: [4, 8, 16], data_seed: [0, 1, 2]}      # every combination; or experiments: [{name: small, rank: 4}, ...]
    # suites of several scripts have runs: a list of such blocks
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import importlib
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

import utils
from harness import flags
from harness.results import commands, provenance, store

ROOT = Path(__file__).resolve().parent
BLOCK_KEYS = ("script", "flags", "grid", "experiments")


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    parser.add_argument("suite", help="the YAML file")
    parser.add_argument(
        "--dry_run", action="store_true", help="print the commands and what would be skipped, and run nothing"
    )
    parser.add_argument(
        "--retry", nargs="+", choices=("failed", "oom", "degenerate"), default=[], help="run cells again that ended so"
    )
    parser.add_argument("--ignore_code", action="store_true", help="rows that other code made count as done, too")
    parser.add_argument("--continue_on_error", action="store_true", help="go on after a cell that failed")
    parser.add_argument(
        "--workers",
        type=flags.positive_int,
        default=1,
        help="cells at a time; on one device they slow each other down (default: %(default)s)",
    )
    parser.add_argument("--devices", help="CUDA devices that the workers take turns at, as in 0,1")
    parser.add_argument("--results", default="results.csv", help="the CSV that gets the rows (default: %(default)s)")
    parser.add_argument("--runs_dir", default="runs", help="where the run folders are made (default: %(default)s)")
    return parser.parse_args(argv)


# --------------------------------------------------------------------------------------------------------------- the suite


@dataclass(frozen=True)
class Cell:
    name: str
    script: str
    argv: tuple
    args: dict  # every flag as the script reads it

    @property
    def command(self):
        return shlex.join(["python", self.script, *self.argv])


def load_suite(path):
    """(name, [(block name, script, flags)]) of a suite file; UserError for a file that is none."""
    import yaml

    try:
        suite = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        known = ", ".join(sorted(str(file.relative_to(ROOT)) for file in (ROOT / "suites").glob("*.yaml")))
        hint = f"; there are {known}" if isinstance(error, FileNotFoundError) else ""
        raise utils.UserError(f"{path} cannot be read as a suite: {error}{hint}") from None
    if not isinstance(suite, dict):
        raise utils.UserError(f"{path}: a suite is a mapping with suite_name, script, flags, and grid or experiments")
    name = str(suite.pop("suite_name", Path(path).stem))
    suite.pop("description", None)
    blocks = suite.pop("runs", None) or [{}]
    if not (isinstance(blocks, list) and all(isinstance(block, dict) for block in blocks)):
        raise utils.UserError(f"{path}: runs must be a list of blocks with script, flags, and grid or experiments")
    cells = []
    for block in blocks:
        common = {
            key: value for key, value in suite.items() if key not in BLOCK_KEYS
        }  # base_model: .. at the top is a flag
        strange = [key for key in block if key not in BLOCK_KEYS]
        if strange:
            raise utils.UserError(
                f"{path}: a block of runs has {', '.join(strange)}; known are {', '.join(BLOCK_KEYS)}"
            )
        parts = {key: block.get(key, suite.get(key)) for key in BLOCK_KEYS}
        script = parts["script"] or "peft_finetune.py"
        if not all(isinstance(some, (dict, type(None))) for some in (suite.get("flags"), block.get("flags"))):
            raise utils.UserError(f"{path}: flags must be a mapping of flags to their values")
        settings = {**common, **(suite.get("flags") or {}), **(block.get("flags") or {})}
        grid, experiments = parts["grid"] or {}, parts["experiments"] or [{}]
        lists = (
            all(isinstance(values, list) and values for values in grid.values()) if isinstance(grid, dict) else False
        )
        if not lists or not isinstance(experiments, list) or not all(isinstance(one, dict) for one in experiments):
            raise utils.UserError(f"{path}: grid wants a list of values for each flag, experiments a list of mappings")
        for experiment, values in itertools.product(experiments, itertools.product(*grid.values())):
            own = {key: value for key, value in experiment.items() if key not in ("name", "description")}
            own = {**own.pop("flags", {}), **own.pop("lora", {}), **own.pop("training", {}), **own}
            chosen = dict(zip(grid, values))
            label = " ".join(
                [str(experiment.get("name", Path(script).stem)), *(f"{key}={value}" for key, value in chosen.items())]
            )
            cells.append((label, script, {**settings, **own, **chosen}))
    return name, cells


def make_cells(suite, args):
    """The Cells of a suite, every one read by its script, so that a wrong flag ends here. Equal ones are refused."""
    name, found = load_suite(suite)
    cells, seen = [], {}
    for label, script, settings in found:
        if not (ROOT / script).is_file() or Path(script).name != script:
            raise utils.UserError(f"{suite}, {label}: there is no script {script} here")
        module = importlib.import_module(script.removesuffix(".py"))
        argv = [*commands.to_argv(settings), "--results", args.results, "--runs_dir", args.runs_dir]
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                parsed = vars(module.parse_args(argv))
        except SystemExit:
            raise utils.UserError(f"{suite}, {label}: {said.getvalue().strip()}") from None
        if parsed.get("repeats", 1) > 1:
            raise utils.UserError(
                f"{suite}, {label}: instead of repeats give data_seed a list in the grid, so that each run can be resumed"
            )
        cell = Cell(label, script, tuple(argv), json.loads(json.dumps(parsed)))
        key = script, json.dumps(commands.what_counts(cell.args), sort_keys=True)
        if key in seen:
            raise utils.UserError(f"{suite}: {label} and {seen[key]} are the same run")
        seen[key] = label
        cells.append(cell)
    return name, cells


# ------------------------------------------------------------------------------------------------------------ what is done


@functools.cache
def code_id(script):
    return provenance.code_id(ROOT / script)


def status_of(cell, rows, ignore_code=False):
    """The status of the newest row of this cell's identity, None without any. rows: of the results CSV."""
    for row in reversed(rows):
        try:
            same = row["script"] == cell.script and commands.what_counts(
                json.loads(row["args"])
            ) == commands.what_counts(cell.args)
        except ValueError:
            continue
        if (
            same
            and row["input_id"] == (provenance.input_id(cell.args) or "")
            and (ignore_code or row["code_id"] == code_id(cell.script))
        ):
            return row["status"]
    return None


def plan(cells, args):
    """[(cell, status of its row or None, will it run)]."""
    rows = (
        store.read_results(args.results) if Path(args.results).is_file() and Path(args.results).stat().st_size else []
    )
    found = [(cell, status_of(cell, rows, args.ignore_code)) for cell in cells]
    return [(cell, status, status is None or status in args.retry) for cell, status in found]


# ----------------------------------------------------------------------------------------------------------------- running


@contextlib.contextmanager
def claimed(cell, args):
    """A lock on one cell and CSV, which the run inherits: a run that a killed sweep left behind is waited for, not doubled."""
    import fcntl

    key = json.dumps([os.path.realpath(args.results), cell.script, commands.what_counts(cell.args)], sort_keys=True)
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    with open(Path(args.runs_dir) / "sweeps" / f"{name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            from tqdm.auto import tqdm

            tqdm.write(f"    {cell.name}: another process runs it already, waiting for its end")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def run_cell(cell, log, device=None, lock=None):
    """Run one command, its output into a log file; returns its exit code. lock: a file descriptor it holds open to its end."""
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": device} if device is not None else {})}
    with open(log, "w", encoding="utf-8") as file:
        file.write(f"$ {cell.command}\n")
        file.flush()
        return subprocess.run(
            [sys.executable, ROOT / cell.script, *cell.argv],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=[lock] if lock else (),
        ).returncode


def run_all(name, cells, args):
    """Run the cells; returns those that failed."""
    from tqdm.auto import tqdm

    logs = Path(args.runs_dir) / "sweeps"
    logs.mkdir(parents=True, exist_ok=True)
    devices, failed, stop = queue.Queue(), [], threading.Event()
    names = args.devices.split(",") if args.devices else [None]
    for i in range(args.workers):
        devices.put(names[i % len(names)])

    def work(number, cell):
        if stop.is_set():
            return None
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
            tqdm.write(f"    {cell.name}: done by another process meanwhile")
            return None
        last = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][-2:]
        tqdm.write("\n".join(f"    {line[-300:]}" for line in last))
        if code:
            failed.append(cell)
            tqdm.write(f"    FAILED with exit code {code}, see {log}")
            if not args.continue_on_error:
                stop.set()
        return code

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
    if args.devices and not all(part.strip().isdecimal() for part in args.devices.split(",")):
        raise utils.UserError(f"--devices {args.devices}: give numbers with commas, as in 0,1")
    name, cells = make_cells(args.suite, args)
    store.check_results_file(args.results)
    planned = plan(cells, args)
    for cell, status, wanted in planned:
        print(f"{'run ' if wanted else 'skip'}  {cell.name}{f' ({status})' if status else ''}: {cell.command}")
    todo = [cell for cell, _, wanted in planned if wanted]
    ended = [status for _, status, wanted in planned if not wanted]
    told = ", ".join(f"{ended.count(status)} {status}" for status in sorted(set(ended)))
    print(f"{name}: {len(todo)} of {len(cells)} to run" + (f"; there already: {told}" if told else ""))
    rows = (
        store.read_results(args.results) if Path(args.results).is_file() and Path(args.results).stat().st_size else []
    )
    old = (
        0
        if args.ignore_code
        else sum(status_of(cell, rows, ignore_code=True) is not None for cell, status, _ in planned if status is None)
    )
    if old:
        print(f"{name}: {old} of them have rows that other code made; --ignore_code takes those")
    if args.dry_run or not todo:
        return
    failed = run_all(name, todo, args)
    print(f"{name}: {len(failed)} of {len(todo)} failed; rows in {args.results}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
