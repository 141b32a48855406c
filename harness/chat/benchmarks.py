"""The questions of AlpacaEval 2, MT-Bench, IFEval and files of prompts, and the prompts that ask them."""

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from jinja2 import TemplateError

import utils
from harness import flags
from harness.chat import instructions
from harness.data import held_out, readers

KINDS = tuple(flags.BENCHMARKS)

# FastChat's temperature_config; FastChat answers other categories at 0.7, we answer them greedily
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

# files on the hub: (type of the repository, {what: file}); flags.BENCHMARKS has the repositories' names
HUB_FILES = {
    "alpaca_eval": ("dataset", {"questions": "alpaca_eval_gpt4_baseline.json"}),
    "mt_bench": (
        "space",
        {
            "questions": "data/mt_bench/question.jsonl",
            "references": "data/mt_bench/reference_answer/gpt-4.jsonl",
            "judge_prompts": "data/judge_prompts.jsonl",
        },
    ),
}
ALPACA_FILES = ("alpaca_eval_gpt4_baseline.json", "gpt4_1106_preview_outputs.json", "alpaca_eval.json")
# file names in a local folder; the first that exists is read
LOCAL_FILES = {
    "questions": ("question.jsonl", *ALPACA_FILES),
    "references": ("reference_answers.jsonl", "reference_answer/gpt-4.jsonl"),
    "judge_prompts": ("judge_prompts.jsonl", "../judge_prompts.jsonl"),
}
# column names of a file of prompts; the first that has text is read
PROMPT = ("instruction", "prompt", "question", "text")
CONTEXT = ("input", "context")
REFERENCE = ("output", "response", "reference", "answer", "completion")


@dataclass(frozen=True)
class Question:
    """One question with one or more user turns."""

    id: str
    turns: tuple  # [T] texts
    group: str = ""  # MT-Bench's category, AlpacaEval's dataset
    references: tuple = ()  # reference answers to the first turns; () for none
    checks: tuple = ()  # (instruction id, arguments) of IFEval, about the last answer
    index: int = 0  # position in the whole benchmark
    author: str = ""  # who wrote the references

    def key(self):
        """Hash of the id and the turns."""
        return hashlib.sha256(repr((self.id, self.turns)).encode()).hexdigest()[:16]


@dataclass
class Benchmark:
    """The questions of a benchmark or of a file, and how they are judged."""

    name: str  # alpaca_eval, mt_bench or the name of the file
    kind: str  # alpaca_eval or mt_bench: whose file formats and judge are used
    questions: list
    judge_prompts: dict  # {name: FastChat's prompt}

    def temperature(self, question):
        """The sampling temperature of a question's answers without --temperature; 0 is greedy."""
        return MT_TEMPERATURES.get(question.group, 0.0) if self.kind == "mt_bench" else 0.0


def load(name, data=None):
    """The Benchmark of --benchmark: alpaca_eval or mt_bench (from --data, else from the hub) or a file of prompts.

    Raises UserError for a missing file, and for one without usable questions.
    """
    if name in KINDS and not data:
        files = _from_hub(name)
    else:
        files = _from_disk(data or name, "--data" if data else "--benchmark or --prompts")
    rows = read_prompts(files["questions"])
    if not rows:
        raise utils.UserError(f"{files['questions']} holds no prompts")
    kind = "mt_bench" if "turns" in rows[0] else "alpaca_eval"
    if name in KINDS and name != kind:
        raise utils.UserError(f"--data {data}: its questions are those of {kind}, not of {name}")
    references, prompts = {}, {}
    if kind == "mt_bench" and files["references"]:
        table = readers.read_table(files["references"])
        references = {str(row["question_id"]): row for row in table if "question_id" in row and row.get("choices")}
    if kind == "mt_bench" and files["judge_prompts"]:
        table = readers.read_table(files["judge_prompts"])
        texts = ("name", "system_prompt", "prompt_template")
        prompts = {row["name"]: row for row in table if all(isinstance(row.get(text), str) for text in texts)}
    read = _mt_question if kind == "mt_bench" else _question
    questions = [read(row, i, files["questions"], references) for i, row in enumerate(rows)]
    _check_questions(questions, files["questions"])
    instructions.check_questions(questions, files["questions"])
    return Benchmark(name if name in KINDS else Path(name).stem, kind, questions, prompts)


def _check_questions(questions, file):
    """UserError for an id that occurs twice, and for a text that cannot be encoded as UTF-8."""
    repeated = len(questions) - len({question.id for question in questions})
    if repeated:
        raise utils.UserError(f"{file}: {repeated} questions have an id that another question has")
    for question in questions:
        if not all(map(_is_text, (*question.turns, *question.references))):
            where = f"{file}, question {question.id}"
            raise utils.UserError(f"{where}: a turn or a reference is not text that can be encoded")


