"""Configurations, paired tests, charts, report and export: what is made of rows."""

import json
import math
import sqlite3
import statistics

import pytest
from conftest import ROOT, result_row, results_csv, write_jsonl

import plot_results
import report
import rows as table
import utils

SEEDS = [result_row(score=score, seed=seed, train_seconds=10 + seed, flags={"rank": 8}) for seed, score in enumerate((0.70, 0.74, 0.72))]


def read(tmp_path, rows):
    return utils.read_results(results_csv(tmp_path / "r.csv", rows))


def test_seeds_are_one_configuration_and_its_error_counts_examples_and_seeds(tmp_path):
    found = table.configurations(read(tmp_path, [*SEEDS, result_row(score=0.6, flags={"rank": 4})]))
    assert [len(c.rows) for c in found] == [3, 1] and [c.name.split(", ")[-1] for c in found] == ["rank 8", "rank 4"]
    many, one = found
    assert many.mean() == pytest.approx(0.72) and many.spread() == pytest.approx(statistics.stdev([0.70, 0.74, 0.72]))
    examples = 0.1 / 2 / 1.96
    assert many.standard_error == pytest.approx(math.sqrt(examples**2 + 0.02**2 / 3))
    assert one.interval == pytest.approx((0.55, 0.65)) and one.spread() is None
    assert many.mean("train_seconds") == 11 and one.mean("train_seconds") is None


@pytest.mark.parametrize("cell", ["nan", "inf", "", None])
def test_what_is_no_number_is_unknown(cell):
    row = {**dict.fromkeys(utils.RESULT_COLUMNS, ""), "score": cell}
    assert table.value(row, "score") is None and table.value(row, "memory") is None and table.value(row, "labels_used") == 0


def test_only_the_newest_ok_row_of_a_configuration_counts(tmp_path):
    rows = [
        SEEDS[0],
        {**SEEDS[0], "run_id": "newer"},
        result_row(score=0.5, status="oom", note="CUDA out of memory"),
        result_row(score=None),
    ]
    kept, skipped = table.select(read(tmp_path, rows))
    assert [row["run_id"] for row in kept] == ["newer"]
    assert [why for _, why in skipped] == ["the same configuration was run again as newer", "status oom: CUDA out of memory", "no score"]


def test_the_frontier_is_what_nothing_beats_in_both():
    points = [(3, 0.5), (1, 0.4), (2, 0.4), (2, 0.6), (5, 0.9), (6, 0.9), (7, 0.1)]
    kept = table.pareto(points)
    assert [points[i] for i in kept] == [(1, 0.4), (2, 0.6), (5, 0.9)]
    for i, (cost, score) in enumerate(points):
        beaten = any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)
        assert (i in kept) != beaten


@pytest.mark.parametrize("script, argv", [
    ("peft_finetune.py", "--rank 4 --max_train_samples 100 --gradient_checkpointing --dataset some/data"),
    ("rag_eval.py", "--docs a b --k 2 --retriever hybrid"), ("prompt_eval.py", "--k_shots 8 --calibrate batch --seed 3"),
    ("quantize_and_parallel.py", "--precision nf4 --no-double_quant"),
])  # fmt: skip
def test_the_command_of_a_row_gives_the_same_run(script, argv):
    import importlib
    import shlex

    module = importlib.import_module(script.removesuffix(".py"))
    parsed = vars(module.parse_args(argv.split()))
    words = shlex.split(table.command({"script": script, "run_id": "r", "args": json.dumps(parsed)}))
    assert words[:2] == ["python", script] and vars(module.parse_args(words[2:])) == parsed


# ----------------------------------------------------------------------------------------------------------- paired differences


def write_run(folder, row, right):
    """A run folder with its row and predictions; the row as read from a CSV."""
    write_jsonl(folder / "predictions.jsonl", [{"id": i, "target": "a", "prediction": "a" if r else "b"} for i, r in enumerate(right)])
    row = {**row, "run_dir": str(folder), "score": sum(right) / len(right)}
    (folder / "row.json").write_text(json.dumps(row))
    return {**dict.fromkeys(utils.RESULT_COLUMNS, ""), **{k: str(v) for k, v in row.items()}}


