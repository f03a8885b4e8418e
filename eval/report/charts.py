"""A line chart as inline SVG that takes its colours from the page, so that it follows light and dark.

Series differ in dashes and markers as well as in colour.


Quality against steps, network evaluations and time, a row of charts for each score."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from eval.compare.rows import Task
from eval.metrics import Metric, leading, metric, metrics_of
from eval.report.intervals import span
from eval.report.paired import Setting
from eval.report.parts import fold
from eval.report.tables import GENERATORS, TASK_TOTALS, model_title

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 14, 46
DASHES = ("", "8 4", "2 3", "9 3 2 3")
MARKERS = ("circle", "square", "diamond", "triangle", "wedge", "cross")
MOST_TICKS = 7
DODGE = 5.0
"""Pixels between the bars of two series at the same x."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value y at x with the ends of its bar; None for both where it has none."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one model, x ascending; `style` is its CSS class, `number` decides on dashes and marker."""

    label: str
    style: str
    number: int
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Level:
    """A horizontal line; `below` puts its label under it, `left` at the left end, `dash` tells levels apart."""

    label: str
    value: float
    below: bool = False
    left: bool = False
    dash: str = "6 4"


def line_chart(
    series: Sequence[Series], levels: Sequence[Level], *, x_label: str, y_label: str, continuous: bool = False
) -> str:
    """One chart with a logarithmic x axis, bars and levels; at least one point is needed.

    The y axis is linear and starts at 0 unless a value is negative. `continuous`: x is measured, so its ticks are
    round numbers; otherwise they are the values themselves and bars of several series stand side by side.
    """
    xs = sorted({p.x for s in series for p in s.points})
    if not xs or xs[0] <= 0:
        raise ValueError(f"a chart needs points with positive x, got {xs}")
    ends = [y for s in series for p in s.points for y in (p.y, p.low, p.high) if y is not None]
    ticks = nice_ticks(ends + [level.value for level in levels])
    low, high = ticks[0], ticks[-1]
    span = math.log(xs[-1] / xs[0]) or 1.0

    def across(x: float) -> float:
        share = math.log(x / xs[0]) / span if len(xs) > 1 else 0.5
        return LEFT + 18 + share * (WIDTH - LEFT - RIGHT - 36)

    def down(y: float) -> float:
        return TOP + (high - min(max(y, low), high)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)}">']
    for tick in ticks:
        parts.append(_line("grid", LEFT, WIDTH - RIGHT, down(tick), down(tick)))
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{down(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for x in round_values(xs[0], xs[-1]) if continuous else _spaced(xs, across):
        parts.append(
            f'<text class="tick" x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:g}</text>'
        )
        parts.append(_line("grid", across(x), across(x), HEIGHT - BOTTOM, HEIGHT - BOTTOM + 4))
    for level in levels:
        y = down(level.value)
        parts.append(_line("level", LEFT, WIDTH - RIGHT, y, y, f' stroke-dasharray="{level.dash}"'))
    for k, s in enumerate(series):
        shift = 0.0 if continuous else (k - (len(series) - 1) / 2) * DODGE
        parts.append(_drawn(s, across, down, shift))
    for level in levels:
        y = down(level.value) + (14 if level.below else -5)
        place = f'x="{LEFT + 4}"' if level.left else f'x="{WIDTH - RIGHT - 4}" text-anchor="end"'
        parts.append(f'<text class="level-label" {place} y="{y:.1f}">{escape(level.label)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="axis" x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text></svg>'
    )
    return "".join(parts)


def sample(style: str, number: int) -> str:
    """A piece of line with its marker, for the legend."""
    line = f'<polyline points="1,8 39,8"{_dashed(number)}/>'
    return f'<svg class="sample" viewBox="0 0 40 16"><g class="series {style}">{line}{marker(number, 20, 8)}</g></svg>'


def marker(number: int, x: float, y: float, title: str = "") -> str:
    """The marker of a series at a place."""
    told = f"<title>{escape(title)}</title>" if title else ""
    name, r = MARKERS[number % len(MARKERS)], 4.5
    if name == "circle":
        return f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="{r}">{told}</circle>'
    corners = {
        "square": ((-4, -4), (4, -4), (4, 4), (-4, 4)),
        "diamond": ((0, -6), (6, 0), (0, 6), (-6, 0)),
        "triangle": ((0, -5.5), (5.5, 4.5), (-5.5, 4.5)),
        "wedge": ((0, 5.5), (5.5, -4.5), (-5.5, -4.5)),
        "cross": ((-5, -2), (-2, -2), (-2, -5), (2, -5), (2, -2), (5, -2), (5, 2), (2, 2), (2, 5), (-2, 5), (-2, 2),
                  (-5, 2)),
    }[name]  # fmt: skip
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon class="point" points="{points}">{told}</polygon>'


def nice_ticks(values: Sequence[float], count: int = 5) -> list[float]:
    """About `count` round ticks that span 0 and all values."""
    low, high = min(0.0, *values, 0.0), max(*values, 0.0)
    rough = (high - low or 1.0) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]


def round_values(low: float, high: float) -> list[float]:
    """Two to seven round numbers between two positive ends: 1, 2 and 5 times powers of 10 where they are so few, else
    the powers alone, else finer steps; the ends to two digits where nothing is between them."""
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for factors in (
        (1.0, 2.0, 5.0),
        (1.0,),
        (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0),
        [k / 10 for k in range(10, 100)],
    ):
        found = [float(f"{f * 10.0**e:.6g}") for e in exponents for f in factors]
        inside = [x for x in found if low * 0.999 <= x <= high * 1.001]
        if 1 < len(inside) <= MOST_TICKS or (len(factors) == 1 and len(inside) > 1):
            return inside[:: math.ceil(len(inside) / MOST_TICKS)]
    return sorted({float(f"{end:.2g}") for end in (low, high)})


def _drawn(series: Series, across: Callable[[float], float], down: Callable[[float], float], shift: float) -> str:
    line = " ".join(f"{across(p.x) + shift:.1f},{down(p.y):.1f}" for p in series.points)
    parts = [f'<g class="series {series.style}"><polyline points="{line}"{_dashed(series.number)}/>']
    for p in series.points:
        x, told = across(p.x) + shift, ""
        if p.low is not None and p.high is not None:
            parts.append(_line("bar", x, x, down(p.low), down(p.high)))
            parts += [_line("bar", x - 3, x + 3, down(end), down(end)) for end in (p.low, p.high)]
            told = f", {p.low:.4g} to {p.high:.4g}"
        parts.append(marker(series.number, x, down(p.y), f"{series.label}, {p.x:.4g}: {p.y:.4g}{told}"))
    return "".join([*parts, "</g>"])


def _line(name: str, x1: float, x2: float, y1: float, y2: float, more: str = "") -> str:
    return f'<line class="{name}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"{more}/>'


def _dashed(number: int) -> str:
    dash = DASHES[number % len(DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _spaced(xs: Sequence[float], across: Callable[[float], float]) -> list[float]:
    """The x values whose labels do not touch."""
    shown: list[float] = []
    for x in xs:
        if not shown or across(x) - across(shown[-1]) >= 20:
            shown.append(x)
    return shown


VARIANTS = 4
"""Colours of a kind of model."""
INTERVALS, DEVIATIONS, NOTHING = "bars: 95 % interval", "bars: ± 1 sd over seeds", "no bars"
BARS = (
    "Bars are the 95 % interval over clips where the rows have one, else one standard deviation over seeds; each chart "
    "says which."
)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What is drawn to the right: a number of each setting, None where it is not known."""

    label: str
    of: Callable[[Setting], float | None]
    continuous: bool = False


