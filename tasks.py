"""A data set -> examples of one shape, fixed splits, and prompts.

Kinds: classification (one or two texts, labels with words), qa (question, optional context and options, reference answers),
instruction (instruction, optional context, response). The kind is recognised from the columns; flags force it.
Local files are read with pandas, hub names with `datasets`. This module imports no other helper.
"""

import argparse
import ast
import contextlib
import hashlib
import json
import random
import re
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

EVAL_SEED = 20240229  # chooses the evaluation examples; a constant, so that every strategy and every --data_seed meets the same ones
VALIDATION_CAP = 1000  # examples that choose the best checkpoint; more only costs time
FORMATS = ("jsonl", "json", "csv", "tsv", "parquet")
SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
               "test": "test", "validation_matched": "validation", "dev_matched": "validation"}  # fmt: skip

# column names in the wild, the first match wins
TEXT = ("sentence", "text", "premise", "sentence1", "question1", "review", "snippet", "content")
PAIR = ("hypothesis", "sentence2", "question2")
LABEL = ("label", "labels", "gold_label", "sentiment", "class")
QUESTION, CONTEXT = ("question", "query"), ("context", "passage", "support", "input")
ANSWER, OPTIONS = ("answers", "answer"), ("options", "choices")
RESPONSE = ("output", "response", "completion")
GROUP = ("heuristic", "source", "category")  # scored apart, besides all together

# label names -> (instruction, template, words in the order of the sorted names); words are what a language model reads and says
TEMPLATES = {
    # chosen on training examples: SmolLM2-135M is better off with the quotation marks and without an instruction
    ("negative", "positive"): ("", 'Review: "{text}"\nSentiment:', ("negative", "positive")),
    ("contradiction", "entailment", "neutral"): ("Does the premise imply the hypothesis? Answer yes, no or maybe.",
                                                 "Premise: {text}\nHypothesis: {text_pair}\nAnswer:", ("no", "yes", "maybe")),
    ("entailment", "not_entailment"): ("Does the first text imply or answer the second? Answer yes or no.",
                                       "First: {text}\nSecond: {text_pair}\nAnswer:", ("yes", "no")),
    ("entailment", "non-entailment"): ("Does the premise imply the hypothesis? Answer yes or no.",
                                       "Premise: {text}\nHypothesis: {text_pair}\nAnswer:", ("yes", "no")),
    ("equivalent", "not_equivalent"): ("Do the two sentences mean the same? Answer yes or no.",
                                       "First: {text}\nSecond: {text_pair}\nAnswer:", ("yes", "no")),
    ("duplicate", "not_duplicate"): ("Do the two questions ask the same? Answer yes or no.",
                                     "First: {text}\nSecond: {text_pair}\nAnswer:", ("yes", "no")),
    ("acceptable", "unacceptable"): ("Is the sentence grammatical? Answer yes or no.",
                                     "Sentence: {text}\nAnswer:", ("yes", "no")),
    ("no", "yes"): ("Answer the question about the passage with yes or no.",
                    "Passage: {text}\nQuestion: {text_pair}\nAnswer:", ("no", "yes")),
}  # fmt: skip
QA_INSTRUCTION = "Answer the question with a few words."
QA_CONTEXT_INSTRUCTION = "Use the text to answer the question in a few words."
QA_TEMPLATE = "Question: {text}\nAnswer:"
INSTRUCTION_TEMPLATE = (
    "### Instruction:\n{text}\n\n### Context:\n{context}\n\n### Response:"  # without its middle where there is no context
)


class DataError(ValueError):
    """The data or a data flag cannot be used; the message says what was given and what is allowed."""

    one_line = True  # the scripts print it as one line and exit with code 2


@dataclass(frozen=True)
class Example:
    """One example. `label` is an index into Task.labels (classification); `references` are the accepted answers (qa, instruction)."""

    id: str
    text: str
    text_pair: str | None = None
    context: str | None = None
    options: tuple = ()
    label: int | None = None
    references: tuple = ()
    group: str | None = None  # HANS' heuristic, UnifiedQA's source, Dolly's category

    def key(self):
        """What makes two examples the same input, whatever their case and white space."""
        parts = (self.text, self.text_pair, self.context, *self.options)
        return tuple(None if part is None else " ".join(part.lower().split()) for part in parts)


