"""Commands that run as children and never outlive an interrupt of their parent."""

import subprocess
import threading

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
        processes = []
        for pid in running:
            try:
                parent = psutil.Process(pid)
                processes += [parent, *parent.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
        try:
            self._signal(processes, "terminate")
            psutil.wait_procs(processes, timeout=SECONDS_TO_END)
        finally:  # also at a second Ctrl-C
            self._signal(processes, "kill")

    @staticmethod
    def _signal(processes, name):
        for process in processes:
            try:
                getattr(process, name)()
            except psutil.NoSuchProcess:
                continue
