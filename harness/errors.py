"""What a script says when it stops: the two error classes, the operating system's errors, interrupts, a closed stdout.

`clean_exit` is the one boundary: what a person can put right is one line on stderr and exit code 2; a bug keeps its
traceback. Standard library only: `utils` has these names for everybody else.
"""

import atexit
import contextlib
import errno
import functools
import logging
import os
import re
import signal
import sys
import threading
from pathlib import Path


class UserError(ValueError):
    """Something the person can put right: one line on stderr and exit code 2, never a traceback."""


class RunFailed(RuntimeError):
    """The run cannot go on, for a reason that is no bug: a row with status failed, one line on stderr, exit code 1."""


class Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C that ends the script in the same way; see `stop_on_signals`."""

    def __init__(self, number):
        super().__init__()
        self.number = number


OOM_EXIT_CODE = 3
SECONDS_TO_END = 1.5  # what an interrupted script's threads and exit handlers get before the process ends without them

# the operating system's errors that come from what a person named or from the machine's state: advice, may be empty
SYSTEM_ERRORS = {
    errno.EACCES: "check its permissions or name another",
    errno.EPERM: "check its permissions or name another",
    errno.ENOENT: "",
    errno.EEXIST: "name another",
    errno.ENOTDIR: "a part of this path is a file; name a folder",
    errno.EISDIR: "name a file",
    errno.ENOTEMPTY: "name another",
    errno.ENAMETOOLONG: "names have at most 255 bytes; name a shorter one",
    errno.ELOOP: "links point at each other; name the file itself",
    errno.ENOSPC: "free space, or name places on another disk (--runs_dir, --results)",
    errno.EDQUOT: "free space, or name places on another disk (--runs_dir, --results)",
    errno.EFBIG: "name a place that takes larger files",
    errno.EROFS: "name a place that can be written (--runs_dir, --results)",
    errno.EMFILE: "raise the limit with ulimit -n",
    errno.ENFILE: "end other programs",
    errno.ENXIO: "name an ordinary file",
    errno.ENODEV: "name an ordinary file",
    errno.ESPIPE: "name an ordinary file",
    errno.EBUSY: "name another",
    errno.ETXTBSY: "name another",
    errno.EIO: "check the disk",
    errno.ESTALE: "check the network disk",
}
# libraries in other languages pass these on as text only
SPELLED_OUT = (errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.EISDIR)


def is_out_of_memory(error):
    """True for CUDA's OutOfMemoryError, for what cuBLAS and cuDNN could not allocate, and for failed CPU allocations
    (MemoryError, bad_alloc, mmap).
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    marks = (
        "out of memory",
        "can't allocate memory",
        "cannot allocate memory",
        "bad_alloc",
        "failed to allocate",
        "_status_alloc_failed",
    )
    return isinstance(error, (RuntimeError, OSError)) and any(mark in text for mark in marks)


def short(text, most=160):
    """A text on one line, cut in its middle to `most` characters."""
    text = " ".join(str(text).split())
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 4 :]}"


def without_credentials(value, within=True):
    """Texts, also of lists and dicts, whose addresses have no user, password or parameters: any may be a secret.

    within: True for messages, which may quote an address. False for flags, as a dict or as argv: there parameters are
    taken from values that are an address, and from --judge_url; a prompt may speak of an address with parameters, and
    without them two prompts would be one.
    """
    url = "judge_url"
    if isinstance(value, dict):
        return {key: without_credentials(each, within or key == url) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        before = [None, *value]
        return [without_credentials(each, within or flag == f"--{url}") for flag, each in zip(before, value)]
    if not isinstance(value, str):
        return value
    whole = re.fullmatch(r"\s*[\w+.-]+://\S+\s*", value)
    # a password may hold / and ?, which a port does not, and quotation marks where the address is all there is
    secret = r"^[^/?#@:]*:(?!\d+[/?#])[^@/?#]*[/?#].*@|^[^/?#]*@" + r"|\?.*|#.*=.*" * bool(whole or within)
    address = r"://(\S+)" if whole else r"://([^\s\"'<>]+)"
    return re.sub(address, lambda match: f"://{re.sub(secret, '', match[1])}", value)


def system_message(error):
    """One line for an error of the operating system (or of a library that only passes one on), None for any other.

    The places, permissions and disks behind it are the person's to put right. Causes (`raise .. from`) count too.
    """
    text = str(error)
    if isinstance(error, OSError) and error.errno in SYSTEM_ERRORS:
        if error.errno != errno.ENOENT or error.filename is not None:
            return _system_line(error.errno, error.filename)
    elif isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        found = ascii(error.object[error.start : error.end][:8])
        return f"a text holds {found}, half of a character, which UTF-8 cannot write; mend the text"
    elif isinstance(error, ValueError) and text.startswith("embedded null"):
        return "a name holds a NUL character, which no file's name can; mend the name"
    elif isinstance(error, RuntimeError) and "determine home directory" in text:
        return "a path begins with ~ and a user who has no home here; write the path out"
    elif isinstance(error, RuntimeError) or type(error).__name__ == "SafetensorError":
        number = re.search(r"\(os error (\d+)\)", text)  # as Rust spells it
        spelled = [number for number in SPELLED_OUT if os.strerror(number) in text]
        number = int(number[1]) if number else (spelled or [None])[0]
        if number in SYSTEM_ERRORS:
            return f"{_system_line(number)} ({short(text)})"
    return system_message(error.__cause__) if error.__cause__ is not None else None


def _system_line(number, path=None):
    """The words for an errno, with the path where there is one."""
    place = f"{short(os.fsdecode(path))}: " if isinstance(path, str | bytes | os.PathLike) else ""
    advice = f"; {SYSTEM_ERRORS[number]}" if SYSTEM_ERRORS[number] else ""
    return f"{place}{os.strerror(number).lower()}{advice}"


class Output:
    """A standard stream that outlives its reader: after `script | head -1` has its line, the run goes on unheard.

    Characters that the stream cannot encode are written as escapes. Everything else is the stream's own. lost: output
    was lost to a full disk; the script ends with exit code 2 then.
    """

    def __init__(self, stream):
        self.stream, self.lost = stream, False
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        return self._try(lambda: self.stream.write(text), len(text))

    def flush(self):
        return self._try(self.stream.flush, None)

    def _try(self, act, otherwise):
        try:
            return act()
        except OSError as error:  # the reader has gone, or the disk behind the stream is full
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError) and self.stream is sys.__stdout__:
                self.lost = True
                print(f"the output cannot be written ({error.strerror}); going on without it", file=sys.stderr)
            return otherwise


