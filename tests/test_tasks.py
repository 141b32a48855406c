import json
import random
from pathlib import Path

import pytest
from conftest import reviews, write_jsonl

import tasks

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data here")


def keys(examples):
    return {ex.key() for ex in examples}


def test_a_folder_of_splits(sentiment):
    task = tasks.load_task(sentiment)
    assert (task.kind, task.labels, task.words) == ("classification", ("negative", "positive"), ("negative", "positive"))
    assert (len(task.train), len(task.validation), len(task.evaluation), task.eval_split) == (160, 40, 60, "test")
    assert task.evaluation[0].id.startswith("test-")


def test_evaluation_is_the_same_for_every_data_seed_and_nested(sentiment):
    tasks_ = [
        tasks.load_task(sentiment, data_seed=seed, max_train_samples=10, max_eval_samples=n) for seed, n in ((0, 20), (1, 20), (1, 40))
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
    assert len(task.evaluation) == 24 and "left out of training" in task.notes[0]


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


def test_k_demonstrations_are_the_k_training_examples(sentiment):
    whole = tasks.load_task(sentiment, data_seed=7)
    assert tasks.draw(whole.train, 8, 7) == tasks.load_task(sentiment, data_seed=7, max_train_samples=8).train
    assert [ex.label for ex in tasks.draw(whole.train, 8, 7)].count(0) == 4
    assert tasks.draw(whole.train, 8, 7)[:4] == tasks.draw(whole.train, 4, 7)
    assert len(tasks.draw(whole.train, 160, 7)) == 160
    with pytest.raises(tasks.DataError, match="161 .* the data have 160"):
        tasks.draw(whole.train, 161, 7)


def test_draw_is_as_balanced_as_the_data_allow():
    examples = [tasks.Example(str(i), f"t{i}", label=0 if i < 3 else 1 if i < 10 else 2) for i in range(50)]
    labels = [ex.label for ex in tasks.draw(examples, 15, 0)]
    assert [labels.count(c) for c in range(3)] == [3, 6, 6]


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_file_format_gives_the_same_examples(tmp_path, kind):
    import pandas as pd

    rows = [{"sentence": f'it\'s "fine", no {i}', "label": i % 2} for i in range(30)]
    path = tmp_path / f"train.{kind}"
    frame = pd.DataFrame(rows)
    {"csv": lambda: frame.to_csv(path, index=False), "tsv": lambda: path.write_text(
        "sentence\tlabel\n" + "".join(f"{r['sentence']}\t{r['label']}\n" for r in rows)),
     "json": lambda: path.write_text(json.dumps(rows)), "jsonl": lambda: write_jsonl(path, rows),
     "parquet": lambda: frame.to_parquet(path)}[kind]()  # fmt: skip
    task = tasks.load_task(str(tmp_path), label_words=["negative", "positive"])
    together = {(ex.text, ex.label) for ex in [*task.train, *task.validation, *task.evaluation]}
    assert together == {(row["sentence"], row["label"]) for row in rows}
    assert task.labels == ("0", "1") and task.words == ("negative", "positive") and "Sentiment:" in task.template


def test_files_without_a_header_line(tmp_path):
    (tmp_path / "sent_train.tsv").write_text("".join(f"text {i}\t{i % 2}\n" for i in range(20)))
    (tmp_path / "sent_dev.tsv").write_text("other text\t1\n")
    guessed = tasks.load_task(str(tmp_path))
    named = tasks.load_task(
        None, files={"train": tmp_path / "sent_train.tsv", "validation": tmp_path / "sent_dev.tsv"}, columns=["text", "label"]
    )
    assert guessed.evaluation == named.evaluation and guessed.evaluation[0].text == "other text"
    assert guessed.eval_split == "validation" and len(guessed.train) + len(guessed.validation) == 20
    (tmp_path / "again.csv").write_text("text,label\nx,a\ny,b\n")
    assert tasks.load_task(str(tmp_path / "again.csv"), columns=["text", "label"]).labels == ("a", "b")
    (tmp_path / "three.tsv").write_text("a\tb\tc\n")
    with pytest.raises(tasks.DataError, match="name them with --columns"):
        tasks.load_task(str(tmp_path / "three.tsv"))
    with pytest.raises(tasks.DataError, match="has 3 columns, --columns names 2"):
        tasks.load_task(str(tmp_path / "three.tsv"), columns=["text", "label"])


@pytest.mark.parametrize("names", [("-1", "0", "1"), ("-1", "1"), ("+", "-")])
def test_minus_is_a_label_like_any_other(tmp_path, names):
    (tmp_path / "all.csv").write_text("text,label\n" + "".join(f"t{i},{names[i % len(names)]}\n" for i in range(60)))
    task = tasks.load_task(str(tmp_path / "all.csv"))
    assert set(task.labels) == set(names) and task.notes == []
    assert len(task.train) + len(task.validation) + len(task.evaluation) == 60


def test_rows_left_out_are_counted(tmp_path):
    write_jsonl(tmp_path / "test.jsonl", [{"text": "a", "label": 1}, {"text": "", "label": 0}, {"text": "c", "label": None}])
    assert tasks.load_task(str(tmp_path)).notes == ["2 rows without a text, label or answer left out"]


def test_lists_in_parquet(tmp_path):
    import pandas as pd

    rows = [{"question": f"q{i}", "answers": ["a", f"b{i}"], "context": "c"} for i in range(3)]
    pd.DataFrame(rows).to_parquet(tmp_path / "test.parquet")
    assert tasks.load_task(str(tmp_path)).kind == "qa"
    assert {ex.references for ex in tasks.load_task(str(tmp_path)).evaluation} == {("a", f"b{i}") for i in range(3)}


def test_unlabelled_test_split_falls_back_to_validation(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"premise": f"p{i}", "hypothesis": f"h{i}", "label": i % 3} for i in range(30)])
    write_jsonl(tmp_path / "dev.jsonl", [{"premise": f"q{i}", "hypothesis": f"h{i}", "label": i % 3} for i in range(9)])
    write_jsonl(tmp_path / "test.jsonl", [{"premise": f"r{i}", "hypothesis": f"h{i}", "label": -1} for i in range(9)])
    task = tasks.load_task(str(tmp_path))
    assert task.eval_split == "validation" and len(task.evaluation) == 9 and task.evaluation[0].text_pair.startswith("h")


