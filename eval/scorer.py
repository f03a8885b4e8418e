"""Scores a set of generated waves against the reference clips."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Self

import torch
from torch import Tensor

from eval.extractors.base import Classifier, FeatureExtractor
from eval.frechet import frechet_bias, frechet_distance
from eval.inception_score import inception_score
from eval.kernel import kernel_distance, reference_bandwidth
from eval.kl import kl_divergence
from eval.onsets import DEFAULT_TOLERANCE_S, OnsetCounts, detect_onsets, match_onsets
from eval.statistics import GaussianStats

Events = tuple[float, ...] | None
"""Times (s) of the events of a clip; None where they are not known, which is not the same as none."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Set scores and, per clip in the order of the reference, what can be told of a single clip."""

    metrics: Mapping[str, float]
    per_clip: tuple[Mapping[str, float], ...]
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)
    """What the metrics were computed from: `embedded.features` and `embedded.logits`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scorer:
    """The reference side of every metric; built once, used for all models and step counts."""

    extractor: FeatureExtractor
    classifier: Classifier
    ids: tuple[str, ...]
    events: tuple[Events, ...]
    num_samples: int
    """Samples of every reference clip; generated waves are cut to it."""
    features: Tensor
    statistics: GaussianStats
    bandwidth: float
    """Kernel bandwidth of the kernel distance: median distance between the reference clips."""
    inception_splits: int = 1
    """One split by default: with tens of clips, ten splits would leave a handful each."""
    tolerance_s: float = DEFAULT_TOLERANCE_S

    @classmethod
    def build(
        cls,
        *,
        reference: Tensor,
        ids: Sequence[str],
        events: Sequence[Events],
        extractor: FeatureExtractor,
        classifier: Classifier,
        inception_splits: int = 1,
    ) -> Self:
        """reference (clips, samples): the real sound of the clips to be generated, in the order of `ids` and `events`.

        Raises:
            ValueError: unequal numbers, repeated ids or fewer than two clips.
        """
        if not len(reference) == len(ids) == len(events):
            raise ValueError(
                f"reference, ids and events must be equally many, got {len(reference)}, {len(ids)} and {len(events)}"
            )
        if len(set(ids)) != len(ids):
            raise ValueError(f"ids must be distinct, got {len(ids) - len(set(ids))} repetitions")
        features = extractor(reference)
        return cls(
            extractor=extractor,
            classifier=classifier,
            ids=tuple(ids),
            events=tuple(None if times is None else tuple(times) for times in events),
            num_samples=reference.shape[1],
            features=features,
            statistics=GaussianStats.from_features(features),
            bandwidth=reference_bandwidth(features),
            inception_splits=inception_splits,
        )

    def score(self, waves: Tensor, *, timing: bool) -> Scores:
        """Scores of waves (clips, samples), row k generated for reference clip k.

        frechet, frechet_bias (what sampling alone gives at this number of clips), kad, kl, inception_score,
        inception_score_std; with `timing`, onset_precision, onset_recall and onset_f1 pooled over the clips whose
        events are known, and onset_clips, their number.

        Raises:
            ValueError: wrong number of clips, waves shorter than the reference, or not finite.
        """
        if len(waves) != len(self.ids):
            raise ValueError(f"waves must be one per reference clip: {len(waves)} waves, {len(self.ids)} clips")
        waves = self._cut(waves)
        features = self.extractor(waves)
        logits = self.classifier.logits(features)
        divergence = kl_divergence(self.classifier.logits(self.features), logits)
        per_clip: list[dict[str, float]] = [{"kl": value} for value in divergence.tolist()]
        metrics = self._set_metrics(features) | {"kl": float(divergence.mean())} | self._inception(logits)
        if timing:
            counts = self._onset_counts(waves)
            for entry, count in zip(per_clip, counts, strict=True):
                if count is not None:
                    entry.update(hits=count.hits, misses=count.misses, false_alarms=count.false_alarms)
            metrics |= _pooled([count for count in counts if count is not None])
        return Scores(metrics=metrics, per_clip=tuple(per_clip), embeddings=_embedded(features, logits))

    def score_unpaired(self, waves: Tensor) -> Scores:
        """Scores of real or generated waves that belong to no particular reference clip: no kl, no onsets."""
        features = self.extractor(self._cut(waves))
        logits = self.classifier.logits(features)
        metrics = self._set_metrics(features) | self._inception(logits)
        return Scores(metrics=metrics, per_clip=(), embeddings=_embedded(features, logits))

    def reference_embeddings(self) -> dict[str, Tensor]:
        """Features and logits of the reference, as `Scores.embeddings` has those of generated waves."""
        return _embedded(self.features, self.classifier.logits(self.features))

    def _cut(self, waves: Tensor) -> Tensor:
        if waves.ndim != 2 or waves.shape[1] < self.num_samples:
            raise ValueError(
                f"waves must be (clips, samples) of at least {self.num_samples} samples, got {tuple(waves.shape)}"
            )
        return waves[:, : self.num_samples].detach().cpu()

    def _set_metrics(self, features: Tensor) -> dict[str, float]:
        generated = GaussianStats.from_features(features)
        return {
            "frechet": frechet_distance(self.statistics, generated),
            "frechet_bias": frechet_bias(self.statistics, self.statistics.count, generated.count),
            "kad": kernel_distance(self.features, features, bandwidth=self.bandwidth),
        }

    def _inception(self, logits: Tensor) -> dict[str, float]:
        score = inception_score(logits, splits=self.inception_splits)
        return {"inception_score": score.mean, "inception_score_std": score.std}

    def _onset_counts(self, waves: Tensor) -> list[OnsetCounts | None]:
        rate = self.extractor.sample_rate
        return [
            None if times is None else match_onsets(times, detect_onsets(wave.numpy(), rate), self.tolerance_s)
            for wave, times in zip(waves.to(torch.float32), self.events, strict=True)
        ]


def _embedded(features: Tensor, logits: Tensor) -> dict[str, Tensor]:
    return {"embedded.features": features, "embedded.logits": logits}


def _pooled(counts: Sequence[OnsetCounts]) -> dict[str, float]:
    if not counts:
        return {}
    total = reduce(add, counts)
    return {
        "onset_precision": total.precision,
        "onset_recall": total.recall,
        "onset_f1": total.f1,
        "onset_clips": float(len(counts)),
    }