@dataclass
class Task:
    """A data set ready for use: `train` is what --data_seed drew, `validation` chooses checkpoints, `evaluation` gives the score."""

    name: str
    subset: str | None
    kind: str
    labels: tuple = ()
    words: tuple = ()
    instruction: str = ""
    template: str = ""
    train: list = field(default_factory=list)
    validation: list = field(default_factory=list)
    evaluation: list = field(default_factory=list)
    eval_split: str = "test"
    notes: list = field(default_factory=list)
    passages: list = field(default_factory=list)  # the distinct contexts of all splits

    @property
    def eval_id(self):
        """12 hex digits over the contents of the evaluation examples: rows are comparable only where it is equal."""
        contents = sorted(json.dumps([ex.text, ex.text_pair, ex.context, *ex.options, ex.label, *ex.references]) for ex in self.evaluation)
        return hashlib.sha256("\n".join(contents).encode()).hexdigest()[:12]

    def target(self, example):
        """The text that a perfect answer is: the label's word, or the first reference."""
        return self.words[example.label] if self.kind == "classification" else example.references[0]

    def summary(self):
        """One line for a person: what was recognised, and which word stands for which label."""
        sizes = (
            f"{len(self.train)} train, {len(self.validation)} validation, {len(self.evaluation)} evaluation examples ({self.eval_split})"
        )
        words = ", ".join(name if name == word else f"{name} as {word!r}" for name, word in zip(self.labels, self.words))
        return f"{self.name}: {self.kind}, {sizes}" + (f"; labels {words}" if words else "")

    def row(self):
        """The data cells of a results row."""
        cells = {"dataset": self.name, "subset": self.subset, "split": self.eval_split, "eval_id": self.eval_id,
                 "n_eval": len(self.evaluation), "note": "; ".join(self.notes) or None}  # fmt: skip
        if self.kind == "classification":
            counts = [sum(ex.label == i for ex in self.evaluation) for i in range(len(self.labels))]
            cells["majority_baseline"] = max(counts) / len(self.evaluation)
        return cells


# ----------------------------------------------------------------------------------------------------------------- reading


def read_table(path, columns=None, named=()):
    """Rows of one local file as dicts.

    TSV is read without quoting, as SST-2, MNLI and UnifiedQA are written, and its first line is a header if it holds a name
    that this module knows or one of `named`; the first line of a CSV is a header unless `columns` are given.
    """
    import pandas as pd

    path = Path(path)
    kind = path.suffix.lstrip(".").lower()
    if kind not in FORMATS:
        raise DataError(f"{path}: unknown file type; known are {', '.join(FORMATS)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        if kind in ("csv", "tsv"):
            options = {"sep": "\t", "quoting": 3} if kind == "tsv" else {}
            header = None if columns or (kind == "tsv" and not _has_header(path, named)) else 0
            with warnings.catch_warnings():  # a row with too many cells is only a warning to pandas, which cuts it
                warnings.simplefilter("error", pd.errors.ParserWarning)
                frame = pd.read_csv(path, dtype=str, keep_default_na=False, header=header, encoding="utf-8-sig", index_col=False, **options)
            if header is None:
                names = columns or _guess_columns(frame, path)
                if list(frame.iloc[0]) == list(names):  # --columns repeated the header line that is there
                    frame = frame.iloc[1:]
                if len(names) != frame.shape[1]:
                    raise DataError(f"{path} has {frame.shape[1]} columns, --columns names {len(names)}: {','.join(names)}")
                frame.columns = names
            return frame.to_dict("records")
        if kind == "parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(path).to_pylist()  # lists stay lists, where pandas would give arrays
        text = path.read_text(encoding="utf-8-sig")
        rows = json.loads(text) if kind == "json" else [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, OSError, pd.errors.ParserWarning) as error:  # pandas' parser errors and json's are ValueErrors
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as {kind}: {str(error).splitlines()[0]}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: a list of JSON objects is wanted")
    return rows


def _has_header(path, named):
    """Does the first line of a TSV hold a column name that this module knows, or one of `named`?"""
    with open(path, encoding="utf-8-sig") as file:
        cells = [cell.strip() for cell in file.readline().rstrip("\r\n").split("\t")]
    return any(cell in named or cell.lower() in (*TEXT, *LABEL, *QUESTION, *ANSWER, "instruction") for cell in cells)


def _guess_columns(frame, path):
    """Names for a file without a header line: `text, label` where the second column holds whole numbers, else UnifiedQA's pair."""
    if frame.shape[1] == 2:
        return ["text", "label"] if frame[1].str.fullmatch(r"-?\d+").all() else ["question", "answer"]
    raise DataError(
        f"{path}: no header line with a known column name, and {frame.shape[1]} columns; name them with --columns, or with "
        "--text_column and --label_column where the first line is a header"
    )


def _local_files(folder):
    """{split: path} of a folder: train|validation|test.*, also as a word of the name (sent_dev.tsv)."""
    files = [f for f in sorted(folder.iterdir()) if f.suffix.lstrip(".").lower() in FORMATS]
    found = {}
    for file in files:
        stem = file.stem.lower()
        words = [stem, *stem.replace("-", "_").replace(".", "_").split("_")]
        split = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)
        if split and split in found:
            raise DataError(f"{folder}: both {found[split].name} and {file.name} look like the {split} split; use --{split}_file")
        if split:
            found[split] = file
    if not found and len(files) == 1:
        return {"all": files[0]}
    if not found:
        names = ", ".join(f.name for f in files) or "no data files"
        raise DataError(f"{folder}: no train|validation|test.({'|'.join(FORMATS)}) in this folder, it has {names}")
    return found


