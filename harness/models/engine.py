"""Engines that answer in a model's place: vLLM (Kwon et al. 2023) in this process, or an OpenAI-compatible endpoint.

An Engine is given where a transformers model is: to scoring.score_labels, generation.generate and what stands on them.
Prompts and label words are tokenized here, as for a model, so that the same tokens are scored.

A label's log-probability is the sum along its path through the trie of all labels' token ids. Each inner node is one
request for one token, after the prompt and the path to the node, that tells the log-probabilities of the node's
children. So an engine's prefix cache holds what prompts and labels share; `prompt_logprobs`, the usual way, has vLLM
compute every prompt again (vllm issue 5234).
"""

import torch
from transformers import GenerationConfig

import utils
from harness.models import folder

MOST_IDS = 128  # token ids that vLLM tells of in one request


def is_engine(model):
    return isinstance(model, Engine)


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
        try:
            self.generation_config = GenerationConfig.from_pretrained(name)
        except OSError:  # the model has none
            self.generation_config = GenerationConfig.from_model_config(self.config)
        # as transformers samples: by default from the 50 likeliest tokens
        top_k, top_p = (getattr(self.generation_config, each, None) for each in ("top_k", "top_p"))
        self.sampling = {"top_k": 50 if top_k is None else top_k, "top_p": top_p or 1.0}
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
