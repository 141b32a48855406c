import random

import numpy as np
import pytest
import torch
from helpers import KINDS, LABELS, load_exact, loaded, plain_ids, plain_scores, review_prompts

import utils
from harness.data import tasks
from harness.data.prompts import render
from harness.models import loading, prefix_cache, scoring


@pytest.mark.gpu
def test_the_gpu_scores_as_the_processor_does(tiny_llama):
    tokenizer, prompts = (
        utils.load_tokenizer(tiny_llama),
        ["the film was " + "very " * n + "good answer:" for n in range(12)],
    )
    scores = [
        scoring.score_labels(
            loading.load_model(tiny_llama, device=device), tokenizer, prompts, [" good", " not bad"], 5
        ).total
        for device in ("cpu", "cuda")
    ]
    assert np.abs(scores[0] - scores[1]).max() < 1e-2  # TF32 and other kernels
    assert utils.gpu_memory_used() >= 0


@pytest.mark.parametrize("name, precision", KINDS)
@pytest.mark.parametrize("shared", [True, False])
def test_label_scores_are_those_of_plain_forwards(name, precision, shared, request):
    model, tokenizer = load_exact(request.getfixturevalue(name), precision)
    texts = review_prompts(13, shared=shared)
    expected = np.array([[plain_scores(model, tokenizer, text, label) for label in LABELS] for text in texts])
    for batch_size in (1, 7, 32, "auto"):
        found = scoring.score_labels(model, tokenizer, texts, LABELS, batch_size)
        assert np.abs(found.total - expected).max() < 1e-4
        assert found.batch_size == (13 if batch_size == "auto" else min(13, batch_size))
    lengths = [len(tokenizer(label, add_special_tokens=False).input_ids) for label in LABELS]
    assert len(set(lengths)) > 2 and np.allclose(found.mean, expected / lengths, atol=1e-4)
    order = random.Random(5).sample(range(13), 13)
    shuffled = scoring.score_labels(model, tokenizer, [texts[i] for i in order], LABELS, 5)
    assert np.abs(shuffled.total - expected[order]).max() < 1e-4


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "tiny_t5"])
def test_one_prompt_or_the_same_one_twice(name, request):
    """Here the rows have the whole prompt in common, and the labels' first tokens are read from its last position."""
    model, tokenizer = load_exact(request.getfixturevalue(name))
    (text,) = review_prompts(1)
    for labels in (LABELS, [" not very good", " the film was lovely"]):
        expected = [plain_scores(model, tokenizer, text, label) for label in labels]
        for texts in ([text], [text, text]):
            for found in scoring.score_labels(model, tokenizer, texts, labels, 8).total:
                assert np.abs(found - expected).max() < 1e-4


def test_a_label_that_merges_with_the_prompt(tiny_llama):
    """Here the prompt's last token and the label's first become one: P(label) is that of the jointly tokenized text."""
    model, tokenizer = load_exact(tiny_llama)
    prompt, labels = "review: the film was lov", ["ely", "xx"]
    whole = tokenizer(prompt + labels[0]).input_ids
    assert whole[: len(tokenizer(prompt).input_ids)] != tokenizer(prompt).input_ids
    found = scoring.score_labels(model, tokenizer, [prompt], labels, 4).total[0]
    for label, score in zip(labels, found):
        ids = tokenizer(prompt + label).input_ids
        other = tokenizer(prompt + labels[1 - labels.index(label)]).input_ids
        cut = prefix_cache.common_prefix([ids, other, tokenizer(prompt).input_ids])
        with torch.inference_mode():
            log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        assert score == pytest.approx(sum(log_probs[i - 1, ids[i]].item() for i in range(cut, len(ids))), abs=1e-4)


def test_one_prompt_alone_an_empty_one_and_one_beyond_the_context(tiny_gpt2):
    model, tokenizer = load_exact(tiny_gpt2)
    assert scoring.score_labels(model, tokenizer, ["the film"], LABELS, 4).total.shape == (1, 5)
    empty = scoring.score_labels(model, tokenizer, [""], [" good", " bad"], 4).total[0]
    for label, score in zip([" good", " bad"], empty):  # behind the token that begins a text
        ids = [tokenizer.bos_token_id, *tokenizer(label).input_ids]
        assert score == pytest.approx(plain_ids(model, ids, 1), abs=1e-4)
    with pytest.raises(utils.UserError, match="label 1 is an empty text"):
        scoring.score_labels(model, tokenizer, ["the film"], [" good", ""])
    found = scoring.score_labels(model, tokenizer, ["good " * 600, "bad film"], LABELS, 4)
    assert found.truncated == 1 and found.total[1] == pytest.approx(
        [plain_scores(model, tokenizer, "bad film", x) for x in LABELS], abs=1e-4
    )
    ends = [tokenizer(label).input_ids for label in LABELS]
    kept = tokenizer("good " * 600).input_ids[max(map(len, ends)) - 512 :]  # room for the longest label
    assert found.total[0] == pytest.approx([plain_ids(model, kept + end, len(kept)) for end in ends], abs=1e-4)


