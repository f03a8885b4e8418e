"""Embedding models as a comparison uses them: waves at the generator's sample rate in, features out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from eval.extractors.base import EmbeddingModel
from eval.extractors.clip_audio import ClipAudio
from eval.features.clip_features import ClipFeatures
from eval.features.embedded import EmbeddedAudioFeatures, EmbeddedClassifier
from eval.metrics.embeddings import Embeddings


@runtime_checkable
class FeatureSource(Protocol):
    """A source of features. A clip's rows and logits do not depend on the other clips of its batch."""

    @property
    def source(self) -> str:
        """Short name: metrics, files of features and tables are labelled with it."""
        ...

    @property
    def name(self) -> str:
        """Everything that decides the values: model, digest of its weights, loading policy."""
        ...

    def embed(self, waves: Tensor, sample_rate: int) -> Embeddings:
        """waves (clips, samples) -> rows, and logits where the model has classes."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddedSource:
    """The features that need no weights, with a classifier fitted to the data of the comparison."""

    extractor: EmbeddedAudioFeatures
    classifier: EmbeddedClassifier
    labels: str
    """The origin of the classes, with a digest of the classifier if there is one; a part of the name."""

    @property
    def source(self) -> str:
        return "embedded"

    @property
    def name(self) -> str:
        return f"{self.extractor.name}, classes by {self.labels}"

    def embed(self, waves: Tensor, sample_rate: int) -> Embeddings:
        if sample_rate != self.extractor.sample_rate:
            raise ValueError(f"waves must have {self.extractor.sample_rate} Hz, got {sample_rate}")
        features = self.extractor(waves)
        return Embeddings(rows=features, counts=(1,) * len(features), logits=self.classifier.logits(features))


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelSource:
    """A published model with the policy by which sound reaches it: DC removed, resampled, cut."""

    source: str
    model: EmbeddingModel
    duration_s: float | None = None
    remove_dc: bool = True

    @property
    def policy(self) -> ClipAudio:
        """How a wave is prepared."""
        return ClipAudio(sample_rate=self.model.sample_rate, duration_s=self.duration_s, remove_dc=self.remove_dc)

    @property
    def name(self) -> str:
        return f"{self.model.name}, {self.policy.name}"

    def prepared(self, waves: Tensor, sample_rate: int) -> Tensor:
        """waves (clips, samples) at the model's rate."""
        return prepare_all(self.policy, waves, sample_rate)

    def embed(self, waves: Tensor, sample_rate: int) -> Embeddings:
        return self.model.embed(self.prepared(waves, sample_rate))


def prepare_all(policy: ClipAudio, waves: Tensor, sample_rate: int) -> Tensor:
    """waves (clips, samples) prepared by a policy, at its sample rate and length."""
    return torch.stack([policy.prepare(wave.double().numpy(), sample_rate) for wave in waves])


def features_of(sources: Sequence[FeatureSource], ids: Sequence[str], waves: Tensor, sample_rate: int) -> ClipFeatures:
    """Features of waves (clips, samples) by all sources."""
    with torch.no_grad():
        return ClipFeatures.of(ids, {one.source: one.embed(waves, sample_rate) for one in sources})
