"""An OpenAI-compatible endpoint as an Engine."""

from pathlib import Path

import utils
from harness.models import endpoint, loading, replies
from harness.models.engine import Engine

TOP = (20, 5)  # likeliest tokens that servers other than vLLM are asked for: so many, or so many


class EndpointEngine(Engine):
    """A server of an OpenAI-compatible API, asked for completions of the same prompts.

    Where it tells the log-probabilities of given token ids (vLLM) or of its likeliest tokens, labels are scored by
    them; where it tells none (transformers serve), answers are generated and read.
    """

    def __init__(self, args, name, adapter=None):
        self.name = utils.without_credentials(args.engine)
        if adapter and not args.served_model:
            raise utils.UserError(
                "--adapter: an endpoint serves what it was started with; serve the adapter there (vllm serve "
                "--lora-modules NAME=DIR), and give --served_model NAME"
            )
        super().__init__(args, name, "cpu")
        self.tokenizer = loading.load_tokenizer(name, args.trust_remote_code, args.thinking)
        self.client = Client(
            args.engine,
            name,
            args.engine_key_env,
            workers=args.engine_workers,
            timeout=args.engine_timeout,
            prices=args.engine_prices,
            max_cost=args.engine_max_cost,
            plain_http=args.engine_plain_http,
        )
        self.client.model = args.served_model or self._served(name)
        self.means = self._probe()
        self.tells_likelihoods = self.means is not None
        self.retold = 0  # prompts whose text is read as other tokens than here
        self.unseen = 0  # labels whose token was not among those that the server told

    def _served(self, name):
        """The server's name for the model: the same, or another path to a folder of that name."""
        models = self.client.models()
        if models is None or name in models:
            return name
        alike = [model for model in models if Path(model).name == Path(name).name]
        if len(alike) == 1:
            return alike[0]
        raise utils.UserError(
            f"--engine {self.name} serves {', '.join(map(repr, models[:8]))}, not {name!r}; give that model (its "
            "tokenizer is used), or --served_model NAME where it is the same under another name"
        )

    def _probe(self):
        """How the server tells likelihoods: "ids", "top", or None where it does not."""
        ids = self.tokenizer("The answer is", add_special_tokens=False).input_ids
        reply = self.client.one(ids, 1, _ids_options(ids[:2]), patient=False)
        if reply and {f"token_id:{token}" for token in ids[:2]} <= set(reply.top or ()):
            return "ids"
        for self.top in TOP:
            reply = self.client.one("The answer is", 1, {"logprobs": self.top}, patient=False)
            if reply and reply.top:
                return "top"
        return None

    def _likelihoods(self, requests):
        if self.means == "ids":
            jobs = [(ids, 1, _ids_options(some)) for ids, some in requests]
        else:
            jobs = [(self._text(ids), 1, {"logprobs": self.top}) for ids, _ in requests]
        found = []
        for (_, some), reply in zip(requests, self.client.all(jobs)):
            if self.means == "ids":
                found.append({token: reply.top[f"token_id:{token}"] for token in some})
            else:
                found.append({token: self._of_text(token, reply.top) for token in some})
        return found

    def _text(self, ids):
        """The text that the server's tokenizer turns into these token ids: without what it puts in front by itself."""
        added = len(self.tokenizer("").input_ids)
        for text in (self.tokenizer.decode(ids[added:]), self.tokenizer.decode(ids)):
            if self.tokenizer(text).input_ids == list(ids):
                return text
        self.retold += 1
        return self.tokenizer.decode(ids[added:]) if ids[:added] == self.tokenizer("").input_ids else text

    def _of_text(self, token, told):
        """The log-probability of a token by its text; one that the server did not tell is below all that it told."""
        name = self.tokenizer.convert_ids_to_tokens(token)
        # servers spell a token as its text, with or without the space before it, or as it stands in the vocabulary
        for text in (self.tokenizer.decode([token]), name.replace("▁", " ").replace("Ġ", " "), name):
            if text in told:
                return told[text]
        self.unseen += 1
        return min(told.values())

    def generate(self, rows, max_new_tokens, stop, temperature, seed):
        jobs = []
        for i, ids in enumerate(rows):
            options = {"temperature": temperature, **({"stop": list(stop)[:4]} if stop else {})}
            if seed is not None:
                options |= {"seed": seed + i, "top_p": self.sampling["top_p"]}
                options |= {"extra_body": {"top_k": self.sampling["top_k"]}} if self.means == "ids" else {}
            jobs.append((ids if self.means == "ids" else self._text(ids), max_new_tokens, options))
        ended, new = self.tokenizer.eos_token_id, []
        for reply in self.client.all(jobs):
            ids = self.tokenizer(reply.text, add_special_tokens=False).input_ids
            new.append([*ids, ended] if reply.finish == "stop" else ids)
        return new

    def close(self):
        if self.client.prices:
            self.notes.append(f"{self.client.spent:.2g} USD were spent")
        if self.retold:
            self.notes.append(f"{self.retold} prompts may be read as other tokens by the server than by transformers")
        if self.unseen:
            self.notes.append(
                f"{self.unseen} labels were not among the {self.top} tokens that the server tells of; they count as "
                "the least likely of those"
            )


