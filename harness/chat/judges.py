"""The judges: a local model that judges by likelihood, and a model behind an OpenAI-compatible endpoint."""

import math
from pathlib import Path

import numpy as np

from harness.chat import benchmarks
from harness.chat.endpoint import EndpointJudge
from harness.data.prompts import answer_end
from harness.models import loading, properties, scoring
from harness.results import provenance

CHUNK = 16  # requests that a local judge answers and then writes together: the most that a killed run loses

TOO_LONG = "the request is longer than the judge's context"


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
        plain_http=args.judge_plain_http,
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
        context = properties.context_length(model) or math.inf
        end = answer_end(tokenizer, chat)  # with it "1" is not the beginning of "10"
        separator = "" if chat else " "
        prompts = {}  # request -> prompt, of those that fit
        for request in requests:
            text = "\n\n".join(text for _, text in request.messages)
            prompt = benchmarks.render((text,), (), tokenizer) if chat else text
            longest = prompt + separator + request.labels[-1] + end
            if len(tokenizer(longest, add_special_tokens=not chat, verbose=False).input_ids) > context:
                keep(request, None, {"text": TOO_LONG})
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
