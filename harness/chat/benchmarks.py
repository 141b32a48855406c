"""AlpacaEval 2, MT-Bench, IFEval and files of prompts: questions in, official formats out."""

import hashlib
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from jinja2 import TemplateError

import utils
from harness import hub
from harness.chat import ifeval
from harness.data import readers, tasks

KINDS = ("alpaca_eval", "mt_bench")


# FastChat's temperature_config; what is not named there is answered at 0.7 by FastChat, greedily here
MT_TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}


# where the questions lie on the hub: repository, its type, {what: file}
HUB = {
    "alpaca_eval": ("tatsu-lab/alpaca_eval", "dataset", {"questions": "alpaca_eval_gpt4_baseline.json"}),
    "mt_bench": (
        "lmsys/mt-bench",
        "space",
        {
            "questions": "data/mt_bench/question.jsonl",
            "references": "data/mt_bench/reference_answer/gpt-4.jsonl",
            "judge_prompts": "data/judge_prompts.jsonl",
        },
    ),
}


# names in a folder, the first that is there
LOCAL = {
    "questions": (
        "question.jsonl",
        "alpaca_eval_gpt4_baseline.json",
        "gpt4_1106_preview_outputs.json",
        "alpaca_eval.json",
    ),
    "references": ("reference_answers.jsonl", "reference_answer/gpt-4.jsonl"),
    "judge_prompts": ("judge_prompts.jsonl", "../judge_prompts.jsonl"),
}


PROMPT = ("instruction", "prompt", "question", "text")


CONTEXT = ("input", "context")


REFERENCE = ("output", "response", "reference", "answer", "completion")


@dataclass(frozen=True)
class Question:
    """One question of one or more turns of the user's."""

    id: str
    turns: tuple  # [T] texts
    group: str = ""  # MT-Bench's category, AlpacaEval's dataset
    references: tuple = ()  # a text for each of the first turns, () for none
    checks: tuple = ()  # (instruction id, arguments) of IFEval, about the last answer
    index: int = 0  # its place in the whole benchmark
    author: str = ""  # who wrote the references

    def key(self):
        """Hash of what is asked."""
        return hashlib.sha256(repr((self.id, self.turns)).encode()).hexdigest()[:16]


@dataclass
class Benchmark:
    """name: alpaca_eval, mt_bench or the file's; kind: whose formats and judge are used; judge_prompts: {name: FastChat's prompt}."""

    name: str
    kind: str
    questions: list
    judge_prompts: dict

    def temperature(self, question):
        """At which a question is answered unless another is asked for; 0 is greedy."""
        return MT_TEMPERATURES.get(question.group, 0.0) if self.kind == "mt_bench" else 0.0


def load(name, data=None):
    """The Benchmark of --benchmark NAME, alpaca_eval, mt_bench or a file, from --data or from the hub.

    Raises UserError, or tasks.DataError, for files that are not there or hold no questions.
    """
    files = (
        _from_hub(name)
        if name in KINDS and not data
        else _from_disk(data or name, "--data" if data else "--benchmark or --prompts")
    )
    kind = name if name in KINDS else None
    rows = read_prompts(files["questions"])
    if not rows:
        raise utils.UserError(f"{files['questions']} holds no prompts")
    found = "mt_bench" if "turns" in rows[0] else "alpaca_eval"
    if kind and kind != found:
        raise utils.UserError(f"--data {data}: its questions are those of {found}, not of {kind}")
    read = _mt_question if found == "mt_bench" else _question
    known = readers.read_table(files["references"]) if files["references"] and found == "mt_bench" else []
    references = {str(row["question_id"]): row for row in known if "question_id" in row and row.get("choices")}
    questions = [read(row, i, files["questions"], references) for i, row in enumerate(rows)]
    twice = len(questions) - len({question.id for question in questions})
    if twice:
        raise utils.UserError(f"{files['questions']}: {twice} questions have an id that another has")
    known = readers.read_table(files["judge_prompts"]) if files["judge_prompts"] and found == "mt_bench" else []
    prompts = {row["name"]: row for row in known if {"name", "system_prompt", "prompt_template"} <= set(row)}
    strange = next(
        (
            question.id
            for question in questions
            if any(_not_text(text) for text in (*question.turns, *question.references))
        ),
        None,
    )
    if strange is not None:
        raise utils.UserError(
            f"{files['questions']}, question {strange}: a turn or a reference is no text that can be encoded"
        )
    return Benchmark(kind or Path(name).stem, found, questions, prompts)


