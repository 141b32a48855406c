"""Everything batched is held against the plainest forward pass there is: one example, no padding, no cache."""

import random

import numpy as np
import pytest
import torch
from conftest import WORDS

import inference
import models
import shared_prefix
import utils

LABELS = [" positive", " negative", " not very good", " a", " the film was lovely"]  # one token to several


def prompts(n, seed=0, shared=True):
    rng = random.Random(seed)
    head = "review " * 30 + ": the film was good and the cast is fine . " if shared else ""
    return [head + " ".join(rng.choices(WORDS, k=rng.randint(1, 25))) + " answer:" for _ in range(n)]


def load(name, precision="fp32", kernel=False):
    """kernel: let nf4 use bitsandbytes' CPU kernel, which on processors that have one multiplies in bf16."""
    model = models.load_model(name, precision=precision)
    for module in model.modules():
        if not kernel and hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model, utils.load_tokenizer(name)


@torch.inference_mode()
def plain_ids(model, ids, start):
    """Sum of the log-probabilities of the token ids from `start` on."""
    log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(log_probs[i - 1, ids[i]].item() for i in range(start, len(ids)))


@torch.inference_mode()
def plain_scores(model, tokenizer, prompt, label):
    """Sum of the log-probabilities of the label's tokens, one forward over the whole text."""
    if model.config.is_encoder_decoder:
        target = tokenizer(label, add_special_tokens=False, return_tensors="pt").input_ids
        logits = model(**tokenizer(prompt, return_tensors="pt", return_token_type_ids=False), labels=target).logits
        return logits.log_softmax(-1)[0].gather(-1, target[0][:, None]).sum().item()
    whole, alone = tokenizer(prompt + label).input_ids, tokenizer(prompt).input_ids
    assert whole[: len(alone)] == alone, "these prompts do not merge with their labels"
    return plain_ids(model, whole, len(alone))


def tokens_seen(model):
    """A list that grows by the number of tokens of every forward."""
    seen = []
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append((args[0] if args else kwargs["input_ids"]).numel()),
                                    with_kwargs=True)  # fmt: skip
    return seen


KINDS = [("tiny_llama", "fp32"), ("tiny_gpt2", "fp32"), ("tiny_t5", "fp32"), ("tiny_llama", "nf4")]


@pytest.mark.parametrize("name, precision", KINDS)
@pytest.mark.parametrize("shared", [True, False])
def test_label_scores_are_those_of_plain_forwards(name, precision, shared, request):
    model, tokenizer = load(request.getfixturevalue(name), precision)
    texts = prompts(13, shared=shared)
    expected = np.array([[plain_scores(model, tokenizer, text, label) for label in LABELS] for text in texts])
    for batch_size in (1, 7, 32, "auto"):
        found = inference.score_labels(model, tokenizer, texts, LABELS, batch_size)
        assert np.abs(found.total - expected).max() < 1e-4
        assert found.batch_size == (13 if batch_size == "auto" else min(13, batch_size))
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
    monkeypatch.setattr(shared_prefix, "takes", lambda model, name: name != "logits_to_keep")
    assert np.abs(inference.score_labels(model, tokenizer, prompts(6), LABELS, 4).total - expected).max() < 1e-5


def test_the_shared_prefix_is_computed_once(tiny_llama):
    """Counted in tokens that the model sees, which is what the time goes by."""
    model, tokenizer = load(tiny_llama)
    texts, seen = prompts(40), tokens_seen(model)
    found = inference.score_labels(model, tokenizer, texts, [" positive", " negative"], 8)
    ids = [tokenizer(text).input_ids for text in texts]
    prefix = shared_prefix.common_prefix(ids)
    assert prefix > 40 and found.prefix == ids[0][:prefix] and found.batch_size == 8
    assert len(seen) == 1 + 5 and sum(seen) <= sum(len(row) - prefix for row in ids) + prefix  # and beginnings shared by some