def _read_splits(dataset, subset, files, columns, named):
    """{split: rows} and {column: label names} of the hub's ClassLabel columns."""
    if files:
        return {split: read_table(path, columns, named) for split, path in files.items()}, {}
    path = Path(dataset).expanduser()
    if path.exists() and subset:
        path = path / subset
        if not path.is_dir():
            raise DataError(f"--subset {subset}: {dataset} is a local path and has no such subfolder")
    if path.is_dir():
        return {split: read_table(file, columns, named) for split, file in _local_files(path).items()}, {}
    if path.is_file():
        return {"all": read_table(path, columns, named)}, {}

    from datasets import ClassLabel, load_dataset

    try:
        loaded = load_dataset(dataset, subset)
    except (OSError, ValueError, RuntimeError) as error:  # unknown name or subset, no connection, no cache
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"--dataset {dataset} {subset or ''}: not a local path and not to be had from the hub ({reason}); "
                        "give a folder or file, or run `python prepare_data.py demo` for assets/data/movie_reviews") from None  # fmt: skip
    features = next(iter(loaded.values())).features
    names = {name: feature.names for name, feature in features.items() if isinstance(feature, ClassLabel)}
    splits = {SPLIT_NAMES[split]: rows.to_list() for split, rows in loaded.items() if split in SPLIT_NAMES}
    return splits, names


# ----------------------------------------------------------------------------------------------------- columns -> examples


def _pick(row, names, forced=None, flag=None):
    """The first of `names` that is a column of `row`; a forced name must be there."""
    if forced:
        if forced not in row:
            raise DataError(f"{flag} {forced}: no such column; there are {', '.join(row)}")
        return forced
    lower = {name.lower(): name for name in row}
    return next((lower[name] for name in names if name in lower), None)


def _recognise(rows, options):
    """(kind, {role: column}) from the column names of the first row and the flags."""
    first, kind = rows[0], options["kind"]
    columns = {
        "text": _pick(first, TEXT, options["text_column"], "--text_column"),
        "text_pair": _pick(first, PAIR, options["text_pair_column"], "--text_pair_column"),
        "label": _pick(first, LABEL, options["label_column"], "--label_column"),
        "question": _pick(first, QUESTION), "context": _pick(first, CONTEXT), "options": _pick(first, OPTIONS),
        "answer": _pick(first, ANSWER), "instruction": _pick(first, ("instruction",)), "response": _pick(first, RESPONSE),
        "group": _pick(first, GROUP),
    }  # fmt: skip
    if kind == "auto":
        boolean = columns["answer"] and all(_yes_no(row.get(columns["answer"])) in ("yes", "no", "") for row in rows)
        if columns["instruction"] and columns["response"]:
            kind = "instruction"
        elif columns["label"] and (columns["text"] or columns["question"]):
            kind = "classification"
        elif columns["question"] and columns["answer"]:
            kind = "classification" if boolean and columns["context"] else "qa"
            columns["boolean"] = columns["answer"] if kind == "classification" else None
    needed = {"instruction": ("instruction", "response"), "qa": ("question", "answer"), "classification": ()}.get(kind)
    if kind == "classification" and not columns["text"] and columns["question"]:  # BoolQ: passage, question -> yes or no
        pair = columns["context"] and columns["question"]
        columns.update(text=columns["context"] or columns["question"], text_pair=pair, label=columns["label"] or columns["answer"])
    if kind == "classification" and columns["question"] and columns["label"] and columns["text"] and not columns["text_pair"]:
        columns.update(text=columns["question"], text_pair=columns["text"])  # QNLI: question, sentence
    if kind == "classification" and not (columns["text"] and columns["label"]):
        needed = ("text", "label")
    if needed is None or any(columns[role] is None for role in needed):
        raise DataError(f"the columns {', '.join(first)} are not recognised as classification (text, label), qa (question, answer) "
                        "or instruction (instruction, output); name them with --text_column, --label_column, or --columns")  # fmt: skip
    return kind, columns


