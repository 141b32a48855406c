import pytest

import utils
from harness.data import tasks
from harness.data.examples import Example, draw


def test_k_demonstrations_are_the_k_training_examples(sentiment):
    whole = tasks.load_task(sentiment, data_seed=7)
    assert draw(whole.train, 8, 7) == tasks.load_task(sentiment, data_seed=7, max_train_samples=8).train
    assert [ex.label for ex in draw(whole.train, 8, 7)].count(0) == 4
    assert draw(whole.train, 8, 7)[:4] == draw(whole.train, 4, 7)
    assert len(draw(whole.train, 160, 7)) == 160
    with pytest.raises(utils.UserError, match="161 .* the data have 160"):
        draw(whole.train, 161, 7)


def test_draw_is_as_balanced_as_the_data_allow():
    examples = [Example(str(i), f"t{i}", label=0 if i < 3 else 1 if i < 10 else 2) for i in range(50)]
    labels = [ex.label for ex in draw(examples, 15, 0)]
    assert [labels.count(c) for c in range(3)] == [3, 6, 6]


def test_a_cluster_is_what_several_examples_are_about():
    passage = Example("1", "who?", context="A  passage.")
    assert passage.cluster == Example("2", "when?", context="a passage.").cluster is not None
    assert Example("3", "a premise", "one hypothesis").cluster == Example("4", "a premise", "another").cluster
    assert passage.cluster != Example("5", "who?", context="another").cluster
    assert Example("6", "a review").cluster is None
