"""A race of a suite's configurations: rung after rung, the losers dropped. See dropping for the rule."""

import argparse
import contextlib
import itertools
import json
import time
from pathlib import Path

from tqdm import tqdm

import utils
from harness.results import configurations, outputs, store
from harness.results.done_runs import DoneRuns, identity
from harness.sweeps import dropping
from harness.sweeps.cells import about_data
from harness.sweeps.progress import seconds_of, words
from harness.sweeps.racer import Racer, learns

FOR_TIME = "dropped for time"


def data_of(cell):
    """The data set of a cell, with its subset; the folder of its files where it names these."""
    file = cell.args.get("train_file")
    return str(Path(file).parent) if file else " ".join(filter(None, [cell.args["dataset"], cell.args.get("subset")]))


class Race:
    """A race of cells."""

    def __init__(self, cells, args, run_cells):
        """args: sweep.py's; run_cells: (what, cells, args) runs those that have no row, their rows go to
        args.results.
        """
        self.args, self.run_cells, self.began, groups = args, run_cells, time.monotonic(), {}
        self.small_args = argparse.Namespace(**{**vars(args), "results": outputs.beside(args.results, "_rungs.csv")})
        for cell in cells:
            without = {name: value for name, value in cell.args.items() if name not in configurations.SEEDS}
            groups.setdefault(identity(cell.script, without), []).append(cell)
        self.racers, self.seconds, self.risks = [], 0.0, {}  # seconds of the rungs, risk of each data set and metric
        self.seen = {}  # {(data, learns): [(what one lacked on its last rung, what it gained from there)]}
        self.likeliest = 0.0  # chance to be better of what was dropped for time
        for some in groups.values():
            size = about_data(some[0])[1]
            name = " ".join(word for word in some[0].name.split() if word.split("=")[0] not in configurations.SEEDS)
            kind = learns(some[0], bool(args.minutes))
            whole = dropping.whole_of(some[0].args, size, kind)
            self.racers.append(Racer(f"{len(self.racers) + 1} {name}", some, size, kind, whole))

    def run(self):
        """Limits, rung after rung, then what is left as a whole. Rows of what is dropped are added with the status
        dropped.
        """
        if self.args.latency_ms is not None or self.args.memory_gb is not None:
            first = [racer for racer in self.left() if dropping.for_limits(racer.whole)]
            for racer in first:
                racer.enter(dropping.for_limits(racer.whole), self.small_args)
            self.run_rung("limits", first)
            self.drop("by its first requests", first, self.over_limits(first))
        for number, rung in enumerate(dropping.RUNGS, start=1):
            racers, when = self.left(), f"at rung {number} of {len(dropping.RUNGS)}"
            for racer in racers:
                fewer = dropping.at_rung(racer.whole, rung, racer.size.classes, bool(self.args.minutes))
                racer.enter(fewer, self.small_args, rung.gains)
            self.run_rung(f"rung_{number}", racers)
            for racer in racers:
                racer.runs.append([row and row["run_id"] for row in racer.rows])
            racers = [racer for racer in racers if racer in self.left()]  # for which there was time
            over, late = self.over_limits(racers), False
            self.take_back(over)
            if self.args.minutes:  # what there is no time for is no yardstick
                self.drop(when, racers, over)
                late, over = self.drop_for_time(number), {}
                racers = [racer for racer in racers if racer in self.left()]
            self.drop(when, racers, over | self.behind(number, racers, over))
            if late:
                break
        self.finish()
        for racer in () if self.args.keep_losers else self.racers:
            if racer.dropped:
                self.record(racer)
        self.summary()
        self.write()

    def take_back(self, out):
        """What is behind one that is out itself is not dropped for that. out: names."""
        for racer in self.racers:
            if racer.behind and racer.behind.leader in out:
                tqdm.write(f"    {racer.name}: taken back, {racer.behind.leader} is out itself")
                self.risks[racer.data] -= racer.behind.chance
                racer.dropped = racer.behind = None

    def finish(self):
        """Run what is left as a whole, first what is whole already, then what will be best by its rung, --workers at a
        time; after each time what breaks a limit or is behind is dropped.
        """
        now, number = [racer for racer in self.left() if racer.is_whole], len(dropping.RUNGS) + 1
        for turn in itertools.count():
            self.run_whole(f"whole_{turn}", now)
            before = self.entries([racer for racer in now if not racer.is_whole])
            for racer in now:
                racer.on_rung, racer.gain = racer.cells, dropping.NONE
            self.read_rows(now)
            self.see(now, before)
            over = self.over_limits(now) if turn else {}
            self.take_back(over)
            out = over | (self.behind(number, self.left(), over) if turn else {})
            if out:
                self.drop("by whole runs", self.left(), out)
            waiting = [racer for racer in self.left() if not racer.is_whole]
            if not waiting:
                return
            some = {name: one for group in self.entries(waiting).values() for name, one in group.items()}
            waiting.sort(key=lambda racer: -some[racer.name].expected if racer.name in some else 0.0)
            # several workers would wait for each other, for which --minutes leave no time
            at_once = self.args.keep_losers or (self.args.minutes and self.args.workers > 1)
            now = waiting if at_once else waiting[: self.args.workers]
            left = sum(racer.whole_seconds() for racer in waiting) / self.args.workers
            tqdm.write(f"    at most about {words(left)} left for {len(waiting)} whole configurations")

    def run_whole(self, what, racers):
        """Run the racers' whole cells, once."""
        self.run_cells(what, [cell for racer in racers if not racer.ran for cell in racer.cells], self.args)
        for racer in racers:
            racer.ran = True

    def see(self, racers, before):
        """What racers gained from their rung to their whole runs tells what others will gain on these data.

        before: the `entries` of the rung.
        """
        learns = {racer.name: racer.learns for racer in racers}
        for data, entries in self.entries(racers).items():
            for name in entries.keys() & before.get(data, {}).keys():
                self.seen.setdefault((data, learns[name]), []).append(before[data][name].gained(entries[name]))

    def time_left(self):
        """Seconds of --minutes."""
        return 60 * self.args.minutes - (time.monotonic() - self.began)

    def drop_for_time(self, number):
        """Drop what there is no time to run whole, where there is none for the next rung and all that is left. Returns
        whether something was. number: of the rung that is done.
        """
        racers, left, workers = self.left(), max(0.0, self.time_left()), self.args.workers
        share = dropping.RUNGS[number].training if number < len(dropping.RUNGS) else 0.0
        groups = sorted(self.entries(racers).values(), key=lambda some: sum(one.seconds for one in some.values()))
        together = [one for entries in groups for one in entries.values()]
        if (1 + share) * dropping.at_most_seconds(together, workers) <= left:
            return False
        why = {racer.name: "no time, and its short run failed" for racer in racers if racer.failed}
        for i, entries in enumerate(groups):  # what one needs less than its share the next ones have
            dropped, likeliest = dropping.for_time(entries, left / (len(groups) - i), workers)
            why, self.likeliest = why | dropped, max(self.likeliest, likeliest)
            left -= dropping.at_most_seconds([one for name, one in entries.items() if name not in dropped], workers)
        self.drop("for time", racers, why)
        return bool(why)

    def run_rung(self, what, racers):
        """Run the racers' cells of a rung, and set their rows."""
        short = [racer for racer in racers if not racer.is_whole]
        self.run_whole(f"{what}_whole", [racer for racer in racers if racer.is_whole])
        timed = self.args.minutes and what == "rung_1"
        half = self.time_left() / 2 if timed else 0.0
        size = self.args.workers if timed else max(1, len(short))
        for i in range(0, len(short), size):
            if timed and self.time_left() < half:
                why = "half of the time for short and whole runs was over before it began"
                self.drop("for time", short[i:], {racer.name: why for racer in short[i:]})
                break
            self.run_cells(what, [cell for racer in short[i : i + size] for cell in racer.on_rung], self.small_args)
        self.read_rows(racers)
        self.seconds += sum(seconds_of(row) for racer in racers if not racer.is_whole for row in racer.rows if row)

    def read_rows(self, racers):
        """Set the racers' rows to those of the cells on their rung."""
        rungs, results = self.done(self.small_args), self.done(self.args)
        for racer in racers:
            done = results if racer.is_whole else rungs
            racer.rows = [done.row(c.script, c.args, self.args.ignore_code) for c in racer.on_rung]

    def left(self):
        return [racer for racer in self.racers if not racer.dropped or self.args.keep_losers]

    def done(self, args):
        return DoneRuns(store.read_if_there(args.results))

    def over_limits(self, racers):
        """{name: why} of those that failed or break a limit."""
        folder, why = Path(self.args.results).parent, {}
        for racer in racers:
            if racer.failed and not racer.cannot_run:
                tqdm.write(f"    {racer.name}: its short run failed; it goes on to a longer one")
                continue
            over = "a run failed" if racer.failed else dropping.over_limits(racer.rows, folder, self.args)
            why |= {racer.name: over} if over else {}
        return why

    def entries(self, racers):
        """{data: {name: dropping.Entry}} of the racers that a rung has scored and that are not dropped."""
        folder, groups = Path(self.args.results).parent, {}
        for racer in racers:
            if racer.failed or racer.dropped or not racer.rows:
                continue
            gain = dropping.given(racer.gain, self.seen.get((racer.data, racer.learns), ()))
            entry = dropping.entry(racer.rows, folder, racer.whole, gain, racer.learns, racer.whole_seconds())
            if entry:
                groups.setdefault(racer.data, {})[racer.name] = entry
        return groups

    def behind(self, number, racers, over):
        """{name: why} of those that are behind, among those that are not over the limits. number: of the rung, the one
        after the last of whole runs.
        """
        allowed, why = dropping.allowed(number), {}
        groups = self.entries([racer for racer in racers if racer.name not in over])
        for data, entries in groups.items():
            before = self.risks.get(data, 0.0)
            losers, risk = dropping.behind(entries, allowed - before)
            self.risks[data] = before + risk
            for racer in racers:
                racer.behind = losers.get(racer.name, racer.behind)
            why |= {name: loser.why for name, loser in losers.items()}
        return why

    def drop(self, when, racers, why):
        """Drop those of `why`."""
        verb = "would be dropped" if self.args.keep_losers else "dropped"
        tqdm.write(f"{when}: {len(why)} of {len(racers)} configurations {verb}")
        for racer in racers:
            if racer.name in why:
                tqdm.write(f"    {racer.name}: {why[racer.name]}")
                racer.dropped = racer.dropped or f"dropped {when}: {why[racer.name]}"

    def record(self, racer):
        """Add its rows to the results with the status dropped (failed ones with their own), unless they are there."""
        there = {row["run_id"] for row in store.read_if_there(self.args.results)}
        for row in racer.rows:
            if row is not None and row["run_id"] not in there:
                status = "dropped" if row["status"] in ("ok", "degenerate") else row["status"]
                note = "; ".join(filter(None, [racer.dropped, row["note"]]))
                store.append_result(self.args.results, {**row, "status": status, "note": note})

    def write(self):
        """RESULTS_race.json beside the results: each configuration's runs on the rungs, its whole ones, why it was
        dropped.
        """
        path = outputs.beside(self.args.results, "_race.json")
        done, told = self.done(self.args), []
        for racer in self.racers:
            whole = [done.row(c.script, c.args, self.args.ignore_code) for c in racer.cells]
            ids = [row and row["run_id"] for row in whole]
            about = {"name": racer.name, "data": data_of(racer.cells[0]), "learns": racer.learns}
            about["cells"] = [[c.script, c.args] for c in racer.cells]
            about["dropped"] = racer.dropped
            told.append({**about, "rungs": racer.runs, "whole": ids})
        mine, before = {one["data"] for one in told}, []
        with contextlib.suppress(utils.UserError):  # one that cannot be read is written anew
            before = utils.read_json(path, list, "--results") if Path(path).is_file() else []
        others = [one for one in before if isinstance(one, dict) and one.get("data") not in mine]
        told += others  # of races on other data
        outputs.write(path, json.dumps(told, indent=2) + "\n", "race", "--results")

    def summary(self):
        """Say what the race has taken, and what the whole suite would have taken."""
        done = self.done(self.args)
        whole = [done.row(c.script, c.args, self.args.ignore_code) for racer in self.racers for c in racer.cells]
        finals = sum(seconds_of(row) for row in whole if row)
        out = [racer for racer in self.racers if racer not in self.left()]
        hurried = [racer for racer in out if racer.dropped.startswith(FOR_TIME)]
        begun = [racer.name for racer in hurried if any(racer.rows) and not racer.failed]
        never = [racer.name for racer in hurried if not any(racer.rows) or racer.failed]
        known = [racer for racer in out if racer.runs and any(racer.rows)]  # more than its first requests
        suite = finals + sum(racer.whole_seconds() for racer in known)
        lines = [
            f"race: {len(out)} of {len(self.racers)} configurations dropped",
            f"its runs, also those that were there already, took {words(finals + self.seconds)} one after the other, "
            f"{words(self.seconds)} of it short runs; whole, the {len(known) + len(self.left())} that were timed would "
            f"have taken about {words(suite)}",
            f"a loser is better, by more than what ties, with a probability of at most "
            f"{max(self.risks.values(), default=0.0):.1%}, by what few data sets have gained",
        ]
        if begun:
            lines.append(f"no time to finish {', '.join(begun)}: the likeliest is better with {self.likeliest:.0%}")
        if never:
            lines.append(f"no time to begin {', '.join(never)}, or their short runs failed: nothing is known of them")
        tqdm.write("\n    ".join(lines))
