import pytest
from helpers import SHARED, needs_shared, write_jsonl

import utils
from harness.data import columns, tasks


@pytest.mark.parametrize("names", [("-1", "0", "1"), ("-1", "1"), ("+", "-")])
def test_minus_is_a_label_like_any_other(tmp_path, names):
    (tmp_path / "all.csv").write_text("text,label\n" + "".join(f"t{i},{names[i % len(names)]}\n" for i in range(60)))
    task = tasks.load_task(str(tmp_path / "all.csv"))
    assert set(task.labels) == set(names) and task.notes == []
    assert len(task.train) + len(task.validation) + len(task.evaluation) == 60


def test_rows_left_out_are_counted(tmp_path):
    write_jsonl(
        tmp_path / "test.jsonl", [{"text": "a", "label": 1}, {"text": "", "label": 0}, {"text": "c", "label": None}]
    )
    assert tasks.load_task(str(tmp_path)).notes == ["2 rows without a text, label or answer left out"]


def test_unifiedqa_lines(tmp_path):
    (tmp_path / "train.tsv").write_text(
        "what is up? \\n (a) sky (b) the sea (c) no\tsky\nwho \\n a passage \\n of two parts\tme\n"
    )
    (tmp_path / "test.tsv").write_text("where?\there\n")
    task = tasks.load_task(str(tmp_path))
    found = {ex.text: ex for ex in [*task.train, *task.validation]}
    assert (
        task.kind == "qa"
        and found["what is up?"].options == ("sky", "the sea", "no")
        and found["what is up?"].references == ("sky",)
    )
    assert found["who"].context == "a passage of two parts" and task.evaluation[0].references == ("here",)


def test_kinds_are_recognised_from_the_columns(tmp_path):
    def kind(row, **options):
        write_jsonl(tmp_path / "test.jsonl", [row])
        return tasks.load_task(str(tmp_path), **options)

    assert kind({"question": "q", "passage": "p", "answer": "True"}).words == ("yes",)
    assert kind({"question": "q", "passage": "p", "answer": "True"}, kind="qa").kind == "qa"
    assert kind({"question": "q", "context": "c", "answers": {"text": ["a", "b"], "answer_start": [1, 2]}}).evaluation[
        0
    ].references == ("a", "b")
    assert kind({"instruction": "i", "input": "c", "output": "o"}).evaluation[0].context == "c"
    assert kind({"instruction": "i", "context": "", "response": "o", "category": "z"}).kind == "instruction"
    assert kind({"question": "q", "sentence": "s", "label": 1}).evaluation[0].text == "q"  # QNLI
    with pytest.raises(utils.UserError, match="the columns colour, size are not recognised"):
        kind({"colour": "red", "size": 3})


def test_other_column_names_are_given_by_flags(tmp_path):
    for kind, separator in (("csv", ","), ("tsv", "\t")):
        path = tmp_path / f"mine.{kind}"
        path.write_text(
            separator.join(["body", "topic"]) + "\n" + "".join(f"text {i}{separator}{'ab'[i % 2]}\n" for i in range(20))
        )
        task = tasks.load_task(str(path), text_column="body", label_column="topic")
        assert task.labels == ("a", "b") and len(task.train) + len(task.validation) + len(task.evaluation) == 20


def test_unknown_cells_are_left_out(tmp_path):
    import pandas as pd

    pd.DataFrame({"text": ["a", None, "c", "d"], "label": [1, 0, None, 0]}).to_parquet(tmp_path / "test.parquet")
    task = tasks.load_task(str(tmp_path))
    assert {(ex.text, ex.label) for ex in task.evaluation} == {("a", 1), ("d", 0)} and task.labels == ("0", "1")


def test_true_and_false_are_words_of_their_own_outside_boolq(tmp_path):
    write_jsonl(
        tmp_path / "test.jsonl", [{"text": f"t{i}", "label": name} for i, name in enumerate(["true", "false", "mixed"])]
    )
    assert tasks.load_task(str(tmp_path)).labels == ("false", "mixed", "true")


