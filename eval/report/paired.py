"""Is one setting better than another? Paired differences of settings scored on the same clips and noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from eval.compare.rows import ClipScores, Row, ScoresKey
from eval.metrics import ClipMetric, metric
from eval.metrics.uncertainty import Jackknife, paired_difference
from eval.report.summary import Summary, summarise

LEVEL = 0.95


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """One task, model, step count and guidance: its rows by seed and their per-clip scores where there are any."""

    summary: Summary
    rows: Mapping[int, Row]
    clips: Mapping[int, ClipScores]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Score of the first setting minus that of the second, its 95 % interval and two-sided p-value, as far as there is
    material for them; `how` says which."""

    value: float
    low: float | None
    high: float | None
    p_value: float | None
    how: str

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero; without one, whether there is a difference at all."""
        if self.low is None or self.high is None:
            return self.value != 0.0
        return self.low > 0.0 or self.high < 0.0


def settings(rows: Sequence[Row], clips: Mapping[ScoresKey, ClipScores]) -> list[Setting]:
    """The settings of some rows, in the order of `summarise`."""
    found = []
    for summary in summarise(rows):
        own = {r.seed: r for r in rows if (r.task, r.model, r.steps, r.guidance) == summary.key}
        scores = {seed: clips[r.scores_key] for seed, r in own.items() if r.scores_key in clips}
        found.append(Setting(summary=summary, rows=own, clips=scores))
    return found


def difference(a: Setting, b: Setting, key: str) -> Difference:
    """Difference of a score by the best way there is material for.

    1. Scores of the clips on both sides: each clip's difference, averaged over the seeds both have; bootstrap of the
       mean and Wilcoxon's signed-rank test. Onset ratios: of jackknife pseudo-values n f - (n - 1) f_{-i}; no test.
    2. Delete-a-group values on both sides with the same groups: their differences, averaged over common seeds; Student
       t with groups - 1 degrees of freedom.
    3. Two or more common seeds: over seeds, which says nothing about other clips.
    4. Nothing.
    """
    seeds = sorted(a.rows.keys() & b.rows.keys())
    value = a.summary.mean[key] - b.summary.mean[key]
    if seeds:  # other seeds than the common ones have no partner: no difference of theirs is paired
        value = float(np.mean([a.rows[seed].metrics[key] - b.rows[seed].metrics[key] for seed in seeds]))
    pairs = _over_clips(a, b, key)
    if pairs is not None:
        found = paired_difference(pairs, np.zeros_like(pairs), level=LEVEL)
        p_value = None if _ratio_metric(key) else found.p_value
        # The mean of pseudo-values is a jackknife estimate; the interval goes around the difference that is printed.
        shift = value - found.interval.value
        low, high = found.interval.low + shift, found.interval.high + shift
        return Difference(value=value, low=low, high=high, p_value=p_value, how="paired over clips")
    groups = _over_groups(a, b, key)
    if groups is not None:
        interval, error = groups.interval(level=LEVEL), groups.standard_error
        freedom = len(groups.replicates) - 1
        p_value = 2.0 * float(stdtr(freedom, -abs(groups.value) / error)) if error > 0.0 else None
        how = "paired over groups of clips"
        return Difference(value=value, low=interval.low, high=interval.high, p_value=p_value, how=how)
    if len(seeds) > 1:
        over_seeds = np.array([a.rows[seed].metrics[key] - b.rows[seed].metrics[key] for seed in seeds])
        low, high = mean_interval(over_seeds)
        return Difference(value=value, low=low, high=high, p_value=None, how="paired over seeds of the noise only")
    return Difference(value=value, low=None, high=None, p_value=None, how="no interval, the best value is bold")


def mean_interval(values: NDArray[np.float64], *, level: float = LEVEL) -> tuple[float, float]:
    """mean -+ t_{n-1} s / sqrt(n), the interval of the mean of n independent values (n,), at least two."""
    n = len(values)
    if n < 2:
        raise ValueError(f"values must be at least 2, got {n}")
    half = float(stdtrit(n - 1, 0.5 + level / 2) * values.std(ddof=1) / np.sqrt(n))
    return float(values.mean()) - half, float(values.mean()) + half


def clip_values(scores: ClipScores, key: str) -> dict[str, float] | None:
    """What each clip contributes to a score, so that their mean is the score or its jackknife estimate; None where
    clips do not have it."""
    of = _ratio_metric(key)
    if of is None or of.ratio is None:
        own = {i: s[key] for i, s in scores.items() if key in s}
        return own if len(own) > 1 else None
    having = [i for i, s in scores.items() if of.names[0] in s]
    if len(having) < 2:
        return None
    counts, n = of.rows([scores[i] for i in having]), len(having)
    sums = counts.sum(axis=0, keepdims=True)
    whole, without = of.ratio(sums), of.ratio(sums - counts)
    return dict(zip(having, (n * whole - (n - 1) * without).tolist(), strict=True))


def _ratio_metric(key: str) -> ClipMetric | None:
    """The metric of a key where it is a ratio of sums over clips."""
    of = metric(key)
    return of if isinstance(of, ClipMetric) and of.ratio is not None else None


def _over_clips(a: Setting, b: Setting, key: str) -> NDArray[np.float64] | None:
    """Differences per clip (clips,), averaged over the common seeds; None without per-clip values of the same clips."""
    found = []
    for seed in sorted(a.clips.keys() & b.clips.keys()):
        first, second = clip_values(a.clips[seed], key), clip_values(b.clips[seed], key)
        if first is None or second is None or first.keys() != second.keys():
            return None
        found.append([first[i] - second[i] for i in sorted(first)])
    return np.mean(found, axis=0) if found else None


def _over_groups(a: Setting, b: Setting, key: str) -> Jackknife | None:
    """The difference with its replicates, averaged over the common seeds; None where groups or clips differ."""
    found = []
    for seed in sorted(a.rows.keys() & b.rows.keys()):
        rows = a.rows[seed], b.rows[seed]
        sides = [(row, row.estimates[key]) for row in rows if key in row.estimates]
        if len(sides) < 2 or rows[0].clips_digest is None or rows[0].clips_digest != rows[1].clips_digest:
            return None
        (_, first), (_, second) = sides
        same = (first.count, first.seed, len(first.replicates)) == (second.count, second.seed, len(second.replicates))
        if not same or len(first.replicates) < 2:
            return None
        values = [
            Jackknife(value=row.metrics[key], replicates=own.replicates, counts=(own.count,), seed=own.seed)
            for row, own in sides
        ]
        found.append(values[0].minus(values[1]))
    if not found:
        return None
    return Jackknife(
        value=float(np.mean([one.value for one in found])),
        replicates=tuple(np.mean([one.replicates for one in found], axis=0).tolist()),
        counts=found[0].counts,
        seed=found[0].seed,
    )
