import argparse
import csv
import json

import pytest
from row_helpers import result_row

from harness.results import configurations, label_counts, run, run_scores, store

CHOSE = "566 validation examples chose the checkpoint; learning rate 0.0001"


@pytest.mark.parametrize(
    "cells, labels",
    [
        ({"script": "finetune.py", "n_train": "100", "note": CHOSE}, "666"),
        ({"script": "peft_finetune.py", "n_train": "100", "note": "learning rate 0.0001"}, "100"),
        ({"script": "peft_finetune.py", "n_train": "9", "note": "5 validation examples, the last kept"}, "9"),
        ({"script": "prompt_eval.py", "n_train": "8", "k_shots": "8"}, "8"),
        ({"script": "prompt_eval.py", "n_train": "0", "k_shots": "0"}, "0"),
        ({"script": "prompt_eval.py", "n_train": "0", "k_shots": "0", "args": '{"adapter": "runs/a/adapter"}'}, ""),
        ({"script": "prompt_eval.py", "variant": "checkpoint"}, ""),
        ({"script": "context_distill.py", "n_train": "8", "k_shots": "0", "note": CHOSE}, "8"),  # unlabelled inputs
        ({"script": "rag_eval.py"}, "0"),
        ({"n_train": "many"}, ""),
        ({"n_train": "inf"}, ""),
    ],
)
def test_the_labels_of_a_row_from_before_the_column(cells, labels):
    assert label_counts.derived(cells) == labels


def test_the_labels_that_came_with_weights(tmp_path):
    """A teacher's labels are in what it says, and SetFit's in its encoder, which lies a folder deeper."""
    for name, labels in (("teacher", 500), ("setfit", 40)):
        (tmp_path / name / "probe" / "encoder").mkdir(parents=True)
        (tmp_path / name / "model").mkdir()
        (tmp_path / name / "row.json").write_text(json.dumps({"labels_used": labels, "strategy": "probe"}))
    args = {"model": "assets/m", "teacher": str(tmp_path / "teacher/model"), "student": "lora", "results": "r.csv"}
    args |= {"demo_embedder": str(tmp_path / "setfit/probe/encoder"), "runs_dir": str(tmp_path), "seed": 0}
    assert run.Run(argparse.Namespace(**args), "prompt_eval.py", "prompting").trained_with == 540
    assert label_counts.row_of(tmp_path / "setfit/probe/encoder")["strategy"] == "probe"
    assert label_counts.row_of("lora") == {} == label_counts.row_of(tmp_path / "setfit")


def test_an_old_csv_is_read_with_its_labels_and_widened_with_them(tmp_path):
    path = tmp_path / "results.csv"
    old = result_row(script="finetune.py", n_train=100, note=CHOSE, score=0.7)
    del old["labels_used"]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([old, [store.to_cell(cell) for cell in old.values()]])
    store.append_result(path, result_row(score=0.8, labels_used=None))
    first, second = store.read_results(path)
    assert (first["labels_used"], second["labels_used"]) == ("666", ""), "unknown in a new row stays unknown"
    assert configurations.value(second, "labels_used") is None


def test_a_comparison_names_the_labels_of_old_and_new_run_folders(tmp_path):
    for name, cells in (("old", {"n_train": 100, "note": CHOSE}), ("new", {"labels_used": 50, "n_train": 40})):
        row = {**result_row(score=1.0, status="ok"), **cells}
        if name == "old":
            del row["labels_used"]
        (tmp_path / name).mkdir()
        store.write_jsonl(tmp_path / name / "predictions.jsonl", [{"id": "a", "target": 1, "prediction": 1}])
        (tmp_path / name / "row.json").write_text(json.dumps(row))
    assert run_scores.read(tmp_path / "old").name.endswith("666 labelled examples")
    assert run_scores.read(tmp_path / "new").name.endswith("50 labelled examples")
