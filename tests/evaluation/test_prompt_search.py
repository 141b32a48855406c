import dataclasses

import numpy as np
import pytest
from helpers import loaded

from harness.data import tasks
from harness.data.examples import Example
from harness.data.prompts import forms
from harness.evaluation import evaluate, prompt_search
from harness.evaluation.demonstrations import Nearest
from harness.evaluation.prompting import CONTENT_FREE, batch_prior, label_prior


def test_labels_are_divided_into_disjoint_sets_of_demonstrations_and_held_out_ones():
    for n, sizes in ((8, [4]), (17, [8]), (40, [16]), (100, [16] * 3), (2000, [16] * 3)):
        examples = [Example(str(i), f"t{i}", label=i % 2) for i in range(n)]
        sets, held_out = prompt_search.divide(examples, seed=3)
        assert [len(some) for some in sets] == sizes
        assert len(held_out) == min(n - sum(sizes), prompt_search.HELD_OUT) >= n / 2 or n > 400
        everything = [ex.id for some in [*sets, held_out] for ex in some]
        assert len(set(everything)) == len(everything)
        assert all(sum(ex.label for ex in some) == len(some) / 2 for some in sets)


def test_rare_classes_are_held_out_in_their_proportion_and_shared_among_the_sets():
    examples = [Example(str(i), f"t{i}", label=int(i % 5 == 0)) for i in range(100)]
    for seed in range(5):
        sets, held_out = prompt_search.divide(examples, seed)
        assert (len(held_out), sum(ex.label for ex in held_out)) == (52, 10)
        assert [sum(ex.label for ex in some) for some in sets] in ([4, 3, 3], [3, 4, 3], [3, 3, 4])
        assert all(sorted(ex.label for ex in some[:4]) == [0, 0, 1, 1] for some in sets), "first of each class in turn"
        at_random, _ = prompt_search.divide(examples, seed, balanced=False)
        assert len({ex.id for some in at_random for ex in some}) == 48


def test_no_example_calibrates_itself():
    log_probs = np.log(np.random.default_rng(0).dirichlet([2, 1, 1], 7))
    for i, prior in enumerate(prompt_search.left_out_priors(log_probs)):
        assert prior == pytest.approx(batch_prior(np.delete(log_probs, i, axis=0)))


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_t5"])
def test_the_chosen_prompt_is_the_best_of_all_candidates(sentiment, name, request):
    """Each candidate is scored again by evaluate.by_likelihood, one calibration at a time."""
    model, tokenizer = loaded(request.getfixturevalue(name))
    task = tasks.load_task(sentiment, label_budget=40)
    chosen = prompt_search.choose(model, tokenizer, task, 0, False)
    (demonstrations,), held_out = prompt_search.divide(task.train, 0)
    task.evaluation, values = held_out, {}
    content_free = dataclasses.replace(
        task, evaluation=[Example(str(i), text, label=0) for i, text in enumerate(CONTENT_FREE)]
    )
    for k in (0, 4, 8, 16):
        found, blank = (
            evaluate.by_likelihood(model, tokenizer, some, "auto", 0, False, demonstrations[:k])
            for some in (task, content_free)
        )
        priors = {"contextual": batch_prior(blank.log_probs), "batch": batch_prior(found.log_probs)}
        shifted = {
            "none": found.log_probs,
            "contextual": found.log_probs - priors["contextual"],
            "batch": found.log_probs - prompt_search.left_out_priors(found.log_probs),
        }
        for calibrate, log_probs in shifted.items():
            right = np.mean(log_probs.argmax(axis=1) == [ex.label for ex in held_out])
            values.setdefault((right, -k, calibrate == "none"), (k, calibrate, priors.get(calibrate)))
    k, calibrate, prior = values[max(values)]
    assert chosen.demonstrations == demonstrations[:k] and chosen.calibrate == calibrate
    assert (chosen.prior is None) == (calibrate == "none")
    assert len(chosen.trials) == 4 * 3
    if calibrate != "none":
        assert chosen.prior == pytest.approx(prior, abs=1e-4)
    assert {ex.id for ex in chosen.used} == {ex.id for ex in task.train} and chosen.seconds > 0


