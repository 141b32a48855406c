"""Runs a suite of experiments, one command a cell, and resumes where it stopped.

A suite is a YAML file that names a script, its fixed flags, and a grid or a list of variants; `suites/` has some.
Every command is printed before it runs. A cell is skipped if the results CSV has a row of the same identity: script,
all flags, the contents of the local files that they name, the code of the script and of what it imports. A cell that
failed is run again with --retry.

    # every strategy on one's own data
    python sweep.py suites/compare.yaml --dataset mine.csv --set label_budget=500 text_column=body
    python sweep.py suites/demo.yaml --dry_run
    python sweep.py suites/rank.yaml --results rank.csv
    # as jobs of a cluster's queue, all at once; --runs_dir on storage that the nodes share
    python sweep.py suites/rank.yaml --continue_on_error \\
        --launcher 'sbatch --gpus 1 --output /dev/null --wrap "{command}"'
    # on two GPUs, two at a time
    python sweep.py suites/rank.yaml --workers 2 --devices 0,1 --continue_on_error

    suite_name: rank
    script: peft_finetune.py
    flags: {dataset: assets/data/movie_reviews, max_train_samples: 1000}
    grid: {rank: [4, 8, 16], data_seed: [0, 1, 2]}  # every combination
    experiments: [{name: small, alpha: 8}, ...]     # or a list of variants
    # a suite of several scripts has `runs`, a list of such blocks. `parameters: {budget: 500}` stand in it as $budget;
    # --set changes them. A block with `needs: [classification]` runs only on such data
"""

import concurrent.futures
import contextlib
import fcntl
import hashlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import utils
from harness import flags, hub, suites
from harness.errors import short, stop_on_signals
from harness.results import store

ROOT = Path(__file__).resolve().parent
SHORTCUTS = ("dataset", "model", "embed_model")  # of --set
LOCK_SECONDS = 0.2  # between two looks at a cell that another process runs


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    add = parser.add_argument
    add("suite", help="the YAML file")
    change = "change the suite's parameter of that name, else the flag of every script that has it"
    add("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help=change)
    for name in SHORTCUTS:
        add(f"--{name}", help=f"short for --set {name}=..")
    add("--dry_run", action="store_true", help="print the commands and which would be skipped; run nothing")
    statuses = ("failed", "oom", "degenerate")
    add("--retry", nargs="+", choices=statuses, default=[], help="run cells again whose row has one of these statuses")
    add("--ignore_code", action="store_true", help="count a row as done even if the code has changed since")
    add("--continue_on_error", action="store_true", help="go on after a cell that failed")
    add("--race", action="store_true", help="drop configurations that are behind before they are run as a whole")
    add("--keep_losers", action="store_true", help="--race only says what it would drop, and runs everything")
    add("--latency_ms", type=flags.positive, help="--race drops what takes more for one answer (median)")
    add("--memory_gb", type=flags.positive, help="--race drops what takes more at its peak")
    time = "--race drops also what there is no time to run whole, and says what that risks"
    add("--minutes", type=flags.positive, help=time)
    workers = "cells that run at the same time; on one device they slow each other down (default: 1; all in a queue)"
    add("--workers", type=flags.small_count, help=workers)
    launcher = "submit each cell to a queue with this command, as in 'sbatch --gpus 1 --wrap \"{command}\"'"
    add("--launcher", metavar="COMMAND", help=launcher)
    add("--devices", help="CUDA devices that the workers take in turn, as in 0,1")
    add("--results", default="results.csv", help="the CSV that gets the rows (default: %(default)s)")
    add("--runs_dir", default="runs", help="where the run folders are made (default: %(default)s)")
    args = parser.parse_args(argv)
    args.changes = changes_of(parser, args)
    if (args.latency_ms or args.memory_gb or args.keep_losers or args.minutes) and not args.race:
        parser.error("--latency_ms, --memory_gb, --minutes and --keep_losers belong to --race")
    if args.keep_losers and args.minutes:
        parser.error("--keep_losers runs everything, whatever time it takes; leave out --minutes")
    if not args.launcher:
        args.workers = args.workers or 1
    if args.devices and args.launcher:
        parser.error("--devices are for runs on this machine; a queue gives its jobs their own")
    if args.devices and not all(part.strip().isdecimal() for part in args.devices.split(",")):
        parser.error(f"--devices {args.devices}: give numbers separated by commas, as in 0,1")
    return args


def changes_of(parser, args):
    """{name: value} of --set and its shortcuts."""
    changes = {}
    for text in [*args.set, *(f"{name}={getattr(args, name)}" for name in SHORTCUTS if getattr(args, name))]:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier()):
            parser.error(f"--set {short(text)}: give NAME=VALUE, as in label_budget=500")
        if name in ("results", "runs_dir"):
            parser.error(f"--set {name}: give --{name} itself")
        if name in changes:
            parser.error(f"--set: {name} is given twice")
        changes[name] = suites.value_of(value)
    return changes


