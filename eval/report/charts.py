"""Charts of quality against steps, network evaluations and time: what is drawn, and how a page draws it as SVG.

`charts` gives the points, bars and levels, which eval/report/figures.py draws for papers too. `svg` draws them inline
in the colours of the page, so that they follow light and dark. Lines differ in dashes and markers as well as in colour.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from eval.compare.rows import Kind
from eval.metrics import Metric, leading, metrics_of
from eval.report.settings import TASK_TOTALS, Setting

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 14, 46
DASHES = ("", "8 4", "2 3", "9 3 2 3")
MARKERS = ("circle", "square", "diamond", "triangle", "wedge", "cross")
MOST_TICKS = 7
DODGE = 5.0
"""Pixels between the bars of two lines at the same x."""
SAMPLE, LABEL = 22, 20
"""Pixels of a level's line that are drawn beside its name, and the height that a name needs."""
VARIANTS = 4
"""Colours of a kind of model."""
INTERVALS, DEVIATIONS, NOTHING = "bars: 95 % interval", "bars: ± 1 sd over seeds", "no bars"
BARS = (
    "Bars are the 95 % interval over clips where the rows have one, else one standard deviation over seeds; each chart "
    "states which."
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value y at x with the ends of its bar; None for both where it has none."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Line:
    """How one model, at one guidance scale, is drawn in all charts of a task."""

    label: str
    kind: Kind
    variant: int
    """Number among the lines of its kind, which decides on the colour."""
    number: int
    """Number among all lines, which decides on dashes and marker."""

    @property
    def style(self) -> str:
        """Its CSS classes."""
        return f"{self.kind} v{self.variant}"

    @property
    def dash(self) -> str:
        """Lengths of dashes and gaps as in SVG; empty for a solid line."""
        return DASHES[self.number % len(DASHES)]

    @property
    def marker(self) -> str:
        return MARKERS[self.number % len(MARKERS)]

    @property
    def sample(self) -> Markup:
        """A piece of the line with its marker, for the legend."""
        line = f'<polyline points="1,8 39,8"{_dashed(self.dash)}/>'
        return Markup(
            f'<svg class="sample" viewBox="0 0 40 16"><g class="series {escape(self.style)}">{line}'
            f"{_marker(self.marker, 20, 8)}</g></svg>"
        )


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one model, x ascending."""

    line: Line
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Level:
    """A horizontal line: real sound, or the codec round trip."""

    label: str
    value: float
    below: bool = False
    """Whether its label stands under it, where there is room above the axis."""
    left: bool = False
    """Whether its label stands at the left end."""
    dash: str = "6 4"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The horizontal axis: a number of each setting, None where it is not known."""

    key: str
    """Name in file names."""
    label: str
    of: Callable[[Setting], float | None]
    continuous: bool = False
    """Whether x is measured, so that its ticks are round numbers; otherwise they are the values themselves."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One score against one axis: at least one point, every x positive."""

    metric: Metric
    axis: Axis
    series: tuple[Series, ...]
    levels: tuple[Level, ...] = ()
    bars: str = NOTHING
    """A description of the bars of the points."""

    def __post_init__(self) -> None:
        xs = self.xs
        if not xs or xs[0] <= 0:
            raise ValueError(f"a chart needs points with positive x, got {xs}")

    @property
    def xs(self) -> list[float]:
        """The different x of all points, ascending."""
        return sorted({p.x for s in self.series for p in s.points})

    @property
    def title(self) -> str:
        return f"{self.metric.title} by {self.axis.label.split(',')[0]}"

    @property
    def svg(self) -> Markup:
        """The chart with a logarithmic x axis, and a linear y axis that starts at 0 unless a value is negative."""
        return svg(self)


def charts(chosen: Sequence[Setting]) -> tuple[list[Chart], list[Chart]]:
    """The charts of the settings of one task: of the leading scores, and of all others that have a direction.

    Each score is drawn against steps, evaluations and, where it was measured, time.
    """
    made = [s for s in chosen if s.generated and s.steps > 0]
    present = [m for m in metrics_of(k for s in made for k in s.mean) if m.better is not None]
    if not present:
        return [], []
    first = leading(m.key for m in present) or [present[0].key]
    ordered = [m for key in first for m in present if m.key == key]
    return _charts(chosen, made, ordered), _charts(chosen, made, [m for m in present if m.key not in first])


def axes(made: Sequence[Setting]) -> tuple[Axis, ...]:
    """The axes of a task: steps, evaluations, and the time of one clip by the total of the task."""
    total = TASK_TOTALS[made[0].task]

    def rtf(s: Setting) -> float | None:
        return s.rtf.get(total)

    def seconds(s: Setting) -> float | None:
        factor, duration_s = rtf(s), s.duration_s
        return None if factor is None or duration_s is None else factor * duration_s

    timed = any(seconds(s) is not None for s in made)
    found = [
        Axis(key="steps", label="sampling steps", of=lambda s: float(s.steps)),
        Axis(key="evaluations", label="network evaluations", of=lambda s: float(s.nfe)),
    ]
    if timed or any(rtf(s) is not None for s in made):
        label = "wall time per clip (s)" if timed else "real-time factor"
        found.append(Axis(key="time", label=f"{label}, {total}", of=seconds if timed else rtf, continuous=True))
    return tuple(found)


def lines(chosen: Sequence[Setting]) -> tuple[Line, ...]:
    """One line per generating model and guidance scale, in their order."""
    found: dict[str, Line] = {}
    for s in chosen:
        if s.generated and s.steps > 0 and s.model_title not in found:
            variant = sum(line.kind == s.kind for line in found.values()) % VARIANTS
            found[s.model_title] = Line(label=s.model_title, kind=s.kind, variant=variant, number=len(found))
    return tuple(found.values())


def _charts(chosen: Sequence[Setting], made: Sequence[Setting], metrics: Iterable[Metric]) -> list[Chart]:
    found = [_chart(chosen, made, metric, axis) for metric in metrics for axis in axes(made)]
    return [chart for chart in found if chart is not None]


def _chart(chosen: Sequence[Setting], made: Sequence[Setting], metric: Metric, axis: Axis) -> Chart | None:
    known = [s for s in made if metric.key in s.mean and (axis.of(s) or 0.0) > 0.0]
    if not known:
        return None
    bars = _bars(known, metric.key)
    series = []
    for line in lines(made):
        points = [_point(s, metric.key, axis, bars) for s in known if s.model_title == line.label]
        if points:
            series.append(Series(line=line, points=tuple(sorted(points, key=lambda p: p.x))))
    return Chart(metric=metric, axis=axis, series=tuple(series), levels=_levels(chosen, metric), bars=bars)


def _bars(known: Sequence[Setting], key: str) -> str:
    if all(s.span(key) is not None for s in known):
        return INTERVALS
    return DEVIATIONS if any(s.std.get(key) for s in known) else NOTHING


def _point(setting: Setting, key: str, axis: Axis, bars: str) -> Point:
    x, y = axis.of(setting) or 0.0, setting.mean[key]
    found, deviation = setting.span(key), setting.std[key]
    if bars == INTERVALS and found is not None:
        return Point(x=x, y=y, low=found.low, high=found.high)
    if bars == DEVIATIONS and deviation is not None:
        return Point(x=x, y=y, low=y - deviation, high=y + deviation)
    return Point(x=x, y=y)


def _levels(chosen: Sequence[Setting], metric: Metric) -> tuple[Level, ...]:
    """Real sound labelled at the right, the codec at the left, both on the side where there is room."""
    found = []
    for s in chosen:
        if s.generated or metric.key not in s.mean:
            continue
        real = s.kind == "reference"
        found.append(
            Level(
                label="real sound" if real else "codec round trip",
                value=s.mean[metric.key],
                below=metric.better == "lower" and s.mean[metric.key] > 0.0,
                left=not real,
                dash="6 4" if real else "1.5 3",
            )
        )
    return tuple(found)


def svg(chart: Chart) -> Markup:
    """A chart as inline SVG; bars of several lines at the same x stand side by side unless x is measured."""
    xs, continuous = chart.xs, chart.axis.continuous
    ends = [y for s in chart.series for p in s.points for y in (p.y, p.low, p.high) if y is not None]
    ticks = nice_ticks(ends + [level.value for level in chart.levels])
    low, high = ticks[0], ticks[-1]
    extent = math.log(xs[-1] / xs[0]) or 1.0

    def across(x: float) -> float:
        fraction = math.log(x / xs[0]) / extent if len(xs) > 1 else 0.5
        return LEFT + 18 + fraction * (WIDTH - LEFT - RIGHT - 36)

    def down(y: float) -> float:
        return TOP + (high - min(max(y, low), high)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    name = f"{chart.metric.label} by {chart.axis.label}"
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">']
    for tick in ticks:
        parts.append(_line("grid", LEFT, WIDTH - RIGHT, down(tick), down(tick)))
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{down(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for x in round_values(xs[0], xs[-1]) if continuous else _spaced(xs, across):
        parts.append(
            f'<text class="tick" x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:g}</text>'
        )
        parts.append(_line("grid", across(x), across(x), HEIGHT - BOTTOM, HEIGHT - BOTTOM + 4))
    for level in chart.levels:
        y = down(level.value)
        parts.append(_line("level", LEFT, WIDTH - RIGHT, y, y, _dashed(level.dash)))
    for k, s in enumerate(chart.series):
        shift = 0.0 if continuous else (k - (len(chart.series) - 1) / 2) * DODGE
        parts.append(_series(s, across, down, shift))
    parts += _level_labels(chart.levels, [down(level.value) for level in chart.levels])
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="axis" x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(chart.axis.label)}</text>'
        "</svg>"
    )
    return Markup("".join(parts))


def _level_labels(levels: Sequence[Level], heights: Sequence[float]) -> Iterator[str]:
    """The names of levels beside a piece of their line, so that each is recognised wherever there is room for it.

    Of two levels closer than a label is high, the upper has its label above and the lower below, if that fits.
    """
    for k, (level, y) in enumerate(zip(levels, heights, strict=True)):
        near = [other for n, other in enumerate(heights) if n != k and abs(other - y) < LABEL]
        below = level.below if not near else y > min(near)
        at = y + 14 if below and y + 14 <= HEIGHT - BOTTOM else y - 5
        start = LEFT + 4 if level.left else WIDTH - RIGHT - 4 - SAMPLE
        text = f'x="{start + SAMPLE + 4}"' if level.left else f'x="{start - 4}" text-anchor="end"'
        yield f'<rect class="level-ground" x="{start - 2}" y="{at - 10:.1f}" width="{SAMPLE + 4}" height="12"/>'
        yield _line("level", start, start + SAMPLE, at - 4, at - 4, _dashed(level.dash))
        yield f'<text class="level-label" {text} y="{at:.1f}">{escape(level.label)}</text>'


def _marker(name: str, x: float, y: float, title: str = "") -> str:
    """A marker at a place, with a text that shows when it is pointed at."""
    hint = f"<title>{escape(title)}</title>" if title else ""
    r = 4.5
    if name == "circle":
        return f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="{r}">{hint}</circle>'
    corners = {
        "square": ((-4, -4), (4, -4), (4, 4), (-4, 4)),
        "diamond": ((0, -6), (6, 0), (0, 6), (-6, 0)),
        "triangle": ((0, -5.5), (5.5, 4.5), (-5.5, 4.5)),
        "wedge": ((0, 5.5), (5.5, -4.5), (-5.5, -4.5)),
        "cross": ((-5, -2), (-2, -2), (-2, -5), (2, -5), (2, -2), (5, -2), (5, 2), (2, 2), (2, 5), (-2, 5), (-2, 2),
                  (-5, 2)),
    }[name]  # fmt: skip
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon class="point" points="{points}">{hint}</polygon>'


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


def _series(series: Series, across: Callable[[float], float], down: Callable[[float], float], shift: float) -> str:
    places = " ".join(f"{across(p.x) + shift:.1f},{down(p.y):.1f}" for p in series.points)
    line = series.line
    parts = [f'<g class="series {escape(line.style)}"><polyline points="{places}"{_dashed(line.dash)}/>']
    for p in series.points:
        x, ends = across(p.x) + shift, ""
        if p.low is not None and p.high is not None:
            parts.append(_line("bar", x, x, down(p.low), down(p.high)))
            parts += [_line("bar", x - 3, x + 3, down(end), down(end)) for end in (p.low, p.high)]
            ends = f", {p.low:.4g} to {p.high:.4g}"
        parts.append(_marker(line.marker, x, down(p.y), f"{line.label}, {p.x:.4g}: {p.y:.4g}{ends}"))
    return "".join([*parts, "</g>"])


def _line(name: str, x1: float, x2: float, y1: float, y2: float, more: str = "") -> str:
    return f'<line class="{name}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"{more}/>'


def _dashed(dash: str) -> str:
    return f' stroke-dasharray="{dash}"' if dash else ""


def _spaced(xs: Sequence[float], across: Callable[[float], float]) -> list[float]:
    """The x values whose labels do not touch."""
    shown: list[float] = []
    for x in xs:
        if not shown or across(x) - across(shown[-1]) >= 20:
            shown.append(x)
    return shown
