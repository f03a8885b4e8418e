"""Scores generated clips against the reference clips: first what is heard, part by part, then the scores of the set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from torch import Tensor

from eval.compare.rows import Task, check_distinct
from eval.features.clip_features import ClipFeatures
from eval.features.sources import FeatureSource, hear
from eval.metrics.clip_metrics import ClipMetric, judged
from eval.metrics.clip_scores import clip_estimates, clip_metrics
from eval.metrics.kl import kl_divergence
from eval.metrics.recipes import DIVERGENCES, recipes
from eval.metrics.uncertainty import Estimate
from teacher.features.store import Record


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of a set, what surrounds them, and per clip what can be told of a single clip."""

    metrics: Mapping[str, float]
    per_clip: tuple[Mapping[str, float], ...]
    estimates: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scorer:
    """The reference side of every score; built once, used for all models and step counts."""

    listeners: tuple[FeatureSource, ...]
    judges: tuple[ClipMetric, ...]
    records: tuple[Record, ...]
    reference: ClipFeatures
    """What the listeners say of the real sound of the records, in their order."""
    sample_rate: int
    num_samples: int
    """Samples of every reference clip; generated waves are cut to it."""
    costly: bool = False
    """Also the scores that take many distances (Frechet distance at infinitely many clips)."""

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
        listeners: Sequence[FeatureSource],
        judges: Sequence[ClipMetric] = (),
        sample_rate: int,
    ) -> Self:
        """From the real sound (clips, samples) of all records at once; `TestSet` reads it part by part."""
        heard = hear(listeners, [record.id for record in records], reference, sample_rate)
        return cls(
            listeners=tuple(listeners),
            judges=tuple(judges),
            records=tuple(records),
            reference=heard,
            sample_rate=sample_rate,
            num_samples=reference.shape[1],
        )

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the reference clips."""
        return self.reference.ids

    @property
    def name(self) -> str:
        """Everything beside the waves that decides the scores."""
        return "; ".join([*(one.name for one in self.listeners), *(one.name for one in self.judges)])

    def hear(self, first: int, waves: Tensor, task: Task) -> ClipFeatures:
        """What is said of waves (clips, samples) generated for the clips from `first` on, with their own scores.

        kl, kl_passt, kl_panns: divergence of class posteriors from those of the real clip, for models with classes;
        and what the judges say.

        Raises:
            ValueError: more waves than clips, waves shorter than the reference, or not finite.
        """
        records = self.records[first : first + len(waves)]
        if len(records) != len(waves):
            raise ValueError(f"waves must be one per reference clip: {first + len(waves)} of {len(self.records)} clips")
        waves = self.cut(waves)
        heard = hear(self.listeners, [record.id for record in records], waves, self.sample_rate)
        real = self.reference.clips(first, first + len(waves))
        per_clip = judged(self.judges, records, waves, self.sample_rate, task)
        for source, name in DIVERGENCES.items():
            expected, found = real.logits(source), heard.logits(source)
            if expected is not None and found is not None:
                for entry, value in zip(per_clip, kl_divergence(expected, found).tolist(), strict=True):
                    entry[name] = value
        return ClipFeatures(ids=heard.ids, tensors=heard.tensors, per_clip=tuple(per_clip))

    def cut(self, waves: Tensor) -> Tensor:
        """Waves on the processor, as long as the reference."""
        if waves.ndim != 2 or waves.shape[1] < self.num_samples:
            raise ValueError(
                f"waves must be (clips, samples) of at least {self.num_samples} samples, got {tuple(waves.shape)}"
            )
        return waves[:, : self.num_samples].detach().cpu()

    def score(self, heard: ClipFeatures) -> Scores:
        """Scores of the set: those of `eval.metrics.recipes`, means of the clips' own scores, pooled onsets; with
        estimates.

        Raises:
            ValueError: fewer than two clips.
        """
        whole = self.set_scores(heard)
        return Scores(
            metrics={**whole.metrics, **clip_metrics(heard.per_clip)},
            per_clip=heard.per_clip,
            estimates={**whole.estimates, **clip_estimates(heard.per_clip)},
        )

    def set_scores(self, heard: ClipFeatures, *, uses_reference: bool | None = None) -> Scores:
        """Scores of `eval.metrics.recipes` alone: all, those that use the reference, or those that do not."""
        metrics: dict[str, float] = {}
        estimates: dict[str, Estimate] = {}
        for recipe in recipes(self.reference, heard, costly=self.costly):
            if uses_reference in (None, recipe.uses_reference):
                metrics |= recipe.values(self.reference, heard)
                estimates |= recipe.estimates(self.reference, heard)
        return Scores(metrics=metrics, per_clip=(), estimates=estimates)
