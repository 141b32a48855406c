import importlib
import json
import os
import sqlite3
import stat

import pytest
from row_helpers import log_rows, result_row, results_csv

import plot_results
import utils
from harness.results import export, outputs, store

FOREIGN = {
    "package.json": b'{"name": "mine", "version": "1.0.0"}\n',
    "records.json": b'[{"id": 1, "text": "a"}]\n',
    "train.jsonl": b'{"id": "1", "prompt": "a", "model": "m", "answer": "b"}\n',
    "notes.md": b"# Results\n\nMy own findings.\n",
    "data.csv": b"text,label\na,b\n",
    "other.run": b"q1 Q0 d1 1 0.5 bm25\n",
    "picture.png": b"\x89PNG\r\n\x1a\n....tEXtSoftware\0Matplotlib version3\n",
    "bytes.bin": bytes(range(256)) * 20,
}


@pytest.mark.parametrize("kind", outputs.KINDS)
def test_a_file_of_someone_else_is_never_replaced(kind, tmp_path):
    with sqlite3.connect(tmp_path / "own.db") as database:
        database.execute("CREATE TABLE results (id, score)")
    results_csv(tmp_path / "results.csv", log_rows()[:2])
    for name, data in FOREIGN.items():
        (tmp_path / name).write_bytes(data)
    for path in [path for path in tmp_path.iterdir() if path.stat().st_size]:
        before = path.read_bytes()
        with pytest.raises(utils.UserError, match="is not replaced; name another file"):
            outputs.write(path, "new", kind)
        assert path.read_bytes() == before


OWN = {
    "json": lambda path: path.write_text('[\n {"run_id":"a","script":"x.py","status":"ok"}\n]'),
    "answers": lambda path: path.write_text('{"script": "chat_eval.py", "id": 1}\n' * 2),
    "conversation": lambda path: path.write_text(json.dumps({"script": "chat_eval.py", "turns": []}, indent=2)),
    "run": lambda path: path.write_text("q Q0 d 1 0.5 rag_eval:k4_flat\nq Q0 e 2 0.4 rag_eval:k4_flat\n"),
    "report": lambda path: path.write_text("# Results\n\nFrom 3 of 4 rows of `r.csv`, measured on x\n"),
    "database": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("kind", OWN)
def test_an_own_file_and_an_empty_one_are_replaced_with_their_permissions(kind, tmp_path):
    path = tmp_path / "out"
    OWN[kind](path)
    path.chmod(0o640)
    outputs.write(path, "new \ud83d", kind)
    assert path.read_text() == "new ?" and stat.S_IMODE(path.stat().st_mode) == 0o640
    outputs.write(tmp_path / "fresh", b"new", kind)
    assert stat.S_IMODE((tmp_path / "fresh").stat().st_mode) == 0o666 & ~outputs.UMASK
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fresh", "out"]


def test_places_where_no_file_can_be(tmp_path):
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    places = {
        tmp_path: "is a folder",
        tmp_path / "pipe": "a pipe or a device",
        "/dev/null": "a pipe or a device",
        tmp_path / "none" / "r.csv": "there is no folder",
        tmp_path / "file" / "r.csv": "cannot be written",
        tmp_path / ("x" * 300): "cannot be written",
        tmp_path / "loop": "cannot be written|Too many",
        "a\0b": "is no file name",
    }
    for place, message in places.items():
        with pytest.raises(utils.UserError, match=message):
            outputs.check(place, "json")
        with pytest.raises(utils.UserError, match=message):
            store.check_results_file(place)
        with pytest.raises(utils.UserError):
            store.append_result(place, {"run_id": "a"})
    for place in (tmp_path / "pipe", tmp_path / "loop", "a\0b", tmp_path / ("x" * 300)):
        with pytest.raises(utils.UserError):
            store.read_results(place)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc")
def test_folders_that_look_writable_and_are_not():
    """Root has every permission in /proc, and can make nothing there."""
    for check in (outputs.check_folder, outputs.check_place):
        with pytest.raises(utils.UserError, match="/proc/a cannot be written: (nothing can be made|no permission)"):
            check("/proc/a", "--runs_dir")


def test_a_runs_dir_that_can_be_made_is_not_made_by_its_check(tmp_path):
    outputs.check_folder(tmp_path / "a/b", "--runs_dir")
    assert not list(tmp_path.iterdir())


def test_no_link_leads_a_write_elsewhere(tmp_path):
    """Names that a write may use for its temporary file are taken by links to a file of someone else."""
    precious, path = tmp_path / "precious", tmp_path / "results.csv"
    precious.write_text("mine")
    for name in ("results.csv.tmp", "results.csv.copy.tmp", "out.json.tmp", "results.csv.new"):
        os.symlink(precious, tmp_path / name)
    store.append_result(path, {"run_id": "a"})
    path.write_text("run_id,status\nold,ok\n")
    store.append_result(path, {"run_id": "b"})
    export.export(tmp_path / "out.json", store.read_results(path))
    assert precious.read_text() == "mine" and len(store.read_results(path)) == 2


def test_a_link_to_an_own_file_stays_a_link(tmp_path):
    (tmp_path / "kept").mkdir()
    path = tmp_path / "results.csv"
    os.symlink(tmp_path / "kept" / "r.csv", path)
    store.append_result(path, {"run_id": "a"})
    store.append_result(path, {"run_id": "b"})
    assert path.is_symlink() and len(store.read_results(tmp_path / "kept" / "r.csv")) == 2


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    path = tmp_path / "results.csv"
    for name in (".results.csv-abcdefgh.tmp", ".results.csv-mine.tmp", ".results.csv-abcdefgh.tmp.txt"):
        (tmp_path / name).write_text("x")
    store.append_result(path, {"run_id": "a"})
    left = {file.name for file in tmp_path.iterdir()}
    assert left - {"results.csv.lock"} == {"results.csv", ".results.csv-mine.tmp", ".results.csv-abcdefgh.tmp.txt"}


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "r.md"
    path.write_text("# Results\n\nFrom 3 of 4 rows of `r.csv`, measured on x\n")
    before = path.read_text()
    with (
        pytest.raises(utils.RunFailed, match="--report .* cannot be written: No space left"),
        outputs.new_file(path, "--report", utils.RunFailed) as temporary,
    ):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyboardInterrupt), outputs.new_file(path):
        raise KeyboardInterrupt
    assert path.read_text() == before and os.listdir(tmp_path) == ["r.md"]


