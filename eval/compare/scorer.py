"""Scores generated clips against the real ones: first the features of each part, then the metrics of the set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from torch import Tensor

from eval.compare.rows import check_distinct
from eval.features.clip_features import ClipFeatures, set_estimates, set_values
from eval.features.sources import FeatureSource, features_of
from eval.metrics import ClipScorer, Task, clip_metrics, clip_scores, pooled, pooled_intervals, set_metrics
from eval.metrics.uncertainty import Estimate
from teacher.features.store import Record


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Metrics of a set, their intervals, and the values of its clips."""

    metrics: Mapping[str, float]
    per_clip: tuple[Mapping[str, float], ...]
    estimates: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scorer:
    """The references of every score, built once and used for all models and step counts."""

    sources: tuple[FeatureSource, ...]
    clip_scorers: tuple[ClipScorer, ...]
    records: tuple[Record, ...]
    reference: ClipFeatures
    """Features of the real sound of the records, in their order."""
    sample_rate: int
    num_samples: int
    """Samples of every reference clip; generated waves are cut to it."""
    costly: bool = False
    """Whether to compute the metrics that need many distances too (Frechet distance at infinitely many clips)."""

    def __post_init__(self) -> None:
        if tuple(record.id for record in self.records) != self.reference.ids:
            raise ValueError("reference must be of the records, in their order")
        check_distinct(self.reference.ids)

    @classmethod
    def build(
        cls,
        *,
        reference: Tensor,
        records: Sequence[Record],
        sources: Sequence[FeatureSource],
        clip_scorers: Sequence[ClipScorer] = (),
        sample_rate: int,
    ) -> Self:
        """Build from the real sound (clips, samples) of all records at once; `TestSet` reads it part by part."""
        features = features_of(sources, [record.id for record in records], reference, sample_rate)
        return cls(
            sources=tuple(sources),
            clip_scorers=tuple(clip_scorers),
            records=tuple(records),
            reference=features,
            sample_rate=sample_rate,
            num_samples=reference.shape[1],
        )

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the reference clips."""
        return self.reference.ids

    @property
    def name(self) -> str:
        """Everything that the scores depend on beside the waves, as text."""
        return "; ".join([*(one.name for one in self.sources), *(one.name for one in self.clip_scorers)])

    def features(self, first: int, waves: Tensor, task: Task) -> ClipFeatures:
        """Features of waves (clips, samples) generated for the clips from `first` on, with the values of each clip:
        those of the scorers, and the divergences of its class logits from those of the real clip.

        Raises:
            ValueError: more waves than clips, waves shorter than the reference, or not finite.
        """
        records = self.records[first : first + len(waves)]
        if len(records) != len(waves):
            raise ValueError(f"waves must be one per reference clip: {first + len(waves)} of {len(self.records)} clips")
        waves = self.cut(waves)
        made = features_of(self.sources, [record.id for record in records], waves, self.sample_rate)
        real = self.reference.clips(first, first + len(waves))
        per_clip = clip_scores(self.clip_scorers, records, waves, self.sample_rate, task)
        for metric in clip_metrics():
            expected, found = real.logits(metric.source), made.logits(metric.source)
            if metric.divergence is not None and expected is not None and found is not None:
                for entry, value in zip(per_clip, metric.divergence(expected, found).tolist(), strict=True):
                    entry[metric.key] = value
        return ClipFeatures(ids=made.ids, tensors=made.tensors, per_clip=tuple(per_clip))

    def cut(self, waves: Tensor) -> Tensor:
        """Waves on the CPU, cut to the length of the reference. Raises ValueError for shorter ones."""
        if waves.ndim != 2 or waves.shape[1] < self.num_samples:
            raise ValueError(
                f"waves must be (clips, samples) of at least {self.num_samples} samples, got {tuple(waves.shape)}"
            )
        return waves[:, : self.num_samples].detach().cpu()

    def score(self, features: ClipFeatures) -> Scores:
        """All metrics of a set with their estimates: those of its features and those of the values of its clips.

        Raises:
            ValueError: fewer than two clips.
        """
        whole = self.set_scores(features)
        return Scores(
            metrics={**whole.metrics, **pooled(features.per_clip)},
            per_clip=features.per_clip,
            estimates={**whole.estimates, **pooled_intervals(features.per_clip)},
        )

    def set_scores(self, features: ClipFeatures, *, uses_reference: bool | None = None) -> Scores:
        """Metrics of the features alone: all, those that use the reference, or those that do not."""
        wanted = [
            metric
            for metric in set_metrics()
            if (self.costly or not metric.costly) and uses_reference in (None, metric.uses_reference)
        ]
        return Scores(
            metrics=set_values(wanted, self.reference, features),
            per_clip=(),
            estimates=set_estimates(wanted, self.reference, features),
        )
