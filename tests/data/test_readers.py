import json
import os

import pytest
from helpers import SHARED, needs_shared, write_jsonl

import prompt_eval
import utils
from harness.data import readers, tasks


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_file_format_gives_the_same_examples(tmp_path, kind):
    import pandas as pd

    rows = [{"sentence": f'it\'s "fine", no {i}', "label": i % 2} for i in range(30)]
    path = tmp_path / f"train.{kind}"
    frame = pd.DataFrame(rows)
    {
        "csv": lambda: frame.to_csv(path, index=False),
        "tsv": lambda: path.write_text("sentence\tlabel\n" + "".join(f"{r['sentence']}\t{r['label']}\n" for r in rows)),
        "json": lambda: path.write_text(json.dumps(rows)),
        "jsonl": lambda: write_jsonl(path, rows),
        "parquet": lambda: frame.to_parquet(path),
    }[kind]()
    task = tasks.load_task(str(tmp_path), label_words=["negative", "positive"])
    together = {(ex.text, ex.label) for ex in [*task.train, *task.validation, *task.evaluation]}
    assert together == {(row["sentence"], row["label"]) for row in rows}
    assert task.labels == ("0", "1") and task.words == ("negative", "positive") and "Sentiment:" in task.template


def test_files_without_a_header_line(tmp_path):
    (tmp_path / "sent_train.tsv").write_text("".join(f"text {i}\t{i % 2}\n" for i in range(20)))
    (tmp_path / "sent_dev.tsv").write_text("other text\t1\n")
    guessed = tasks.load_task(str(tmp_path))
    named = tasks.load_task(
        None,
        files={"train": tmp_path / "sent_train.tsv", "validation": tmp_path / "sent_dev.tsv"},
        columns=["text", "label"],
    )
    assert guessed.evaluation == named.evaluation and guessed.evaluation[0].text == "other text"
    assert guessed.eval_split == "validation" and len(guessed.train) + len(guessed.validation) == 20
    (tmp_path / "again.csv").write_text("text,label\nx,a\ny,b\n")
    assert tasks.load_task(str(tmp_path / "again.csv"), columns=["text", "label"]).labels == ("a", "b")
    (tmp_path / "three.tsv").write_text("a\tb\tc\n")
    with pytest.raises(utils.UserError, match="name them with --columns"):
        tasks.load_task(str(tmp_path / "three.tsv"))
    with pytest.raises(utils.UserError, match="has 3 columns, --columns names 2"):
        tasks.load_task(str(tmp_path / "three.tsv"), columns=["text", "label"])


def test_lists_in_parquet(tmp_path):
    import pandas as pd

    rows = [{"question": f"q{i}", "answers": ["a", f"b{i}"], "context": "c"} for i in range(3)]
    pd.DataFrame(rows).to_parquet(tmp_path / "test.parquet")
    assert tasks.load_task(str(tmp_path)).kind == "qa"
    assert {ex.references for ex in tasks.load_task(str(tmp_path)).evaluation} == {("a", f"b{i}") for i in range(3)}


def test_wrong_files_are_clear_errors(tmp_path):
    def error(name, text, **options):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        with pytest.raises(utils.UserError) as caught:
            tasks.load_task(str(options.pop("dataset", path)), **options)
        return str(caught.value)

    assert "every split is empty" in error("empty.jsonl", "")
    assert "cannot be read as jsonl" in error("broken.jsonl", '{"text": ')
    assert "a list of JSON objects" in error("list.json", "[1, 2]")
    assert "unknown file type" in error("data.xml", "<a/>")
    (tmp_path / "bytes.csv").write_bytes(b"text,label\n\xff\xfe,1\n")
    with pytest.raises(utils.UserError, match="cannot be read as csv"):
        tasks.load_task(str(tmp_path / "bytes.csv"))
    assert "no data files" in error("inside/notes.txt", "x", dataset=tmp_path / "inside")
    folder = tmp_path / "outside"
    folder.mkdir()
    write_jsonl(
        folder / "train.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}, {"text": "c", "label": "y"}]
    )
    write_jsonl(folder / "test.jsonl", [{"text": "d", "label": "z"}])
    with pytest.raises(utils.UserError, match=r"test row 0: label 'z' is not in the label set \['x', 'y'\]"):
        tasks.load_task(str(folder))
    write_jsonl(folder / "test.jsonl", [{"text": "d", "label": 0.75}])
    write_jsonl(folder / "train.jsonl", [{"text": "d", "label": 0.5}])
    with pytest.raises(utils.UserError, match="a class label is wanted"):
        tasks.load_task(str(folder))


