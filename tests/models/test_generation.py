import random
from dataclasses import replace

import pytest
from helpers import ASSETS, KINDS, SMOLLM2, load_exact, review_prompts

import utils
from harness.data import tasks
from harness.data.examples import draw
from harness.data.prompts import render
from harness.models import generation, loading


@pytest.mark.parametrize("name, precision", KINDS)
@pytest.mark.parametrize("shared", [True, False])
def test_generation_in_batches_is_one_by_one_generation(name, precision, shared, request):
    model, tokenizer = load_exact(request.getfixturevalue(name), precision)
    texts = review_prompts(11, seed=3, shared=shared)
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
    assert generation.generate(model, tokenizer, [texts[i] for i in order], 8, 7).texts == [alone[i] for i in order]
    for batch_size in (1, 7, 32, "auto"):
        found = generation.generate(model, tokenizer, texts, 8, batch_size)
        assert (
            found.texts == alone
            and found.truncated == 0
            and all(0 < len(ids) <= 8 for ids in found.ids)
            and found.new_tokens == sum(map(len, found.ids))
        )
        assert found.prompt_tokens == sum(len(tokenizer(text).input_ids) for text in texts)


def test_an_answer_ends_before_its_stop_string(tiny_llama):
    model, tokenizer = load_exact(tiny_llama)
    whole = generation.generate(model, tokenizer, review_prompts(6), 12, 3).texts  # with a shared prefix
    mark = next(text[4] for text in whole if len(text) > 5 and text[4].isalpha())
    stopped = generation.generate(model, tokenizer, review_prompts(6), 12, 3, stop=(mark,)).texts
    assert stopped == [text.split(mark)[0].strip() for text in whole] != whole


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "tiny_t5"])
def test_the_tokens_up_to_a_stop_string_do_not_depend_on_the_batch(name, request):
    """Nor on speculation, which accepts several tokens at once; what a finished row is padded with does not count."""
    model, tokenizer = load_exact(request.getfixturevalue(name))
    texts = review_prompts(6)
    whole = generation.generate(model, tokenizer, texts, 24)
    marks = [
        next(text[i : i + 2] for i in range(3, len(text)) if text[i].isalpha()) for text in whole.texts if len(text) > 8
    ][:2]
    alone = [generation.generate(model, tokenizer, [text], 24, 1, stop=marks) for text in texts]
    for batch_size in (1, 4, 6):
        found = generation.generate(model, tokenizer, texts, 24, batch_size, stop=marks)
        assert found.ids == [one.ids[0] for one in alone] and found.texts == [one.texts[0] for one in alone]
    assert any(len(short) < len(long) for short, long in zip(found.ids, whole.ids))
    for short, long in zip(found.ids, whole.ids):
        assert short == long[: len(short)]
    for text, one in zip(texts, alone):
        drafted = generation.generate(model, tokenizer, [text], 24, 1, stop=marks, prompt_lookup_num_tokens=6)
        assert drafted.ids == one.ids and drafted.texts == one.texts


def test_timed_generation_makes_the_tokens_it_says(tiny_llama):
    model, tokenizer = load_exact(tiny_llama)
    timed = generation.time_request(model, tokenizer, "the film was", 9, exact=True)
    assert 0 < timed.ttft_ms < timed.total_ms and timed.tpot_ms > 0 and timed.answer.new_tokens == timed.arrived == 9
    assert timed.answer.prompt_tokens == len(tokenizer("the film was").input_ids)


@pytest.mark.real
def test_shared_prefix_answers_are_those_of_one_prompt_alone():
    model, tokenizer = loading.load_model(SMOLLM2), utils.load_tokenizer(SMOLLM2)
    task = tasks.load_task(str(ASSETS / "data/disfl_qa"), max_eval_samples=4)
    demos = [replace(demo, context=None) for demo in draw(task.train, 3, 0)]
    prompts = [render(task, replace(ex, context=None), demos, tokenizer)[0] for ex in task.evaluation]
    found = generation.generate(model, tokenizer, prompts, 8, add_special_tokens=False)
    assert len(found.prefix) > 60 and found.batch_size == 4
    for prompt, text, new in zip(prompts, found.texts, found.ids):
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        alone = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids.input_ids.shape[1] :]
        assert alone.tolist() == new and tokenizer.decode(new, skip_special_tokens=True).strip() == text
