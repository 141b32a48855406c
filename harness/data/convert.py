"""UnifiedQA, Dolly, Alpaca, MNLI with HANS, and any file -> data folders with fixed splits."""

import collections
import hashlib
import json
import os
import random
from pathlib import Path

import utils
from harness import hub
from harness.data import readers

SPLIT_SEED = 13


FRACTIONS = (0.8, 0.1, 0.1)  # train, validation, test


HUB = {
    "alpaca": ("tatsu-lab/alpaca",),
    "dolly": ("databricks/databricks-dolly-15k",),
    "mnli": ("nyu-mll/glue", "mnli"),
    "hans": ("jhu-cogsys/hans",),
}


LICENCES = {
    "alpaca": "CC BY-NC 4.0 (Stanford Alpaca's)",
    "dolly": "CC BY-SA 3.0 (databricks-dolly-15k's)",
    "hans": "MIT (HANS's)",
}


# what is written -> its column names in the wild, the first that is there
INSTRUCTION = {"instruction": ("instruction",), "context": ("context", "input"), "response": ("response", "output")}


PAIR = {
    "premise": ("premise", "sentence1"),
    "hypothesis": ("hypothesis", "sentence2"),
    "label": ("gold_label", "label"),
}


# set -> its columns, its labels, split -> (file in the local folder, name on the hub); HANS's evaluation set is one file
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


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finish(made, folder, **source):
    """Write SOURCE.json into the folder `made` and move it to its place in one step; what was there goes beside `made`."""
    files = {str(f.relative_to(made)): sha256(f) for f in sorted(made.rglob("*")) if f.is_file()}
    (made / "SOURCE.json").write_text(json.dumps({**source, "files": files}, indent=2) + "\n")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        os.replace(folder, made.with_name(made.name + ".old"))
    os.replace(made, folder)


def write_jsonl(path, rows):
    text = "".join(
        json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows
    )  # dates of a parquet file become text
    path.write_text(
        text, encoding="utf-8", errors="replace"
    )  # half an emoji (a lone surrogate) becomes a question mark


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
    hub.check_names({}, {name: HUB[name][0]})  # finds out within seconds that there is no hub
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
    found = {
        os.path.basename(os.path.abspath(folder)): files for folder in folders if (files := unifiedqa_files(folder))
    }
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
        rows, source = readers.read_table(path), local_origin(path, [path])
    else:
        loaded, source = from_hub(args.command, f"give a file: python prepare_data.py {args.command} FILE")
        rows = loaded["train"]
    category = {"category": ("category",)} if rows and "category" in rows[0] else {}
    rows = pick_columns(rows, {**INSTRUCTION, **category}, source["origin"])
    kept = [row for row in rows if row["instruction"].strip() and row["response"].strip()]
    dropped["empty"] += len(rows) - len(kept)
    # Dolly asks some questions twice, with two answers: the prompt is the key
    splits = split_rows(
        kept, FRACTIONS, args, dropped, lambda row: tuple(f"{row['instruction']} {row['context']}".lower().split())
    )
    return splits, dropped, {**source, "licence": LICENCES[args.command]}


def nli(args, name):
    """MNLI or HANS, labels by name; rows on whose label the annotators did not agree (-) are dropped."""
    (roles, labels, places), dropped, splits = NLI[name], collections.Counter(), {}
    if getattr(args, name):
        path = Path(getattr(args, name)).expanduser()
        where = {split: path / file for split, (file, _) in places.items()}
        tables, source = (
            {split: read_tsv(file, dropped) for split, file in where.items()},
            local_origin(path, where.values()),
        )
    else:
        loaded, source = from_hub(name, "give local copies: --mnli DIR --hans FILE")
        where = {split: f"{HUB[name][0]}, {remote}" for split, (_, remote) in places.items()}
        tables = {split: loaded[remote] for split, (_, remote) in places.items()}
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
    rows = readers.read_table(path, [name.strip() for name in args.columns.split(",")] if args.columns else None)
    if not rows:
        raise utils.UserError(f"{path} has no rows")
    splits = split_rows(rows, args.fractions, args, dropped)
    return (
        splits,
        dropped,
        {**local_origin(path, [path]), "licence": "see its source", "fractions": list(args.fractions)},
    )
