"""A judge behind an OpenAI-compatible endpoint: requests, budget, and what its replies hold."""

import re
from pathlib import Path

import openai

from harness.chat.judge_prompts import verdict_of
from harness.models import endpoint, replies

SAVED_TEXT = 20_000  # characters of a reply that are kept
TOP_LOGPROBS = (20, 5)  # alternatives to a reply's first token: what is asked for, and again after a refusal
# an endpoint's words for an option that it does not take
REFUSED_OPTION = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed|extra", re.I
)
REFUSED_LOGPROBS = re.compile(r"logprobs|top_n_tokens", re.I)  # the words of a limit differ, the option's name does not


class EndpointJudge(endpoint.Endpoint):
    """A judge behind an OpenAI-compatible endpoint, asked for several verdicts at a time."""

    # options that some endpoints refuse -> the name that is sent instead, None to leave it out
    INSTEAD = {"max_tokens": "max_completion_tokens", "temperature": None, "logprobs": None}
    URL, KEY, TIMEOUT, PLAIN_HTTP = "--judge_url", "--judge_key_env", "--judge_timeout", "--judge_plain_http"
    COST, FEWER, WHAT = "--max_cost", "judge fewer with --num_samples", "judgements"

    def __init__(self, url, model, key_variable=None, max_tokens=None, **options):
        """options: of Endpoint."""
        super().__init__(url, model, key_variable, **options)
        self.name = Path(model).name
        self.identity = ("endpoint", self.address.public.rstrip("/"), model, max_tokens)
        self.max_tokens, self.refused = max_tokens, set()
        self.alternatives = list(TOP_LOGPROBS)  # what may be asked for

    def most_tokens(self, request):
        """Limit of a reply's tokens: a letter or number needs few, an explanation many (FastChat allows 2,048)."""
        return self.max_tokens or (16 if request.direct else 2048)

    def estimate(self, requests):
        """(tokens in, most tokens out, most USD or None) of requests, at four characters per token."""
        tokens_in = sum(len(text) for request in requests for _, text in request.messages) // endpoint.TOKEN_CHARS
        tokens_out = sum(map(self.most_tokens, requests))
        return tokens_in, tokens_out, self.cost(tokens_in, tokens_out)

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