def charts(chosen: Sequence[Setting], task: Task) -> str:
    """The charts of one task with their legend; scores that are not drawn first are folded away."""
    made = [s for s in chosen if s.summary.kind in GENERATORS and s.summary.steps > 0]
    present = [m for m in metrics_of(k for s in made for k in s.summary.mean) if m.better is not None]
    if not present:
        return '<p class="soft">There is nothing to draw.</p>'
    first = leading(m.key for m in present) or [present[0].key]
    shown = "".join(_figures(chosen, made, metric(key), task) for key in first)
    others = [m for m in present if m.key not in first]
    folded = "".join(_figures(chosen, made, m, task) for m in others)
    summary = f"Charts of {', '.join(m.label for m in others)}"
    return f"{_legend(made)}{shown}{fold(summary, folded) if others else ''}"


def axes(made: Sequence[Setting], task: Task) -> tuple[Axis, ...]:
    """Steps, evaluations, and the time of one clip, from all that a user of the task waits for."""
    total = TASK_TOTALS[task]

    def rtf(s: Setting) -> float | None:
        return s.summary.rtf.get(total)

    def seconds(s: Setting) -> float | None:
        factor, duration_s = rtf(s), s.summary.duration_s
        return None if factor is None or duration_s is None else factor * duration_s

    timed = any(seconds(s) is not None for s in made)
    found = [
        Axis(label="sampling steps", of=lambda s: float(s.summary.steps)),
        Axis(label="network evaluations", of=lambda s: float(s.summary.nfe)),
    ]
    if timed or any(rtf(s) is not None for s in made):
        label = "wall time per clip (s)" if timed else "real-time factor"
        found.append(Axis(label=f"{label}, {total}", of=seconds if timed else rtf, continuous=True))
    return tuple(found)


