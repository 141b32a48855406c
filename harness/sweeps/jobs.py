"""Cells as jobs of a cluster's queue: submitted by a person's own command, watched through files, found again.

Each cell has a folder under --runs_dir, on storage that the nodes share, with one numbered folder an attempt:

    job.sh         what is submitted as {command}; the first to make `claim` runs, a second submission ends at once
    submitted      what the launcher printed
    alive          touched every BEAT seconds while the job runs
    log, results.csv, exit_code    what the cell printed, its own row, how it ended

So a sweep that was killed finds its jobs again, whether they wait, run or have ended, and submits none twice.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from tqdm import tqdm

import utils
from harness.errors import short
from harness.results import store

ROOT = Path(__file__).resolve().parents[2]

BEAT = 15  # seconds between two signs of a running job
SILENT = 180  # seconds without a sign after which a job counts as lost: a node that died, a job that was killed
POLL = 1.0  # seconds between two looks
QUEUE_POLL = 30.0  # seconds between two questions to the queue about a job that waits
JOB_ID = {"sbatch": r"Submitted batch job (\d+)", "ray": r"(raysubmit_\w+)"}  # in what a launcher prints
ENDED = re.compile(r"STOPPED|FAILED|SUCCEEDED|does not exist")  # of ray job status

JOB = """#!/bin/sh
# {name}
cd {cwd} || exit 1
if mkdir {folder}/claim 2>/dev/null; then
    echo "$SLURM_JOB_ID" >{folder}/claim/job
elif [ -z "$SLURM_JOB_ID" ] || [ "$(cat {folder}/claim/job)" != "$SLURM_JOB_ID" ]; then
    exit 0  # submitted twice: the other one runs. The same job again was requeued, and begins anew
fi
touch {folder}/alive
(while kill -0 $$ 2>/dev/null; do touch {folder}/alive; sleep {beat}; done) </dev/null >/dev/null 2>&1 &
{command} >{folder}/log 2>&1
code=$?
echo $code >{folder}/exit_code.new && mv {folder}/exit_code.new {folder}/exit_code
exit $code
"""


def check_launcher(launcher):
    """Words of --launcher. UserError for one that cannot be read or does not say where the command goes."""
    try:
        words = shlex.split(launcher)
    except ValueError as error:
        raise utils.UserError(f"--launcher: {error}") from None
    if not words or shutil.which(words[0]) is None:
        raise utils.UserError(f"--launcher: there is no command {short(launcher.split(' ')[0])} here")
    if sum("{command}" in word for word in words) != 1:
        raise utils.UserError(
            "--launcher: put {command} once where the command goes, as in 'sbatch --wrap \"{command}\"'"
        )
    return words


def asked_of(command):
    """(exit code, what it printed) of a command of the queue."""
    found = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return found.returncode, found.stdout + found.stderr


def slurm_jobs(asked={}, lock=threading.Lock()):  # noqa: B006, B008 -- one answer for all cells
    """The ids of one's own jobs that Slurm knows, asked once in QUEUE_POLL seconds; None where it does not answer."""
    with lock:
        if time.monotonic() - asked.get("at", -QUEUE_POLL) >= QUEUE_POLL:
            code, said = asked_of(["squeue", "--noheader", "--me", "--format", "%A"])
            asked.update(at=time.monotonic(), ids=None if code else set(said.split()))
        return asked["ids"]