@pytest.mark.parametrize("precision, tolerance", [("int8", 0.2), ("nf4", 0.05)])
def test_quantized_kernels_hardly_depend_on_sharing(tiny_llama, precision, tolerance):
    """int8 rounds activations by row and the nf4 kernel by bf16, so that a batch may shift a score a little."""
    model, tokenizer = load_exact(tiny_llama, precision, kernel=True)
    texts = review_prompts(9)
    expected = np.array([[plain_scores(model, tokenizer, text, label) for label in LABELS] for text in texts])
    assert np.abs(scoring.score_labels(model, tokenizer, texts, LABELS, 4).total - expected).max() < tolerance


def adapted(name, peft_type):
    import peft

    model, tokenizer = load_exact(name)
    torch.manual_seed(0)
    if peft_type == "lora":
        config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    else:
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    return peft.get_peft_model(model, config).eval(), tokenizer


@pytest.mark.parametrize("peft_type", ["lora", "prompt_tuning"])
def test_adapters(tiny_llama, peft_type):
    model, tokenizer = adapted(tiny_llama, peft_type)
    texts = review_prompts(7)
    expected = np.array([scoring.score_labels(model, tokenizer, [text], LABELS, 1).total[0] for text in texts])
    plain = np.array([[plain_peft(model, tokenizer, text, label) for label in LABELS] for text in texts])
    assert np.abs(expected - plain).max() < 1e-4
    assert np.abs(scoring.score_labels(model, tokenizer, texts, LABELS, 3).total - plain).max() < 1e-4
    base = scoring.score_labels(*load_exact(tiny_llama), texts, LABELS, 3).total
    assert np.abs(base - plain).max() > 1e-2  # the adapter does something


@torch.inference_mode()
def plain_peft(model, tokenizer, prompt, label):
    """As plain_scores; a learned prompt stands before the text and has logits of its own."""
    whole, alone = tokenizer(prompt + label).input_ids, tokenizer(prompt).input_ids
    log_probs = model(torch.tensor([whole])).logits[0].log_softmax(-1)[-len(whole) :]
    return sum(log_probs[i - 1, whole[i]].item() for i in range(len(alone), len(whole)))


def test_perplexity_is_that_of_the_models_own_loss(tiny_llama):
    model, tokenizer = load_exact(tiny_llama)
    texts = review_prompts(5, shared=False)
    total, count = 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.inference_mode():
            total += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    found, n, _ = scoring.perplexity(model, tokenizer, texts, batch_size=3)
    assert n == count and found == pytest.approx(total, rel=1e-5)


def test_classification_does_not_depend_on_the_batch(tiny_bert):
    torch.manual_seed(1)
    model, tokenizer = (
        loading.load_model(tiny_bert, "classifier", labels=["a", "b", "c"]),
        utils.load_tokenizer(tiny_bert),
    )
    texts, pairs = review_prompts(9, shared=False), review_prompts(9, seed=8, shared=False)
    alone = np.concatenate([scoring.classify(model, tokenizer, [t], [p], 1) for t, p in zip(texts, pairs)])
    assert np.allclose(np.exp(alone).sum(1), 1)
    assert np.abs(scoring.classify(model, tokenizer, texts, pairs, 4) - alone).max() < 1e-5
    assert np.abs(scoring.classify(model, tokenizer, texts, None, 4) - alone).max() > 1e-3  # the second text counts


def test_token_targets_are_plain_log_probabilities(questions, tiny_gpt2):
    model, tokenizer = loaded(tiny_gpt2)
    texts = [render(task, ex)[0] for task in [tasks.load_task(questions)] for ex in task.evaluation[:5]]
    contexts = tokenizer(texts).input_ids
    ends = [[5 + i, 9, 7][: 1 + i % 3] for i in range(5)]
    for context, end, found in zip(contexts, ends, scoring.continuation_log_probs(model, contexts, ends, lambda x: x)):
        with torch.inference_mode():
            plain = model(torch.tensor([context + end])).logits[0].log_softmax(-1)[len(context) - 1 : -1]
        assert torch.allclose(found, plain, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "tiny_t5"])