def import_heavy():
    """What needs scipy, after the arguments were checked."""
    global DoneRuns, Race, TimeLeft, identity, jobs, make_cells, processes, tqdm
    from tqdm import tqdm

    from harness import processes
    from harness.results.done_runs import DoneRuns, identity
    from harness.sweeps import jobs
    from harness.sweeps.cells import make_cells
    from harness.sweeps.progress import TimeLeft
    from harness.sweeps.race import Race


# --------------------------------------------------------------------------------------------------------- what is done


def plan(cells, args, done):
    """[(cell, status of its row or None, whether it will run)]. done: DoneRuns of the results CSV."""
    statuses = [(cell, done.status(cell.script, cell.args, args.ignore_code)) for cell in cells]
    return [(cell, status, status is None or status in args.retry) for cell, status in statuses]


# -------------------------------------------------------------------------------------------------------------- running


def key_of(cell, args):
    """A name for one cell of one CSV."""
    return hashlib.sha256(
        os.fsencode(f"{os.path.realpath(args.results)} {identity(cell.script, cell.args)}")
    ).hexdigest()[:16]


@contextlib.contextmanager
def claimed(cell, args, stop):
    """A lock on one cell of one CSV. The run inherits it: one that outlives its sweep is waited for, not repeated.

    stop: an Event that ends the waiting; then the lock's file descriptor is None.
    """
    with open(Path(args.runs_dir) / "sweeps" / f"{key_of(cell, args)}.lock", "w") as file:
        said = False
        while not stop.is_set():
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not said:
                    tqdm.write(f"    {cell.name}: another process runs it already, waiting for its end")
                said = True
                stop.wait(LOCK_SECONDS)
            else:
                yield file.fileno()
                return
        yield None


def run_cell(cell, log, children, device=None, lock=None):
    """Run a command, its output into a log file; returns its exit code. lock: a file descriptor that it keeps open."""
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": device} if device is not None else {})}
    command, keep = [sys.executable, ROOT / cell.script, *cell.argv], (lock,) if lock else ()
    with open(log, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"$ {cell.command}\n")
        file.flush()
        return children.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, pass_fds=keep)


def run_all(name, cells, args, clock):
    """Run the cells, --workers at a time; returns those that failed. An interrupt ends the runs and starts no other.

    clock: the TimeLeft of the rows that are there.
    """
    logs = Path(args.runs_dir) / "sweeps"
    logs.mkdir(parents=True, exist_ok=True)
    devices, failed, ended, stop, children = queue.Queue(), [], [], threading.Event(), processes.Children()
    names = args.devices.split(",") if args.devices else [None]
    for i in range(args.workers):
        devices.put(names[i % len(names)])

    def work(number, cell):
        if stop.is_set():
            return
        device = devices.get()
        log = logs / f"{name}-{number:03d}-{key_of(cell, args)[:6]}.log"  # others may have the same folder and suite
        try:
            with claimed(cell, args, stop) as lock:
                if lock is None:
                    return
                if args.launcher:  # what ended while no sweep watched
                    jobs.Job(logs / "jobs" / key_of(cell, args)).collect(args.results)
                _, _, wanted = plan([cell], args, DoneRuns(store.read_if_there(args.results)))[0]
                if wanted:
                    tqdm.write(cell.command)
                    started = time.monotonic()
                    if args.launcher:
                        code, log = jobs.run(logs / "jobs" / key_of(cell, args), cell, args, stop, children)
                    else:
                        code = run_cell(cell, log, children, device, lock)
        except BaseException:  # before the next cell can start
            stop.set()
            raise
        finally:
            devices.put(device)
        if not wanted:
            tqdm.write(f"    {cell.name}: meanwhile done by another process")
            ended.append(cell)
            return
        if children.ended.is_set() or code is None:
            return
        said = log.read_text(encoding="utf-8", errors="replace") if log else ""
        last = [line for line in said.splitlines() if line.strip()][-2:]
        tqdm.write("\n".join(f"    {line[-300:]}" for line in last))
        ended.append(cell)
        if code:
            failed.append(cell)
            killed = " (killed, as when the machine has no memory left)" if code in (-signal.SIGKILL, 137) else ""
            tqdm.write(f"    FAILED with exit code {code}{killed}, see {log}")
            if not args.continue_on_error:
                stop.set()
        else:
            clock.add(cell.script, cell.args, time.monotonic() - started)
        rest = [(other.script, other.args) for other in cells if other not in ended]
        left = clock.left(rest, args.workers)
        if rest and left and not stop.is_set():
            tqdm.write(f"    {len(ended)} of {len(cells)} done, {left}")

    with (
        stop_on_signals(signal.SIGTERM, signal.SIGHUP),
        concurrent.futures.ThreadPoolExecutor(args.workers) as pool,
        tqdm(total=len(cells), desc=name, unit="run", disable=None) as bar,
    ):
        waiting = [pool.submit(work, number, cell) for number, cell in enumerate(cells)]
        try:
            for done in concurrent.futures.as_completed(waiting):
                done.result()
                bar.update()
        except BaseException as error:  # an interrupt too
            stop.set()  # no other cell is started
            if isinstance(error, KeyboardInterrupt):
                children.end()
            raise
    return failed


