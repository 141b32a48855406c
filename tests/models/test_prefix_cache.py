import random

import numpy as np
import pytest
import torch
from helpers import ASSETS, LABELS, SMOLLM2, WORDS, load_exact, plain_scores, review_prompts

import utils
from harness.data import tasks
from harness.data.examples import draw
from harness.data.prompts import render
from harness.models import batching, generation, loading, packed_attention, prefix_cache, properties, scoring


def tokens_seen(model):
    """A list that grows by the number of tokens of every forward."""
    seen = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0] if args else kwargs["input_ids"]).numel()), with_kwargs=True
    )
    return seen


def test_a_model_that_projects_every_position(tiny_llama, monkeypatch):
    model, tokenizer = load_exact(tiny_llama)
    expected = scoring.score_labels(model, tokenizer, review_prompts(6), LABELS, 4).total
    monkeypatch.setattr(properties, "takes", lambda model, name: name != "logits_to_keep")
    assert np.abs(scoring.score_labels(model, tokenizer, review_prompts(6), LABELS, 4).total - expected).max() < 1e-5


def test_the_shared_prefix_is_computed_once(tiny_llama):
    """Counted in tokens that the model sees, which is what the time goes by."""
    model, tokenizer = load_exact(tiny_llama)
    texts, seen = review_prompts(40), tokens_seen(model)
    found = scoring.score_labels(model, tokenizer, texts, [" positive", " negative"], 8)
    ids = [tokenizer(text).input_ids for text in texts]
    prefix = prefix_cache.common_prefix(ids)
    assert prefix > 40 and found.prefix == ids[0][:prefix] and found.batch_size == 8
    assert (
        len(seen) == 1 + 5 and sum(seen) <= sum(len(row) - prefix for row in ids) + prefix
    )  # and beginnings shared by some


def test_what_only_some_prompts_share_is_computed_once_too(tiny_llama):
    """Six passages, seven questions about each, and no common beginning."""
    model, tokenizer = load_exact(tiny_llama)
    rng = random.Random(3)
    passages = [" ".join(rng.choices(WORDS, k=60)) for _ in range(6)]
    texts = [
        f"{passage} question: {' '.join(rng.choices(WORDS, k=5))} answer:" for passage in passages for _ in range(7)
    ]
    rng.shuffle(texts)
    expected = np.array([[plain_scores(model, tokenizer, text, label) for label in LABELS] for text in texts])
    seen = tokens_seen(model)
    found = scoring.score_labels(model, tokenizer, texts, LABELS, 7)
    assert np.abs(found.total - expected).max() < 1e-4 and len(found.prefix) < 5
    label_tokens = len(texts) * sum(len(tokenizer(label, add_special_tokens=False).input_ids) - 1 for label in LABELS)
    in_passages = sum(len(tokenizer(passage).input_ids) for passage in passages)
    questions = sum(len(tokenizer(text[len(passages[0]) :]).input_ids) for text in texts)
    assert (
        sum(seen) < 1.5 * in_passages + questions + label_tokens < sum(len(tokenizer(text).input_ids) for text in texts)
    )


@pytest.fixture(scope="module")
def forty_labels(tiny_llama):
    """Model, tokenizer, 40 labels of 1 to 4 words, and [(prompts, their scores by plain forwards [N, 40])]."""
    model, tokenizer = load_exact(tiny_llama)
    rng = random.Random(1)
    drawn = {" " + " ".join(rng.choices(WORDS, k=rng.randint(1, 4))): None for _ in range(200)}
    # none begins another: those are scored with their end
    labels = [one for one in drawn if not any(other != one and other.startswith(one) for other in drawn)][:40]
    assert len(labels) == 40
    sets = (review_prompts(1), review_prompts(4), review_prompts(2, shared=False) + review_prompts(2))

    def plainly(text):
        return [plain_scores(model, tokenizer, text, label) for label in labels]

    return model, tokenizer, labels, [(texts, np.array([plainly(text) for text in texts])) for texts in sets]


@pytest.mark.parametrize("tokens", [8, 60, 200])
def test_the_size_of_a_pass_changes_nothing(forty_labels, monkeypatch, tokens):
    """Down to passes so small that every row is one; 40 labels of one prompt are more than a pass takes."""
    monkeypatch.setitem(batching.PACK_TOKENS, "cpu", tokens)
    monkeypatch.setitem(packed_attention.QUERY_BLOCK, "cpu", 7)
    model, tokenizer, labels, sets = forty_labels
    for texts, expected in sets:
        assert np.abs(scoring.score_labels(model, tokenizer, texts, labels).total - expected).max() < 1e-4


