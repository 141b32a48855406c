import json
import math
import sqlite3

import pytest
from helpers import ROOT

import utils
from harness.results import export, schema, store


def blank(**cells):
    return {**dict.fromkeys(schema.RESULT_COLUMNS, ""), **cells}


@pytest.mark.parametrize("file", ["sample_results.csv", "benchmarks/results/chat_rows.csv"])
def test_every_cell_of_the_committed_rows_is_exported_with_its_type(file, tmp_path):
    rows = store.read_results(ROOT / file)
    export.export(tmp_path / "r.json", rows)
    export.export(tmp_path / "r.db", rows)
    with sqlite3.connect(tmp_path / "r.db") as database:
        database.row_factory = sqlite3.Row
        stored = [dict(row) for row in database.execute("SELECT * FROM results")]
    for rows_out in (json.loads((tmp_path / "r.json").read_text()), stored):
        assert len(rows_out) == len(rows) and list(rows_out[0]) == schema.RESULT_COLUMNS
        for row, out in zip(rows, rows_out):
            for column in schema.COLUMNS:
                cell, value = row[column.name], out[column.name]
                if not cell:
                    assert value is None, column
                elif column.type == "bool":
                    assert value == (cell == "True"), column
                elif column.type in ("int", "float"):
                    assert value == float(cell) and (column.type == "float" or isinstance(value, int)), column
                else:
                    assert value == cell, column


def test_odd_cells_and_other_files(tmp_path):
    rows = [blank(run_id="a", score="1e-7", n_eval="2.5"), blank(run_id="b", score="nan", latency_ms_p50="inf")]
    export.export(tmp_path / "r.json", rows)
    first, second = json.loads((tmp_path / "r.json").read_text())
    assert math.isclose(first["score"], 1e-7) and first["n_eval"] == 2.5
    assert second["score"] is None and second["latency_ms_p50"] is None
    for cells, message in (({"score": "high"}, "'high' where a number"), ({"git_dirty": "no"}, "'no' where True or")):
        with pytest.raises(utils.UserError, match=message):
            export.export(tmp_path / "r.json", [blank(**cells)])
    (tmp_path / "r.db").write_text("this is a text and no database, long enough to be read as one " * 20)
    with pytest.raises(utils.UserError, match="is no SQLite export"):
        export.export(tmp_path / "r.db", rows)
    export.export(tmp_path / "empty.json", [])
    assert json.loads((tmp_path / "empty.json").read_text()) == []