def test_nli_words_and_prompt(tmp_path):
    rows = [
        {"premise": f"p{i}", "hypothesis": "h", "gold_label": name}
        for i, name in enumerate(["entailment", "neutral", "contradiction", "-"] * 5)
    ]
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "test.jsonl", [{"premise": "x", "hypothesis": "h", "gold_label": "neutral"}])
    task = tasks.load_task(str(tmp_path))
    assert task.labels == ("contradiction", "entailment", "neutral") and task.words == ("no", "yes", "maybe")
    assert len(task.train) + len(task.validation) == 15  # the rows without a majority label are left out
    prompt, separator = tasks.render(task, task.evaluation[0])
    assert prompt.endswith("Premise: x\nHypothesis: h\nAnswer:") and separator == " " and task.target(task.evaluation[0]) == "maybe"


def test_unifiedqa_lines(tmp_path):
    (tmp_path / "train.tsv").write_text("what is up? \\n (a) sky (b) the sea (c) no\tsky\nwho \\n a passage \\n of two parts\tme\n")
    (tmp_path / "test.tsv").write_text("where?\there\n")
    task = tasks.load_task(str(tmp_path))
    found = {ex.text: ex for ex in [*task.train, *task.validation]}
    assert task.kind == "qa" and found["what is up?"].options == ("sky", "the sea", "no") and found["what is up?"].references == ("sky",)
    assert found["who"].context == "a passage of two parts" and task.evaluation[0].references == ("here",)


