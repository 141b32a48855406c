import argparse

import numpy as np
import pytest
import scipy.sparse
import torch
from helpers import loaded, review_prompts
from sentence_transformers import SentenceTransformer

import utils
from harness.models import features, tfidf


def settings(model, **changed):
    usual = {"model": model, "max_length": None, "batch_size": "auto", "precision": "fp32", "trust_remote_code": False}
    usual["attn_implementation"] = None
    return argparse.Namespace(**{**usual, **changed})


@torch.inference_mode()
def plain_state(model, tokenizer, text):
    """The last layer's state at the last token, by one forward over the whole text."""
    ids = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    return model(**ids, output_hidden_states=True).hidden_states[-1][0, -1].numpy()


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("size", ["auto", 1, 3])
def test_last_states_are_those_of_plain_forwards(name, size, request):
    folder = request.getfixturevalue(name)
    model, tokenizer = loaded(folder)
    prompts = review_prompts(12) + review_prompts(4, seed=5, shared=False)
    prompts.append(prompts[3])  # twice the same
    extract = features.LastStates(settings(folder, batch_size=size), "cpu", tokenizer, chat=False)
    states = extract(prompts)
    expected = np.stack([plain_state(model, tokenizer, prompt) for prompt in prompts])
    assert states.dtype == np.float32 and states == pytest.approx(expected, abs=2e-5)
    assert np.abs(states[0] - states[1]).max() > 1e-2  # prompts that differ have other states
    assert extract.largest == {"auto": 17, 1: 1, 3: 3}[size]
    assert extract(prompts[:1])[0] == pytest.approx(expected[0], abs=2e-5)


def test_common_beginnings_are_computed_once(tiny_llama):
    _, tokenizer = loaded(tiny_llama)
    extract = features.LastStates(settings(tiny_llama), "cpu", tokenizer, chat=False)
    seen, prompts = [], review_prompts(12)
    extract.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].numel()))
    extract(prompts)
    assert sum(seen) < sum(extract.lengths(prompts)) / 2


def test_models_that_cannot_pack_are_padded(tiny_llama, monkeypatch):
    _, tokenizer = loaded(tiny_llama)
    extract = features.LastStates(settings(tiny_llama), "cpu", tokenizer, chat=False)
    packed = extract(review_prompts(9))
    monkeypatch.setattr(features.prefix_cache, "shares_prefix", lambda *_: False)
    assert extract(review_prompts(9)) == pytest.approx(packed, abs=2e-5)


def test_long_prompts_are_cut_on_the_left(tiny_llama):
    model, tokenizer = loaded(tiny_llama)
    extract = features.LastStates(settings(tiny_llama, max_length=9), "cpu", tokenizer, chat=False)
    (prompt,) = review_prompts(1)
    ids = tokenizer(prompt).input_ids
    with torch.inference_mode():
        expected = model.base_model(torch.tensor([ids[-9:]]))[0][0, -1].numpy()
    assert extract([prompt])[0] == pytest.approx(expected, abs=2e-5) and extract.lengths([prompt]) == [len(ids)]


def test_encoders_have_no_last_state(tiny_bert, tiny_t5):
    for folder in (tiny_bert, tiny_t5):
        with pytest.raises(utils.UserError, match="is no causal language model"):
            features.LastStates(settings(folder), "cpu", None, chat=False)


def test_embeddings_are_sentence_transformers(tiny_embedder):
    extract = features.Embeddings(settings(tiny_embedder), "cpu")
    texts = review_prompts(5, shared=False)
    model = SentenceTransformer(tiny_embedder, device="cpu")
    model.max_seq_length = 64  # the positions' limit, not the 32 of its sentence_bert_config.json
    assert extract.limit == 64
    assert extract(texts) == pytest.approx(model.encode(texts, normalize_embeddings=True), abs=1e-6)
    short = features.Embeddings(settings(tiny_embedder, max_length=4), "cpu")
    assert short.limit == 4 and np.abs(short(texts) - extract(texts)).max() > 1e-2


def test_tfidf_is_the_same_when_it_is_loaded():
    extract, texts = tfidf.TfIdf(), ["a fine film", "a dull film , Ümlaut", "x"]
    extract.fit(texts)
    again = tfidf.TfIdf(extract.state())
    vectors = extract(["a fine Ümlaut", "nothing known: qqq"])
    assert (vectors != again(["a fine Ümlaut", "nothing known: qqq"])).nnz == 0 and vectors.nnz > 10
    with pytest.raises(utils.UserError, match="no words"):
        tfidf.TfIdf().fit(["!", "?"])


def test_pairs():
    u, v = np.array([[1.0, 2.0]]), np.array([[3.0, -1.0]])
    expected = [[1, 2, 3, -1, 2, 3, 3, -2]]
    assert tfidf.pair(u, v).tolist() == expected
    assert tfidf.pair(*map(scipy.sparse.csr_matrix, (u, v))).toarray().tolist() == expected
