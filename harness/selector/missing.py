"""What the rows of the named data set lack: present contents, runs that failed, runs that a race had no time for."""

import json
from pathlib import Path

import utils
from harness.results import configurations, done_runs, outputs
from harness.selector.decision import data_of


def fresh(rows, args):
    """(rows, [a remark]) without those of other contents of the file or folder that --dataset names: of earlier ones,
    or of another file of this name.
    """
    done = done_runs.DoneRuns([])
    here = [row for row in rows if args.dataset and configurations.data_name(row) == data_of(args)]
    known = {id(row): done.is_stale(row, args.dataset) for row in here}
    present = {row["eval_id"] for row in here if known[id(row)] is False}
    past = {row["eval_id"] for row in here if known[id(row)]} - present  # of which the others cannot be told
    stale = {id(row) for row in here if known[id(row)] or (known[id(row)] is None and row["eval_id"] in past)}
    told = f"{len(stale)} rows are of other contents of {args.dataset}, or of its models, and not used"
    return [row for row in rows if id(row) not in stale], [told] if stale else []


def no_time_for(rows, dropped, args):
    """[a remark] on what a race had no time to run whole on the named data set, and nothing has run whole since."""
    here, out = ([row for row in some if configurations.data_name(row) == data_of(args)] for some in (rows, dropped))
    names = [short_name(row) for row in out if row["note"].startswith("dropped for time")]
    names = [*sorted(set(names) - set(map(short_name, here))), *never_begun(here, args)]
    return [f"a race had no time to run these whole, which may be better: {'; '.join(names)}"] if names else []


def never_begun(rows, args):
    """[names] of what a race on the named data set has not even begun, as it says beside the results, and what has no
    row since.
    """
    path = outputs.beside(args.results, "_race.json") if args.results else ""
    told, done = utils.read_json(path, list, "--results") if Path(path).is_file() else [], done_runs.DoneRuns(rows)
    try:
        late = [one for one in told if (one["dropped"] or "").startswith("dropped for time") and not any(one["whole"])]
        late = [one for one in late if not any(run for rung in one["rungs"] for run in rung)]
        here = [one for one in late if Path(one.get("data", "")).name == data_of(args)]
        cells = {one["name"]: [done_runs.identity(*cell) for cell in one.get("cells", ())] for one in here}
        return [name for name, some in cells.items() if not any(cell in done.rows for cell in some)]
    except (KeyError, TypeError, AttributeError):
        raise utils.UserError(f"{path}: this is not what sweep.py --race writes; remove it") from None


def short_name(row):
    """A row in a few words."""
    return f"{row['strategy']} {row['variant']}, {Path(row['model']).name}"


def gone(failed, rows, args):
    """[a remark] on configurations of the named data set that have no score. failed, rows: without and with one."""
    ran, names = {configuration_of(row) for row in rows}, {"oom": [], "failed": []}
    for row in failed:
        here = configurations.data_name(row) == data_of(args) and args.device in (None, row["device"])
        if here and configuration_of(row) not in ran:
            names[row["status"]].append(short_name(row))
    words = {"oom": "out of memory", "failed": "failed"}
    told = [f"{words[status]}: {'; '.join(dict.fromkeys(some))}" for status, some in names.items() if some]
    return [f"not compared, {', '.join(told)}"] if told else []


def gone_seeds(configuration, failed):
    """[a remark] on runs of a configuration with other seeds that have no score."""
    one, alike = configurations.NO_CONFIGURATION, configuration_of(configuration.rows[0])
    ran = {configuration_of(row, one) for row in configuration.rows}
    lost = {configuration_of(row, one) for row in failed if configuration_of(row) == alike} - ran
    return [f"{len(lost)} more of its runs failed or ran out of memory"] if lost else []


def configuration_of(row, without=configurations.CHANGES_NOTHING):
    """A text that rows of one configuration share, also those that ended before they could say what they evaluate, and
    at which precision.
    """
    given = json.loads(row["args"] or "{}").get("precision")
    settings = {**configurations.flags(row), "precision": given}
    return done_runs.identity(row["script"], {key: value for key, value in settings.items() if key not in without})
