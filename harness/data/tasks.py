"""A data set -> a Task: read, recognised, split, drawn."""

import random
from pathlib import Path

import utils
from harness import flags
from harness.data import cells, choices, conversations, labels, numbers, sources
from harness.data.columns import FORCED, column_names, recognise, to_examples, yes_no
from harness.data.examples import OutOfDomain, Task, draw, draw_in_proportion
from harness.data.held_out import EVAL_SEED, make_splits, notes_on_copies
from harness.data.label_words import descriptions
from harness.data.prompts import with_prompt


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
    question_column=None,
    context_column=None,
    options_column=None,
    answer_column=None,
    cluster_column=None,
    encoding=None,
    label_words=None,
    label_descriptions=None,
    instruction=None,
    template=None,
    answer_format="text",
    max_train_samples=None,
    max_validation_samples=None,
    max_eval_samples=None,
    label_budget=None,
    data_seed=0,
):
    """The Task of a data set (hub name, folder or file): read, recognised, split, drawn. UserError where that fails.

    files: {split: path} instead of a data set; columns: names for files without a header line; encoding: of texts that
    are not UTF-8.
    max_train_samples: examples drawn by data_seed, balanced over the classes; max_validation_samples: the most that
    choose a checkpoint; max_eval_samples: the first of a fixed order.
    label_budget: so many training examples, drawn by data_seed in the class proportions, and no validation examples;
    the other training examples are `unlabelled`.
    """
    given = (
        text_column,
        text_pair_column,
        label_column,
        question_column,
        context_column,
        options_column,
        answer_column,
        cluster_column,
    )
    named = [name for name in given if name]
    splits, declared, told = sources.read_splits(dataset, subset, files, columns, named, encoding)
    splits = {split: rows for split, rows in splits.items() if rows}
    if not splits:
        raise utils.UserError(f"{dataset or files}: every split is empty")
    roles_given = {f"{role}_column": name for role, name in zip(FORCED, given)}
    names, examples, kind, empty, more = _examples(splits, declared, kind, roles_given)
    more += _without_examples(splits, examples, files or {})
    validate = label_budget is None and max_validation_samples != 0
    train, validation, evaluation, eval_split, notes = make_splits(examples, data_seed, validate)
    notes += [*told, *more]
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
    if label_budget is None:
        drawn = draw(train, max_train_samples, data_seed)
    elif label_budget > len(train):
        raise utils.UserError(f"--label_budget {label_budget}: {name} has {len(train)} labelled training examples")
    else:
        drawn = draw_in_proportion(train, label_budget, data_seed)
    notes += notes_on_copies(drawn, validation, shuffled[:max_eval_samples])
    labelled = {ex.id for ex in drawn}
    task = Task(
        name,
        subset,
        kind,
        tuple(names),
        train=drawn,
        validation=validation,
        unlabelled=[ex for ex in train if ex.id not in labelled],
        evaluation=shuffled[:max_eval_samples],
        passages=list(dict.fromkeys(ex.context for part in examples.values() for ex in part if ex.context)),
        eval_split=eval_split,
        notes=notes,
        answer_format=answer_format,
    )
    if label_descriptions:
        require_kind(task, "classification", "--label_descriptions")
        task.descriptions = tuple(descriptions(label_descriptions, task.labels))
    return with_prompt(task, label_words, instruction, template)


def _examples(splits, declared, kind, given):
    """(label names, {split: Examples}, kind, number of rows left out, notes) of {split: rows}.

    declared: {column: label names}; given: {role_column: what its flag names}.
    """
    splits, roles, kind, notes = _recognise(splits, kind, given)
    rows = [row for part in splits.values() for row in part]
    if roles.get("boolean"):
        for row in rows:
            row[roles["boolean"]] = yes_no(row.get(roles["boolean"]))
    names, index, chosen = (), {}, None
    column = roles["label"]
    if kind == "classification":
        labels.tidy(splits, column)
        names, index = labels.label_names(splits, column, declared.get(column))
        if not index:
            there = ", ".join(column_names(rows))
            raise utils.UserError(
                f"no row of the first split has a label in the column {column}; there are {there[:300]}"
            )
        notes += labels.spellings(names)
    elif kind == "qa":
        written = sum(cells.is_written_list(row.get(roles["answer"])) for row in rows)
        if written:
            notes.append(f"{written} answers in brackets read as lists, each item as a reference of its own")
        chosen = choices.rule(rows, roles["answer"], roles["options"]) if roles["options"] else None
        if chosen:
            notes.append(f"answers read as {choices.MEANT[chosen[0]]}")
    examples = {}
    for split, part in splits.items():
        unlabelled = labels.no_label(part, column, declared.get(column)) - set(index) if index else ()
        examples[split] = to_examples(part, split, kind, roles, index, unlabelled, chosen)
    empty = sum(len(part) - len(examples[split]) for split, part in splits.items() if examples[split])
    return names, examples, kind, empty, notes


