"""The tables of the sample log in README and docs are what their command writes."""

import importlib
import sys

import pytest
from helpers import ROOT


@pytest.fixture
def log_tables(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    for name in ("common", "log_tables"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("log_tables")


@pytest.mark.parametrize(
    "page, flags",
    [("docs/results.md", []), ("README.md", ["--data", "dolly_category", "tweets", "debian_section", "hans"])],
)
def test_pages_show_what_the_rows_say(log_tables, page, flags, tmp_path):
    text = (ROOT / page).read_text(encoding="utf-8")
    (tmp_path / "page.md").write_text(text.replace("0.570", "0.999"), encoding="utf-8")  # TF-IDF on hans
    log_tables.main([*flags, "--readme", str(tmp_path / "page.md"), "--output", str(tmp_path / "numbers.json")])
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == text


def test_no_score_on_the_examples_that_chose_a_default(log_tables, tmp_path, capsys):
    log_tables.main(["--data", "source", "hans", "--output", str(tmp_path / "numbers.json")])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| MiniLM, full ")]
    assert line == "| MiniLM, full |  | 0.522 |"


def test_a_budget_without_rows_is_one_line(log_tables, capsys):
    with pytest.raises(SystemExit) as stopped:
        log_tables.main(["--labels", "7"])
    assert stopped.value.code == 2 and "no row has this label budget" in capsys.readouterr().err
