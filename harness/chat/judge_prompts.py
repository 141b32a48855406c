"""What a judge is asked, and how its verdict is read."""

import hashlib
import math
import re
from dataclasses import dataclass

from harness.models import thoughts

LETTERS = ("A", "B")
RATINGS = tuple(map(str, range(1, 11)))
PAIR_PROMPT = """Two assistants answered the same request. Decide which of the two answers serves the person better. \
What counts is that an answer is correct, complete and clear and does what was asked; its length and its place do not \
count.

[Request]
{question}

[Answer A]
{answer_a}

[Answer B]
{answer_b}

[End of the answers]
Which answer is better? Reply with one letter, A or B, and nothing else."""
RATING_PROMPT = """Rate the assistant's {what} from 1 (useless) to 10 (excellent). What counts is that it is correct, \
complete and clear and does what was asked.

{reference}{conversation}

[End of the conversation]
Rating of the {what}, a whole number from 1 to 10, and nothing else:"""


@dataclass(frozen=True)
class Request:
    """A question to a judge."""

    name: tuple  # (question id, order) of a pair, (question id, turn) of a rating
    kind: str  # pair (answered A or B) or rating (1 to 10)
    messages: tuple  # ((role, text), ..)
    prompt: str = ""  # its name in FastChat
    direct: bool = True  # the reply is the verdict alone, without an explanation

    @property
    def labels(self):
        return LETTERS if self.kind == "pair" else RATINGS

    def key(self, judge):
        """Hash of everything that decides the judgement. judge: its identity."""
        return hashlib.sha256(repr((judge, self.kind, self.messages)).encode()).hexdigest()[:24]


def conversation(question, answers, until=None):
    """The first `until` turns of a question with their answers, as one text."""
    parts = []
    for turn, answer in list(zip(question.turns, answers))[:until]:
        parts += [f"[User]\n{turn}", f"[Assistant]\n{answer}"]
    return "\n\n".join(parts)


def pair_requests(question, first, second, template=None, both=True):
    """Requests that ask which of two models' answers is better, in this order and swapped.

    first, second: [T] texts; template: a text with {question}, {answer_a}, {answer_b}; both: False asks in one order
    only, drawn by the question's hash.
    """
    if len(question.turns) == 1:
        asked, shown = question.turns[0], (first[0], second[0])
    else:
        asked = "\n\n".join(f"[Turn {i}]\n{turn}" for i, turn in enumerate(question.turns, start=1))
        shown = tuple(
            "\n\n".join(f"[Turn {i}]\n{answer}" for i, answer in enumerate(answers, start=1))
            for answers in (first, second)
        )
    orders = ("as_is", "swapped") if both else ("as_is" if int(question.key(), 16) % 2 else "swapped",)
    return [
        Request(
            (question.id, order),
            "pair",
            (("user", fill(template or PAIR_PROMPT, question=asked, answer_a=a, answer_b=b)),),
        )
        for order, (a, b) in (("as_is", shown), ("swapped", shown[::-1]))
        if order in orders
    ]


def rating_requests(question, answers, prompts=None):
    """Requests that ask for a rating of each turn. prompts: FastChat's judge prompts, None for a direct rating."""
    requests = []
    for turn in range(1, len(question.turns) + 1):
        known = question.references[:turn] if len(question.references) >= turn else ()
        name = "single" + ("-math" if known else "") + "-v1" + ("-multi-turn" if turn > 1 else "")
        if prompts and name in prompts and turn <= 2:
            given = {"question": question.turns[0], "answer": answers[0]}
            for i in range(turn):
                given.update({f"question_{i + 1}": question.turns[i], f"answer_{i + 1}": answers[i]})
                given.update({f"ref_answer_{i + 1}": known[i]} if known else {})
            messages = (
                ("system", prompts[name]["system_prompt"]),
                ("user", fill(prompts[name]["prompt_template"], **given)),
            )
            requests.append(Request((question.id, turn), "rating", messages, name, direct=False))
        else:
            what = "answer" if len(question.turns) == 1 else f"answer to request {turn}"
            reference = "".join(f"[Reference answer {i}]\n{text}\n\n" for i, text in enumerate(known, start=1))
            text = fill(
                RATING_PROMPT, what=what, reference=reference, conversation=conversation(question, answers, turn)
            )
            requests.append(Request((question.id, turn), "rating", (("user", text),), "direct"))
    return requests


def fill(template, **values):
    """The template with its {names} replaced; braces in the values are left alone."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template)


# a direct reply: the label, perhaps behind its name, and the end of its line; "1. It is right" begins a list
NAMED = r"(?i:(?:my |the |final |overall )*(?:rating|answer|verdict|choice|winner|response|assistant)(?: is)?)\W+"
DIRECT = re.compile(rf"\W*(?:{NAMED})?(\d+(?:\.\d+)?|[AB])(?:[^\w\n/]*(?:\n|$)|\s*/\s*10\b|\s+out\s+of\s+10\b)")
REASONED = re.compile(r"([AB])[.,:;]\s")  # of a pair, "B, since it is complete": only if no other letter stands alone
# a sentence that prefers one answer: "Answer B is better", "the better answer is B"
WHICH = r"(?i:answer|assistant|response|option|candidate)\W*"
BETTER = r"(?i:better|best|stronger|preferable|superior)"
PREFERS = re.compile(
    rf"\b{WHICH}\b([AB])\b\W*\s+(?i:is)\s+(?i:(?:clearly|overall|much|slightly|definitely|the)\s+)*{BETTER}\b"
    rf"|\b{BETTER}\s+(?i:one|answer|assistant|response|option)\s+(?i:is)\s+\W*(?:{WHICH})?\b([AB])\b"
)


def read_verdict(request, text):
    """The label that a reply gives behind its thoughts; None, never a guess, where it gives none or more than one.

    Explained ratings are read as in FastChat, [[5]] or else [5]. The first line of a reply to a direct request must be
    the label alone; of a pair, the reply may also mark one as [[B]], prefer one in words (PREFERS), or give a reason
    behind the letter (REASONED). Whatever of these it holds must agree.
    """
    text = thoughts.answer_of(text).strip()
    if not request.direct:
        marks = re.findall(r"\[\[(\d+(?:\.\d+)?)\]\]", text) or re.findall(r"\[(\d+(?:\.\d+)?)\]", text)
        return marks[0] if marks and 1 <= float(marks[0]) <= 10 else None
    match = DIRECT.match(text)
    if request.kind == "rating":
        return match[1] if match and match[1] not in LETTERS and 1 <= float(match[1]) <= 10 else None
    preferred = re.findall(r"\[\[([AB])\]\]", text) or [first or second for first, second in PREFERS.findall(text)]
    if match:
        preferred.append(match[1])
    elif not preferred and REASONED.match(text):
        preferred = re.findall(r"\b[AB]\b", text)
    return preferred[0] if len(set(preferred)) == 1 and preferred[0] in LETTERS else None


def verdict_of(request, text, alternatives=None):
    """A judgement's value: P(B) of a pair, the rating of a rating; None if unreadable.

    alternatives: {token: log-probability} of the reply's first token, where the endpoint gives them. If A and B have
    more than half of the probability, P(B) comes from it, as AlpacaEval 2 weights its annotator; else from the text.
    """
    if alternatives and request.direct and request.kind == "pair":
        p = {
            label: sum(math.exp(value) for token, value in alternatives.items() if token.strip() == label)
            for label in LETTERS
        }
        if sum(p.values()) > 0.5:
            return p["B"] / sum(p.values())
    label = read_verdict(request, text)
    return None if label is None else float(label == "B") if request.kind == "pair" else float(label)
