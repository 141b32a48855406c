import json

import datasets
import pandas as pd
import pytest
from helpers import write_jsonl

import utils
from harness.data import tasks

ROWS = [{"text": f"text {i}", "label": i % 2} for i in range(40)]
CLASSES = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})


def texts(task):
    return {ex.text for ex in [*task.train, *task.validation, *task.evaluation]}


def everything(path):
    return texts(tasks.load_task(str(path)))


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"),
        (
            "train-00000-of-00002-a09b74b3ef9c3b56.parquet",
            "train-00001-of-00002-3f0c74b3ef9c3b56.parquet",
            "test.parquet",
        ),
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"),
        ("train_1.parquet", "train_2.parquet", "test.parquet"),
        ("train-00001-of-00002.parquet", "train-00002-of-00002.parquet", "test-00001-of-00001.parquet"),
        ("train/0000.parquet", "train/0001.parquet", "test/0000.parquet"),
    ],
)
def test_a_split_in_several_files(tmp_path, names):
    parts = (ROWS[:20], ROWS[20:30], ROWS[30:])
    for name, rows in zip(names, parts):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pd.DataFrame(rows).to_parquet(tmp_path / name)
    task = tasks.load_task(str(tmp_path))
    assert texts(task) == {row["text"] for row in ROWS} and task.eval_split == "test" and len(task.evaluation) == 10


def test_a_series_with_a_gap_is_refused(tmp_path):
    for name in ("train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl"):
        write_jsonl(tmp_path / name, ROWS)
    with pytest.raises(utils.UserError, match="not each number from 0 to 2 once"):
        tasks.load_task(str(tmp_path))
    (tmp_path / "train-00000-of-00003.jsonl").rename(tmp_path / "train-00001-of-00003.jsonl")
    with pytest.raises(utils.UserError, match="not each number from 0 to 2 once"):
        tasks.load_task(str(tmp_path))
    (tmp_path / "train-00002-of-00003.jsonl").rename(tmp_path / "train.jsonl")
    with pytest.raises(utils.UserError, match="both .* look like the train split; use --train_file"):
        tasks.load_task(str(tmp_path))


def test_what_datasets_saves(tmp_path):
    whole = datasets.Dataset.from_list(ROWS, features=CLASSES)
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=whole.select(range(30)), test=whole.select(range(30, 40))).save_to_disk(
        tmp_path / "many"
    )
    (tmp_path / "hub").mkdir()
    whole.to_parquet(tmp_path / "hub/train-00000-of-00001.parquet")
    for name, split in (("one", "held_out"), ("many", "test"), ("hub", "held_out")):
        task = tasks.load_task(str(tmp_path / name))
        assert task.labels == ("bad", "good") and task.eval_split == split and len(texts(task)) == 40
    (tmp_path / "one/state.json").write_text("{")
    with pytest.raises(utils.UserError, match="looks like a save_to_disk folder .* cannot be read"):
        tasks.load_task(str(tmp_path / "one"))
    (tmp_path / "many/dataset_dict.json").write_text(json.dumps({"splits": 3}))
    with pytest.raises(utils.UserError, match="looks like a save_to_disk folder"):
        tasks.load_task(str(tmp_path / "many"))


@pytest.mark.parametrize(
    "names, eval_split",
    [
        (("train", "eval"), "test"),
        (("training", "evaluation"), "test"),
        (("train", "eval", "test"), "test"),
        (("train", "dev", "eval"), "test"),
        (("train", "development"), "validation"),
        (("my_train", "my-eval"), "test"),
    ],
)
def test_names_of_splits(tmp_path, names, eval_split):
    for i, name in enumerate(names):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"{name} {n}", "label": n % 2} for n in range(10 + i)])
    task = tasks.load_task(str(tmp_path))
    assert task.eval_split == eval_split and {ex.text.split()[0] for ex in task.evaluation} == {names[-1]}


def test_a_file_that_is_passed_over_is_said(tmp_path):
    for name in ("train", "test", "more"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"{name} {i}", "label": i % 2} for i in range(20)])
    task = tasks.load_task(str(tmp_path))
    assert task.notes == [f"passed over in {tmp_path}: more.jsonl"] and "note: passed over" in task.summary()


def test_splits_of_other_names_on_the_hub(monkeypatch):
    part = datasets.Dataset.from_list(ROWS)
    named = {"train_sft": part.select(range(20)), "train_gen": part.select([0]), "test_sft": part.select(range(20, 40))}
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: datasets.DatasetDict(named))
    task = tasks.load_task("some/name")
    assert len(task.evaluation) == 20 and len(texts(task)) == 40 and task.notes == ["splits passed over: train_gen"]
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: datasets.DatasetDict(a=part, b=part))
    with pytest.raises(utils.UserError, match="has the splits a, b; train, validation or test is wanted"):
        tasks.load_task("some/name")


def test_a_folder_of_folders_names_them(tmp_path):
    (tmp_path / "sst2").mkdir()
    write_jsonl(tmp_path / "sst2/train.jsonl", ROWS)
    with pytest.raises(utils.UserError, match="it has sst2/; --subset names a subfolder"):
        tasks.load_task(str(tmp_path))
    assert len(texts(tasks.load_task(str(tmp_path), "sst2"))) == 40
