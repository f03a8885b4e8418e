"""Scores of single clips brought together: means, pooled onset ratios, and their bootstrap intervals."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from eval.metrics.onsets import OnsetCounts
from eval.metrics.uncertainty import Estimate, bootstrap_interval

COUNTS = ("hits", "misses", "false_alarms")
"""Counts of onsets per clip, which are pooled before any ratio is taken."""
ONSETS = ("onset_precision", "onset_recall", "onset_f1")
Entries = Sequence[Mapping[str, float]]


def clip_metrics(per_clip: Entries) -> dict[str, float]:
    """Means over clips, and onset ratios of the pooled counts with onset_clips, the clips whose events are known.

    A score that only some clips have is averaged over those; NAME_clips says how many.
    """
    metrics: dict[str, float] = {}
    for name, values in _columns(per_clip).items():
        metrics[name] = float(values.sum() / len(values))
        if len(values) < len(per_clip):
            metrics[f"{name}_clips"] = float(len(values))
    counted = _counts(per_clip)
    if len(counted):
        hits, misses, false_alarms = (int(total) for total in counted.sum(axis=0))
        total = OnsetCounts(hits=hits, misses=misses, false_alarms=false_alarms)
        metrics |= dict(zip(ONSETS, (total.precision, total.recall, total.f1), strict=True))
        metrics["onset_clips"] = float(len(counted))
    return metrics


def clip_estimates(per_clip: Entries) -> dict[str, Estimate]:
    """Percentile bootstraps over the clips that have a score; none for a single clip."""
    estimates = {
        name: Estimate.of_mean(bootstrap_interval(values))
        for name, values in _columns(per_clip).items()
        if len(values) > 1
    }
    counted = _counts(per_clip)
    if len(counted) > 1:
        for name in ONSETS:
            interval = bootstrap_interval(counted, statistic=partial(onset_ratio, name=name))
            estimates[name] = Estimate.of_mean(interval, bias_method="a ratio of sums, 0 to first order")
    return estimates


def onset_ratio(counts: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """Precision, recall or F1 of rows of (hits, misses, false alarms), (rows, 3), as `OnsetCounts` has them: 1 where
    there was nothing to get wrong, 0 where there are only errors."""
    hits, misses, false_alarms = counts.T
    wrong = {"onset_precision": false_alarms, "onset_recall": misses, "onset_f1": (misses + false_alarms) / 2.0}[name]
    other = {"onset_precision": misses, "onset_recall": false_alarms, "onset_f1": np.zeros_like(hits)}[name]
    whole = hits + wrong
    return np.where(whole > 0, hits / np.where(whole > 0, whole, 1.0), np.where(other > 0, 0.0, 1.0))


def _columns(per_clip: Entries) -> dict[str, NDArray[np.float64]]:
    names = sorted({name for entry in per_clip for name in entry} - set(COUNTS))
    return {name: np.array([entry[name] for entry in per_clip if name in entry]) for name in names}


def _counts(per_clip: Entries) -> NDArray[np.float64]:
    return np.array([[entry[name] for name in COUNTS] for entry in per_clip if "hits" in entry])
