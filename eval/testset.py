"""The clips a comparison is made on: their real sound, conditions, events, and the scorer built from them."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from eval.extractors.embedded import EmbeddedAudioFeatures
from eval.extractors.embedded_classifier import EmbeddedClassifier, labels_are_useful, pseudo_labels
from eval.scorer import Scorer
from eval.sweep import Clips
from teacher.data.dataset import FeatureSet, Record
from teacher.data.manifest import Item
from teacher.data.windows import Skip, Window, WindowReader

Unreadable = Literal["fail", "exclude"]
"""What happens when the real sound of a test clip cannot be read: the run fails, or the clip is left out for every
model and listed. It is never replaced by another."""
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
    excluded: tuple[tuple[str, str], ...] = ()
    """Clips whose sound cannot be read, and why; in none of the other fields, so no model is scored on them."""

    @classmethod
    def build(
        cls,
        folder: Path,
        *,
        video: bool,
        max_clips: int,
        classifier: EmbeddedClassifier,
        label_kind: str,
        unreadable: Unreadable = "fail",
        only: Collection[str] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Self:
        """Test-split clips with picture (`video`) or all of them, evenly spaced if there are more than `max_clips`.

        `only`: these ids and no others, as in a list of ids that were scored before; `max_clips` does not apply.
        Clips are chosen before any file is read: one that cannot be read makes the set smaller, never different.

        Raises ValueError if an id of `only` is not there, a clip cannot be read while `unreadable` is "fail", or fewer
        than two remain.
        """
        if unreadable not in get_args(Unreadable):
            raise ValueError(f"unreadable must be one of {', '.join(get_args(Unreadable))}, got {unreadable!r}")
        features = FeatureSet.open(folder, "test")
        index = [k for k, r in enumerate(features.records) if r.has_video or not video]
        if len(index) < 2:
            raise ValueError(f"{folder} has {len(index)} test clips{' with picture' if video else ''}; 2 are needed")
        if only is not None:
            index = _chosen(features.records, index, only, folder)
        elif len(index) > max_clips:
            index = [index[k * len(index) // max_clips] for k in range(max_clips)]
        heard: dict[int, Tensor] = {}
        excluded: list[tuple[str, str]] = []
        for k in index:
            wave = _hear(features, features.records[k], progress)
            if not isinstance(wave, str):
                heard[k] = wave
            elif unreadable == "fail":
                raise ValueError(_gone(features.records[k], wave))
            else:
                excluded.append((features.records[k].id, wave))
        if len(heard) < 2:
            raise ValueError(f"{folder}: {len(heard)} of {len(index)} test clips can be read; 2 are needed")
        records = tuple(features.records[k] for k in heard)
        waves = torch.stack(list(heard.values()))
        scorer = Scorer.build(
            reference=waves,
            ids=[r.id for r in records],
            events=[r.events_s for r in records],
            extractor=EmbeddedAudioFeatures(sample_rate=features.sequence.sample_rate),
            classifier=classifier,
        )
        clips = Clips(ids=tuple(r.id for r in records), conditions=features.batch(list(heard)).conditions)
        return cls(
            records=records, waves=waves, clips=clips, scorer=scorer, label_kind=label_kind, excluded=tuple(excluded)
        )


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
    waves = []
    for record in records:
        wave = _hear(features, record, progress)
        if isinstance(wave, str):
            raise ValueError(_gone(record, wave))
        waves.append(wave)
    return torch.stack(waves)


def _hear(features: FeatureSet, record: Record, progress: Callable[[int], None] | None) -> Tensor | str:
    """Sound of a record (samples,), or the reason why it cannot be read."""
    config = features.info["config"]
    reader = WindowReader(
        encoders=config["encoders"],
        duration_s=features.duration_s,
        sample_rate=features.sequence.sample_rate,
        peak_normalise=config["peak_normalise"],
        max_windows=config["max_windows_per_item"],
    )
    item = Item(id=record.item_id, path=Path(record.path), caption=record.caption, split="test")
    heard = reader.hear(Window(id=record.id, item=item, start_s=record.start_s, has_video=record.has_video))
    if progress is not None:
        progress(1)
    return heard.reason if isinstance(heard, Skip) else torch.from_numpy(heard[0])


def _gone(record: Record, reason: str) -> str:
    return f"{record.path}: cannot be read any more ({reason}); restore it or extract again"


def _chosen(records: Sequence[Record], index: list[int], only: Collection[str], folder: Path) -> list[int]:
    """Rows of `index` whose ids are in `only`."""
    wanted = set(only)
    chosen = [k for k in index if records[k].id in wanted]
    missing = sorted(wanted - {records[k].id for k in chosen})
    if missing:
        raise ValueError(
            f"{folder} has no test clips {', '.join(missing[:5])}; {len(missing)} of {len(wanted)} missing"
        )
    return chosen