def test_kinds_are_recognised_from_the_columns(tmp_path):
    def kind(row, **options):
        write_jsonl(tmp_path / "test.jsonl", [row])
        return tasks.load_task(str(tmp_path), **options)

    assert kind({"question": "q", "passage": "p", "answer": "True"}).words == ("yes",)
    assert kind({"question": "q", "passage": "p", "answer": "True"}, kind="qa").kind == "qa"
    assert kind({"question": "q", "context": "c", "answers": {"text": ["a", "b"], "answer_start": [1, 2]}}).evaluation[0].references == (
        "a",
        "b",
    )
    assert kind({"question": "q", "passage": "p", "answer": "['x', 'y']"}).evaluation[0].references == ("x", "y")
    assert kind({"instruction": "i", "input": "c", "output": "o"}).evaluation[0].context == "c"
    assert kind({"instruction": "i", "context": "", "response": "o", "category": "z"}).kind == "instruction"
    assert kind({"question": "q", "sentence": "s", "label": 1}).evaluation[0].text == "q"  # QNLI
    with pytest.raises(tasks.DataError, match="the columns colour, size are not recognised"):
        kind({"colour": "red", "size": 3})


def test_other_column_names_are_given_by_flags(tmp_path):
    for kind, separator in (("csv", ","), ("tsv", "\t")):
        path = tmp_path / f"mine.{kind}"
        path.write_text(separator.join(["body", "topic"]) + "\n" + "".join(f"text {i}{separator}{'ab'[i % 2]}\n" for i in range(20)))
        task = tasks.load_task(str(path), text_column="body", label_column="topic")
        assert task.labels == ("a", "b") and len(task.train) + len(task.validation) + len(task.evaluation) == 20


def test_unknown_cells_are_left_out(tmp_path):
    import pandas as pd

    pd.DataFrame({"text": ["a", None, "c", "d"], "label": [1, 0, None, 0]}).to_parquet(tmp_path / "test.parquet")
    task = tasks.load_task(str(tmp_path))
    assert {(ex.text, ex.label) for ex in task.evaluation} == {("a", 1), ("d", 0)} and task.labels == ("0", "1")


def test_true_and_false_are_words_of_their_own_outside_boolq(tmp_path):
    write_jsonl(tmp_path / "test.jsonl", [{"text": f"t{i}", "label": name} for i, name in enumerate(["true", "false", "mixed"])])
    assert tasks.load_task(str(tmp_path)).labels == ("false", "mixed", "true")


@pytest.mark.parametrize("change, message", [
    ({"subset": "colour"}, "--subset colour: .* has no such subfolder"),
    ({"label_column": "colour"}, "--label_column colour: no such column; there are text, label"),
    ({"label_words": ["one"]}, "names 1 words for the 2 labels"),
    ({"template": "no field"}, r"has no \{text\}"),
    ({"template": "{text} {text_pair}"}, "the examples have one text"),
    ({"max_train_samples": 10_000}, "10000 training examples or demonstrations are asked for"),
])  # fmt: skip
def test_wrong_options_are_clear_errors(sentiment, change, message):
    with pytest.raises(tasks.DataError, match=message):
        tasks.load_task(sentiment, **change)


