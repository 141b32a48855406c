import argparse
import errno
import json
import os
import resource
import subprocess
import sys

import pytest
from helpers import ROOT

import utils
from harness.results import store
from harness.results.run import OOM_EXIT_CODE, Run


def run_args(tmp_path):
    return argparse.Namespace(
        results=str(tmp_path / "results.csv"), runs_dir=str(tmp_path / "runs"), seed=3, batch_size=2
    )


def raise_in_run(tmp_path, error):
    with Run(run_args(tmp_path), "some_script.py", "prompting") as run:
        run.row.update(model="m", n_eval=7)
        run.path("something")
        raise error


@pytest.mark.parametrize("name", ["torch.OutOfMemoryError", "MemoryError", "cpu allocator"])
def test_out_of_memory_is_a_row_and_a_non_zero_exit(tmp_path, capsys, name):
    import torch

    error = {
        "torch.OutOfMemoryError": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        "MemoryError": MemoryError(),
        "cpu allocator": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    }[name]
    with pytest.raises(SystemExit) as exit_:
        raise_in_run(tmp_path, error)
    assert exit_.value.code not in (0, 2, None)
    (row,) = store.read_results(tmp_path / "results.csv")
    assert (row["status"], row["model"], row["n_eval"], row["seed"]) == ("oom", "m", "7", "3")
    assert type(error).__name__ in row["note"]
    assert capsys.readouterr().err.count("\n") == 1


def test_no_credentials_of_an_address_are_written_or_printed(tmp_path, capsys):
    args = argparse.Namespace(**vars(run_args(tmp_path)), some_url="http://me:s3cret@host/v1?key=s3cret")
    with pytest.raises(SystemExit), Run(args, "some_script.py", "prompting") as run:
        run.row.update(model="https://s3cret@host/model")
        raise utils.RunFailed("nothing answers at http://me:s3cret@host/v1?key=s3cret")
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 3 and "s3cret" not in "".join([*written, *capsys.readouterr()])
    (row,) = store.read_results(tmp_path / "results.csv")
    assert (row["model"], row["note"]) == ("https://host/model", "nothing answers at http://host/v1")


