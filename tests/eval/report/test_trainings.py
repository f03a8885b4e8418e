"""Results over trainings with other seeds: means and deviations in a table, and the sentences computed from them."""

import math

import pytest

from eval.compare.rows import Row
from eval.report.trainings import over_trainings, what_one_step_is_worth


def row(model, steps, frechet, seed=0, kind=None):
    scores = {"frechet": frechet, "kl": 1.0, "inception_score": 2.0, "onset_f1": 0.5}
    return Row(
        task="vta", model=model, steps=steps, seed=seed, nfe=2 * steps, guidance=1.4, metrics=scores, num_clips=4,
        config_digest="x", run_id="r", command="c", kind=kind, rtf={"flow network": 0.5 * steps, "video-to-audio": 1.0},
    )  # fmt: skip


def training(student, offset=0.0):
    teacher = [row("teacher", n, f + offset, s) for n, f in ((1, 70.0), (2, 40.0), (25, 38.0)) for s in (0, 1)]
    return [*teacher, *(row("student", 1, student + d, s) for d, s in ((-1.0, 0), (1.0, 1))), row("codec", 0, 26.0)]


def test_results_over_trainings():
    """Student 50 -+ 1 and 60 -+ 1: mean 55, sample deviation sqrt((36 + 16 + 16 + 36) / 3) = sqrt(104 / 3)."""
    table = over_trainings([training(50.0), training(60.0)], "vta")
    lines = {(line[0], line[1]): dict(zip(table.columns, line, strict=True)) for line in table.rows}
    student = lines["student", 1]
    assert student["FD ↓"] == pytest.approx([55.0, math.sqrt(104 / 3)])
    assert student["FD by training"] == "50.0 / 60.0"
    assert student["evaluations"] == 2
    assert student["RTF, flow network"] == 0.5
    assert lines["teacher", 25]["FD ↓"] == [38.0, 0.0]
    assert lines["codec round trip", None]["FD ↓"] == 26.0
    with pytest.raises(ValueError, match="same steps"):
        over_trainings([training(50.0), training(50.0)[2:]], "vta")


def test_sentences_say_whichever_way_it_comes_out():
    sentences = what_one_step_is_worth([training(50.0), training(60.0)], "vta")
    assert "(2 evaluations) has an FD 0.71 and 0.86 times that of the teacher's 1" in sentences
    assert "1.32 and 1.58 times that of the teacher's 25 steps" in sentences
    assert "The teacher is better in every training at 2, 25 steps (4 evaluations at 2)." in sentences
    assert "The student is better in every training than the teacher at 1 step." in sentences
    assert "teacher is better" not in what_one_step_is_worth([training(30.0)], "vta")
    assert what_one_step_is_worth([[row("codec", 0, 26.0)]], "vta") == ""