def test_boolq_in_its_forms(tmp_path):
    for answers in ([True, False, True], ["True", "false", "True"], [["yes"], ["no"], ["yes"]]):
        rows = [{"question": f"q{i}", "passage": f"p{i}", "answer": a} for i, a in enumerate(answers)]
        write_jsonl(tmp_path / "test.jsonl", rows)
        task = tasks.load_task(str(tmp_path))
        assert task.kind == "classification" and {
            (ex.text, ex.text_pair, task.target(ex)) for ex in task.evaluation
        } == {("p0", "q0", "yes"), ("p1", "q1", "no"), ("p2", "q2", "yes")}
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "test.jsonl", [{"question": "q", "passage": "p", "answer": None}])
    write_jsonl(tmp_path / "dev.jsonl", [{"question": "q", "passage": "p", "answer": "no"}])
    assert tasks.load_task(str(tmp_path)).eval_split == "validation"  # a test split without answers
    write_jsonl(tmp_path / "dev.jsonl", [{"question": "q", "passage": "p", "answer": "perhaps"}])
    with pytest.raises(utils.UserError, match="'perhaps' is not in the label set"):
        tasks.load_task(str(tmp_path))


def test_lists_and_brackets_in_answers(tmp_path):
    write_jsonl(tmp_path / "test.jsonl", [{"instruction": "sort", "input": "", "output": "[1, 4, 9]"}])
    assert tasks.load_task(str(tmp_path)).evaluation[0].references == ("[1, 4, 9]",)
    assert columns.split_unifiedqa("q \\n (a) carbon dioxide (co2) (b) oxygen \\n text (a) more")[1:] == (
        ("carbon dioxide (co2)", "oxygen"),
        "text (a) more",
    )


@needs_shared
def test_the_shared_sets_are_recognised():
    def load(path, **options):
        return tasks.load_task(str(SHARED / path), **options)

    assert load("mnli").labels == ("contradiction", "entailment", "neutral") and len(load("mnli").evaluation) == 9815
    assert load("hans/heuristics_evaluation_set.3000.tsv").words == ("yes", "no")
    assert load("dolly/dolly_3k.json").kind == load("alpaca/alpaca_sample_2000.json").kind == "instruction"
    assert len(load("unifiedqa/openbookqa").evaluation[0].options) == 4
    assert load("unifiedqa/squad1_1_xquad").evaluation[0].context


def test_an_instruction_without_a_response_is_left_out(tmp_path, instructions):
    rows = [{"instruction": "say it", "response": response} for response in ("", "  ")]
    rows += [{"instruction": f"say {word}", "response": word} for word in ("it", "film")]
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "test.jsonl", [{"instruction": "x", "response": "y"}])
    task = tasks.load_task(str(tmp_path))
    assert len(task.train) + len(task.validation) == 2 and "2 rows without" in task.notes[0]


def test_a_column_that_the_first_row_lacks_counts(tmp_path):
    rows = [{"instruction": f"i{n}", "output": f"o{n}", **({"input": f"c{n}"} if n else {})} for n in range(6)]
    write_jsonl(tmp_path / "test.jsonl", rows)
    contexts = {ex.text: ex.context for ex in tasks.load_task(str(tmp_path)).evaluation}
    assert contexts == {"i0": None, **{f"i{n}": f"c{n}" for n in range(1, 6)}}
    write_jsonl(tmp_path / "train.jsonl", [{"instruction": f"t{n}", "output": "o"} for n in range(6)])
    assert sum(ex.context is not None for ex in tasks.load_task(str(tmp_path)).evaluation) == 5
    write_jsonl(
        tmp_path / "test.jsonl", [{**row, "context": ""} for row in rows]
    )  # an empty column beside a filled one
    assert sum(ex.context is not None for ex in tasks.load_task(str(tmp_path)).evaluation) == 5


def test_flags_name_the_columns_of_questions_and_instructions(tmp_path):
    write_jsonl(tmp_path / "test.jsonl", [{"Frage": "q", "Antwort": "a", "Absatz": "p", "text": "x"}])
    named = {"question_column": "Frage", "answer_column": "Antwort", "context_column": "Absatz"}
    for kind, found in (("auto", "qa"), ("instruction", "instruction")):
        task = tasks.load_task(str(tmp_path), kind=kind, **named)
        (ex,) = task.evaluation
        assert task.kind == found and (ex.text, ex.context, ex.references) == ("q", "p", ("a",))
    with pytest.raises(utils.UserError, match="--answer_column Wort: no such column; there are Frage, Antwort"):
        tasks.load_task(str(tmp_path), question_column="Frage", answer_column="Wort")
    with pytest.raises(utils.UserError, match="--question_column and --answer_column"):
        tasks.load_task(str(tmp_path))


