"""Real sounds outside the test set, read as extraction read them: for the classifier and the floor of the distances."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from eval.features.clip_features import ClipFeatures
from eval.features.embedded import EmbeddedAudioFeatures, EmbeddedClassifier, labels_are_useful, pseudo_labels
from eval.features.sources import EmbeddedSource, FeatureSource, features_of
from teacher.features.dataset import FeatureSet
from teacher.features.store import Record
from teacher.features.windows import read_sound

MAX_CLASSIFIER_CLIPS = 512
PSEUDO_CLASSES = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSounds:
    """Training clips of a feature folder, and a classifier fitted to them."""

    records: tuple[Record, ...]
    features: FeatureSet
    """The training split."""
    sounds_digest: str
    """SHA-256 of the waves the classifier was fitted to."""
    classifier: EmbeddedClassifier
    label_kind: str
    """"labels" where the manifest has useful ones, else "k-means" pseudo-labels."""
    sample_rate: int

    @classmethod
    def read(cls, folder: Path, *, seed: int = 0, progress: Callable[[int], None] | None = None) -> Self:
        """Up to 512 evenly spaced training clips and a softmax regression on their embedded features."""
        features = FeatureSet.open(folder, "train")
        count = min(MAX_CLASSIFIER_CLIPS, len(features))
        records = tuple(features.records[k * len(features) // count] for k in range(count))
        waves = read_waves(features, records, progress)
        rate = features.sequence.sample_rate
        embedded = EmbeddedAudioFeatures(sample_rate=rate)(waves)
        labels = [r.label for r in records]
        kind = "labels" if labels_are_useful(labels) else "k-means"
        if kind == "k-means":
            labels = pseudo_labels(embedded, min(PSEUDO_CLASSES, max(2, count // 8)), seed)
        return cls(
            records=records,
            features=features,
            sounds_digest=hashlib.sha256(waves.contiguous().numpy().tobytes()).hexdigest(),
            classifier=EmbeddedClassifier.fit(embedded, labels),
            label_kind=kind,
            sample_rate=rate,
        )

    @property
    def source(self) -> EmbeddedSource:
        """The embedded features with this classifier; the name has a digest of what the classifier was fitted to.

        It is the digest of sounds and labels, since weights may differ in the last digit between processes.
        """
        labels = [r.label if self.label_kind == "labels" else "" for r in self.records]
        text = json.dumps([self.label_kind, [r.id for r in self.records], labels])
        mark = hashlib.sha256((text + self.sounds_digest).encode()).hexdigest()[:12]
        extractor = EmbeddedAudioFeatures(sample_rate=self.sample_rate)
        return EmbeddedSource(extractor=extractor, classifier=self.classifier, labels=f"{self.label_kind}:{mark}")

    def like(self, count: int, *, video: bool) -> tuple[Record, ...]:
        """`count` evenly spaced training clips, or all where there are fewer; with `video` only those with picture, if
        there are two of these."""
        records = self.features.records
        shown = [k for k, record in enumerate(records) if record.has_video] if video else []
        pool: Sequence[int] = shown if len(shown) >= 2 else range(len(records))
        count = min(count, len(pool))
        return tuple(records[pool[k * len(pool) // count]] for k in range(count))

    def features_like(
        self, sources: Sequence[FeatureSource], count: int, *, video: bool, num_samples: int, at_once: int = 32
    ) -> ClipFeatures:
        """Features of the sounds of `like`, read and computed a part at a time."""
        records = self.like(count, video=video)
        parts = []
        for k in range(0, len(records), at_once):
            some = records[k : k + at_once]
            waves = read_waves(self.features, some)[:, :num_samples]
            parts.append(features_of(sources, [record.id for record in some], waves, self.sample_rate))
        return ClipFeatures.join(parts)


def read_waves(
    features: FeatureSet, records: Sequence[Record], progress: Callable[[int], None] | None = None
) -> Tensor:
    """Real sound of some records, (clips, samples), read and scaled as extraction did; ValueError if one is gone."""
    waves = []
    for record in records:
        wave = read_window(features, record)
        if isinstance(wave, str):
            raise ValueError(features.gone(record, wave))
        waves.append(wave)
        if progress is not None:
            progress(1)
    return torch.stack(waves)


def read_window(features: FeatureSet, record: Record) -> Tensor | str:
    """Sound of a record (samples,), or the reason why it cannot be read."""
    config = features.info["config"]
    read = read_sound(
        Path(record.path),
        record.start_s,
        duration_s=features.duration_s,
        sample_rate=features.sequence.sample_rate,
        peak_normalise=config["peak_normalise"],
    )
    return read if isinstance(read, str) else torch.from_numpy(read[0])
