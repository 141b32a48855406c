import pytest
from helpers import write_jsonl

import utils
from harness.data import tasks

OPTIONS = ["rome", "paris", "oslo", "bern"]


def references(tmp_path, rows, **options):
    """The references in the order of the rows, and the notes."""
    write_jsonl(tmp_path / "test.jsonl", [{"question": f"q{i}", **row} for i, row in enumerate(rows)])
    task = tasks.load_task(str(tmp_path), **options)
    assert task.kind == "qa"
    return [ex.references for ex in sorted(task.evaluation, key=lambda ex: ex.text)], task.notes, task


@pytest.mark.parametrize("options", [OPTIONS, "\n".join(OPTIONS), str(OPTIONS), "['rome' 'paris'\n 'oslo' 'bern']"])
@pytest.mark.parametrize(
    "answers, meant",
    [
        ([0, 1, 2, 3], "places of the options, counted from 0"),
        (["0", "1", "2", "3"], "places of the options, counted from 0"),
        ([0.0, 1.0, 2.0, 3.0], "places of the options, counted from 0"),
        ([1, 2, 3, 4], "places of the options, counted from 1"),
        (["A", "B", "C", "D"], "letters of the options"),
        (["(a)", "b.", "c)", "d"], "letters of the options"),
        (OPTIONS, None),
    ],
)
def test_what_an_answer_names(tmp_path, answers, meant, options):
    found, notes, _ = references(tmp_path, [{"choices": options, "answer": answer} for answer in answers])
    assert found == [(option,) for option in OPTIONS]
    assert notes == ([f"answers read as {meant}"] if meant else [])


@pytest.mark.parametrize(
    "row",
    [
        {"choices": {"text": OPTIONS, "label": ["A", "B", "C", "D"]}, "answerKey": "C"},  # ARC
        {"choices": {"text": OPTIONS, "label": ["1", "2", "3", "4"]}, "answerKey": "3"},
        {"choices": [{"label": name, "text": text} for name, text in zip("ABCD", OPTIONS)], "answerKey": "C"},
        {"options": dict(zip("ABCD", OPTIONS)), "answer": "C"},  # MedQA
        {**dict(zip("ABCD", OPTIONS)), "answer": "C"},  # C-Eval
        {**{f"option{i + 1}": text for i, text in enumerate(OPTIONS)}, "answer": "3"},  # Winogrande
        {**{f"ending{i}": text for i, text in enumerate(OPTIONS)}, "label": 2},  # SWAG
    ],
)
def test_options_in_many_shapes(tmp_path, row):
    found, _, task = references(tmp_path, [row])
    assert found == [("oslo",)] and task.evaluation[0].options == tuple(OPTIONS)


def test_numbers_as_options_and_as_places(tmp_path):
    texts = [{"choices": ["1", "2", "3", "4"], "answer": n} for n in ("1", "3", "4")]
    assert references(tmp_path, texts)[0] == [("1",), ("3",), ("4",)]
    mixed = [{"choices": OPTIONS, "answer": i} for i in range(4)] + [{"choices": ["3", "2", "1", "0"], "answer": 2}]
    assert references(tmp_path, mixed)[0][4] == ("1",)  # a place, as in the other rows


def test_a_letter_beyond_the_options_is_an_error(tmp_path):
    rows = [{"choices": OPTIONS, "answer": letter} for letter in "ABDE"]
    with pytest.raises(utils.UserError, match="test row 3: answer 'E' names none of the 4 options"):
        references(tmp_path, rows)


def test_answers_beside_options_that_are_other_texts_stay(tmp_path):
    rows = [{"choices": OPTIONS, "answer": text} for text in ("a city", "Rome", "none of these")]
    assert references(tmp_path, rows)[0] == [("a city",), ("Rome",), ("none of these",)]


@pytest.mark.parametrize("column", ["answer", "label"])
def test_places_that_may_be_counted_from_0_or_from_1(tmp_path, column):
    rows = [{"choices": OPTIONS, column: place} for place in (1, 2, 3)]
    with pytest.raises(utils.UserError, match=f"column {column}: .* counted from 0 or from 1 cannot be told"):
        references(tmp_path, rows)
    for one_more, last in ((0, "bern"), (4, "oslo")):
        assert references(tmp_path, [*rows, {"choices": OPTIONS, column: one_more}])[0][2] == (last,)
    texts = [{"choices": OPTIONS, column: text} for text in OPTIONS]
    assert references(tmp_path, [*texts, rows[0]])[0][4] == ("1",)  # a text beside its options
    short = [*rows, {"choices": OPTIONS[:3], column: 3}]  # the last of its row
    assert references(tmp_path, short)[0] == [("rome",), ("paris",), ("oslo",), ("oslo",)]


@pytest.mark.parametrize(
    "choices, answer",
    [
        ({"text": ["", "paris", "oslo", "bern"], "label": ["A", "B", "C", "D"]}, "C"),
        ([{"text": "", "label": "A"}, *({"text": t, "label": x} for t, x in zip(OPTIONS[1:], "BCD"))], "C"),
        (["", "paris", "oslo", "bern"], "C"),
    ],
)
def test_an_empty_option_keeps_its_place(tmp_path, choices, answer):
    full = {"choices": OPTIONS, "answer": "C"}
    found, _, task = references(tmp_path, [{"choices": choices, "answer": answer}, full, full])
    assert found == [("oslo",)] * 3
    assert next(ex for ex in task.evaluation if ex.text == "q0").options == ("paris", "oslo", "bern")


def test_an_empty_option_is_no_answer(tmp_path):
    rows = [{"choices": ["rome", "", "oslo"], "answer": answer} for answer in "ABC"]
    with pytest.raises(utils.UserError, match="answer 'B' names none of the 2 options"):
        references(tmp_path, rows)
