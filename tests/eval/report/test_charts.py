"""Charts: which points, bars and levels they hold, and where SVG places them."""

import dataclasses
import re

import pytest

from eval.metrics import metric
from eval.report.charts import Axis, Chart, Level, Line, Point, Series, axes, charts, lines, nice_ticks, round_values
from eval.report.settings import settings
from tests.eval.report.comparison import page_of, three_models

STEPS = Axis(key="steps", label="steps", of=lambda s: float(s.steps))


@pytest.fixture
def three():
    return three_models()


def test_lines_differ_without_colour_and_bars_are_the_intervals(three, tmp_path):
    names = ["Teacher, guidance 1.4", "Teacher, guidance 4.5", "Student, guidance 1", "Student, guidance 1.4", "tiny"]
    found = lines(settings(three))
    assert [line.label for line in found] == names
    assert len({(line.dash, line.marker) for line in found}) == 5
    assert len({line.style for line in found}) == 5
    first, others = charts(settings(three))
    assert [chart.bars for chart in first] == ["bars: 95 % interval"] * 3
    assert others == []
    page, _ = page_of(tmp_path, three)
    legend = page.split('class="legend"')[1].split('<div class="charts">')[0]
    assert all(name in legend for name in names)
    assert page.count("bars: 95 % interval") == 3
    assert "Teacher, guidance 1.4, 1: 40, 36.5 to 44.25" in page


def test_time_is_the_total_of_the_task_times_the_duration(three):
    last = axes(settings(three))[-1]
    assert last.label == "wall time per clip (s), video-to-audio"
    student = next(s for s in settings(three) if s.model == "tiny")
    assert last.of(student) == pytest.approx(0.01 * 6 * 8.0)  # six stages of 0.01, 8 s
    unknown = settings([dataclasses.replace(r, duration_s=None, task="tta") for r in three])
    factor = axes(unknown)[-1]
    assert factor.label == "real-time factor, text-to-audio"
    assert factor.of(next(s for s in unknown if s.model == "tiny")) == pytest.approx(0.03)


def test_a_chart_places_points_bars_and_levels():
    points = (Point(x=1.0, y=5.0, low=0.0, high=10.0), Point(x=10.0, y=5.0), Point(x=100.0, y=2.5))
    line = Line(label="<a>", kind="teacher", variant=0, number=1)
    chart = Chart(metric=metric("kl"), axis=STEPS, series=(Series(line=line, points=points),),
                  levels=(Level(label="floor", value=0.0),))  # fmt: skip
    text = chart.svg
    places = [tuple(map(float, p.split(","))) for p in re.search(r'polyline points="([^"]+)"', text)[1].split()]
    # A logarithmic axis: the middle one is half way; 2.5 of 10 is three quarters down, 5 half way.
    assert places[1][0] == pytest.approx((places[0][0] + places[2][0]) / 2, abs=0.1)
    ends = [float(y) for y in re.search(r'class="bar" x1="[^"]+" x2="[^"]+" y1="([^"]+)" y2="([^"]+)"', text).groups()]
    assert places[0][1] == pytest.approx(sum(ends) / 2, abs=0.1)
    assert places[2][1] - ends[1] == pytest.approx(0.75 * (ends[0] - ends[1]), abs=0.2)
    assert "<a>" not in text
    assert text.count("<polygon") == 3  # the second marker is a square
    with pytest.raises(ValueError, match="positive x"):
        Chart(metric=metric("kl"), axis=STEPS, series=(Series(line=line, points=(Point(x=0.0, y=1.0),)),))


def test_names_of_two_near_levels_stand_beside_their_own_lines():
    """Each name has a piece of its line before or after it; the upper's is above, the lower's below where it fits."""
    points = (Point(x=1.0, y=470.0), Point(x=10.0, y=470.0))
    line = Line(label="a", kind="teacher", variant=0, number=1)
    upper = Level(label="upper", value=251.0, dash="6 4", below=True)
    lower = Level(label="lower", value=220.0, dash="1.5 3", left=True)
    series = (Series(line=line, points=points),)
    text = Chart(metric=metric("frechet"), axis=STEPS, series=series, levels=(upper, lower)).svg
    heights = {name: float(y) for y, name in re.findall(r'class="level-label"[^>]* y="([^"]+)">(\w+)<', text)}
    lines = [float(y) for y in re.findall(r'class="level"[^>]* y1="([^"]+)"', text)]
    across = sorted(lines[:2])  # the two lines across the chart are drawn first
    assert across[1] - across[0] < 20
    assert heights["upper"] < across[0] < across[1] < heights["lower"]
    assert sorted(lines[2:]) == pytest.approx([heights["upper"] - 4, heights["lower"] - 4], abs=0.11)


def test_round_values_lie_between_the_ends():
    assert round_values(0.1, 30.0) == [0.1, 1.0, 10.0]
    assert round_values(0.3, 24.0) == [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    assert round_values(0.157, 0.33) == [0.2, 0.3]
    assert round_values(1.0, 1.0) == [1.0]
    assert len(round_values(1e-3, 1e9)) <= 7


def test_ticks_are_round_and_span_zero_and_the_values():
    assert nice_ticks([3.0, 9.7]) == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert nice_ticks([-0.2, 0.9])[0] == -0.25
    assert nice_ticks([0.0]) == pytest.approx([0.0, 0.2])
