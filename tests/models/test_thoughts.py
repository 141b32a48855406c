import pytest
from helpers import bpe, loaded
from transformers import AddedToken

from harness.models import generation, thoughts

HARMONY = "<|channel|>analysis<|message|>they ask<|end|><|start|>assistant<|channel|>final<|message|>Paris"


@pytest.mark.parametrize(
    "text, answer",
    [
        ("<think>\nnot positive at all.\n</think>\n\nnegative", "negative"),
        ("<think>\n\n</think>\n\nParis", "Paris"),
        ("<think>\nthe word positive comes to mind", ""),
        ("<thinking>a</thinking>\nParis", "Paris"),
        ("<reasoning>a</reasoning> Paris", "Paris"),
        ("<THOUGHT>a</THOUGHT>Paris", "Paris"),
        ("[THINK]a[/THINK]Paris", "Paris"),
        ("[THINK]a", ""),
        (HARMONY, "Paris"),
        ("<|channel|>analysis<|message|>they ask", ""),
        ("<|START_THINKING|>a<|END_THINKING|>Paris", "Paris"),
        ("◁think▷a◁/think▷Paris", "Paris"),
        ("it began in the prompt </think> Paris", "Paris"),
        ("<think>a</think>Rome, no: <think>b</think>Paris", "Rome, no: Paris"),
        ("<think>a</think>\n<answer>Paris</answer>", "Paris"),
        ("Paris <think> or", "Paris"),
        ("write the `<think>` tag, then `</think>`", "write the `<think>` tag, then `</think>`"),
        ("5 < 6 and [1], as I think>", "5 < 6 and [1], as I think>"),
        (" as it is\n", " as it is\n"),
    ],
)
def test_thoughts_are_no_part_of_an_answer(text, answer):
    assert thoughts.answer_of(text) == answer
    assert thoughts.answer_of(answer) == answer


def test_a_thought_that_began_in_the_prompt():
    assert thoughts.opens("<|assistant|><think>\n") and thoughts.opens("[THINK]")
    assert not thoughts.opens("<|assistant|><think>\n\n</think>\n\n") and not thoughts.opens("Is it a <think> tag?")
    assert thoughts.split("the film is good", opened=True)[:2] == ("", True)
    assert thoughts.split("the film is good</think>\nyes", opened=True)[:2] == ("yes", False)


def test_special_tokens_that_mark_thoughts_are_kept():
    """Magistral's [THINK] and gpt-oss' channels are special tokens, which decoding leaves out."""
    tokenizer = bpe(["<s>", "<|end|>"], eos_token="<|end|>")
    plain = thoughts.decoder(tokenizer)
    ids = tokenizer("<s>the film<|end|>").input_ids
    assert plain(ids) == tokenizer.decode(ids, skip_special_tokens=True) == "the film"
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in ("[THINK]", "[/THINK]")], special_tokens=True)
    ids = tokenizer("<s>[THINK]very good[/THINK]the film<|end|>").input_ids
    assert thoughts.decoder(tokenizer)(ids) == "[THINK]very good[/THINK]the film"


def test_generated_thoughts_are_kept_apart_and_stop_strings_within_them_stop_nothing(tiny_llama, monkeypatch):
    model, tokenizer = loaded(tiny_llama)
    said = {  # what the model writes, by the last word of its prompt
        "good": "<think>one\ntwo</think>\n\nParis\nRome",
        "bad": "<think>one\ntwo\n",
        "dull": "Paris\nRome",
    }
    read = thoughts.decoder

    def pretend(tokenizer):
        def text_of(ids):  # a token for each character, by its code behind 10
            return "".join(chr(i) for i in ids) if ids and min(ids) >= 10 else read(tokenizer)(ids)

        return text_of

    def generate(input_ids, attention_mask, stopping_criteria=(), **_):
        import torch

        rows = [list(map(ord, said[tokenizer.decode(row).split()[-1]])) for row in input_ids]
        width = max(map(len, rows))
        new = torch.tensor([row + [ord("\n")] * (width - len(row)) for row in rows])
        self_stopped.append(
            [bool(stopping_criteria[0](torch.cat([input_ids, new[:, :n]], 1), None)[0]) for n in (12, 40)]
        )
        return torch.cat([input_ids, new], 1)

    self_stopped = []
    monkeypatch.setattr(thoughts, "decoder", pretend)
    monkeypatch.setattr(model, "generate", generate)
    found = generation.generate(model, tokenizer, ["the film was " + word for word in said], 64, 1, stop=("\n",))
    assert found.answers == ["Paris", "", "Paris"] and found.unfinished == 1
    assert found.texts == ["<think>one\ntwo</think>\n\nParis", "<think>one\ntwo", "Paris"]
    assert self_stopped == [[False, True], [False, False], [True, True]]
    assert [len(ids) for ids in found.ids][2] == len("Paris\n")


def test_joined_answers_have_no_thoughts_either(tiny_llama):
    model, tokenizer = loaded(tiny_llama)
    parts = [generation.generate(model, tokenizer, [text], 3) for text in ("the film", "a city <think>")]
    whole = generation.joined(parts)
    assert whole.answers == [parts[0].answers[0], ""] and whole.texts == [part.texts[0] for part in parts]
    assert whole.unfinished == 1 and len(whole.ids) == 2
