"""The judges: a local model that judges by likelihood, and a model behind an OpenAI-compatible endpoint."""

import collections
import concurrent.futures
import math
import os
import re
import socket
import threading
import urllib.parse
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

CHUNK = 16  # requests that a local judge answers and then writes together: the most that a killed run loses
TOKEN_CHARS = 4  # characters of a token, for the cost estimate before the first call; about right for English
SAVED_TEXT = 20_000  # characters of a reply that are kept
# an endpoint's words for an option that it does not take
REFUSED_OPTION = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed|extra", re.I
)


def make_judge(args, load):
    """The judge of the flags. load: name -> (model, tokenizer), for a local judge."""
    if args.judge == "local":
        return LocalJudge(args.judge_model, lambda: load(args.judge_model), args.precision, args.batch_size)
    return EndpointJudge(
        args.judge_url,
        args.judge_model,
        args.judge_key,
        workers=args.judge_workers,
        retries=args.judge_retries,
        timeout=args.judge_timeout,
        prices=args.judge_prices,
        max_cost=args.max_cost,
        max_tokens=args.judge_max_tokens,
    )


class LocalJudge:
    """A model whose verdict is the likelihood of the labels, so nothing is parsed.

    A request that is longer than the model's context is unreadable.
    """

    def __init__(self, name, load, precision="fp32", batch_size="auto", prompt_format="auto"):
        """load: () -> (model, tokenizer) at this precision, called when there is something to judge."""
        self.load, self.batch_size, self.prompt_format = load, batch_size, prompt_format
        self.name = Path(name).name
        self.identity = ("local", str(name), provenance.input_id({"judge": str(name)}), precision)

    def ask(self, requests, keep):
        """Call keep(request, value, details) for each: P(B), or the expected rating (as G-Eval, Liu et al. 2023)."""
        model, tokenizer = self.load()
        chat = loading.uses_chat(self.prompt_format, tokenizer)
        context = loading.context_length(model) or math.inf
        end = answer_end(tokenizer, chat)  # with it "1" is not the beginning of "10"
        separator = "" if chat else " "
        prompts = {}  # request -> prompt, of those that fit
        for request in requests:
            text = "\n\n".join(text for _, text in request.messages)
            prompt = benchmarks.render((text,), (), tokenizer) if chat else text
            longest = prompt + separator + request.labels[-1] + end
            if len(tokenizer(longest, add_special_tokens=not chat, verbose=False).input_ids) > context:
                keep(request, None, {"text": "the request is longer than the judge's context"})
            else:
                prompts[request] = prompt
        if len(prompts) < len(requests):
            n = len(requests) - len(prompts)
            print(f"{n} judgements are unreadable: longer than the judge's context of {context} tokens")
        for kind in dict.fromkeys(request.kind for request in prompts):
            same = [request for request in prompts if request.kind == kind]
            for start in range(0, len(same), CHUNK):
                chunk = same[start : start + CHUNK]
                labels = [f"{separator}{label}{end}" for label in chunk[0].labels]
                texts = [prompts[request] for request in chunk]
                total = scoring.score_labels(model, tokenizer, texts, labels, self.batch_size, not chat).total  # [N, L]
                with np.errstate(invalid="ignore"):
                    shares = np.exp(total - total.max(axis=1, keepdims=True))
                    shares /= shares.sum(axis=1, keepdims=True)
                for request, share in zip(chunk, shares):
                    value = float(share[1]) if kind == "pair" else float(share @ np.arange(1, 11))
                    likelihoods = dict(zip(request.labels, map(float, share)))
                    keep(request, value if math.isfinite(value) else None, {"likelihoods": likelihoods})


