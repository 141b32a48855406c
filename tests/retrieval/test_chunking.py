import random

import pytest
from helpers import THINGS

import utils
from harness.retrieval import chunking
from harness.retrieval.chunking import split_into_chunks
from harness.retrieval.documents import Document


@pytest.mark.parametrize("overlap", [0, 4])
def test_chunks_end_with_sentences_keep_to_their_size_and_lose_nothing(tiny_bert, overlap):
    tokenizer, rng = utils.load_tokenizer(tiny_bert), random.Random(0)
    text = ""
    for i in range(60):
        text += " ".join(rng.choices(THINGS, k=rng.randint(2, 9))) + rng.choice(".?!") + ("\n\n" if i % 7 == 6 else " ")
    chunks = split_into_chunks([Document("d", "the score", text, "file")], tokenizer, 20, overlap)
    counts = [len(tokenizer(chunk.full, add_special_tokens=False).input_ids) for chunk in chunks]
    assert max(counts) <= 20 and min(counts[:-1]) >= 10 and len(chunks) > 20
    assert all(text[c.position : c.position + len(c.text)] == c.text and c.source == "file" for c in chunks)
    assert all(c.text[-1] in ".?!" for c in chunks), (
        "with sentences of ten tokens at most there is an end in each second half"
    )
    covered = {i for c in chunks for i in range(c.position, c.position + len(c.text))}
    assert all(ch.isspace() for i, ch in enumerate(text) if i not in covered)
    shared = [
        len(tokenizer(text[b.position : a.position + len(a.text)], add_special_tokens=False).input_ids)
        for a, b in zip(chunks, chunks[1:])
    ]
    assert max(shared) <= overlap and (sum(n > 0 for n in shared) > 5) == bool(overlap)


def test_text_without_an_end_is_cut_between_words(tiny_bert):
    tokenizer = utils.load_tokenizer(tiny_bert)
    text = "the good film was dull and very fine " * 8
    chunks = split_into_chunks([Document("d", "", text)], tokenizer, 10, 2)
    words = text.split()
    starts = [len(text[: chunk.position].split()) for chunk in chunks]
    assert starts == list(range(0, 8 * len(chunks), 8))  # ten words, two of them shared
    assert all(chunk.text.split() == words[start : start + 10] for chunk, start in zip(chunks, starts))
    whole = split_into_chunks([Document("d", "film", text)], tokenizer, None, 3)
    assert len(whole) == 1 and whole[0].full == f"film {text.strip()}"
    long_title = split_into_chunks([Document("d", "good " * 30, text)], tokenizer, 10, 2)
    assert all(len(tokenizer(chunk.full, add_special_tokens=False).input_ids) <= 10 for chunk in long_title)


def test_tokens_that_begin_with_a_space_end_chunks_at_sentences(tiny_llama):
    tokenizer, text = (
        utils.load_tokenizer(tiny_llama),
        "the good film was fine . the dull plot is poor . a great cast , a weak joke . " * 4,
    )
    chunks = split_into_chunks([Document("d", "", text)], tokenizer, 24, 0)
    assert len(chunks) > 4 and all(chunk.text.endswith(".") for chunk in chunks)
    assert all(text[c.position : c.position + len(c.text)] == c.text for c in chunks)


def test_scripts_without_spaces_are_chunked_too(tiny_bert):
    tokenizer = utils.load_tokenizer(tiny_bert)
    text = "film?good!" * 30
    chunks = split_into_chunks([Document("d", "", text)], tokenizer, 8, 2)
    assert chunks[0].position == 0 and chunks[-1].position + len(chunks[-1].text) == len(text)
    assert all(b.position <= a.position + len(a.text) for a, b in zip(chunks, chunks[1:]))


def test_a_word_that_no_tokenizer_reads_is_not_one_chunk(tiny_bert):
    tokenizer = utils.load_tokenizer(tiny_bert)
    text = "the city is rome . " + "QUJD" * 600 + " and the film was good ."
    chunks = split_into_chunks([Document("d", "", text)], tokenizer, 16, 0)
    assert max(len(chunk.text) for chunk in chunks) <= 16 * 6 and chunks[-1].text.endswith("good .")
    covered = {i for c in chunks for i in range(c.position, c.position + len(c.text))}
    assert all(ch.isspace() for i, ch in enumerate(text) if i not in covered)
    assert all(text[c.position : c.position + len(c.text)] == c.text for c in chunks)


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_bert"])
def test_a_long_text_is_tokenized_in_parts_with_the_same_tokens(model, request, monkeypatch):
    tokenizer, lengths = utils.load_tokenizer(request.getfixturevalue(model)), []
    text = "the good film was fine . the dull plot is poor ,\n\na great cast . " * 8
    whole = chunking.token_offsets(text, tokenizer)
    monkeypatch.setattr(chunking, "PART", 50)

    def seen(part, **options):
        lengths.append(len(part))
        return tokenizer(part, **options)

    assert chunking.token_offsets(text, seen) == whole and max(lengths) <= 50
    assert [part for _, part in chunking._parts("x" * 130)] == ["x" * 50, "x" * 50, "x" * 30]