def test_wrong_files_are_clear_errors(tmp_path):
    def error(name, text, **options):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        with pytest.raises(tasks.DataError) as caught:
            tasks.load_task(str(options.pop("dataset", path)), **options)
        return str(caught.value)

    assert "every split is empty" in error("empty.jsonl", "")
    assert "cannot be read as jsonl" in error("broken.jsonl", '{"text": ')
    assert "a list of JSON objects" in error("list.json", "[1, 2]")
    assert "unknown file type" in error("data.xml", "<a/>")
    (tmp_path / "bytes.csv").write_bytes(b"text,label\n\xff\xfe,1\n")
    with pytest.raises(tasks.DataError, match="cannot be read as csv"):
        tasks.load_task(str(tmp_path / "bytes.csv"))
    assert "no data files" in error("inside/notes.txt", "x", dataset=tmp_path / "inside")
    folder = tmp_path / "outside"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}, {"text": "c", "label": "y"}])
    write_jsonl(folder / "test.jsonl", [{"text": "d", "label": "z"}])
    with pytest.raises(tasks.DataError, match=r"test row 0: label 'z' is not in the label set \['x', 'y'\]"):
        tasks.load_task(str(folder))
    write_jsonl(folder / "test.jsonl", [{"text": "d", "label": 0.75}])
    write_jsonl(folder / "train.jsonl", [{"text": "d", "label": 0.5}])
    with pytest.raises(tasks.DataError, match="a class label is wanted"):
        tasks.load_task(str(folder))


def test_a_chat_prompt_has_a_turn_for_each_demonstration(sentiment, tiny_llama):
    import utils

    task = tasks.load_task(sentiment, instruction="Say it.")
    demos = tasks.draw(task.train, 2, 0)
    prompt, separator = tasks.render(task, task.evaluation[0], demos, utils.load_tokenizer(tiny_llama))
    assert separator == "" and prompt.endswith("<|end|><|assistant|>")
    assert prompt.count("<|user|>") == 3 and prompt.startswith("<s><|user|>Say it.\n\n") and prompt.count("Say it.") == 1
    assert f"<|assistant|>{task.target(demos[1])}<|end|>" in prompt


def test_demonstrations_say_the_words_that_are_scored(sentiment):
    task = tasks.load_task(sentiment, label_words=["terrible", "great"])
    prompt, _ = tasks.render(task, task.evaluation[0], tasks.draw(task.train, 2, 0))
    assert "Sentiment: terrible" in prompt and "Sentiment: great" in prompt and "negative" not in prompt


def test_braces_in_a_text_are_left_alone(sentiment):
    task = tasks.load_task(sentiment)
    assert "{text_pair} {x}" in tasks.render(task, tasks.Example("1", "{text_pair} {x}"))[0]


def test_hub_data_with_declared_labels(monkeypatch):
    """A DatasetDict as load_dataset returns it for GLUE: the names are the hub's, in the hub's order, and test has no labels."""
    import datasets

    text, label = datasets.Value("string"), datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
    features = datasets.Features({"premise": text, "hypothesis": text, "idx": datasets.Value("int32"), "label": label})

    def rows(split, n, label):
        columns = {"premise": [f"{split} {i}" for i in range(n)], "hypothesis": ["h"] * n, "idx": list(range(n))}
        return datasets.Dataset.from_dict({**columns, "label": [label(i) for i in range(n)]}, features=features)

    parts = {
        "train": rows("a", 30, lambda i: i % 3),
        "validation_matched": rows("b", 9, lambda i: i % 3),
        "test_matched": rows("c", 9, lambda i: -1),
    }
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or datasets.DatasetDict(parts))
    task = tasks.load_task("glue", "mnli")
    assert (
        asked == [("glue", "mnli")] and task.labels == ("entailment", "neutral", "contradiction") and task.words == ("yes", "maybe", "no")
    )
    assert task.eval_split == "validation" and len(task.evaluation) == 9
    assert all(task.labels[ex.label] == parts["validation_matched"].features["label"].names[int(ex.text[2:]) % 3] for ex in task.evaluation)


