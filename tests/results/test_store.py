import csv
import itertools
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from helpers import ROOT

import utils
from harness.results import schema, store


def test_judgements_of_any_text_can_be_written_and_read_again(tmp_path):
    file = tmp_path / "judgements.jsonl"
    store.append_jsonl(file, [{"key": "a", "text": "B \ud83d é"}])
    file.write_bytes(file.read_bytes() + '{"key": "b", "text": "é'.encode()[:-1])  # a kill within a character
    store.append_jsonl(file, [{"key": "c"}])
    assert [record["key"] for record in store.read_jsonl(file)] == ["a", "c"]


def test_json_lines_are_written_and_read(tmp_path):
    file, records = tmp_path / "a.jsonl", [{"text": "ein\u2028Wort é 🙂"}, {}, {"n": [1.5, None]}]
    store.write_jsonl(file, records)
    assert store.read_jsonl(file) == records and "é 🙂" in file.read_text(encoding="utf-8")
    file.write_bytes(file.read_bytes().rstrip(b"\n"))  # whole, but for its line break
    store.append_jsonl(file, [{"last": 1}])
    assert store.read_jsonl(file) == [*records, {"last": 1}]
    assert store.read_jsonl(tmp_path / "none.jsonl") == []
    store.write_jsonl(file, [{"day": Path("x"), "half": "\ud83d"}], default=str)
    assert store.read_jsonl(file) == [{"day": "x", "half": "?"}]
    with pytest.raises(TypeError):
        store.write_jsonl(file, [{"day": Path("x")}])


@pytest.mark.parametrize("line", [b'{"a": 1', b"[1]", b"\xff"])
def test_a_broken_json_line_is_named(tmp_path, line):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(utils.UserError, match=r"a\.jsonl, line 3: not a JSON object"):
        store.read_jsonl(file)
    with pytest.raises(utils.UserError, match="cannot be read"):
        store.read_jsonl(tmp_path)


def append_many(path, worker, n):
    for i in range(n):
        store.append_result(path, {"run_id": f"{worker}-{i}", "note": "x" * 3000, "score": i})


@pytest.mark.parametrize("workers, each", [(4, 20), pytest.param(8, 200, marks=pytest.mark.slow)])
def test_processes_append_whole_rows_at_once(workers, each, tmp_path):
    path = tmp_path / "results.csv"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=append_many, args=(path, worker, each)) for worker in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    rows = store.read_results(path)
    assert {row["run_id"] for row in rows} == {f"{w}-{i}" for w in range(workers) for i in range(each)}
    assert len(rows) == workers * each and all(len(row["note"]) == 3000 for row in rows)


def append_forever(path, worker, ready):
    ready.send(True)
    for i in itertools.count():
        store.append_result(path, {"run_id": f"{worker}-{i}", "note": "y" * 200_000})


@pytest.mark.slow
def test_a_process_killed_while_appending_leaves_whole_rows(tmp_path):
    """50 kills at spread-out moments; every read in between finds the rows of before, and the next append works."""
    path = tmp_path / "results.csv"
    context = multiprocessing.get_context("fork")  # at once ready, which a new interpreter is not
    n_before = killed_between = 0
    for attempt in range(50):
        here, there = context.Pipe()
        process = context.Process(target=append_forever, args=(path, attempt, there))
        process.start()
        here.recv()
        time.sleep(0.002 + 0.0015 * attempt)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        if path.exists():
            rows = store.read_results(path)
            assert len(rows) >= n_before and all(len(row["note"]) == 200_000 for row in rows)
            killed_between += len(rows) > n_before
            n_before = len(rows)
        if path.exists() and path.stat().st_size > 5e6:  # keep the file small, so that each kill meets many appends
            path.unlink()
            n_before = 0
    assert killed_between >= 20  # most kills came after the process had begun to append
    store.append_result(path, {"run_id": "after"})
    assert store.read_results(path)[-1]["run_id"] == "after"


def test_unknown_is_empty_and_a_row_is_one_line(tmp_path):
    path = tmp_path / "results.csv"
    store.append_result(
        path, {"run_id": "a", "score": float("nan"), "n_eval": 0, "git_dirty": False, "note": 'two\nlines, "quoted"'}
    )
    with open(path, newline="") as file:
        header, cells = list(csv.reader(file))
    assert header == schema.RESULT_COLUMNS and len(path.read_text().splitlines()) == 2
    row = dict(zip(header, cells))
    assert (row["score"], row["accuracy"], row["n_eval"], row["git_dirty"]) == ("", "", "0", "False")
    assert row["note"] == 'two lines, "quoted"'


def test_a_drifted_header_is_refused_and_named(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text(",".join([*schema.RESULT_COLUMNS[:-1], "colour"]) + "\n")
    before = path.read_bytes()
    with pytest.raises(utils.UserError, match=r"columns that this version does not know: colour; delete"):
        store.append_result(path, {"run_id": "a"})
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="colour"):
        store.append_result(tmp_path / "other.csv", {"colour": 1})


