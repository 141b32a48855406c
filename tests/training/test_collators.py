import argparse

import pytest
import torch
from helpers import loaded
from transformers import DataCollatorWithFlattening

from harness.data import tasks
from harness.data.prompts import answer_end, render
from harness.training import collators


def args_of(**changes):
    return argparse.Namespace(**{"max_length": None, "padding_free": False, **changes})


@pytest.mark.parametrize("chat", [False, True])
def test_the_loss_is_on_the_response_to_the_evaluations_prompt(instructions, tiny_llama, chat):
    model, tokenizer = loaded(tiny_llama)
    task = tasks.load_task(instructions)
    data = collators.answer_data(model, tokenizer, task, args_of(), chat)
    assert len(data.train) == len(task.train) and data.note is None
    for example, row in zip(task.train, data.train):
        prompt, separator = render(task, example, (), tokenizer if chat else None)
        start = sum(label == -100 for label in row["labels"])
        assert row["labels"] == [-100] * start + row["input_ids"][start:]
        seen, learned = tokenizer.decode(row["input_ids"][:start]), tokenizer.decode(row["labels"][start:])
        assert seen + learned == tokenizer.decode(
            tokenizer(prompt, add_special_tokens=not chat).input_ids
        ) + separator + task.target(example) + answer_end(tokenizer, chat)
        assert tokenizer(prompt, add_special_tokens=not chat).input_ids[: start - 1] == row["input_ids"][: start - 1]
        assert example.context is None or example.context in seen
    plain = render(task, next(ex for ex in task.train if ex.context))[0]
    assert (
        plain.startswith("### Instruction:\n")
        and "\n\n### Context:\na review" in plain
        and plain.endswith("### Response:")
    )
    assert "### Context" not in render(task, next(ex for ex in task.train if not ex.context))[0]


def test_what_is_too_long_keeps_its_answer(questions, tiny_llama):
    model, tokenizer = loaded(tiny_llama)
    task = tasks.load_task(questions)
    data = collators.answer_data(model, tokenizer, task, args_of(max_length=12), False)
    whole = collators.answer_data(model, tokenizer, task, args_of(), False)
    assert (
        all(len(row["input_ids"]) == 12 for row in data.train)
        and f"{len(task.train) + len(task.validation)} training" in data.note
    )
    for cut, row in zip(data.train, whole.train):
        assert cut["input_ids"] == row["input_ids"][-12:] and cut["labels"] == row["labels"][-12:]


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("batching", ["padded", "padding_free", "padding_free for flash", "whole_head"])
def test_a_batchs_loss_is_that_of_its_rows_alone(name, batching, instructions, request):
    """Padding, restarted positions and a head that projects few positions change no gradient."""
    model, tokenizer = loaded(request.getfixturevalue(name))
    task = tasks.load_task(instructions)
    rows = list(collators.answer_data(model, tokenizer, task, args_of(), False).train)[:5]
    assert len({len(row["input_ids"]) for row in rows}) > 1
    total, count = 0.0, 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        n = int((labels != -100).sum())
        total, count = total + model(ids, labels=labels).loss * n, count + n
    (total / count).backward()
    expected = {key: p.grad.clone() for key, p in model.named_parameters()}
    model.zero_grad()
    options = {"partial_head": batching != "whole_head", "flash": "flash" in batching}
    batch = collators.Responses(tokenizer.pad_token_id, batching.startswith("padding_free"), **options)(rows)
    if "flash" in batching:
        theirs = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(rows)
        assert batch["max_length_q"] == batch["max_length_k"] == theirs["max_length_q"]
        for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
            assert torch.equal(batch[name], theirs[name]) and batch[name].dtype == theirs[name].dtype
    loss = model(**batch).loss
    loss.backward()
    assert loss.item() == pytest.approx(float(total / count), abs=1e-5)
    assert all(torch.allclose(p.grad, expected[key], atol=1e-5) for key, p in model.named_parameters())
    projected = model(**batch).logits.shape[:2].numel()
    if batching.startswith("padding_free"):
        assert projected == count and batch["input_ids"].shape == (1, sum(len(row["input_ids"]) for row in rows))
    elif batching == "padded":
        assert projected == 5 * (1 + max(sum(label != -100 for label in row["labels"]) for row in rows))