def runs(tmp_path, name, shares, n=400):
    import numpy as np

    made = []
    for seed, share in enumerate(shares):
        folder = tmp_path / f"{name}{seed}"
        folder.mkdir()
        right = np.random.default_rng([seed, len(name)]).random(n) < share
        made.append(write_run(folder, result_row(score=0.5, variant=name, seed=seed, n_eval=n), [bool(r) for r in right]))
    return table.Configuration(made, name)


def test_seeds_of_one_configuration_are_not_different_and_a_better_one_is(tmp_path):
    a, b, c = (runs(tmp_path, name, shares) for name, shares in (("a", [0.7] * 3), ("bb", [0.7] * 3), ("ccc", [0.8] * 3)))
    same, better = report.difference(a, b, tmp_path), report.difference(a, c, tmp_path)
    assert same.p > 0.05 and same.verdict().startswith("no difference that n = 400 can show") and same.low < 0 < same.high
    assert better.p < 0.05 and better.delta == pytest.approx(c.mean() - a.mean()) and better.verdict(("A", "C")) == "C is better"
    single = report.difference(table.Configuration(a.rows[:1]), table.Configuration(c.rows[:1]), tmp_path)
    assert "McNemar" in single.test
    for configuration in (a, c):  # without the folders the intervals alone are wider
        for row in configuration.rows:
            row["run_dir"] = "gone"
    alone = report.difference(a, c, tmp_path)
    assert alone.delta == pytest.approx(better.delta) and alone.high - alone.low > better.high - better.low and "intervals" in alone.test


def test_degrees_of_freedom_are_welchs():
    import numpy as np
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=4), rng.normal(0, 3, size=9)
    found = table.degrees_of_freedom([(a.var(ddof=1) / 4, 3), (b.var(ddof=1) / 9, 8)])
    assert found == pytest.approx(ttest_ind(a, b, equal_var=False).df)


