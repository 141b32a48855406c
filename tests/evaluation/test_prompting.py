import numpy as np
import pytest

import utils
from harness.data import tasks
from harness.data.examples import draw
from harness.data.prompts import render
from harness.evaluation import prompting


@pytest.mark.parametrize("chat", [False, True])
def test_too_long_a_prompt_loses_its_first_demonstrations(sentiment, tiny_llama, chat):
    """No more of them than it must, the instruction stays, and prompts that fit are left alone."""
    task = tasks.load_task(sentiment, instruction="review the film .")
    tokenizer = utils.load_tokenizer(tiny_llama)
    demos = draw(task.train, 8, 0)
    with_chat = tokenizer if chat else None

    def length(prompt):
        return len(tokenizer(prompt, add_special_tokens=not chat).input_ids)

    lengths = [length(render(task, ex, demos, with_chat)[0]) for ex in task.evaluation]
    whole, _, *lost = prompting.fit_prompts(task, task.evaluation, demos, tokenizer, chat, max(lengths))
    assert lost == [0, 0] and whole == [render(task, ex, demos, with_chat)[0] for ex in task.evaluation]
    assert whole == prompting.fit_prompts(task, task.evaluation, demos, tokenizer, chat, None)[0]
    room = sorted(lengths)[len(lengths) // 2] - 30
    prompts, _, shortened, lost = prompting.fit_prompts(task, task.evaluation, demos, tokenizer, chat, room)
    left_out = []
    for ex, prompt in zip(task.evaluation, prompts):
        left_out.append([render(task, ex, demos[n:], with_chat)[0] for n in range(9)].index(prompt))
        assert length(prompt) <= room and "review the film ." in prompt
        assert left_out[-1] == 0 or length(render(task, ex, demos[left_out[-1] - 1 :], with_chat)[0]) > room
    assert max(left_out) >= 1 and shortened == sum(n > 0 for n in left_out) and lost == sum(left_out)


def test_contextual_calibration_is_the_papers_formula(sentiment):
    """W = diag(p_cf)^-1: the calibrated probability is proportional to p / p_cf (Zhao et al. 2021)."""
    task = tasks.load_task(sentiment)
    answers = {"N/A": [0.9, 0.1], "": [0.7, 0.3], "[MASK]": [0.8, 0.2]}
    prior = prompting.contextual_prior(task, lambda examples: np.log([answers[ex.text] for ex in examples]))
    assert np.exp(prior) == pytest.approx([0.8, 0.2])
