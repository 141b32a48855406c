"""Answers of models to benchmark questions, kept in a folder."""

import contextlib
import hashlib
import json
from pathlib import Path

from filelock import FileLock, Timeout

import utils
from harness.chat import benchmarks
from harness.evaluation import metrics, prompting
from harness.models import generation, scoring
from harness.results import provenance, store

CHUNK = 16  # questions that are answered together and written down: what a kill can cost


def names_of(systems):
    """{(model, adapter): a short name for files and tables}: the model's last part, and the adapter's, or its run's.

    Those that would have one name get all of their path.
    """

    def short(model, adapter):
        path = Path(adapter or "")
        run = path.parent.name if path.name == "adapter" and path.parent.name else path.name
        return "+".join([Path(model).name, *([run] if adapter else [])])

    names = {system: short(*system) for system in systems}
    twice = {name for name in names.values() if list(names.values()).count(name) > 1} | {"reference"}
    return {
        system: "+".join(part.strip("./").replace("/", "_") for part in system if part) + "_" * (name == "reference")
        if name in twice
        else name
        for system, name in names.items()
    }


def answers_folder(args, model, adapter):
    """The folder of a system's answers, named by a hash of all that decides them; settings.json tells what that is."""
    names = ("precision", "prompt_format", "system", "max_new_tokens", "temperature", "seed")
    settings = {"model": model, "adapter": adapter, **{name: getattr(args, name) for name in names}}
    settings["input_id"] = provenance.input_id({"model": model, "adapter": adapter})
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    folder = Path(args.answers_dir) / f"{names_of([(model, adapter)])[model, adapter]}-{digest}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise utils.UserError(f"--answers_dir {args.answers_dir}: {error}") from None
    return folder


@contextlib.contextmanager
def locked(folder):
    """One run at a time writes into a folder of answers."""
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise utils.UserError(f"{folder}: another run is answering the same questions; wait for it") from None


def key_of(benchmark, question, args):
    """(key of a record: the question and its temperature, that temperature)."""
    temperature = benchmark.temperature(question) if args.temperature is None else args.temperature
    return f"{question.key()}-{temperature:g}", temperature


def _converse(questions, generate, limit, prompt_of, passes, options):
    """A dict for each question: the answers to all its turns, one turn of all questions in one pass, and what they took.

    generate: (prompts, options) -> inference.Answers, which are appended to passes; limit: of new tokens; prompt_of: (question,
    answers before) -> prompt.
    """
    found = [
        {"turns": [], "new_tokens": [], "cut": [], "prompt_tokens": 0, "truncated": 0, "seconds": 0.0}
        for _ in questions
    ]
    for turn in range(max(len(question.turns) for question in questions)):
        asked = [(question, record) for question, record in zip(questions, found) if len(question.turns) > turn]
        prompts = [prompt_of(question, record["turns"]) for question, record in asked]
        milliseconds = utils.milliseconds(lambda prompts=prompts: passes.append(generate(prompts, options)))
        answers = passes[-1]
        for (_, record), text, ids in zip(asked, answers.texts, answers.ids):
            record["turns"].append(text)
            record["new_tokens"].append(len(ids))
            record["cut"].append(len(ids) >= limit)
            record["prompt_tokens"] += answers.prompt_tokens / len(asked)
            record["truncated"] += answers.truncated / len(asked)
            record["seconds"] += milliseconds / 1000 / len(asked)
    return found


def answer(model, tokenizer, benchmark, questions, file, args, chat, device_name):
    """The records of all questions, what the file has and what is generated now and appended to it, and this run's inference.Answers.

    A record has the answers to all turns, each asked with the turns before it and the model's own answers, and its share of the
    seconds that its pass took.
    """
    keys = {question.id: key_of(benchmark, question, args) for question in questions}
    records, passes = {record["key"]: record for record in store.read_records(file) if "key" in record}, []
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
        some = [question for question in todo if keys[question.id][1] == temperature]
        options = {"do_sample": True, "temperature": temperature} if temperature else {}
        for start in range(0, len(some), size):
            chunk = some[start : start + size]
            utils.set_seed(args.seed + int(chunk[0].key()[:8], 16))  # the same answers in a run that goes on
            made = {
                question.id: {"key": keys[question.id][0], "id": question.id, "device": device_name}
                for question in chunk
            }
            for question, answered in zip(
                chunk, _converse(chunk, generate, args.max_new_tokens, prompt_of, passes, options)
            ):
                made[question.id].update(answered)
            store.append_records(file, made.values())
            records.update({record["key"]: record for record in made.values()})
            print(f"{sum(key in records for key, _ in keys.values())} of {len(questions)} answered", flush=True)
    return [records[keys[question.id][0]] for question in questions], passes


def reference_perplexity(model, tokenizer, questions, args, chat):
    """Per token, of the reference answers after the references of the turns before; None without references."""
    asked = [(question, i) for question in questions for i, text in enumerate(question.references) if text.strip()]
    if not asked:
        return None
    prompts = [
        benchmarks.render(question.turns[: i + 1], question.references[:i], tokenizer if chat else None, args.system)
        for question, i in asked
    ]
    separator = "" if chat else "\n"
    labels = [[separator + question.references[i]] for question, i in asked]
    found = scoring.score_labels(model, tokenizer, prompts, labels, args.batch_size, not chat)
    return metrics.perplexity(-found.total.sum(), found.n_tokens.sum())