def test_seeds_that_happen_to_differ_are_not_called_another_way(tmp_path, capsys):
    """McNemar alone would call these two seeds different; they are one configuration."""
    made = []
    for seed, share in ((0, 0.6), (1, 0.75)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        write_run(folder, result_row(score=share, seed=seed, n_eval=400), [i < share * 400 for i in range(400)])
        made.append(folder)
    report.compare(*made)
    said = capsys.readouterr().out
    assert "no difference between ways: the two are runs of one configuration with other seeds" in said and "is better" not in said
    write_run(tmp_path / "1", result_row(score=0.75, seed=1, n_eval=400, flags={"rank": 4}), [i < 300 for i in range(400)])
    report.compare(*made)
    assert "the second is better" in capsys.readouterr().out


def test_many_p_values_are_adjusted_as_statsmodels_does(tmp_path):
    found = [report.Difference(0.1, 0, 1, p, "t", 10) for p in (0.001, 0.02, 0.04, 0.3)]
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    assert report.adjusted(found) == pytest.approx(list(multitest.multipletests([d.p for d in found], method="fdr_bh")[1]))
    assert report.adjusted([]) == []


def test_a_study_is_what_differs_in_one_flag_alone(tmp_path):
    rows = [
        result_row(score=0.5 + rank / 100, seed=seed, variant=f"lora_r{rank}", flags={"rank": rank, "epochs": 2})
        for rank in (4, 8, 16)
        for seed in (0, 1)
    ]
    rows.append(result_row(score=0.9, variant="lora_r32", flags={"rank": 32, "epochs": 3}))
    ((flag, levels),) = report.studies(table.configurations(read(tmp_path, rows)))
    assert flag == "rank" and [level for level, _ in levels] == [4, 8, 16] and all(len(c.rows) == 2 for _, c in levels)


# ---------------------------------------------------------------------------------------------------------- charts and report


def log_rows():
    """Rows of several strategies, seeds, ranks and labels."""
    found = list(SEEDS)
    for k, score in ((0, 0.60), (4, 0.65), (8, 0.70)):
        found.append(result_row(score=score, script="prompt_eval.py", strategy="prompting", variant=f"{k}_shot", k_shots=k, n_train=k,
                                latency_ms_p50=100 + k, flags={"k_shots": k}))  # fmt: skip
    for rank in (4, 8, 16):
        for seed in (0, 1):
            found.append(result_row(score=0.6 + rank / 100, script="peft_finetune.py", strategy="peft", variant=f"lora_r{rank}", seed=seed,
                                    train_seconds=20, artifact_mb=0.3, trainable_params=1000 * rank, n_train=100,
                                    flags={"rank": rank, "max_train_samples": 100}))  # fmt: skip
    found.append(result_row(score=0.3, strategy="rag", script="rag_eval.py", variant="k4_flat", metric="token_f1", token_f1=0.3,
                            exact_match=0.1,                            macro_f1=None, eval_id="q", dataset="data/q"))  # fmt: skip
    found.append(result_row(score=None, status="oom", note="CUDA out of memory"))
    return found


def test_every_chart_that_has_rows_is_drawn_and_the_others_are_said(tmp_path, capsys):
    path = results_csv(tmp_path / "r.csv", log_rows())
    plot_results.main(["--results", path, "--output_dir", str(tmp_path / "plots"), "--report", str(tmp_path / "RESULTS.md")])
    said = capsys.readouterr().out
    drawn = {file.name for file in (tmp_path / "plots").glob("*.png")}
    assert drawn == {"scores.png", "latency_vs_score.png", "memory_vs_score.png", "training_cost.png", "rank.png", "learning_curves.png",
                     "questions.png"}  # fmt: skip
    assert all((tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG") and f"plots/{name}" in said for name in drawn)
    for missing in (
        "no loss_curves.png: ",
        "no target_modules.png: ",
        "no precision.png: ",
        "not drawn: full_finetuning-full-None-0-0 (status oom",
    ):
        assert missing in said


def test_the_bars_are_the_means_and_the_points_the_rows(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    kept, _ = table.select(read(tmp_path, log_rows()))
    groups = {panel: table.configurations(members) for panel, members in table.panels(kept).items()}
    monkeypatch.setattr(plt, "close", lambda figure: None)
    plot_results.bar_chart(groups, tmp_path / "bars.png")
    axis = plt.gcf().axes[0]
    # grouped by strategy, the group with the best bar on top
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([0.6, 0.65, 0.7, 0.72, 0.64, 0.68, 0.76])
    assert "n = 100" in axis.get_title() and "a processor" in axis.get_title()
    plot_results.study_chart(groups, tmp_path / "rank.png", "rank", ("score", "trainable_params"))
    line = plt.gcf().axes[0].lines[0]
    assert list(line.get_xdata()) == [4, 8, 16] and list(line.get_ydata()) == pytest.approx([0.64, 0.68, 0.76])
    plot_results.frontier_chart(groups, tmp_path / "f.png", "latency_ms_p50")
    frontier = max(plt.gcf().axes[0].lines, key=lambda line: line.get_drawstyle() == "steps-post")
    assert list(frontier.get_ydata()) == pytest.approx([0.76])  # the fastest is the best here


def test_the_report_has_every_row_its_numbers_and_its_command(tmp_path):
    path = results_csv(tmp_path / "r.csv", log_rows())
    plot_results.main(["--results", path, "--output_dir", str(tmp_path / "plots"), "--report", str(tmp_path / "RESULTS.md")])
    text = (tmp_path / "RESULTS.md").read_text()
    kept, _ = table.select(utils.read_results(path))
    for i, row in enumerate(kept, start=1):
        assert f"{i}. `{row['run_id']}`: `{table.command(row)}`" in text
    for members in table.panels(kept).values():
        for c in table.configurations(members):
            line = next(line for line in text.splitlines() if line.startswith(f"| {c.name} | {len(c.rows)} |"))
            where = line.split(" | ")[-1].rstrip(" |").split()
            assert f" {c.mean():.3f}" in line and [kept[int(i) - 1]["run_id"] for i in where] == [row["run_id"] for row in c.rows]
    for part in ("By rank (peft, m): 4: 0.640, 8: 0.680, 16: 0.760.", "cannot be told apart from it with n = 100",
                 "![Scores with 95 % intervals](plots/scores.png)",
                 "status oom: CUDA out of memory", "about "):  # fmt: skip
        assert part in text, part


def test_the_sample_log_is_drawn_and_reported(tmp_path, capsys):
    """The rows that the project ships."""
    plot_results.main(["--results", str(ROOT / "sample_results.csv"), "--output_dir", str(tmp_path), "--report", str(tmp_path / "R.md")])
    assert (tmp_path / "R.md").read_text().count("\n## ") >= 4 and "saved" in capsys.readouterr().out


def test_rows_go_to_sql_and_json_and_come_back(tmp_path, capsys):
    rows = [{**row, "git_commit": "12e4567"} for row in log_rows()]
    path = results_csv(tmp_path / "r.csv", rows)
    for _ in range(2):  # the second replaces the first
        plot_results.main(["--results", path, "--export", str(tmp_path / "r.db")])
    plot_results.main(["--results", path, "--export", str(tmp_path / "r.json")])
    with sqlite3.connect(tmp_path / "r.db") as database:
        (mean,) = database.execute("SELECT AVG(score) FROM results WHERE strategy = 'prompting'").fetchone()
        assert mean == pytest.approx(0.65) and database.execute("SELECT COUNT(*) FROM results").fetchone() == (len(rows),)
        assert database.execute("SELECT git_commit, score FROM results WHERE status = 'oom'").fetchone() == ("12e4567", None)
    loaded = json.loads((tmp_path / "r.json").read_text())
    assert [row["score"] for row in loaded] == pytest.approx([row.get("score") for row in rows]) and loaded[0]["n_eval"] == 100
    with pytest.raises(SystemExit) as ended:
        plot_results.main(["--results", path, "--export", str(tmp_path / "r.xlsx")])
    assert ended.value.code == 2 and "the ending says the kind" in capsys.readouterr().err


@pytest.mark.parametrize("content, message", [
    (None, "there is no results file"), ("", "is empty"), ("a,b\n1,2\n", "is not a results CSV"),
    (",".join(utils.RESULT_COLUMNS) + "\n", "nothing to draw"),
])  # fmt: skip
def test_a_results_file_that_cannot_be_drawn(tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "r.csv").write_text(content)
    with pytest.raises(SystemExit) as exit_:
        plot_results.main(["--results", str(tmp_path / "r.csv")])
    said = capsys.readouterr().err
    assert exit_.value.code == 2 and message in said and said.count("\n") == 1


@pytest.mark.parametrize("rows", [
    [result_row(score=0.7)], [result_row(score=0.7, strategy="magic", variant="wand", script="magic.py"), result_row(score=0.6)],
    [result_row(score=0.7), {**result_row(score=0.6), "score": float("nan")}], [result_row(score=0.7, score_low=None, score_high=None)],
    [result_row(score=0.7, latency_ms_p50=None, peak_rss_gb=None)],
])  # fmt: skip
def test_poor_rows_are_drawn_all_the_same(rows, tmp_path, capsys):
    plot_results.main(
        ["--results", results_csv(tmp_path / "r.csv", rows), "--output_dir", str(tmp_path), "--report", str(tmp_path / "R.md")]
    )
    assert (tmp_path / "scores.png").is_file() and "0.700" in (tmp_path / "R.md").read_text()


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
    assert "| full_finetuning | full | m | d, 100 | accuracy 0.830 [0.780, 0.880] | 10 |" in lines[2]
    plot_results.main(["--results", results_csv(tmp_path / "l.csv", log_rows()), "--markdown", "best"])
    lines = capsys.readouterr().out.strip().splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == ["peft", "full_finetuning", "prompting", "rag"]
    assert "| lora_r16, m | 2 | accuracy 0.760" in lines[0] and "0.720 ± 0.020" in lines[1]


def test_a_run_folder_is_found_from_where_the_script_ran_or_beside_the_csv(tmp_path, monkeypatch):
    (tmp_path / "demo/runs/a").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    assert table.run_folder({"run_dir": "demo/runs/a"}, "demo").is_dir()  # as `make demo` writes it
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert table.run_folder({"run_dir": "runs/a"}, tmp_path / "demo").is_dir()
    assert not table.run_folder({"run_dir": "runs/b"}, tmp_path / "demo").is_dir()
    assert table.run_folder({"run_dir": ""}, tmp_path / "demo") != tmp_path / "demo"
