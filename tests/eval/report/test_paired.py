"""Differences of settings: paired over clips where there are scores of clips, over groups of clips elsewhere."""

import numpy as np
import pytest
from scipy.stats import wilcoxon

from eval.compare.rows import Row
from eval.metrics.onsets import OnsetCounts
from eval.metrics.uncertainty import Estimate, Jackknife, jackknife
from eval.report.paired import clip_values, difference, mean_interval, settings

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
    told = difference(*two(rows), "frechet")
    assert told.how == "paired over groups of clips"
    assert (told.value, told.low, told.high) == pytest.approx((0.01, 0.01, 0.01))
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
    told = difference(*two(rows), "kad")
    error = np.sqrt(3 / 4 * sum((r - 3.0) ** 2 for r in replicates))  # 3.24: t = 0.926 with 3 degrees of freedom
    assert error == pytest.approx(3.24037)
    assert told.p_value == pytest.approx(0.42278, abs=1e-4)
    assert not told.clear


def test_over_seeds_only_where_nothing_else_is_there():
    rows = [row("teacher", {"kad": v}, seed=k) for k, v in enumerate((1.0, 2.0, 3.0))]
    rows += [row("student", {"kad": v}, seed=k) for k, v in enumerate((0.5, 1.5, 2.6))]
    told = difference(*two(rows), "kad")
    assert told.how == "paired over seeds of the noise only"
    assert told.value == pytest.approx((0.5 + 0.5 + 0.4) / 3)
    assert told.p_value is None
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
    told = difference(*two(rows, scores), "kl")
    assert (told.low, told.high) == pytest.approx((1.0, 1.0))


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
