"""Everything batched is held against the plainest forward pass there is: one example, no padding, no cache."""

import random

import numpy as np
import pytest
import torch
from conftest import WORDS

import inference
import models
import utils

LABELS = [" positive", " negative", " not very good", " a", " the film was lovely"]  # one token to several


def prompts(n, seed=0, shared=True):
    rng = random.Random(seed)
    head = "review " * 30 + ": the film was good and the cast is fine . " if shared else ""
    return [head + " ".join(rng.choices(WORDS, k=rng.randint(1, 25))) + " answer:" for _ in range(n)]


def load(name, precision="fp32"):
    return models.load_model(name, precision=precision), utils.load_tokenizer(name)


@torch.inference_mode()
def plain_scores(model, tokenizer, prompt, label):
    """Sum of the log-probabilities of the label's tokens, one forward over the whole text."""
    if model.config.is_encoder_decoder:
        target = tokenizer(label, add_special_tokens=False, return_tensors="pt").input_ids
        logits = model(**tokenizer(prompt, return_tensors="pt", return_token_type_ids=False), labels=target).logits
        return logits.log_softmax(-1)[0].gather(-1, target[0][:, None]).sum().item()
    whole, alone = tokenizer(prompt + label).input_ids, tokenizer(prompt).input_ids
    assert whole[: len(alone)] == alone, "these prompts do not merge with their labels"
    log_probs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(log_probs[i - 1, whole[i]].item() for i in range(len(alone), len(whole)))


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "tiny_t5"])
@pytest.mark.parametrize("shared", [True, False])
def test_label_scores_are_those_of_plain_forwards(name, shared, request):
    model, tokenizer = load(request.getfixturevalue(name))
    texts = prompts(13, shared=shared)
    expected = np.array([[plain_scores(model, tokenizer, text, label) for label in LABELS] for text in texts])
    for batch_size in (1, 7, 32):
        found = inference.score_labels(model, tokenizer, texts, LABELS, batch_size)
        assert np.abs(found.total - expected).max() < 1e-4
    lengths = [len(tokenizer(label, add_special_tokens=False).input_ids) for label in LABELS]
    assert len(set(lengths)) > 2 and np.allclose(found.mean, expected / lengths, atol=1e-4)
    order = random.Random(5).sample(range(13), 13)
    shuffled = inference.score_labels(model, tokenizer, [texts[i] for i in order], LABELS, 5)
    assert np.abs(shuffled.total - expected[order]).max() < 1e-4


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "tiny_t5"])
def test_one_prompt_or_the_same_one_twice(name, request):
    """Here the rows have the whole prompt in common, and the labels' first tokens are read from its last position."""
    model, tokenizer = load(request.getfixturevalue(name))
    (text,) = prompts(1)
    for labels in (LABELS, [" not very good", " the film was lovely"]):
        expected = [plain_scores(model, tokenizer, text, label) for label in labels]
        for texts in ([text], [text, text]):
            for found in inference.score_labels(model, tokenizer, texts, labels, 8).total:
                assert np.abs(found - expected).max() < 1e-4


def test_a_model_that_projects_every_position(tiny_llama, monkeypatch):
    model, tokenizer = load(tiny_llama)
    expected = inference.score_labels(model, tokenizer, prompts(6), LABELS, 4).total
    monkeypatch.setattr(inference, "_can_keep", lambda model: False)
    assert np.abs(inference.score_labels(model, tokenizer, prompts(6), LABELS, 4).total - expected).max() < 1e-5


def test_the_shared_prefix_is_computed_once(tiny_llama, monkeypatch):
    """Counted in tokens that the model sees, which is what the time goes by."""
    model, tokenizer = load(tiny_llama)
    seen, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda ids, **kw: seen.append(ids.numel()) or forward(ids, **kw))
    texts = prompts(40)
    inference.score_labels(model, tokenizer, texts, [" positive", " negative"], 8)
    ids = [tokenizer(text).input_ids for text in texts]
    prefix = inference._common_prefix(ids)
    assert prefix > 40
    assert sum(seen) < prefix + 1.5 * sum(len(row) - prefix for row in ids) + 40 * 4


