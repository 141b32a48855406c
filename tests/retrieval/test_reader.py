from retrieval_helpers import arguments, sentences

from harness.data import tasks
from harness.data.examples import Example
from harness.retrieval.chunking import Chunk
from harness.retrieval.reader import Reader, without_citations
from harness.retrieval.retriever import Hit


def hits_of(n):
    return [Hit(Chunk(f"d{i}", 0, text), 1.0, i) for i, text in enumerate(sentences(n))]


def test_passages_that_do_not_fit_are_left_out_from_the_end(questions, tiny_llama, tiny_embedder):
    args = arguments(tiny_embedder, "--gen_model", tiny_llama, "--context_tokens", "40")
    reader = Reader(args, "cpu", tasks.load_task(questions))
    hits = hits_of(4)
    prompt, left = reader.prompt("what is the good film ?", hits)
    n = 4 - left
    assert 0 < left < 4 and [hit.chunk.text in prompt for hit in hits] == [True] * n + [False] * left
    places = [prompt.index(hit.chunk.text) for hit in hits[:n]]
    assert places == sorted(places, reverse=True) and prompt.index("what is") > places[0], (
        "the best stands beside the question"
    )
    args.context_tokens, reader.room = None, len(reader.tokenizer(prompt).input_ids)
    assert reader.prompt("what is the good film ?", hits) == (prompt, left), "the model's own limit does the same"


def test_citations_are_asked_for_and_read(questions, tiny_llama, tiny_embedder):
    assert without_citations("in Paris [2] , maybe[1].") == ("in Paris , maybe.", [2, 1])
    args = arguments(tiny_embedder, "--gen_model", tiny_llama, "--citations")
    reader = Reader(args, "cpu", tasks.load_task(questions))
    hits = hits_of(2)
    prompt, _ = reader.prompt("what is the good film ?", hits)
    assert f"[1] {sentences(2)[0]}" in prompt and f"[2] {sentences(2)[1]}" in prompt and "as in [1]" in prompt


def test_demonstrations_stand_before_the_question(questions, tiny_llama, tiny_embedder):
    args, task = (
        arguments(tiny_embedder, "--gen_model", tiny_llama, "--prompt_format", "plain"),
        tasks.load_task(questions),
    )
    reader, hits = Reader(args, "cpu", task), hits_of(2)
    alone, _ = reader.prompt("what is the good film ?", hits)
    reader.demonstrations = task.train[:2]
    prompt, _ = reader.prompt("what is the good film ?", hits)
    blocks = [f"Text: {ex.context}\n\nQuestion: {ex.text}\nAnswer: {ex.references[0]}" for ex in task.train[:2]]
    places = [prompt.index(block) for block in blocks]
    assert places == sorted(places) and prompt.index(hits[0].chunk.text) > places[-1]
    instruction, question = alone.split("\n\n", 1)
    assert prompt.startswith(instruction) and prompt.endswith(question)


def test_demonstrations_go_before_passages_and_options_are_shown(questions, tiny_llama, tiny_embedder):
    args, task = (
        arguments(tiny_embedder, "--gen_model", tiny_llama, "--prompt_format", "plain"),
        tasks.load_task(questions),
    )
    reader, hits = Reader(args, "cpu", task), hits_of(3)
    asked = Example("test-1", "what is the good film ?", options=("paris", "rome"))
    alone, _ = reader.prompt(asked, hits)
    assert "Question: what is the good film ?\nparis\nrome\nAnswer:" in alone
    reader.demonstrations, reader.room = task.train[:3], len(reader.tokenizer(alone).input_ids) + 3
    assert reader.prompt(asked, hits) == (alone, 0) and reader.fewer == {"test-1"}
    reader.room, reader.fewer = None, set()
    prompt, left = reader.prompt(asked, hits)
    assert left == 0 and all(ex.text in prompt for ex in task.train[:3]) and not reader.fewer
    args.context_tokens = 1
    prompt, left = reader.prompt(asked, hits)
    assert left == 3 and all(ex.text in prompt for ex in task.train[:3]), "which would make no room"