def test_memory_that_really_runs_out_is_an_oom_row(tmp_path):
    """The process gets a limit of its own, and a matrix that does not fit into it."""
    script = (
        "import argparse, resource, sys, torch\nfrom harness.results.run import Run\n"
        "args = argparse.Namespace(results=sys.argv[1] + '/results.csv', runs_dir=sys.argv[1], seed=0, batch_size=1)\n"
        "with Run(args, 'some_script.py', 'prompting') as run:\n"
        "    resource.setrlimit(resource.RLIMIT_DATA, (4 * 2**30, 4 * 2**30))\n"
        "    torch.ones(2**33)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == OOM_EXIT_CODE
    assert [row["status"] for row in store.read_results(tmp_path / "results.csv")] == ["oom"]


def test_a_bug_keeps_its_traceback_and_leaves_a_failed_row(tmp_path):
    with pytest.raises(ZeroDivisionError):
        raise_in_run(tmp_path, ZeroDivisionError("division by zero"))
    (row,) = store.read_results(tmp_path / "results.csv")
    assert (row["status"], row["note"]) == ("failed", "ZeroDivisionError: division by zero")


def test_a_user_error_writes_nothing(tmp_path):
    with pytest.raises(utils.UserError):
        raise_in_run(tmp_path, utils.UserError("no"))
    assert not (tmp_path / "results.csv").exists() and not any((tmp_path / "runs").glob("*"))


def test_an_error_of_the_system_is_a_row_only_once_the_run_has_written(tmp_path):
    error = PermissionError(errno.EACCES, "Permission denied", "data.csv")
    with pytest.raises(PermissionError), Run(run_args(tmp_path), "some_script.py", "prompting"):
        raise error
    assert not any(tmp_path.iterdir())
    with pytest.raises(PermissionError):
        raise_in_run(tmp_path, error)
    (row,) = store.read_results(tmp_path / "results.csv")
    assert row["status"] == "failed" and "data.csv" in row["note"]


def test_a_row_has_its_provenance(tmp_path):
    with Run(run_args(tmp_path), "some_script.py", "prompting") as run:
        run.row["score"] = None
    (row,) = store.read_results(tmp_path / "results.csv")
    assert "torch" in row["versions"] and row["args"].startswith("{") and row["created_at"].endswith("Z")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert row["git_commit"] == commit
    assert os.path.isdir(row["run_dir"])


@pytest.fixture
def small_disk():
    """No file may have more than 2,000 bytes: a write fails with an OSError, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_row_that_does_not_fit_the_csv_is_in_the_run_folder(tmp_path, monkeypatch):
    store.append_result(tmp_path / "results.csv", {"run_id": "before"})

    def full(path, row):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "_append", full)
    run = Run(run_args(tmp_path), "some_script.py", "prompting")
    with pytest.raises(utils.UserError, match="No space left on device; the row is in .*row.json"), run:
        run.row.update(model="m")
    assert json.loads(run.path("row.json").read_text())["model"] == "m"
    with pytest.raises(ZeroDivisionError):  # a bug stays a bug
        raise_in_run(tmp_path, ZeroDivisionError("division by zero"))
    assert [row["run_id"] for row in store.read_results(tmp_path / "results.csv")] == ["before"]


def test_a_full_disk_of_the_run_folder_does_not_cost_the_row(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = Run(run_args(tmp_path), "some_script.py", "prompting")
    with pytest.raises(utils.UserError, match="the run folder .* cannot be written .*; the row is in"), run:
        monkeypatch.setattr(run, "path", full)
    (row,) = store.read_results(tmp_path / "results.csv")
    assert row["status"] == "ok"


def test_a_file_that_grows_too_large_is_one_line(tmp_path, small_disk):
    with pytest.raises(utils.UserError, match="cannot be written: File too large"):
        store.append_result(tmp_path / "results.csv", {"run_id": "a", "note": "x" * 3000})
    assert os.listdir(tmp_path) == ["results.csv.lock"]


@pytest.mark.parametrize("place", ["file/runs", "file", "x" * 256, "runs/" + "y" * 300])
def test_a_place_where_no_run_folder_can_be_is_said_at_once(place, tmp_path):
    (tmp_path / "file").write_text("x")
    args = argparse.Namespace(**{**vars(run_args(tmp_path)), "runs_dir": str(tmp_path / place)})
    with pytest.raises(utils.UserError, match="--runs_dir .*(is a file; give a folder|more than 255 bytes)"):
        Run(args, "some_script.py", "prompting")


BUSY = """
import argparse, sys, time
from harness.results.run import Run

for slept, busy in ((1.0, 0.5), (0.3, 0.1)):
    with Run(argparse.Namespace(results=sys.argv[1], runs_dir=sys.argv[2], seed=0), "x.py", "prompting"):
        time.sleep(slept)
        begin = time.process_time()
        while time.process_time() - begin < busy:
            pass
"""


def test_a_row_says_what_its_whole_run_took(tmp_path):
    """From the start of the process, then from the row before."""
    argv = [sys.executable, "-c", BUSY, str(tmp_path / "r.csv"), str(tmp_path / "runs")]
    subprocess.run(argv, check=True, cwd=ROOT, capture_output=True)
    first, second = store.read_results(tmp_path / "r.csv")
    for row, slept, busy, most in ((first, 1.0, 0.5, 120), (second, 0.3, 0.1, 1.4)):
        took, computed = float(row["run_seconds"]), float(row["cpu_seconds"])
        assert busy <= computed < took and took - computed >= slept - 0.05 and computed < most, row
    assert float(first["run_seconds"]) > 1.5 and float(second["cpu_seconds"]) < 0.9


@pytest.mark.parametrize("device, kept", [("cpu", False), ("cuda", True)])
def test_a_run_on_the_processor_has_no_memory_of_a_card(tmp_path, device, kept):
    with Run(run_args(tmp_path), "some_script.py", "prompting") as run:
        run.row.update(device=device, peak_gpu_gb=1.5, serving_gpu_gb=0.5)
    (row,) = store.read_results(tmp_path / "results.csv")
    assert (row["peak_gpu_gb"], row["serving_gpu_gb"]) == (("1.5", "0.5") if kept else ("", ""))
