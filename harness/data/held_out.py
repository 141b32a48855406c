"""Which examples train, choose and evaluate."""

import random
from collections import Counter

from harness import flags

EVAL_SEED = 20240229  # chooses the evaluation examples, the same ones for every strategy and every --data_seed
HELD_OUT = 400  # evaluation examples of data without any: with a tenth of 1,500, nothing differs from anything


def make_splits(examples, data_seed, validate=True):
    """{split: Examples} -> train, validation, evaluation, name of the evaluation split, notes.

    The evaluation examples are the test split if it has labels, else validation, else chosen by EVAL_SEED: a tenth, or
    HELD_OUT where that is fewer, but at most three tenths, or the smallest named cluster where that is more.
    Examples of the evaluation split are taken out of the other two, and those of validation out of train. validate:
    False for no validation examples.
    """
    examples, notes = {split: some for split, some in examples.items() if some}, []
    train = examples.get("train", examples.get("all", []))
    eval_split = next((split for split in ("test", "validation") if split in examples), None)
    if eval_split is None:
        n = max(1, len(train) // 10, min(HELD_OUT, 3 * len(train) // 10))
        evaluation, rest = _divide(train, n, EVAL_SEED, large=True)
        if len(evaluation) > n:
            notes.append(f"{len(evaluation)} of {len(train)} examples are held out, since no named cluster is smaller")
        eval_split, train = "held_out", sorted(rest, key=lambda ex: int(ex.id.split("-")[-1]))
    else:
        evaluation = examples[eval_split]
    validation = examples.get("validation", []) if eval_split == "test" and validate else []
    if validate and not validation and len(train) > 1:
        validation, train = _divide(train, max(1, min(flags.VALIDATION_CAP, len(train) // 10)), data_seed)
    seen = {ex.key() for ex in evaluation}
    kept_validation = [ex for ex in validation if ex.key() not in seen]
    seen |= {ex.key() for ex in kept_validation}
    kept_train = [ex for ex in train if ex.key() not in seen]
    dropped = len(validation) - len(kept_validation) + len(train) - len(kept_train)
    if dropped:
        notes.append(f"{dropped} examples left out of training because they are in an evaluation split")
    return kept_train, kept_validation, evaluation, eval_split, notes


def _divide(examples, n, seed, large=False):
    """(n of the Examples drawn by seed, the others); where a column names what they are about, whole clusters, n at
    most, so that nothing is known of what is evaluated. large: the smallest cluster may be more than n.
    """
    shuffled, sizes = list(examples), Counter()
    random.Random(seed).shuffle(shuffled)
    if any(ex.about for ex in examples):
        sizes.update(ex.cluster or ex.id for ex in shuffled)
    if len(sizes) < 2 or (min(sizes.values()) > n and not large):
        return shuffled[:n], shuffled[n:]
    taken, size = set(), 0
    for name in sizes:
        if size + sizes[name] <= n:
            taken.add(name)
            size += sizes[name]
    taken = taken or {min(sizes, key=sizes.get)}
    inside = [(ex.cluster or ex.id) in taken for ex in shuffled]
    return [ex for ex, some in zip(shuffled, inside) if some], [ex for ex, some in zip(shuffled, inside) if not some]


def notes_on_copies(train, validation, evaluation):
    """[notes] on what makes evaluation examples less than independent: copies, clusters that are trained on, too, and
    one input with several labels.
    """
    notes, n = [], len(evaluation)
    copies = n - len({ex.key() for ex in evaluation})
    if copies:
        notes.append(f"{copies} of {n} evaluation examples repeat the input of another one")
    known = set(filter(None, map(shared_text, (*train, *validation))))
    shared = sum(shared_text(ex) in known for ex in evaluation)
    if shared:
        notes.append(
            f"{shared} of {n} evaluation examples share their passage, first text or cluster with training ones"
        )
    seen = {}
    for ex in (*train, *validation, *evaluation):
        seen.setdefault(ex.key(), set()).add(ex.label)
    several = sum(len(some) > 1 for some in seen.values())
    if several:
        notes.append(f"several labels for one input: {several} times")
    classes = {ex.label for ex in train}
    unknown = sum(ex.label not in classes for ex in evaluation) if train else 0
    if unknown:
        notes.append(f"{unknown} of {n} evaluation examples are of classes without a training example")
    return notes


def shared_text(example):
    """What Example.cluster is a hash of."""
    return example.about or example.context or (example.text if example.text_pair is not None else None)
