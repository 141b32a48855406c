"""What trains, what evaluates, and what is said where these are not as independent as they look."""

import json

import helpers
import pytest

import prepare_data
import utils
from harness.data import tasks


def write_jsonl(path, rows):
    helpers.write_jsonl(path, rows)
    return path


def by_author(n_authors=20, each=10):
    return [
        {"text": f"author {a} writes {i}", "label": "ab"[a % 2], "author": f"a{a}"}
        for a in range(n_authors)
        for i in range(each)
    ]


def test_a_named_cluster_stays_on_one_side(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", by_author())
    task = tasks.load_task(str(path), cluster_column="author")
    sides = [{ex.about for ex in part} for part in (task.train, task.validation, task.evaluation)]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    assert len(task.evaluation) == 60 and len(task.validation) == 10 and not any("share" in n for n in task.notes)
    assert tasks.load_task(str(path), cluster_column="author", data_seed=5).eval_id == task.eval_id
    without = tasks.load_task(str(path))
    assert without.eval_id != task.eval_id and len(without.evaluation) == 60
    large = [*by_author(1, 150), *by_author(3, 5)[5:]]  # one author has nearly all
    task = tasks.load_task(str(write_jsonl(tmp_path / "l.jsonl", large)), cluster_column="author")
    assert 0 < len(task.evaluation) <= 10 and "a0" in {ex.about for ex in task.train}
    whole = tasks.load_task(str(write_jsonl(tmp_path / "w.jsonl", by_author(3, 40))), cluster_column="author")
    assert (
        len(whole.evaluation) == 40
        and "40 of 120 examples are held out, since no named cluster is smaller" in whole.notes
    )
    assert len(whole.validation) == 8, "not the half of what is left"
    columns = {"cluster_column": "author", "question_column": "text", "answer_column": "label"}
    one = tasks.load_task(str(write_jsonl(tmp_path / "one.jsonl", by_author(1, 40))), kind="qa", **columns)
    assert len(one.evaluation) == 12 and any("12 of 12 evaluation examples share" in note for note in one.notes)


def test_what_is_less_than_independent_is_told(tmp_path):
    rows = by_author()
    train, test = rows[:140], [*rows[145:200], rows[199], {**rows[198], "label": "a"}]
    write_jsonl(tmp_path / "train.jsonl", train)
    write_jsonl(tmp_path / "test.jsonl", test)
    notes = tasks.load_task(str(tmp_path), cluster_column="author", label_budget=100).notes
    assert "2 of 57 evaluation examples repeat the input of another one" in notes
    assert "several labels for one input: 1 times" in notes
    assert not any("share their passage" in note for note in notes), "authors 14 to 19 are not in training"
    write_jsonl(tmp_path / "train.jsonl", rows[:145])
    assert any(note.startswith("5 of 57 evaluation examples share") for note in
               tasks.load_task(str(tmp_path), cluster_column="author").notes)  # fmt: skip


@pytest.mark.parametrize("split", ["test", "validation", "train"])
def test_a_file_without_the_others_label_column_is_refused_where_a_flag_names_it(split, tmp_path):
    files = {name: str(write_jsonl(tmp_path / f"{name}.jsonl", by_author())) for name in ("train", "test")}
    files[split] = str(tmp_path / f"{split}.jsonl")
    write_jsonl(tmp_path / f"{split}.jsonl", [{"text": row["text"], "gold": row["label"]} for row in by_author()])
    said = (
        "no row of the first split has a label"
        if split == "train"
        else f"--{split}_file {files[split]}: no row has a label"
    )
    with pytest.raises(utils.UserError, match=said):
        tasks.load_task(None, files=files)
    if split == "test":  # as the hub's unlabelled test splits
        notes = tasks.load_task(str(tmp_path)).notes
        assert "the 200 rows of test have no label or answer and are not used" in notes


def test_minus_one_is_a_label_where_it_is_one_in_training(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"text": f"t{i}", "label": i % 3 - 1} for i in range(60)])
    write_jsonl(tmp_path / "test.jsonl", [{"text": f"e{i}", "label": -1} for i in range(20)])
    assert [ex.label for ex in tasks.load_task(str(tmp_path)).evaluation] == [0] * 20


def test_spellings_of_a_label_and_columns_that_nobody_named(tmp_path):
    rows = [{"text": f"t {i}", "label": ("Good", "good ", "bad")[i % 3], "source": {"url": "u"}} for i in range(60)]
    task = tasks.load_task(str(write_jsonl(tmp_path / "d.jsonl", rows)))
    assert "labels 'Good' and 'good' count as different classes" in task.notes
    assert {ex.group for ex in task.evaluation} == {None}


def test_a_split_file_is_read_as_the_file_itself(tmp_path):
    rows = [f'q {i},"[""a {i}"", ""b, {i}""]"' for i in range(60)]
    (tmp_path / "q.csv").write_text("\n".join(["question,answers", *rows]))
    prepare_data.main(["split", str(tmp_path / "q.csv"), "--output", str(tmp_path / "q")])
    assert json.loads((tmp_path / "q" / "train.jsonl").read_text().splitlines()[0])["answers"][0][:2] == "a "
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    table = datasets.Dataset.from_dict(
        {"text": [f"t{i}" for i in range(60)], "label": [i % 2 for i in range(60)]}, features
    )
    table.to_parquet(str(tmp_path / "c.parquet"))
    prepare_data.main(["split", str(tmp_path / "c.parquet"), "--output", str(tmp_path / "c")])
    assert tasks.load_task(str(tmp_path / "c")).labels == ("no", "yes")


def test_a_lone_quotation_mark_swallows_no_rows(tmp_path):
    lines = [f"text {i},{'ab'[i % 2]}" for i in range(60)]
    lines[10], lines[40] = '"text 10,a', '"text 40,a'
    path = tmp_path / "d.csv"
    path.write_text("\n".join(["text,label", *lines]))
    with pytest.raises(utils.UserError, match="line 12: a quotation mark there opens a cell of 31 lines"):
        tasks.load_task(str(path))
    lines[10], lines[40] = '"text 10" of several,a', '"two\nlines" ,b'
    path.write_text("\n".join(["text,label", *lines]))
    task = tasks.load_task(str(path))
    assert len(task.train) + len(task.validation) + len(task.evaluation) == 60


def test_a_header_above_a_script_without_spaces(tmp_path):
    path = tmp_path / "d.tsv"
    path.write_text("\n".join(["body\tcategory", *(f"电影很好看{i}号\t{'ab'[i % 2]}" for i in range(60))]))
    task = tasks.load_task(str(path), text_column="body", label_column="category")
    assert task.labels == ("a", "b") and len(task.train) + len(task.validation) + len(task.evaluation) == 60
