"""Perplexity and bits per byte of reference answers and of texts: cells of the row."""

import math

import numpy as np

import utils
from harness.models import generation, properties, scoring

TEXTS = 64  # evaluation texts that text_cells scores


def cells(kind, nll, n_tokens, n_bytes):
    """{kind}_perplexity, per token, and bits_per_byte, which does not depend on how the tokenizer cuts a text.

    nll: negative log-likelihood (natural logarithm) of the scored tokens, summed; n_bytes: of their text in UTF-8, 0
    where it is not known.
    """
    bits = float(nll / math.log(2) / n_bytes) if n_bytes else None
    return {f"{kind}_perplexity": float(np.exp(nll / n_tokens)), "bits_per_byte": bits}


def reference_cells(model, tokenizer, prompts, references, batch_size, chat):
    """Cells of one reference answer after each prompt, the separator before it included, the end token left out.

    prompts, references: [N] texts; chat: the prompts have their special tokens.
    """
    pairs = list(zip(prompts, references, strict=True))

    def score(part):
        some, targets = zip(*part)
        return scoring.score_labels(model, tokenizer, some, [[target] for target in targets], batch_size, not chat)

    found = generation.joined(utils.over_processes(score, pairs))
    limit = properties.context_length(model)
    whole = model.config.is_encoder_decoder or not limit or found.n_tokens.max() < limit - 1  # else one was cut
    n_bytes = sum(len(text.encode()) for text in references) if whole else 0
    return cells("reference", -found.total.sum(), found.n_tokens.sum(), n_bytes)


def text_cells(model, tokenizer, task):
    """Cells of the first TEXTS evaluation texts; {} for encoder-decoders, which are no language models of them."""
    if model.config.is_encoder_decoder:
        return {}
    texts = [ex.context or ex.text for ex in task.evaluation[:TEXTS]]
    nll, n_tokens, n_bytes = scoring.perplexity(model, tokenizer, texts)
    return cells("text", nll, n_tokens, n_bytes) if n_tokens else {}
