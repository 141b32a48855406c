import pytest
from helpers import write_jsonl

import prepare_data
import utils
from harness.data import tasks


def chat(*turns, names=("role", "content")):
    return [dict(zip(names, turn)) for turn in turns]


def examples(tmp_path, rows, **options):
    write_jsonl(tmp_path / "test.jsonl", rows)
    task = tasks.load_task(str(tmp_path), **options)
    assert task.kind == "instruction"
    return {(ex.text, ex.context, ex.references) for ex in task.evaluation}, task.notes


ASKED, SAID = "say it", "it is said"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": chat(("user", ASKED), ("assistant", SAID))},
        {"messages": str(chat(("user", ASKED), ("assistant", SAID)))},  # as a CSV has it
        {"messages": chat(("user", [{"type": "text", "text": ASKED}]), ("assistant", SAID), ("user", "thanks"))},
        {"conversations": chat(("human", ASKED), ("gpt", SAID), names=("from", "value"))},
        {"prompt": ASKED, "completion": SAID},
        {"prompt": chat(("user", ASKED)), "completion": chat(("assistant", SAID))},
        {"prompt": ASKED, "response": SAID},
        {"input": ASKED, "output": SAID},
        {"question": ASKED, "response": SAID},
        {"prompt": ASKED, "chosen": SAID, "rejected": "no"},
        {"question": ASKED, "chosen": SAID, "rejected": "no"},
        {"prompt": ASKED, "chosen": chat(("user", ASKED), ("assistant", SAID)), "rejected": []},
        {"prompt": chat(("user", ASKED)), "chosen": chat(("assistant", SAID)), "rejected": []},
        {"chosen": f"\n\nHuman: {ASKED}\n\nAssistant: {SAID}", "rejected": "\n\nHuman: x\n\nAssistant: no"},
        {"prompt": ASKED, "completion": SAID, "label": True},
    ],
)
def test_an_instruction_and_its_response_in_many_shapes(tmp_path, row):
    found, notes = examples(tmp_path, [row])
    assert found == {(ASKED, None, (SAID,))}
    assert ["rejected" in row] == [any("rejected ones are not used" in note for note in notes)]


def test_turns_before_the_last_are_context_and_a_system_prompt_goes_first(tmp_path):
    turns = [("system", "be short"), ("user", "a?"), ("assistant", "a."), ("user", "b?"), ("assistant", "b.")]
    found, notes = examples(tmp_path, [{"messages": chat(*turns)}, {"messages": chat(("user", "no answer"))}])
    assert found == {("be short\n\nb?", "User: a?\nAssistant: a.", ("b.",))}
    assert "1 chats of several turns" in notes[0] and "1 rows without" in notes[1]


def test_completions_that_were_judged_bad_are_not_learned(tmp_path):
    rows = [{"prompt": f"p{i}", "completion": f"c{i}", "label": i > 0} for i in range(3)]
    found, notes = examples(tmp_path, rows)
    assert found == {("p1", None, ("c1",)), ("p2", None, ("c2",))} and "the 1 that were judged bad" in notes[0]


def test_columns_that_say_more_than_the_chat_go_first(tmp_path):
    rows = [{"text": f"t{i}", "label": i % 2, "messages": chat(("user", "x"), ("assistant", "y"))} for i in range(4)]
    write_jsonl(tmp_path / "test.jsonl", rows)
    assert tasks.load_task(str(tmp_path)).kind == "classification"


@pytest.mark.parametrize(
    "messages, message",
    [
        ([{"role": "user", "content": [{"type": "image_url"}]}], "a message holds image_url; only texts are read"),
        ([{"content": "x"}], "neither role nor from"),
        (["x", "y"], "holds no list of messages"),
    ],
)
def test_chats_that_cannot_be_read_name_their_row(tmp_path, messages, message):
    write_jsonl(
        tmp_path / "test.jsonl", [{"messages": chat(("user", "x"), ("assistant", "y"))}, {"messages": messages}]
    )
    with pytest.raises(utils.UserError, match=f"row 1: messages.*{message}"):
        tasks.load_task(str(tmp_path))


def test_chats_are_converted_as_well(tmp_path):
    rows = [{"messages": chat(("user", f"say {i}"), ("assistant", f"said {i}"))} for i in range(10)]
    write_jsonl(tmp_path / "chats.jsonl", rows)
    prepare_data.main(["alpaca", str(tmp_path / "chats.jsonl"), "--output", str(tmp_path / "out")])
    task = tasks.load_task(str(tmp_path / "out"))
    together = {(ex.text, ex.references) for ex in [*task.train, *task.validation, *task.evaluation]}
    assert together == {(f"say {i}", (f"said {i}",)) for i in range(10)}


@pytest.mark.parametrize(
    "answer",
    ["[1, 2, 0]", '{"name": "Bob"}', '["a", "b"]', "[]", '[{"from": "Rome", "to": "Oslo"}]', '{"role": "cook"}'],
)
@pytest.mark.parametrize("names", [("prompt", "completion"), ("prompt", "chosen", "rejected")])
def test_an_answer_that_is_json_itself_is_a_text(tmp_path, answer, names):
    assert examples(tmp_path, [dict(zip(names, (ASKED, answer, "no")))])[0] == {(ASKED, None, (answer,))}
    assert examples(tmp_path, [dict(zip(names, (answer, SAID, "no")))])[0] == {(answer, None, (SAID,))}


def test_messages_that_are_written_as_text_are_messages(tmp_path):
    row = {"prompt": str(chat(("user", ASKED))), "completion": '{"role": "assistant", "content": "it is said"}'}
    assert examples(tmp_path, [row])[0] == {(ASKED, None, (SAID,))}
    assert examples(tmp_path, [{**row, "prompt": chat(("user", ASKED))[0]}])[0] == {(ASKED, None, (SAID,))}


@pytest.mark.parametrize("labels", [("spam", "ham"), (1, 2, 0), (None, None)])
def test_labels_that_judge_nothing_leave_all_completions(tmp_path, labels):
    """Also where those of one split alone could be judgements."""
    rows = [{"prompt": f"p{i}", "completion": f"c{i}", "label": label} for i, label in enumerate(labels)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    found, notes = examples(tmp_path, [{"prompt": "p", "completion": "c", "label": 0 if 2 in labels else labels[0]}])
    assert found == {("p", None, ("c",))} and notes == []


@pytest.mark.parametrize("good, bad", [(True, False), (1, 0), ("True", "false"), (1.0, None)])
def test_completions_of_which_none_is_good(tmp_path, good, bad):
    rows = [{"prompt": f"p{i}", "completion": "c", "label": label} for i, label in enumerate((bad, good, bad))]
    assert examples(tmp_path, rows)[0] == {("p1", None, ("c",))}
    if bad is not None:
        with pytest.raises(utils.UserError, match="none of the 2 completions was judged good"):
            examples(tmp_path, rows[::2])
