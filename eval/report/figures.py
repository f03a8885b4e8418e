"""Figures for a paper: the leading charts of the page as PDF and SVG, one column wide, drawn by matplotlib.

The points, bars and levels are those of eval/report/charts.py. A figure has no title: its caption is in captions.md.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.report.blocks import Bullets, Heading, markdown
from eval.report.charts import INTERVALS, Chart, Level, Line, charts, nice_ticks, round_values
from eval.report.results import Results, TaskResults
from eval.report.settings import TASK_TITLES
from eval.report.tables import means_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN, HEIGHT_IN = 3.3, 2.5
"""One column of a two-column paper."""
STYLE: dict[Any, Any] = {
    "font.size": 8.0,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.linewidth": 0.4,
    "grid.color": "#d5dae2",
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "figures",
}
"""Settings of matplotlib, with which text stays text in both formats and equal data give equal bytes."""
COLOURS = {
    "teacher": ("#2f6fde", "#0b8a8f", "#6a4fc4", "#4d6d1f"),
    "student": ("#d9603b", "#b23a7c", "#a27c0d", "#a3262a"),
}
"""Colours by kind and variant, as in the light form of the page."""
LEVEL_COLOUR = "#4c7a56"
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^", "wedge": "v", "cross": "P"}
LINE_WIDTH = 1.3
PAGE_LINE_WIDTH = 2.2
"""Line width on the page, for which dashes are given; matplotlib counts dashes in line widths."""
DODGE = 0.018
"""Distance of the bars of two lines at the same x, as a part of the axis."""


def write_figures(results: Results) -> list[Path]:
    """Write figures/<task>-<metric>-<axis>.pdf and .svg beside the rows, and captions.md with a sentence for each.

    There is one figure for each leading score against steps, evaluations and, where it was measured, time. Returns the
    paths in the order of the page.
    """
    from matplotlib import rc_context

    folder = results.path.with_name("figures")
    folder.mkdir(exist_ok=True)
    written, captions = [], []
    with rc_context(STYLE):
        for own in results.tasks:
            for chart in charts(own.settings)[0]:
                name = f"{own.task}-{chart.metric.key}-{chart.axis.key}"
                figure = drawn(chart)
                for suffix, metadata in ((".pdf", {"CreationDate": None}), (".svg", {"Date": None})):
                    figure.savefig(folder / f"{name}{suffix}", metadata=metadata)
                    written.append(folder / f"{name}{suffix}")
                captions.append(f"{name}: {caption(chart, own)}")
    heading = Heading(text="Captions of the figures", level=1)
    text = markdown([heading, Bullets(tuple(captions))] if captions else [heading])
    (folder / "captions.md").write_text(text + "\n", encoding="utf-8")
    return [*written, folder / "captions.md"]


def caption(chart: Chart, results: TaskResults) -> str:
    """The caption of a figure, a sentence: score, axis, task, clips, seeds and bars."""
    clips = " or ".join(map(str, sorted({s.num_clips for s in results.settings if s.generated})))
    bars = f"; {chart.bars}{' over clips' if chart.bars == INTERVALS else ''}"
    levels = f"; horizontal: {' and '.join(level.label for level in chart.levels)}" if chart.levels else ""
    means = means_text(results.settings)
    task = TASK_TITLES[results.task].lower()
    return f"{chart.metric.title} by {chart.axis.label}, {task}, {clips} clips, {means}{bars}{levels}."


def drawn(chart: Chart) -> "Figure":
    """One chart: logarithmic x, linear y from 0 unless a value is negative, a line per model, bars and levels."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
    axes = figure.add_subplot()
    xs = chart.xs
    axes.set_xscale("log")
    margin = 1.08 if len(xs) == 1 else (xs[-1] / xs[0]) ** 0.06
    axes.set_xlim(xs[0] / margin, xs[-1] * margin)
    axes.xaxis.set_major_locator(FixedLocator(round_values(xs[0], xs[-1]) if chart.axis.continuous else _apart(xs)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    ticks = nice_ticks([*_values(chart)])
    axes.set_ylim(ticks[0], ticks[-1])
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.grid(axis="y")
    handles: list[Any] = []
    for k, series in enumerate(chart.series):
        away = 0.0 if chart.axis.continuous else (k - (len(chart.series) - 1) / 2) * DODGE
        shift = (axes.get_xlim()[1] / axes.get_xlim()[0]) ** away
        handles.append(_line(axes, series.line, [(p.x * shift, p.y, p.low, p.high) for p in series.points]))
    handles += [_level(axes, level) for level in chart.levels]
    axes.set_xlabel(chart.axis.label)
    axes.set_ylabel(chart.metric.title)
    columns = len(handles) if len(handles) < 4 else 2
    figure.legend(
        handles=handles, loc="outside upper center", frameon=False, ncols=columns, handlelength=2.8, columnspacing=1.4
    )
    return figure


def _line(axes: "Axes", line: Line, points: list[tuple[float, float, float | None, float | None]]) -> Any:
    """A model's points (x, y and the ends of the bar), joined; returns what the legend shows."""
    dash = tuple(float(length) / PAGE_LINE_WIDTH for length in line.dash.split())
    colour = COLOURS[line.kind][line.variant]
    below = [y - (y if low is None else low) for _, y, low, _ in points]
    above = [(y if high is None else high) - y for _, y, _, high in points]
    return axes.errorbar(
        [x for x, *_ in points],
        [y for _, y, *_ in points],
        yerr=[[max(0.0, v) for v in below], [max(0.0, v) for v in above]] if any(below + above) else None,
        label=line.label,
        color=colour,
        linewidth=LINE_WIDTH,
        linestyle=(0, dash) if dash else "solid",
        elinewidth=0.8,
        capsize=1.8,
        marker=MARKERS[line.marker],
        markersize=4.2,
        markeredgecolor="white",
        markeredgewidth=0.5,
    )


def _level(axes: "Axes", level: Level) -> Any:
    """A horizontal line; returns what the legend shows."""
    dash = tuple(float(length) for length in level.dash.split())
    return axes.axhline(
        level.value, label=level.label, color=LEVEL_COLOUR, linewidth=0.9, linestyle=(0, dash), clip_on=False
    )


def _values(chart: Chart) -> Iterator[float]:
    """Everything that has to lie within the y axis."""
    yield from (y for s in chart.series for p in s.points for y in (p.y, p.low, p.high) if y is not None)
    yield from (level.value for level in chart.levels)


def _apart(xs: list[float]) -> list[float]:
    """The x values whose labels do not touch: those at least 6 % of the axis away from the one before."""
    shown: list[float] = []
    for x in xs:
        if not shown or x / shown[-1] >= (xs[-1] / xs[0]) ** 0.06:
            shown.append(x)
    return shown