def _yes_no(value):
    """BoolQ's answers, True, "false", ["yes"], as yes or no; anything else as it is, so that it is found not to be a label."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    return {"true": "yes", "false": "no"}.get(_text(value).strip().lower(), _text(value).strip().lower())


def _strings(value):
    """One answer, a list of answers, SQuAD's {'text': [...]}, or a list written as text -> a tuple of strings."""
    if isinstance(value, dict):
        value = value.get("text", [])
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
    values = [] if value is None else [value] if isinstance(value, (str, int, float, bool)) else list(value)
    return tuple(str(v).strip() for v in values if str(v).strip())


def _split_unifiedqa(text):
    """UnifiedQA's `question \\n (a) .. (b) .. \\n context`, with the two characters backslash and n, -> question, options, context."""
    question, *rest = [part.strip() for part in text.split("\\n")]
    options = ()
    if rest and rest[0].startswith("(a)"):
        listed = rest.pop(0)
        options = tuple(part.strip() for part in re.split(r"(?:^|\s)\([a-z]\)\s", listed)[1:])
    return question, options, " ".join(rest) or None


def _no_label(rows, column, declared):
    """The label texts that mean unlabelled: an empty cell, -1 in the hub's splits and in one of nothing else, MNLI's - for a tie."""
    only_minus_one = {_label_name(row.get(column)) for row in rows} == {"-1"}
    return {""} | ({"-1"} if declared or only_minus_one else set()) | ({"-"} if column == "gold_label" else set())


def _to_examples(rows, split, kind, columns, label_index, no_label):
    """Rows -> examples of one kind; rows without a label or an answer are left out."""
    examples = []
    for number, row in enumerate(rows):

        def cell(role, row=row, number=number):
            if not columns[role]:
                return None
            if columns[role] not in row:
                raise DataError(f"{split} row {number} has no column {columns[role]}; it has {', '.join(row)}")
            return row[columns[role]]

        where, context = f"{split}-{number}", None
        if kind == "classification":
            label = _label_name(row.get(columns["label"]))
            if label in no_label:
                continue
            if label not in label_index:
                raise DataError(f"{split} row {number}: label {label!r} is not in the label set {list(label_index)}")
            pair = _text(cell("text_pair")) if columns["text_pair"] else None
            example = Example(where, _text(cell("text")), pair, label=label_index[label])
        elif kind == "qa":
            question, options = _text(cell("question")), ()
            if "\\n" in question:
                question, options, context = _split_unifiedqa(question)
            if row.get(columns["options"]) is not None:
                listed = row[columns["options"]]
                options = tuple(listed.split("\n")) if isinstance(listed, str) else _strings(listed)
            if columns["context"]:
                context = _text(row.get(columns["context"])) or None
            example = Example(where, question, None, context, options, references=_strings(cell("answer")))
        else:
            context = _text(row.get(columns["context"])) or None
            response = _text(cell("response")).strip()
            example = Example(where, _text(cell("instruction")), None, context, references=(response,) if response else ())
        if columns["group"] not in (None, columns["label"]) and _text(row.get(columns["group"])):
            example = replace(example, group=_text(row[columns["group"]]))
        if example.text.strip() and (kind == "classification" or example.references):
            examples.append(example)
    return examples