def test_the_best_of_random_prompts(sentiment, tiny_llama):
    """Each of them is scored again by evaluate.by_likelihood; templates, k and demonstrations differ."""
    model, tokenizer = loaded(tiny_llama)
    task = tasks.load_task(sentiment, label_budget=40)
    chosen = prompt_search.choose(model, tokenizer, task, 0, False, search=(12, forms(task)), demos="random")
    _, held_out = prompt_search.divide(task.train, 0, balanced=False)
    pool = [ex for ex in task.train if ex not in held_out]
    tried = prompt_search.candidates(12, forms(task), pool, 0, balanced=False)
    assert len(tried) == 12 and tried[0] == (task, [])
    assert len({(its.instruction, its.template) for its, _ in tried}) > 2 < len({len(shown) for _, shown in tried})
    scores = []
    for its, shown in tried:
        blank = dataclasses.replace(
            its, evaluation=[Example(str(i), text, label=0) for i, text in enumerate(CONTENT_FREE)]
        )
        its = dataclasses.replace(its, evaluation=held_out)
        log_probs, content_free = (
            evaluate.by_likelihood(model, tokenizer, some, "auto", 0, False, shown).log_probs for some in (its, blank)
        )
        for prior in (0.0, batch_prior(content_free), prompt_search.left_out_priors(log_probs)):
            some = log_probs - prior
            scores.append(np.mean(some.argmax(axis=1) == [ex.label for ex in held_out]))
    assert f"accuracy there {max(scores):.3f}" in chosen.note and "best of 12 random" in chosen.note
    assert [trial["value"] for trial in chosen.trials] == pytest.approx(scores)
    assert {ex.id for ex in chosen.used} >= {ex.id for ex in held_out}
    assert not {ex.id for ex in chosen.demonstrations} & {ex.id for ex in held_out}


def test_the_nearest_are_chosen_with_each_label_left_out_of_its_own_prompt(sentiment, tiny_llama):
    model, tokenizer = loaded(tiny_llama)
    task = tasks.load_task(sentiment, label_budget=24)
    rng = np.random.default_rng(0)
    vectors = {ex.text: vector / np.linalg.norm(vector) for ex in task.train for vector in [rng.normal(size=4)]}
    nearest = Nearest(lambda texts: np.array([vectors[text] for text in texts]), task.train, None)
    chosen = prompt_search.choose(model, tokenizer, task, 0, False, nearest=nearest, least=4)
    assert {ex.id for ex in chosen.used} == {ex.id for ex in task.train}
    assert len(chosen.demonstrations) in (4, 8, 16) and "left out of its own prompt" in chosen.note
    values = []
    for k in (4, 8, 16):
        its = dataclasses.replace(task, evaluation=task.train)
        log_probs = evaluate.by_likelihood(model, tokenizer, its, "auto", 0, False, nearest.of(k)).log_probs
        for some in (log_probs, log_probs - prompt_search.left_out_priors(log_probs)):
            values.append(np.mean(some.argmax(axis=1) == [ex.label for ex in task.train]))
    assert f"accuracy there {max(values):.3f}" in chosen.note


def test_of_few_labels_all_are_demonstrations(sentiment, tiny_llama):
    task = tasks.load_task(sentiment, label_budget=7)
    chosen = prompt_search.choose(*loaded(tiny_llama), task, 0, False)
    assert {ex.id for ex in chosen.demonstrations} == {ex.id for ex in task.train} and chosen.calibrate == "none"


def test_answers_are_chosen_by_the_likelihood_of_the_references(questions, tiny_llama):
    model, tokenizer = loaded(tiny_llama)
    task = tasks.load_task(questions, label_budget=16)
    chosen = prompt_search.choose(model, tokenizer, task, 0, False, likelihood=False)
    trials = prompt_search.Trials(model, tokenizer, task, False, "auto", False, False, 0)
    (demonstrations,), held_out = prompt_search.divide(task.train, 0)
    values = {}
    for k in (0, 4, 8):
        found = trials.scores(held_out, demonstrations[:k])
        values[found.total.sum() / found.n_tokens.sum()] = demonstrations[:k]
    assert chosen.demonstrations == values[max(values)] and f"{max(values):.3f}" in chosen.note


def test_the_prior_of_batch_calibration_is_that_of_the_inputs_it_is_given(sentiment, tiny_llama):
    """The evaluation examples do not change it: one alone is calibrated as among many."""
    model, tokenizer = loaded(tiny_llama)
    task = tasks.load_task(sentiment)
    inputs, evaluation = task.train[:30], task.evaluation[:20]
    prior = label_prior("batch", task, inputs)
    task.evaluation = evaluation
    many = evaluate.by_likelihood(model, tokenizer, task, "auto", 0, False, prior=prior).log_probs
    task.evaluation = evaluation[:1]
    one = evaluate.by_likelihood(model, tokenizer, task, "auto", 0, False, prior=prior).log_probs
    assert one[0] == pytest.approx(many[0], abs=1e-4)