def test_hub_data_with_declared_labels(monkeypatch):
    """A DatasetDict as load_dataset returns it for GLUE: labels in the hub's order, a test split without labels."""
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
        asked == [("glue", "mnli")]
        and task.labels == ("entailment", "neutral", "contradiction")
        and task.words == ("yes", "maybe", "no")
    )
    assert task.eval_split == "validation" and len(task.evaluation) == 9
    assert all(
        task.labels[ex.label] == parts["validation_matched"].features["label"].names[int(ex.text[2:]) % 3]
        for ex in task.evaluation
    )


def test_an_unquoted_comma_is_an_error_and_shifts_nothing(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nfirst 1, second 1,0\nfirst 2, second 2,1\n")
    with pytest.raises(utils.UserError, match="cannot be read as csv"):
        tasks.load_task(str(tmp_path / "a.csv"))


@needs_shared
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


TEXT = "text,label\ncafé one,a\ncafé two,b\n"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_names_the_encoding(tmp_path, encoding):
    (tmp_path / "a.csv").write_bytes(TEXT.encode(encoding))
    assert [row["text"] for row in readers.read_table(tmp_path / "a.csv")] == ["café one", "café two"]


@pytest.mark.parametrize(
    "encoding, message",
    [
        ("cp1252", "byte 0xe9 in line 2 is not UTF-8; name its encoding, such as --encoding cp1252"),
        ("utf-16-le", "it holds zero bytes; if it is UTF-16 give --encoding utf-16-le"),
    ],
)
def test_other_encodings_are_named_by_a_flag(tmp_path, encoding, message):
    (tmp_path / "a.csv").write_bytes(TEXT.encode(encoding))
    with pytest.raises(utils.UserError, match=message):
        tasks.load_task(str(tmp_path / "a.csv"))
    assert tasks.load_task(str(tmp_path / "a.csv"), encoding=encoding).evaluation[0].text.startswith("café")
    (tmp_path / "b.csv").write_text(TEXT, encoding="utf-8")  # the flag does not hurt what is UTF-8
    assert readers.read_table(tmp_path / "b.csv", encoding="cp1252")[0]["text"] == "café one"


def test_no_file_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(utils.UserError, match="a pipe or device"):
        tasks.load_task(str(tmp_path / "a.jsonl"))
    with pytest.raises(utils.UserError, match="a pipe or device"):
        tasks.load_task(None, files={"test": tmp_path / "a.jsonl"})


@pytest.mark.parametrize("name", ["x" * 300 + ".jsonl", "a\0b.jsonl"])
def test_names_that_no_file_can_have(tmp_path, name):
    for options in ({"dataset": str(tmp_path / name)}, {"dataset": None, "files": {"test": tmp_path / name}}):
        with pytest.raises(utils.UserError):
            tasks.load_task(**options)


def test_what_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    write_jsonl(tmp_path / "test.jsonl", [{"text": "a", "label": 1}])
    monkeypatch.setattr(readers.Path, "read_bytes", refuse)
    with pytest.raises(utils.UserError, match="test.jsonl cannot be read: Permission denied"):
        tasks.load_task(str(tmp_path))
    monkeypatch.setattr(readers.Path, "iterdir", refuse)
    with pytest.raises(utils.UserError, match="cannot be read: Permission denied"):
        tasks.load_task(str(tmp_path))


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": 1}])
    assert readers.read_table("~/a.jsonl") == [{"text": "a", "label": 1}]
    assert prompt_eval.parse_args(["--model", "m", "--dataset", "~/a.jsonl"]).dataset == str(tmp_path / "a.jsonl")
    with pytest.raises(SystemExit):
        prompt_eval.parse_args(["--model", "m", "--dataset", "~no-such-user/a.jsonl"])


def test_parquet_that_is_none(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(utils.UserError, match="cannot be read as parquet"):
        tasks.load_task(str(tmp_path / "a.parquet"))