def _from_disk(name, flag):
    """{what: file or None} of a folder, or of a file of prompts and the files beside it."""
    place = Path(name).expanduser()
    folder = place.parent if place.is_file() else place
    files = {
        what: next((folder / file for file in names if (folder / file).is_file()), None)
        for what, names in LOCAL_FILES.items()
    }
    files["questions"] = place if place.is_file() else files["questions"]
    if not place.exists() or files["questions"] is None:
        raise utils.UserError(
            f"{flag} {place}: no file of prompts there; give alpaca_eval, mt_bench, a file "
            f"({', '.join(flags.DATA_FORMATS)} or txt), or a folder with {LOCAL_FILES['questions'][0]}"
        )
    return files


def _from_hub(name):
    """{what: file} of a benchmark on the hub or in its cache; UserError that names the offline way."""
    repo_type, wanted = HUB_FILES[name]
    files = dict.fromkeys(LOCAL_FILES)
    for what, file in wanted.items():
        try:
            files[what] = hf_hub_download(flags.BENCHMARKS[name], file, repo_type=repo_type)
        except (OSError, ValueError) as error:  # huggingface_hub's own errors are subclasses of these
            raise utils.UserError(
                f"--benchmark {name}: {file} of {flags.BENCHMARKS[name]} is neither reachable nor in the cache "
                f"({str(error).splitlines()[0][:100]}); "
                f"give --data with {LOCAL_FILES['questions'][KINDS.index(name) == 0]} or its folder"
            ) from None
    return files


def _is_text(value):
    """False for anything but a string, and for a string with half a surrogate pair."""
    try:
        value.encode()
    except (AttributeError, UnicodeEncodeError):
        return False
    return True


def read_prompts(file):
    """Rows (dicts) of a file of prompts: a format of readers.read_table, or a text file with one prompt per line."""
    if Path(file).suffix.lower() != ".txt":
        return [{str(key).lower(): value for key, value in row.items()} for row in readers.read_table(file)]
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise utils.UserError(f"{file} cannot be read: {error}") from None
    return [{"prompt": line.strip()} for line in lines if line.strip()]


def _mt_question(row, index, file, references):
    """A question of several turns, with the reference answers of FastChat's separate file or of its own row."""
    turns = row["turns"] if isinstance(row.get("turns"), list) else []
    if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns) or "question_id" not in row:
        raise utils.UserError(f"{file}, question {index + 1}: needs a question_id and a list of turns")
    known = references.get(str(row["question_id"]))
    own = [] if references else row.get("reference") or []  # FastChat's judge reads the separate file alone
    try:
        answers = known["choices"][0]["turns"] if known else [own] if isinstance(own, str) else own
        if not isinstance(answers, list | tuple):
            raise TypeError("no list")
    except (TypeError, KeyError, IndexError):
        where = f"{file}, question {index + 1}"
        raise utils.UserError(f"{where}: its reference answers are not as FastChat writes them") from None
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

    def first_text(names):
        return next((row[name] for name in names if isinstance(row.get(name), str) and row[name].strip()), None)

    prompt, context, reference = map(first_text, (PROMPT, CONTEXT, REFERENCE))
    if prompt is None:
        raise utils.UserError(
            f"{file}, row {index + 1}: no prompt; one of the columns {', '.join(PROMPT)} or turns is needed; "
            f"there are {', '.join(map(str, row))}"
        )
    return Question(
        _id(row, index),
        ("\n\n".join(filter(None, [prompt, context])),),
        str(row.get("dataset") or row.get("category") or ""),
        (reference,) if reference else (),
        instructions.of_row(row),
        index,
        str(row.get("generator") or ""),
    )


def _id(row, index):
    """IFEval's key, an id, or the row's number."""
    return next(
        (str(row[name]) for name in ("key", "id") if row.get(name) not in (None, "")),
        f"row {index}" if "id" in row else str(index),
    )


def choose(questions, n, seed=held_out.EVAL_SEED):
    """n questions (all for None), each group in its share, in the benchmark's order; a smaller n draws a subset."""
    if n is None or n >= len(questions):
        return questions
    shuffled, groups = random.Random(seed).sample(questions, len(questions)), {}
    for question in shuffled:
        groups.setdefault(question.group, []).append(question)
    rank = {question.id: (i + 0.5) / len(group) for group in groups.values() for i, question in enumerate(group)}
    chosen = sorted(shuffled, key=lambda question: rank[question.id])[:n]
    return sorted(chosen, key=lambda question: question.index)


def eval_id(questions, *judged):
    """A row's eval_id: hash of the questions and their order. judged: the judge and the opponents, () without a judge.

    Rows are only compared where it is equal, and a win rate depends on the judge and the opponent.
    """
    return hashlib.sha256(repr([question.key() for question in questions] + list(judged)).encode()).hexdigest()[:16]


def render(turns, answers, tokenizer=None, system=None):
    """The prompt of the last turn: in the tokenizer's chat template, or plain text under Alpaca's headings.

    turns: the user's texts, one more than answers; tokenizer: None for plain text; system: the system prompt. Raises
    UserError for a system prompt that the template refuses.
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
