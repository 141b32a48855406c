"""Every causal architecture of the table: labels scored alone and in a padded batch, generation, 4-bit weights."""

import architectures
import numpy as np
import pytest
import torch
from helpers import plain_scores

import utils
from harness.models import generation, loading, properties, scoring

PROMPTS = [
    "the film was",
    "the plot is good and the very dull joke was a city",
    "a",
    "the question was not answer yes and the scene is",
]
WORDS = [" good", " not bad", " the film was lovely"]


@pytest.fixture(scope="module", params=architectures.marked(architectures.CAUSAL, architectures.QUICK))
def folder(request, tmp_path_factory):
    return architectures.save_causal(request.param, tmp_path_factory.mktemp(request.param))


def test_labels_and_answers_are_the_same_alone_and_in_a_batch(folder):
    model, tokenizer = loading.load_model(folder), utils.load_tokenizer(folder)
    batch = scoring.score_labels(model, tokenizer, PROMPTS, WORDS, batch_size=4).total
    alone = [scoring.score_labels(model, tokenizer, [prompt], WORDS, batch_size=1).total[0] for prompt in PROMPTS]
    plain = [[plain_scores(model, tokenizer, prompt, word) for word in WORDS] for prompt in PROMPTS]
    assert np.abs(batch - alone).max() < 1e-4 and np.abs(batch - plain).max() < 1e-4
    assert np.ptp(batch[:, 0]) > 5e-3  # the prompt matters, fifty times as much as the tolerance above
    together = generation.generate(model, tokenizer, PROMPTS, 6, batch_size=4).ids
    for prompt, ids in zip(PROMPTS, together):
        assert generation.generate(model, tokenizer, [prompt], 6).ids[0] == ids
        assert greedy(model, tokenizer, prompt, 6)[: len(ids)] == ids


@torch.inference_mode()
def greedy(model, tokenizer, prompt, n):
    """n new token ids, each by a forward over everything before it, without a cache."""
    ids = tokenizer(prompt).input_ids
    for _ in range(n):
        ids = [*ids, model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item()]
    return ids[-n:]


def test_four_bits(folder):
    if folder.rstrip("0").endswith("falcon"):  # its layers are of a class of their own, which bitsandbytes passes over
        with pytest.raises(utils.UserError, match="no layer that it can quantize to nf4"):
            loading.load_model(folder, precision="nf4")
        return
    model, tokenizer = loading.load_model(folder, precision="nf4"), utils.load_tokenizer(folder)
    assert properties.size_columns(model)["precision"] == "nf4"
    assert np.isfinite(scoring.score_labels(model, tokenizer, PROMPTS, WORDS).total).all()
    assert all(generation.generate(model, tokenizer, PROMPTS, 4).ids)
