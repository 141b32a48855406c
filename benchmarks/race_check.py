"""What real races took and picked, beside the whole suites: of each, the CSV of a race and that of the suite run whole.

    OMP_NUM_THREADS=1 python sweep.py suites/compare.yaml --dataset assets/data/fresh/hans --race --results hans.csv \\
        --set bf16=true precision=bf16 label_budget=125    # 500 on arc_easy
    cp hans.csv hans_whole.csv
    OMP_NUM_THREADS=1 python sweep.py suites/compare.yaml --dataset assets/data/fresh/hans --results hans_whole.csv \\
        --set bf16=true precision=bf16 label_budget=125
    python benchmarks/race_check.py hans.csv --readme docs/sweeps.md

RACED_whole.csv is beside RACED.csv. Seconds are those of the runs with the start of their processes, of the processor
on a CPU. What survived the race is the same run in both. The pick is the selector's without limits: the cheapest of
those within a standard error of the best. Writes benchmarks/results/race_check.json.
"""

from common import markdown, publish
from race_ladders import seconds

import utils
from harness import flags
from harness.results import configurations, outputs, store
from harness.selector.candidates import Limits, choose, measured


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    parser.add_argument("raced", nargs="+", metavar="RACED.csv", help="rows of races, RACED_whole.csv beside each")
    parser.add_argument("--output", metavar="FILE", help="the numbers (default: benchmarks/results/race_check.json)")
    parser.add_argument("--readme", metavar="FILE", help="put the table between its marks there")
    return parser.parse_args(argv)


def pick(rows):
    """The Candidate that the selector takes of finished rows without limits."""
    return choose(measured(configurations.group_seeds(rows)), Limits())[0]


def checked(path):
    """What a race and its suite took, in seconds, and what was picked of each, from the race's CSV."""
    raced, suite = store.read_results(path), store.read_results(outputs.beside(path, "_whole.csv"))
    short = store.read_if_there(outputs.beside(path, "_rungs.csv"))
    rows, wanted = ([row for row in some if row["status"] in ("ok", "degenerate")] for some in (raced, suite))
    if not rows or not {row["run_id"] for row in rows} <= {row["run_id"] for row in wanted}:
        raise utils.UserError(f"{path}: its whole runs are not all in {outputs.beside(path, '_whole.csv')}")
    got, best = pick(rows), pick(wanted)
    return {
        "data": configurations.data_name(rows[0]),
        "of": len(configurations.group_seeds(wanted)),
        "dropped": len(configurations.group_seeds(wanted)) - len(configurations.group_seeds(rows)),
        "race_seconds": sum(map(seconds, [*rows, *short])),
        "suite_seconds": sum(map(seconds, wanted)),
        "pick": got.name,
        "suite_pick": best.name,
        "behind": best.score - got.score,
    }


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    races = [checked(path) for path in args.raced]
    rows = [
        [
            *(race[name] for name in ("data", "of", "dropped")),
            *(f"{race[name]:.0f}" for name in ("race_seconds", "suite_seconds")),
            f"{race['race_seconds'] / race['suite_seconds']:.0%}",
            *(race[name] for name in ("pick", "suite_pick")),
            f"{race['behind']:.3f}",
        ]
        for race in races
    ]
    header = ["data set", "configurations", "dropped", "seconds of the race", "of the whole suite", "share"]
    lines = markdown([*header, "the race's pick", "the suite's", "behind"], rows)
    publish("race_check", lines, {"races": races}, args.readme, args.output)


if __name__ == "__main__":
    main()