def _ids_options(some):
    return {"logprobs": 1, "extra_body": {"logprob_token_ids": list(some), "return_tokens_as_token_ids": True}}


class Client(endpoint.Endpoint):
    """Completions of prompts, which are texts or token ids."""

    URL, KEY, TIMEOUT, PLAIN_HTTP = "--engine", "--engine_key_env", "--engine_timeout", "--engine_plain_http"
    COST, FEWER, WHAT, tells = "--engine_max_cost", "give a smaller --max_eval_samples", "prompts", False

    def estimate(self, requests):
        """(tokens in, most tokens out, most USD or None) of requests, [(i, prompt, max_tokens, options)]."""
        sizes = (len(p) // (endpoint.TOKEN_CHARS if isinstance(p, str) else 1) for _, p, *_ in requests)
        tokens_in, tokens_out = sum(sizes), sum(most for _, _, most, _ in requests)
        return tokens_in, tokens_out, self.cost(tokens_in, tokens_out)

    def models(self):
        """The names of the models that are served, None where the server does not say."""
        body = self.get("/models")
        listed = body.get("data") if isinstance(body, dict) else None
        names = [each.get("id") for each in listed or [] if isinstance(each, dict)]
        return [name for name in names if isinstance(name, str)] or None

    def all(self, jobs):
        """[N] replies.Completion of jobs, [(prompt, max_tokens, options)]. RunFailed where one got none."""
        found, self.failed = {}, []
        cost = self.estimate([(i, *job) for i, job in enumerate(jobs)])[2]
        if self.max_cost is not None and self.spent + cost > self.max_cost:
            raise utils.UserError(
                f"{self.COST} {self.max_cost}: {self.spent:.2f} USD are spent, and the next {len(jobs)} prompts may "
                f"cost {cost:.2f}; raise it, or {self.FEWER}"
            )
        self.ask([(i, *job) for i, job in enumerate(jobs)], lambda request, reply: found.update({request[0]: reply}))
        if len(found) < len(jobs):
            reason = self.failed[0][1] if self.failed else f"{self.COST} was reached"
            raise utils.RunFailed(
                f"{self.URL}: {len(jobs) - len(found)} of {len(jobs)} prompts got no answer: {reason}"
            )
        return [found[i] for i in range(len(jobs))]

    def one(self, prompt, max_tokens, options, patient=True):
        """The Completion of one prompt; None where it is refused and not patient."""
        try:
            return self.all([(prompt, max_tokens, options)])[0]
        except utils.RunFailed:
            if patient:
                raise
            return None

    async def _reply(self, client, request):
        _, prompt, most, options = request
        paid = 0.0
        *tokens, reserved = self.estimate([request])
        try:
            raw = await client.completions.with_raw_response.create(
                model=self.model, prompt=prompt, max_tokens=most, **{"temperature": 0.0, **options}
            )
            reply = replies.read_completion(replies.to_json(raw))
            paid = self.cost(*(reply.tokens or tokens)) or 0.0
        finally:
            self.spent += paid
            self.reserved -= 0.0 if self.max_cost is None else reserved
        return (reply,)