def _label_name(value):
    """A label as text: 1, 1.0 and '1' have one spelling; an unknown one is empty."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _text(value).strip()


def _text(value):
    """A cell as text; None and NaN are empty."""
    return "" if value is None or value != value else str(value)


def _label_names(splits, column, declared):
    """The label set: what the hub declares, else what the training split holds (the others, where there is none)."""
    if declared:
        return declared, {str(i): i for i in range(len(declared))}
    source = "train" if splits.get("train") else next(iter(splits))
    names = {_label_name(row.get(column)) for row in splits[source]} - _no_label(splits[source], column, None)
    if len(names) > 200 or any("." in name and name.replace(".", "").isdigit() for name in names):
        raise DataError(f"--label_column {column} holds {len(names)} different values, numbers among them; a class label is wanted")
    ordered = sorted(names, key=lambda name: (0, int(name), "") if name.lstrip("-").isdigit() else (1, 0, name))
    return ordered, {name: i for i, name in enumerate(ordered)}


# ------------------------------------------------------------------------------------------------------------------ splits


def draw(examples, k, seed, balanced=True):
    """k examples by `seed`, classes in turn so that they are as balanced as the data allow; the whole list for k=None.

    balanced: look at the labels for that; where nobody may know them, False.
    """
    if k is None:
        return list(examples)
    if k > len(examples):
        raise DataError(f"{k} training examples or demonstrations are asked for, the data have {len(examples)}")
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    if not balanced:
        return shuffled[:k]
    by_label = {}
    for example in shuffled:
        by_label.setdefault(example.label, []).append(example)
    turns = [(turn, example) for group in by_label.values() for turn, example in enumerate(group)]
    return [example for _, example in sorted(turns, key=lambda pair: pair[0])[:k]]


def _make_splits(found, data_seed):
    """{split: examples} -> train, validation, evaluation, name of the evaluation split, notes.

    The evaluation examples are the test split, where it has labels, else validation, else a tenth chosen by EVAL_SEED.
    What is in the evaluation split is taken out of the other two, and what is in validation out of train.
    """
    found = {split: examples for split, examples in found.items() if examples}
    train = found.get("train", found.get("all", []))
    eval_split = next((split for split in ("test", "validation") if split in found), None)
    if eval_split is None:
        shuffled = list(train)
        random.Random(EVAL_SEED).shuffle(shuffled)
        n = max(1, len(shuffled) // 10)
        evaluation, train, eval_split = shuffled[:n], sorted(shuffled[n:], key=lambda ex: int(ex.id.split("-")[-1])), "held_out"
    else:
        evaluation = found[eval_split]
    validation = found.get("validation", []) if eval_split == "test" else []
    if not validation and len(train) > 1:
        shuffled = list(train)
        random.Random(data_seed).shuffle(shuffled)
        n = max(1, min(VALIDATION_CAP, len(shuffled) // 10))
        validation, train = shuffled[:n], shuffled[n:]
    seen = {ex.key() for ex in evaluation}
    kept_validation = [ex for ex in validation if ex.key() not in seen]
    seen |= {ex.key() for ex in kept_validation}
    kept_train = [ex for ex in train if ex.key() not in seen]
    dropped = len(validation) - len(kept_validation) + len(train) - len(kept_train)
    notes = [f"{dropped} examples left out of training because they are in an evaluation split"] if dropped else []
    return kept_train, kept_validation, evaluation, eval_split, notes


def load_task(dataset, subset=None, *, files=None, columns=None, kind="auto", text_column=None, text_pair_column=None,
              label_column=None, label_words=None, instruction=None, template=None, max_train_samples=None,
              max_validation_samples=None, max_eval_samples=None, data_seed=0):  # fmt: skip
    """Read a data set (hub name, folder or file), recognise its kind, make its splits. Raises DataError.

    files: {split: path} instead of a data set; columns: names for files without a header line.
    max_train_samples: examples drawn by data_seed, balanced over the classes; max_validation_samples: the most that choose a
    checkpoint; max_eval_samples: the first of a fixed order.
    """
    named = [name for name in (text_column, text_pair_column, label_column) if name]
    splits, declared = _read_splits(dataset, subset, files, columns, named)
    splits = {split: rows for split, rows in splits.items() if rows}
    if not splits:
        raise DataError(f"{dataset or files}: every split is empty")
    first = splits.get("train") or next(iter(splits.values()))
    kind, roles = _recognise(first, {"kind": kind, "text_column": text_column, "text_pair_column": text_pair_column,
                                     "label_column": label_column})  # fmt: skip
    if roles.get("boolean"):
        for row in (row for rows in splits.values() for row in rows):
            row[roles["boolean"]] = _yes_no(row.get(roles["boolean"]))
    labels, index = _label_names(splits, roles["label"], declared.get(roles["label"])) if kind == "classification" else ((), {})
    column = roles["label"]
    found = {
        split: _to_examples(rows, split, kind, roles, index, _no_label(rows, column, declared.get(column)) if index else ())
        for split, rows in splits.items()
    }
    empty = sum(len(rows) - len(found[split]) for split, rows in splits.items() if found[split])
    train, validation, evaluation, eval_split, notes = _make_splits(found, data_seed)
    if empty:
        notes.append(f"{empty} rows without a text, label or answer left out")
    if not evaluation:
        raise DataError(f"{dataset or files}: no example with a label or answer to evaluate on")
    shuffled = list(evaluation)
    random.Random(EVAL_SEED).shuffle(shuffled)
    cap = VALIDATION_CAP if max_validation_samples is None else max_validation_samples
    if len(validation) > cap:
        validation = random.Random(EVAL_SEED).sample(validation, cap)
    name = dataset or str(Path(next(iter(files.values()))).parent)
    task = Task(
        name,
        subset,
        kind,
        tuple(labels),
        train=draw(train, max_train_samples, data_seed),
        validation=validation,
        evaluation=shuffled[:max_eval_samples],
        passages=list(dict.fromkeys(ex.context for ex in [*evaluation, *validation, *train] if ex.context)),
        eval_split=eval_split,
        notes=notes,
    )
    return _with_prompt(task, label_words, instruction, template)


@dataclass
class OutOfDomain:
    """Evaluation examples of another data set, and what each label of the task counts as there."""

    name: str
    labels: tuple
    mapping: list  # [labels of the task] -> index into `labels`
    evaluation: list


def out_of_domain(dataset, task, max_eval_samples=None):
    """Another data set's evaluation examples for a classification task.

    dataset: a hub name, a folder, or a file all of whose rows are taken. Its labels are the task's, or entailment and its
    opposite (HANS, McCoy et al. 2019), where neutral and contradiction both count as non-entailment. DataError otherwise.
    """
    path = Path(dataset).expanduser()
    files = [path] if path.is_file() else [f for f in path.iterdir() if f.suffix[1:].lower() in FORMATS] if path.is_dir() else []
    files = {"test": files[0]} if len(files) == 1 else None
    other = load_task(None if files else dataset, files=files, kind="classification", max_eval_samples=max_eval_samples)
    paired = [any(ex.text_pair is not None for ex in some.evaluation) for some in (task, other)]
    if paired[0] != paired[1]:
        raise DataError(f"--eval_ood {dataset}: its examples have {1 + paired[1]} texts, those of {task.name} have {1 + paired[0]}")
    there = {label.lower(): i for i, label in enumerate(other.labels)}
    if sorted(there) == sorted(label.lower() for label in task.labels):
        mapping = [there[label.lower()] for label in task.labels]
    elif len(there) == 2 and "entailment" in there and "entailment" in task.labels:
        mapping = [there["entailment"] if label == "entailment" else 1 - there["entailment"] for label in task.labels]
    else:
        raise DataError(f"--eval_ood {dataset} has the labels {', '.join(other.labels)}, {task.name} has {', '.join(task.labels)}")
    return OutOfDomain(str(dataset), other.labels, mapping, other.evaluation)


# ----------------------------------------------------------------------------------------------------------------- prompts


def _with_prompt(task, label_words, instruction, template):
    """Fill in the instruction, the template and the label words: the flags', else those of TEMPLATES, else plain ones."""
    if task.kind == "classification":
        pair = any(ex.text_pair is not None for ex in task.evaluation)
        order = sorted(range(len(task.labels)), key=lambda i: task.labels[i])
        names = tuple(task.labels[i] for i in order)
        words, known = list(task.labels), TEMPLATES.get(names)
        if label_words and not all(label_words):
            raise DataError(f"--label_words {','.join(label_words)}: word {label_words.index('') + 1} is empty, which no model can score")
        if label_words and len(set(label_words)) < len(label_words):
            raise DataError(f"--label_words {','.join(label_words)}: a word stands there twice")
        if known is None and sorted(label_words or ()) == ["negative", "positive"]:
            known = TEMPLATES["negative", "positive"]
        if known and (("{text_pair}" in known[1]) != pair or (known[0] and label_words and set(label_words) != set(known[2]))):
            known = None  # a template for other fields, or an instruction that asks for other words
        if known and not label_words:
            for position, i in enumerate(order):
                words[i] = known[2][position]
        if label_words:
            words = list(label_words)
        if len(words) != len(task.labels):
            raise DataError(f"--label_words names {len(words)} words for the {len(task.labels)} labels {', '.join(task.labels)}")
        default = (f"Classify the text. Answer with one of: {', '.join(words)}.",
                   "Text: {text}\nSecond text: {text_pair}\nLabel:" if pair else "Text: {text}\nLabel:")  # fmt: skip
        task.words = tuple(words)
        task.instruction, task.template = (known or default)[:2]
    elif task.kind == "qa":
        has_context = any(ex.context for ex in task.evaluation)
        task.instruction, task.template = QA_CONTEXT_INSTRUCTION if has_context else QA_INSTRUCTION, QA_TEMPLATE
    else:
        task.instruction, task.template = "", INSTRUCTION_TEMPLATE
    task = replace(task, instruction=task.instruction if instruction is None else instruction, template=template or task.template)
    paired = task.kind == "classification" and any(ex.text_pair is not None for ex in task.evaluation)
    if paired != ("{text_pair}" in task.template):
        which = "has no {text_pair}, the examples have two texts" if paired else "has {text_pair}, the examples have one text"
        raise DataError(f"--template {task.template!r} {which}")
    if "{text}" not in task.template:
        raise DataError(f"--template {task.template!r} has no {{text}} in it")
    return task