def styles(made: Sequence[Setting]) -> dict[str, tuple[str, int]]:
    """CSS class and number of every line, by its name: one line per model and guidance scale."""
    found: dict[str, tuple[str, int]] = {}
    of_kind: dict[str, int] = {}
    for s in made:
        name, kind = model_title(s.summary), s.summary.kind
        if name not in found:
            found[name] = f"{kind} v{of_kind.get(kind, 0) % VARIANTS}", len(found)
            of_kind[kind] = of_kind.get(kind, 0) + 1
    return found


def _figures(chosen: Sequence[Setting], made: Sequence[Setting], text: Metric, task: Task) -> str:
    having = [s for s in made if text.key in s.summary.mean]
    drawn = [_figure(chosen, made, having, text, axis) for axis in axes(made, task)]
    return f'<div class="charts">{"".join(drawn)}</div>'


def _figure(
    chosen: Sequence[Setting], made: Sequence[Setting], having: Sequence[Setting], text: Metric, axis: Axis
) -> str:
    known = [s for s in having if (axis.of(s) or 0.0) > 0.0]
    if not known:
        return ""
    bars = _bars(known, text.key)
    series = []
    for name, (style, number) in styles(made).items():
        points = [_point(s, text.key, axis, bars) for s in known if model_title(s.summary) == name]
        if points:
            ordered = tuple(sorted(points, key=lambda p: p.x))
            series.append(Series(label=name, style=style, number=number, points=ordered))
    picture = line_chart(
        series,
        _levels(chosen, text),
        x_label=axis.label,
        y_label=f"{text.label} by {axis.label}",
        continuous=axis.continuous,
    )
    caption = f"{escape(text.title)} by {escape(axis.label.split(',')[0])} <span>{bars}</span>"
    return f"<figure><figcaption>{caption}</figcaption>{picture}</figure>"


def _bars(known: Sequence[Setting], key: str) -> str:
    if all(span(s, key) is not None for s in known):
        return INTERVALS
    return DEVIATIONS if any(s.summary.std.get(key) for s in known) else NOTHING


def _point(setting: Setting, key: str, axis: Axis, bars: str) -> Point:
    x, y = axis.of(setting) or 0.0, setting.summary.mean[key]
    found, deviation = span(setting, key), setting.summary.std[key]
    if bars == INTERVALS and found is not None:
        return Point(x=x, y=y, low=found.low, high=found.high)
    if bars == DEVIATIONS and deviation is not None:
        return Point(x=x, y=y, low=y - deviation, high=y + deviation)
    return Point(x=x, y=y)


def _levels(chosen: Sequence[Setting], text: Metric) -> list[Level]:
    """Real sound labelled at the right, the codec at the left, both on the side where there is room."""
    found = []
    for s in chosen:
        if s.summary.kind in GENERATORS or text.key not in s.summary.mean:
            continue
        real = s.summary.kind == "reference"
        found.append(
            Level(
                label="real sound" if real else "codec round trip",
                value=s.summary.mean[text.key],
                below=text.better == "lower" and s.summary.mean[text.key] > 0.0,
                left=not real,
                dash="6 4" if real else "1.5 3",
            )
        )
    return found


def _legend(made: Sequence[Setting]) -> str:
    lines = [f"<span>{sample(style, number)}{escape(name)}</span>" for name, (style, number) in styles(made).items()]
    return f'<p class="legend">{"".join(lines)}<span>{BARS}</span></p>'