def _without_examples(splits, examples, files):
    """[a note on splits of which no row has a label or answer]. files: {split: path} that flags name, of which that is
    a UserError.
    """
    told = []
    for split, rows in splits.items():
        if examples.get(split):
            continue
        if split in files:
            there = ", ".join(column_names(rows))[:300]
            raise utils.UserError(
                f"--{split}_file {files[split]}: no row has a label or answer in the column of the other files; it has "
                f"{there}"
            )
        told.append(f"the {len(rows):,} rows of {split} have no label or answer and are not used")
    return told


def _recognise(splits, kind, given):
    """(splits, roles, kind, notes): chats, preference pairs and prompts as instructions, unless they are other data."""
    names = column_names(row for rows in splits.values() for row in rows)
    options = {"kind": kind, **given}
    asked = any(name for role, name in given.items() if role != "cluster_column")
    found = conversations.shape(names) if kind in ("auto", "instruction") and not asked else None
    if found != "completion":
        try:
            kind, roles = recognise(splits, options)
            return splits, roles, kind, []
        except utils.UserError:
            if found is None:
                raise
    made, notes = conversations.as_instructions(splits, names)
    kind, roles = recognise(made, options)
    return made, roles, kind, notes


def load_out_of_domain(dataset, task, max_eval_samples=None, encoding=None):
    """The OutOfDomain examples of another data set for a classification task.

    dataset: a hub name, a folder, or a file, of which all rows are taken. Its labels must be the task's, or entailment
    and its opposite (HANS, McCoy et al. 2019), where neutral and contradiction both count as non-entailment; else
    UserError.
    """
    options = {"kind": "classification", "max_eval_samples": max_eval_samples, "encoding": encoding}
    file = sources.only_file(dataset)
    try:
        other = load_task(None, files={"test": file}, **options) if file else load_task(dataset, **options)
    except utils.UserError as error:
        raise utils.UserError(f"--eval_ood {dataset}: {error}") from None
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
        question_column=args.question_column,
        context_column=args.context_column,
        options_column=args.options_column,
        answer_column=args.answer_column,
        cluster_column=args.cluster_column,
        encoding=args.encoding,
        label_words=args.label_words,
        label_descriptions=args.label_descriptions,
        instruction=args.instruction,
        template=template,
        answer_format=args.answer_format,
        max_train_samples=args.max_train_samples,
        max_validation_samples=args.max_validation_samples,
        max_eval_samples=args.max_eval_samples,
        label_budget=args.label_budget,
        data_seed=args.data_seed,
    )
    if task.answer_format == "number":
        require_kind(task, "qa", "--answer_format number")
        numbers.reference_numbers(task)  # refuses answers that are none
    if task.kind == "classification" and len(task.labels) < 2:
        raise utils.UserError(f"{task.name} has the one label {task.labels[0]}; classification needs two or more")
    return task


def require_kind(task, kind, what):
    """UserError where a script cannot use this kind of data. what: the script's feature that needs `kind`."""
    if task.kind != kind:
        raise utils.UserError(f"{what} here is for {kind} data; {task.name} was recognised as {task.kind}")


def out_of_domain(args, task):
    """The OutOfDomain examples of --eval_ood, None without it."""
    if not args.eval_ood:
        return None
    require_kind(task, "classification", "--eval_ood")
    return load_out_of_domain(args.eval_ood, task, args.max_eval_samples, args.encoding)