def fill(task, example, chat=False):
    """The example's own part of a prompt: passage and options where there are any, then the template.

    In a chat an instruction without a template of the person's own stands as it is, its context below it.
    """
    if task.kind == "instruction" and chat and task.template == INSTRUCTION_TEMPLATE:
        return "\n\n".join(filter(None, [example.text, example.context]))
    template = task.template
    if "{context}" in template and not example.context:
        template = template.replace("### Context:\n{context}\n\n", "")
    parts = {"{text_pair}": example.text_pair or "", "{text}": example.text, "{context}": example.context or ""}
    body = re.sub(r"\{(?:text_pair|text|context)\}", lambda found: parts[found[0]], template)
    if example.options:
        head, _, tail = body.rpartition("\n")
        body = "\n".join(filter(None, [head, *example.options, tail]))
    return body if "{context}" in task.template or not example.context else f"Text: {example.context}\n\n{body}"


def render(task, example, demonstrations=(), tokenizer=None):
    """(prompt, separator): the text before the answer, and what stands between it and the answer.

    With a tokenizer the prompt is a chat in the tokenizer's own template, a turn for each demonstration, and the separator
    is empty; without one it is plain text. The instruction and the demonstrations come first and are the same for every
    example, so that their key-value cache can be shared.
    """
    if tokenizer is None:
        blocks = [task.instruction] if task.instruction else []
        separator = "\n" if task.template == INSTRUCTION_TEMPLATE else " "
        blocks += [f"{fill(task, demo)}{separator}{task.target(demo)}" for demo in demonstrations]
        return "\n\n".join([*blocks, fill(task, example)]), separator
    messages = []
    for demo in demonstrations:
        messages += [{"role": "user", "content": fill(task, demo, chat=True)}, {"role": "assistant", "content": task.target(demo)}]
    messages.append({"role": "user", "content": fill(task, example, chat=True)})
    if task.instruction:
        messages[0] = {"role": "user", "content": f"{task.instruction}\n\n{messages[0]['content']}"}
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), ""


