"""Systems side by side: measures without a judge, differences, comparison.md and comparison.json."""

import json
import re
import statistics
from dataclasses import dataclass, field

from harness.chat import ifeval
from harness.evaluation import metrics
from harness.models import thoughts
from harness.results import markdown, stats

# measures of one answer: name -> (label, decimals)
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
# how a refusal begins
REFUSAL = re.compile(
    r"\b(i['’]?m sorry|i am sorry|i apologi[sz]e|my apologies|as an ai\b|"
    r"i (cannot|can['’]?t|can not|am not able to|am unable to)\b|"
    r"i['’]m (not able|unable) to\b|i (do not|don['’]?t) have the ability to\b)",
    re.I,
)


@dataclass
class System:
    """A model, with or without an adapter, that is compared: its answers and their scores. Dicts by question id."""

    name: str
    answers: dict  # [T] texts, without a thinking model's thoughts
    generated: dict = field(default_factory=dict)  # [T] texts, with them
    scores: dict = field(default_factory=dict)  # {measure: number}
    judgements: dict = field(default_factory=dict)  # {label: text}, for comparison.md
    graded: list = field(default_factory=list)  # FastChat's gradings
    cells: dict = field(default_factory=dict)  # of the row, that judging gave
    figures: dict = field(default_factory=dict)  # {label: number} of the whole system: tokens/s, perplexity, win rates


def system_of(name, questions, records, row):
    """The System of a model's answers. records: [N] of answers.answer; row: the run's, with times and perplexity."""
    # records of earlier versions hold the thoughts too, and have no "generated"
    turns = [r["turns"] if "generated" in r else list(map(thoughts.answer_of, r["turns"])) for r in records]
    system = System(name, {question.id: texts for question, texts in zip(questions, turns)})
    system.generated = {q.id: record.get("generated", record["turns"]) for q, record in zip(questions, records)}
    system.scores = {q.id: measures(q, own, record["cut"]) for q, own, record in zip(questions, turns, records)}
    checked = sum(scores.get("n_checks", 0) for scores in system.scores.values())
    followed = sum(scores.get("n_followed", 0) for scores in system.scores.values())
    system.figures = {
        "tokens/s in batches": row["tokens_per_s"],
        "tokens of an answer": row["generated_tokens"] / sum(len(record["turns"]) for record in records),
        "ms a request (p50)": row.get("latency_ms_p50"),
        "perplexity of the references": row.get("reference_perplexity"),
        "verifiable instructions followed, each counted": f"{followed} of {checked}" if checked else None,
    }
    return system


def measures(question, answers, cut):
    """{measure: number} of one question's answers, without those that cannot be measured.

    answers: [T] texts; cut: [T] bools, True if the token limit ended the answer.
    """
    asked = [ifeval.asked_for(turn) for turn in question.turns]
    if question.checks:  # a prompt with an instruction that cannot be checked here is not counted
        asked[-1] = list(question.checks) if all(ifeval.can(*check) for check in question.checks) else []
    followed = [result for answer, checks in zip(answers, asked) for result in ifeval.followed(answer, checks)]
    pairs = list(zip(answers, question.references))
    scores = {
        "answer_chars": statistics.fmean(map(len, answers)),
        "refusal_rate": statistics.fmean(map(refuses, answers)),
        "repetition_rate": statistics.fmean(map(repetition, answers)),
        "cut_rate": statistics.fmean(cut),
    }
    if followed:  # IFEval's prompt-level accuracy: all of them
        scores.update(instruction_following=float(all(followed)), n_checks=len(followed), n_followed=sum(followed))
    if pairs:
        scores["rouge_l"] = statistics.fmean(metrics.rouge_l(answer, [reference]) for answer, reference in pairs)
        scores["token_f1"] = statistics.fmean(metrics.token_f1(answer, [reference]) for answer, reference in pairs)
    return scores


def refuses(answer):
    """True if an answer begins like a refusal: a rough count, by words within its first 200 characters."""
    return bool(REFUSAL.search(answer[:200]))


