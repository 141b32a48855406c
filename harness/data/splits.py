"""Names of files, folders and hub splits -> train, validation, test."""

import re

# a name, or a word of a name -> split
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "development": "validation",
    "test": "test",
    "testing": "test",
    "validation_matched": "validation",
    "dev_matched": "validation",
}
EVAL_NAMES = ("eval", "evaluation", "heldout", "holdout", "held_out")  # the test split, validation beside a test split
OTHER_GENRES = re.compile(r"(validation|dev|test)_mismatched")  # MNLI's, which the matched ones stand for


def split_of(name, whole=False):
    """The split that a name means, by itself or by one of its words (sent_dev); "eval" for EVAL_NAMES, else None.

    whole: only by itself.
    """
    name = name.lower().replace("-", "_").replace(".", "_").replace(" ", "_")
    known = {**SPLIT_NAMES, **dict.fromkeys(EVAL_NAMES, "eval")}
    words = [name] if whole else [name, *name.split("_")]
    return None if OTHER_GENRES.search(name) else next((known[word] for word in words if word in known), None)


def assign(names):
    """({split: [names]}, [names without a split]) of the names in their order.

    eval is the test split, or the validation split beside a test split; alone it is a name like any other (HANS has
    one file, heuristics_evaluation_set).
    """
    found, others, names = {}, [], list(names)
    for name in names:
        split = split_of(name)
        (others if split is None else found.setdefault(split, [])).append(name)
    if list(found) == ["eval"]:
        return {}, names
    if "eval" in found:
        split = "validation" if "test" in found else "test"
        found.setdefault(split, []).extend(found.pop("eval"))
    return found, others
