"""Commands that run as children and never outlive an interrupt of their parent."""

import subprocess
import threading
import time

import psutil

SECONDS_TO_END = 1  # what a child gets after SIGTERM before it is killed


class Children:
    """Children of this process, started from any thread; `end` ends them with all that they started themselves.

    They stay in the parent's process group, so that a terminal's signals and a kill of the group reach them as well.
    """

    def __init__(self):
        self.lock, self.ended, self.running = threading.Lock(), threading.Event(), set()

    def run(self, command, **options):
        """Run a command to its end, without standard input; returns its exit code. options: as Popen takes them.

        -SIGTERM where `end` was called before. A child that dies of a signal waits for `end`, which the same signal
        may have caused: at a terminal Ctrl-C reaches both.
        """
        with self.lock:
            if self.ended.is_set():
                return -15
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
            self.running.add(child)
        try:
            code = child.wait()
        finally:
            self.running.discard(child)
        if code < 0 or code > 128:
            self.ended.wait(0.5)
        return code

    def end(self):
        """End all children and what they started: SIGTERM, then SIGKILL; nothing is started any more."""
        with self.lock:
            self.ended.set()
            running = [child.pid for child in self.running]
        processes = set()
        try:
            processes = stopped({process for process in psutil.process_iter() if process.pid in running})
            signal_all(processes, "terminate")
            signal_all(processes, "resume")
            deadline = time.monotonic() + SECONDS_TO_END
            while any(map(lives, processes)) and time.monotonic() < deadline:
                time.sleep(0.02)  # psutil.wait_procs would take the exit codes that `run` waits for
        finally:  # also at a second Ctrl-C
            signal_all(stopped(processes), "kill")


def stopped(processes):
    """The living of these processes and of their descendants, all stopped by SIGSTOP, so that none starts another."""
    seen, new = set(), set(processes)
    while new:
        signal_all(new, "suspend")
        seen |= new
        new = {child for process in seen for child in children(process)} - seen
    return set(filter(lives, seen))


def lives(process):
    """True until a process has ended, waited for or not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def children(process):
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def signal_all(processes, name):
    """Call the psutil method of this name, as "kill", of all processes that still live."""
    for process in processes:
        try:
            getattr(process, name)()
        except psutil.NoSuchProcess:
            continue
