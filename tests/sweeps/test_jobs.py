"""Cells as jobs of a queue: a real Slurm of one node where its programs are installed, and a shell that runs jobs in
the background everywhere."""

import collections
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from helpers import ROOT
from sweep_helpers import suite

import plot_results
import sweep
import utils
from harness import processes
from harness.results import store
from harness.sweeps import jobs, progress

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=1
ReturnToService=2
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm():
    """SLURM_CONF of a controller and a node on this machine."""
    if os.geteuid() or not all(map(shutil.which, ("munged", "slurmctld", "slurmd", "sbatch"))):
        pytest.skip("needs root and Debian's slurm-wlm and munge")
    folder, ports = Path(tempfile.mkdtemp(prefix="slurm")), []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    host = socket.gethostname().split(".")[0]
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    (folder / "slurm.conf").write_text(CONFIG.format(host=host, folder=folder, ports=ports))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge = [f"--{option}={folder}/munge.{suffix}" for option, suffix in files.items()]
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    for command in (["munged", *munge, "--force"], ["slurmctld"], ["slurmd", "-N", host]):
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
    for _ in range(100):
        if " idle " in subprocess.run(["sinfo"], env=environment, capture_output=True, text=True).stdout:
            break
        time.sleep(0.2)
    yield environment
    subprocess.run(["scancel", "--user", "root"], env=environment)
    for name in ("slurmd", "slurmctld", "munge"):
        os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGTERM)
    shutil.rmtree(folder, ignore_errors=True)


SBATCH = 'sbatch --output /dev/null --wrap "{command}"'
BACKGROUND = "sh -c '{command} >/dev/null 2>&1 & echo started $!'"
GRID = """script: probe.py
flags: {{features: tfidf, dataset: {data}, max_eval_samples: 20}}
grid: {{data_seed: {seeds}}}
"""


