import pytest
from helpers import log_rows, rows_as_read

from harness.results import charts, configurations


def test_the_bars_are_the_means_and_the_points_the_rows(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    kept, _ = configurations.select(rows_as_read(tmp_path, log_rows()))
    groups = {panel: configurations.group_seeds(members) for panel, members in configurations.panels(kept).items()}
    monkeypatch.setattr(plt, "close", lambda figure: None)
    charts.bar_chart(groups, tmp_path / "bars.png")
    axis = plt.gcf().axes[0]
    # grouped by strategy, the group with the best bar on top
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([0.6, 0.65, 0.7, 0.72, 0.64, 0.68, 0.76])
    assert "n = 100" in axis.get_title() and "a processor" in axis.get_title()
    charts.study_chart(groups, tmp_path / "rank.png", "rank", ("score", "trainable_params"))
    line = plt.gcf().axes[0].lines[0]
    assert list(line.get_xdata()) == [4, 8, 16] and list(line.get_ydata()) == pytest.approx([0.64, 0.68, 0.76])
    charts.frontier_chart(groups, tmp_path / "f.png", "latency_ms_p50")
    frontier = max(plt.gcf().axes[0].lines, key=lambda line: line.get_drawstyle() == "steps-post")
    assert list(frontier.get_ydata()) == pytest.approx([0.76])  # the fastest is the best here
