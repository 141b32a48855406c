import errno
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT

import utils
from harness import errors


def ended(error):
    """The exit code of a script whose main raises the error."""

    @utils.clean_exit
    def main(argv=None):
        raise error

    with pytest.raises(SystemExit) as exit_:
        main()
    return exit_.value.code


def caused(error, by):
    """`raise error from by`, as an exception."""
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    "error, message",
    [
        (PermissionError(errno.EACCES, "x", "secret.csv"), "secret.csv: permission denied; check its permissions"),
        (IsADirectoryError(errno.EISDIR, "x", "data"), "data: is a directory; name a file"),
        (OSError(errno.ENAMETOOLONG, "x", "n" * 300), "file name too long; names have at most 255 bytes"),
        (OSError(errno.ENOSPC, "x"), "error: no space left on device; free space"),
        (OSError(errno.EROFS, "x", b"runs"), "runs: read-only file system"),
        (NotADirectoryError(errno.ENOTDIR, "x", "a.csv/b"), "a.csv/b: not a directory; a part of this path is a file"),
        (RuntimeError("Could not determine home directory."), "a user who has no home here"),
        (UnicodeEncodeError("utf-8", "a\ud83db", 1, 2, "surrogates not allowed"), r"'\ud83d', half of a character"),
        (ValueError("embedded null byte"), "NUL"),
        (RuntimeError("Error in index.faiss: No space left on device"), "no space left on device"),
        (RuntimeError("I/O error: it is so (os error 13)"), "permission denied"),
        (caused(KeyError("x"), PermissionError(errno.EACCES, "x", "cache")), "cache: permission denied"),
    ],
)
def test_an_error_of_the_system_is_one_line_and_code_2(error, message, capsys):
    assert ended(error) == 2
    said = capsys.readouterr().err
    assert said.startswith("test_errors.py: error: ") and message in said and said.count("\n") == 1


def test_a_full_memory_is_code_3(capsys):
    assert ended(MemoryError("Unable to allocate 9 TiB")) == errors.OOM_EXIT_CODE
    assert capsys.readouterr().err == "test_errors.py: error: out of memory: Unable to allocate 9 TiB\n"


@pytest.mark.parametrize(
    "bug",
    [
        ValueError("3 is no label"),
        KeyError("text"),
        RuntimeError("shapes do not match"),
        OSError("no errno"),
        FileNotFoundError(errno.ENOENT, "no name"),
        BrokenPipeError(errno.EPIPE, "of a child"),
        UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range(128)"),
        RecursionError("maximum recursion depth exceeded"),
    ],
)
def test_a_bug_keeps_its_traceback(bug):
    @utils.clean_exit
    def main(argv=None):
        raise bug

    with pytest.raises(type(bug)) as raised:
        main()
    assert raised.value is bug


def script(tmp_path, body):
    """The command of a script whose main has this body."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    file = tmp_path / "script.py"
    file.write_text(
        f"import sys, time, threading\nimport utils\n\n@utils.clean_exit\ndef main(argv=None):\n{lines}\n\n"
    )
    with open(file, "a") as opened:
        opened.write('if __name__ == "__main__":\n    main()\n')
    return [sys.executable, str(file)], {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("lines", [3, 100_000])  # within the buffer, and many times it
def test_a_reader_that_leaves_changes_nothing(lines, tmp_path):
    body = f"for i in range({lines}):\n    print(i)\nopen(r'{tmp_path}/done', 'w').close()"
    command, env = script(tmp_path, body)
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, env=env, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 0 and done.stderr == "" and (tmp_path / "done").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_an_output_that_is_full_is_said_once(tmp_path):
    command, env = script(tmp_path, "for i in range(100_000):\n    print(i)")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, env=env, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr == (
        "the output cannot be written (No space left on device); going on without it\n"
    )


def test_any_text_can_be_printed(tmp_path):
    command, env = script(tmp_path, r"print('\ud83d and \u00e9')")
    done = subprocess.run(command, env={**env, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\ud83d and \\xe9\n", "")


def test_an_interrupt_is_one_line_although_a_thread_hangs(tmp_path):
    body = "threading.Thread(target=time.sleep, args=[60]).start()\nprint('up', flush=True)\ntime.sleep(60)"
    command, env = script(tmp_path, body)
    child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "up\n"
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=30)[1]
    assert child.returncode == 130 and said == "script.py: interrupted\n"


def test_an_interrupted_script_runs_its_exit_handlers_and_is_not_taken_apart(tmp_path):
    body = (
        "import atexit, os\nclass Late:\n    def __del__(self, write=os.write): write(1, b'taken apart')\n"
        "global late\nlate = Late()\n"
        "atexit.register(print, 'handler')\nos.kill(os.getpid(), 2)\ntime.sleep(60)"
    )
    command, env = script(tmp_path, body)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "handler\n", "script.py: interrupted\n")


def test_an_interrupt_in_a_destructor_is_not_lost(tmp_path):
    body = (
        "import os\nclass Late:\n    def __del__(self): os.kill(os.getpid(), 2); time.sleep(0.01)\n"
        "late = Late()\ndel late\ntime.sleep(30)\nprint('went on')"
    )
    command, env = script(tmp_path, body)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "script.py: interrupted\n")


def test_stop_on_signals_gives_the_handlers_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(errors.Stopped) as stopped, errors.stop_on_signals(signal.SIGTERM):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert stopped.value.number == signal.SIGTERM and signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("what", ["CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "out of memory"])
def test_what_cuda_could_not_allocate_is_out_of_memory(what):
    assert errors.is_out_of_memory(RuntimeError(f"CUDA error: {what}"))
    assert not errors.is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"))
