"""Answers of models to benchmark questions, kept in a folder, and what they cost."""

import contextlib
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

import utils
from harness.chat import benchmarks, formats
from harness.evaluation import perplexity, prompting
from harness.models import engine, generation
from harness.results import provenance, store

CHUNK = 16  # questions that are answered and then written together: the most that a killed run loses


@dataclass
class Outcome:
    """A model's answers to N questions and what they cost."""

    records: list  # [N] dicts, see `answer`
    passes: list  # generation.Answers of this run; empty where all answers come from earlier runs
    spent: utils.Measurement  # of these passes
    timed: list  # generation.Timed of the first questions' first turns, each alone
    memory: dict  # cells of the memory of serving
    perplexity: dict  # cells: perplexity and bits per byte of the reference answers; {} without references


def names_of(systems):
    """{(model, adapter): a short name for files and tables}: last part of the model's path, and the adapter or its run.

    Systems that would have the same short name get their whole path as a name.
    """

    def short(model, adapter):
        path = Path(adapter or "")
        run = path.parent.name if path.name == "adapter" and path.parent.name else path.name
        return "+".join([Path(model).name, *([run] if adapter else [])])

    names = {system: short(*system) for system in systems}
    repeated = {name for name in names.values() if list(names.values()).count(name) > 1} | {"reference"}
    return {
        system: "+".join(part.strip("./").replace("/", "_") for part in system if part) + "_" * (name == "reference")
        if name in repeated
        else name
        for system, name in names.items()
    }


def answers_folder(args, model, adapter):
    """The folder of a system's answers: its name is a hash of all settings that decide them, kept in settings.json."""
    names = ("precision", "prompt_format", "system", "max_new_tokens", "temperature", "seed")
    settings = {"model": model, "adapter": adapter, **{name: getattr(args, name) for name in names}}
    later = {name: getattr(args, name) for name in ("thinking", "attn_implementation")}
    later["engine"] = None if args.engine == "hf" else utils.without_credentials(args.engine)
    settings.update({name: value for name, value in later.items() if value is not None})  # older ones keep their folder
    settings["input_id"] = provenance.input_id({"model": model, "adapter": adapter})
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    name = formats.file_name(names_of([(model, adapter)])[model, adapter])
    folder = Path(args.answers_dir) / f"{name}-{digest}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise utils.UserError(f"--answers_dir {args.answers_dir}: {error}") from None
    return folder


@contextlib.contextmanager
def locked(folder):
    """Hold the folder's lock; UserError where another run holds it."""
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise utils.UserError(f"{folder}: another run is answering the same questions; wait for it") from None


def key_of(benchmark, question, args):
    """(key of a record: hash of the question, and its temperature; that temperature)."""
    temperature = benchmark.temperature(question) if args.temperature is None else args.temperature
    return f"{question.key()}-{temperature:g}", temperature


def evaluate(model, tokenizer, benchmark, questions, file, args, chat, device_name):
    """Answer all questions, then time the first --latency_runs of them one by one. Returns an Outcome.

    file: holds the answers of earlier runs, and gets those of this run; chat: True if prompts are rendered with the
    tokenizer's chat template.
    """
    with utils.measure() as spent:
        records, passes = answer(model, tokenizer, benchmark, questions, file, args, chat, device_name)
    stop = prompting.answer_stop(model, tokenizer, "instruction", chat)

    def request(question):
        def prompt():  # rendered within the time measured
            return benchmarks.render(question.turns[:1], (), tokenizer if chat else None, args.system)

        return generation.time_request(
            model, tokenizer, prompt, args.max_new_tokens, stop=stop, add_special_tokens=not chat
        )

    timed, memory = utils.serve(request, questions[: args.latency_runs], n_warmup=1)
    references = reference_perplexity(model, tokenizer, questions, args, chat)
    return Outcome(records, passes, spent, timed, memory, references)


