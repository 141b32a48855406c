"""The column table, and the CSVs of every earlier version. headers.json: each distinct header in git's history before
the present one, oldest first.
"""

import csv
import json
import multiprocessing
import os
import random
import signal
from pathlib import Path

import pytest
from helpers import ROOT

import adaptive_selector
import plot_results
import utils
from harness.results import configurations, earlier, schema, store

OLD_HEADERS = json.loads((Path(__file__).parent / "headers.json").read_text())
SHUFFLED = random.Random(0).sample(schema.RESULT_COLUMNS, len(schema.RESULT_COLUMNS))
HEADERS = [*OLD_HEADERS, SHUFFLED, SHUFFLED[::-1]]
NAMES = [f"{len(header)} columns" for header in OLD_HEADERS] + ["another order", "a third order"]


def test_the_table_is_complete():
    assert len(set(schema.RESULT_COLUMNS)) == len(schema.COLUMNS)
    for column in (*schema.COLUMNS, *schema.DERIVED):
        assert column.type in ("str", "int", "float", "bool", "json") and column.direction in (-1, 0, 1), column
        assert column.group in schema.GROUPS and column.about.endswith("."), column
    assert {column.group for column in schema.COLUMNS} == set(schema.GROUPS)
    assert schema.METRICS["latency_ms_p50"].label == "latency of one request (p50)"
    assert (schema.METRICS["latency_ms_p50"].unit, schema.METRICS["latency_ms_p50"].direction) == ("ms", -1)
    assert {"memory", "labels_used"} <= set(schema.METRICS) and "run_id" not in schema.METRICS
    row = {"peak_gpu_gb": "", "peak_rss_gb": "2.5", "serving_gpu_gb": "", "serving_rss_gb": ""}
    assert configurations.value(row, "memory") == 2.5, "what is derived is no column and has a value"


def test_the_page_is_what_the_command_writes():
    """python -m harness.results.schema > docs/results_csv.md"""
    page = (ROOT / "docs" / "results_csv.md").read_text(encoding="utf-8")
    assert page == schema.page()
    for name in (*schema.RESULT_COLUMNS, *schema.STATUSES):
        assert f"| `{name}` |" in page


def test_a_column_is_only_ever_added():
    """Or it is named in earlier.py; and old files keep their order of columns."""
    for header in OLD_HEADERS:
        assert [name for name in schema.RESULT_COLUMNS if name in header] == [
            n for n in header if n not in earlier.GONE
        ]
    assert not set(earlier.GONE) & set(schema.RESULT_COLUMNS)
    assert schema.RESULT_COLUMNS not in OLD_HEADERS


MEANT = {"status": "ok", "metric": "accuracy", "script": "finetune.py", "strategy": "full_finetuning"}
MEANT |= {"dataset": "data/d", "subset": "s", "git_dirty": "True"}


def cells_of(header, seed):
    """A row of distinct cells: real words where a reader asks for them, else a number or text of each cell's own."""
    cells = {}
    for i, name in enumerate(header):
        kind = schema.TYPES.get(name, "float")
        number = i + 1000 * seed
        cells[name] = {"int": str(number), "float": f"{number}.5", "str": f'{name} "{number}", é', "bool": "True"}.get(
            kind
        )
        if kind == "json":
            cells[name] = json.dumps({"seed": seed, "epochs": 2.0, "of": name})
    scores = {"score": "0.7", "score_low": "0.6", "score_high": "0.8", "accuracy": "0.71", "n_eval": "100"}
    cells |= {**MEANT, **scores, "latency_ms_p50": "12.5", "eval_id": "e"}
    return [cells[name] for name in header]


def old_csv(path, header, seeds=(1, 2)):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *(cells_of(header, seed) for seed in seeds)])
    return path


def check_rows(rows, header):
    """No cell of the two rows is lost; what the header lacks is empty, but for labels_used, which is derived."""
    for row, seed in zip(rows, (1, 2)):
        cells = dict(zip(header, cells_of(header, seed)))
        labels = max(cells["n_train"], cells["k_shots"], key=int)
        assert list(row) == schema.RESULT_COLUMNS
        cells = {renamed(name, header): cell for name, cell in cells.items()}
        assert row == {**dict.fromkeys(schema.RESULT_COLUMNS, ""), "labels_used": labels, **cells}


def renamed(name, header):
    """What a column of an earlier file is called now; the rows here are those of finetune.py."""
    now = {"perplexity": "reference_perplexity"}
    if "unifiedqa_overlap" not in header:
        now["jaccard"] = "unifiedqa_overlap"
    return now.get(name, name)


def test_a_perplexity_of_before_is_that_of_references_or_of_texts(tmp_path):
    """And what was called jaccard was UnifiedQA's overlap; the file as it was is kept."""
    old = ["run_id", "script", "macro_f1", "jaccard", "perplexity"]
    rows = [
        ["a", "quantize_and_parallel.py", "0.5", "", "20.5"],
        ["b", "quantize_and_parallel.py", "", "0.25", "7.5"],
        ["c", "finetune.py", "", "", ""],
    ]
    path = tmp_path / "r.csv"
    path.write_bytes(store.csv_lines([old, *rows]))
    store.append_result(path, {"run_id": "d", "jaccard": 0.1, "unifiedqa_overlap": 0.2})
    columns = ("text_perplexity", "reference_perplexity", "unifiedqa_overlap", "jaccard")
    found = [tuple(row[name] for name in columns) for row in store.read_results(path)]
    assert found == [("20.5", "", "", ""), ("", "7.5", "0.25", ""), ("", "", "", ""), ("", "", "0.2", "0.1")]
    assert store.read_header(path) == schema.RESULT_COLUMNS
    assert (tmp_path / "r.csv.before-new-columns").read_bytes() == store.csv_lines([old, *rows])


