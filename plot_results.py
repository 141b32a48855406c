"""Charts and a report of the results CSV; paired tests of two runs; export for SQL and JSON.

Rows are drawn together only where their evaluation examples (eval_id), metric and hardware are the same; each such group is one
panel. Runs that differ in their seeds alone are one configuration, drawn as mean and spread. What is left out is said, and why.

    python plot_results.py                         # results.csv, or sample_results.csv if there is none yet
    python plot_results.py --results mine.csv --output_dir charts --report RESULTS.md
    python plot_results.py --compare runs/RUN_A runs/RUN_B     # a paired test on the examples that both have seen
    python plot_results.py --export results.db && sqlite3 results.db "SELECT variant, score FROM results ORDER BY score"
"""

import collections
from pathlib import Path

import utils
from harness import flags
from harness.results import charts, compare, configurations, report, store, tables


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    parser.add_argument(
        "--results", help="the results CSV (default: results.csv, or sample_results.csv if there is none yet)"
    )
    parser.add_argument("--output_dir", default="plots", help="where the PNGs go (default: %(default)s)")
    parser.add_argument(
        "--report", metavar="FILE.md", help="write the findings, tables, charts and commands as Markdown"
    )
    group = parser.add_argument_group("instead of charts")
    group.add_argument(
        "--markdown",
        nargs="?",
        const="all",
        choices=("all", "best"),
        help="print the rows as a Markdown table; best: the best of each strategy and data set",
    )
    group.add_argument(
        "--compare", nargs=2, metavar="RUN", help="two run folders: are they different on the same examples?"
    )
    group.add_argument(
        "--export", metavar="FILE.db|FILE.json", help="write the rows as a SQLite database (table results) or as JSON"
    )
    args = parser.parse_args(argv)
    if args.export and Path(args.export).suffix not in (".db", ".sqlite", ".json"):
        parser.error(f"--export {args.export}: the ending says the kind, .db or .sqlite for SQLite, .json for JSON")
    return args


# -------------------------------------------------------------------------------------------------------------- the charts


# --------------------------------------------------------------------------------------------------------------- the tables


def writable(path, flag):
    """The path, whose folder is there; UserError where nothing can be written."""
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise utils.UserError(
            f"{flag} {path}: {'that is a folder' if path.is_dir() else f'there is no folder {path.parent}'}"
        )
    return path


@utils.clean_exit
def main(argv=None):
    # 1. settings
    args = parse_args(argv)
    if args.report and (args.export or args.markdown or args.compare):
        raise utils.UserError("--report comes with the charts; leave out --export, --markdown and --compare")
    if args.compare:
        return compare.compare_runs(*args.compare)
    path = args.results or ("results.csv" if Path("results.csv").is_file() else "sample_results.csv")
    found = store.read_results(path)
    if args.report:
        writable(args.report, "--report")

    # 2. the rows
    if args.markdown == "all":
        return tables.print_markdown(found)
    if args.markdown == "best":
        return tables.print_best(configurations.select(found)[0])
    if args.export:
        store.export(writable(args.export, "--export"), found)
        return print(f"{len(found)} rows in {args.export}")
    kept, skipped = configurations.select(found)
    print(f"{len(found)} rows in {path}")
    for panel, members in configurations.panels(kept).items():
        tables.print_table(panel, members)
    for run_id, why in skipped:
        print(f"not drawn: {run_id} ({why})")
    if not kept:
        raise utils.UserError(f"{path} has no row with status ok and a score, so there is nothing to draw")

    # 3. charts and report
    folder = Path(args.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise utils.UserError(f"--output_dir {folder}: {error.strerror}") from None
    groups = {panel: configurations.group_seeds(members) for panel, members in configurations.panels(kept).items()}
    left = {run_id for run_id, _ in skipped}
    charts.SKIPPED.clear()
    charts.SKIPPED.update(collections.Counter(configurations.data_name(row) for row in found if row["run_id"] in left))
    drawn = charts.draw(groups, folder, path)
    if args.report:
        report.write(args.report, found, kept, skipped, drawn, path)
        print(f"saved {args.report}")


if __name__ == "__main__":
    main()
