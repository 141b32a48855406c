"""Systems side by side: measures without a judge, differences, a table."""

import json
import re
import statistics
from dataclasses import dataclass, field

from harness.chat import ifeval
from harness.evaluation import metrics
from harness.results import stats

# what is compared: name -> (label, decimals)
MEASURES = {
    "win_rate": ("win rate", 3),
    "judge_score": ("judge's rating, 1 to 10", 2),
    "instruction_following": ("all verifiable instructions followed", 3),
    "rouge_l": ("ROUGE-L against the reference", 3),
    "token_f1": ("token F1 against the reference", 3),
    "answer_chars": ("characters of an answer", 0),
    "refusal_rate": ("refusals", 3),
    "repetition_rate": ("repeated 4-grams", 3),
    "cut_rate": ("answers cut at the token limit", 3),
}


@dataclass
class System:
    """One system's answers and what is known of them. Dicts by question id."""

    name: str
    answers: dict  # [T] texts
    scores: dict = field(default_factory=dict)  # {measure: number}
    judgements: dict = field(default_factory=dict)  # as they are told
    graded: list = field(default_factory=list)  # FastChat's gradings
    figures: dict = field(default_factory=dict)  # of the whole: tokens_per_s, perplexity, win rates, ..


def measures(question, answers, cut):
    """{measure: number} of one question's answers; what cannot be measured is not there. cut: [T] bools, stopped by the limit."""
    asked = [ifeval.asked_for(turn) for turn in question.turns]
    if question.checks:  # a prompt with one that cannot be checked here is not counted
        asked[-1] = list(question.checks) if all(name in ifeval.CHECKS for name, _ in question.checks) else []
    followed = [found for answer, some in zip(answers, asked) for found in ifeval.followed(answer, some)]
    known = list(zip(answers, question.references))
    found = {
        "answer_chars": statistics.fmean(map(len, answers)),
        "refusal_rate": statistics.fmean(map(refuses, answers)),
        "repetition_rate": statistics.fmean(map(repetition, answers)),
        "cut_rate": statistics.fmean(cut),
    }
    if followed:  # IFEval's prompt-level accuracy: all of them
        found.update(instruction_following=float(all(followed)), n_checks=len(followed), n_followed=sum(followed))
    if known:
        found["rouge_l"] = statistics.fmean(metrics.rouge_l(answer, [reference]) for answer, reference in known)
        found["token_f1"] = statistics.fmean(metrics.token_f1(answer, [reference]) for answer, reference in known)
    return found


def means(scores):
    """{measure: its mean over the questions that have it}. scores: dicts of numbers."""
    return {
        name: statistics.fmean(some)
        for name in MEASURES
        if (some := [each[name] for each in scores if each.get(name) is not None])
    }


def differences(first, other):
    """{measure: report.Difference, other - first} over the questions that both have it for."""
    found = {}
    for name in MEASURES:
        ids = [
            key
            for key in first.scores
            if None not in (first.scores[key].get(name), other.scores.get(key, {}).get(name))
        ]
        if ids:
            found[name] = stats.paired(
                [float(first.scores[key][name]) for key in ids], [float(other.scores[key][name]) for key in ids]
            )
    return found


def table(systems):
    """Markdown lines: a row for each measure and figure, a column for each system, and the differences from the first."""
    first, others = systems[0], systems[1:]
    heads = [*(system.name for system in systems), *(f"{other.name} - {first.name} [95 %], p" for other in others)]
    lines = ["| " + " | ".join(["", *heads]) + " |", "| --- " * (len(heads) + 1) + "|"]
    means_of = [means(system.scores.values()) for system in systems]
    against = [differences(first, other) for other in others]
    for name, (label, decimals) in MEASURES.items():
        if any(name in some for some in means_of):
            cells = [f"{some[name]:,.{decimals}f}" if name in some else "" for some in means_of]
            cells += [_difference(found.get(name), decimals) for found in against]
            n = max(sum(each.get(name) is not None for each in system.scores.values()) for system in systems)
            lines.append("| " + " | ".join([f"{label} (n = {n})", *cells]) + " |")
    for name in dict.fromkeys(name for system in systems for name in system.figures):
        values = [system.figures.get(name) for system in systems]
        if all(value is None for value in values):
            continue
        cells = [
            "" if v is None else str(v) if not isinstance(v, float) else f"{v:,.0f}" if v >= 100 else f"{v:.3g}"
            for v in values
        ]
        lines.append("| " + " | ".join([name, *cells, *[""] * len(others)]) + " |")
    return lines


def _difference(found, decimals):
    if found is None:
        return ""
    interval = "" if found.low is None else f" [{found.low:+,.{decimals}f}, {found.high:+,.{decimals}f}]"
    return f"{found.delta:+,.{decimals}f}{interval}, {found.p:.2g}"


def write(folder, benchmark, questions, systems):
    """comparison.json and comparison.md in a folder: figures, then each question with all answers. folder: name -> path."""
    head = table(systems)
    found = {
        "benchmark": benchmark,
        "systems": [
            {"name": system.name, "means": means(system.scores.values()), "figures": system.figures}
            for system in systems
        ],
        "differences": {
            other.name: {name: vars(difference) for name, difference in differences(systems[0], other).items()}
            for other in systems[1:]
        },
        "questions": [
            {
                "id": question.id,
                "group": question.group,
                "turns": question.turns,
                "references": question.references,
                "systems": [
                    {
                        "name": system.name,
                        "answers": system.answers[question.id],
                        "scores": system.scores[question.id],
                        "judgements": system.judgements.get(question.id, {}),
                    }
                    for system in systems
                ],
            }
            for question in questions
        ],
    }
    folder("comparison.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = [
        f"# {benchmark}: {' and '.join(system.name for system in systems)}",
        "",
        f"{len(questions)} questions.",
        "",
        *head,
    ]
    for question in questions:
        lines += ["", f"## {question.id}{f' ({question.group})' if question.group else ''}"]
        for i, turn in enumerate(question.turns):
            lines += ["", *(f"> {line}" for line in turn.splitlines())]
            for system in systems:
                lines += ["", f"**{system.name}**", "", _fenced(system.answers[question.id][i])]
        for system in systems:
            told = system.judgements.get(question.id)
            lines += (
                ["", f"{system.name}: " + ", ".join(f"{key} {value}" for key, value in told.items())] if told else []
            )
    folder("comparison.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return head


def _fenced(text):
    """A block that shows the text as it is, Markdown and all."""
    fence = "~" * max(3, 1 + max((len(line) - len(line.lstrip("~")) for line in text.splitlines()), default=0))
    return f"{fence}text\n{text}\n{fence}"


REFUSAL = re.compile(
    r"\b(i['’]?m sorry|i am sorry|i apologi[sz]e|my apologies|as an ai\b|i (cannot|can['’]?t|can not|am not able to|am unable to)\b|"
    r"i['’]m (not able|unable) to\b|i (do not|don['’]?t) have the ability to\b)",
    re.I,
)


def refuses(answer):
    """Does an answer begin as refusals do, within its first 200 characters? Words alone are looked at, so this is a rough count."""
    return bool(REFUSAL.search(answer[:200]))


def repetition(answer, n=4):
    """1 - distinct / all n-grams of words (seq-rep-n, Welleck et al. 2020); 0 for an answer shorter than n + 1 words."""
    said = [word.lower() for word in ifeval.words(answer)]
    grams = [tuple(said[i : i + n]) for i in range(len(said) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