def _from_disk(name, flag):
    """{what: file or None} of a folder, or of a file of prompts and what lies beside it."""
    place = Path(name).expanduser()
    folder = place.parent if place.is_file() else place
    found = {
        what: next((folder / file for file in names if (folder / file).is_file()), None)
        for what, names in LOCAL.items()
    }
    if place.is_file():
        found["questions"] = place
    if not place.exists() or found["questions"] is None:
        raise utils.UserError(
            f"{flag} {place}: no file of prompts there; give alpaca_eval, mt_bench, a file ({', '.join(readers.FORMATS)} or txt), or a "
            f"folder with {LOCAL['questions'][0]}"
        )
    return found


def _from_hub(name):
    """{what: file} of a benchmark on the hub or in its cache; UserError with the offline way where neither has it."""
    repository, repo_type, files = HUB[name]
    hub.check_names({}, {"--benchmark": repository})  # offline mode, and its few seconds, where the hub does not answer
    found = dict.fromkeys(LOCAL)
    for what, file in files.items():
        try:
            found[what] = hf_hub_download(repository, file, repo_type=repo_type)
        except (OSError, ValueError) as error:  # huggingface_hub's own errors are of these kinds
            raise utils.UserError(
                f"--benchmark {name}: {file} of {repository} is not to be had ({str(error).splitlines()[0][:100]}); "
                f"give --data with {LOCAL['questions'][KINDS.index(name) == 0]} or its folder"
            ) from None
    return found


def _not_text(value):
    try:
        value.encode()
    except (AttributeError, UnicodeEncodeError):  # no string, or half a surrogate pair
        return True
    return False


def read_prompts(file):
    """Rows of a file of prompts: what tasks.read_table takes, or a text file with a prompt in each line."""
    if Path(file).suffix.lower() != ".txt":
        return [{str(key).lower(): value for key, value in row.items()} for row in readers.read_table(file)]
    try:
        return [
            {"prompt": line.strip()} for line in Path(file).read_text(encoding="utf-8-sig").split("\n") if line.strip()
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise utils.UserError(f"{file} cannot be read: {error}") from None


def _mt_question(row, index, file, references):
    turns = row["turns"] if isinstance(row.get("turns"), list) else []
    if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns) or "question_id" not in row:
        raise utils.UserError(f"{file}, question {index + 1}: a question_id and a list of turns are wanted")
    known = references.get(str(row["question_id"]))
    own = (
        row.get("reference") or [] if not references else []
    )  # FastChat's judge sees those of the file of references alone
    try:
        answers = known["choices"][0]["turns"] if known else [own] if isinstance(own, str) else list(own)
    except (TypeError, KeyError, IndexError):
        raise utils.UserError(
            f"the reference answers to question {row['question_id']} are not as FastChat writes them"
        ) from None
    return Question(
        str(row["question_id"]),
        tuple(turns),
        str(row.get("category") or ""),
        tuple(answers),
        index=index,
        author=known.get("model_id", "") if known else "",
    )


