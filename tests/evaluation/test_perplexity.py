import math

import numpy as np
import pytest
import torch
from helpers import loaded, plain_ids
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harness.data import tasks
from harness.evaluation import perplexity
from harness.models import scoring


def test_perplexity_of_a_uniform_guess_is_the_vocabulary_and_bits_are_over_bytes():
    cells = perplexity.cells("text", 10 * math.log(50), 10, 40)
    assert cells["text_perplexity"] == pytest.approx(50)
    assert cells["bits_per_byte"] == pytest.approx(10 * math.log2(50) / 40)
    assert perplexity.cells("reference", 1.0, 1, 0)["bits_per_byte"] is None


def test_bits_per_byte_of_texts_by_hand(tiny_gpt2):
    """tiny_gpt2 puts no token before a text: the first token is context, and its bytes do not count."""
    model, tokenizer = loaded(tiny_gpt2)
    texts, bits, n_bytes = ["the film was good", "a very weak plot, caf\u00e9 \U0001f642"], 0.0, 0
    for text in texts:
        ids = tokenizer(text).input_ids
        bits -= plain_ids(model, ids, 1) / math.log(2)
        n_bytes += len(tokenizer.decode(ids[1:]).encode())
    nll, n, found = scoring.perplexity(model, tokenizer, texts)
    cells = perplexity.cells("text", nll, n, found)
    assert found == n_bytes and cells["bits_per_byte"] == pytest.approx(bits / n_bytes, rel=1e-5)


def test_every_token_of_a_long_text_is_scored_once(tiny_llama):
    model, tokenizer = loaded(tiny_llama)
    ids = tokenizer("the film was good and the plot was weak . " * 3).input_ids
    text = tokenizer.decode(ids[1:])
    nll, n, n_bytes = scoring.perplexity(model, tokenizer, [text, "film"], max_length=7)
    short = tokenizer("film").input_ids
    windows = [ids[i : i + 7] for i in range(0, len(ids) - 1, 6)]
    by_hand = -sum(plain_ids(model, window, 1) for window in [*windows, short])
    assert sum(len(window) - 1 for window in windows) == len(ids) - 1
    assert (n, n_bytes) == (len(ids) + len(short) - 2, len((text + "film").encode()))
    assert nll == pytest.approx(by_hand, rel=1e-5)


def cutting(pattern, vocabulary):
    """A tokenizer whose tokens are the matches of a pattern."""
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_bits_per_byte_compare_two_tokenizers_of_the_same_text():
    """A model that knows nothing of a text of two letters needs one bit a byte, whatever the tokens are: one letter of
    two or two letters of four. Their perplexities are 2 and 4."""
    rng, found = np.random.default_rng(0), []
    texts = ["".join(rng.choice(["a", "b"], 60)) for _ in range(5)]
    for pattern, vocabulary in (("[ab]", ["a", "b"]), ("[ab][ab]", ["aa", "ab", "ba", "bb"])):
        tokenizer = cutting(pattern, vocabulary)
        config = LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
        model = LlamaForCausalLM(config).eval()
        torch.nn.init.zeros_(model.lm_head.weight)
        found.append(perplexity.cells("text", *scoring.perplexity(model, tokenizer, texts)))
    assert [cells["text_perplexity"] for cells in found] == pytest.approx([2, 4])
    assert [cells["bits_per_byte"] for cells in found] == pytest.approx([1, 1])


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_t5"])
def test_bits_per_byte_of_references_are_over_the_bytes_of_answer_and_separator(name, questions, request):
    model, tokenizer = loaded(request.getfixturevalue(name))
    prompts, references = ["what is the film ?", "a"], [" paris", " caf\u00e9"]
    cells = perplexity.reference_cells(model, tokenizer, prompts, references, "auto", False)
    found = scoring.score_labels(model, tokenizer, prompts, [[text] for text in references])
    bits = -found.total.sum() / math.log(2)
    assert cells["bits_per_byte"] == pytest.approx(bits / (6 + 6))
    assert cells["reference_perplexity"] == pytest.approx(2 ** (bits / found.n_tokens.sum()))


def test_a_reference_that_is_cut_has_no_bits_per_byte(tiny_gpt2):
    model, tokenizer = loaded(tiny_gpt2)  # 512 positions
    cells = perplexity.reference_cells(model, tokenizer, ["film"], [" good" * 600], "auto", False)
    assert cells["reference_perplexity"] > 1 and cells["bits_per_byte"] is None


def test_an_encoder_decoder_has_no_perplexity_of_texts(sentiment, tiny_t5):
    model, tokenizer = loaded(tiny_t5)
    assert perplexity.text_cells(model, tokenizer, tasks.load_task(sentiment)) == {}
