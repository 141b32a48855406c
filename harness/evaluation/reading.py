"""What a generated text answers: a label, a number, the conclusion after its reasons; the vote of several."""

import collections
import re

from harness.data.numbers import last_number
from harness.evaluation import metrics

CONCLUDES = re.compile(r"(?:answer|label|category)\s*(?:is|:)\s*:?|####", re.I)


def label_forms(words):
    """[(pattern, label)] of the label words, longest first: as written, and without the symbols around them.

    What stands between the parts of a label does not count. "C" is "C++" without symbols only where no label is "C". An
    empty word has no form: no answer says it.
    """
    forms, bare = {}, []
    for i, word in enumerate(words):
        before, inner, after = re.fullmatch(r"([\W_]*)(.*?)([\W_]*)", word.lower().strip(), re.S).groups()
        inner = r"[\W_]+".join(map(re.escape, re.findall(r"[^\W_]+", inner)))
        forms.setdefault(re.escape(before) + inner + re.escape(after), i)
        bare.append(inner)
    for i, form in enumerate(bare):
        if form and bare.count(form) == 1:
            forms.setdefault(form, i)
    forms.pop("", None)
    guarded = []
    for form, i in sorted(forms.items(), key=lambda item: -len(item[0])):
        # a number is not read out of one with another sign or with decimals
        start = r"(?<![0-9][.,])(?<!^[-\u2212])(?<!\W[-\u2212])" if form[0].isdigit() else ""
        guarded.append((rf"(?<![^\W_]){start}{form}(?![^\W_])" + r"(?![.,][0-9])" * form[-1].isdigit(), i))
    return guarded


def read_label(answer, words):
    """The index of the one label word that stands in a free answer, None where there is none or more than one.

    Case does not count. Where a label is a part of another ("positive" of "very positive") the longer one is read.
    """
    forms = label_forms(words)
    pattern = re.compile("|".join(f"({form})" for form, _ in forms))
    if not forms:
        return None
    found = {forms[match.lastindex - 1][1] for match in pattern.finditer(answer.lower())}
    return found.pop() if len(found) == 1 else None


def conclusion(text):
    """What stands behind the last "the answer is" or "####" of a text, to the end of its line; the last line of a text
    without one.
    """
    *_, tail = CONCLUDES.split(text)
    lines = [line.strip() for line in tail.strip().splitlines() if line.strip()]
    if not lines:
        return ""
    return (lines[0] if CONCLUDES.search(text) else lines[-1]).rstrip(". ")


def vote(values):
    """The value that most of them are, the first of those that tie; None does not vote."""
    counts = collections.Counter(value for value in values if value is not None)
    return counts.most_common(1)[0][0] if counts else None


def answers(task, texts, reasons=False, samples=1):
    """[N] class indices (None: unreadable) or texts out of the [N * samples] generated ones, `samples` for an example.

    reasons: the answer stands behind them. Texts that say the same but for case, articles and punctuation are one vote,
    and so are equal numbers.
    """
    concluded = [conclusion(text) if reasons else text for text in texts]
    if task.kind == "classification":
        read = [read_label(text, task.words) for text in concluded]
        if reasons:
            read = [read_label(text, task.words) if label is None else label for text, label in zip(texts, read)]
        return [vote(read[i : i + samples]) for i in range(0, len(read), samples)]
    if task.answer_format == "number":
        numbers = [last_number(tail) or last_number(text) for tail, text in zip(concluded, texts)]
        return [vote(numbers[i : i + samples]) or "" for i in range(0, len(numbers), samples)]
    found = []
    for i in range(0, len(concluded), samples):
        some = concluded[i : i + samples]
        plain = list(map(metrics.normalise_answer, some))
        found.append(some[plain.index(vote(plain))])
    return found