def repetition(answer, n=4):
    """1 - distinct / all n-grams of words (seq-rep-n, Welleck et al. 2020); 0 for answers of at most n words."""
    words = [word.lower() for word in ifeval.words(answer)]
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def means(scores):
    """{measure: its mean over the questions that have it}. scores: dicts of numbers."""
    return {
        name: statistics.fmean(values)
        for name in MEASURES
        if (values := [each[name] for each in scores if each.get(name) is not None])
    }


def differences(first, other):
    """{measure: stats.Difference, other - first} over the questions for which both systems have the measure."""
    found = {}
    for name in MEASURES:
        pairs = [(scores.get(name), other.scores.get(key, {}).get(name)) for key, scores in first.scores.items()]
        pairs = [pair for pair in pairs if None not in pair]
        if pairs:
            found[name] = stats.paired([float(a) for a, _ in pairs], [float(b) for _, b in pairs])
    return found


def table(systems):
    """A Markdown table: a row for each measure and figure, a column for each system, and differences from the first."""
    first, others = systems[0], systems[1:]
    header = ["", *(system.name for system in systems)]
    header += [f"{other.name} - {first.name} [95 %]" for other in others]
    system_means = [means(system.scores.values()) for system in systems]
    against = [differences(first, other) for other in others]
    rows = []
    for name, (label, decimals) in MEASURES.items():
        if any(name in each for each in system_means):
            cells = [f"{each[name]:,.{decimals}f}" if name in each else "" for each in system_means]
            cells += [_difference(each.get(name), decimals) for each in against]
            n = max(sum(scores.get(name) is not None for scores in system.scores.values()) for system in systems)
            rows.append([f"{label} (n = {n})", *cells])
    for name in dict.fromkeys(name for system in systems for name in system.figures):
        values = [system.figures.get(name) for system in systems]
        if any(value is not None for value in values):
            rows.append([name, *map(_figure, values), *[""] * len(others)])
    return markdown.table(header, rows)


def _figure(value):
    """A figure as text: three digits of a small number, whole numbers as they are."""
    if not isinstance(value, float):
        return value
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _difference(found, decimals):
    """A stats.Difference as text, nothing for None."""
    if found is None:
        return ""
    interval = "" if found.low is None else f" [{found.low:+,.{decimals}f}, {found.high:+,.{decimals}f}]"
    return f"{found.delta:+,.{decimals}f}{interval}, {stats.p_text(found.p)}"


def write(path_of, benchmark, questions, systems):
    """Write comparison.json and comparison.md: the table, then each question with all answers. Returns the table.

    path_of: name of a file -> its path in the run folder; benchmark: its name.
    """
    head = table(systems)
    comparison = {
        "benchmark": benchmark,
        "systems": [
            {"name": system.name, "means": means(system.scores.values()), "figures": system.figures}
            for system in systems
        ],
        "differences": {
            other.name: {name: vars(difference) for name, difference in differences(systems[0], other).items()}
            for other in systems[1:]
        },
        "questions": [_of_question(question, systems) for question in questions],
    }
    text = json.dumps(comparison, indent=1, ensure_ascii=False)
    path_of("comparison.json").write_text(text + "\n", encoding="utf-8")
    title = f"# {benchmark}: {' and '.join(system.name for system in systems)}"
    lines = [title, "", f"{len(questions)} questions.", "", head]
    for question in questions:
        lines += _section(question, systems)
    path_of("comparison.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return head


def _of_question(question, systems):
    """A question's part of comparison.json."""
    return {
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


def _section(question, systems):
    """A question's lines of comparison.md."""
    lines = ["", f"## {question.id}{f' ({question.group})' if question.group else ''}"]
    for i, turn in enumerate(question.turns):
        lines += ["", *(f"> {line}" for line in turn.splitlines())]
        for system in systems:
            lines += ["", f"**{system.name}**", "", _fenced(system.answers[question.id][i])]
    for system in systems:
        judged = system.judgements.get(question.id)
        if judged:
            lines += ["", f"{system.name}: " + ", ".join(f"{label} {value}" for label, value in judged.items())]
    return lines


def _fenced(text):
    """A code block with a fence longer than any in the text, which shows the text unformatted."""
    fence = "~" * max(3, 1 + max((len(line) - len(line.lstrip("~")) for line in text.splitlines()), default=0))
    return f"{fence}text\n{text}\n{fence}"