class Job:
    """The latest attempt of one cell. folder: of the cell."""

    def __init__(self, folder):
        self.cell, numbers = Path(folder), []
        if self.cell.is_dir():
            numbers = sorted(int(path.name) for path in self.cell.iterdir() if path.name.isdecimal())
        self.number = numbers[-1] if numbers else 0

    @property
    def folder(self):
        return self.cell / str(self.number)

    @property
    def log(self):
        return self.folder / "log"

    def exit_code(self):
        """How the job ended, None while it has not."""
        try:
            return int((self.folder / "exit_code").read_text())
        except (OSError, ValueError):
            return None

    def begun(self):
        return (self.folder / "claim").is_dir()

    def silent(self):
        """Seconds since the last sign of a job that has begun, by the clock of the storage."""
        now = self.folder / "now"
        now.touch()
        alive = self.folder / "alive"
        return now.stat().st_mtime - (alive if alive.exists() else self.folder / "claim").stat().st_mtime

    def lost(self, launcher, asked):
        """Why the job will not end any more, None while it may. asked: whether the queue may be asked now."""
        if self.begun():
            silent = self.silent()
            if silent < SILENT or self.known_to_queue(launcher) or self.exit_code() is not None:
                return None  # one that the queue knows was suspended, or waits to be run again
            return f"no sign of it for {silent:.0f} s"
        if asked and self.known_to_queue(launcher) is False and not self.begun():
            return "the queue does not know it any more, and it never began"
        return None

    def known_to_queue(self, launcher):
        """Whether the queue knows the submitted job; None where that cannot be asked."""
        queue = Path(launcher[0]).name
        job = re.search(JOB_ID[queue], self._submitted()) if queue in JOB_ID else None
        if job is None:
            return None
        if queue == "sbatch":
            waiting = slurm_jobs()
            return None if waiting is None else job[1] in waiting
        code, said = asked_of(["ray", "job", "status", job[1]])
        return False if ENDED.search(said) else None if code else True

    def _submitted(self):
        try:
            return (self.folder / "submitted").read_text()
        except OSError:
            return ""

    def submit(self, name, argv, launcher, children):
        """Submit the cell, as a new attempt or again where it is not known whether the last submission was received.

        A launcher that waits for the job's end is waited for. Returns None, or how the launcher failed.
        """
        if self.number == 0 or self.begun() or self._submitted():
            self.number += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)  # the command may hold a password
        folder, script = self.folder.absolute(), self.folder.absolute() / "job.sh"
        parts = {"name": " ".join(name.split()), "cwd": shlex.quote(os.getcwd()), "folder": shlex.quote(str(folder))}
        command = shlex.join([sys.executable, *argv, "--results", str(folder / "results.csv")])
        script.write_text(JOB.format(command=command, beat=BEAT, **parts))
        script.chmod(0o700)
        words = [word.replace("{command}", shlex.quote(str(script))) for word in launcher]
        with open(self.folder / "submitted", "w") as said:
            code = children.run(words, stdout=said, stderr=subprocess.STDOUT)
        if code and not self.begun():
            said = " ".join(self._submitted().split())[-300:]
            os.replace(self.folder / "submitted", self.folder / "refused")  # the next sweep submits it again
            return f"--launcher ended with exit code {code}: {said}"
        return None

    def wait(self, launcher, stop):
        """The job's exit code; -1 for a job that was lost, with the reason in `why`; None where `stop` was set."""
        self.why, asked = "", time.monotonic()
        while (code := self.exit_code()) is None:
            ask = time.monotonic() - asked > QUEUE_POLL
            asked = time.monotonic() if ask else asked
            self.why = self.lost(launcher, ask)
            if self.why:
                return -1
            if stop.wait(POLL):
                return None
        return code

    def collect(self, results, lock=threading.Lock()):  # noqa: B008 -- one for all threads
        """Append the rows of all attempts that `results` does not have yet."""
        files = sorted(self.cell.glob("*/results.csv"), key=lambda file: int(file.parent.name))
        with lock:
            store.merge(files, results)


def run(folder, cell, args, stop, children):
    """Submit a cell, or find its job that waits or runs, and wait for its end: (exit code or None, log).

    None: the sweep was stopped, and the job goes on.
    """
    job, launcher = Job(folder), args.launcher
    waits = job.number and job.exit_code() is None and not job.lost(launcher, asked=True)
    if waits and (job.begun() or job._submitted()):
        tqdm.write(f"    {cell.name}: its job of an earlier sweep is watched")
    else:
        failed = job.submit(cell.name, [str(ROOT / cell.script), *cell.argv], launcher, children)
        if failed and not stop.is_set():
            tqdm.write(f"    {failed}")
            return 1, None
    code = job.wait(launcher, stop)
    if code is None and job.begun():
        tqdm.write(f"    {cell.name}: its job goes on; the same command finds it again")
    if code == -1:
        tqdm.write(f"    {cell.name}: the job is lost, {job.why}; see {job.folder}")
    job.collect(args.results)
    return code, job.log if job.log.exists() else None
