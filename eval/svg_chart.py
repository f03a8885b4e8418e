"""A line chart as inline SVG that takes its colours from the page, so that it follows light and dark."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 240
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 14, 44


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points (x, y, spread) of one model, x ascending; `style` is its CSS class."""

    label: str
    style: str
    points: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Level:
    """A horizontal dashed line; `below` puts its label under it, away from curves that lie above."""

    label: str
    value: float
    below: bool = False


def line_chart(series: Sequence[Series], levels: Sequence[Level], *, x_label: str, y_label: str) -> str:
    """One chart with a logarithmic x axis, error bars of one spread, and levels; at least one point is needed.

    The y axis is linear and starts at 0 unless a value is negative.
    """
    xs = sorted({x for s in series for x, _, _ in s.points})
    if not xs or xs[0] <= 0:
        raise ValueError(f"a chart needs points with positive x, got {xs}")
    ticks = nice_ticks(
        [y + k * d for s in series for _, y, d in s.points for k in (-1, 1)] + [level.value for level in levels]
    )
    low, high = ticks[0], ticks[-1]
    span = math.log(xs[-1] / xs[0]) or 1.0

    def across(x: float) -> float:
        share = math.log(x / xs[0]) / span if len(xs) > 1 else 0.5
        return LEFT + 14 + share * (WIDTH - LEFT - RIGHT - 28)

    def down(y: float) -> float:
        return TOP + (high - min(max(y, low), high)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)}">']
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(tick):.1f}" y2="{down(tick):.1f}"/>'
        )
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{down(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for x in _spaced(xs, across):
        parts.append(
            f'<text class="tick" x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:g}</text>'
        )
    for level in levels:
        y = down(level.value)
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for s in series:
        places = [(across(x), down(y), down(y - d), down(y + d), x, y) for x, y, d in s.points]
        line = " ".join(f"{px:.1f},{py:.1f}" for px, py, *_ in places)
        parts.append(f'<g class="series {s.style}"><polyline points="{line}"/>')
        for px, py, bottom, top, x, y in places:
            parts.append(f'<line class="bar" x1="{px:.1f}" x2="{px:.1f}" y1="{bottom:.1f}" y2="{top:.1f}"/>')
            title = escape(f"{s.label}, {x:g}: {y:.4g}")
            parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4.5"><title>{title}</title></circle>')
        parts.append("</g>")
    for level in levels:
        y = down(level.value) + (14 if level.below else -5)
        place = f'x="{WIDTH - RIGHT - 4}" y="{y:.1f}" text-anchor="end"'
        parts.append(f'<text class="level-label" {place}>{escape(level.label)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="axis" x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text></svg>'
    )
    return "".join(parts)


def nice_ticks(values: Sequence[float], count: int = 5) -> list[float]:
    """About `count` round ticks that span 0 and all values."""
    low, high = min(0.0, *values, 0.0), max(*values, 0.0)
    rough = (high - low or 1.0) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]


def _spaced(xs: Sequence[float], across: Callable[[float], float]) -> list[float]:
    """The x values whose labels do not touch."""
    shown: list[float] = []
    for x in xs:
        if not shown or across(x) - across(shown[-1]) >= 20:
            shown.append(x)
    return shown
