from collections import Counter

import pytest
from helpers import reviews, write_jsonl

import utils
from harness.data import tasks, unlabelled
from harness.data.examples import Example, draw_in_proportion

SKEWED = [Example(f"e{i}", f"t{i}", label=0 if i < 160 else 1 if i < 195 else 2) for i in range(200)]  # 160, 35, 5


def counts(examples):
    return [Counter(ex.label for ex in examples)[label] for label in range(3)]


def test_a_draw_has_the_class_proportions_and_every_class():
    assert counts(draw_in_proportion(SKEWED, 40, 0)) == [32, 7, 1]
    assert counts(draw_in_proportion(SKEWED, 200, 0)) == [160, 35, 5]
    for n in range(3, 200):
        found = counts(draw_in_proportion(SKEWED, n, n))
        assert sum(found) == n and min(found) >= 1
        assert all(abs(k - n * share) < 2 for k, share in zip(found, (0.8, 0.175, 0.025)))
    assert counts(draw_in_proportion(SKEWED, 2, 0)) == [1, 1, 0], "fewer labels than classes: the frequent ones"


def test_a_draw_depends_on_its_seed_alone_and_a_smaller_one_is_within_it():
    first, again, other = (draw_in_proportion(SKEWED, 50, seed) for seed in (1, 1, 2))
    assert first == again != other and len(set(first)) == 50
    for n in (1, 3, 10, 49):
        assert set(draw_in_proportion(SKEWED, n, 1)) <= set(first)
    assert [ex.label for ex in first] != sorted(ex.label for ex in first), "the classes are mixed"


def test_examples_without_labels_are_drawn_at_random(questions):
    task = tasks.load_task(questions, label_budget=7)
    assert len(task.train) == 7 and not task.validation and len(task.unlabelled) == 13
    assert {ex.id for ex in task.train} != {
        ex.id for ex in tasks.load_task(questions, label_budget=7, data_seed=1).train
    }


def test_a_budget_leaves_no_validation_examples_and_the_same_evaluation(sentiment, tmp_path):
    task, usual = tasks.load_task(sentiment, label_budget=30), tasks.load_task(sentiment)
    assert (len(task.train), task.validation, len(task.unlabelled)) == (30, [], 130)
    assert counts(task.train)[:2] == [15, 15] and task.evaluation == usual.evaluation
    assert not {ex.id for ex in task.train} & {ex.id for ex in task.unlabelled}
    write_jsonl(tmp_path / "all.jsonl", reviews(3, 100))
    one_file = str(tmp_path / "all.jsonl")
    task = tasks.load_task(one_file, label_budget=70)  # all that are not evaluated: no tenth is kept for validation
    assert task.evaluation == tasks.load_task(one_file).evaluation and not task.validation and not task.unlabelled
    with pytest.raises(utils.UserError, match="--label_budget 71: .*all.jsonl has 70 labelled training examples"):
        tasks.load_task(one_file, label_budget=71)


def test_inputs_without_labels_are_read_from_lines_and_tables(sentiment, nli, tmp_path):
    task, pairs = tasks.load_task(sentiment), tasks.load_task(str(nli / "mnli"))
    (tmp_path / "a.txt").write_text("a fine film\n\na dull plot\n")
    (tmp_path / "b.csv").write_text("id,review,label\n1,a fine film,?\n2,a dull plot,\n")
    for name in ("a.txt", "b.csv"):
        found = unlabelled.read_inputs(tmp_path / name, task)
        assert [(ex.text, ex.text_pair, ex.label) for ex in found] == [
            ("a fine film", None, None),
            ("a dull plot", None, None),
        ]
    (tmp_path / "c.tsv").write_text("premise\thypothesis\nit rains\tit is wet\n")
    assert unlabelled.read_inputs(tmp_path / "c.tsv", pairs)[0].text_pair == "it is wet"
    for name, for_task, message in (
        ("c.tsv", task, "one column of texts is wanted"),
        ("a.txt", pairs, "two columns of texts are wanted"),
    ):
        with pytest.raises(utils.UserError, match=message):
            unlabelled.read_inputs(tmp_path / name, for_task)
