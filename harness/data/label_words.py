"""Words for labels whose names nobody would say, and descriptions of labels."""

import re

import utils
from harness.data import readers

AUTO = "auto"  # of --label_words


def of_names(labels):
    """[L] words out of label names: card_arrival and cardArrival are "card arrival", SPAM is "spam".

    Names stay as they are where two would become the same words.
    """
    words = [_say(name) for name in labels]
    return words if len(set(words)) == len(words) else list(labels)


def _say(name):
    parts = re.split(r"[\W_]*_[\W_]*|(?<=\w)-(?=\w)|(?<=[a-z])(?=[A-Z])", name.strip())
    said = " ".join(part for part in parts if part)
    return (said.lower() if len(parts) > 1 or re.fullmatch("[A-Z]{3,}", said) else said) or name


def descriptions(path, labels):
    """[L] a sentence about each label, from --label_descriptions: JSON {label: text}, or a table of label, description.

    UserError for a label that is missing, twice or unknown.
    """
    flag = f"--label_descriptions {path}"
    if str(path).endswith(".json"):
        pairs = list(utils.read_json(path, dict, "--label_descriptions").items())
    else:
        rows = readers.read_table(path, named=["label", "description"])
        if rows and not {"label", "description"} <= set(rows[0]):
            raise utils.UserError(f"{flag}: the columns label and description are wanted, not {', '.join(rows[0])}")
        pairs = [
            ("" if row.get("label") is None else str(row["label"]).strip(), row.get("description")) for row in rows
        ]
    found = {str(label): str(text or "").strip() for label, text in pairs}
    if len(found) < len(pairs):
        raise utils.UserError(f"{flag}: a label appears twice")
    strange = [label for label in found if label not in labels]
    lacking = [label for label in labels if not found.get(label)]
    if strange or lacking:
        what = f"has no label {strange[0]!r}" if strange else f"has no description of {lacking[0]!r}"
        raise utils.UserError(
            f"{flag}: {'the data' if strange else 'the file'} {what}; the labels are {', '.join(labels)}"
        )
    return [found[label] for label in labels]