@pytest.mark.parametrize(
    "answer, expected",
    [
        ([{"text": "a", "answer_start": 1}, {"text": "b"}], ("a", "b")),
        ({"value": "a", "aliases": ["a", "b"]}, ("a", "b")),
        ("{a set}", ("{a set}",)),
        ("[1, 2, 5]", ("[1, 2, 5]",)),  # a list would not be a text here
        ('["a", "b"]', ('["a", "b"]',)),
        ('{"text": "a"}', ('{"text": "a"}',)),
        ("[" * 300 + "]" * 300, ("[" * 300 + "]" * 300,)),
        (b"bytes".decode(), ("bytes",)),
    ],
)
def test_answers_in_many_shapes(tmp_path, answer, expected):
    write_jsonl(tmp_path / "test.jsonl", [{"question": "q", "answer": answer}])
    assert tasks.load_task(str(tmp_path)).evaluation[0].references == expected


def test_lists_where_a_text_belongs(tmp_path):
    def load(**row):
        write_jsonl(tmp_path / "test.jsonl", [row])
        return tasks.load_task(str(tmp_path)).evaluation[0]

    assert load(question="q", answer="a", context=["one", "two"]).context == "one\ntwo"
    assert load(instruction="i", output=["a", "b"]).references == ("a", "b")
    assert load(text=["one"], label=1).text == "one"
    for row in ({"text": ["one", "two"], "label": 1}, {"question": {"a": 1}, "answer": "a"}):
        with pytest.raises(utils.UserError, match="test row 0: (text|question) holds (a list|an object)"):
            load(**row)
    with pytest.raises(utils.UserError, match="test row 0: answer holds an object"):
        load(question="q", answer={"spans": [1]})


@pytest.mark.parametrize(
    "answer, expected, is_list",
    [
        ("['a' 'b c']", ("a", "b c"), True),
        ('["a", "b"]', ("a", "b"), True),
        ("[1, 2, 5]", ("1", "2", "5"), True),
        ("{'text': array(['a'], dtype=object), 'answer_start': array([1])}", ("a",), True),
        ("[[1, 2], [3, 4]]", ("[[1, 2], [3, 4]]",), False),
        ("{a set}", ("{a set}",), False),
        ('{"name": "Bob"}', ('{"name": "Bob"}',), False),
    ],
)
@pytest.mark.parametrize("kind, separator", [("csv", ","), ("tsv", "\t")])
def test_lists_in_delimited_files_can_only_be_text(tmp_path, answer, expected, is_list, kind, separator):
    quoted = answer.replace('"', '""')
    (tmp_path / f"test.{kind}").write_text(f'question{separator}answer\nq{separator}"{quoted}"\np{separator}"x""y"\n')
    task = tasks.load_task(str(tmp_path))
    found = {ex.text: ex.references for ex in task.evaluation}
    assert found == {"q": expected, "p": ('x"y',)}
    assert task.notes == ["1 answers in brackets read as lists, each item as a reference of its own"] * is_list


def test_a_column_of_clusters_names_what_examples_are_about(tmp_path):
    rows = [
        {"text": f"question {i}", "label": f"l{i % 2}", "cluster": f"story {i // 4 % 2}", "doc": i} for i in range(16)
    ]
    write_jsonl(tmp_path / "train.jsonl", rows[:8])
    write_jsonl(tmp_path / "test.jsonl", rows[8:])
    clusters = {ex.text: ex.cluster for ex in tasks.load_task(str(tmp_path)).evaluation}
    assert len(set(clusters.values())) == 2 and clusters["question 8"] == clusters["question 11"]
    by_doc = tasks.load_task(str(tmp_path), cluster_column="doc").evaluation
    assert len({ex.cluster for ex in by_doc}) == 8
    labelled = tasks.load_task(str(tmp_path), label_column="cluster")
    assert len(labelled.labels) == 2 and all(ex.cluster is None for ex in labelled.evaluation)
    with pytest.raises(utils.UserError, match="--cluster_column story: no such column; there are text, label"):
        tasks.load_task(str(tmp_path), cluster_column="story")
