"""Charts and a report of the results CSV; a paired test of two runs; export to SQLite and JSON.

Rows are compared only where evaluation examples (eval_id), metric and hardware are the same; such rows form one panel,
and each panel gets its own PNGs. Runs that differ only in their seeds are one configuration, drawn as mean and
interval. Rows that are left out are listed with the reason. The best of several configurations is chosen on some of the
evaluation examples and scored on the others, where the run folders are still beside the CSV.

    python plot_results.py                         # results.csv, or sample_results.csv if there is none yet
    python plot_results.py --results mine.csv --output_dir charts --report RESULTS.md
    python plot_results.py --compare runs/RUN_A runs/RUN_B     # a paired test on the examples that both have scored
    python plot_results.py --export results.db && sqlite3 results.db "SELECT variant, score FROM results ORDER BY score"
"""

import collections
import shlex
from pathlib import Path

import utils
from harness import flags
from harness.results import outputs, store


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    parser.add_argument(
        "--results", help="the results CSV (default: results.csv, or sample_results.csv if there is none yet)"
    )
    parser.add_argument("--output_dir", default="plots", help="folder of the PNGs (default: %(default)s)")
    parser.add_argument(
        "--report", metavar="FILE.md", help="write findings, tables, charts and commands as a Markdown page too"
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
        "--compare", nargs=2, metavar="RUN", help="two run folders: do they differ on the examples that both have?"
    )
    group.add_argument(
        "--export", metavar="FILE.db|FILE.json", help="write the rows as a SQLite database (table results) or as JSON"
    )
    merge = "append to --results the rows of these CSVs that it does not have, as of a queue's jobs"
    group.add_argument("--merge", nargs="+", metavar="CSV", help=merge)
    args = parser.parse_args(argv)
    if args.merge and not args.results:
        parser.error("--merge needs --results, the CSV that gets the rows")
    if args.report and (args.export or args.markdown or args.compare or args.merge):
        parser.error("--report comes with the charts; leave out --export, --markdown, --compare and --merge")
    if args.export and Path(args.export).suffix not in (".db", ".sqlite", ".json"):
        parser.error(f"--export {args.export}: the file must end in .db or .sqlite (SQLite) or in .json (JSON)")
    args.results = args.results or ("results.csv" if Path("results.csv").is_file() else "sample_results.csv")
    return args


def make_folder(path):
    """The folder of the charts, made where it is not there."""
    outputs.check_folder(path, "--output_dir")
    Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


def draw(args, rows):
    """Print the rows, draw the charts and write the report."""
    kept, skipped = configurations.select(rows)
    print(f"{len(rows)} rows in {args.results}")
    panels = configurations.panels(kept)
    for panel, members in panels.items():
        tables.print_table(panel, members)
    for line in report.left_out(skipped):
        print(f"left out: {line}")
    if not kept:
        raise utils.UserError(
            f"{args.results} has no row with status ok or degenerate and a score, so there is nothing to draw"
        )
    ids = {run_id for run_id, _ in skipped}
    left_out = collections.Counter(configurations.data_name(row) for row in rows if row["run_id"] in ids)
    folder = Path(args.results).parent
    groups = {panel: configurations.group_seeds(members, folder) for panel, members in panels.items()}
    drawn = charts.draw(groups, make_folder(args.output_dir), args.results, left_out, args.report)
    if args.report:
        words = ["python", "plot_results.py", "--results", args.results, "--output_dir", args.output_dir]
        command = shlex.join([*words, "--report", args.report])
        report.write(args.report, rows, kept, skipped, groups, drawn, args.results, command)
        print(f"saved {args.report}")


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    if args.merge:
        for file in args.merge:
            store.check_there(Path(file))
        return print(f"{store.merge(args.merge, args.results)} rows added to {args.results}")
    if args.report:
        if Path(args.output_dir) in Path(args.report).parents:
            make_folder(args.output_dir)
        outputs.check(args.report, "report", "--report")
    if args.export:
        outputs.check(args.export, "json" if args.export.endswith(".json") else "database", "--export")
    global charts, compare, configurations, export, report, tables  # heavy: after the arguments were checked
    from harness.results import charts, compare, configurations, export, report, tables

    if args.compare:
        return compare.compare_runs(*args.compare)
    rows = store.read_results(args.results)
    if args.markdown == "all":
        return tables.print_markdown(rows)
    if args.markdown == "best":
        return tables.print_best(configurations.select(rows)[0], Path(args.results).parent)
    if args.export:
        export.export(args.export, rows)
        return print(f"{len(rows)} rows in {args.export}")
    return draw(args, rows)


if __name__ == "__main__":
    main()
