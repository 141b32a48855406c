"""How long the rest of a sweep will take, from what its runs have taken so far."""

import statistics
import threading

from harness.results import configurations

START = 8.0  # seconds that a script takes to start and to import what it needs, on two cores
PARTS = ("load_seconds", "index_seconds", "compile_seconds", "train_seconds", "eval_seconds")  # of a row


def seconds_of(row):
    """A run's seconds by its row, with the start of its process; from its parts where it does not say."""
    if configurations.value(row, "run_seconds"):
        return configurations.value(row, "run_seconds")
    spent = START + sum(configurations.value(row, part) or 0.0 for part in PARTS)
    requests = configurations.flags(row).get("latency_runs") or 0
    return spent + (configurations.value(row, "latency_ms_mean") or 0.0) / 1000 * requests


def kind_of(script, args):
    """What makes runs take alike: a probe on TF-IDF takes seconds, one that is tuned minutes."""
    return script, *(args.get(name) for name in ("model", "gen_model", "features", "tune"))


class TimeLeft:
    """A mean of the seconds of runs of the same kind, else of the same script."""

    def __init__(self, rows=()):
        """rows: of runs that were made before."""
        self.lock, self.seen = threading.Lock(), []
        for row in rows:
            self.add(row["script"], configurations.flags(row), seconds_of(row))

    def add(self, script, args, seconds):
        with self.lock:
            self.seen.append((kind_of(script, args), seconds))

    def expected(self, script, args):
        """Seconds of a run, None where none of its kind was made yet."""
        with self.lock:
            seen, wanted = list(self.seen), kind_of(script, args)
        alike = [s for kind, s in seen if kind == wanted] or [s for kind, s in seen if kind[0] == script]
        return statistics.fmean(alike) if alike else None

    def left(self, runs, workers=1):
        """Words for how long the runs, [(script, args)], take on so many workers; "" where nothing is known."""
        expected = [self.expected(script, args) for script, args in runs]
        known = [seconds for seconds in expected if seconds is not None]
        if not known:
            return ""
        spent, unknown = words(max(sum(known) / workers, max(known))), len(expected) - len(known)
        return f"at least {spent} left: {unknown} are of a kind not timed yet" if unknown else f"about {spent} left"


def words(seconds):
    """40 s, 12 min or 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
