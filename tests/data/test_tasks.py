import random

import pytest
from helpers import ASSETS, reviews, write_jsonl

import utils
from harness.data import tasks


def keys(examples):
    return {ex.key() for ex in examples}


def test_a_folder_of_splits(sentiment):
    task = tasks.load_task(sentiment)
    assert (task.kind, task.labels, task.words) == (
        "classification",
        ("negative", "positive"),
        ("negative", "positive"),
    )
    assert (len(task.train), len(task.validation), len(task.evaluation), task.eval_split) == (160, 40, 60, "test")
    assert task.evaluation[0].id.startswith("test-")


def test_evaluation_is_the_same_for_every_data_seed_and_nested(sentiment):
    tasks_ = [
        tasks.load_task(sentiment, data_seed=seed, max_train_samples=10, max_eval_samples=n)
        for seed, n in ((0, 20), (1, 20), (1, 40))
    ]
    assert tasks_[0].evaluation == tasks_[1].evaluation == tasks_[2].evaluation[:20]
    assert tasks_[0].eval_id == tasks_[1].eval_id != tasks_[2].eval_id
    assert tasks_[0].train != tasks_[1].train


@pytest.mark.parametrize("seed", range(5))
def test_one_file_is_split_without_overlap_and_with_a_fixed_evaluation(tmp_path, seed):
    rows = reviews(3, 200)
    write_jsonl(tmp_path / "all.jsonl", rows + rows[:40])  # a fifth of the rows twice
    task = tasks.load_task(str(tmp_path / "all.jsonl"), data_seed=seed)
    assert task.evaluation == tasks.load_task(str(tmp_path / "all.jsonl"), data_seed=99).evaluation
    assert not keys(task.evaluation) & keys(task.train) and not keys(task.evaluation) & keys(task.validation)
    assert not keys(task.train) & keys(task.validation)
    assert len(task.evaluation) == 72 and "left out of training" in task.notes[0]


@pytest.mark.parametrize("n, held_out", [(2, 1), (10, 3), (1000, 300), (1500, 400), (5000, 500)])
def test_a_file_of_its_own_holds_out_enough_to_tell_scores_apart(tmp_path, n, held_out):
    write_jsonl(tmp_path / "all.jsonl", [{"text": f"text {i}", "label": i % 2} for i in range(n)])
    task = tasks.load_task(str(tmp_path / "all.jsonl"), label_budget=None)
    assert len(task.evaluation) == held_out and len(task.train) + len(task.validation) == n - held_out


def test_evaluation_examples_that_stand_in_train_are_taken_out_of_it(tmp_path):
    rows = reviews(4, 60)
    shouted = [{**row, "text": "  " + row["text"].upper().replace(" ", "  ")} for row in rows[:10]]
    write_jsonl(tmp_path / "train.jsonl", shouted + rows[10:])
    write_jsonl(tmp_path / "test.jsonl", rows[:20])
    task = tasks.load_task(str(tmp_path))
    assert not keys(task.evaluation) & (keys(task.train) | keys(task.validation))
    assert len(task.train) + len(task.validation) == 40 and task.notes == [
        "20 examples left out of training because they are in an evaluation split"
    ]


def test_unlabelled_test_split_falls_back_to_validation(tmp_path):
    write_jsonl(
        tmp_path / "train.jsonl", [{"premise": f"p{i}", "hypothesis": f"h{i}", "label": i % 3} for i in range(30)]
    )
    write_jsonl(tmp_path / "dev.jsonl", [{"premise": f"q{i}", "hypothesis": f"h{i}", "label": i % 3} for i in range(9)])
    write_jsonl(tmp_path / "test.jsonl", [{"premise": f"r{i}", "hypothesis": f"h{i}", "label": -1} for i in range(9)])
    task = tasks.load_task(str(tmp_path))
    assert (
        task.eval_split == "validation" and len(task.evaluation) == 9 and task.evaluation[0].text_pair.startswith("h")
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"subset": "colour"}, "--subset colour: .* has no such subfolder"),
        ({"label_column": "colour"}, "--label_column colour: no such column; there are text, label"),
        ({"label_words": ["one"]}, "names 1 words for the 2 labels"),
        ({"template": "no field"}, r"has no \{text\}"),
        ({"template": "{text} {text_pair}"}, "the examples have one text"),
        ({"max_train_samples": 10_000}, "10000 training examples or demonstrations are asked for"),
    ],
)
def test_wrong_options_are_clear_errors(sentiment, change, message):
    with pytest.raises(utils.UserError, match=message):
        tasks.load_task(sentiment, **change)


def test_a_split_without_the_label_column_is_unlabelled(tmp_path):
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n" + "".join(f"s{i}\t{i % 2}\n" for i in range(20)))
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nt\t1\n")
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\tu\n")
    assert tasks.load_task(str(tmp_path)).eval_split == "validation"
    write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": 1}, {"label": 0}])
    with pytest.raises(utils.UserError, match="row 1 has no column text"):
        tasks.load_task(str(tmp_path / "rows.jsonl"))


@pytest.mark.real
def test_the_demo_reviews_are_split_without_overlap():
    folder = ASSETS / "data/movie_reviews"
    task = tasks.load_task(str(folder), data_seed=random.randrange(1000))
    assert (len(task.train), len(task.validation), len(task.evaluation), task.notes) == (9000, 566, 1000, [])
    assert len(keys(task.train) | keys(task.validation) | keys(task.evaluation)) == 10566


def test_no_validation_wanted_takes_no_training_examples(tmp_path):
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(120)]
    write_jsonl(tmp_path / "train.jsonl", rows[:100])
    write_jsonl(tmp_path / "test.jsonl", rows[100:])
    task = tasks.load_task(str(tmp_path), max_validation_samples=0)
    assert (len(task.train), len(task.validation)) == (100, 0)
    task = tasks.load_task(str(tmp_path))
    assert (len(task.train), len(task.validation)) == (90, 10)
