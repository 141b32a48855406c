"""What the charts share: sizes, colours, names beside bars, plain ticks that do not overlap."""

import math
import textwrap

import matplotlib
import matplotlib.pyplot as plt
import matplotlib.ticker as ticker

from harness.results import configurations, names, outputs, schema

matplotlib.use("Agg")  # PNGs only, so no display is needed
matplotlib.rcParams["text.parse_math"] = False  # names are drawn as they are: a $ in one begins no formula

COLOURS = dict(zip(names.STRATEGIES, [*(f"C{i}" for i in range(10)), "black", "gold"]))  # there are ten C
DPI = 120
WIDTH = 1000 / DPI  # inches; a README shows 1000 pixels at about 800
MOST_BARS = 12
MOST_LINES = 8
MOST_PANELS = 12  # that get charts of their own: up to ten PNGs each
MOST_TICKS = 60  # that are tried; about a dozen fit beside each other
NAME_WIDTH = 38  # characters of a name in one line


def save(figure, path):
    """Write a PNG and close its figure; UserError where the file at `path` is no chart of this project."""
    outputs.check(path, "chart", "--output_dir")
    with outputs.new_file(path, "--output_dir") as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": f"{outputs.PNG_SOFTWARE}, Matplotlib"})
    plt.close(figure)


def new_figure(height, columns=1):
    """A figure of the common width and a row of axes; height in inches."""
    figure, axes = plt.subplots(1, columns, figsize=(WIDTH, height), dpi=DPI, squeeze=False, layout="constrained")
    return figure, axes[0]


def axis_name(column):
    metric = schema.METRICS.get(column)
    return column if metric is None else metric.label + (f", {metric.unit}" if metric.unit else "")


def colour(configuration):
    return COLOURS.get(configuration.kin, "C7")


def errors(configuration):
    """How far the 95 % interval reaches below and above the mean score; NaN, which draws no bar, where unknown."""
    low, high = configuration.interval
    if low is None or high is None:
        return math.nan, math.nan
    return max(0, configuration.mean() - low), max(0, high - configuration.mean())


def with_value(members, *columns):
    return [c for c in members if all(c.mean(column) is not None for column in columns)]


def wrapped(text, width=NAME_WIDTH):
    """A name in lines of at most `width` characters, broken after commas and before brackets, else anywhere."""
    text = (
        text.replace(" ", "\N{NO-BREAK SPACE}")
        .replace(",\N{NO-BREAK SPACE}", ", ")
        .replace("\N{NO-BREAK SPACE}(", " (")
    )
    return textwrap.fill(text, width, break_on_hyphens=False).replace("\N{NO-BREAK SPACE}", " ")


def bars_of(members, more):
    """(at most MOST_BARS configurations, a line about the others): the best of each strategy, then the next best.

    In the order of the bars from the bottom up: grouped by strategy, the best group and the best of a group last.
    """
    ranked = sorted(members, key=lambda c: (not c.usable, -c.mean()))
    best = list({c.kin: c for c in reversed(ranked)}.values())
    chosen = sorted(best, key=ranked.index)[:MOST_BARS]
    chosen += [c for c in ranked if c not in chosen][: MOST_BARS - len(chosen)]
    others = [c.mean() for c in ranked if c not in chosen]
    note = f"{len(others)} more with scores from {min(others):.3f} to {max(others):.3f}{more}" if others else ""
    top = {s: max(c.mean() for c in chosen if c.kin == s) for s in {c.kin for c in chosen}}
    return sorted(chosen, key=lambda c: (top[c.kin], c.kin, c.mean())), note


def bar_name(configuration):
    """The name in at most three lines, with the number of runs where there are several or some collapsed."""
    n, collapsed = len(configuration.rows), configuration.degenerate
    remarks = [f"{n} runs"] if n > 1 else []
    remarks += [f"{collapsed} degenerate" if n > 1 else "degenerate"] if collapsed else []
    text, width = configuration.name + (f" ({', '.join(remarks)})" if remarks else ""), NAME_WIDTH
    while wrapped(text, width).count("\n") > 2:
        width += 4
    return wrapped(text, width)


def name_bars(axis, members):
    """The configurations' names beside the bars."""
    axis.set_yticks(range(len(members)), [bar_name(c) for c in members], fontsize=8)
    axis.set_ylim(-0.6, len(members) - 0.4)


def bar_height(members):
    """Height in inches of a chart with a bar each: 5.9 at most, or 7.5 (900 pixels) where a name takes three lines."""
    most_lines = max(bar_name(c).count("\n") + 1 for c in members)
    return min(7.5, 1.35 + max(0.38, 0.06 + 0.14 * most_lines) * len(members))  # a line of 8 points takes 0.14


def values_beside(axis, texts):
    """A column of values right of the axes, where neither a bar, an interval nor the majority line can cover them."""
    for i, text in enumerate(texts):
        axis.text(1.01, i, text, transform=axis.get_yaxis_transform(), va="center", fontsize=8)


def majority(configuration):
    return configurations.value(configuration.rows[0], "majority_baseline")


def number(value):
    """A tick or a value in plain digits: 0.25, 13, 1,390; thousands of thousands as 87.3 M."""
    if value >= 1e6:
        return f"{value / 1e6:.3g} M"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def log_ticks(figure, axis):
    """Plain numbers on a logarithmic x axis: powers of ten, then 3, 2, 5, 7, 1.5 times these where there is room."""
    low, high = axis.get_xlim()
    places = []
    for step in (1, 3, 2, 5, 7, 1.5):
        places += list(ticker.LogLocator(subs=(step,), numticks=50).tick_values(low, high))
    if high < 4 * low:  # less than a decade has too few of these
        places += list(ticker.MaxNLocator(8).tick_values(low, high))
    place_ticks(figure, axis, [float(f"{tick:.6g}") for tick in places if low <= tick <= high])


def place_ticks(figure, axis, ticks):
    """Label the x ticks, the first of them first, each only where its label overlaps none before it."""
    ticks = list(dict.fromkeys(ticks))
    ticks = ticks[:: -(-len(ticks) // MOST_TICKS)]
    axis.xaxis.set_minor_locator(ticker.NullLocator())
    axis.set_xticks(ticks, [number(tick) for tick in ticks], fontsize=8)
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axis.get_xticklabels()]
    kept = []
    for i, box in enumerate(boxes):
        if all(box.x0 > boxes[k].x1 + 6 or box.x1 < boxes[k].x0 - 6 for k in kept):  # 6 pixels between two labels
            kept.append(i)
    axis.set_xticks([ticks[i] for i in kept], [number(ticks[i]) for i in kept], fontsize=8)
