"""UnifiedQA, Dolly, Alpaca, MNLI with HANS, and any file -> data folders with fixed splits."""

import collections
import hashlib
import json
import os
import random
from pathlib import Path

import datasets

import utils
from harness import flags
from harness.data import cells, conversations, readers
from harness.data.columns import ANSWER, OPTIONS, column_names
from harness.results import store

LICENCES = {
    "alpaca": "CC BY-NC 4.0 (Stanford Alpaca's)",
    "dolly": "CC BY-SA 3.0 (databricks-dolly-15k's)",
    "hans": "MIT (HANS's)",
}

# column that is written -> its names in the wild, the first match wins
INSTRUCTION = {"instruction": ("instruction",), "context": ("context", "input"), "response": ("response", "output")}
PAIR = {
    "premise": ("premise", "sentence1"),
    "hypothesis": ("hypothesis", "sentence2"),
    "label": ("gold_label", "label"),
}

# data set -> its columns, its labels, {split: (file in the local folder, split on the hub)}; HANS is one local file
NLI = {
    "mnli": (
        PAIR,
        ("contradiction", "entailment", "neutral"),
        {"train": ("train.tsv", "train"), "test": ("dev_matched.tsv", "validation_matched")},
    ),
    "hans": (
        {**PAIR, "heuristic": ("heuristic",), "subcase": ("subcase",)},
        ("entailment", "non-entailment"),
        {"test": ("", "validation")},
    ),
}


# -------------------------------------------------------------------------------------------------- reading and writing


