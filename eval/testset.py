"""The clips a comparison is made on: their real sound, conditions, events, and the scorer built from them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from eval.extractors.embedded import EmbeddedAudioFeatures
from eval.extractors.embedded_classifier import EmbeddedClassifier, labels_are_useful, pseudo_labels
from eval.scorer import Scorer
from eval.sweep import Clips
from teacher.data.dataset import FeatureSet, Record
from teacher.data.manifest import Item
from teacher.data.windows import Skip, Window, WindowReader

MAX_CLASSIFIER_CLIPS = 512
PSEUDO_CLASSES = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class TestSet:
    """Held-out clips of one task with everything scoring needs."""

    __test__ = False

    records: tuple[Record, ...]
    waves: Tensor
    """Real sound (clips, samples), as the codec saw it in training."""
    clips: Clips
    scorer: Scorer
    label_kind: str
    """"labels" where the manifest has useful ones, else "k-means" pseudo-labels."""

    @classmethod
    def build(
        cls,
        folder: Path,
        *,
        video: bool,
        max_clips: int,
        classifier: EmbeddedClassifier,
        label_kind: str,
        progress: Callable[[int], None] | None = None,
    ) -> Self:
        """Test-split clips with picture (`video`) or all of them, evenly spaced if there are more than `max_clips`.

        Raises ValueError if fewer than two remain.
        """
        features = FeatureSet.open(folder, "test")
        index = [k for k, r in enumerate(features.records) if r.has_video or not video]
        if len(index) < 2:
            raise ValueError(f"{folder} has {len(index)} test clips{' with picture' if video else ''}; 2 are needed")
        if len(index) > max_clips:
            index = [index[k * len(index) // max_clips] for k in range(max_clips)]
        records = tuple(features.records[k] for k in index)
        waves = read_waves(features, records, progress)
        scorer = Scorer.build(
            reference=waves,
            ids=[r.id for r in records],
            events=[r.events_s for r in records],
            extractor=EmbeddedAudioFeatures(sample_rate=features.sequence.sample_rate),
            classifier=classifier,
        )
        clips = Clips(ids=tuple(r.id for r in records), conditions=features.batch(index).conditions)
        return cls(records=records, waves=waves, clips=clips, scorer=scorer, label_kind=label_kind)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSounds:
    """Real sounds outside the test set: they fit the classifier and give the floor of the distances."""

    waves: Tensor
    has_video: Tensor
    classifier: EmbeddedClassifier
    label_kind: str

    @classmethod
    def read(cls, folder: Path, *, seed: int = 0, progress: Callable[[int], None] | None = None) -> Self:
        """Up to 512 evenly spaced training clips and a softmax regression on their embedded features."""
        features = FeatureSet.open(folder, "train")
        count = min(MAX_CLASSIFIER_CLIPS, len(features))
        records = [features.records[k * len(features) // count] for k in range(count)]
        waves = read_waves(features, records, progress)
        embedded = EmbeddedAudioFeatures(sample_rate=features.sequence.sample_rate)(waves)
        labels = [r.label for r in records]
        kind = "labels" if labels_are_useful(labels) else "k-means"
        if kind == "k-means":
            labels = pseudo_labels(embedded, min(PSEUDO_CLASSES, max(2, count // 8)), seed)
        classifier = EmbeddedClassifier.fit(embedded, labels)
        has_video = torch.tensor([r.has_video for r in records])
        return cls(waves=waves, has_video=has_video, classifier=classifier, label_kind=kind)

    def like(self, count: int, *, video: bool) -> Tensor:
        """`count` of these sounds (fewer if there are fewer), evenly spaced: those with picture first if `video`."""
        index = torch.nonzero(self.has_video).squeeze(1) if video and bool(self.has_video.sum() >= 2) else None
        pool = self.waves if index is None else self.waves[index]
        count = min(count, len(pool))
        return pool[[k * len(pool) // count for k in range(count)]]


def read_waves(
    features: FeatureSet, records: tuple[Record, ...] | list[Record], progress: Callable[[int], None] | None
) -> Tensor:
    """Real sound of some records, (clips, samples), read and scaled as extraction did; ValueError if one is gone."""
    config = features.info["config"]
    reader = WindowReader(
        encoders=config["encoders"],
        duration_s=features.duration_s,
        sample_rate=features.sequence.sample_rate,
        peak_normalise=config["peak_normalise"],
        max_windows=config["max_windows_per_item"],
    )
    waves = []
    for record in records:
        item = Item(id=record.item_id, path=Path(record.path), caption=record.caption, split="test")
        heard = reader.hear(Window(id=record.id, item=item, start_s=record.start_s, has_video=record.has_video))
        if isinstance(heard, Skip):
            raise ValueError(f"{record.path}: cannot be read any more ({heard.reason}); restore it or extract again")
        waves.append(torch.from_numpy(heard[0]))
        if progress is not None:
            progress(1)
    return torch.stack(waves)