@pytest.mark.parametrize("header", HEADERS, ids=NAMES)
def test_an_earlier_csv_is_read_and_takes_a_new_row(header, tmp_path, capsys):
    path = old_csv(tmp_path / "results.csv", header)
    before = path.read_bytes()
    check_rows(store.read_results(path), header)

    plot_results.main(["--results", str(path), "--markdown", "all"])
    assert "0.700" in capsys.readouterr().out
    kept, skipped = configurations.select(store.read_results(path))
    assert len(kept) == 2 and not skipped
    adaptive_selector.main(["--results", str(path), "--dataset", "data/d", "--subset", "s", "--json"])
    assert json.loads(capsys.readouterr().out)["basis"] == "rows"
    store.check_results_file(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1, "reading changes nothing"

    store.append_result(path, {"run_id": "new", "score": 0.25})
    widened = set(header) != set(schema.RESULT_COLUMNS)  # another order alone is no reason to change a file
    assert ("results.csv.before-new-columns" in capsys.readouterr().out) == widened
    rows = store.read_results(path)
    check_rows(rows, header)
    assert len(rows) == 3 and (rows[2]["run_id"], rows[2]["score"]) == ("new", "0.25")
    assert store.read_header(path) == (schema.RESULT_COLUMNS if widened else header)
    assert not widened or (tmp_path / "results.csv.before-new-columns").read_bytes() == before

    store.append_result(path, {"run_id": "newer"})  # nothing to widen any more
    assert len(store.read_results(path)) == 4 and "before" not in capsys.readouterr().out
    names = {"results.csv", "results.csv.lock"} | ({"results.csv.before-new-columns"} if widened else set())
    assert {file.name for file in tmp_path.iterdir()} == names


def test_a_copy_from_before_is_never_overwritten(tmp_path, capsys):
    path = tmp_path / "results.csv"
    kept = []
    for header in OLD_HEADERS[:3]:  # as if a person had put an older file there again
        old_csv(path, header)
        kept.append(path.read_bytes())
        store.append_result(path, {"run_id": "new"})
    name = "results.csv.before-new-columns"
    assert [(tmp_path / f).read_bytes() for f in (name, f"{name}-2", f"{name}-3")] == kept
    old_csv(path, OLD_HEADERS[1])  # this very file is kept already
    store.append_result(path, {"run_id": "new"})
    assert len(list(tmp_path.glob(f"{name}*"))) == 3


def append_and_die(path, nth):
    """Kill this process where it is about to replace a file for the nth time."""
    replace, calls = os.replace, []

    def killed(source, target):
        calls.append(target)
        if len(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = killed
    store.append_result(path, {"run_id": "lost"})


@pytest.mark.parametrize("nth", [1, 2])  # 1: the copy is about to get its name; 2: the new file is about to
def test_a_process_killed_while_it_adds_columns_does_no_harm(nth, tmp_path, capsys):
    path = old_csv(tmp_path / "results.csv", OLD_HEADERS[0])
    before = path.read_bytes()
    process = multiprocessing.get_context("fork").Process(target=append_and_die, args=(path, nth))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and path.read_bytes() == before
    store.append_result(path, {"run_id": "new"})
    rows = store.read_results(path)
    check_rows(rows, OLD_HEADERS[0])
    assert [row["run_id"] for row in rows[2:]] == ["new"]
    assert [file.read_bytes() for file in tmp_path.glob("*before*")] == [before]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda header: [*header, "colour", "taste"], r"does not know: colour, taste; delete these columns, or pass"),
        (lambda header: [*header, "score"], "columns more than once: score"),
        (lambda header: [name for name in header if name != "run_id"], "is not a results CSV"),
    ],
)
def test_columns_that_nobody_knows_are_refused(change, message, tmp_path):
    path = tmp_path / "results.csv"
    path.write_text(",".join(change(OLD_HEADERS[0])) + "\n")
    before = path.read_bytes()
    for attempt in (lambda: store.read_results(path), lambda: store.append_result(path, {"run_id": "a"})):
        with pytest.raises(utils.UserError, match=message):
            attempt()
    assert path.read_bytes() == before and not list(tmp_path.glob("*before*"))


def test_an_earlier_csv_with_a_broken_row_is_left_alone(tmp_path):
    path = old_csv(tmp_path / "results.csv", OLD_HEADERS[0])
    path.write_bytes(path.read_bytes() + b"half,a,row\r\n")
    before = path.read_bytes()
    with pytest.raises(utils.UserError, match="line 4: 3 cells where 66 belong"):
        store.append_result(path, {"run_id": "a"})
    assert path.read_bytes() == before and not list(tmp_path.glob("*before*"))
