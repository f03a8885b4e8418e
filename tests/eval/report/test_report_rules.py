"""By which rules a report compares, ranks and warns: baseline, seeds, calls, number of clips."""

import dataclasses
from html import unescape

import pytest

from eval.features.embedded import LENGTH
from eval.report.caution import DIMENSIONS, few_clips
from eval.report.differences import pairing_told, pairs
from eval.report.paired import settings
from eval.speed.budget import STAGES, with_totals
from tests.eval.report.test_report_parts import budget, estimate, grouped, page_of, row


def test_every_student_meets_the_baseline_at_its_own_scale_and_the_rule_is_told(tmp_path):
    """At 4.5 the teacher is better (5 against 10), yet a student at 1.4 meets 1.4, at most steps and at its own."""
    rows = [
        row(steps=n, guidance=w, metrics={"frechet": 10.0 if w == 1.4 else 5.0}) for w in (1.4, 4.5) for n in (1, 4)
    ]
    rows += [row("student", n, guidance=w) for w in (1.4, 4.5) for n in (1, 4)]
    rows += [row("base", n, kind="teacher", metrics={"frechet": 1.0}) for n in (1, 4)]
    titles = [pair.title for pair in pairs(settings(rows, {}))]
    assert titles == [
        f"Student, guidance {w}, {a}, against Teacher, guidance {w}, {b}"
        for a, own in (("1 step", ("4 steps", "1 step")), ("4 steps", ("4 steps",))) for w in (1.4, 4.5) for b in own
    ]  # fmt: skip
    for text in map(unescape, page_of(tmp_path, rows)):
        assert "The baseline is Teacher, the first teacher named; base stands in the tables" in text
        assert "at the student's own guidance scale, at Teacher’s most steps" in text
        assert "was not run at" not in text
        assert "that both have" not in text
    assert "<h4>base, 4 steps</h4>" in (tmp_path / "report.html").read_text()


def test_a_scale_the_teacher_lacks_is_named_with_the_one_that_took_its_place():
    rows = [
        grouped("teacher", n, v, (v, v, v), guidance=w) for n, v, w in ((1, 40.0, 1.4), (25, 5.0, 1.4), (25, 8.0, 4.5))
    ]
    rows += [grouped("student", 1, 6.0, (5.0, 6.5, 6.5), guidance=w) for w in (1.0, 1.4)]
    told = pairing_told(settings(rows, {}))
    assert "The baseline is" not in told  # there is one alone
    assert (
        "Teacher was not run at the guidance scale of Student at 1; it is taken at 1.4, the best by FD (embedded) at "
        "25 steps."
    ) in told
    single = [r for r in rows if r.guidance != 4.5]
    assert "taken at 1.4, the only scale there is." in pairing_told(settings(single, {}))


def test_unequal_seeds_stand_in_a_column_and_in_words(tmp_path):
    rows = [row(seed=s) for s in (0, 1)] + [row("student", 1, 1), row("reference", 0)]
    page, markdown = page_of(tmp_path, rows)
    assert "| Teacher | 25 | 50 | 10.00 ± 0.00 | 2 | 4 |" in markdown
    assert "| Student | 1 | 2 | 10.00 | 1 | 4 |" in markdown
    assert "| Real sound | – | – | 10.00 | – | 4 |" in markdown
    for text in (page, markdown):
        assert "as many seeds of the noise as the row says. Unfinished: seed 0 is missing for Student." in text
        assert "a difference is over those that both have" in text
    (tmp_path / "equal").mkdir()
    for text in page_of(tmp_path / "equal", [r for r in rows if r.seed == 1]):
        assert "Seeds" not in text
        assert "Unfinished" not in text


@pytest.mark.parametrize(("clips", "key", "warned"), [(49, "fd_vggish", True), (255, "fd_vggish", True),
                         (256, "fd_vggish", False), (167, "frechet", True), (168, "frechet", False),
                         (4095, "fd_panns", True), (1536, "fd_passt", False)])  # fmt: skip
def test_few_clips_for_the_dimension_are_cautioned_against(clips, key, warned):
    rows = [row(metrics={key: v}, estimates={key: estimate(v)}, num_clips=clips, steps=n) for v, n in ((9, 1), (7, 2))]
    text = few_clips(settings([*rows, row("codec", 0, metrics={key: 1.0}, num_clips=clips)], {}))
    assert bool(text) == warned
    if warned:
        assert f"few clips, {clips} in {DIMENSIONS[key]} dimensions" in text
        assert "as large as 0.25, which is part of the lowest value, 7.00 of Teacher, 2 steps." in text


def test_the_caution_stands_on_the_page_and_without_a_bias_says_so(tmp_path):
    assert DIMENSIONS["frechet"] == LENGTH
    for text in page_of(tmp_path, [row()]):
        assert "few clips, 4 in 84 dimensions; its bias was not kept." in text


def test_times_of_few_calls_are_not_ranked_and_the_calls_are_told(tmp_path):
    def made(repeats):
        own = budget("x")
        stages = [
            dataclasses.replace(s, timing=dataclasses.replace(s.timing, repeats=repeats, median_s=0.5))
            for s in own.stages if s.batch == 1
        ]  # fmt: skip
        return dataclasses.replace(own, stages=tuple(stages))

    rtf = with_totals(dict.fromkeys(STAGES, 0.5 / 8.0))
    rows = [row(steps=1, rtf=rtf), row("student", 1, rtf=dict(rtf))]
    made(9).write(tmp_path / "budget-student-vta.json")
    for repeats, told in (
        (12, "Every stage: Teacher: median of 12 calls, 1 thread; Student: median of 9 calls, 1 thread. Nothing is"),
        (9, "Every stage: median of 9 calls, 1 thread. Nothing is marked as fastest"),
    ):
        made(repeats).write(tmp_path / "budget-teacher-vta.json")
        page, markdown = page_of(tmp_path, rows)
        table = markdown.split("### Real-time factor")[1].split("###")[0]
        assert told in page
        assert told in table
        assert "**" not in table
    for name in ("teacher", "student"):
        made(10).write(tmp_path / f"budget-{name}-vta.json")
    page, markdown = page_of(tmp_path, rows)
    table = markdown.split("### Real-time factor")[1].split("###")[0]
    assert "**0.375**" in table  # six stages of 1/16
    assert "Nothing is marked" not in table
