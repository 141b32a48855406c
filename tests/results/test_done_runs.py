import json

from sweep_helpers import planned, suite

import sweep
from harness.results import done_runs, provenance, store


def test_rows_are_found_whatever_the_spelling_of_a_number(tmp_path):
    path = suite(tmp_path / "a.yaml", "script: finetune.py\nflags: {epochs: 2}\ngrid: {seed: [0, 1, 2]}\n")
    args = sweep.parse_args([path, "--results", str(tmp_path / "r.csv"), "--ignore_code", "--retry", "failed"])
    cells = sweep.make_cells(path, args)[1]
    for cell, status in zip(cells, ("ok", "failed")):
        settings = {**cell.args, "epochs": 2, "runs_dir": "elsewhere"}
        row = {"run_id": status, "script": "finetune.py", "status": status, "args": json.dumps(settings)}
        store.append_result(args.results, {**row, "input_id": provenance.input_id(cell.args)})
    store.append_result(args.results, {"run_id": "x", "script": "finetune.py", "args": "[" * 100_000})
    assert [(status, wanted) for _, status, wanted in planned(path, args)] == [
        ("ok", False),
        ("failed", True),
        (None, True),
    ]


def test_a_row_older_than_a_flag_is_found(tmp_path):
    path = suite(tmp_path / "a.yaml", "script: finetune.py\ngrid: {tune: [null, 20]}\n")
    args = sweep.parse_args([path, "--results", str(tmp_path / "r.csv"), "--ignore_code"])
    first = sweep.make_cells(path, args)[1][0]
    older = {name: value for name, value in first.args.items() if name not in ("tune", "answer_format")}
    row = {"script": "finetune.py", "status": "ok", "args": json.dumps(older)}
    store.append_result(args.results, {**row, "run_id": "a", "input_id": provenance.input_id(first.args)})
    assert [status for _, status, _ in planned(path, args)] == ["ok", None]


def test_rows_are_gone_through_once_and_files_are_hashed_once(tmp_path, monkeypatch):
    """The work of planning grows with cells plus rows, not with their product."""
    path = suite(tmp_path / "a.yaml", f"script: finetune.py\ngrid: {{seed: {list(range(30))}}}\n")
    args = sweep.parse_args([path, "--results", str(tmp_path / "r.csv"), "--ignore_code"])
    cells = sweep.make_cells(path, args)[1]
    rows = [{"script": "finetune.py", "args": json.dumps(cell.args), "status": "ok"} for cell in cells]
    read, hashed, loads = [], [], json.loads
    monkeypatch.setattr(done_runs.json, "loads", lambda text: read.append(text) or loads(text))
    monkeypatch.setattr(provenance, "input_id", lambda settings: hashed.append(settings))
    done = done_runs.DoneRuns([{**row, "input_id": ""} for row in rows])
    assert not any(wanted for _, _, wanted in sweep.plan(cells, args, done))
    assert (len(read), len(hashed)) == (30, 1)
