"""Judges: a local model, whose verdict is the likelihood of its labels, or an OpenAI-compatible endpoint; and what they are asked.

Every judgement is written down as it comes, so that none is asked for twice. Imports no torch at the top.
"""

import collections
import concurrent.futures
import hashlib
import math
import os
import re
import socket
import statistics
import threading
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import instructions
import utils

LETTERS = ("A", "B")
RATINGS = tuple(map(str, range(1, 11)))
TOKEN_CHARS = 4  # characters of a token, for the estimate before the first call; about right for English
NOT_TAKEN = re.compile(r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed|extra", re.I)  # of options
SAVED_TEXT = 20_000  # characters of a reply that are kept

PAIR_PROMPT = """Two assistants answered the same request. Decide which of the two answers serves the person better. What counts is that \
an answer is correct, complete and clear and does what was asked; its length and its place do not count.

[Request]
{question}

[Answer A]
{answer_a}

[Answer B]
{answer_b}

[End of the answers]
Which answer is better? Reply with one letter, A or B, and nothing else."""

RATING_PROMPT = """Rate the assistant's {what} from 1 (useless) to 10 (excellent). What counts is that it is correct, complete and clear \
and does what was asked.

{reference}{conversation}

[End of the conversation]
Rating of the {what}, a whole number from 1 to 10, and nothing else:"""


# -------------------------------------------------------------------------------------------------------------------- requests


@dataclass(frozen=True)
class Request:
    """One thing to ask a judge. kind: pair (A or B) or rating (1 to 10)."""

    name: tuple  # whose judgement it is: (question id, turn or order, ...)
    kind: str
    messages: tuple  # ((role, text), ..)
    prompt: str = ""  # FastChat's name of the prompt
    direct: bool = True  # the reply is the verdict alone, without an explanation

    @property
    def labels(self):
        return LETTERS if self.kind == "pair" else RATINGS

    def key(self, judge):
        """Hash of all that decides the judgement."""
        return hashlib.sha256(repr((judge, self.kind, self.messages)).encode()).hexdigest()[:24]


def conversation(question, answers, until=None):
    """The turns of a question with their answers as one text; of a single turn, the answer's own."""
    parts = []
    for turn, answer in list(zip(question.turns, answers))[:until]:
        parts += [f"[User]\n{turn}", f"[Assistant]\n{answer}"]
    return "\n\n".join(parts)


def pair_requests(question, first, second, template=None, both=True):
    """Requests that ask which of two models' answers is better, in this order and swapped. first, second: [T] texts.

    both: False asks in one order only, drawn by the question's id. template: a text with {question}, {answer_a}, {answer_b}.
    """
    if len(question.turns) == 1:
        asked, shown = question.turns[0], (first[0], second[0])
    else:
        asked = "\n\n".join(f"[Turn {i}]\n{turn}" for i, turn in enumerate(question.turns, start=1))
        shown = tuple("\n\n".join(f"[Turn {i}]\n{answer}" for i, answer in enumerate(answers, start=1)) for answers in (first, second))
    orders = ("as_is", "swapped") if both else ("as_is" if int(question.key(), 16) % 2 else "swapped",)
    return [
        Request((question.id, order), "pair", (("user", fill(template or PAIR_PROMPT, question=asked, answer_a=a, answer_b=b)),))
        for order, (a, b) in (("as_is", shown), ("swapped", shown[::-1])) if order in orders
    ]  # fmt: skip


def rating_requests(question, answers, prompts=None):
    """Requests that ask for a rating of each turn's answer. prompts: FastChat's judge prompts, None for a direct rating."""
    found = []
    for turn in range(1, len(question.turns) + 1):
        known = question.references[:turn] if len(question.references) >= turn else ()
        name = "single" + ("-math" if known else "") + "-v1" + ("-multi-turn" if turn > 1 else "")
        if prompts and name in prompts and turn <= 2:
            given = {"question": question.turns[0], "answer": answers[0]}
            for i in range(turn):
                given.update({f"question_{i + 1}": question.turns[i], f"answer_{i + 1}": answers[i]})
                given.update({f"ref_answer_{i + 1}": known[i]} if known else {})
            messages = (("system", prompts[name]["system_prompt"]), ("user", fill(prompts[name]["prompt_template"], **given)))
            found.append(Request((question.id, turn), "rating", messages, name, direct=False))
        else:
            what = "answer" if len(question.turns) == 1 else f"answer to request {turn}"
            reference = "".join(f"[Reference answer {i}]\n{text}\n\n" for i, text in enumerate(known, start=1))
            text = fill(RATING_PROMPT, what=what, reference=reference, conversation=conversation(question, answers, turn))
            found.append(Request((question.id, turn), "rating", (("user", text),), "direct"))
    return found


def fill(template, **values):
    """The template with its {names} replaced, and no brace of an answer's taken for one."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template)


def read_verdict(request, text):
    """The label that a reply gives, None where it gives none or more than one: it is never guessed.

    Explained ratings are read as FastChat does, [[5]] or else [5]; the reply to a direct question must begin with the label.
    """
    if not request.direct:
        marks = re.findall(r"\[\[(\d+(?:\.\d+)?)\]\]", text) or re.findall(r"\[(\d+(?:\.\d+)?)\]", text)
        return marks[0] if marks and 1 <= float(marks[0]) <= 10 else None
    number = request.kind == "rating"
    match = re.match(r"\W*(?:(?i:rating|answer)\W+)?(\d+(?:\.\d+)?|[AB])(?:\s*$|\W*\n|\s*[.,:;)\]\"'*/])", text.strip())
    if not match or (match[1] in LETTERS) == number:
        return None
    return match[1] if not number or 1 <= float(match[1]) <= 10 else None


def verdict_of(request, text, alternatives=None):
    """A judgement's value: P(B) of a pair, the rating of a rating; None if unreadable.

    alternatives: {token: log-probability} of the reply's first token, where the endpoint tells them: the value is then that of
    the likelihoods, as AlpacaEval 2 weights its annotator, if the labels hold most of them.
    """
    if alternatives and request.direct and request.kind == "pair":
        p = {label: sum(math.exp(value) for token, value in alternatives.items() if token.strip() == label) for label in LETTERS}
        if sum(p.values()) > 0.5:
            return p["B"] / sum(p.values())
    label = read_verdict(request, text)
    return None if label is None else float(label == "B") if request.kind == "pair" else float(label)


# ---------------------------------------------------------------------------------------------------------------------- judges


class LocalJudge:
    """A model whose verdict is the likelihood of its labels: nothing is parsed. A request longer than its context is unreadable."""

    def __init__(self, name, load, precision="fp32", batch_size="auto", prompt_format="auto"):
        """load: () -> (model, tokenizer) at this precision, called when there is something to judge."""
        self.load, self.batch_size, self.prompt_format = load, batch_size, prompt_format
        self.name, self.identity = Path(name).name, ("local", str(name), utils.input_id({"judge": str(name)}), precision)

    def ask(self, requests, keep):
        """keep(request, value, details) for each: P(B), or the expected rating (as G-Eval, Liu et al. 2023)."""
        import numpy as np

        import inference
        import models
        import tasks

        self.model, self.tokenizer = self.load()
        self.chat = models.uses_chat(self.prompt_format, self.tokenizer)
        context = models.context_length(self.model) or math.inf
        end = tasks.answer_end(self.tokenizer, self.chat)  # with it "1" is no part of "10"
        separator = "" if self.chat else " "
        asked = []
        for request in requests:
            prompt, last = self._prompt(request), separator + request.labels[-1] + end
            if len(self.tokenizer(prompt + last, add_special_tokens=not self.chat, verbose=False).input_ids) > context:
                keep(request, None, {"text": "the request is longer than the judge's context"})
            else:
                asked.append((request, prompt))
        if len(asked) < len(requests):
            print(f"{len(requests) - len(asked)} judgements are unreadable: longer than the judge's context of {context} tokens")
        for kind in dict.fromkeys(request.kind for request, _ in asked):
            some = [pair for pair in asked if pair[0].kind == kind]
            for start in range(0, len(some), 16):  # a kill costs 16 judgements at most
                part = some[start : start + 16]
                labels = [f"{separator}{label}{end}" for label in part[0][0].labels]
                prompts = [prompt for _, prompt in part]
                found = inference.score_labels(self.model, self.tokenizer, prompts, labels, self.batch_size, not self.chat)
                with np.errstate(invalid="ignore"):
                    shares = np.exp(found.total - found.total.max(axis=1, keepdims=True))
                    shares /= shares.sum(axis=1, keepdims=True)
                for (request, _), share in zip(part, shares):
                    value = float(share[1]) if kind == "pair" else float(share @ np.arange(1, 11))
                    keep(request, value if math.isfinite(value) else None,
                         {"likelihoods": dict(zip(request.labels, map(float, share)))})  # fmt: skip
        self.model = None  # its memory is not that of the next model whose answers are measured

    def _prompt(self, request):
        text = "\n\n".join(text for _, text in request.messages)
        return instructions.render((text,), (), self.tokenizer) if self.chat else text


def check_endpoint(url, seconds=5.0):
    """UserError, in one line and within seconds, for an address that is none or where nothing listens."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        if not host or " " in url:
            raise ValueError("no host")
    except ValueError as error:
        raise utils.UserError(f"--judge_url {url}: no address ({error})") from None
    if urllib.request.getproxies().get(parts.scheme) and not urllib.request.proxy_bypass(host):
        return  # only the proxy knows
    try:
        socket.create_connection((host, port), seconds).close()
    except OSError as error:
        raise utils.UserError(f"--judge_url {url}: nothing answers there ({error})") from None


class EndpointJudge:
    """An OpenAI-compatible endpoint, asked by the openai client, which tries again with growing pauses (429, 5xx, no connection)."""

    # what some endpoints refuse -> what is sent instead; tried once each
    INSTEAD = {"max_tokens": "max_completion_tokens", "temperature": None, "logprobs": None}

    def __init__(self, url, model, key_variable="OPENAI_API_KEY", workers=4, retries=8, timeout=120.0, prices=None, max_cost=None,
                 max_tokens=None):  # fmt: skip
        try:
            import openai
        except ImportError:
            raise utils.UserError("--judge endpoint needs the openai client: pip install openai") from None
        check_endpoint(url)
        self.openai, self.model, self.workers, self.prices, self.max_cost = openai, model, workers, prices, max_cost
        self.client = openai.OpenAI(base_url=url, api_key=os.environ.get(key_variable) or "none", timeout=timeout, max_retries=retries)
        self.name, self.identity = Path(model).name, ("endpoint", url.rstrip("/"), model, max_tokens)
        self.max_tokens, self.refused, self.failed = max_tokens, set(), []
        self.spent, self.reserved = 0.0, 0.0  # USD, of replies and of calls that are under way
        self.lock = threading.Lock()

    def most_tokens(self, request):
        """Of a reply: a letter or number needs few, an explanation many (FastChat allows 2,048)."""
        return self.max_tokens or (16 if request.direct else 2048)

    def estimate(self, requests):
        """(tokens in, tokens out at most, USD at most or None) of requests, at four characters a token."""
        tokens_in = sum(len(text) for request in requests for _, text in request.messages) // TOKEN_CHARS
        tokens_out = sum(map(self.most_tokens, requests))
        return tokens_in, tokens_out, self.cost(tokens_in, tokens_out)

    def cost(self, tokens_in, tokens_out):
        """USD of so many tokens, None without --judge_prices."""
        return None if self.prices is None else (tokens_in * self.prices[0] + tokens_out * self.prices[1]) / 1e6

    def ask(self, requests, keep):
        """keep(request, value, details) for each that is answered, from several threads, one call at a time.

        A request that fails after all tries is in `failed` with its reason, and is asked again by the next run. UserError for what no
        other try can mend (a wrong key, an unknown model, a budget that is too small), with all that came before kept.
        """
        tokens_in, tokens_out, cost = self.estimate(requests)
        if self.max_cost is not None and not self.spent and cost > self.max_cost:  # later each call is held against what is left
            raise utils.UserError(
                f"--max_cost {self.max_cost}: {len(requests)} judgements may cost {cost:.2f} USD ({tokens_in:,} tokens in, "
                f"{tokens_out:,} out at most); raise it, or judge fewer with --num_samples"
            )
        print(f"{len(requests)} judgements to ask of {self.model}: about {tokens_in:,} tokens in, at most {tokens_out:,} out"
              + ("" if cost is None else f", at most {cost:.2f} USD"), flush=True)  # fmt: skip
        todo, over, before, ended = iter(requests), threading.Event(), len(self.failed), []

        def work():
            while not over.is_set():
                request = self._next(todo, over)
                if request is None:
                    return
                try:
                    found = self._reply(request)
                except (self.openai.AuthenticationError, self.openai.PermissionDeniedError, self.openai.NotFoundError) as error:
                    over.set()
                    raise utils.UserError(f"--judge_url: {self.model} refuses: {_first_line(error)}") from None
                except (self.openai.APIError, ValueError, AttributeError, TypeError, IndexError) as error:
                    found = f"{type(error).__name__}: {_first_line(error)}"  # after all tries, or a body that is no chat completion
                with self.lock:
                    ended.append(request)
                    if isinstance(found, str):
                        self.failed.append((request, found))
                    else:
                        keep(request, *found)

        with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
            try:
                for future in [pool.submit(work) for _ in range(min(self.workers, len(requests)))]:
                    future.result()
            finally:  # an interrupt waits for the calls that are under way, and for no more
                over.set()
        for reason, n in collections.Counter(reason for _, reason in self.failed[before:]).most_common(3):
            print(f"{n} judgements failed: {reason}")
        if len(ended) < len(requests):
            print(f"--max_cost {self.max_cost} USD: {self.spent:.2f} spent, {len(requests) - len(ended)} judgements not asked for")

    def _next(self, todo, over):
        """The next request whose cost, at most, is within what is left; None at the end."""
        with self.lock:
            request = next(todo, None)
            if request is not None and self.max_cost is not None:
                cost = self.estimate([request])[2]
                if self.spent + self.reserved + cost > self.max_cost:
                    over.set()
                    return None
                self.reserved += cost
        return request

    def _reply(self, request):
        """(value, details) of one call."""
        *tokens, most = self.estimate([request])
        paid = 0.0
        try:
            reply = self._create(request)
            if reply.usage:
                tokens = [reply.usage.prompt_tokens, reply.usage.completion_tokens]
            paid = self.cost(*tokens) or 0.0
        finally:
            with self.lock:
                self.spent += paid
                self.reserved -= 0.0 if self.max_cost is None else most
        choice = reply.choices[0]
        text = choice.message.content or ""
        first = choice.logprobs.content[0] if choice.logprobs and choice.logprobs.content else None
        alternatives = {token.token: token.logprob for token in first.top_logprobs} if first else None
        return verdict_of(request, text, alternatives), {"text": text[:SAVED_TEXT], "likelihoods": alternatives, "tokens": tokens}

    def _create(self, request):
        """The reply; what the endpoint refuses of the options (400, 422) is left out, or sent by its newer name, from then on."""
        messages = [{"role": role, "content": text} for role, text in request.messages]
        while True:
            options = {"max_tokens": self.most_tokens(request), "temperature": 0.0}
            if request.direct and request.kind == "pair":
                options["logprobs"] = True
            for name in self.refused & set(options):
                value, other = options.pop(name), self.INSTEAD[name]
                options.update({other: value} if other else {})
            if "logprobs" in options:
                options["top_logprobs"] = 20
            try:
                return self.client.chat.completions.create(model=self.model, messages=messages, **options)
            except (self.openai.BadRequestError, self.openai.UnprocessableEntityError) as error:
                plain = NOT_TAKEN.search(str(error)) or getattr(error, "code", None) == "unsupported_parameter"
                named = next((name for name in self.INSTEAD if name in options and name in str(error)), None) if plain else None
                if named is None:
                    raise
                with self.lock:
                    self.refused.add(named)


def _first_line(error):
    return (str(error).splitlines() or [""])[0][:300]


def judge(who, requests, file):
    """{request name: value} of all requests that are judged, None for an unreadable one; those in `file` are not asked again.

    A failed one is not there. The judgements are appended to the file, a line each, as they come.
    """
    known = {record["key"]: record for record in instructions.read_records(file) if "key" in record}
    keys = {request.name: request.key(who.identity) for request in requests}
    todo = {keys[request.name]: request for request in requests if keys[request.name] not in known}
    if len(todo) < len(requests):
        print(f"{len(requests) - len(todo)} of {len(requests)} judgements are in {file}")

    def keep(request, value, details):
        record = {"key": keys[request.name], "judge": who.name, "name": list(request.name), "kind": request.kind, "prompt": request.prompt,
                  "value": value, **details}  # fmt: skip
        instructions.append_records(file, [record])
        known[record["key"]] = record

    if todo:
        who.ask(list(todo.values()), keep)
    return {name: known[key] for name, key in keys.items() if key in known}


def pairwise(who, questions, opponent, system, file, template=None, both=True):
    """(AlpacaEval's annotations with the opponent as the first output, [(P(system wins), P(it wins | swapped))], failed).

    An annotation's preference is 1 + P(system wins), the mean of both orders; None where one cannot be read.
    """
    requests = [request for question in questions
                for request in pair_requests(question, opponent.answers[question.id], system.answers[question.id], template,
                                             both)]  # fmt: skip
    found, annotations, pairs = judge(who, requests, file), [], []
    asked = {request.name for request in requests}
    for question in questions:
        told = {order: found.get((question.id, order)) for order in ("as_is", "swapped") if (question.id, order) in asked}
        wins = {order: None if record is None or record["value"] is None else
                record["value"] if order == "as_is" else 1 - record["value"] for order, record in told.items()}  # fmt: skip
        if any(record is None for record in told.values()):
            continue  # a failed call: not judged
        value = None if None in wins.values() else 1 + statistics.fmean(wins.values())
        annotations.append({
            "instruction": "\n\n".join(question.turns), "dataset": question.group,
            "output_1": "\n\n".join(opponent.answers[question.id]), "generator_1": opponent.name,
            "output_2": "\n\n".join(system.answers[question.id]), "generator_2": system.name,
            "annotator": who.name, "preference": value, "orders": wins, "question_id": question.id,
        })  # fmt: skip
        if len(wins) == 2:
            pairs.append((wins["as_is"], wins["swapped"]))
    return annotations, pairs, len(questions) - len(annotations)


def gradings(who, questions, system, prompts, file):
    """FastChat's single-answer gradings of a system, a dict for each turn, -1 where no rating can be read; and how many calls failed."""
    requests = [request for question in questions for request in rating_requests(question, system.answers[question.id], prompts)]
    found = judge(who, requests, file)
    rows = []
    for request in requests:
        if request.name in found:
            record, (question, turn) = found[request.name], request.name
            rows.append({"question_id": int(question) if question.isdecimal() else question, "model": system.name,
                         "judge": [who.name, request.prompt], "user_prompt": request.messages[-1][1], "judgment": record.get("text", ""),
                         "score": -1 if record["value"] is None else record["value"], "turn": turn})  # fmt: skip
    return rows, len(requests) - len(rows)
