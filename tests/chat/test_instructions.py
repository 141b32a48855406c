import pytest
from helpers import write_jsonl

import utils
from harness.chat import benchmarks, ifeval, side_by_side

GOOD = (["punctuation:no_comma"], [{"num_words": None}])


def questions(tmp_path, *rows):
    """The questions of a file with these (instruction_id_list, kwargs)."""
    rows = [{"key": i, "prompt": f"p{i}", "instruction_id_list": n, "kwargs": k} for i, (n, k) in enumerate(rows)]
    write_jsonl(tmp_path / "if.jsonl", rows)
    return benchmarks.load(str(tmp_path / "if.jsonl")).questions


@pytest.mark.parametrize(
    "bad",
    [
        (["keywords:existence"], [{}]),
        (["keywords:existence"], [{"keywords": "one"}]),
        (["keywords:existence"], [{"keywords": [1]}]),
        (["length_constraints:number_words"], [{"num_words": "many"}]),
        (["length_constraints:number_words"], [{"num_words": 3, "relation": "around"}]),
        (["length_constraints:nth_paragraph_first_word"], [{"num_paragraphs": 3, "first_word": "a"}]),
        (
            ["length_constraints:nth_paragraph_first_word"],
            [{"num_paragraphs": 2, "nth_paragraph": "2", "first_word": "a"}],
        ),
        (["punctuation:no_comma"], []),
        (["punctuation:no_comma"], ["none"]),
        ("punctuation:no_comma", [{}]),
        ([["punctuation:no_comma"]], [{}]),
        ({"a": 1}, [{}]),
    ],
)
def test_a_row_that_cannot_be_checked_is_not_counted(tmp_path, bad):
    found = questions(tmp_path, GOOD, bad, GOOD)
    scores = [side_by_side.measures(question, ["a b\n\nc d"], [False]) for question in found]
    assert ["instruction_following" in each for each in scores] == [True, False, True]
    with pytest.raises(utils.UserError, match="row 1: "):  # where no row can be checked, the file is at fault
        questions(tmp_path, bad)


def test_whole_numbers_that_a_table_made_floats_are_whole_numbers(tmp_path):
    given = {"num_paragraphs": 2.0, "nth_paragraph": 2.0, "first_word": "c"}
    (found,) = questions(tmp_path, (["length_constraints:nth_paragraph_first_word"], [given]))
    assert ifeval.followed("a b\n\nc d", found.checks) == [True]