def test_every_output_of_the_charts_script_is_guarded(tmp_path, capsys):
    source = results_csv(tmp_path / "r.csv", log_rows()[:4])
    folder = tmp_path / "plots"
    folder.mkdir()
    (folder / "scores_d.png").write_bytes(FOREIGN["picture.png"])
    for name, data in FOREIGN.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "own.db").write_bytes(b"not mine")
    wanted = [("--output_dir", folder), ("--export", tmp_path / "package.json"), ("--export", tmp_path / "own.db")]
    wanted += [("--report", tmp_path / "notes.md"), ("--report", source), ("--output_dir", tmp_path / "data.csv")]
    for flag, path in wanted:
        given = [flag, str(path)] + (["--output_dir", str(tmp_path / "elsewhere")] if flag == "--report" else [])
        with pytest.raises(SystemExit) as ended:
            plot_results.main(["--results", source, *given])
        error = capsys.readouterr().err
        assert ended.value.code == 2 and error.count("\n") == 1 and flag in error
    assert all((tmp_path / name).read_bytes() == data for name, data in FOREIGN.items())
    assert (folder / "scores_d.png").read_bytes() == FOREIGN["picture.png"]
    (folder / "scores_d.png").unlink()
    for _ in range(2):  # own files are replaced
        plot_results.main(["--results", source, "--output_dir", str(folder), "--report", str(tmp_path / "R.md")])
        for name in ("e.json", "e.db"):
            plot_results.main(["--results", source, "--export", str(tmp_path / name)])


def test_other_tables_of_an_exported_database_stay(tmp_path):
    file, rows = tmp_path / "r.db", store.read_results(results_csv(tmp_path / "r.csv", [result_row(score=0.5)]))
    export.export(file, rows)
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE notes (text)")
        database.execute("INSERT INTO notes VALUES ('mine')")
    export.export(file, rows * 2)
    with sqlite3.connect(file) as database:
        assert database.execute("SELECT text FROM notes").fetchall() == [("mine",)]
        assert database.execute("SELECT count(*) FROM results").fetchone() == (2,)


@pytest.mark.parametrize("script, flag", [("chat_eval", "--output"), ("rag_eval", "--save_run")])
def test_outputs_of_the_measuring_scripts_are_refused_before_anything_is_loaded(script, flag, tmp_path, capsys):
    for file, data in FOREIGN.items():
        (tmp_path / file).write_bytes(data)
    given = {"chat_eval": ["--mode", "batch", "--prompts", str(tmp_path / "notes.md")], "rag_eval": []}[script]
    for file in FOREIGN:
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(script).main([*given, flag, str(tmp_path / file)])
        error = capsys.readouterr().err
        assert ended.value.code == 2 and error.count("\n") == 1 and "is not replaced" in error
    assert all((tmp_path / file).read_bytes() == data for file, data in FOREIGN.items())
