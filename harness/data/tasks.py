"""A data set -> a Task: read, recognised, split, drawn."""

import random
from pathlib import Path

import utils
from harness import flags
from harness.data import readers
from harness.data.columns import label_names, no_label, recognise, to_examples, yes_no
from harness.data.examples import OutOfDomain, Task, draw
from harness.data.prompts import with_prompt

EVAL_SEED = 20240229  # chooses the evaluation examples; a constant, so that every strategy and every --data_seed meets the same ones


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
        evaluation, train, eval_split = (
            shuffled[:n],
            sorted(shuffled[n:], key=lambda ex: int(ex.id.split("-")[-1])),
            "held_out",
        )
    else:
        evaluation = found[eval_split]
    validation = found.get("validation", []) if eval_split == "test" else []
    if not validation and len(train) > 1:
        shuffled = list(train)
        random.Random(data_seed).shuffle(shuffled)
        n = max(1, min(flags.VALIDATION_CAP, len(shuffled) // 10))
        validation, train = shuffled[:n], shuffled[n:]
    seen = {ex.key() for ex in evaluation}
    kept_validation = [ex for ex in validation if ex.key() not in seen]
    seen |= {ex.key() for ex in kept_validation}
    kept_train = [ex for ex in train if ex.key() not in seen]
    dropped = len(validation) - len(kept_validation) + len(train) - len(kept_train)
    notes = [f"{dropped} examples left out of training because they are in an evaluation split"] if dropped else []
    return kept_train, kept_validation, evaluation, eval_split, notes


def load_task(
    dataset,
    subset=None,
    *,
    files=None,
    columns=None,
    kind="auto",
    text_column=None,
    text_pair_column=None,
    label_column=None,
    label_words=None,
    instruction=None,
    template=None,
    max_train_samples=None,
    max_validation_samples=None,
    max_eval_samples=None,
    data_seed=0,
):
    """Read a data set (hub name, folder or file), recognise its kind, make its splits. Raises DataError.

    files: {split: path} instead of a data set; columns: names for files without a header line.
    max_train_samples: examples drawn by data_seed, balanced over the classes; max_validation_samples: the most that choose a
    checkpoint; max_eval_samples: the first of a fixed order.
    """
    named = [name for name in (text_column, text_pair_column, label_column) if name]
    splits, declared = readers.read_splits(dataset, subset, files, columns, named)
    splits = {split: rows for split, rows in splits.items() if rows}
    if not splits:
        raise utils.UserError(f"{dataset or files}: every split is empty")
    first = splits.get("train") or next(iter(splits.values()))
    kind, roles = recognise(
        first,
        {"kind": kind, "text_column": text_column, "text_pair_column": text_pair_column, "label_column": label_column},
    )
    if roles.get("boolean"):
        for row in (row for rows in splits.values() for row in rows):
            row[roles["boolean"]] = yes_no(row.get(roles["boolean"]))
    labels, index = (
        label_names(splits, roles["label"], declared.get(roles["label"]))
        if kind == "classification"
        else ((), {})
    )
    column = roles["label"]
    found = {
        split: to_examples(
            rows, split, kind, roles, index, no_label(rows, column, declared.get(column)) if index else ()
        )
        for split, rows in splits.items()
    }
    empty = sum(len(rows) - len(found[split]) for split, rows in splits.items() if found[split])
    train, validation, evaluation, eval_split, notes = _make_splits(found, data_seed)
    if empty:
        notes.append(f"{empty} rows without a text, label or answer left out")
    if not evaluation:
        raise utils.UserError(f"{dataset or files}: no example with a label or answer to evaluate on")
    shuffled = list(evaluation)
    random.Random(EVAL_SEED).shuffle(shuffled)
    cap = flags.VALIDATION_CAP if max_validation_samples is None else max_validation_samples
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
    return with_prompt(task, label_words, instruction, template)


def load_out_of_domain(dataset, task, max_eval_samples=None):
    """Another data set's evaluation examples for a classification task.

    dataset: a hub name, a folder, or a file all of whose rows are taken. Its labels are the task's, or entailment and its
    opposite (HANS, McCoy et al. 2019), where neutral and contradiction both count as non-entailment. DataError otherwise.
    """
    path = Path(dataset).expanduser()
    files = (
        [path]
        if path.is_file()
        else [f for f in path.iterdir() if f.suffix[1:].lower() in readers.FORMATS]
        if path.is_dir()
        else []
    )
    files = {"test": files[0]} if len(files) == 1 else None
    other = load_task(None if files else dataset, files=files, kind="classification", max_eval_samples=max_eval_samples)
    paired = [any(ex.text_pair is not None for ex in some.evaluation) for some in (task, other)]
    if paired[0] != paired[1]:
        raise utils.UserError(
            f"--eval_ood {dataset}: its examples have {1 + paired[1]} texts, those of {task.name} have {1 + paired[0]}"
        )
    there = {label.lower(): i for i, label in enumerate(other.labels)}
    if sorted(there) == sorted(label.lower() for label in task.labels):
        mapping = [there[label.lower()] for label in task.labels]
    elif len(there) == 2 and "entailment" in there and "entailment" in task.labels:
        mapping = [there["entailment"] if label == "entailment" else 1 - there["entailment"] for label in task.labels]
    else:
        raise utils.UserError(
            f"--eval_ood {dataset} has the labels {', '.join(other.labels)}, {task.name} has {', '.join(task.labels)}"
        )
    return OutOfDomain(str(dataset), other.labels, mapping, other.evaluation)


def from_args(args):
    """The Task that the data flags of `args` describe."""
    files = {s: getattr(args, f"{s}_file") for s in ("train", "validation", "test") if getattr(args, f"{s}_file")}
    template = args.template.replace("\\n", "\n") if args.template else None
    task = load_task(
        None if files else args.dataset,
        None if files else args.subset,
        files=files,
        columns=args.columns,
        kind=args.kind,
        text_column=args.text_column,
        text_pair_column=args.text_pair_column,
        label_column=args.label_column,
        label_words=args.label_words,
        instruction=args.instruction,
        template=template,
        max_train_samples=args.max_train_samples,
        max_validation_samples=args.max_validation_samples,
        max_eval_samples=args.max_eval_samples,
        data_seed=args.data_seed,
    )
    if task.kind == "classification" and len(task.labels) < 2:
        raise utils.UserError(f"{task.name} has the one label {task.labels[0]}; classification needs two or more")
    return task


def require_kind(task, kind, what):
    """DataError where a script cannot use this kind of data."""
    if task.kind != kind:
        raise utils.UserError(f"{what} here is for {kind} data; {task.name} was recognised as {task.kind}")


def out_of_domain(args, task):
    """The tasks.OutOfDomain that --eval_ood names, or None."""
    if not args.eval_ood:
        return None
    require_kind(task, "classification", "--eval_ood")
    return load_out_of_domain(args.eval_ood, task, args.max_eval_samples)
