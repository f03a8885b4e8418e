"""Paired differences of settings, and which settings of students and teachers are compared."""

import dataclasses
import math
import re
from html import unescape

import numpy as np
import pytest
from scipy.stats import wilcoxon

from eval.compare.rows import Row, json_line
from eval.metrics.onsets import OnsetCounts
from eval.metrics.uncertainty import Estimate, Jackknife, jackknife
from eval.report.differences import clip_values, difference, mean_interval, pairing_rule, pairs, strongest
from eval.report.settings import settings
from teacher.files.lines import append_lines
from tests.eval.report.comparison import grouped, page_of, three_models
from tests.eval.report.comparison import row as vta_row


@pytest.fixture
def three():
    return three_models()


IDS = [f"clip{k}" for k in range(40)]


def row(model, metrics, *, seed=0, estimates=None, clips_digest="same", **changes):
    values = {
        "task": "vta", "model": model, "steps": 1, "seed": seed, "nfe": 1, "guidance": 1.0, "metrics": metrics,
        "estimates": estimates or {}, "num_clips": len(IDS), "config_digest": model, "run_id": "r", "command": "c",
        "clips_digest": clips_digest,
    }  # fmt: skip
    return Row(**(values | changes))


def two(rows, scores=None):
    """Both settings of rows, with `scores` per row where given."""
    clips = {} if scores is None else {
        r.scores_key: dict(zip(IDS, own, strict=True)) for r, own in zip(rows, scores, strict=True)
    }  # fmt: skip
    a, b = settings(rows, clips)
    return a, b


def estimate(found: Jackknife):
    return Estimate.of_jackknife(found)


def test_over_clips_it_is_the_mean_difference_with_wilcoxons_test():
    rng = np.random.default_rng(0)
    first, common = rng.normal(0.3, 0.1, 40), rng.normal(0, 5.0, 40)
    scores = [[{"kl": v} for v in first + common], [{"kl": v} for v in common]]
    rows = [row("teacher", {"kl": float((first + common).mean())}), row("student", {"kl": float(common.mean())})]
    found = difference(*two(rows, scores), "kl")
    assert found.how == "paired over clips"
    assert found.value == pytest.approx(first.mean())
    assert found.low < found.value < found.high
    assert found.high - found.low < 0.1  # the common part, fifty times as wide, cancels
    assert found.p_value == pytest.approx(wilcoxon(first).pvalue)
    assert found.clear


