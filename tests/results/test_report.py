from row_helpers import result_row, rows_as_read

from harness.results import compare, configurations, report


def test_a_study_is_what_differs_in_one_flag_alone(tmp_path):
    rows = [
        result_row(score=0.5 + rank / 100, seed=seed, variant=f"lora_r{rank}", flags={"rank": rank, "epochs": 2})
        for rank in (4, 8, 16)
        for seed in (0, 1)
    ]
    rows.append(result_row(score=0.9, variant="lora_r32", flags={"rank": 32, "epochs": 3}))
    ((flag, levels),) = compare.studies(configurations.group_seeds(rows_as_read(tmp_path, rows)))
    assert flag == "rank" and [level for level, _ in levels] == [4, 8, 16] and all(len(c.rows) == 2 for _, c in levels)


def test_left_out_rows_are_a_short_line_each():
    note = "learning rate 0.1; all 150 predictions are class 1; timed with the adapter unmerged"
    lines = report.left_out(
        [("a", f"status degenerate: {note}"), ("b", "status oom: " + "x " * 200), ("c", "no score")]
    )
    assert lines[0] == "a: status degenerate: all 150 predictions are class 1"
    assert lines[1].startswith("b: status oom: x x") and lines[1].endswith(" ...") and len(lines[1]) <= 110
    assert lines[2] == "c: no score"


def test_files_below_the_page_are_linked_relatively(tmp_path):
    assert str(report.link(tmp_path / "plots" / "a.png", tmp_path / "R.md")) == "plots/a.png"
    assert report.link(tmp_path / "a.png", tmp_path / "docs" / "R.md") == (tmp_path / "a.png").resolve()
