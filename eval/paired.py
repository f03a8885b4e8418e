"""Is one setting better than another? Intervals of differences between settings scored on the same clips and noise."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from eval.onsets import OnsetCounts
from eval.rows import ClipScores, Model, Row, Summary, Task, summarise

CONFIDENCE = 0.95
POOLED = ("onset_precision", "onset_recall", "onset_f1")
"""Ratios of counts that are pooled over clips."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """One task, model and step count: its rows by seed and their per-clip scores where there are any."""

    summary: Summary
    rows: Mapping[int, Row]
    clips: Mapping[int, ClipScores]

    @property
    def task(self) -> Task:
        return self.summary.task

    @property
    def model(self) -> Model:
        return self.summary.model

    @property
    def steps(self) -> int:
        return self.summary.steps


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean of the first minus that of the second; half the width of its 95 % interval, 0 where none can be told."""

    value: float
    half_width: float
    how: str


def settings(rows: Sequence[Row], clips: Mapping[tuple[tuple[str, str, int, int], str], ClipScores]) -> list[Setting]:
    """The settings of some rows, in the order of `summarise`."""
    found = []
    for summary in summarise(rows):
        own = {r.seed: r for r in rows if (r.task, r.model, r.steps) == (summary.task, summary.model, summary.steps)}
        scores = {seed: clips[r.key, r.config_digest] for seed, r in own.items() if (r.key, r.config_digest) in clips}
        found.append(Setting(summary=summary, rows=own, clips=scores))
    return found


def difference(a: Setting, b: Setting, key: str) -> Difference:
    """Difference of a metric with the best interval there is material for.

    1. Per-clip scores of both: paired over clips, t_{n-1} s / sqrt(n), s the deviation of the clips' differences, each
       averaged over the seeds both have; for pooled ratios the differences of jackknife pseudo-values
       n f - (n - 1) f_{-i}.
    2. Intervals of both in their rows (metric_low, metric_high): half widths added in quadrature, which is too wide
       for paired settings.
    3. Two or more common seeds: paired over seeds, which says nothing about other clips.
    4. Nothing: half_width 0.
    """
    value = a.summary.mean[key] - b.summary.mean[key]
    over_clips = _over_clips(a, b, key)
    if over_clips is not None:
        return Difference(value=value, half_width=half_width(over_clips), how="paired over clips")
    widths = [_own_half_width(s, key) for s in (a, b)]
    if widths[0] is not None and widths[1] is not None:
        return Difference(value=value, half_width=math.hypot(widths[0], widths[1]), how="intervals of both values")
    seeds = sorted(a.rows.keys() & b.rows.keys())
    if len(seeds) > 1:
        pairs = np.array([a.rows[seed].metrics[key] - b.rows[seed].metrics[key] for seed in seeds])
        return Difference(value=value, half_width=half_width(pairs), how="paired over seeds of the noise only")
    return Difference(value=value, half_width=0.0, how="no interval, the best value is bold")


def half_width(values: NDArray[np.float64]) -> float:
    """t_{n-1} s / sqrt(n): half the 95 % interval of the mean of n independent values (n,), at least two."""
    n = len(values)
    if n < 2:
        raise ValueError(f"values must be at least 2, got {n}")
    return float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2) * values.std(ddof=1) / math.sqrt(n))


def clip_values(scores: ClipScores, key: str) -> dict[str, float] | None:
    """What each clip contributes to a metric, so that their mean is the metric or its jackknife estimate; None where
    clips do not have it."""
    if key not in POOLED:
        return {i: s[key] for i, s in scores.items()} if all(key in s for s in scores.values()) else None
    counted = {i: onset_counts(s) for i, s in scores.items() if "hits" in s}
    if len(counted) < 2:
        return None
    all_clips, n = reduce(add, counted.values()), len(counted)
    whole = _ratio(all_clips, key)
    return {i: n * whole - (n - 1) * _ratio(_without(all_clips, c), key) for i, c in counted.items()}


def onset_counts(scores: Mapping[str, float]) -> OnsetCounts:
    """The onset counts in the scores of a clip."""
    return OnsetCounts(hits=int(scores["hits"]), misses=int(scores["misses"]), false_alarms=int(scores["false_alarms"]))


def _without(total: OnsetCounts, part: OnsetCounts) -> OnsetCounts:
    return OnsetCounts(
        hits=total.hits - part.hits,
        misses=total.misses - part.misses,
        false_alarms=total.false_alarms - part.false_alarms,
    )


def _ratio(counts: OnsetCounts, key: str) -> float:
    return {"onset_precision": counts.precision, "onset_recall": counts.recall, "onset_f1": counts.f1}[key]


def _over_clips(a: Setting, b: Setting, key: str) -> NDArray[np.float64] | None:
    """Differences per clip (clips,), averaged over the common seeds; None without per-clip values of the same clips."""
    found = []
    for seed in sorted(a.clips.keys() & b.clips.keys()):
        first, second = clip_values(a.clips[seed], key), clip_values(b.clips[seed], key)
        if first is None or second is None or first.keys() != second.keys() or len(first) < 2:
            return None
        found.append([first[i] - second[i] for i in sorted(first)])
    return np.mean(found, axis=0) if found else None


def _own_half_width(setting: Setting, key: str) -> float | None:
    low, high = setting.summary.mean.get(f"{key}_low"), setting.summary.mean.get(f"{key}_high")
    return None if low is None or high is None else (high - low) / 2
