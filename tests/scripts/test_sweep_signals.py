import errno
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from helpers import ROOT
from sweep_helpers import suite

import sweep
from harness import processes


def interrupted(tmp_path, number, *flags, again=False):
    """(exit code, what a sweep said, its children that live, cells started) of a sweep that alone gets a signal.

    Its cells sleep, start a child that does, too, and ignore SIGTERM.
    """
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text(
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "own = subprocess.Popen(['sleep', '60'])\n"
        f"open(f'{tmp_path}/{{own.pid}}-{{os.getpid()}}.pids', 'w').close()\n"
        "time.sleep(60)\n"
    )
    path = suite(tmp_path / "s.yaml", "script: finetune.py\ngrid: {seed: [0, 1, 2]}\n")
    starter = tmp_path / "start.py"
    starter.write_text(
        "import sys, sweep\nfrom pathlib import Path\nfrom harness import processes\n"
        "run = processes.Children.run\n"
        f"command = [sys.executable, '{sleeper}']\n"
        "processes.Children.run = lambda self, _, **options: run(self, command, **options)\n"
        "sweep.main()\n"
    )
    out = ["--results", str(tmp_path / "r.csv"), "--runs_dir", str(tmp_path / "runs")]
    child = subprocess.Popen(
        [sys.executable, str(starter), path, *out, *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline, n_workers = time.monotonic() + 60, 2 if "--workers" in flags else 1
    while len(list(tmp_path.glob("*.pids"))) < n_workers and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(number)
    if again:
        time.sleep(0.2)
        child.send_signal(number)
    said = child.communicate(timeout=30)[1]
    started = list(tmp_path.glob("*.pids"))
    pids = [int(pid) for file in started for pid in file.stem.split("-")]
    alive = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
    return child.returncode, said, alive, len(started)


@pytest.mark.parametrize(
    "number, flags, again",
    [
        (signal.SIGINT, (), False),
        (signal.SIGINT, ("--continue_on_error",), True),
        (signal.SIGTERM, ("--continue_on_error",), False),
        (signal.SIGHUP, ("--workers", "2"), False),
    ],
)
def test_a_signal_to_the_sweep_alone_ends_its_runs_and_starts_no_other(number, flags, again, tmp_path):
    code, said, alive, started = interrupted(tmp_path, number, *flags, again=again)
    assert (code, said, alive) == (128 + number, "sweep.py: interrupted\n", [])
    assert started == (2 if "--workers" in flags else 1)
    assert not (tmp_path / "r.csv").exists()


def test_waiting_for_another_process_can_be_interrupted(tmp_path):
    """The wait for a cell's lock ends with the event, and starts nothing."""
    path = suite(tmp_path / "a.yaml", "script: finetune.py\n")
    args = sweep.parse_args([path, "--results", str(tmp_path / "r.csv"), "--runs_dir", str(tmp_path)])
    (cell,), stop = sweep.make_cells(path, args)[1], threading.Event()
    (tmp_path / "sweeps").mkdir()
    with sweep.claimed(cell, args, stop) as held:
        assert held is not None
        threading.Timer(0.3, stop.set).start()
        with sweep.claimed(cell, args, stop) as lock:
            assert lock is None


def test_an_error_of_the_sweep_itself_starts_no_other_cell(tmp_path, monkeypatch, capsys):
    path = suite(tmp_path / "a.yaml", "script: finetune.py\ngrid: {seed: [0, 1, 2]}\n")
    started = []

    def full(self, command, **options):
        started.append(command)
        raise OSError(errno.ENOSPC, "No space left on device", "a.log")

    monkeypatch.setattr(processes.Children, "run", full)
    with pytest.raises(SystemExit) as ended:
        sweep.main([path, "--results", str(tmp_path / "r.csv"), "--runs_dir", str(tmp_path / "runs")])
    assert ended.value.code == 2 and len(started) == 1
    assert "a.log: no space left on device" in capsys.readouterr().err.splitlines()[-1]