@pytest.mark.parametrize(
    "content, message",
    [(b"", "is empty"), (b"\xff\xfe\x00", "cannot be read"), (b"a,b\n1,2\n", "is not a results CSV")],
)
def test_a_foreign_or_broken_file_is_one_clear_error(tmp_path, content, message):
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(utils.UserError, match=message):
        store.read_results(path)


def test_a_row_with_a_missing_cell_is_named_by_its_line(tmp_path):
    path = tmp_path / "results.csv"
    store.append_result(path, {"run_id": "a"})
    with open(path, "a") as file:
        file.write("half,a,row\r\n")
    with pytest.raises(utils.UserError, match="line 3: 3 cells"):
        store.read_results(path)


def test_a_last_line_without_line_break_is_not_glued(tmp_path):
    path = tmp_path / "results.csv"
    store.append_result(path, {"run_id": "a"})
    path.write_bytes(path.read_bytes().rstrip(b"\r\n"))
    store.append_result(path, {"run_id": "b"})
    assert [row["run_id"] for row in store.read_results(path)] == ["a", "b"]


def test_the_sample_rows_have_this_versions_header():
    """And are of committed code: where another file was changed, other rows tell of the same code without changes."""
    rows = store.read_results(ROOT / "sample_results.csv")
    committed = {(row["script"], row["code_id"]) for row in rows if row["git_dirty"] == "False"}
    assert len(rows) >= 10 and all(row["git_commit"] for row in rows)
    assert all((row["script"], row["code_id"]) in committed for row in rows)


def saved_as(path, change):
    """A results CSV of two rows, its bytes changed as a spreadsheet or an editor would."""
    for name, score in (("a", 0.75), ("b", 0.5)):
        store.append_result(path, {"run_id": name, "status": "ok", "score": score})
    path.write_bytes(change(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"\xef\xbb\xbf" + data,  # CSV UTF-8 of a spreadsheet
        lambda data: data.replace(b"\r\n", b"\n") + b"\n\n",
        lambda data: data + b"," * (len(schema.RESULT_COLUMNS) - 1) + b"\r\n",  # a cleared row
        lambda data: data + data.splitlines(keepends=True)[0],  # two files joined
    ],
    ids=["byte order mark", "line feeds and gaps", "cleared row", "second header"],
)
def test_a_csv_that_other_programs_saved_is_read_and_appended_to(change, tmp_path):
    path = saved_as(tmp_path / "r.csv", change)
    store.check_results_file(path)
    store.append_result(path, {"run_id": "c"})
    assert [row["run_id"] for row in store.read_results(path)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda data: data.replace(b",", b";"), "separated by semicolons"),
        (lambda data: data.replace(b",", b"\t"), "separated by tabs"),
        (lambda data: data.decode().encode("utf-16"), "not UTF-8"),
        (lambda data: data.replace(b"ok", "ök".encode("cp1252")), "not UTF-8"),
    ],
)
def test_a_csv_that_must_be_saved_again_is_named(change, message, tmp_path):
    path = saved_as(tmp_path / "r.csv", change)
    before = path.read_bytes()
    for use in (store.read_results, store.check_results_file, lambda p: store.append_result(p, {"run_id": "c"})):
        if use is store.read_results or "UTF-8" not in message:
            with pytest.raises(utils.UserError, match=message):
                use(path)
    assert path.read_bytes() == before
    with pytest.raises(utils.UserError, match="'0,75' where a number belongs; write numbers with a decimal point"):
        store.number("0,75")


def test_cells_that_a_spreadsheet_would_run_are_texts_and_numbers_stay_numbers(tmp_path):
    path = tmp_path / "r.csv"
    texts = ["=1+1", "+cmd", "-x", "@SUM(A1)", "\tx", "'=1", "''@a", "'quoted'", "a=b", "-1.5"]
    for text in texts:
        store.append_result(path, {"run_id": text, "score": -0.5, "dataset": text})
    with open(path, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    for text, line in zip(texts, lines):
        assert line["score"] == "-0.5"
        assert line["dataset"][0] not in "=+-@\t" or text == "-1.5"
    assert [row["dataset"] for row in store.read_results(path)] == texts
    # and once more, where the file gets the columns that it lacks
    path.write_bytes(b"\r\n".join(b",".join(line.split(b",")[:9]) for line in path.read_bytes().splitlines()))
    store.append_result(path, {"run_id": "last"})
    assert [row["run_id"] for row in store.read_results(path)] == [*texts, "last"]


def test_columns_in_another_order_are_no_new_columns(tmp_path, capsys):
    path = tmp_path / "r.csv"
    path.write_bytes(store.csv_lines([schema.RESULT_COLUMNS[::-1]]))
    store.append_result(path, {"run_id": "a", "score": 0.5})
    (row,) = store.read_results(path)
    assert (row["run_id"], row["score"], capsys.readouterr().out) == ("a", "0.5", "")
    assert not list(tmp_path.glob("*.before-new-columns"))


def test_a_file_name_in_another_encoding_costs_no_row(tmp_path):
    store.append_result(tmp_path / "r.csv", {"run_id": "a", "dataset": os.fsdecode(b"caf\xe9.csv")})
    (row,) = store.read_results(tmp_path / "r.csv")
    assert row["dataset"] == "caf\\udce9.csv"