@pytest.fixture
def sweeping(tmp_path, sentiment):
    """Starts a sweep of probe.py over so many seeds in a process of its own."""

    def start(n, launcher, environment=None):
        path = suite(tmp_path / "s.yaml", GRID.format(data=sentiment, seeds=list(range(n))))
        out = ["--results", str(tmp_path / "r.csv"), "--runs_dir", str(tmp_path / "runs")]
        return subprocess.Popen(
            [sys.executable, ROOT / "sweep.py", path, "--launcher", launcher, *out],
            cwd=ROOT,
            env=environment or os.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def seeds_of(path):
    return collections.Counter(int(row["data_seed"]) for row in store.read_results(path))


def attempts(tmp_path):
    return list((tmp_path / "runs/sweeps/jobs").glob("*/*/"))


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_sweep_in_slurm_that_is_killed_and_started_again_doubles_no_row(slurm, sweeping, tmp_path):
    first = sweeping(3, SBATCH, slurm)
    wait_for(lambda: (tmp_path / "r.csv").is_file())
    first.kill()
    first.wait()
    assert len(store.read_results(tmp_path / "r.csv")) < 3
    said, _ = sweeping(3, SBATCH, slurm).communicate(timeout=300)
    assert "0 of" in said and "its job of an earlier sweep is watched" in said
    assert seeds_of(tmp_path / "r.csv") == {0: 1, 1: 1, 2: 1} and len(attempts(tmp_path)) == 3


def test_a_job_that_slurm_forgot_is_lost(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    held = jobs.check_launcher('sbatch --hold --output /dev/null --wrap "{command}"')
    job = jobs.Job(tmp_path / "cell")
    assert job.submit("a cell", ["-c", "pass"], held, processes.Children()) is None
    assert job.known_to_queue(held) is True and job.lost(held, asked=True) is None
    subprocess.run(["scancel", job._submitted().split()[-1]], check=True)
    monkeypatch.setattr(jobs, "QUEUE_POLL", 0)
    wait_for(lambda: job.known_to_queue(held) is False)
    assert "never began" in job.lost(held, asked=True)
    again = jobs.Job(tmp_path / "cell")
    again.submit("a cell", ["-c", "pass"], held, processes.Children())
    assert again.number == 2
    subprocess.run(["scancel", "--user", "root"], check=True)


def test_rows_of_jobs_that_ended_while_no_sweep_watched_are_collected(sweeping, tmp_path, capsys):
    first = sweeping(2, BACKGROUND)
    wait_for(lambda: len(list(tmp_path.glob("runs/sweeps/jobs/*/1/claim"))) == 2)
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate(timeout=30)
    assert "goes on; the same command finds it again" in said
    wait_for(lambda: len(list(tmp_path.glob("runs/sweeps/jobs/*/1/exit_code"))) == 2)
    files = [str(file) for file in tmp_path.glob("runs/sweeps/jobs/*/*/results.csv")]
    plot_results.main(["--merge", *files, "--results", str(tmp_path / "all.csv")])
    assert "2 rows added" in capsys.readouterr().out
    said, _ = sweeping(2, BACKGROUND).communicate(timeout=300)
    assert "0 of 2 to run" in said and seeds_of(tmp_path / "r.csv") == {0: 1, 1: 1} == seeds_of(tmp_path / "all.csv")
    (tmp_path / "r.csv").unlink()  # as a race runs its rungs, whose rows nothing has collected before
    out = ["--launcher", BACKGROUND, "--results", str(tmp_path / "r.csv"), "--runs_dir", str(tmp_path / "runs")]
    args = sweep.parse_args([str(tmp_path / "s.yaml"), *out])
    args.workers, args.launcher = 2, jobs.check_launcher(args.launcher)
    assert not sweep.run_all("rung", sweep.make_cells(args.suite, args)[1], args, progress.TimeLeft([]))
    assert seeds_of(tmp_path / "r.csv") == {0: 1, 1: 1} and len(attempts(tmp_path)) == 2


def test_ids_are_read_from_what_queues_print(tmp_path, monkeypatch):
    """Ray tells its address before the job's name; sites put banners around Slurm's line."""
    asked = []
    monkeypatch.setattr(jobs, "asked_of", lambda command: asked.append(command) or (0, "Status: PENDING"))
    monkeypatch.setattr(jobs, "slurm_jobs", lambda: {"77"})
    job, _ = submitted(tmp_path / "cell", "pass")
    ray = "Job submission server address: http://127.0.0.1:8265\nJob 'raysubmit_a1B2' submitted successfully\n"
    (job.folder / "submitted").write_text(ray)
    assert job.known_to_queue(["/usr/bin/ray", "job", "submit"]) is True
    assert asked == [["ray", "job", "status", "raysubmit_a1B2"]]
    for known, line in ((True, "Submitted batch job 77"), (False, "Submitted batch job 7")):
        (job.folder / "submitted").write_text(f"2 maintenance days in 2027\n{line}\n")
        assert job.known_to_queue(["sbatch"]) is known
    (job.folder / "submitted").write_text("12 jobs may run")
    assert job.known_to_queue(["sbatch"]) is None and job.known_to_queue(["sh"]) is None


def test_a_job_that_the_queue_runs_again_begins_anew(tmp_path):
    job, _ = submitted(tmp_path / "cell", f"open(r'{tmp_path}/ran', 'a').write('x')", "sh -c 'true {command}'")
    for number in ("5", "5", "6"):  # requeued after preemption; then another job of the same attempt
        subprocess.run([job.folder / "job.sh"], env={**os.environ, "SLURM_JOB_ID": number})
    assert (tmp_path / "ran").read_text() == "xx"


def submitted(folder, code, launcher=BACKGROUND):
    job = jobs.Job(folder)
    failed = job.submit("a cell", ["-c", code], jobs.check_launcher(launcher), processes.Children())
    return job, failed


def test_a_second_submission_of_one_attempt_does_nothing(tmp_path):
    code = f"open(r'{tmp_path}/ran', 'a').write('x')"
    job, _ = submitted(tmp_path / "cell", code)
    assert job.wait(["sh"], threading.Event()) == 0
    subprocess.run([job.folder / "job.sh"], check=True)
    assert (tmp_path / "ran").read_text() == "x"


def test_what_was_submitted_or_not_is_submitted_again_into_the_same_attempt(tmp_path):
    """A sweep that was killed between the queue's yes and its note of it: the claim keeps the job single."""
    first, _ = submitted(tmp_path / "cell", "import time; time.sleep(1)")
    (first.folder / "submitted").write_text("")
    wait_for(first.begun)
    shutil.rmtree(first.folder / "claim")  # as if it still waited in the queue
    again, _ = submitted(tmp_path / "cell", "pass")
    assert again.number == 1


def test_a_failed_cell_has_its_exit_code_and_its_log(tmp_path):
    job, failed = submitted(tmp_path / "a folder", "print('words'); raise SystemExit(3)")
    assert failed is None and job.wait(["sh"], threading.Event()) == 3 and job.log.read_text() == "words\n"


def test_a_launcher_that_fails_says_why(tmp_path):
    _, failed = submitted(tmp_path / "cell", "pass", "sh -c 'echo no such partition; exit 4' {command}")
    assert "exit code 4" in failed and "no such partition" in failed
    again, failed = submitted(tmp_path / "cell", "pass")  # nothing is waited for that was never accepted
    assert failed is None and again.wait(["sh"], threading.Event()) == 0


def test_a_job_without_a_sign_of_life_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "SILENT", 1)
    monkeypatch.setattr(jobs, "BEAT", 0.3)
    job, _ = submitted(tmp_path / "cell", "import time; time.sleep(30)")
    wait_for(job.begun)
    time.sleep(1.5)
    assert job.lost(["sh"], asked=True) is None  # it beats
    pids = subprocess.run(["pgrep", "-f", str(job.folder)], capture_output=True, text=True).stdout.split()
    for pid in pids:  # the node dies
        os.kill(int(pid), signal.SIGKILL)
    assert job.wait(["sh"], threading.Event()) == -1 and "no sign of it" in job.why
    again, _ = submitted(tmp_path / "cell", "pass")
    assert again.number == 2 and again.wait(["sh"], threading.Event()) == 0


@pytest.mark.parametrize(
    "launcher, words",
    [
        ("sbatch --wrap", "put {command} once"),
        ("no_such_queue {command}", "there is no command no_such_queue"),
        ("sh '{command}", "--launcher"),
    ],
)
def test_launchers_that_cannot_be(launcher, words, monkeypatch):
    monkeypatch.setattr(jobs.shutil, "which", lambda name: None if name == "no_such_queue" else name)
    with pytest.raises(utils.UserError, match=shlex.quote(words).strip("'") if "{" not in words else "put"):
        jobs.check_launcher(launcher)


def test_devices_are_for_this_machine(capsys):
    with pytest.raises(SystemExit):
        sweep.parse_args(["suites/demo.yaml", "--launcher", "sh {command}", "--devices", "0"])
    assert "--devices are for runs on this machine" in capsys.readouterr().err