def test_a_label_that_merges_with_the_prompt(tiny_llama):
    """Here the prompt's last token and the label's first become one: P(label) is that of the jointly tokenized text."""
    model, tokenizer = load(tiny_llama)
    prompt, labels = "review: the film was lov", ["ely", "xx"]
    whole = tokenizer(prompt + labels[0]).input_ids
    assert whole[: len(tokenizer(prompt).input_ids)] != tokenizer(prompt).input_ids
    found = inference.score_labels(model, tokenizer, [prompt], labels, 4).total[0]
    for label, score in zip(labels, found):
        ids = tokenizer(prompt + label).input_ids
        other = tokenizer(prompt + labels[1 - labels.index(label)]).input_ids
        cut = inference._common_prefix([ids, other, tokenizer(prompt).input_ids])
        with torch.inference_mode():
            log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        assert score == pytest.approx(sum(log_probs[i - 1, ids[i]].item() for i in range(cut, len(ids))), abs=1e-4)


def test_one_prompt_alone_an_empty_one_and_one_beyond_the_context(tiny_gpt2):
    model, tokenizer = load(tiny_gpt2)
    assert inference.score_labels(model, tokenizer, ["the film"], LABELS, 4).total.shape == (1, 5)
    assert np.isfinite(inference.score_labels(model, tokenizer, [""], [" good", " bad"], 4).total).all()
    found = inference.score_labels(model, tokenizer, ["good " * 600, "bad film"], LABELS, 4)
    assert found.truncated == 1 and np.isfinite(found.total).all()


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_quantized_scores_do_not_depend_on_sharing(tiny_llama, precision):
    """Against the same quantized weights; int8 rounds activations by row, so a batch may shift it a little."""
    model, tokenizer = load(tiny_llama, precision)
    texts = prompts(9)
    expected = np.array([[plain_scores(model, tokenizer, text, label) for label in LABELS] for text in texts])
    found = inference.score_labels(model, tokenizer, texts, LABELS, 4).total
    assert np.abs(found - expected).max() < (1e-4 if precision == "nf4" else 0.2)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "tiny_t5"])
def test_generation_in_batches_is_one_by_one_generation(name, request):
    model, tokenizer = load(request.getfixturevalue(name))
    texts = prompts(11, seed=3, shared=False)
    alone = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        out = model.generate(**ids, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.pad_token_id)[0]
        alone.append(
            tokenizer.decode(
                out[1:] if model.config.is_encoder_decoder else out[ids.input_ids.shape[1] :], skip_special_tokens=True
            ).strip()
        )
    assert len(set(alone)) > 3
    for batch_size in (1, 4, 32):
        answers, counts, prompt_tokens, truncated = inference.generate(model, tokenizer, texts, 8, batch_size)
        assert answers == alone and truncated == 0 and all(0 < n <= 8 for n in counts)
        assert prompt_tokens == sum(len(tokenizer(text).input_ids) for text in texts)


def test_an_answer_ends_before_its_stop_string(tiny_llama):
    model, tokenizer = load(tiny_llama)
    whole = inference.generate(model, tokenizer, prompts(6), 12, 3)[0]
    mark = next(text[4] for text in whole if len(text) > 5 and text[4].isalpha())
    stopped = inference.generate(model, tokenizer, prompts(6), 12, 3, stop=(mark,))[0]
    assert stopped == [text.split(mark)[0].strip() for text in whole] != whole


def test_timed_generation_makes_the_tokens_it_says(tiny_llama):
    model, tokenizer = load(tiny_llama)
    first, rate, length = inference.time_generation(model, tokenizer, "the film was", 9)
    assert first > 0 and rate > 0 and length == len(tokenizer("the film was").input_ids)


def test_perplexity_is_that_of_the_models_own_loss(tiny_llama):
    model, tokenizer = load(tiny_llama)
    texts = prompts(5, shared=False)
    total, count = 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.inference_mode():
            total += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    found, n = inference.perplexity(model, tokenizer, texts, batch_size=3)
    assert n == count and found == pytest.approx(total, rel=1e-5)


def test_classification_does_not_depend_on_the_batch(tiny_bert):
    torch.manual_seed(1)
    model, tokenizer = models.load_model(tiny_bert, "classifier", labels=["a", "b", "c"]), utils.load_tokenizer(tiny_bert)
    texts, pairs = prompts(9, shared=False), prompts(9, seed=8, shared=False)
    alone = np.concatenate([inference.classify(model, tokenizer, [t], [p], 1) for t, p in zip(texts, pairs)])
    assert np.allclose(np.exp(alone).sum(1), 1)
    assert np.abs(inference.classify(model, tokenizer, texts, pairs, 4) - alone).max() < 1e-5
    assert np.abs(inference.classify(model, tokenizer, texts, None, 4) - alone).max() > 1e-3  # the second text counts
