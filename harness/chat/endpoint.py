"""A judge behind an OpenAI-compatible endpoint: requests, budget, and what its replies hold."""

import asyncio
import collections
import os
import re
from pathlib import Path

import openai

import utils
from harness.chat import address, replies
from harness.chat.judge_prompts import verdict_of

TOKEN_CHARS = 4  # characters of a token, for the cost estimate before the first call; about right for English
SAVED_TEXT = 20_000  # characters of a reply that are kept
TOP_LOGPROBS = (20, 5)  # alternatives to a reply's first token: what is asked for, and again after a refusal
# an endpoint's words for an option that it does not take
REFUSED_OPTION = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed|extra", re.I
)
REFUSED_LOGPROBS = re.compile(r"logprobs|top_n_tokens", re.I)  # the words of a limit differ, the option's name does not


class _Client(openai.DefaultAsyncHttpxClient):
    """An HTTP client with one deadline for a whole reply, however slowly its bytes come.

    It follows no redirects: those would carry prompts, and with some servers the key, to another host.
    """

    def __init__(self, seconds):
        super().__init__(timeout=None, follow_redirects=False)
        self.seconds = seconds

    async def send(self, request, **options):
        try:
            async with asyncio.timeout(self.seconds):
                return await super().send(request, **options)
        except TimeoutError:
            raise openai.APITimeoutError(request=request) from None


