"""Suites for the tests of sweep.py, and what it makes of them."""

import sweep
from harness.results import done_runs, store

sweep.import_heavy()  # the tests call the script's functions, without its main


def suite(path, text):
    path.write_text(text)
    return str(path)


def planned(path, args):
    done = done_runs.DoneRuns(store.read_if_there(args.results))
    return sweep.plan(sweep.make_cells(path, args)[1], args, done)


def words(path, *flags):
    """The suite's commands without where they write."""
    args = sweep.parse_args([path, *flags])
    return [" ".join(cell.argv).split(" --results")[0] for cell in sweep.make_cells(path, args)[1]]
