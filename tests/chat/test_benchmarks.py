import collections

import pytest
from chat_helpers import needs_alpaca, needs_mt_bench
from helpers import SHARED, write_jsonl

import utils
from harness.chat import benchmarks


def test_a_sample_has_each_group_in_its_share_and_grows():
    made = [benchmarks.Question(str(i), (f"q{i}",), "big" if i % 3 else "small", index=i) for i in range(30)]
    few, more = benchmarks.choose(made, 6), benchmarks.choose(made, 12)
    assert collections.Counter(q.group for q in few) == {"big": 4, "small": 2}
    assert set(few) < set(more) and few == sorted(few, key=lambda q: q.index) and benchmarks.choose(made, 99) == made
    assert benchmarks.eval_id(few) != benchmarks.eval_id(more)


@needs_mt_bench
def test_mt_bench_has_turns_references_and_temperatures():
    found = benchmarks.load("mt_bench", str(SHARED / "mt_bench"))
    assert found.kind == "mt_bench" and len(found.questions) == 80 and "single-v1" in found.judge_prompts
    assert collections.Counter(q.group for q in benchmarks.choose(found.questions, 16)).most_common(1)[0][1] == 2
    with_references = [q for q in found.questions if q.references]
    assert len(with_references) == 30 and {q.group for q in with_references} == {"math", "reasoning", "coding"}
    at = {q.group: found.temperature(q) for q in found.questions}
    assert at == {
        "writing": 0.7,
        "roleplay": 0.7,
        "extraction": 0,
        "math": 0,
        "coding": 0,
        "reasoning": 0,
        "stem": 0.1,
        "humanities": 0.1,
    }


@needs_alpaca
def test_alpaca_eval_has_its_reference_outputs():
    found = benchmarks.load("alpaca_eval", str(SHARED / "alpaca_eval"))
    assert found.kind == "alpaca_eval" and len(found.questions) == 805
    assert all(q.references and q.author == "gpt4_1106_preview" for q in found.questions)


def test_a_prompts_columns_and_ids_are_read_leniently(tmp_path):
    (tmp_path / "a.csv").write_text("ID,Prompt,Output\n,one,1\n7,two,\n,three,3\n")
    found = benchmarks.load(str(tmp_path / "a.csv")).questions
    assert [q.turns for q in found] == [("one",), ("two",), ("three",)] and [q.references for q in found] == [
        ("1",),
        (),
        ("3",),
    ]
    assert len({q.id for q in found}) == 3 and found[1].id == "7"
    (tmp_path / "b.TXT").write_text("one\u2028more\n\ntwo\n")
    assert [q.turns[0] for q in benchmarks.load(str(tmp_path / "b.TXT")).questions] == ["one\u2028more", "two"]
    write_jsonl(tmp_path / "c.jsonl", [{"question_id": 1, "turns": ["a"], "reference": "a text", "category": ["math"]}])
    assert benchmarks.load(str(tmp_path / "c.jsonl")).questions[0].references == ("a text",)


@pytest.mark.parametrize("value", [None, 5, ["a"], {"a": 1}, [[1]]])
def test_files_beside_the_questions_may_hold_anything(tmp_path, value):
    write_jsonl(tmp_path / "question.jsonl", [{"question_id": 1, "turns": ["a"]}])
    write_jsonl(tmp_path / "judge_prompts.jsonl", [{"name": value, "system_prompt": "s", "prompt_template": "t"}])
    found = benchmarks.load(str(tmp_path))
    assert not found.judge_prompts and found.questions[0].references == ()
    write_jsonl(tmp_path / "reference_answers.jsonl", [{"question_id": 1, "choices": [{"turns": value}]}])
    if value == ["a"]:
        assert benchmarks.load(str(tmp_path)).questions[0].references == ("a",)
    else:
        with pytest.raises(utils.UserError):
            benchmarks.load(str(tmp_path))
