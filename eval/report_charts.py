"""Quality against steps, network evaluations and time, a row of charts for each score."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from eval.metric_text import MetricText, leading, metric, metrics_of
from eval.paired import Setting
from eval.report_intervals import span
from eval.report_parts import fold
from eval.rows import Task
from eval.svg_chart import Level, Point, Series, line_chart, sample
from eval.tables import GENERATORS, TASK_TOTALS, model_title

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


def _figures(chosen: Sequence[Setting], made: Sequence[Setting], text: MetricText, task: Task) -> str:
    having = [s for s in made if text.key in s.summary.mean]
    drawn = [_figure(chosen, made, having, text, axis) for axis in axes(made, task)]
    return f'<div class="charts">{"".join(drawn)}</div>'


def _figure(
    chosen: Sequence[Setting], made: Sequence[Setting], having: Sequence[Setting], text: MetricText, axis: Axis
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


def _levels(chosen: Sequence[Setting], text: MetricText) -> list[Level]:
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