def test_what_only_some_prompts_share_is_computed_once_too(tiny_llama):
    """Six passages, seven questions about each, and no common beginning."""
    model, tokenizer = load(tiny_llama)
    rng = random.Random(3)
    passages = [" ".join(rng.choices(WORDS, k=60)) for _ in range(6)]
    texts = [f"{passage} question: {' '.join(rng.choices(WORDS, k=5))} answer:" for passage in passages for _ in range(7)]
    rng.shuffle(texts)
    expected = np.array([[plain_scores(model, tokenizer, text, label) for label in LABELS] for text in texts])
    seen = tokens_seen(model)
    found = inference.score_labels(model, tokenizer, texts, LABELS, 7)
    assert np.abs(found.total - expected).max() < 1e-4 and len(found.prefix) < 5
    label_tokens = len(texts) * sum(len(tokenizer(label, add_special_tokens=False).input_ids) - 1 for label in LABELS)
    in_passages = sum(len(tokenizer(passage).input_ids) for passage in passages)
    questions = sum(len(tokenizer(text[len(passages[0]) :]).input_ids) for text in texts)
    assert sum(seen) < 1.5 * in_passages + questions + label_tokens < sum(len(tokenizer(text).input_ids) for text in texts)


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
        cut = shared_prefix.common_prefix([ids, other, tokenizer(prompt).input_ids])
        with torch.inference_mode():
            log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        assert score == pytest.approx(sum(log_probs[i - 1, ids[i]].item() for i in range(cut, len(ids))), abs=1e-4)


def test_one_prompt_alone_an_empty_one_and_one_beyond_the_context(tiny_gpt2):
    model, tokenizer = load(tiny_gpt2)
    assert inference.score_labels(model, tokenizer, ["the film"], LABELS, 4).total.shape == (1, 5)
    empty = inference.score_labels(model, tokenizer, [""], [" good", " bad"], 4).total[0]
    for label, score in zip([" good", " bad"], empty):  # behind the token that begins a text
        ids = [tokenizer.bos_token_id, *tokenizer(label).input_ids]
        assert score == pytest.approx(plain_ids(model, ids, 1), abs=1e-4)
    with pytest.raises(utils.UserError, match="label 1 is an empty text"):
        inference.score_labels(model, tokenizer, ["the film"], [" good", ""])
    found = inference.score_labels(model, tokenizer, ["good " * 600, "bad film"], LABELS, 4)
    assert found.truncated == 1 and found.total[1] == pytest.approx(
        [plain_scores(model, tokenizer, "bad film", x) for x in LABELS], abs=1e-4
    )
    ends = [tokenizer(label).input_ids for label in LABELS]
    kept = tokenizer("good " * 600).input_ids[max(map(len, ends)) - 512 :]  # room for the longest label
    assert found.total[0] == pytest.approx([plain_ids(model, kept + end, len(kept)) for end in ends], abs=1e-4)


@pytest.mark.parametrize("precision, tolerance", [("int8", 0.2), ("nf4", 0.05)])
def test_quantized_kernels_hardly_depend_on_sharing(tiny_llama, precision, tolerance):
    """int8 rounds activations by row and the nf4 kernel by bf16, so that a batch may shift a score a little."""
    model, tokenizer = load(tiny_llama, precision, kernel=True)
    texts = prompts(9)
    expected = np.array([[plain_scores(model, tokenizer, text, label) for label in LABELS] for text in texts])
    assert np.abs(inference.score_labels(model, tokenizer, texts, LABELS, 4).total - expected).max() < tolerance


@pytest.mark.parametrize("tokens", [8, 60, 200])
def test_the_size_of_a_pass_changes_nothing(tiny_llama, monkeypatch, tokens):
    """Down to passes so small that every row is one; 40 labels of one prompt are more than a pass takes."""
    monkeypatch.setitem(shared_prefix.PACK_TOKENS, "cpu", tokens)
    monkeypatch.setitem(shared_prefix.QUERY_BLOCK, "cpu", 7)
    model, tokenizer = load(tiny_llama)
    rng = random.Random(1)
    labels = [" " + " ".join(rng.choices(WORDS, k=rng.randint(1, 4))) for _ in range(40)]
    for texts in (prompts(1), prompts(4), prompts(2, shared=False) + prompts(2)):
        expected = np.array([[plain_scores(model, tokenizer, text, label) for label in labels] for text in texts])
        assert np.abs(inference.score_labels(model, tokenizer, texts, labels).total - expected).max() < 1e-4


