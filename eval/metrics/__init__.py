"""All metrics, in the one table that rows, page, paper, console, cautions and checks follow.

A new metric is a file that declares it and its name in METRICS. Importing this loads no network and not torch.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import get_args

from eval.metrics.aesthetics import AESTHETICS
from eval.metrics.alignment import CLAP_LAION, CLAP_MS, IB_SCORE
from eval.metrics.base import (
    EMBEDDED,
    EVENTS,
    Aspect,
    ClipMetric,
    ClipScorer,
    Metric,
    PaperColumn,
    SetMetric,
    Task,
    clip_scores,
)
from eval.metrics.desync import DESYNC
from eval.metrics.frechet import (
    FD_EMBEDDED,
    FD_EMBEDDED_INFINITE,
    FD_PANNS,
    FD_PANNS_INFINITE,
    FD_PASST,
    FD_PASST_INFINITE,
    FD_VGGISH,
    FD_VGGISH_INFINITE,
)
from eval.metrics.greatest_hits import GREATEST_HITS
from eval.metrics.inception import IS_EMBEDDED, IS_PANNS, IS_PASST
from eval.metrics.kernel import KAD_EMBEDDED, KAD_PANNS, KAD_PASST
from eval.metrics.kl import KL_EMBEDDED, KL_PANNS, KL_PASST
from eval.metrics.manifold import MANIFOLD_EMBEDDED, MANIFOLD_PASST
from eval.metrics.motion import MOTION
from eval.metrics.onsets import ONSET_CLIPS, ONSET_F1, ONSET_PRECISION, ONSET_RECALL
from eval.metrics.pam import PAM
from eval.metrics.uncertainty import Estimate

__all__ = [
    "COMPANIONS",
    "EMBEDDED",
    "EMBEDDED_NOTE",
    "EVENTS",
    "METRICS",
    "PUBLISHED_NOTE",
    "ClipMetric",
    "ClipScorer",
    "Metric",
    "PaperColumn",
    "SetMetric",
    "Task",
    "clip_metrics",
    "clip_scores",
    "leading",
    "metric",
    "metrics_of",
    "model_free_scorers",
    "pooled",
    "pooled_intervals",
    "set_metrics",
]

DISTANCE_CLIPS = Metric(
    key="distance_clips",
    label="Clips of the floor",
    better=None,
    digits=0,
    explanation="Real clips outside the test set that the distances of real sound are of; with fewer than the models "
    "have, sampling alone makes FD of real sound larger than theirs, and it is no floor.",
)
METRICS: tuple[Metric, ...] = (
    FD_PASST,
    FD_PANNS,
    FD_VGGISH,
    KL_PANNS,
    KL_PASST,
    IS_PANNS,
    IB_SCORE,
    DESYNC,
    CLAP_LAION,
    CLAP_MS,
    FD_EMBEDDED,
    KAD_EMBEDDED,
    KL_EMBEDDED,
    IS_EMBEDDED,
    ONSET_F1,
    ONSET_PRECISION,
    ONSET_RECALL,
    ONSET_CLIPS,
    DISTANCE_CLIPS,
    IS_PASST,
    KAD_PASST,
    KAD_PANNS,
    PAM,
    *AESTHETICS,
    FD_PASST_INFINITE,
    FD_PANNS_INFINITE,
    FD_VGGISH_INFINITE,
    FD_EMBEDDED_INFINITE,
    *MANIFOLD_PASST,
    *MANIFOLD_EMBEDDED,
    *GREATEST_HITS,
    MOTION,
)
"""All metrics in the order of tables: first the columns that publications have."""

EMBEDDED_NOTE = (
    "Scores marked (embedded) use this project's own audio features and classes, which need no weights. They rank the "
    "models of this run against each other and against real sound. They are not comparable with published figures, "
    "which use pretrained networks (PaSST, PANNs, VGGish) and other clips."
)
PUBLISHED_NOTE = (
    "Scores named after a published network use its official weights, with this project's own reading of sound and "
    "its own front ends. They can be placed beside published figures only for the same clips, number of clips and "
    "length."
)
COMPANIONS = {
    "_std": ("deviation", 3, "Standard deviation over the parts that {label} is averaged over; no error of it."),
    "_splits": ("parts", 0, "Parts of the clips that {label} is averaged over; only equal numbers can be compared."),
    "_error": ("error", 3, "Standard error of the intercept that {label} is."),
    "_bias": ("bias", 2, "First-order bias of {label} at this number of clips, as rows of older versions keep it."),
    "_clips": ("clips", 0, "Clips that have {label}; it is their mean."),
}
"""Numbers of a row beside a metric, by the suffix of its key: the text after its label, digits, explanation."""
_BY_KEY = {m.key: m for m in METRICS}


def metric(key: str) -> Metric:
    """The metric of a key. One that is not in METRICS is shown under its key, without a direction."""
    if key in _BY_KEY:
        return _BY_KEY[key]
    for suffix, (word, digits, explanation) in COMPANIONS.items():
        stem = key.removesuffix(suffix)
        if stem != key:
            of = metric(stem)
            return Metric(
                key=key,
                label=f"{of.label}, {word}",
                better=None,
                digits=digits,
                explanation=explanation.format(label=of.label),
                source=of.source,
            )
    return Metric(key=key, label=key, better=None, digits=3, explanation="A score without a description here.")


def metrics_of(keys: Iterable[str]) -> tuple[Metric, ...]:
    """The metrics of some keys in the order of METRICS, those of the main table first. Numbers that belong to a metric
    (COMPANIONS) follow it, and unknown keys come last."""
    order = {m.key: k for k, m in enumerate(sorted(METRICS, key=lambda m: not m.main))}

    def place(key: str) -> tuple[int, int]:
        for n, stem in enumerate((key, *(key.removesuffix(suffix) for suffix in COMPANIONS))):
            if stem in order:
                return order[stem], n
        return len(order), 0

    return tuple(metric(key) for key in sorted(dict.fromkeys(keys), key=place))


def leading(keys: Iterable[str]) -> list[str]:
    """The metrics of some keys that a summary shows: one of each aspect, in the order of `Aspect`."""
    present = [_BY_KEY[key] for key in dict.fromkeys(keys) if key in _BY_KEY]
    order = {m.key: k for k, m in enumerate(METRICS)}
    found = []
    for aspect in get_args(Aspect):
        own = sorted((m for m in present if m.aspect == aspect), key=lambda m: (not m.leads, order[m.key]))
        found += [own[0].key] if own else []
    return found


def pooled(per_clip: Sequence[Mapping[str, float]], keys: Collection[str] | None = None) -> dict[str, float]:
    """Metrics of a set from the values of its clips: means, ratios of sums, and the number of clips of each where not
    all clips have a value. `keys` selects metrics; without it all are computed."""
    return {key: value for one in _of_clips(per_clip, keys) for key, value in one.pooled(per_clip).items()}


def pooled_intervals(
    per_clip: Sequence[Mapping[str, float]], keys: Collection[str] | None = None
) -> dict[str, Estimate]:
    """Percentile bootstrap intervals of `pooled`, over the clips that have a value; none for a single clip."""
    return {key: found for one in _of_clips(per_clip, keys) for key, found in one.interval(per_clip).items()}


def _of_clips(per_clip: Sequence[Mapping[str, float]], keys: Collection[str] | None) -> list[ClipMetric]:
    """The metrics that some clips have; a value that no metric is made of is one of its own."""
    there = {key for entry in per_clip for key in entry}
    known = [one for one in clip_metrics() if there & set(one.names)]
    unknown = sorted(there - {key for one in known for key in one.names})
    found = [*known, *(ClipMetric(key=key, label=key, better=None, digits=3, explanation="") for key in unknown)]
    return [one for one in found if keys is None or one.key in keys or one.count_key in keys]


def set_metrics() -> Iterator[SetMetric]:
    """The metrics of METRICS that are computed from a whole set of clips."""
    return (m for m in METRICS if isinstance(m, SetMetric))


def clip_metrics() -> Iterator[ClipMetric]:
    """Those of single clips."""
    return (m for m in METRICS if isinstance(m, ClipMetric))


def model_free_scorers() -> tuple[ClipScorer, ...]:
    """The scorers of the clip metrics that every comparison computes and that need no published model."""
    makers = dict.fromkeys(metric.scorer for metric in clip_metrics() if metric.compared)
    return tuple(make() for make in makers if make is not None)