def answer_end(tokenizer, chat):
    """The text that ends an answer: what the chat template closes the assistant's turn with, or the end-of-sequence token."""
    mark = "0a1b2c3d"  # in no template
    turns = [{"role": "user", "content": mark}, {"role": "assistant", "content": mark}]
    end = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(mark)[2].strip() if chat else ""
    return end or tokenizer.eos_token or ""


# ------------------------------------------------------------------------------------------------------------------- flags


def add_data_args(parser, dataset="assets/data/movie_reviews"):
    """The data flags that every script shares."""
    group = parser.add_argument_group("data")
    parser.set_defaults(default_dataset=dataset)
    group.add_argument("--dataset", help="hub name, folder with train|validation|test files, or one file "
                       f"(default: {dataset})")  # fmt: skip
    group.add_argument("--subset", help="hub configuration or subfolder, such as sst2")
    for split in ("train", "validation", "test"):
        group.add_argument(f"--{split}_file", metavar="FILE", help=f"the {split} split, instead of --dataset")
    group.add_argument("--columns", type=_comma_list, metavar="A,B,..", help="column names of a CSV or TSV without a header line")
    group.add_argument("--kind", choices=("auto", "classification", "qa", "instruction"), default="auto",
                       help="recognised from the columns unless forced")  # fmt: skip
    for role in ("text", "text_pair", "label"):
        group.add_argument(f"--{role}_column", metavar="NAME", help=f"the column with the {role.replace('_', ' ')}")
    group.add_argument("--label_words", type=_comma_list, metavar="A,B,..", help="a word for each label, in label order")
    group.add_argument("--instruction", help="the line that opens the prompt")
    group.add_argument("--template", help="the prompt of one example, with {text} and {text_pair}; \\n is a line break")
    group.add_argument("--max_train_samples", type=_count, metavar="K", help="training examples, drawn by --data_seed (default: all)")
    group.add_argument("--max_validation_samples", type=_count_or_0, metavar="N",
                       help="labelled examples that choose the checkpoint; 0: none, as a few-shot study wants it, and the last one is "
                       f"kept (default: at most {VALIDATION_CAP})")  # fmt: skip
    group.add_argument("--max_eval_samples", "--n_examples", type=_count, metavar="N",
                       help="evaluation examples, the first N of a fixed order (default: all)")  # fmt: skip
    group.add_argument("--data_seed", type=int, default=0, help="draws training examples and demonstrations (default: %(default)s)")


