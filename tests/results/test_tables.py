from row_helpers import log_rows, result_row, rows_as_read

from harness.results import configurations, markdown, tables


def test_a_markdown_table_keeps_its_columns():
    text = markdown.table(("a", "b"), [[1, None], ["x|y", "two\nlines"]])
    assert text == "| a | b |\n| --- | --- |\n| 1 |  |\n| x\\|y | two lines |"
    assert markdown.table(["a"], []) == "| a |\n| --- |"


def test_the_printed_table_leaves_out_empty_columns(tmp_path, capsys):
    rows = rows_as_read(tmp_path, [result_row(score=0.7, reference_perplexity=None), result_row(score=0.65, seed=1)])
    ((panel, members),) = configurations.panels(rows).items()
    tables.print_table(panel, members)
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == "d, n = 100, a processor, accuracy" and len(lines) == 4
    assert "reference_perplexity" not in lines[1] and "latency_ms_p50" in lines[1] and "0.65" in lines[3]


def test_a_run_without_a_score_shows_its_status(tmp_path, capsys):
    tables.print_markdown(rows_as_read(tmp_path, log_rows()))
    lines = capsys.readouterr().out.strip().splitlines()
    assert "| oom |" in lines[-1] and len({line.count("|") for line in lines}) == 1


def test_score_cells():
    assert tables.number(None) == "" and tables.number(0.12345) == "0.123" and tables.number(12.3, 0) == "12"
