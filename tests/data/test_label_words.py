import json

import pytest
from helpers import write_jsonl

import utils
from harness.data import prompts, tasks
from harness.data.label_words import descriptions, of_names


def test_names_become_what_one_would_say():
    names = ["card_arrival", "cardArrival", "SPAM", "World", "Sci/Tech", "closed_QA", "top-up", "LABEL_0", "C++", "_"]
    assert of_names(names[:1] + names[2:]) == [
        "card arrival",
        "spam",
        "World",
        "Sci/Tech",
        "closed qa",
        "top up",
        "label 0",
        "C++",
        "_",
    ]
    assert of_names(names) == names, "two names would be the same words"


def test_auto_words_stand_in_instruction_and_answer(tmp_path):
    rows = [{"text": f"text {i}", "label": ("card_arrival", "lost_card")[i % 2]} for i in range(20)]
    write_jsonl(tmp_path / "train.jsonl", rows[:10])
    write_jsonl(tmp_path / "test.jsonl", rows[10:])
    task = tasks.load_task(str(tmp_path), label_words=["auto"])
    assert task.words == ("card arrival", "lost card") and "card arrival, lost card" in task.instruction
    assert task.labels == ("card_arrival", "lost_card")
    assert tasks.load_task(str(tmp_path)).words == task.labels
    write_jsonl(tmp_path / "about.jsonl", [{"label": name, "description": f"about {name}"} for name in task.labels])
    told = tasks.load_task(str(tmp_path), label_words=["auto"], label_descriptions=tmp_path / "about.jsonl")
    assert told.descriptions == ("about card_arrival", "about lost_card")
    about = "card arrival: about card_arrival\nlost card: about lost_card"
    assert about in told.instruction
    for task in (told, prompts.with_prompt(told, ["first", "second"], "Sort it.")):
        found = prompts.forms(task)
        assert len(found) > 4 and all(f"{task.words[0]}: about card_arrival" in form.instruction for form in found)
    with_own = tasks.load_task(
        str(tmp_path), label_words=["auto"], label_descriptions=tmp_path / "about.jsonl", instruction="Sort it."
    )
    assert with_own.instruction == f"Sort it.\n\n{about}"


def test_words_in_another_order_than_the_labels_are_refused(tmp_path):
    rows = [{"text": f"text {i}", "label": ("sport", "politics")[i % 2]} for i in range(20)]
    write_jsonl(tmp_path / "train.jsonl", rows[:10])
    write_jsonl(tmp_path / "test.jsonl", rows[10:])
    with pytest.raises(utils.UserError, match="politics would be called Sport.*order of the labels: politics, sport"):
        tasks.load_task(str(tmp_path), label_words=["Sport", "politics"])
    assert tasks.load_task(str(tmp_path), label_words=["Politics", "games"]).words == ("Politics", "games")


def test_known_label_sets_keep_their_own_words(sentiment):
    assert tasks.load_task(sentiment, label_words=["auto"]).words == tasks.load_task(sentiment).words


@pytest.mark.parametrize(
    "given, said",
    [
        ({"a": "first"}, "no description of 'b'"),
        ({"a": "first", "b": ""}, "no description of 'b'"),
        ({"a": "first", "b": "second", "c": "third"}, "no label 'c'"),
    ],
)
def test_descriptions_must_fit_the_labels(tmp_path, given, said):
    (tmp_path / "about.json").write_text(json.dumps(given))
    with pytest.raises(utils.UserError, match=said):
        descriptions(tmp_path / "about.json", ("a", "b"))


def test_a_table_of_descriptions_says_each_label_once(tmp_path):
    (tmp_path / "about.csv").write_text("label,description\na,first\na,again\nb,second\n")
    with pytest.raises(utils.UserError, match="twice"):
        descriptions(tmp_path / "about.csv", ("a", "b"))
    write_jsonl(tmp_path / "about.jsonl", [{"label": i, "description": f"number {i}"} for i in range(2)])
    assert descriptions(tmp_path / "about.jsonl", ("0", "1")) == ["number 0", "number 1"]
    (tmp_path / "about.csv").write_text("name,description\na,first\n")
    with pytest.raises(utils.UserError, match="columns label and description"):
        descriptions(tmp_path / "about.csv", ("a", "b"))


def test_a_row_without_a_description_is_one_line(tmp_path):
    write_jsonl(tmp_path / "about.jsonl", [{"label": "a", "description": "first"}, {"label": "b"}])
    with pytest.raises(utils.UserError, match="no description of 'b'"):
        descriptions(tmp_path / "about.jsonl", ("a", "b"))