def guard_streams():
    """Put `Output` in front of this process' own stdout and stderr, once; streams that a test put there stay."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller, `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 -- until the process ends
        elif stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, Output(stream))


@contextlib.contextmanager
def stop_on_signals(*numbers):
    """Within the block these signals raise Stopped in the main thread, as Ctrl-C raises KeyboardInterrupt."""

    def stop(number, _):
        raise Stopped(number)

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, stop) for number in numbers} if main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt_again(dropped):
    """sys.unraisablehook: an interrupt that came in a destructor, where Python drops exceptions, comes once more."""
    if not issubclass(dropped.exc_type, KeyboardInterrupt):
        return sys.__unraisablehook__(dropped)
    number = getattr(dropped.exc_value, "number", signal.SIGINT)
    timer = threading.Timer(0.05, os.kill, [os.getpid(), number])  # at once would be in the destructor still
    timer.daemon = True
    timer.start()


def _end_soon(code):
    """End the process in SECONDS_TO_END even if a thread or an exit handler still holds it."""
    timer = threading.Timer(SECONDS_TO_END, os._exit, [code])
    timer.daemon = True
    timer.start()
    _ending.append(code)


_ending = []  # the exit code of an interrupted script


@atexit.register  # the first to be registered is the last to be called
def _leave():
    """End an interrupted process after all other exit handlers: taking apart what torch has imported takes seconds."""
    if _ending:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_ending[0])


def clean_exit(main):
    """Decorate a script's `main`: what a person can put right becomes one line on stderr and exit code 2.

    That is a UserError and the operating system's errors, see `system_message`. Ctrl-C: one line, code 130. Outside
    of a run, RunFailed: one line, code 1; out of memory: one line, code 3. Any other exception is a bug and keeps its
    traceback.
    """
    script = Path(main.__code__.co_filename).name

    @functools.wraps(main)
    def wrapper(argv=None):
        guard_streams()
        for noisy in ("torchao", "torch.utils._pytree"):  # peft imports torchao, which complains of kernels for GPUs
            logging.getLogger(noisy).setLevel(logging.ERROR)
        if main.__module__ == "__main__":
            sys.unraisablehook = _interrupt_again
        code = None
        try:
            return main(argv)
        except UserError as error:
            message, code = f"error: {' '.join(str(error).split())}", 2
        except RunFailed as error:  # outside of a run, which would have recorded it
            message, code = f"failed: {' '.join(str(error).split())}", 1
        except KeyboardInterrupt as error:
            number = error.number if isinstance(error, Stopped) else signal.SIGINT
            message, code = "interrupted", 128 + number
            if main.__module__ == "__main__":
                _end_soon(code)
        except Exception as error:
            said = system_message(error)
            if said:
                message, code = f"error: {said}", 2
            elif is_out_of_memory(error):
                message, code = f"error: out of memory: {short(error)}", OOM_EXIT_CODE
            else:
                raise
        finally:
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
            if code is None and sys.exc_info()[0] is None and getattr(sys.stdout, "lost", False):
                raise SystemExit(2)
        print(f"{script}: {without_credentials(message)}", file=sys.stderr)
        raise SystemExit(code)

    return wrapper