def test_boolq_in_its_forms(tmp_path):
    for answers in ([True, False, True], ["True", "false", "True"], [["yes"], ["no"], ["yes"]]):
        rows = [{"question": f"q{i}", "passage": f"p{i}", "answer": a} for i, a in enumerate(answers)]
        write_jsonl(tmp_path / "test.jsonl", rows)
        task = tasks.load_task(str(tmp_path))
        assert task.kind == "classification" and {(ex.text, ex.text_pair, task.target(ex)) for ex in task.evaluation} == {
            ("p0", "q0", "yes"), ("p1", "q1", "no"), ("p2", "q2", "yes")}  # fmt: skip
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "test.jsonl", [{"question": "q", "passage": "p", "answer": None}])
    write_jsonl(tmp_path / "dev.jsonl", [{"question": "q", "passage": "p", "answer": "no"}])
    assert tasks.load_task(str(tmp_path)).eval_split == "validation"  # a test split without answers
    write_jsonl(tmp_path / "dev.jsonl", [{"question": "q", "passage": "p", "answer": "perhaps"}])
    with pytest.raises(tasks.DataError, match="'perhaps' is not in the label set"):
        tasks.load_task(str(tmp_path))


def test_a_split_without_the_label_column_is_unlabelled(tmp_path):
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n" + "".join(f"s{i}\t{i % 2}\n" for i in range(20)))
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nt\t1\n")
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\tu\n")
    assert tasks.load_task(str(tmp_path)).eval_split == "validation"
    write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": 1}, {"label": 0}])
    with pytest.raises(tasks.DataError, match="row 1 has no column text"):
        tasks.load_task(str(tmp_path / "rows.jsonl"))


def test_an_unquoted_comma_is_an_error_and_shifts_nothing(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nfirst 1, second 1,0\nfirst 2, second 2,1\n")
    with pytest.raises(tasks.DataError, match="cannot be read as csv"):
        tasks.load_task(str(tmp_path / "a.csv"))


def test_lists_and_brackets_in_answers(tmp_path):
    write_jsonl(tmp_path / "test.jsonl", [{"instruction": "sort", "input": "", "output": "[1, 4, 9]"}])
    assert tasks.load_task(str(tmp_path)).evaluation[0].references == ("[1, 4, 9]",)
    assert tasks._split_unifiedqa("q \\n (a) carbon dioxide (co2) (b) oxygen \\n text (a) more")[1:] == (
        ("carbon dioxide (co2)", "oxygen"), "text (a) more")  # fmt: skip


@shared
def test_sst2_is_read_straight_from_its_tsv_files():
    files = {
        "train": SHARED / "sst2/sent_train.tsv",
        "validation": SHARED / "sst2/sent_dev.tsv",
        "test": SHARED / "sst2/sent_test.tsv",
    }
    by_flags = tasks.load_task(None, files=files, columns=["text", "label"], label_words=["negative", "positive"])
    by_folder = tasks.load_task(str(SHARED / "sst2"), label_words=["negative", "positive"])
    assert by_flags.eval_id == by_folder.eval_id and len(by_flags.evaluation) == 1821
    assert len(by_flags.train) + len(by_flags.validation) > 6920 + 872 - 30  # a few sentences stand in two splits


@shared
def test_the_shared_sets_are_recognised():
    def load(path, **options):
        return tasks.load_task(str(SHARED / path), **options)

    assert load("mnli").labels == ("contradiction", "entailment", "neutral") and len(load("mnli").evaluation) == 9815
    assert load("hans/heuristics_evaluation_set.3000.tsv").words == ("yes", "no")
    assert load("dolly/dolly_3k.json").kind == load("alpaca/alpaca_sample_2000.json").kind == "instruction"
    assert len(load("unifiedqa/openbookqa").evaluation[0].options) == 4
    assert load("unifiedqa/squad1_1_xquad").evaluation[0].context


@pytest.mark.real
def test_the_demo_reviews_are_split_without_overlap():
    folder = Path(__file__).resolve().parents[1] / "assets/data/movie_reviews"
    task = tasks.load_task(str(folder), data_seed=random.randrange(1000))
    assert (len(task.train), len(task.validation), len(task.evaluation), task.notes) == (9000, 566, 1000, [])
    assert len(keys(task.train) | keys(task.validation) | keys(task.evaluation)) == 10566
