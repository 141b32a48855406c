import json

import pytest
from helpers import write_jsonl

import utils
from harness.data import readers, tasks

ROWS = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(4)]


@pytest.mark.parametrize(
    "value",
    [
        {"version": "1", "data": ROWS},
        {"rows": [{"row_idx": i, "row": row} for i, row in enumerate(ROWS)], "features": [{"name": "text"}]},
        {"reviews": ROWS},
        {"text": {str(i): row["text"] for i, row in enumerate(ROWS)}, "label": {str(i): "ab"[i % 2] for i in range(4)}},
        {"text": [row["text"] for row in ROWS], "label": [row["label"] for row in ROWS]},
        {f"id{i}": row for i, row in enumerate(ROWS)},
        {"columns": ["text", "label"], "index": [0, 1, 2, 3], "data": [list(row.values()) for row in ROWS]},
    ],
    ids=["data", "viewer", "other name", "columns", "lists", "index", "split"],
)
def test_rows_inside_of_an_object(tmp_path, value):
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert readers.read_table(tmp_path / "a.json") == ROWS


def test_json_and_json_lines_under_the_other_name(tmp_path):
    write_jsonl(tmp_path / "lines.json", ROWS)
    (tmp_path / "list.jsonl").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "wrapped.jsonl").write_text(json.dumps({"data": ROWS}))
    (tmp_path / "mac.jsonl").write_text("\r".join(map(json.dumps, ROWS)))
    for name in ("lines.json", "list.jsonl", "wrapped.jsonl", "mac.jsonl"):
        assert readers.read_table(tmp_path / name) == ROWS
    one = {"question_id": 81, "choices": [{"index": 0, "turns": ["a", "b"]}]}
    write_jsonl(tmp_path / "one.jsonl", [one])
    assert readers.read_table(tmp_path / "one.jsonl") == [one]  # a row, and nothing that is wrapped


def test_squad_is_a_row_for_each_question(tmp_path):
    answered = {"id": "1", "question": "where?", "answers": [{"text": "rome", "answer_start": 4}]}
    open_ = {"id": "2", "question": "who?", "answers": [], "is_impossible": True}
    articles = [{"title": "t", "paragraphs": [{"context": "in rome", "qas": [answered, open_]}]}]
    (tmp_path / "test.json").write_text(json.dumps({"version": "v2.0", "data": articles}))
    task = tasks.load_task(str(tmp_path))
    assert task.kind == "qa" and [(ex.text, ex.context, ex.references) for ex in task.evaluation] == [
        ("where?", "in rome", ("rome",))
    ]
    assert task.notes == ["1 rows without a text, label or answer left out"]


def test_the_splits_in_one_file(tmp_path):
    (tmp_path / "all.json").write_text(json.dumps({"train": ROWS, "dev": [{"text": "other", "label": "a"}]}))
    task = tasks.load_task(str(tmp_path / "all.json"))
    assert task.eval_split == "validation" and [ex.text for ex in task.evaluation] == ["other"]
    with pytest.raises(utils.UserError, match="holds the splits train, dev"):
        readers.read_table(tmp_path / "all.json")


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"a": 1}\n{"a": 2}\n{"a": 3,}\n', "line 3: "),
        ('{"a": 1}\n{"a": ', "line 2: "),
        ('{"a": 1}\n\n7\n', "item 2 is 7"),
        ('{"a": ' + "[" * 5000 + "]" * 5000 + "}", "nested too deeply"),
        ('{"a": ' + '{"a":' * 5000 + "1" + "}" * 5001, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "line 1: "),
    ],
)
def test_what_is_broken_is_named_with_its_line(tmp_path, text, message):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(utils.UserError, match=message):
        readers.read_table(tmp_path / "a.jsonl")


def test_json_that_is_broken_in_the_middle(tmp_path):
    (tmp_path / "a.json").write_text('[\n {"a": 1},\n {"a": }\n]')
    with pytest.raises(utils.UserError, match="a.json cannot be read as json: line 3: "):
        readers.read_table(tmp_path / "a.json")
    (tmp_path / "two.json").write_text(json.dumps({"rows": ROWS, "records": ROWS}))
    with pytest.raises(utils.UserError, match="its rows may be under any of rows, records"):
        readers.read_table(tmp_path / "two.json")


def test_half_of_a_surrogate_pair_becomes_a_question_mark(tmp_path):
    (tmp_path / "test.jsonl").write_text(
        r'{"text": "half \ud83d", "label": "a\udc00", "x": ["\ud83d\ude00", {"\ud800": 1}]}'
    )
    (row,) = readers.read_table(tmp_path / "test.jsonl")
    assert row == {"text": "half ?", "label": "a?", "x": ["\U0001f600", {"?": 1}]}


@pytest.mark.parametrize("name", ["items", "data", "test"])
def test_the_one_line_of_a_jsonl_file_is_a_row_where_it_has_a_text(tmp_path, name):
    row, rows = {"Text": "a", name: [{"b": 1}]}, {"version": 1, "labels": ["b"], name: [{"b": 1}]}
    write_jsonl(tmp_path / "a.jsonl", [row])
    assert readers.read_table(tmp_path / "a.jsonl") == [row]
    for path in (tmp_path / "b.jsonl", tmp_path / "c.json"):
        path.write_text(json.dumps(rows))
        assert readers.read_table(path) == [{"b": 1}]
