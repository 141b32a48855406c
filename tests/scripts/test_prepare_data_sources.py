import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
from helpers import ASSETS, ROOT, SHARED, manifest_of, read_jsonl, splits_of, write_jsonl

import prepare_data
from harness.data import demo, tasks


def script(argv, cwd, **env):
    return subprocess.run(
        [sys.executable, str(ROOT / "prepare_data.py"), *argv],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "HF_HOME": str(cwd / "cache"), **env},
    )


@pytest.mark.parametrize("argv", [["alpaca"], ["dolly", "--num_samples", "9"], ["mnli_hans"]])
def test_without_a_hub_it_is_one_line_with_the_way_out(argv, tmp_path):
    done = script(argv, tmp_path, HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9")  # nothing listens on port 9
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stdout == "", done.stderr
    wanted = {
        "alpaca": "give a file: python prepare_data.py alpaca FILE",
        "dolly": "give a file: python prepare_data.py dolly FILE",
        "mnli_hans": "give local copies: --mnli DIR --hans FILE",
    }[argv[0]]
    assert "cannot be loaded from the hub" in done.stderr and done.stderr.endswith(wanted + "\n")
    assert not (tmp_path / "assets").exists()


def test_the_hub_paths_on_local_folders_of_the_same_names(tmp_path):
    """`datasets` reads a folder with the name of the hub's data set; class numbers and splits are the hub's."""
    from datasets import ClassLabel, Dataset, Features, Value

    def pairs(folder, file, names, labels, **more):
        text = {"premise": [f"p{i}" for i in labels], "hypothesis": [f"h{i}" for i in range(len(labels))]}
        columns = {**text, "label": labels, **{name: [value] * len(labels) for name, value in more.items()}}
        kinds = {name: ClassLabel(names=names) if name == "label" else Value("string") for name in columns}
        folder.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(columns, features=Features(kinds)).to_parquet(folder / file)

    glue, hans = tmp_path / "nyu-mll/glue", tmp_path / "jhu-cogsys/hans"
    for split in ("train", "validation_matched", "test_matched"):
        labels = [-1, -1] if split == "test_matched" else [0, 1, 2, 2, -1]
        pairs(glue, f"{split}.parquet", ["entailment", "neutral", "contradiction"], labels)
    files = "".join(
        f"  - split: {split}\n    path: {split}.parquet\n" for split in ("train", "validation_matched", "test_matched")
    )
    (glue / "README.md").write_text(f"---\nconfigs:\n- config_name: mnli\n  data_files:\n{files}---\n")
    for split, labels in (("train", [0]), ("validation", [0, 1, 1])):
        pairs(
            hans,
            f"{split}.parquet",
            ["entailment", "non-entailment"],
            labels,
            heuristic="constituent",
            subcase="ce",
            template="t",
        )
    (tmp_path / "tatsu-lab/alpaca").mkdir(parents=True)
    rows = [{"instruction": f"Say {i}", "input": "", "output": str(i), "text": "all of it"} for i in range(10)]
    write_jsonl(tmp_path / "tatsu-lab/alpaca/train.jsonl", rows)

    for command in ("mnli_hans", "alpaca"):
        done = script([command], tmp_path)
        assert done.returncode == 0, done.stderr
    made = splits_of(tmp_path / "assets/data/mnli_hans/mnli")
    assert [row["label"] for row in made["test"]] == ["entailment", "neutral", "contradiction", "contradiction"]
    facts = manifest_of(tmp_path / "assets/data/mnli_hans/mnli")
    assert facts["dropped"] == {"no gold label": 2} and facts["origin"] == "nyu-mll/glue mnli from the Hugging Face hub"
    assert splits_of(tmp_path / "assets/data/mnli_hans/hans") == {
        "test": [
            {"premise": f"p{i}", "hypothesis": f"h{n}", "label": label, "heuristic": "constituent", "subcase": "ce"}
            for n, (i, label) in enumerate([(0, "entailment"), (1, "non-entailment"), (1, "non-entailment")])
        ]
    }
    facts = manifest_of(tmp_path / "assets/data/alpaca")
    assert facts["counts"] == {"train": 8, "validation": 1, "test": 1} and "origin_sha256" not in facts
    assert sorted(read_jsonl(tmp_path / "assets/data/alpaca/train.jsonl")[0]) == ["context", "instruction", "response"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data here")
def test_real_files(tmp_path):
    hans = SHARED / "hans/heuristics_evaluation_set.3000.tsv"
    for argv in (
        ["unifiedqa", SHARED / "unifiedqa"],
        ["dolly", SHARED / "dolly/dolly_3k.json"],
        ["mnli_hans", "--mnli", SHARED / "mnli", "--hans", hans],
    ):
        prepare_data.main([*map(str, argv), "--num_samples", "200", "--output", str(tmp_path / argv[0])])
    facts = manifest_of(tmp_path / "unifiedqa")
    assert facts["counts"] == {"train": 400, "test": 1000} and facts["dropped"] == {}
    assert facts["sources"]["arc_easy"] == {"train": 200, "test": 200} and facts["sources"]["boolq"] == {"test": 200}
    assert manifest_of(tmp_path / "dolly")["counts"] == {"train": 160, "validation": 20, "test": 20}
    assert manifest_of(tmp_path / "mnli_hans/mnli")["counts"] == {"train": 200, "test": 200}
    assert {row["heuristic"] for row in splits_of(tmp_path / "mnli_hans/hans")["test"]} == {
        "lexical_overlap",
        "subsequence",
        "constituent",
    }
    found = {
        name: tasks.load_task(str(tmp_path / name))
        for name in ("unifiedqa", "dolly", "mnli_hans/mnli", "mnli_hans/hans")
    }
    assert [task.kind for task in found.values()] == ["qa", "instruction", "classification", "classification"]
    assert found["mnli_hans/mnli"].words == ("no", "yes", "maybe") and found["mnli_hans/hans"].words == ("yes", "no")
    assert {len(ex.options) for ex in found["unifiedqa"].train} <= {3, 4, 5} and any(
        ex.context for ex in found["unifiedqa"].evaluation
    )


@pytest.mark.real
def test_demo_assets_are_left_alone_when_intact_and_made_again_when_damaged(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "ASSETS", {"data/movie_reviews": demo.ASSETS["data/movie_reviews"]})
    folder = tmp_path / "data/movie_reviews"
    shutil.copytree(ASSETS / "data/movie_reviews", folder)
    good = (folder / "train.jsonl").read_bytes()
    prepare_data.main(["demo", "--assets", str(tmp_path)])
    assert "0 assets made, 1 were there" in capsys.readouterr().out
    (folder / "train.jsonl").write_bytes(good[: len(good) // 2])
    assert not demo.intact(folder)
    prepare_data.main(["demo", "--assets", str(tmp_path)])
    assert "1 assets made" in capsys.readouterr().out and (folder / "train.jsonl").read_bytes() == good
    source = json.loads((folder / "SOURCE.json").read_text())
    assert source["licence"] == "MIT" and source["counts"] == {"train": 9000, "validation": 566, "test": 1000}
    assert source["files"]["train.jsonl"] == hashlib.sha256(good).hexdigest()
    assert not list(tmp_path.glob(".making-*"))