def small(name):
    """A random model of another architecture, with the vocabulary of tiny_llama, and whether its prefix can be shared."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "intermediate_size": 64, "max_position_embeddings": 512, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
    windows = {"sliding_window": 256, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
    wide_keys = {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
                 "v_head_dim": 8, "first_k_dense_replace": 2}  # fmt: skip
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


SHARING = {"opt": True, "gpt_neox": True, "phi": True, "qwen2": True, "qwen3": True, "olmo2": True, "starcoder2": True,
           "gemma3_text": True, "deepseek_v3": True, "mistral": False, "gemma2": False, "bloom": False, "gptj": False,
           "mamba": False}  # fmt: skip


@pytest.mark.parametrize("name", SHARING)
def test_other_architectures(name, tiny_llama):
    """Shared where that is exact; windows shorter than the rows, soft caps, ALiBi and recurrent states are not."""
    model, tokenizer = small(name), utils.load_tokenizer(tiny_llama)
    texts = prompts(6)
    assert shared_prefix.shares_prefix(model, max(len(tokenizer(text).input_ids) for text in texts)) == SHARING[name]
    expected = np.array([[plain_scores(model, tokenizer, text, label) for label in LABELS] for text in texts])
    assert expected.std() > 0.1
    for batch_size in (2, "auto"):
        assert np.abs(inference.score_labels(model, tokenizer, texts, LABELS, batch_size).total - expected).max() < 1e-4
    alone = [inference.generate(model, tokenizer, [text], 6).texts[0] for text in texts]
    assert inference.generate(model, tokenizer, texts, 6, 4).texts == alone


def adapted(name, peft_type):
    import peft

    model, tokenizer = load(name)
    torch.manual_seed(0)
    if peft_type == "lora":
        config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    else:
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    return peft.get_peft_model(model, config).eval(), tokenizer


@pytest.mark.parametrize("peft_type", ["lora", "prompt_tuning"])
def test_adapters(tiny_llama, peft_type):
    model, tokenizer = adapted(tiny_llama, peft_type)
    texts = prompts(7)
    expected = np.array([inference.score_labels(model, tokenizer, [text], LABELS, 1).total[0] for text in texts])
    plain = np.array([[plain_peft(model, tokenizer, text, label) for label in LABELS] for text in texts])
    assert np.abs(expected - plain).max() < 1e-4
    assert np.abs(inference.score_labels(model, tokenizer, texts, LABELS, 3).total - plain).max() < 1e-4
    base = inference.score_labels(*load(tiny_llama), texts, LABELS, 3).total
    assert np.abs(base - plain).max() > 1e-2  # the adapter does something


@torch.inference_mode()
def plain_peft(model, tokenizer, prompt, label):
    """As plain_scores; a learned prompt stands before the text and has logits of its own."""
    whole, alone = tokenizer(prompt + label).input_ids, tokenizer(prompt).input_ids
    log_probs = model(torch.tensor([whole])).logits[0].log_softmax(-1)[-len(whole) :]
    return sum(log_probs[i - 1, whole[i]].item() for i in range(len(alone), len(whole)))


def test_a_prefix_computed_before_is_used_and_left_as_it_was(tiny_llama):
    model, tokenizer = load(tiny_llama)
    texts = prompts(5)
    found = inference.score_labels(model, tokenizer, texts, LABELS)
    prefix = shared_prefix.prefill(model, found.prefix)
    for text, expected in zip(texts, found.total):
        seen = tokens_seen(model)
        scores = inference.score_labels(model, tokenizer, [text], LABELS, 1, prefix=prefix).total[0]
        assert np.abs(scores - expected).max() < 1e-4 and sum(seen) < len(tokenizer(text).input_ids)
        assert (
            inference.generate(model, tokenizer, [text], 6, 1, prefix=prefix).texts == inference.generate(model, tokenizer, [text], 6).texts
        )
        assert prefix.ids == found.prefix and prefix.cache.get_seq_length() == len(found.prefix)
    other = inference.score_labels(model, tokenizer, prompts(2, shared=False), LABELS, prefix=prefix).total
    assert np.abs(other - inference.score_labels(model, tokenizer, prompts(2, shared=False), LABELS).total).max() < 1e-4


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
    model, tokenizer = load(tiny_llama)
    texts = prompts(30)
    usual, answers = inference.score_labels(model, tokenizer, texts, LABELS), inference.generate(model, tokenizer, texts, 4)
    assert usual.batch_size == answers.batch_size == 30
    done = limit_memory(model, 150)
    found = inference.score_labels(model, tokenizer, texts, LABELS)
    assert np.abs(found.total - usual.total).max() < 1e-4 and 1 <= found.batch_size < 30
    rows = {tuple(tokenizer(text + label).input_ids[:-1]) for text in texts for label in LABELS}
    assert sum(done) < sum(len(row) - len(found.prefix) for row in rows) + 2 * len(found.prefix)
    fewer = inference.generate(model, tokenizer, texts, 4)
    assert fewer.texts == answers.texts and 1 <= fewer.batch_size < 30
    with pytest.raises(torch.OutOfMemoryError):  # a size that a person chose is kept
        inference.score_labels(model, tokenizer, texts, LABELS, 30)


@pytest.mark.parametrize("name, precision", KINDS)
@pytest.mark.parametrize("shared", [True, False])
def test_generation_in_batches_is_one_by_one_generation(name, precision, shared, request):
    model, tokenizer = load(request.getfixturevalue(name), precision)
    texts = prompts(11, seed=3, shared=shared)
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
    order = random.Random(5).sample(range(11), 11)
    assert inference.generate(model, tokenizer, [texts[i] for i in order], 8, 7).texts == [alone[i] for i in order]
    for batch_size in (1, 7, 32, "auto"):
        found = inference.generate(model, tokenizer, texts, 8, batch_size)
        assert (
            found.texts == alone
            and found.truncated == 0
            and all(0 < len(ids) <= 8 for ids in found.ids)
            and found.new_tokens == sum(map(len, found.ids))
        )
        assert found.prompt_tokens == sum(len(tokenizer(text).input_ids) for text in texts)


def test_an_answer_ends_before_its_stop_string(tiny_llama):
    model, tokenizer = load(tiny_llama)
    whole = inference.generate(model, tokenizer, prompts(6), 12, 3).texts  # with a shared prefix
    mark = next(text[4] for text in whole if len(text) > 5 and text[4].isalpha())
    stopped = inference.generate(model, tokenizer, prompts(6), 12, 3, stop=(mark,)).texts
    assert stopped == [text.split(mark)[0].strip() for text in whole] != whole


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "tiny_t5"])
def test_the_tokens_up_to_a_stop_string_do_not_depend_on_the_batch(name, request):
    """Nor on speculation, which accepts several tokens at once; what a finished row is padded with does not count."""
    model, tokenizer = load(request.getfixturevalue(name))
    texts = prompts(6)
    whole = inference.generate(model, tokenizer, texts, 24)
    marks = [next(text[i : i + 2] for i in range(3, len(text)) if text[i].isalpha()) for text in whole.texts if len(text) > 8][:2]
    alone = [inference.generate(model, tokenizer, [text], 24, 1, stop=marks) for text in texts]
    for batch_size in (1, 4, 6):
        found = inference.generate(model, tokenizer, texts, 24, batch_size, stop=marks)
        assert found.ids == [one.ids[0] for one in alone] and found.texts == [one.texts[0] for one in alone]
    assert any(len(short) < len(long) for short, long in zip(found.ids, whole.ids))
    for short, long in zip(found.ids, whole.ids):
        assert short == long[: len(short)]
    for text, one in zip(texts, alone):
        drafted = inference.generate(model, tokenizer, [text], 24, 1, stop=marks, prompt_lookup_num_tokens=6)
        assert drafted.ids == one.ids and drafted.texts == one.texts


def test_timed_generation_makes_the_tokens_it_says(tiny_llama):
    model, tokenizer = load(tiny_llama)
    timed = inference.time_request(model, tokenizer, "the film was", 9, exact=True)
    assert 0 < timed.ttft_ms < timed.total_ms and timed.tpot_ms > 0 and timed.answer.new_tokens == timed.arrived == 9
    assert timed.answer.prompt_tokens == len(tokenizer("the film was").input_ids)


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
