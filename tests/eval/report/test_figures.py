"""Figures for papers: the data of the page's charts, as PDF and SVG with text that stays text."""

import re

import pytest

from eval.report.charts import charts
from eval.report.figures import drawn, write_figures
from eval.report.results import Results
from eval.report.settings import settings
from tests.eval.report.comparison import page_of, three_models


@pytest.fixture
def written(tmp_path):
    page_of(tmp_path, three_models())
    return write_figures(Results.read(tmp_path / "rows.jsonl"))


def test_every_leading_chart_is_written_twice_and_has_a_caption(written):
    names = ["vta-frechet-steps", "vta-frechet-evaluations", "vta-frechet-time"]
    assert [path.name for path in written] == [f"{n}{s}" for n in names for s in (".pdf", ".svg")] + ["captions.md"]
    captions = written[-1].read_text()
    for name in names:
        assert f"- {name}: FD (embedded) ↓ by " in captions
    assert "video to audio, 4 clips, means over 1 seed of the noise; bars: 95 % interval over clips" in captions
    assert "horizontal: real sound." in captions
    assert written[0].read_bytes().startswith(b"%PDF")


def test_points_and_bars_are_those_of_the_page():
    chart = charts(settings(three_models()))[0][2]  # against time, where nothing stands beside its place
    axes = drawn(chart).axes[0]
    assert axes.get_xscale() == "log"
    for series, container in zip(chart.series, axes.containers, strict=True):
        line, _, (bars,) = container
        assert line.get_xdata().tolist() == pytest.approx([p.x for p in series.points])
        assert line.get_ydata().tolist() == [p.y for p in series.points]
        ends = [[y for _, y in segment] for segment in bars.get_segments()]
        assert ends == [pytest.approx([p.low, p.high]) for p in series.points]
    assert len({(c[0].get_linestyle(), c[0].get_marker(), c[0].get_color()) for c in axes.containers}) == 5
    assert (axes.get_xlabel(), axes.get_ylabel()) == (chart.axis.label, "FD (embedded) ↓")
    assert axes.get_title() == ""
    assert axes.get_ylim()[0] == 0.0


def test_bars_of_several_lines_at_the_same_steps_stand_side_by_side():
    axes = drawn(charts(settings(three_models()))[0][0]).axes[0]
    ones = [container[0].get_xdata()[0] for container in axes.containers]
    assert len(set(ones)) == len(ones)  # four lines begin at 1 step, one has 25 alone


def test_text_of_an_svg_is_text_and_equal_rows_give_equal_files(written, tmp_path):
    text = written[1].read_text()
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", text)
    for word in ("sampling steps", "FD (embedded) ↓", "Teacher, guidance 1.4", "tiny", "real sound", "25"):
        assert word in shown
    before = {path.name: path.read_bytes() for path in written}
    again = write_figures(Results.read(tmp_path / "rows.jsonl"))
    assert {path.name: path.read_bytes() for path in again} == before


def test_fonts_are_legible_in_one_column(written):
    sizes = [float(s) for s in re.findall(r"font-size: ([\d.]+)px", written[1].read_text())]
    assert sizes
    assert min(sizes) >= 7.0  # points, at a width of 3.3 inches
