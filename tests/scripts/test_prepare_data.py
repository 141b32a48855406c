import hashlib
import json

import pytest
from helpers import manifest_of, read_jsonl, splits_of, write_jsonl

import prepare_data
from harness import flags
from harness.data import tasks


def texts(rows):
    return [json.dumps(row, sort_keys=True) for row in rows]


def everything(folder):
    return {str(f.relative_to(folder)): f.read_bytes() if f.is_file() else None for f in folder.rglob("*")}


def refused(argv, message, capsys, tmp_path):
    """Exit code 2, one line with `message`, and the disk as it was."""
    before = everything(tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        prepare_data.main(list(map(str, argv)))
    said = capsys.readouterr()
    assert exit_.value.code == 2 and message in said.err and said.err.count("\n") == 1 and said.out == "", said.err
    assert everything(tmp_path) == before


@pytest.fixture
def unified(tmp_path):
    """Two sources: arc with train, dev and test; nq with a dev split alone."""
    for name, split, lines in (
        (
            "arc",
            "train",
            [f"What is {i}? \\n (a) A{i} (b) B{i}\tA{i}" for i in range(8)]
            + ["no tab", "two\ttabs\there", "\tx", "q\t "],
        ),
        ("arc", "dev", [f"Dev {i}?\tYes" for i in range(3)] + ["\\n (a) no question (b) x\tx"]),
        ("arc", "test", [' "Quoted?  \\n a passage\u2028of two lines \t Rome ']),
        ("nq", "dev", [f"who wrote {i}?\tauthor {i}" for i in range(5)]),
    ):
        (tmp_path / "uqa" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "uqa" / name / f"{split}.tsv").write_bytes("".join(line + "\r\n" for line in lines).encode())
    (tmp_path / "uqa" / "README").write_text("not a source")
    return tmp_path / "uqa"


def test_unifiedqa_folders_become_one_set(unified, tmp_path, capsys):
    out = tmp_path / "out"
    prepare_data.main(["unifiedqa", str(unified), "--output", str(out)])
    made, facts = splits_of(out), manifest_of(out)
    assert facts["counts"] == {"train": 8, "validation": 3, "test": 6}
    assert facts["dropped"] == {"malformed": 2, "empty": 3}
    assert made["train"][3] == {"question": "what is 3? \\n (a) a3 (b) b3", "answer": ["a3"], "source": "arc"}
    question = '"quoted?  \\n a passage\u2028of two lines'
    assert made["test"][0] == {"question": question, "answer": ["rome"], "source": "arc"}
    assert {row["source"] for row in made["test"][1:]} == {"nq"} and {row["source"] for row in made["train"]} == {"arc"}
    assert facts["sources"] == {"arc": {"train": 8, "validation": 3, "test": 1}, "nq": {"test": 5}}
    assert facts["origin_sha256"]["nq/dev.tsv"] == hashlib.sha256((unified / "nq/dev.tsv").read_bytes()).hexdigest()
    assert facts["origin"] == str(unified) and facts["licence"] == "see its source"
    assert facts["split_seed"] == flags.SPLIT_SEED
    assert capsys.readouterr().out == f"{out}: 8 train, 3 validation, 6 test rows; dropped: 2 malformed, 3 empty\n"
    task = tasks.load_task(str(out))
    assert (task.kind, len(task.train), len(task.validation), len(task.evaluation)) == ("qa", 8, 3, 6)
    assert {ex.options for ex in task.train} == {(f"a{i}", f"b{i}") for i in range(8)}


def test_one_unifiedqa_folder_and_a_sample_of_each_split(unified, tmp_path):
    prepare_data.main(["unifiedqa", str(unified / "nq"), "--output", str(tmp_path / "nq")])
    assert {split: len(rows) for split, rows in splits_of(tmp_path / "nq").items()} == {"test": 5}
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        prepare_data.main(
            ["unifiedqa", str(unified), "--num_samples", "2", "--seed", seed, "--output", str(tmp_path / name)]
        )
    facts = manifest_of(tmp_path / "a")
    assert facts["sources"] == {"arc": {"train": 2, "validation": 2, "test": 1}, "nq": {"test": 2}}
    assert (facts["num_samples"], facts["split_seed"]) == (2, 1)
    assert everything(tmp_path / "a") == everything(tmp_path / "b")
    assert splits_of(tmp_path / "a")["train"] != splits_of(tmp_path / "c")["train"]


@pytest.mark.parametrize(
    "command, context, response", [("alpaca", "input", "output"), ("dolly", "context", "response")]
)
def test_instruction_data(command, context, response, tmp_path, capsys):
    rows = [
        {"instruction": f"Say {i}", context: "c" if i % 2 else "", response: f" {i}\n", "unused": 1} for i in range(100)
    ]
    if command == "dolly":
        rows = [{**row, "category": "qa"} for row in rows]
    rows += [rows[0], {**rows[0], "instruction": " "}, {**rows[0], response: ""}, {**rows[0], response: None}]
    (tmp_path / "in.json").write_text(json.dumps(rows))
    for name, seed in (("a", "13"), ("b", "13"), ("c", "14")):
        prepare_data.main([command, str(tmp_path / "in.json"), "--seed", seed, "--output", str(tmp_path / name)])
    made, facts = splits_of(tmp_path / "a"), manifest_of(tmp_path / "a")
    assert facts["counts"] == {"train": 80, "validation": 10, "test": 10}
    assert facts["dropped"] == {"empty": 3, "duplicate": 1}
    assert facts["origin_sha256"] == {"in.json": hashlib.sha256((tmp_path / "in.json").read_bytes()).hexdigest()}
    assert facts["licence"].startswith("CC BY-")
    assert "80 train, 10 validation, 10 test rows; dropped: 3 empty, 1 duplicate" in capsys.readouterr().out
    category = {"category": "qa"} if command == "dolly" else {}
    wanted = [
        {"instruction": f"Say {i}", "context": "c" if i % 2 else "", "response": f" {i}\n", **category}
        for i in range(100)
    ]
    assert sorted(texts(sum(made.values(), []))) == sorted(texts(wanted))  # each row in one split, none lost
    assert (
        everything(tmp_path / "a") == everything(tmp_path / "b") and splits_of(tmp_path / "c")["test"] != made["test"]
    )
    task = tasks.load_task(str(tmp_path / "a"))
    assert (task.kind, len(task.train), len(task.validation), len(task.evaluation)) == ("instruction", 80, 10, 10)
    assert {ex.context for ex in task.train} == {None, "c"}
    assert task.notes == ["8 of 10 evaluation examples share their passage, first text or cluster with training ones"]


def test_a_sample_is_drawn_before_the_split(tmp_path):
    write_jsonl(
        tmp_path / "in.jsonl", [{"instruction": f"Say {i}", "input": "", "output": "x"} for i in range(100)] * 2
    )
    prepare_data.main(["alpaca", str(tmp_path / "in.jsonl"), "--num_samples", "20", "--output", str(tmp_path / "out")])
    facts = manifest_of(tmp_path / "out")
    assert facts["counts"] == {"train": 16, "validation": 2, "test": 2} and facts["num_samples"] == 20
    assert len(set(texts(sum(splits_of(tmp_path / "out").values(), [])))) == 20


def test_two_answers_to_one_prompt_stay_in_one_split(tmp_path):
    rows = [{"instruction": f"Say {i // 2}" + " " * (i % 2), "context": "", "response": str(i)} for i in range(200)]
    write_jsonl(tmp_path / "in.jsonl", rows)
    prepare_data.main(["dolly", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out")])
    made = {split: {row["instruction"].strip() for row in rows} for split, rows in splits_of(tmp_path / "out").items()}
    assert manifest_of(tmp_path / "out")["counts"] == {"train": 160, "validation": 20, "test": 20}
    assert sum(map(len, made.values())) == len(set.union(*made.values())) == 100


def table(path, header, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join("\t".join(cells) + "\n" for cells in [header, *rows]), encoding="utf-8")


@pytest.fixture
def inference(tmp_path):
    """Small MNLI as in GLUE (sentence1, sentence2 among other columns) and HANS; a quotation mark is never closed."""
    labels = ("entailment", "neutral", "contradiction")
    header = ["index", "genre", "sentence1", "sentence2", "label1", "gold_label"]
    rows = [[str(i), "fiction", f'"Premise {i}', f"Hypothesis {i}.", "neutral", labels[i % 3]] for i in range(12)]
    tie = ["12", "fiction", "A", "B", "neutral", "-"]
    table(
        tmp_path / "mnli/train.tsv",
        header,
        [*rows, tie, ["13", "cut off"], ["14", "fiction", "", "B", "neutral", "neutral"]],
    )
    rows = [["0", "P", f"H {label}", label] for label in (*labels, "-")]
    table(tmp_path / "mnli/dev_matched.tsv", ["index", "premise", "hypothesis", "gold_label"], rows)
    header = ["gold_label", "sentence1_parse", "sentence1", "sentence2", "pairID", "heuristic", "subcase", "template"]
    rows = [
        [
            ("entailment", "non-entailment")[i % 2],
            "(S",
            f"The {i} ran .",
            "He ran .",
            f"ex{i}",
            "constituent",
            f"c{i}",
            "t",
        ]
        for i in range(6)
    ]
    table(tmp_path / "hans/heuristics_evaluation_set.txt", header, rows)
    return [
        "mnli_hans",
        "--mnli",
        str(tmp_path / "mnli"),
        "--hans",
        str(tmp_path / "hans/heuristics_evaluation_set.txt"),
        "--output",
        str(tmp_path / "out"),
    ]


def test_mnli_and_hans(inference, tmp_path, capsys):
    prepare_data.main(inference)
    mnli, hans = splits_of(tmp_path / "out/mnli"), splits_of(tmp_path / "out/hans")
    assert list(mnli) == ["test", "train"] and list(hans) == ["test"]
    assert mnli["train"][1] == {"premise": '"Premise 1', "hypothesis": "Hypothesis 1.", "label": "neutral"}
    assert len(mnli["train"]) == 12 and len(hans["test"]) == 6
    assert [row["label"] for row in mnli["test"]] == ["entailment", "neutral", "contradiction"]
    pair = {"premise": "The 1 ran .", "hypothesis": "He ran .", "label": "non-entailment"}
    assert hans["test"][1] == {**pair, "heuristic": "constituent", "subcase": "c1"}
    facts = manifest_of(tmp_path / "out/mnli")
    assert facts["dropped"] == {"malformed": 1, "no gold label": 2, "empty": 1}
    assert sorted(facts["origin_sha256"]) == ["dev_matched.tsv", "train.tsv"]
    facts = manifest_of(tmp_path / "out/hans")
    assert facts["licence"].startswith("MIT") and facts["dropped"] == {}
    assert "mnli: 12 train, 3 test rows; dropped: 1 malformed, 2 no gold label, 1 empty\n" in capsys.readouterr().out
    task = tasks.load_task(str(tmp_path / "out/mnli"))
    assert (task.kind, task.words, len(task.evaluation)) == ("classification", ("no", "yes", "maybe"), 3)
    task = tasks.load_task(str(tmp_path / "out/hans"))
    assert (task.kind, task.labels, len(task.evaluation)) == ("classification", ("entailment", "non-entailment"), 6)


def test_a_sample_of_mnli_and_hans_replaces_the_whole(inference, tmp_path):
    prepare_data.main(inference)
    before = splits_of(tmp_path / "out/mnli")["train"]
    prepare_data.main([*inference, "--num_samples", "4"])
    assert manifest_of(tmp_path / "out/mnli")["counts"] == {"train": 4, "test": 3}
    assert manifest_of(tmp_path / "out/hans")["counts"] == {"test": 4}
    kept = splits_of(tmp_path / "out/mnli")["train"]
    assert [row for row in before if row in kept] == kept
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["hans", "mnli"]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet", "csv without a header"])
def test_split_any_file(kind, tmp_path):
    import pandas as pd

    rows = [{"text": f'one, "two" {i}', "label": "ab"[i % 2]} for i in range(50)]
    suffix = kind.split()[0]
    file, frame, flags = tmp_path / f"mine.{suffix}", pd.DataFrame(rows + rows[:5]), []
    if suffix == "parquet":
        frame.to_parquet(file)
    elif suffix == "tsv":
        table(file, ["text", "label"], [list(row.values()) for row in rows + rows[:5]])
    elif suffix == "csv":
        flags = ["--columns", "text, label"] if kind != suffix else []
        frame.to_csv(file, index=False, header=not flags)
    else:
        frame.to_json(file, orient="records", lines=kind == "jsonl")
    argv = ["split", str(file), *flags, "--fractions", "0.6", "0.1", "0.3"]
    for name, more in (("a", []), ("b", []), ("c", ["--seed", "1"])):
        prepare_data.main([*argv, *more, "--output", str(tmp_path / name)])
    made, facts = splits_of(tmp_path / "a"), manifest_of(tmp_path / "a")
    assert facts["counts"] == {"train": 30, "validation": 5, "test": 15} and facts["dropped"] == {"duplicate": 5}
    assert facts["fractions"] == [0.6, 0.1, 0.3]
    assert sorted(texts(sum(made.values(), []))) == sorted(texts(rows))
    assert (
        everything(tmp_path / "a") == everything(tmp_path / "b") and splits_of(tmp_path / "c")["train"] != made["train"]
    )
    task = tasks.load_task(str(tmp_path / "a"))
    assert (task.kind, len(task.train), len(task.validation), len(task.evaluation)) == ("classification", 30, 5, 15)


def test_split_without_validation_and_without_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "mine.jsonl", [{"text": str(i), "label": i % 2} for i in range(10)])
    prepare_data.main(["split", "mine.jsonl", "--fractions", "0.9", "0", "0.1"])
    assert manifest_of(tmp_path / "assets/data/mine")["counts"] == {"train": 9, "test": 1}
    assert sorted(f.name for f in (tmp_path / "assets/data").iterdir()) == ["mine"]  # nothing temporary is left


def test_dates_and_half_characters_are_written(tmp_path):
    import pandas as pd

    pd.DataFrame({"text": list("abcdefghij"), "when": pd.Timestamp("2024-02-29"), "label": 1.5}).to_parquet(
        tmp_path / "dates.parquet"
    )
    (tmp_path / "half.jsonl").write_text(
        "".join(json.dumps({"text": f"{i} \ud83d", "label": "a"}) + "\n" for i in range(10))
    )
    for file in ("dates.parquet", "half.jsonl"):
        prepare_data.main(["split", str(tmp_path / file), "--output", str(tmp_path / "out" / file)])
        assert manifest_of(tmp_path / "out" / file)["counts"] == {"train": 8, "validation": 1, "test": 1}
    assert {row["when"] for row in read_jsonl(tmp_path / "out/dates.parquet/train.jsonl")} == {"2024-02-29 00:00:00"}
    assert all(row["text"].endswith(" ?") for row in read_jsonl(tmp_path / "out/half.jsonl/train.jsonl"))


def test_only_folders_made_here_are_replaced(tmp_path, capsys):
    rows, out = [{"text": str(i), "label": i % 2} for i in range(20)], tmp_path / "out"
    write_jsonl(tmp_path / "mine.jsonl", rows)
    argv = ["split", tmp_path / "mine.jsonl", "--output", out]
    out.mkdir()
    refused(argv, "is there and has no SOURCE.json", capsys, tmp_path)
    (out / "notes.txt").write_text("mine")
    refused(argv, "is there and has no SOURCE.json", capsys, tmp_path)
    (out / "notes.txt").unlink()
    out.rmdir()
    prepare_data.main(list(map(str, argv)))
    prepare_data.main(list(map(str, [*argv, "--num_samples", 10])))
    assert manifest_of(out)["counts"] == {"train": 8, "validation": 1, "test": 1}
    refused(["split", out / "train.jsonl", "--output", out], "which the command reads", capsys, tmp_path)
    (out / "notes.txt").write_text("mine")
    refused(argv, "holds notes.txt, which this script did not write", capsys, tmp_path)
    (out / "notes.txt").unlink()
    (out / "SOURCE.json").write_text(json.dumps({**manifest_of(out), "package_sha256": "0"}))
    refused(argv, "belongs to the demo", capsys, tmp_path)


def test_mnli_is_not_written_where_hans_cannot_be(inference, tmp_path, capsys):
    (tmp_path / "out/hans").mkdir(parents=True)
    refused(inference, "out/hans is there and has no SOURCE.json", capsys, tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    write_jsonl(tmp_path / "mine.jsonl", [{"text": str(i)} for i in range(20)])
    refused(
        ["split", tmp_path / "mine.jsonl", "--output", tmp_path / "mine.jsonl/out"],
        "cannot be written",
        capsys,
        tmp_path,
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        ("split nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("split empty.jsonl", "empty.jsonl has no rows"),
        ("split empty.csv", "has no rows"),
        ("split list.json", "a list of JSON objects is wanted"),
        ("split notes.txt", "unknown file type; known are jsonl"),
        ("split few.jsonl", "3 rows are too few for a test split of 0.1"),
        ("split rows.jsonl --num_samples 0", "--num_samples: must be a whole number of at least 1, not 0"),
        (
            "split rows.jsonl --fractions 0.8 0.1 0.2",
            "--fractions 0.8 0.1 0.2: three numbers from 0 to 1 that sum to 1",
        ),
        ("split rows.jsonl --fractions 1.5 -0.5 0", "three numbers from 0 to 1 that sum to 1"),
        ("split rows.jsonl --fractions nan 0.5 0.5", "three numbers from 0 to 1 that sum to 1"),
        ("split rows.jsonl --fractions 0.8 0.2", "expected 3 arguments"),
        ("split rows.jsonl --columns a,b", "names the columns of a CSV or TSV"),
        ("split rows.csv --columns a,b", "has 1 columns, --columns names 2"),
        ("split", "the following arguments are required: FILE"),
        ("split rows.jsonl --seed x", "--seed"),
        ("alpaca rows.jsonl", "has no column instruction, context or input, response or output; it has text"),
        ("dolly nowhere.json", "nowhere.json: no such file"),
        ("dolly empty.jsonl", "has no rows"),
        ("dolly blank.jsonl", "0 rows are too few"),
        ("unifiedqa nowhere", "nowhere: no such folder"),
        ("unifiedqa rows.jsonl", "rows.jsonl: no such folder"),
        ("unifiedqa none", "neither this folder nor one in it has train.tsv"),
        ("unifiedqa hollow", "dev.tsv is empty"),
        ("unifiedqa latin", "dev.tsv cannot be read as text: byte 0xe9 in line 1 is not UTF-8; name its encoding"),
        ("unifiedqa tabless", "none of its 2 lines is a question, one tab and an answer"),
        ("mnli_hans --mnli nowhere --hans hans.tsv", "train.tsv: no such file"),
        ("mnli_hans --mnli mnli --hans nowhere.tsv", "nowhere.tsv: no such file"),
        ("mnli_hans --mnli mnli --hans none", "none: a folder, a file is wanted"),
        (
            "mnli_hans --mnli mnli --hans headless.tsv",
            "has no column premise or sentence1, hypothesis or sentence2, gold_label or label",
        ),
        ("mnli_hans --mnli mnli --hans other.tsv", "the label 'neutral' is not one of entailment, non-entailment"),
        ("mnli_hans --mnli mnli --hans header.tsv", "header.tsv has no rows"),
        ("mnli_hans --mnli ties --hans hans.tsv", "no row has a premise, a hypothesis and a label"),
        ("everything", "invalid choice: 'everything'"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(flags, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "empty.jsonl": "",
        "empty.csv": "",
        "list.json": "[1]",
        "notes.txt": "x",
        "few.jsonl": '{"a": 1}\n{"a": 2}\n{"a": 3}\n',
        "rows.jsonl": "".join(f'{{"text": "{i}"}}\n' for i in range(20)),
        "rows.csv": "text\na\nb\n",
        "blank.jsonl": '{"instruction": "", "input": "", "output": "x"}\n',
        "none/other.tsv": "a\tb\n",
        "hollow/x/dev.tsv": "\n",
        "latin/dev.tsv": "caf\xe9\tx\n",
        "tabless/dev.tsv": "a\nb\n",
        "headless.tsv": "a\tb\tentailment\nc\td\tentailment\n",
        "mnli/train.tsv": "premise\thypothesis\tgold_label\na\tb\tneutral\n",
        "mnli/dev_matched.tsv": "premise\thypothesis\tgold_label\na\tb\tneutral\n",
        "ties/train.tsv": "premise\thypothesis\tgold_label\na\tb\t-\n",
        "ties/dev_matched.tsv": "premise\thypothesis\tgold_label\na\tb\t-\n",
        "hans.tsv": "gold_label\tsentence1\tsentence2\theuristic\tsubcase\nentailment\ta\tb\tc\td\n",
        "other.tsv": "gold_label\tsentence1\tsentence2\theuristic\tsubcase\nneutral\ta\tb\tc\td\n",
        "header.tsv": "gold_label\tsentence1\tsentence2\theuristic\tsubcase\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="latin-1")
    refused(flags.split(), message, capsys, tmp_path)
