import itertools
import json

import matplotlib.pyplot as plt
import pytest
from helpers import ROOT
from row_helpers import log_rows, result_row, results_csv, rows_as_read

import plot_results
from harness.results import charts, configurations, plotting, store, study_charts
from harness.training import curves


def grouped(rows):
    kept, _ = configurations.select(rows)
    return {panel: configurations.group_seeds(members) for panel, members in configurations.panels(kept).items()}


def first_panel(rows):
    return next(iter(grouped(rows).items()))


def overlaps(boxes):
    """Pairs of boxes that share pixels."""
    return [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]


def test_the_bars_are_the_means_and_the_points_the_rows(tmp_path):
    groups = grouped(rows_as_read(tmp_path, log_rows()))
    panel, members = next(iter(groups.items()))
    axis = charts.score_chart(panel, members).axes[0]
    # grouped by strategy, the group with the best bar on top
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([0.6, 0.65, 0.7, 0.72, 0.64, 0.68, 0.76])
    title = charts.headings(groups, {panel.data: 1})[panel]
    assert "n = 100" in title and "a processor" in title and "1 row left out" in title
    figure = study_charts.study_chart(panel, members, "rank", ("score", "trainable_params"))
    line = figure.axes[0].lines[0]
    assert list(line.get_xdata()) == [4, 8, 16] and list(line.get_ydata()) == pytest.approx([0.64, 0.68, 0.76])
    axis = charts.frontier_chart(panel, members, "latency_ms_p50").axes[0]
    frontier = max(axis.lines, key=lambda line: line.get_drawstyle() == "steps-post")
    assert list(frontier.get_ydata()) == pytest.approx([0.76])  # the fastest is the best here
    assert "Pareto frontier" in [text.get_text() for text in axis.get_legend().get_texts()]


def test_the_best_of_each_strategy_has_a_bar_and_the_rest_a_line():
    groups = grouped(store.read_results(ROOT / "benchmarks" / "results" / "older_rows.csv"))
    panel, members = next(pair for pair in groups.items() if pair[0].data == "movie_reviews")
    bars, note = plotting.bars_of(members, ", see report.md")
    for strategy in {c["strategy"] for c in members}:
        assert max((c for c in members if c["strategy"] == strategy), key=lambda c: c.mean()) in bars
    others = [c.mean() for c in members if c not in bars]
    assert len(bars) == 12 and len(others) == 23
    assert note == f"23 more with scores from {min(others):.3f} to {max(others):.3f}, see report.md"
    assert note in charts.score_chart(panel, members, ", see report.md").axes[0].get_xlabel()


def test_two_panels_of_one_data_set_get_two_files(tmp_path):
    rows = [
        result_row(score=0.7),
        result_row(score=0.6, n_eval=50, eval_id="f"),
        result_row(score=0.5, device_name="another processor"),
        result_row(score=0.4, eval_id="g"),
        result_row(score=0.3, dataset="data/D", eval_id="h"),
    ]
    groups = grouped(rows_as_read(tmp_path, rows))
    names = list(charts.file_names(groups).values())
    assert len(set(names)) == 5 and names[1] == "d_n_50" and all(name.startswith("d_") for name in names)
    drawn = charts.draw(groups, tmp_path, tmp_path / "r.csv")
    assert len({file for files in drawn.values() for file in files}) == len(list(tmp_path.glob("*.png"))) == 15
    titles = charts.headings(groups, {})
    assert sum("examples " in title for title in titles.values()) == 2  # those that nothing else tells apart


def test_ticks_of_a_narrow_and_a_wide_latency_axis(tmp_path):
    for latencies in ([33, 34], [9, 10, 900, 12_000], [0.4, 3], [1000]):
        rows = [
            result_row(score=0.5 + i / 100, variant=f"v{i}", latency_ms_p50=ms, flags={"rank": i})
            for i, ms in enumerate(latencies)
        ]
        folder = tmp_path / str(latencies[0])
        folder.mkdir()
        figure = charts.frontier_chart(*first_panel(rows_as_read(folder, rows)), "latency_ms_p50")
        figure.canvas.draw()
        labels = figure.axes[0].get_xticklabels()
        assert len(labels) >= 2 and not overlaps([label.get_window_extent() for label in labels])
        assert all(set(label.get_text()) <= set("0123456789.,") for label in labels)  # plain numbers, no powers of ten


