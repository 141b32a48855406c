"""A client of an OpenAI-compatible endpoint: several requests at a time, retries, a budget."""

import asyncio
import collections
import os

import openai

import utils
from harness.models import address, replies

TOKEN_CHARS = 4  # characters of a token, for the cost estimate before the first call; about right for English


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


class Endpoint:
    """A model behind an OpenAI-compatible endpoint, asked for several answers at a time.

    A subclass says what a request costs at most (`estimate`) and asks it (`_reply`). The openai client tries a failed
    call again with growing pauses (429, 5xx, no connection); a reply that does not come in time is asked for once more.
    """

    tells = True  # print what is asked for and what it may cost
    # the flags that messages name, and what is asked for
    URL, KEY, TIMEOUT, PLAIN_HTTP, COST, FEWER, WHAT = (None,) * 7

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
        plain_http=False,
    ):
        """key_variable: of the environment, see address.key_for; timeout: seconds for a whole reply; prices: USD per
        million tokens in and out; max_cost: USD.
        """
        self.address = address.read(url, plain_http, self.URL, self.PLAIN_HTTP)
        self.key, self.key_variable = address.key_for(self.address.host, key_variable, self.KEY), key_variable
        address.check_reachable(self.address, flag=self.URL)
        self.model, self.workers, self.prices, self.max_cost = model, workers, prices, max_cost
        self.retries, self.timeout, self.failed = retries, timeout, []
        self.spent, self.reserved = 0.0, 0.0  # USD, of replies and of calls in progress
        self.over = False  # no further request is begun

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
        n = f"{len(requests)} {self.WHAT}"
        if self.max_cost is not None and not self.spent and cost > self.max_cost:  # _next checks later calls
            raise utils.UserError(
                f"{self.COST} {self.max_cost}: {n} may cost {cost:.2f} USD ({tokens_in:,} tokens in, "
                f"at most {tokens_out:,} out); raise it, or {self.FEWER}"
            )
        price = "" if cost is None else f", at most {cost:.2f} USD"
        said = f"{n} to ask of {self.model}: about {tokens_in:,} tokens in, at most {tokens_out:,} out{price}"
        if self.tells:
            print(said, flush=True)
        n_before, ended, self.over = len(self.failed), [], False
        asyncio.run(self._ask(iter(requests), ended, keep, min(self.workers, len(requests))))
        reasons = collections.Counter(reason for _, reason in self.failed[n_before:])
        for reason, count in reasons.most_common(3) if self.tells else ():
            print(f"{count} {self.WHAT} failed: {reason}")
        if len(ended) < len(requests):
            skipped = len(requests) - len(ended)
            print(f"{self.COST} {self.max_cost} USD: {self.spent:.2f} spent, {skipped} {self.WHAT} not asked for")

    def get(self, path):
        """The JSON of a GET under the address, None where there is none."""

        async def ask():
            async with self._client() as client:
                return await client.with_options(max_retries=1).get(path, cast_to=object)

        try:
            return asyncio.run(ask())
        except openai.APIError:
            return None

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
                no_key = "" if self.key else f"; no key was sent: {self.KEY} names the variable that holds one"
                raise utils.UserError(f"{self.URL}: {self.model} refuses: {self._words(error)}{no_key}") from None
            except openai.APITimeoutError:
                reply, reason = None, f"no whole reply within {self.timeout:g} s ({self.TIMEOUT})"
            except openai.APIError as error:
                where = _redirected(error)
                if where is not None:
                    self.over = True
                    place = utils.without_credentials(where)
                    raise utils.UserError(
                        f"{self.URL} {self.address.public} sends to {place}; give that address, if you trust it"
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


def _openai_variables():
    """{name: value} of the environment's variables that the openai client reads."""
    return {name: value for name, value in os.environ.items() if name.startswith("OPENAI_")}


def _redirected(error):
    """Where an openai error's reply redirects to, None where it is no redirect."""
    response = getattr(error, "response", None)
    return response.headers.get("location", "elsewhere") if response is not None and response.is_redirect else None