def small(name):
    """A random model of another architecture, with the vocabulary of tiny_llama."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "vocab_size": 400,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    windows = {"sliding_window": 256, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
    wide_keys = {
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "first_k_dense_replace": 2,
    }
    special = {
        "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
        "qwen3": {"head_dim": 8},
        "mistral": {"sliding_window": 24},
        "gemma2": {**windows, "query_pre_attn_scalar": 8},
        "gemma3_text": {**windows, "query_pre_attn_scalar": 8},
        "bloom": {"n_layer": 2, "n_head": 4},
        "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "rotary_dim": 4},
        "mamba": {"state_size": 4},
        "deepseek_v3": wide_keys,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**sizes, **special.get(name, {})})
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else None
    return model


SHARING = {
    "opt": True,
    "gpt_neox": True,
    "phi": True,
    "qwen2": True,
    "qwen3": True,
    "olmo2": True,
    "starcoder2": True,
    "gemma3_text": True,
    "deepseek_v3": True,
    "mistral": False,
    "gemma2": False,
    "bloom": False,
    "gptj": False,
    "mamba": False,
}


@pytest.mark.parametrize("name", SHARING)
def test_other_architectures(name, tiny_llama):
    """Shared where that is exact; windows shorter than the rows, soft caps, ALiBi and recurrent states are not."""
    model, tokenizer = small(name), utils.load_tokenizer(tiny_llama)
    texts = review_prompts(6)
    assert prefix_cache.shares_prefix(model, max(len(tokenizer(text).input_ids) for text in texts)) == SHARING[name]
    expected = np.array([[plain_scores(model, tokenizer, text, label) for label in LABELS] for text in texts])
    assert expected.std() > 0.1
    for batch_size in (2, "auto"):
        assert np.abs(scoring.score_labels(model, tokenizer, texts, LABELS, batch_size).total - expected).max() < 1e-4
    alone = [generation.generate(model, tokenizer, [text], 6).texts[0] for text in texts]
    assert generation.generate(model, tokenizer, texts, 6, 4).texts == alone


def test_a_prefix_computed_before_is_used_and_left_as_it_was(tiny_llama):
    model, tokenizer = load_exact(tiny_llama)
    texts = review_prompts(5)
    found = scoring.score_labels(model, tokenizer, texts, LABELS)
    prefix = prefix_cache.prefill(model, found.prefix)
    for text, expected in zip(texts, found.total):
        seen = tokens_seen(model)
        scores = scoring.score_labels(model, tokenizer, [text], LABELS, 1, prefix=prefix).total[0]
        assert np.abs(scores - expected).max() < 1e-4 and sum(seen) < len(tokenizer(text).input_ids)
        assert (
            generation.generate(model, tokenizer, [text], 6, 1, prefix=prefix).texts
            == generation.generate(model, tokenizer, [text], 6).texts
        )
        assert prefix.ids == found.prefix and prefix.cache.get_seq_length() == len(found.prefix)
    other = scoring.score_labels(model, tokenizer, review_prompts(2, shared=False), LABELS, prefix=prefix).total
    assert (
        np.abs(other - scoring.score_labels(model, tokenizer, review_prompts(2, shared=False), LABELS).total).max()
        < 1e-4
    )


@pytest.mark.real
def test_shared_prefix_scores_are_those_of_plain_forwards():
    model, tokenizer = loading.load_model(SMOLLM2), utils.load_tokenizer(SMOLLM2)
    task = tasks.load_task(str(ASSETS / "data/movie_reviews"), max_eval_samples=5)
    demos = draw(task.train, 4, 0)
    prompts = [render(task, ex, demos)[0] for ex in task.evaluation]
    found = scoring.score_labels(model, tokenizer, prompts, [" negative", " positive"], 3).total
    for prompt, scores in zip(prompts, found):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.inference_mode():
            log_probs = model(ids).logits[0, -1].log_softmax(-1)
        assert scores == pytest.approx(
            [log_probs[tokenizer(" " + word).input_ids[0]].item() for word in task.words], abs=1e-4
        )
