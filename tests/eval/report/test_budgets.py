"""Staged budgets on the page, and what they say of the times of the rows."""

import dataclasses

import pytest

from eval.compare.rows import safe_name
from eval.report.budgets import read_budgets
from eval.report.page import write_report
from eval.report.results import Results
from eval.speed.budget import STAGES, with_totals
from tests.eval.report.comparison import budget, page_of, row


def test_budgets_beside_the_rows_are_shown_per_model(tmp_path):
    budget("x").write(tmp_path / "budget-teacher-vta.json")
    budget("y").write(tmp_path / "budget-gone-vta.json")
    page, markdown = page_of(tmp_path, [row(), row("student", 1)])
    assert page.count("<summary>Staged budget of") == 1
    for text in (page, markdown):
        assert "125–500" in text  # p10 and p90 in ms
        assert "20 %" in text  # 4 GFLOP at 80 GFLOP/s take 50 ms of 250
        assert "from the video file to the wave" in text
        assert "throughput, 8 clips of 8 s" in text
        for total in ("generator only", "text-to-audio", "video-to-audio"):
            assert total in text
    assert "gone" not in page
    (tmp_path / "budget-teacher-vta.json").write_text("{}")
    with pytest.raises(ValueError, match=r"budget-teacher-vta\.json: not a budget"):
        write_report(Results.read(tmp_path / "rows.jsonl"))


def test_budgets_are_found_by_the_name_their_file_can_bear(tmp_path):

    budget("x").write(tmp_path / f"budget-{safe_name('a b/c')}-tta.json")
    assert [(found.model, found.task) for found in read_budgets(tmp_path, ["teacher", "a b/c"])] == [("a b/c", "tta")]


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
    for repeats, sentence in (
        (12, "Every stage: Teacher: median of 12 calls, 1 thread; Student: median of 9 calls, 1 thread. Nothing is"),
        (9, "Every stage: median of 9 calls, 1 thread. Nothing is marked as fastest"),
    ):
        made(repeats).write(tmp_path / "budget-teacher-vta.json")
        page, markdown = page_of(tmp_path, rows)
        table = markdown.split("### Speed by stage")[1].split("###")[0]
        assert sentence in page
        assert sentence in table
        assert "**" not in table
    for name in ("teacher", "student"):
        made(10).write(tmp_path / f"budget-{name}-vta.json")
    page, markdown = page_of(tmp_path, rows)
    table = markdown.split("### Speed by stage")[1].split("###")[0]
    assert "**0.375**" in table  # six stages of 1/16
    assert "Nothing is marked" not in table