@pytest.mark.parametrize("shared", [True, False])
def test_labels_that_begin_another_are_scored_with_their_end(name, shared, request):
    """By plain forwards over the label and the token that ends an answer; other labels have no end."""
    model, tokenizer = load_exact(request.getfixturevalue(name))
    texts = review_prompts(5, shared=shared)
    ending, free = [" very", " not bad", " very good"], [" very bad", " not bad", " very good"]
    end = _end(tokenizer, model)
    expected = np.array([[plain_scores(model, tokenizer, text, label) for label in free] for text in texts])
    assert np.abs(scoring.score_labels(model, tokenizer, texts, free, 4).total - expected).max() < 1e-4
    expected = np.array([[ended(model, tokenizer, text, label, end) for label in ending] for text in texts])
    for size in (1, 7, "auto"):
        found = scoring.score_labels(model, tokenizer, texts, ending, size)
        assert np.abs(found.total - expected).max() < 1e-4
    sets = [ending, free[:2]] * 2 + [free]  # only the prompt whose labels begin each other
    mixed = scoring.score_labels(model, tokenizer, texts, sets, 3)
    assert mixed.total[0] == pytest.approx(expected[0], abs=1e-4)
    plain = [plain_scores(model, tokenizer, texts[1], label) for label in free[:2]]
    assert mixed.total[1, :2] == pytest.approx(plain, abs=1e-4) and mixed.total[1, 2] == -np.inf


def _end(tokenizer, model):
    if model.config.is_encoder_decoder:
        return tokenizer.eos_token_id
    return tokenizer("\n", add_special_tokens=False).input_ids[-1]


@torch.inference_mode()
def ended(model, tokenizer, prompt, label, end):
    if model.config.is_encoder_decoder:
        target = torch.tensor([[*tokenizer(label, add_special_tokens=False).input_ids, end]])
        logits = model(**tokenizer(prompt, return_tensors="pt", return_token_type_ids=False), labels=target).logits
        return logits.log_softmax(-1)[0].gather(-1, target[0][:, None]).sum().item()
    ids = [*tokenizer(prompt + label).input_ids, end]
    return plain_ids(model, ids, len(tokenizer(prompt).input_ids))


def test_a_chat_ends_a_label_by_its_end_of_sequence_token(tiny_llama):
    model, tokenizer = load_exact(tiny_llama)
    _, ends, _ = scoring.encode(model, tokenizer, ["the film"], [[" very", " very good"]], add_special_tokens=False)
    assert [some[-1] for some in ends[0]] == [tokenizer.eos_token_id] * 2


def test_scores_that_are_no_numbers_are_refused():
    scoring.check_finite([0.0, -3.0])
    for value in (float("nan"), float("inf"), [0.0, float("-inf")]):
        with pytest.raises(utils.RunFailed, match="NaN or infinite"):
            scoring.check_finite(value)


def test_many_texts_are_tokenized_some_at_a_time(tiny_llama, monkeypatch):
    """A tokenizer keeps a hundred bytes a token until its call ends, which is more than a model for many classes."""
    tokenizer, texts, sizes = utils.load_tokenizer(tiny_llama), review_prompts(13), []

    def seen(some, **options):
        sizes.append(len(some))
        return tokenizer(some, **options)

    monkeypatch.setattr(scoring, "TEXTS_AT_ONCE", 5)
    assert list(scoring.token_ids(seen, texts, True)) == tokenizer(texts).input_ids
    assert sizes == [5, 5, 3]


def test_the_positions_of_a_pass_are_those_whose_logits_are_read(tiny_llama):
    model, tokenizer = load_exact(tiny_llama)
    contexts, ends, _ = scoring.encode(model, tokenizer, review_prompts(13), [LABELS] * 13, True)
    nodes = {(*context, *end[:n]) for context, some in zip(contexts, ends) for end in some for n in range(len(end))}
    found = scoring.score_labels(model, tokenizer, review_prompts(13), LABELS)
    assert len(nodes) > 13 and found.positions == len(nodes)
    assert scoring.score_labels(model, tokenizer, review_prompts(13), LABELS, 4).positions < len(nodes)