def check_endpoint(url, seconds=5.0):
    """UserError, within seconds, for a malformed address and for one where nothing listens."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        if not host or " " in url:
            raise ValueError("no host")
    except ValueError as error:
        raise utils.UserError(f"--judge_url {url}: not a valid address ({error})") from None
    if urllib.request.getproxies().get(parts.scheme) and not urllib.request.proxy_bypass(host):
        return  # only the proxy can reach it
    try:
        socket.create_connection((host, port), seconds).close()
    except OSError as error:
        raise utils.UserError(f"--judge_url {url}: nothing answers there ({error})") from None


class EndpointJudge:
    """A model behind an OpenAI-compatible endpoint, asked in several threads.

    The openai client tries a failed call again with growing pauses (429, 5xx, no connection).
    """

    # options that some endpoints refuse -> the name that is sent instead, None to leave it out
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
        self.model, self.workers, self.prices, self.max_cost = model, workers, prices, max_cost
        self.client = openai.OpenAI(
            base_url=url, api_key=os.environ.get(key_variable) or "none", timeout=timeout, max_retries=retries
        )
        self.name, self.identity = Path(model).name, ("endpoint", url.rstrip("/"), model, max_tokens)
        self.max_tokens, self.refused, self.failed = max_tokens, set(), []
        self.spent, self.reserved = 0.0, 0.0  # USD, of replies and of calls in progress
        self.lock = threading.Lock()

    def most_tokens(self, request):
        """Limit of a reply's tokens: a letter or number needs few, an explanation many (FastChat allows 2,048)."""
        return self.max_tokens or (16 if request.direct else 2048)

    def estimate(self, requests):
        """(tokens in, most tokens out, most USD or None) of requests, at four characters per token."""
        tokens_in = sum(len(text) for request in requests for _, text in request.messages) // TOKEN_CHARS
        tokens_out = sum(map(self.most_tokens, requests))
        return tokens_in, tokens_out, self.cost(tokens_in, tokens_out)

    def cost(self, tokens_in, tokens_out):
        """USD for these tokens, None without --judge_prices."""
        return None if self.prices is None else (tokens_in * self.prices[0] + tokens_out * self.prices[1]) / 1e6

    def ask(self, requests, keep):
        """Call keep(request, value, details) for each request that is answered, under a lock, from several threads.

        A request that fails after all tries is in `failed` with its reason; the next run asks it again. UserError for
        what trying again cannot mend (a wrong key, an unknown model, a budget that is too small); what was answered
        before is kept.
        """
        tokens_in, tokens_out, cost = self.estimate(requests)
        n = f"{len(requests)} judgements"
        if self.max_cost is not None and not self.spent and cost > self.max_cost:  # _next checks later calls
            raise utils.UserError(
                f"--max_cost {self.max_cost}: {n} may cost {cost:.2f} USD ({tokens_in:,} tokens in, "
                f"at most {tokens_out:,} out); raise it, or judge fewer with --num_samples"
            )
        price = "" if cost is None else f", at most {cost:.2f} USD"
        print(
            f"{n} to ask of {self.model}: about {tokens_in:,} tokens in, at most {tokens_out:,} out{price}", flush=True
        )
        todo, over, n_before, ended = iter(requests), threading.Event(), len(self.failed), []
        with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
            try:
                workers = min(self.workers, len(requests))
                for future in [pool.submit(self._work, todo, over, ended, keep) for _ in range(workers)]:
                    future.result()
            finally:  # an interrupt waits for the calls in progress only
                over.set()
        for reason, count in collections.Counter(reason for _, reason in self.failed[n_before:]).most_common(3):
            print(f"{count} judgements failed: {reason}")
        if len(ended) < len(requests):
            skipped = len(requests) - len(ended)
            print(f"--max_cost {self.max_cost} USD: {self.spent:.2f} spent, {skipped} judgements not asked for")

    def _work(self, todo, over, ended, keep):
        """A thread: ask one request after the other until `todo` is empty or `over` is set."""
        while not over.is_set():
            request = self._next(todo, over)
            if request is None:
                return
            try:
                reply, reason = self._reply(request), None
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                over.set()
                raise utils.UserError(f"--judge_url: {self.model} refuses: {_first_line(error)}") from None
            except (openai.APIError, ValueError, AttributeError, TypeError, IndexError) as error:
                # after all tries, or a body that is not a chat completion
                reply, reason = None, f"{type(error).__name__}: {_first_line(error)}"
            with self.lock:
                ended.append(request)
                if reply is None:
                    self.failed.append((request, reason))
                else:
                    keep(request, *reply)

    def _next(self, todo, over):
        """The next request if the budget covers its highest cost, which is reserved; else None, as at the end."""
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
        """The endpoint's reply. An option that it refuses (400, 422) is left out or renamed from then on."""
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
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                code = getattr(error, "code", None)
                named = [name for name in self.INSTEAD if name in options and name in str(error)]
                if not named or not (REFUSED_OPTION.search(str(error)) or code == "unsupported_parameter"):
                    raise
                with self.lock:
                    self.refused.add(named[0])


def _first_line(error):
    return (str(error).splitlines() or [""])[0][:300]
