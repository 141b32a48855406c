import pytest
from helpers import write_jsonl

import utils
from harness.data import tasks


def load(tmp_path, labels, name="labels"):
    write_jsonl(tmp_path / "test.jsonl", [{"text": f"t{i}", name: label} for i, label in enumerate(labels)])
    task = tasks.load_task(str(tmp_path))
    return task.labels, [task.labels[ex.label] for ex in sorted(task.evaluation, key=lambda ex: int(ex.text[1:]))]


@pytest.mark.parametrize(
    "labels", [["0.0", "1.0", "0.00"], [0.0, 1.0, "0"], [[0], [1], [0]], ["[0]", "[1]", "[0]"], ["0,0", "1,0", "0,0"]]
)
def test_whole_numbers_have_one_spelling(tmp_path, labels):
    assert load(tmp_path, labels) == (("0", "1"), ["0", "1", "0"])


@pytest.mark.parametrize("several", [[0, 1], "[0, 1]", "[0 1]", ["a", "b"]])
def test_several_labels_in_a_row_are_refused(tmp_path, several):
    with pytest.raises(utils.UserError, match="test row 1: labels holds several labels"):
        load(tmp_path, ["a", several, "b"])


@pytest.mark.parametrize("labels", [["2", "2,14", "3"], ["3,5", "1,0"], ["3.5", "1.0"]])
def test_numbers_that_are_no_class_are_refused(tmp_path, labels):
    with pytest.raises(utils.UserError, match="numbers among them .* a class label is wanted"):
        load(tmp_path, labels)


def test_names_that_look_like_numbers_or_lists(tmp_path):
    assert load(tmp_path, ["²", "10", "9", "--5"])[0] == ("9", "10", "--5", "²")
    assert load(tmp_path, ["[x", "{y}", "a, b"])[0] == ("[x", "a, b", "{y}")
    with pytest.raises(utils.UserError, match="holds an object"):
        load(tmp_path, [{"a": 1}])


def test_a_category_is_the_label_of_a_text_without_another(tmp_path):
    assert load(tmp_path, ["x", "y"], name="category") == (("x", "y"), ["x", "y"])
    rows = [{"text": f"t{i}", "category": "c", "label": "xy"[i % 2]} for i in range(4)]
    write_jsonl(tmp_path / "test.jsonl", rows)
    task = tasks.load_task(str(tmp_path))
    assert task.labels == ("x", "y") and {ex.group for ex in task.evaluation} == {"c"}


def test_a_question_with_a_label_is_one_text(tmp_path):
    write_jsonl(tmp_path / "test.jsonl", [{"question": f"q{i}", "label": i % 2} for i in range(4)])
    task = tasks.load_task(str(tmp_path))
    assert task.kind == "classification" and {ex.text_pair for ex in task.evaluation} == {None}


def test_names_of_one_number_have_one_order(tmp_path):
    """That of a set is another one in each process."""
    names = ["0" * n + "1" for n in range(8)]
    assert load(tmp_path, names)[0] == tuple(sorted(names))