def answer(model, tokenizer, benchmark, questions, file, args, chat, device_name):
    """(records of all N questions, generation.Answers of this run's passes). What `file` lacks is appended to it.

    A record is a dict: key, id, device; turns [T] texts, each answered after the model's own answers to the turns
    before; generated [T] texts, with a thinking model's thoughts, which turns are without; new_tokens [T], cut [T]
    bools (stopped by --max_new_tokens); prompt_tokens, truncated and seconds, the question's share of those of its
    passes.
    """
    keys = {question.id: key_of(benchmark, question, args) for question in questions}
    records, passes = {record["key"]: record for record in store.read_jsonl(file) if "key" in record}, []
    todo = [question for question in questions if keys[question.id][0] not in records]
    if len(todo) < len(questions):
        print(f"{len(questions) - len(todo)} of {len(questions)} questions are answered in {file}")
    stop = prompting.answer_stop(model, tokenizer, "instruction", chat)
    size = CHUNK if args.batch_size == "auto" else args.batch_size

    def prompt_of(question, answers):
        return benchmarks.render(question.turns[: len(answers) + 1], answers, tokenizer if chat else None, args.system)

    def generate(prompts, options):
        return generation.generate(
            model, tokenizer, prompts, args.max_new_tokens, args.batch_size, stop, not chat, **options
        )

    if todo:  # warm-up: the first pass of a process is slower
        generation.generate(model, tokenizer, [prompt_of(todo[0], ())], 2, 1, add_special_tokens=not chat)
    for temperature in sorted({keys[question.id][1] for question in todo}):
        same = [question for question in todo if keys[question.id][1] == temperature]
        options = {"do_sample": True, "temperature": temperature} if temperature else {}
        for start in range(0, len(same), size):
            chunk = same[start : start + size]
            utils.set_seed(args.seed + int(chunk[0].key()[:8], 16))  # a resumed run samples the same answers
            sample = functools.partial(generate, options=options)
            made = _converse(chunk, sample, args.max_new_tokens, prompt_of, passes)
            for question, record in zip(chunk, made):
                key = keys[question.id][0]
                records[key] = {"key": key, "id": question.id, "device": device_name, **record}
            store.append_jsonl(file, [records[keys[question.id][0]] for question in chunk])
            print(f"{sum(key in records for key, _ in keys.values())} of {len(questions)} answered", flush=True)
    return [records[keys[question.id][0]] for question in questions], passes


def _converse(questions, generate, limit, prompt_of, passes):
    """Answer all turns of the questions, the same turn of all of them in one pass. Returns [N] dicts, see `answer`.

    generate: prompts -> generation.Answers, which are appended to `passes`; limit: of new tokens of an answer;
    prompt_of: (question, its answers so far) -> prompt.
    """
    records = [
        {"turns": [], "generated": [], "new_tokens": [], "cut": [], "prompt_tokens": 0, "truncated": 0, "seconds": 0.0}
        for _ in questions
    ]
    for turn in range(max(len(question.turns) for question in questions)):
        asked = [(question, record) for question, record in zip(questions, records) if len(question.turns) > turn]
        prompts = [prompt_of(question, record["turns"]) for question, record in asked]
        milliseconds = utils.milliseconds(lambda prompts=prompts: passes.append(generate(prompts)))
        answers = passes[-1]
        for (_, record), text, answer, ids in zip(asked, answers.texts, answers.answers, answers.ids):
            record["turns"].append(answer)
            record["generated"].append(text)  # a thinking model's thoughts included
            record["new_tokens"].append(len(ids))
            record["cut"].append(len(ids) >= limit)
            record["prompt_tokens"] += answers.prompt_tokens / len(asked)
            record["truncated"] += answers.truncated / len(asked)
            record["seconds"] += milliseconds / 1000 / len(asked)
    return records


def reference_perplexity(model, tokenizer, questions, args, chat):
    """Perplexity cells of the reference answers, each after the references of earlier turns; {} without any."""
    asked = [(question, i) for question in questions for i, text in enumerate(question.references) if text.strip()]
    if not asked or engine.is_engine(model):
        return {}
    prompts = [
        benchmarks.render(question.turns[: i + 1], question.references[:i], tokenizer if chat else None, args.system)
        for question, i in asked
    ]
    separator = "" if chat else "\n"
    references = [separator + question.references[i] for question, i in asked]
    return perplexity.reference_cells(model, tokenizer, prompts, references, args.batch_size, chat)