def test_over_groups_common_luck_cancels_too():
    """Two distances that move together when clips are left out: their difference is far surer than either."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=40)
    found = jackknife(lambda z: float(z.mean()), x)
    other = Jackknife(
        value=found.value + 0.01, replicates=tuple(r + 0.01 for r in found.replicates), counts=found.counts, seed=0
    )
    rows = [
        row("teacher", {"frechet": other.value}, estimates={"frechet": estimate(other)}),
        row("student", {"frechet": found.value}, estimates={"frechet": estimate(found)}),
    ]
    outcome = difference(*two(rows), "frechet")
    assert outcome.how == "paired over groups of clips"
    assert (outcome.value, outcome.low, outcome.high) == pytest.approx((0.01, 0.01, 0.01))
    assert rows[0].estimates["frechet"].high - rows[0].estimates["frechet"].low > 0.3
    unlike = [rows[0], row("student", {"frechet": found.value}, estimates=rows[1].estimates, clips_digest="other")]
    assert difference(*two(unlike), "frechet").how.startswith("no interval")


def test_the_p_value_of_groups_is_students():
    replicates = (1.0, 2.0, 3.0, 6.0)
    noisy = Jackknife(value=3.0, replicates=replicates, counts=(40,), seed=0)
    zero = Jackknife(value=0.0, replicates=(0.0,) * 4, counts=(40,), seed=0)
    rows = [
        row("teacher", {"kad": 3.0}, estimates={"kad": estimate(noisy)}),
        row("student", {"kad": 0.0}, estimates={"kad": estimate(zero)}),
    ]
    outcome = difference(*two(rows), "kad")
    error = np.sqrt(3 / 4 * sum((r - 3.0) ** 2 for r in replicates))  # 3.24: t = 0.926 with 3 degrees of freedom
    assert error == pytest.approx(3.24037)
    assert outcome.p_value == pytest.approx(0.42278, abs=1e-4)
    assert not outcome.clear


def test_over_seeds_only_where_nothing_else_is_there():
    rows = [row("teacher", {"kad": v}, seed=k) for k, v in enumerate((1.0, 2.0, 3.0))]
    rows += [row("student", {"kad": v}, seed=k) for k, v in enumerate((0.5, 1.5, 2.6))]
    outcome = difference(*two(rows), "kad")
    assert outcome.how == "paired over seeds of the noise only"
    assert outcome.value == pytest.approx((0.5 + 0.5 + 0.4) / 3)
    assert outcome.p_value is None
    single = difference(*two([rows[0], rows[3]]), "kad")
    assert (single.low, single.high, single.clear) == (None, None, True)
    assert single.how.startswith("no interval")


def test_several_seeds_are_averaged_per_clip_first():
    """Noise of one seed that another undoes leaves no width."""
    noise = np.random.default_rng(2).normal(size=40)
    rows = [row(m, {"kl": 1.0 if m == "teacher" else 0.0}, seed=s) for s in (0, 1) for m in ("teacher", "student")]
    scores = [
        [{"kl": 1.0 + n} for n in noise],
        [{"kl": 0.0}] * 40,
        [{"kl": 1.0 - n} for n in noise],
        [{"kl": 0.0}] * 40,
    ]
    outcome = difference(*two(rows, scores), "kl")
    assert (outcome.low, outcome.high) == pytest.approx((1.0, 1.0))


def test_pseudo_values_of_onsets_average_to_the_jackknife_estimate():
    counts = [(3, 1, 0), (2, 0, 2), (0, 4, 1), (5, 0, 0)]
    scores = {f"c{k}": {"hits": h, "misses": m, "false_alarms": f, "kl": 0.0} for k, (h, m, f) in enumerate(counts)}
    whole = OnsetCounts(hits=10, misses=5, false_alarms=3).f1
    rest = [OnsetCounts(hits=10 - h, misses=5 - m, false_alarms=3 - f).f1 for h, m, f in counts]
    values = clip_values(scores, "onset_f1")
    assert np.mean(list(values.values())) == pytest.approx(4 * whole - 3 * np.mean(rest))


def test_interval_of_a_mean_is_students():
    low, high = mean_interval(np.array([1.0, 2.0, 3.0]))
    assert (low, high) == pytest.approx((2 - 4.302653 / np.sqrt(3), 2 + 4.302653 / np.sqrt(3)), rel=1e-6)
    with pytest.raises(ValueError, match="at least 2"):
        mean_interval(np.array([1.0]))


def test_groups_of_clips_and_seeds_are_used_where_clips_have_no_scores():
    def one(model, steps, value, replicates):
        estimate = Estimate(low=0.0, high=99.0, level=0.95, bias=0.0, count=9, method="m", bias_method="b",
                            replicates=replicates)  # fmt: skip
        return vta_row(model, steps, metrics={"frechet": value}, estimates={"frechet": estimate}, clips_digest="same")

    rows = [one("teacher", 25, 10.0, (9.0, 11.0, 10.0)), one("student", 1, 14.0, (13.0, 15.0, 17.0))]
    found = difference(*settings(rows, {}), "frechet")
    # Differences -4, -4, -7 by group: variance 2, error sqrt(2 x 2) = 2, t of two degrees of freedom 4.3027.
    assert (found.value, found.how) == (-4.0, "paired over groups of clips")
    assert found.high - found.value == pytest.approx(2 * 4.3027, abs=1e-3)
    rows = [vta_row(seed=s, metrics={"frechet": 10.0 + s}) for s in (0, 1)]
    rows += [vta_row("student", 1, s, metrics={"frechet": v}) for s, v in ((0, 12.0), (1, 15.0))]
    seeds = difference(*settings(rows, {}), "frechet")
    # Differences -2 and -4: mean -3, s / sqrt(2) = 1, t of one degree of freedom = tan(0.475 pi) = 12.706.
    assert seeds.value == pytest.approx(-3.0)
    assert seeds.high + 3.0 == pytest.approx(math.tan(0.475 * math.pi))
    assert "seeds" in seeds.how


def test_pairs_are_made_by_clip_not_by_position():
    rows = [vta_row(metrics={"kl": 2.5}), vta_row("student", 1, metrics={"kl": 3.5})]
    values = [[{"kl": float(k)} for k in range(4)], [{"kl": k + 1.0} for k in range(4)]]
    scores = {r.scores_key: {f"clip{k}": one for k, one in enumerate(own)} for r, own in zip(rows, values, strict=True)}
    other = rows[1].scores_key
    scores[other] = dict(reversed(scores[other].items()))
    found = difference(*settings(rows, scores), "kl")
    assert (found.low, found.high) == pytest.approx((-1.0, -1.0))


def test_jackknife_values_average_to_the_ratio_without_its_bias():
    counts = [OnsetCounts(hits=h, misses=m, false_alarms=f) for h, m, f in ((3, 1, 0), (0, 2, 2), (4, 0, 1))]
    scores = {str(k): {"hits": c.hits, "misses": c.misses, "false_alarms": c.false_alarms}
              for k, c in enumerate(counts)}  # fmt: skip
    values = clip_values(scores | {"unknown": {"kl": 1.0}}, "onset_f1")
    # F1 of all: 14 / 20. Without each: 8/13, 14/16, 6/11. n f - (n - 1) f_-i.
    assert values == pytest.approx({"0": 2.1 - 16 / 13, "1": 2.1 - 28 / 16, "2": 2.1 - 12 / 11})
    assert clip_values(scores, "kl") is None


def test_the_interval_covers_the_true_difference_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(loc=0.3, size=(2000, 10))
    ends = [mean_interval(d) for d in draws]
    covered = np.mean([low <= 0.3 <= high for low, high in ends])
    assert covered == pytest.approx(0.95, abs=0.015)  # three standard errors of 2000 draws


def test_students_meet_the_teacher_at_its_best_scale_and_at_their_own_steps(three):
    found = pairs(settings(three, {}))
    assert [pair.title for pair in found] == [
        "Student, guidance 1, 1 step, against Teacher, guidance 1.4, 25 steps",  # no teacher at 1: its best scale
        "Student, guidance 1, 1 step, against Teacher, guidance 1.4, 1 step",
        "Student, guidance 1.4, 1 step, against Teacher, guidance 1.4, 25 steps",
        "Student, guidance 1.4, 1 step, against Teacher, guidance 1.4, 1 step",
        "tiny, 1 step, against Teacher, guidance 1.4, 25 steps",
        "tiny, 1 step, against Teacher, guidance 1.4, 1 step",
        "Student, guidance 1.4, 2 steps, against Teacher, guidance 1.4, 25 steps",
    ]
    higher = [dataclasses.replace(r, metrics={"is_panns": r.metrics["frechet"]}) for r in three]
    assert strongest(settings(higher, {})).guidance == 4.5  # higher is better: 8 beats 5
    assert pairs(settings([r for r in three if r.model != "teacher"], {})) == []


def test_verdicts_follow_direction_and_interval(three):
    lines = {pair.title: pair.lines[0] for pair in pairs(settings(three, {}))}
    one = "Student, guidance 1.4, 1 step, against Teacher, guidance 1.4, "
    # 6 - 5 = 1; differences by group 1, 1.5, 0.5: error sqrt(2 x 1/6) = 0.577, t of two degrees 4.30, so 1 -+ 2.48.
    assert lines[f"{one}25 steps"].found.low == pytest.approx(1 - 4.3027 * (1 / 3) ** 0.5, abs=1e-3)
    assert lines[f"{one}25 steps"].verdict == "not clearly different"
    assert lines[f"{one}1 step"].verdict == "better"  # 6 against 40, lower is better
    assert lines["tiny, 1 step, against Teacher, guidance 1.4, 25 steps"].verdict == "worse"


def test_seeds_alone_never_make_a_clear_difference():
    rows = [vta_row(seed=s, metrics={"precision": 0.5}) for s in (0, 1)]
    rows += [vta_row("student", 1, seed=s, metrics={"precision": 0.75}) for s in (0, 1)]
    (pair,) = pairs(settings(rows, {}))
    assert (pair.lines[0].found.low, pair.lines[0].found.high) == (0.25, 0.25)
    assert pair.counts == "1 with no interval over clips"


def test_a_difference_over_clips_stands_on_the_page_with_its_p_value(tmp_path):
    rows = [vta_row(metrics={"kl": 2.0}, num_clips=6), vta_row("student", 1, metrics={"kl": 3.0}, num_clips=6)]
    lines = [
        json_line({"task": "vta", "model": r.model, "steps": r.steps, "seed": 0, "config_digest": r.config_digest,
                   "id": f"c{k}", "kl": r.metrics["kl"] + 0.01 * k * (r.model == "student")})
        for r in rows for k in range(6)
    ]  # fmt: skip
    append_lines(tmp_path / "clips.jsonl", lines)
    page, markdown = page_of(tmp_path, rows)
    # Six differences of one sign: two of 2^6 sign patterns are as extreme, p = 0.03125.
    assert re.search(r"\| KL \(embedded\) ↓ \| \+1\.000 \| \[\+\d\.\d+, \+\d\.\d+\] \| 0\.031 \| clips \|", markdown)
    assert "▼ worse" in page
    assert "Student, 1 step, against Teacher, 25 steps: 1 clearly worse" in page


def test_every_student_meets_the_baseline_at_its_own_scale_and_the_rule_is_told(tmp_path):
    """At 4.5 the teacher is better (5 against 10), yet a student at 1.4 meets 1.4, at most steps and at its own."""
    rows = [
        vta_row(steps=n, guidance=w, metrics={"frechet": 10.0 if w == 1.4 else 5.0}) for w in (1.4, 4.5) for n in (1, 4)
    ]
    rows += [vta_row("student", n, guidance=w) for w in (1.4, 4.5) for n in (1, 4)]
    rows += [vta_row("base", n, kind="teacher", metrics={"frechet": 1.0}) for n in (1, 4)]
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
    outcome = pairing_rule(settings(rows, {}))
    assert "The baseline is" not in outcome  # there is one alone
    assert (
        "Teacher was not run at the guidance scale of Student at 1; it is taken at 1.4, the best by FD (embedded) at "
        "25 steps."
    ) in outcome
    single = [r for r in rows if r.guidance != 4.5]
    assert "taken at 1.4, the only scale there is." in pairing_rule(settings(single, {}))