def race(name, cells, args, clock):
    """Run the cells as a race, in which one that fails is dropped; exit code 1 if one did."""
    failed, args.continue_on_error = [], True

    def run(what, some, its_args):
        planned = plan(some, its_args, DoneRuns(store.read_if_there(its_args.results)))
        todo = [cell for cell, _, wanted in planned if wanted]
        failed.extend(run_all(f"{name}_{what}", todo, its_args, clock if what.startswith("whole") else TimeLeft()))

    Race(cells, args, run).run()
    print(f"{name}: {len(failed)} runs failed; rows in {args.results}")
    if failed:
        raise SystemExit(1)


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    import_heavy()
    name, cells = make_cells(args.suite, args)
    store.check_results_file(args.results)
    if args.launcher:
        args.workers = args.workers or len(cells)
        args.launcher = jobs.check_launcher(args.launcher)
        for cell in () if args.dry_run else cells:  # so that the plan below counts them as done
            jobs.Job(Path(args.runs_dir) / "sweeps" / "jobs" / key_of(cell, args)).collect(args.results)
    rows = store.read_if_there(args.results)
    done = DoneRuns(rows)
    planned = plan(cells, args, done)
    for cell, status, wanted in planned:
        print(f"{'run ' if wanted else 'skip'}  {cell.name}{f' ({status})' if status else ''}: {cell.command}")
    todo = [cell for cell, _, wanted in planned if wanted]
    ended = [status for _, status, wanted in planned if not wanted]
    counts = ", ".join(f"{ended.count(status)} {status}" for status in sorted(set(ended)))
    print(f"{name}: {len(todo)} of {len(cells)} to run" + (f"; there already: {counts}" if counts else ""))
    if not args.ignore_code:
        new = [cell for cell, status, _ in planned if status is None]
        old = sum(done.status(cell.script, cell.args, ignore_code=True) is not None for cell in new)
        if old:
            print(f"{name}: {old} of them have rows from other code; --ignore_code counts those as done")
    if args.dry_run or not todo:
        return
    for flag in hub.MODELS:  # a name that is none is told before the first run, not at the one that needs it
        named = [cell.args.get(flag) for cell in todo]  # several of chat_eval.py
        for model in dict.fromkeys(one for some in named for one in (some if isinstance(some, list) else [some])):
            hub.check_names({f"--{flag}": model})
    for dataset in dict.fromkeys(cell.args.get("dataset") for cell in todo):
        hub.check_names({}, {"--dataset": dataset})
    clock = TimeLeft(row for row in rows if row["status"] in ("ok", "degenerate"))
    if args.race:
        return race(name, [cell for cell, *_ in planned], args, clock)
    failed = run_all(name, todo, args, clock)
    again = "; --retry failed oom runs those again that have a row" if failed else ""
    print(f"{name}: {len(failed)} of {len(todo)} failed{again}; rows in {args.results}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