def sha256(path):
    """The sha256 of a file, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_splits(folder, splits):
    """Write {split: rows} as folder/<split>.jsonl; returns {split: number of rows}. Dates become text."""
    for split, rows in splits.items():
        store.write_jsonl(folder / f"{split}.jsonl", rows, default=str)
    return {split: len(rows) for split, rows in splits.items()}


def finish(made, folder, **facts):
    """Write SOURCE.json, the facts and each file's sha256, into the folder `made` and move it to `folder` in one step.

    A folder that was there is moved beside `made`.
    """
    files = {str(f.relative_to(made)): sha256(f) for f in sorted(made.rglob("*")) if f.is_file()}
    (made / "SOURCE.json").write_text(json.dumps({**facts, "files": files}, indent=2) + "\n")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        os.replace(folder, made.with_name(made.name + ".old"))
    os.replace(made, folder)


def read_lines(path, encoding=None):
    """The lines of a text file, split at line feeds alone; UserError where there are none."""
    text = readers.read_text(path, encoding)
    if not text.strip():
        raise utils.UserError(f"{path} is empty")
    return [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]


def read_tsv(path, dropped, encoding=None):
    """Rows of a TSV with a header line as dicts; quotation marks are ordinary characters.

    Lines with more or fewer cells than the header are left out and counted in dropped["malformed"].
    """
    header, *lines = [line.split("\t") for line in read_lines(path, encoding)]
    rows = [dict(zip(header, cells)) for cells in lines if len(cells) == len(header)]
    dropped["malformed"] += len(lines) - len(rows)
    return rows


def from_hub(name, instead):
    """({split: rows} of a hub data set, its facts for SOURCE.json); class numbers become names, unlabelled is empty.

    UserError, with `instead` as the way out, where the hub and the cache do not have it.
    """
    arguments = flags.HUB_DATA[name]
    try:
        loaded = datasets.load_dataset(*arguments)
    except (OSError, ValueError, RuntimeError) as error:  # no connection and not in the cache
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise utils.UserError(f"{arguments[0]} cannot be loaded from the hub ({reason}); {instead}") from None
    splits = {split: part.to_list() for split, part in loaded.items()}
    for split, rows in splits.items():
        kinds = loaded[split].features
        names = {column: kind.names for column, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)}
        for row in rows:
            row.update({c: "" if row[c] is None or row[c] < 0 else names[c][row[c]] for c in names})  # -1 is unlabelled
    return splits, {"origin": f"{' '.join(arguments)} from the Hugging Face hub"}


def local_origin(path, files):
    """The facts for SOURCE.json about local files. path: the file, or the folder that they are in."""
    base = path if path.is_dir() else path.parent
    return {"origin": str(path), "origin_sha256": {str(file.relative_to(base)): sha256(file) for file in files}}


def pick_columns(rows, roles, where):
    """Rows with the columns of `roles` only, as text; None and NaN are empty. roles: {new name: names in the wild}.

    UserError, with `where` as the source's name, for no rows and for a column that is missing.
    """
    if not rows:
        raise utils.UserError(f"{where} has no rows")
    there = column_names(rows)
    found = {role: [name for name in names if name in there] for role, names in roles.items()}
    missing = [" or ".join(roles[role]) for role, names in found.items() if not names]
    if missing:
        raise utils.UserError(f"{where} has no column {', '.join(missing)}; it has {', '.join(there)[:200]}")
    columns = {role: next((name for name in names if there[name]), names[0]) for role, names in found.items()}
    return [
        {role: cells.text(row.get(name), f"{where} row {i}: {name}", "\n") for role, name in columns.items()}
        for i, row in enumerate(rows)
    ]


# ------------------------------------------------------------------------------------------------- sampling, splitting


def sample(rows, n, seed):
    """n rows drawn by the seed, in their old order; all rows for n=None or where there are fewer."""
    n = min(n or len(rows), len(rows))
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), n))]


def split_rows(rows, fractions, args, dropped, key=id):
    """{split: rows} of train, validation and test. Rows with the same key stay in one split.

    Equal rows are kept once, then --num_samples are drawn, then they are shuffled. UserError for a split without rows.
    """
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


# --------------------------------------------------------------------------------------------------------- the commands
# each returns {split: rows}, a Counter of the rows that it dropped by reason, and the facts for SOURCE.json


def unifiedqa_files(folder):
    """{split: file} of one UnifiedQA data set; dev is the test split where there is no test.tsv."""
    names = {"train": "train", "validation": "validation", "dev": "validation", "test": "test"}
    files = {split: folder / f"{name}.tsv" for name, split in names.items() if (folder / f"{name}.tsv").is_file()}
    if "validation" in files and "test" not in files:
        files["test"] = files.pop("validation")
    return files


def unifiedqa_rows(file, source, dropped, encoding=None):
    """Rows of one UnifiedQA file; lines that are not a question, one tab and an answer are counted in `dropped`."""
    rows, lines = [], read_lines(file, encoding)
    for line in lines:
        cells = [cell.strip().lower() for cell in line.split("\t")]
        if len(cells) != 2:
            dropped["malformed"] += 1
        elif not cells[0].split("\\n")[0] or not cells[1]:
            dropped["empty"] += 1
        else:
            rows.append({"question": cells[0], "answer": [cells[1]], "source": source})
    if not rows:
        raise utils.UserError(f"{file}: none of its {len(lines)} lines is a question, one tab and an answer")
    return rows


def unifiedqa(args):
    """One question-answering set from the folders of UnifiedQA (Khashabi et al. 2020), in lower case as it has them."""
    root, dropped = Path(args.dir).expanduser(), collections.Counter()
    if not root.is_dir():
        raise utils.UserError(f"{root}: no such folder")
    folders = [root] if unifiedqa_files(root) else sorted(root.iterdir())
    sets = {
        os.path.basename(os.path.abspath(folder)): files for folder in folders if (files := unifiedqa_files(folder))
    }
    if not sets:
        raise utils.UserError(f"{root}: neither this folder nor one in it has train.tsv, dev.tsv or test.tsv")
    splits, sources = {"train": [], "validation": [], "test": []}, {name: {} for name in sets}
    for name, files in sets.items():
        for split, file in files.items():
            rows = sample(unifiedqa_rows(file, name, dropped, args.encoding), args.num_samples, args.seed)
            splits[split] += rows
            sources[name][split] = len(rows)
    source = local_origin(root, [file for files in sets.values() for file in files.values()])
    return splits, dropped, {**source, "licence": "see its source", "sources": sources}


def instructions(args):
    """Alpaca or Dolly (args.command), or a file with their columns."""
    dropped = collections.Counter()
    if args.file:
        path = Path(args.file).expanduser()
        rows, source = readers.read_table(path, encoding=args.encoding), local_origin(path, [path])
    else:
        loaded, source = from_hub(args.command, f"give a file: python prepare_data.py {args.command} FILE")
        rows = loaded["train"]
    names = column_names(rows)
    if not any(name in names for name in INSTRUCTION["instruction"]):  # chats, preference pairs, prompts
        made, notes = conversations.as_instructions({"file": rows}, names)
        rows = made["file"]
        print("\n".join(notes), end="\n" if notes else "")
    elif not any(name in names for name in INSTRUCTION["context"]):  # no row has an input
        rows = [{**row, "context": ""} for row in rows]
    category = {"category": ("category",)} if "category" in names else {}
    rows = pick_columns(rows, {**INSTRUCTION, **category}, source["origin"])
    kept = [row for row in rows if row["instruction"].strip() and row["response"].strip()]
    dropped["empty"] += len(rows) - len(kept)

    def prompt(row):  # Dolly asks some questions twice, with two answers: both belong into one split
        return tuple(f"{row['instruction']} {row['context']}".lower().split())

    splits = split_rows(kept, flags.SPLIT_FRACTIONS, args, dropped, prompt)
    return splits, dropped, {**source, "licence": LICENCES[args.command]}


def nli(args, name):
    """MNLI or HANS, labels by name; rows whose label the annotators did not agree on (-) are dropped."""
    (roles, labels, places), dropped, splits = NLI[name], collections.Counter(), {}
    if getattr(args, name):
        path = Path(getattr(args, name)).expanduser()
        where = {split: path / file for split, (file, _) in places.items()}
        tables = {split: read_tsv(file, dropped, args.encoding) for split, file in where.items()}
        source = local_origin(path, where.values())
    else:
        loaded, source = from_hub(name, "give local copies: --mnli DIR --hans FILE")
        where = {split: f"{flags.HUB_DATA[name][0]}, {remote}" for split, (_, remote) in places.items()}
        tables = {split: loaded[remote] for split, (_, remote) in places.items()}
    for split, table in tables.items():
        kept = []
        for row in pick_columns(table, roles, where[split]):
            row["label"] = row["label"].strip()
            if row["label"] in ("-", ""):
                dropped["no gold label"] += 1
            elif row["label"] not in labels:
                raise utils.UserError(f"{where[split]}: the label {row['label']!r} is not one of {', '.join(labels)}")
            elif not row["premise"].strip() or not row["hypothesis"].strip():
                dropped["empty"] += 1
            else:
                kept.append(row)
        if not kept:
            raise utils.UserError(f"{where[split]}: no row has a premise, a hypothesis and a label")
        splits[split] = sample(kept, args.num_samples, args.seed)
    return splits, dropped, {**source, "licence": LICENCES.get(name, "see its source")}


def split_file(args):
    """Any data file, cut by --fractions."""
    path, dropped = Path(args.file).expanduser(), collections.Counter()
    columns = [name.strip() for name in args.columns.split(",")] if args.columns else None
    rows = readers.read_table(path, columns, encoding=args.encoding)
    if not rows:
        raise utils.UserError(f"{path} has no rows")
    lists = [name for name in column_names(rows) if name.lower() in (*ANSWER, *OPTIONS)]
    classes = readers.class_names(path)
    for row in rows:  # as loading the file itself reads them
        row.update({name: cells.read(row[name]) for name in lists if name in row})
        for name, names in classes.items():
            number = row.get(name)
            row[name] = names[number] if isinstance(number, int) and 0 <= number < len(names) else ""
    splits = split_rows(rows, args.fractions, args, dropped)
    facts = {**local_origin(path, [path]), "licence": "see its source", "fractions": list(args.fractions)}
    return splits, dropped, facts
