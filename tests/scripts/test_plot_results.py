import itertools
import json
import sqlite3

import pytest
from helpers import ROOT, predictions
from PIL import Image
from row_helpers import log_rows, result_row, results_csv

import finetune
import plot_results
from harness.results import commands, configurations, plotting, schema, stats, store


def test_every_chart_that_has_rows_is_drawn_and_the_others_are_said(tmp_path, capsys):
    path = results_csv(tmp_path / "r.csv", log_rows())
    plot_results.main(
        ["--results", path, "--output_dir", str(tmp_path / "plots"), "--report", str(tmp_path / "RESULTS.md")]
    )
    said = capsys.readouterr().out
    drawn = {file.name for file in (tmp_path / "plots").glob("*.png")}
    assert drawn == {
        "scores_d.png",
        "latency_d.png",
        "latency_q.png",
        "scores_q.png",
        "memory_d.png",
        "memory_q.png",
        "training_cost_d.png",
        "rank_d.png",
        "learning_curves_d.png",
        "questions_q.png",
    }
    assert all(
        (tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG") and f"plots/{name}" in said for name in drawn
    )
    for missing in (
        "no loss_curves chart: ",
        "no target_modules chart: ",
        "no precision chart: ",
        "left out: full_finetuning-full-None-0-0: status oom",
    ):
        assert missing in said


def test_the_report_has_every_row_its_numbers_and_its_command(tmp_path):
    path = results_csv(tmp_path / "r.csv", log_rows())
    plot_results.main(
        ["--results", path, "--output_dir", str(tmp_path / "plots"), "--report", str(tmp_path / "RESULTS.md")]
    )
    text = (tmp_path / "RESULTS.md").read_text()
    kept, _ = configurations.select(store.read_results(path))
    for i, row in enumerate(kept, start=1):
        assert f"{i}. `{row['run_id']}`: `{commands.command(row)}`" in text
    for members in configurations.panels(kept).values():
        for c in configurations.group_seeds(members):
            line = next(line for line in text.splitlines() if line.startswith(f"| {c.name} | {len(c.rows)} |"))
            where = line.split(" | ")[-1].rstrip(" |").split()
            assert f" {c.mean():.3f}" in line and [kept[int(i) - 1]["run_id"] for i in where] == [
                row["run_id"] for row in c.rows
            ]
    for part in (
        "By rank (LoRA, m, 100 labels): 4: 0.640, 8: 0.680, 16: 0.760.",
        "cannot be told apart from that with n = 100",
        "![Scores with 95 % intervals, d](plots/scores_d.png)",
        "status oom: CUDA out of memory",
        "best of 3, chosen and reported on the same examples, at most about ",
        "cannot be detected at this n (80 % power)",
    ):
        assert part in text, part


def check_chart(figure, name):
    """At most 12 bars, unique names, no overlapping tick labels, no value under the majority line."""
    figure.draw_without_rendering()
    for axis in figure.axes:
        assert len(axis.patches) <= 12 * (2 if name.startswith("questions") else 1), name
        for ticks in (axis.get_xticklabels(), axis.get_yticklabels()):
            boxes = [label.get_window_extent() for label in ticks if label.get_text() and label.get_visible()]
            assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2)), name
        if axis.patches:
            names = [label.get_text() for label in axis.get_yticklabels() if label.get_text()]
            assert len(set(names)) == len(names), name
            for text, line in itertools.product(axis.texts, axis.lines):
                if line.get_linestyle() == "--":
                    x, _ = axis.transData.transform((line.get_xdata()[0], 0))
                    box = text.get_window_extent()
                    assert not box.x0 <= x <= box.x1, name


@pytest.mark.slow
def test_the_sample_log_is_drawn_and_reported(tmp_path, capsys, monkeypatch):
    """The rows that the project ships: a few readable PNGs of README size for each data set."""
    save, checked = plotting.save, []

    def check_and_save(figure, path):
        check_chart(figure, path.name)
        checked.append(path.name)
        save(figure, path)

    monkeypatch.setattr(plotting, "save", check_and_save)
    sample, page = ROOT / "sample_results.csv", tmp_path / "plots" / "R.md"  # in a folder that is not there yet
    plot_results.main(["--results", str(sample), "--output_dir", str(page.parent), "--report", str(page)])
    text = page.read_text()
    assert text.count("\n## ") >= 4 and "saved" in capsys.readouterr().out
    assert len(set(checked)) == len(checked) and "learning_curves_dolly_category.png" in checked
    for file in page.parent.glob("*.png"):
        assert f"]({file.name})" in text
        with Image.open(file) as image:
            assert 990 <= image.width <= 1000 and image.height <= 900, file.name
    panels = configurations.panels(configurations.select(store.read_results(sample))[0])
    kinds = [{f"{kind}_{panel.data}.png" for kind in ("scores", "latency", "memory")} for panel in panels]
    whole = [names for names in kinds if names <= set(checked)]
    assert len(whole) == min(len(kinds), plotting.MOST_PANELS), "the others have the fewest configurations"