def test_loss_curves_of_the_runs_whose_folders_are_there(tmp_path, capsys):
    rows = [
        result_row(score=0.5 + i / 100, train_seconds=5, run_dir=f"runs/{i}", flags={"rank": i + 1}) for i in range(10)
    ]
    history = [{"step": step, "loss": 1 / step, "eval_loss": 2 / step} for step in range(1, 6)]
    for i in range(9):
        (tmp_path / "runs" / str(i)).mkdir(parents=True)
        (tmp_path / "runs" / str(i) / "training_history.json").write_text(json.dumps(history))
    panel, members = first_panel(rows_as_read(tmp_path, rows))
    axis = charts.loss_chart(panel, members, tmp_path).axes[0]
    assert len(axis.lines) == 16 and "1 more with lower scores left out" in axis.get_xlabel()
    assert charts.loss_chart(panel, members, tmp_path / "elsewhere") is None
    charts.draw({panel: members}, tmp_path, tmp_path / "r.csv")
    assert (tmp_path / "loss_curves_d.png").is_file()


@pytest.mark.parametrize("history", [[{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4, "eval_accuracy": 0.9}], []])
def test_training_curves_are_a_png(tmp_path, history):
    curves.training_curves(history, tmp_path / "curves.png", "a run")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_long_names_do_not_overlap(tmp_path):
    rows = [
        result_row(
            score=0.5 + i / 100,
            strategy="context_distillation",
            variant="16_shot_contextual_calibrated_to_lora_r16_online",
            flags={"instruction": f"{i} an instruction that says a lot"},
        )
        for i in range(14)
    ]
    panel, members = first_panel(rows_as_read(tmp_path, rows))
    figure = charts.score_chart(panel, members)
    figure.draw_without_rendering()
    axis = figure.axes[0]
    labels = axis.get_yticklabels()
    assert max(label.get_text().count("\n") for label in labels) == 2 and figure.get_figheight() <= 7.5
    assert not overlaps([label.get_window_extent() for label in labels])
    assert (
        len({label.get_text() for label in labels}) == 12
        and "2 more with scores from 0.500 to 0.510" in axis.get_xlabel()
    )


def test_names_are_drawn_as_they_are_and_large_logs_get_a_readable_number_of_charts(tmp_path, capsys):
    rows = [
        result_row(score=0.5 + i / 100, dataset=f"data/$d_{i}^{{", eval_id=str(i), model="a/$\\frac_m$ and $")
        for i in range(plotting.MOST_PANELS + 3)
    ]
    groups = grouped(rows_as_read(tmp_path, rows))
    open_before = plt.get_fignums()
    drawn = charts.draw(groups, tmp_path, tmp_path / "r.csv")
    said = capsys.readouterr().out
    assert len(list(tmp_path.glob("scores_*.png"))) == plotting.MOST_PANELS and list(drawn) == list(groups)
    assert "no charts of 3 more data sets" in said
    assert plt.get_fignums() == open_before  # no figure is kept while others are drawn


def test_learning_curves_go_by_all_labels_that_were_used(tmp_path):
    """Validation labels count; a row whose labels are unknown is on no line."""
    trained = [
        result_row(score=0.6 + n / 1000, n_train=n, labels_used=n + 40, flags={"max_train_samples": n})
        for n in (50, 100)
    ]
    prompts = [
        result_row(score=0.5, strategy="prompting", variant=f"{k}_shot", k_shots=k, n_train=k, flags={"k_shots": k})
        for k in (0, 8)
    ]
    unknown = result_row(score=0.9, n_train=5, labels_used=None, flags={"max_train_samples": 5})
    panel, members = first_panel(rows_as_read(tmp_path, [*trained, *prompts, unknown]))
    lines = [line for line in study_charts.learning_curves(panel, members).axes[0].lines if line.get_marker() == "o"]
    assert sorted(list(line.get_xdata()) for line in lines) == [[0, 8], [90, 140]]


def test_what_training_broke_is_drawn_and_reported(tmp_path):
    broke = [("peft", "lora_r8", 0.71, 0.03, -0.02), ("full_finetuning", "full", 0.73, 0.21, -0.15)]
    rows = [
        result_row(strategy=s, variant=v, score=score, n_train=100, forgetting=bits, retained_change=change)
        for s, v, score, bits, change in broke
    ]
    rows.append(result_row(strategy="prompting", variant="0_shot", score=0.5))
    path = results_csv(tmp_path / "r.csv", rows)
    plot_results.main(["--results", path, "--output_dir", str(tmp_path), "--report", str(tmp_path / "R.md")])
    assert (tmp_path / "forgetting_d.png").stat().st_size > 10_000
    said = "Full fine-tuning, m, 100 labels (+0.210 bits, -15.0 points); LoRA r=8, m, 100 labels (+0.030 bits"
    assert said in (tmp_path / "R.md").read_text()
    members = configurations.group_seeds(store.read_results(path))
    figure = study_charts.forgetting_chart(None, members)
    assert [[bar.get_width() for bar in axis.patches] for axis in figure.axes[1:]] == [[0.03, 0.21], [-0.02, -0.15]]
