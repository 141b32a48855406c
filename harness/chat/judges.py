"""A local judge by likelihood, or one behind an OpenAI-compatible endpoint."""

import collections
import concurrent.futures
import math
import os
import re
import socket
import threading
import urllib.request
from pathlib import Path

import numpy as np
import openai

import utils
from harness.chat import benchmarks
from harness.chat.judge_prompts import verdict_of
from harness.data.prompts import answer_end
from harness.models import loading, scoring
from harness.results import provenance

TOKEN_CHARS = 4  # characters of a token, for the estimate before the first call; about right for English


NOT_TAKEN = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed|extra", re.I
)  # of options


SAVED_TEXT = 20_000  # characters of a reply that are kept


class LocalJudge:
    """A model whose verdict is the likelihood of its labels: nothing is parsed. A request longer than its context is unreadable."""

    def __init__(self, name, load, precision="fp32", batch_size="auto", prompt_format="auto"):
        """load: () -> (model, tokenizer) at this precision, called when there is something to judge."""
        self.load, self.batch_size, self.prompt_format = load, batch_size, prompt_format
        self.name, self.identity = (
            Path(name).name,
            ("local", str(name), provenance.input_id({"judge": str(name)}), precision),
        )

    def ask(self, requests, keep):
        """keep(request, value, details) for each: P(B), or the expected rating (as G-Eval, Liu et al. 2023)."""
        self.model, self.tokenizer = self.load()
        self.chat = loading.uses_chat(self.prompt_format, self.tokenizer)
        context = loading.context_length(self.model) or math.inf
        end = answer_end(self.tokenizer, self.chat)  # with it "1" is no part of "10"
        separator = "" if self.chat else " "
        asked = []
        for request in requests:
            prompt, last = self._prompt(request), separator + request.labels[-1] + end
            if len(self.tokenizer(prompt + last, add_special_tokens=not self.chat, verbose=False).input_ids) > context:
                keep(request, None, {"text": "the request is longer than the judge's context"})
            else:
                asked.append((request, prompt))
        if len(asked) < len(requests):
            print(
                f"{len(requests) - len(asked)} judgements are unreadable: longer than the judge's context of {context} tokens"
            )
        for kind in dict.fromkeys(request.kind for request, _ in asked):
            some = [pair for pair in asked if pair[0].kind == kind]
            for start in range(0, len(some), 16):  # a kill costs 16 judgements at most
                part = some[start : start + 16]
                labels = [f"{separator}{label}{end}" for label in part[0][0].labels]
                prompts = [prompt for _, prompt in part]
                found = scoring.score_labels(
                    self.model, self.tokenizer, prompts, labels, self.batch_size, not self.chat
                )
                with np.errstate(invalid="ignore"):
                    shares = np.exp(found.total - found.total.max(axis=1, keepdims=True))
                    shares /= shares.sum(axis=1, keepdims=True)
                for (request, _), share in zip(part, shares):
                    value = float(share[1]) if kind == "pair" else float(share @ np.arange(1, 11))
                    keep(
                        request,
                        value if math.isfinite(value) else None,
                        {"likelihoods": dict(zip(request.labels, map(float, share)))},
                    )
        self.model = None  # its memory is not that of the next model whose answers are measured

    def _prompt(self, request):
        text = "\n\n".join(text for _, text in request.messages)
        return benchmarks.render((text,), (), self.tokenizer) if self.chat else text


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

    def __init__(
        self,
        url,
        model,
        key_variable="OPENAI_API_KEY",
        workers=4,
        retries=8,
        timeout=120.0,
        prices=None,
        max_cost=None,
        max_tokens=None,
    ):
        check_endpoint(url)
        self.openai, self.model, self.workers, self.prices, self.max_cost = openai, model, workers, prices, max_cost
        self.client = openai.OpenAI(
            base_url=url, api_key=os.environ.get(key_variable) or "none", timeout=timeout, max_retries=retries
        )
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
        if (
            self.max_cost is not None and not self.spent and cost > self.max_cost
        ):  # later each call is held against what is left
            raise utils.UserError(
                f"--max_cost {self.max_cost}: {len(requests)} judgements may cost {cost:.2f} USD ({tokens_in:,} tokens in, "
                f"{tokens_out:,} out at most); raise it, or judge fewer with --num_samples"
            )
        print(
            f"{len(requests)} judgements to ask of {self.model}: about {tokens_in:,} tokens in, at most {tokens_out:,} out"
            + ("" if cost is None else f", at most {cost:.2f} USD"),
            flush=True,
        )
        todo, over, before, ended = iter(requests), threading.Event(), len(self.failed), []

        def work():
            while not over.is_set():
                request = self._next(todo, over)
                if request is None:
                    return
                try:
                    found = self._reply(request)
                except (
                    self.openai.AuthenticationError,
                    self.openai.PermissionDeniedError,
                    self.openai.NotFoundError,
                ) as error:
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
            print(
                f"--max_cost {self.max_cost} USD: {self.spent:.2f} spent, {len(requests) - len(ended)} judgements not asked for"
            )

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
        return verdict_of(request, text, alternatives), {
            "text": text[:SAVED_TEXT],
            "likelihoods": alternatives,
            "tokens": tokens,
        }

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
                named = (
                    next((name for name in self.INSTEAD if name in options and name in str(error)), None)
                    if plain
                    else None
                )
                if named is None:
                    raise
                with self.lock:
                    self.refused.add(named)


def _first_line(error):
    return (str(error).splitlines() or [""])[0][:300]
