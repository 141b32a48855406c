"""Answers in the file formats of AlpacaEval, FastChat (MT-Bench), IFEval and of --mode batch."""

import hashlib
import re
import time

from harness.results import outputs


def file_name(name):
    """A model's name as a part of a file's name: as it is where it can be one, else with a hash, so that two differ."""
    safe = re.sub(r"[\\/\x00-\x1f]", "_", name).encode("utf-8", "replace").decode()
    if safe == name and name.strip(". ") and len(name.encode()) <= 120:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{safe.encode()[:80].decode(errors='ignore').strip('. ')}-{digest}"


def alpaca_outputs(questions, answers, name):
    """AlpacaEval's model_outputs.json. answers: {question id: [T] texts}; name: of the model."""
    return [
        {
            "dataset": question.group,
            "instruction": question.turns[0],
            "output": answers[question.id][0],
            "generator": name,
        }
        for question in questions
    ]


def mt_answers(questions, answers, name):
    """The lines of FastChat's data/mt_bench/model_answer/NAME.jsonl. answers: {question id: [T] texts}."""
    return [
        {
            "question_id": int(question.id) if question.id.isdecimal() else question.id,
            "answer_id": question.key(),
            "model_id": name,
            "choices": [{"index": 0, "turns": list(answers[question.id])}],
            "tstamp": time.time(),
        }
        for question in questions
    ]


def batch_answers(questions, systems):
    """The lines of --mode batch: prompt and answer of each system; lists where a question has several turns."""
    lines = []
    for system in systems:
        for question in questions:
            prompt, answer = question.turns, system.answers[question.id]
            if len(question.turns) == 1:
                prompt, answer = prompt[0], answer[0]
            lines.append({"id": question.id, "prompt": prompt, "model": system.name, "answer": answer})
            lines[-1]["script"] = outputs.SCRIPTS["answers"]  # the mark of a file that --output may replace
    return lines


def write_official(run, benchmark, questions, system, together=()):
    """Write a system's answers in the file formats of the benchmark's own tools.

    together: all Systems; FastChat reads their gradings from one file.
    """
    if benchmark.kind == "mt_bench":
        lines = mt_answers(questions, system.answers, system.name)
        run.write_jsonl(f"model_answer/{file_name(system.name)}.jsonl", lines)
        graded = [row for other in together for row in other.graded]
        for name in {row["judge"][0] for row in graded}:
            run.write_jsonl(f"model_judgment/{file_name(name)}_single.jsonl", graded)
    elif not run.path("model_outputs.json").exists():
        run.write_json("model_outputs.json", alpaca_outputs(questions, system.answers, system.name))
        if any(question.checks for question in questions):
            responses = [{"prompt": q.turns[0], "response": system.answers[q.id][0]} for q in questions]
            run.write_jsonl("ifeval_responses.jsonl", responses)
