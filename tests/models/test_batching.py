import numpy as np
import pytest
import torch
from helpers import LABELS, load_exact, review_prompts

from harness.models import generation, scoring


def limit_memory(model, tokens):
    """Let the model run out of memory in every forward of more than so many tokens; returns those that went through."""
    done = []

    def check(module, args, kwargs):
        n = (args[0] if args else kwargs["input_ids"]).numel()
        if n > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        done.append(n)

    model.register_forward_pre_hook(check, with_kwargs=True)
    return done


def test_auto_halves_where_memory_runs_out_and_repeats_nothing(tiny_llama):
    model, tokenizer = load_exact(tiny_llama)
    texts = review_prompts(30)
    usual, answers = (
        scoring.score_labels(model, tokenizer, texts, LABELS),
        generation.generate(model, tokenizer, texts, 4),
    )
    assert usual.batch_size == answers.batch_size == 30
    done = limit_memory(model, 150)
    found = scoring.score_labels(model, tokenizer, texts, LABELS)
    assert np.abs(found.total - usual.total).max() < 1e-4 and 1 <= found.batch_size < 30
    rows = {tuple(tokenizer(text + label).input_ids[:-1]) for text in texts for label in LABELS}
    assert sum(done) < sum(len(row) - len(found.prefix) for row in rows) + 2 * len(found.prefix)
    fewer = generation.generate(model, tokenizer, texts, 4)
    assert fewer.texts == answers.texts and 1 <= fewer.batch_size < 30
    with pytest.raises(torch.OutOfMemoryError):  # a size that a person chose is kept
        scoring.score_labels(model, tokenizer, texts, LABELS, 30)