def _question(row, index, file, _):
    """A question of a single turn: AlpacaEval's, IFEval's, or a row with a column of a known name."""
    prompt = next((row[name] for name in PROMPT if isinstance(row.get(name), str) and row[name].strip()), None)
    if prompt is None:
        raise utils.UserError(
            f"{file}, row {index + 1}: no prompt; one of the columns {', '.join(PROMPT)} is wanted, or turns; "
            f"there are {', '.join(map(str, row))}"
        )
    context = next((row[name] for name in CONTEXT if isinstance(row.get(name), str) and row[name].strip()), None)
    reference = next((row[name] for name in REFERENCE if isinstance(row.get(name), str) and row[name].strip()), None)
    wanted, arguments = _listed(row.get("instruction_id_list")), _listed(row.get("kwargs"))
    if (
        wanted is None
        or arguments is None
        or len(wanted) != len(arguments)
        or not all(isinstance(x, dict | None) for x in arguments)
    ):
        raise utils.UserError(
            f"{file}, row {index + 1}: instruction_id_list and kwargs are no lists of one length, of names and of objects"
        )
    made = tuple(
        (name, {key: value for key, value in (given or {}).items() if value is not None})
        for name, given in zip(wanted, arguments)
    )
    wrong = next(filter(None, (ifeval.unusable(*check) for check in made)), None)
    if wrong:
        raise utils.UserError(f"{file}, row {index + 1}: {wrong}")
    return Question(
        _id(row, index),
        ("\n\n".join(filter(None, [prompt, context])),),
        str(row.get("dataset") or row.get("category") or ""),
        (reference,) if reference else (),
        made,
        index,
        str(row.get("generator") or ""),
    )


def _id(row, index):
    """IFEval's key, an id, or the place of a row."""
    return next(
        (str(row[name]) for name in ("key", "id") if row.get(name) not in (None, "")),
        f"row {index}" if "id" in row else str(index),
    )


def _listed(cell):
    """A list, or one written as JSON in a cell of a table; [] for an empty cell, None for anything else."""
    if isinstance(cell, str) and cell.strip():
        try:
            cell = json.loads(cell)
        except ValueError:
            return None
    return cell if isinstance(cell, list) else None if cell else []


def choose(questions, n, seed=tasks.EVAL_SEED):
    """n questions, or all: each group in its share, by a fixed seed; fewer are a part of more. In the benchmark's order."""
    if n is None or n >= len(questions):
        return questions
    shuffled, groups = random.Random(seed).sample(questions, len(questions)), {}
    for question in shuffled:
        groups.setdefault(question.group, []).append(question)
    rank = {question.id: (i + 0.5) / len(group) for group in groups.values() for i, question in enumerate(group)}
    chosen = sorted(shuffled, key=lambda question: rank[question.id])[:n]
    return sorted(chosen, key=lambda question: question.index)


def eval_id(questions, *judged):
    """Hash of the questions and their order, as a row's eval_id. judged: by whom and against whom, which no other score compares with."""
    return hashlib.sha256(repr([question.key() for question in questions] + list(judged)).encode()).hexdigest()[:16]


def render(turns, answers, tokenizer=None, system=None):
    """The prompt of the turn after `answers`: a chat in the tokenizer's template, or plain text under Alpaca's headings.

    turns: the user's texts, one more than answers; tokenizer: None for plain text. UserError for a system text that the
    template refuses.
    """
    if tokenizer is None:
        blocks = [system] if system else []
        for turn, answer in zip(turns, [*answers, None]):
            blocks += [f"### Instruction:\n{turn}", "### Response:" + (f"\n{answer}" if answer is not None else "")]
        return "\n\n".join(blocks)
    messages = [{"role": "system", "content": system}] if system else []
    for turn, answer in zip(turns, [*answers, None]):
        messages.append({"role": "user", "content": turn})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise utils.UserError(f"the model's chat template refuses this conversation: {error}") from None


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
    """The lines of FastChat's data/mt_bench/model_answer/NAME.jsonl."""
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


def write_official(run, benchmark, questions, system, together=None):
    """A system's answers in the formats of the benchmark's tools. together: all Systems, whose gradings stand in one file for FastChat."""
    if benchmark.kind == "mt_bench":
        run.write_jsonl(f"model_answer/{system.name}.jsonl", mt_answers(questions, system.answers, system.name))
        for name in {row["judge"][0] for other in together or () for row in other.graded}:
            run.write_jsonl(f"model_judgment/{name}_single.jsonl", [row for other in together for row in other.graded])
    elif not (run.path("model_outputs.json").exists()):
        run.write_json("model_outputs.json", alpaca_outputs(questions, system.answers, system.name))
        if any(question.checks for question in questions):  # in the form of its responses
            run.write_jsonl(
                "ifeval_responses.jsonl",
                [{"prompt": q.turns[0], "response": system.answers[q.id][0]} for q in questions],
            )