def _comma_list(text):
    return [part.strip() for part in text.split(",")]


def _count(text, least=1):
    if not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, not {text}")
    return int(text)


def _count_or_0(text):
    return _count(text, 0)


def check_data_args(parser, args):
    """Fill in the default data set, where neither --dataset nor files were given; refuse both. Returns args."""
    if source(args) is None and args.dataset:
        parser.error("--dataset and --train_file, --validation_file, --test_file exclude each other; name all splits by files")
    args.dataset = args.dataset or args.default_dataset
    del args.default_dataset
    return args


def from_args(args):
    """The Task that the data flags of `args` describe."""
    files = {s: getattr(args, f"{s}_file") for s in ("train", "validation", "test") if getattr(args, f"{s}_file")}
    template = args.template.replace("\\n", "\n") if args.template else None
    task = load_task(None if files else args.dataset, None if files else args.subset, files=files, columns=args.columns, kind=args.kind,
                     text_column=args.text_column, text_pair_column=args.text_pair_column, label_column=args.label_column,
                     label_words=args.label_words, instruction=args.instruction, template=template,
                     max_train_samples=args.max_train_samples, max_validation_samples=args.max_validation_samples,
                     max_eval_samples=args.max_eval_samples, data_seed=args.data_seed)  # fmt: skip
    if task.kind == "classification" and len(task.labels) < 2:
        raise DataError(f"{task.name} has the one label {task.labels[0]}; classification needs two or more")
    return task


def source(args):
    """The data set's name where the hub may be asked for it, None where files are named by flags."""
    return None if args.train_file or args.validation_file or args.test_file else args.dataset


def with_instruction(task, instruction):
    """The task with another instruction; its own where a person chose one."""
    return task if task.instruction not in ("", QA_INSTRUCTION, QA_CONTEXT_INSTRUCTION) else replace(task, instruction=instruction)


def require_kind(task, kind, what):
    """DataError where a script cannot use this kind of data."""
    if task.kind != kind:
        raise DataError(f"{what} here is for {kind} data; {task.name} was recognised as {task.kind}")