class EndpointJudge:
    """A model behind an OpenAI-compatible endpoint, asked for several verdicts at a time.

    The openai client tries a failed call again with growing pauses (429, 5xx, no connection); a reply that does not
    come in time is asked for once more.
    """

    # options that some endpoints refuse -> the name that is sent instead, None to leave it out
    INSTEAD = {"max_tokens": "max_completion_tokens", "temperature": None, "logprobs": None}

    def __init__(
        self,
        url,
        model,
        key_variable=None,
        workers=4,
        retries=8,
        timeout=120.0,
        prices=None,
        max_cost=None,
        max_tokens=None,
        plain_http=False,
    ):
        """key_variable: of the environment, see address.key_for; timeout: seconds for a whole reply."""
        self.address = address.read(url, plain_http)
        self.key, self.key_variable = address.key_for(self.address.host, key_variable), key_variable
        address.check_reachable(self.address)
        self.model, self.workers, self.prices, self.max_cost = model, workers, prices, max_cost
        self.retries, self.timeout = retries, timeout
        self.name = Path(model).name
        self.identity = ("endpoint", self.address.public.rstrip("/"), model, max_tokens)
        self.max_tokens, self.refused, self.failed = max_tokens, set(), []
        self.alternatives = list(TOP_LOGPROBS)  # what may be asked for
        self.spent, self.reserved = 0.0, 0.0  # USD, of replies and of calls in progress
        self.over = False  # no further request is begun

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
        """Call keep(request, value, details) for each request that is answered, one call after the other.

        A request that fails after all tries is in `failed` with its reason; the next run asks it again. UserError for
        what trying again cannot mend (a wrong key, an unknown model, a budget that is too small); what was answered
        before is kept. An interrupt ends the calls in progress at once.
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
        n_before, ended, self.over = len(self.failed), [], False
        asyncio.run(self._ask(iter(requests), ended, keep, min(self.workers, len(requests))))
        for reason, count in collections.Counter(reason for _, reason in self.failed[n_before:]).most_common(3):
            print(f"{count} judgements failed: {reason}")
        if len(ended) < len(requests):
            skipped = len(requests) - len(ended)
            print(f"--max_cost {self.max_cost} USD: {self.spent:.2f} spent, {skipped} judgements not asked for")

    async def _ask(self, todo, ended, keep, n_workers):
        """Ask the requests of `todo`, n_workers at a time; the first exception, after the calls in progress."""
        async with self._client() as client:
            workers = [self._work(client, todo, ended, keep) for _ in range(n_workers)]
            found = await asyncio.gather(*workers, return_exceptions=True)
        for error in filter(None, found):
            raise error

    def _client(self):
        """The openai client. What the environment holds for OpenAI's own hosts (an organization, headers, ..) is sent
        to no other: the client would read it by itself.
        """
        hidden = {} if self.key_variable is None and self.key else _openai_variables()
        for name in hidden:
            del os.environ[name]
        try:
            return openai.AsyncOpenAI(
                base_url=self.address.url,
                api_key=self.key or "none",
                default_query=self.address.parameters,
                max_retries=self.retries,
                timeout=None,
                http_client=_Client(self.timeout),
            )
        finally:
            os.environ.update(hidden)

    async def _work(self, client, todo, ended, keep):
        """Ask one request after the other until `todo` is empty or `over` is set."""
        while (request := self._next(todo)) is not None:
            try:
                reply, reason = await self._reply(client, request), None
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                self.over = True
                no_key = "" if self.key else "; no key was sent: --judge_key_env names the variable that holds one"
                raise utils.UserError(f"--judge_url: {self.model} refuses: {self._words(error)}{no_key}") from None
            except openai.APITimeoutError:
                reply, reason = None, f"no whole reply within {self.timeout:g} s (--judge_timeout)"
            except openai.APIError as error:
                where = _redirected(error)
                if where is not None:
                    self.over = True
                    place = utils.without_credentials(where)
                    raise utils.UserError(
                        f"--judge_url {self.address.public} sends to {place}; give that address, if you trust it"
                    ) from None
                reply, reason = None, f"{type(error).__name__}: {self._words(error)}"  # after all tries
            except replies.BadReply as error:
                reply, reason = None, self._words(error)
            except BaseException:  # a bug, a full disk, an interrupt
                self.over = True
                raise
            ended.append(request)
            if reply is None:
                self.failed.append((request, reason))
            else:
                keep(request, *reply)

    def _words(self, error):
        """The first line of an error's text, without the key and what the address holds besides it."""
        text = (str(error).splitlines() or [""])[0]
        for secret in filter(None, (self.key, *self.address.secrets)):
            text = text.replace(secret, "...")
        return utils.without_credentials(text)[:300]

    def _next(self, todo):
        """The next request if the budget covers its highest cost, which is reserved; else None, as at the end."""
        request = None if self.over else next(todo, None)
        if request is not None and self.max_cost is not None:
            cost = self.estimate([request])[2]
            if self.spent + self.reserved + cost > self.max_cost:
                self.over = True
                return None
            self.reserved += cost
        return request

    async def _reply(self, client, request):
        """(value, details) of one call. BadReply for one that is no chat completion."""
        *tokens, most = self.estimate([request])
        paid = 0.0
        try:
            body = await self._create(client, request)
            text, finish, alternatives, counted = replies.read(body)
            tokens = counted or tokens
            paid = self.cost(*tokens) or 0.0
        finally:
            self.spent += paid
            self.reserved -= 0.0 if self.max_cost is None else most
        return verdict_of(request, text, alternatives), {
            "text": text[:SAVED_TEXT],
            "finish_reason": finish,
            "max_tokens": self.most_tokens(request),
            "likelihoods": alternatives,
            "tokens": tokens,
        }

    async def _create(self, client, request):
        """The endpoint's reply as JSON. An option that it refuses (400, 422) is changed or left out from then on."""
        messages = [{"role": role, "content": text} for role, text in request.messages]
        late = 0
        while True:
            options = {"max_tokens": self.most_tokens(request), "temperature": 0.0}
            if request.direct and request.kind == "pair" and self.alternatives:
                options["logprobs"] = True
            for name in self.refused & set(options):
                value, other = options.pop(name), self.INSTEAD[name]
                options.update({other: value} if other else {})
            if "logprobs" in options:
                options["top_logprobs"] = asked = self.alternatives[0]
            create = client.chat.completions.with_raw_response.create
            try:
                return replies.to_json(await create(model=self.model, messages=messages, **options))
            except openai.APITimeoutError:  # the endpoint may have answered, and may charge it
                self.spent += self.estimate([request])[2] or 0.0
                late += 1
                if late > min(self.retries, 1):
                    raise
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                words, code = str(error), getattr(error, "code", None)
                named = [name for name in self.INSTEAD if name in options and name in words.replace("top_logprobs", "")]
                if named and (REFUSED_OPTION.search(words) or code == "unsupported_parameter"):
                    self.refused.add(named[0])
                elif "logprobs" in options and REFUSED_LOGPROBS.search(words):  # not so many of them, or none
                    if self.alternatives[:1] == [asked]:  # else another call has lowered it in the meantime
                        self.alternatives.pop(0)
                else:
                    raise


def _openai_variables():
    """{name: value} of the environment's variables that the openai client reads."""
    return {name: value for name, value in os.environ.items() if name.startswith("OPENAI_")}


def _redirected(error):
    """Where an openai error's reply redirects to, None where it is no redirect."""
    response = getattr(error, "response", None)
    return response.headers.get("location", "elsewhere") if response is not None and response.is_redirect else None