def test_rows_go_to_sql_and_json_and_come_back(tmp_path, capsys):
    rows = [{**row, "git_commit": "12e4567"} for row in log_rows()]
    path = results_csv(tmp_path / "r.csv", rows)
    for _ in range(2):  # the second replaces the first
        plot_results.main(["--results", path, "--export", str(tmp_path / "r.db")])
    plot_results.main(["--results", path, "--export", str(tmp_path / "r.json")])
    with sqlite3.connect(tmp_path / "r.db") as database:
        (mean,) = database.execute("SELECT AVG(score) FROM results WHERE strategy = 'prompting'").fetchone()
        assert mean == pytest.approx(0.65) and database.execute("SELECT COUNT(*) FROM results").fetchone() == (
            len(rows),
        )
        assert database.execute("SELECT git_commit, score FROM results WHERE status = 'oom'").fetchone() == (
            "12e4567",
            None,
        )
    loaded = json.loads((tmp_path / "r.json").read_text())
    assert [row["score"] for row in loaded] == pytest.approx([row.get("score") for row in rows]) and loaded[0][
        "n_eval"
    ] == 100
    with pytest.raises(SystemExit) as ended:
        plot_results.main(["--results", path, "--export", str(tmp_path / "r.xlsx")])
    assert ended.value.code == 2 and "must end in .db or .sqlite" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "there is no results file"),
        ("", "is empty"),
        ("a,b\n1,2\n", "is not a results CSV"),
        (",".join(schema.RESULT_COLUMNS) + "\n", "nothing to draw"),
    ],
)
def test_a_results_file_that_cannot_be_drawn(tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "r.csv").write_text(content)
    with pytest.raises(SystemExit) as exit_:
        plot_results.main(["--results", str(tmp_path / "r.csv")])
    said = capsys.readouterr().err
    assert exit_.value.code == 2 and message in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "rows",
    [
        [result_row(score=0.7)],
        [result_row(score=0.7, strategy="magic", variant="wand", script="magic.py"), result_row(score=0.6)],
        [result_row(score=0.7), {**result_row(score=0.6), "score": float("nan")}],
        [result_row(score=0.7, score_low=None, score_high=None)],
        [result_row(score=0.7, latency_ms_p50=None, peak_rss_gb=None)],
    ],
)
def test_poor_rows_are_drawn_all_the_same(rows, tmp_path, capsys):
    plot_results.main(
        [
            "--results",
            results_csv(tmp_path / "r.csv", rows),
            "--output_dir",
            str(tmp_path),
            "--report",
            str(tmp_path / "R.md"),
        ]
    )
    assert (tmp_path / "scores_d.png").is_file() and "0.700" in (tmp_path / "R.md").read_text()


def test_only_failures_are_nothing_to_draw(tmp_path, capsys):
    path = results_csv(tmp_path / "r.csv", [result_row(score=None, status="oom", note="out of memory")])
    with pytest.raises(SystemExit) as ended:
        plot_results.main(["--results", path, "--output_dir", str(tmp_path)])
    said = capsys.readouterr()
    assert ended.value.code == 2 and "status oom: out of memory" in said.out and "no row with status ok" in said.err


def test_the_rows_as_markdown(capsys, tmp_path):
    plot_results.main(["--results", results_csv(tmp_path / "r.csv", [result_row(score=0.83)]), "--markdown"])
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 3 and len({line.count("|") for line in lines}) == 1
    assert "| full_finetuning | full | m | d, 100 | 0 | accuracy 0.830 [0.780, 0.880] | 10 |" in lines[2]
    plot_results.main(["--results", results_csv(tmp_path / "l.csv", log_rows()), "--markdown", "best"])
    lines = capsys.readouterr().out.strip().splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == ["peft", "full_finetuning", "prompting", "rag"]
    assert "| LoRA r=16, m, 100 labels | 2 | accuracy 0.760" in lines[0] and "0.720 ± 0.020" in lines[1]


def test_two_runs_are_compared_on_the_examples_that_both_have_seen(sentiment, tiny_bert, tmp_path, out, capsys):
    runs = []
    for seed, epochs in ((0, "6"), (1, "6"), (0, "1")):
        finetune.main(
            [
                "--model",
                tiny_bert,
                "--dataset",
                sentiment,
                "--epochs",
                epochs,
                "--seed",
                str(seed),
                "--learning_rate",
                "1e-3" if epochs == "6" else "1e-6",
                "--head_start",
                "random",
                "--max_eval_samples",
                "60" if seed else "50",
                *out,
            ]
        )
        runs.append(store.read_results(tmp_path / "results.csv")[-1])
    capsys.readouterr()
    plot_results.main(["--compare", runs[0]["run_dir"], runs[1]["run_dir"]])
    said = capsys.readouterr().out
    assert "on the 50 examples that both have; 0 and 10 others left out" in said
    assert "same score on all 50" in said or "no difference that n = 50 can show" in said, (
        "two seeds of one configuration"
    )
    plot_results.main(["--compare", runs[2]["run_dir"], runs[0]["run_dir"]])
    said = capsys.readouterr().out
    right = [[p["prediction"] == p["target"] for p in predictions(run)] for run in (runs[2], runs[0])]
    p, only_first, only_second = stats.mcnemar(*right)
    assert (
        p < 0.05
        and "the second is better" in said
        and f"{only_first} right only in the first, {only_second} only in the second" in said
    )
    for folder in (str(tmp_path), str(tmp_path / "nowhere")):
        with pytest.raises(SystemExit) as ended:
            plot_results.main(["--compare", runs[0]["run_dir"], folder])
        assert ended.value.code == 2 and "is no run folder" in capsys.readouterr().err
