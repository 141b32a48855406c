import argparse
import csv
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import utils

ROOT = Path(__file__).resolve().parent.parent


def append_many(path, worker, n):
    for i in range(n):
        utils.append_result(path, {"run_id": f"{worker}-{i}", "note": "x" * 3000, "score": i})


def test_eight_processes_append_1600_whole_rows(tmp_path):
    path = tmp_path / "results.csv"
    workers = [multiprocessing.get_context("fork").Process(target=append_many, args=(path, w, 200)) for w in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rows = utils.read_results(path)
    assert {row["run_id"] for row in rows} == {f"{w}-{i}" for w in range(8) for i in range(200)}
    assert len(rows) == 1600 and all(len(row["note"]) == 3000 for row in rows)


def test_a_process_killed_while_appending_leaves_whole_rows(tmp_path):
    """50 kills at spread-out moments; every read in between finds the rows of before, and the next append works."""
    path = tmp_path / "results.csv"
    script = (
        "import sys, utils\nprint('ready', flush=True)\ni = 0\n"
        "while True:\n    utils.append_result(sys.argv[1], {'run_id': f'{sys.argv[2]}-{i}', 'note': 'y' * 200_000})\n    i += 1\n"
    )
    n_before = killed_between = 0
    for attempt in range(50):
        process = subprocess.Popen([sys.executable, "-c", script, str(path), str(attempt)], cwd=ROOT, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.002 + 0.0007 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if path.exists():
            rows = utils.read_results(path)
            assert len(rows) >= n_before and all(len(row["note"]) == 200_000 for row in rows)
            killed_between += len(rows) > n_before
            n_before = len(rows)
        if path.exists() and path.stat().st_size > 20e6:  # keep the file small, so that each kill meets many appends
            path.unlink()
            n_before = 0
    assert killed_between >= 20  # most kills came after the process had begun to append
    utils.append_result(path, {"run_id": "after"})
    assert utils.read_results(path)[-1]["run_id"] == "after"


def test_unknown_is_empty_and_a_row_is_one_line(tmp_path):
    path = tmp_path / "results.csv"
    utils.append_result(path, {"run_id": "a", "score": float("nan"), "n_eval": 0, "git_dirty": False, "note": 'two\nlines, "quoted"'})
    with open(path, newline="") as file:
        header, cells = list(csv.reader(file))
    assert header == utils.RESULT_COLUMNS and len(path.read_text().splitlines()) == 2
    row = dict(zip(header, cells))
    assert (row["score"], row["accuracy"], row["n_eval"], row["git_dirty"]) == ("", "", "0", "False")
    assert row["note"] == 'two lines, "quoted"'


def test_a_drifted_header_is_refused_and_named(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text(",".join([*utils.RESULT_COLUMNS[:-1], "colour"]) + "\n")
    before = path.read_bytes()
    with pytest.raises(utils.UserError, match=r"missing \['run_dir'\], unexpected \['colour'\]"):
        utils.append_result(path, {"run_id": "a"})
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="colour"):
        utils.append_result(tmp_path / "other.csv", {"colour": 1})


@pytest.mark.parametrize(
    "content, message", [(b"", "is empty"), (b"\xff\xfe\x00", "cannot be read"), (b"a,b\n1,2\n", "is not a results CSV")]
)
def test_a_foreign_or_broken_file_is_one_clear_error(tmp_path, content, message):
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(utils.UserError, match=message):
        utils.read_results(path)


def test_a_row_with_a_missing_cell_is_named_by_its_line(tmp_path):
    path = tmp_path / "results.csv"
    utils.append_result(path, {"run_id": "a"})
    with open(path, "a") as file:
        file.write("half,a,row\r\n")
    with pytest.raises(utils.UserError, match="line 3: 3 cells"):
        utils.read_results(path)


def test_a_last_line_without_line_break_is_not_glued(tmp_path):
    path = tmp_path / "results.csv"
    utils.append_result(path, {"run_id": "a"})
    path.write_bytes(path.read_bytes().rstrip(b"\r\n"))
    utils.append_result(path, {"run_id": "b"})
    assert [row["run_id"] for row in utils.read_results(path)] == ["a", "b"]


def test_latency_gives_the_percentiles_of_what_it_timed():
    waits = iter([0, 0, 0.01, 0.02, 0.03, 0.04])  # two warm-up calls, then four
    result = utils.measure_latency(lambda: time.sleep(next(waits)), n_runs=4)
    assert set(result) == {"mean", "p50", "p95", "p99"}
    assert result["mean"] >= 25 and result["p50"] >= 25 and result["p99"] >= result["p95"] >= result["p50"]
    assert utils.latency_summary([1, 2, 3, 4]) == {"mean": 2.5, "p50": 2.5, "p95": np.percentile([1, 2, 3, 4], 95),
                                                   "p99": np.percentile([1, 2, 3, 4], 99)}  # fmt: skip
    with pytest.raises(ValueError, match="n_runs"):
        utils.measure_latency(print, n_runs=0)


def test_measure_latency_passes_its_arguments_on():
    seen = []
    utils.measure_latency(lambda *args, **kwargs: seen.append((args, kwargs)), 1, 2, n_runs=3, word="x")
    assert seen == [((1, 2), {"word": "x"})] * 5  # two of them to warm up


def test_measure_takes_the_peak_inside_the_block():
    """300 MB that come and go before the block do not count, 200 MB that come and go inside it do. In a process of its own."""
    script = ("import time, utils\n"
              "before = bytearray(b'x') * (300 * 2**20)\n"
              "del before\n"
              "with utils.measure() as spent:\n"
              "    inside = bytearray(b'x') * (200 * 2**20)\n"
              "    time.sleep(0.1)\n"
              "    del inside\n"
              "with utils.measure() as quiet:\n"
              "    time.sleep(0.05)\n"
              "print(spent.peak_rss_gb - spent.start_rss_gb, quiet.peak_rss_gb - quiet.start_rss_gb, spent.seconds)\n")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    grown, grown_quiet, seconds = map(float, done.stdout.split())
    assert 0.19 < grown < 0.21 and grown_quiet < 0.01 and 0.1 < seconds < 30


def test_without_cuda_the_gpu_figures_are_unknown():
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert utils.gpu_memory_used() == 0.0
    with utils.measure() as spent:
        pass
    assert spent.peak_gpu_gb is None and spent.gpu_used_gb is None


def run_args(tmp_path):
    return argparse.Namespace(results=str(tmp_path / "results.csv"), runs_dir=str(tmp_path / "runs"), seed=3, batch_size=2)


def raise_in_run(tmp_path, error):
    with utils.Run(run_args(tmp_path), "some_script.py", "prompting") as run:
        run.row.update(model="m", n_eval=7)
        run.path("something")
        raise error


@pytest.mark.parametrize("name", ["torch.OutOfMemoryError", "MemoryError", "cpu allocator"])
def test_out_of_memory_is_a_row_and_a_non_zero_exit(tmp_path, capsys, name):
    import torch

    error = {"torch.OutOfMemoryError": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "MemoryError": MemoryError(),
             "cpu allocator": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")}[name]  # fmt: skip
    with pytest.raises(SystemExit) as exit_:
        raise_in_run(tmp_path, error)
    assert exit_.value.code not in (0, 2, None)
    (row,) = utils.read_results(tmp_path / "results.csv")
    assert (row["status"], row["model"], row["n_eval"], row["seed"]) == ("oom", "m", "7", "3")
    assert type(error).__name__ in row["note"]
    assert capsys.readouterr().err.count("\n") == 1


def test_memory_that_really_runs_out_is_an_oom_row(tmp_path):
    """The process gets a limit of its own, and a matrix that does not fit into it."""
    script = ("import argparse, resource, sys, torch, utils\n"
              "args = argparse.Namespace(results=sys.argv[1] + '/results.csv', runs_dir=sys.argv[1], seed=0, batch_size=1)\n"
              "with utils.Run(args, 'some_script.py', 'prompting') as run:\n"
              "    resource.setrlimit(resource.RLIMIT_DATA, (4 * 2**30, 4 * 2**30))\n"
              "    torch.ones(2**33)\n")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == utils.OOM_EXIT_CODE
    assert [row["status"] for row in utils.read_results(tmp_path / "results.csv")] == ["oom"]


def test_a_bug_keeps_its_traceback_and_leaves_a_failed_row(tmp_path):
    with pytest.raises(ZeroDivisionError):
        raise_in_run(tmp_path, ZeroDivisionError("division by zero"))
    (row,) = utils.read_results(tmp_path / "results.csv")
    assert (row["status"], row["note"]) == ("failed", "ZeroDivisionError: division by zero")


def test_a_user_error_writes_nothing(tmp_path):
    with pytest.raises(utils.UserError):
        raise_in_run(tmp_path, utils.UserError("no"))
    assert not (tmp_path / "results.csv").exists() and not any((tmp_path / "runs").glob("*"))


def test_clean_exit_is_one_line_and_code_2(capsys):
    @utils.clean_exit
    def main(argv=None):
        raise utils.UserError("this is\nnot allowed")

    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "test_utils.py: error: this is not allowed\n"


def test_a_row_has_its_provenance(tmp_path):
    with utils.Run(run_args(tmp_path), "some_script.py", "prompting") as run:
        run.row["score"] = None
    (row,) = utils.read_results(tmp_path / "results.csv")
    assert "torch" in row["versions"] and row["args"].startswith("{") and row["created_at"].endswith("Z")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert row["git_commit"] == commit
    assert os.path.isdir(row["run_dir"])


def test_tokenizer_gets_a_padding_token(tiny_gpt2):
    tokenizer = utils.load_tokenizer(tiny_gpt2)
    assert tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"


def test_a_missing_tokenizer_is_one_clear_error(tmp_path):
    with pytest.raises(utils.UserError, match="no tokenizer can be loaded"):
        utils.load_tokenizer(str(tmp_path))


def test_the_sample_rows_have_this_versions_header():
    rows = utils.read_results(ROOT / "sample_results.csv")
    assert len(rows) >= 10 and all(row["git_commit"] and row["git_dirty"] == "False" for row in rows)
