"""DeSync: by how many seconds sound and picture are apart according to Synchformer (arXiv 2401.16423).

The model sorts a window of 14 segments (4.8 s) into 21 offsets from -2.0 to 2.0 s. A clip is scored on its first and on
its last window, and its DeSync is the mean of the two |offsets| (arXiv 2412.15322). Chance is 22/21 = 1.048 s for a
model that chooses offsets evenly; one that always chooses 0 scores a perfect 0, so read the ground truth's score too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from eval.metrics.base import ClipMetric, PaperColumn, Scores, Task

if TYPE_CHECKING:
    from torch import Tensor

    from teacher.features.store import Record

WINDOW_SEGMENTS = 14
"""Segments of a window, for which the offset head has positions."""
SEGMENT_S = 0.64
STEP_S = 0.32
CLASSES = 21
CHANCE_S = 22 / 21
"""Expected DeSync of offsets drawn evenly from the classes: 2 (0.2 + 0.4 + ... + 2.0) / 21."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DeSync:
    """Offsets in seconds, signed: class k stands for -2.0 + 0.2 k."""

    offsets_s: NDArray[np.float64]
    """(clips, 2): the offsets of the first and of the last window of each clip."""

    def __post_init__(self) -> None:
        if self.offsets_s.ndim != 2 or self.offsets_s.shape[1] != 2 or len(self.offsets_s) == 0:
            raise ValueError(f"offsets_s must have shape (clips, 2) with at least one clip, got {self.offsets_s.shape}")

    @classmethod
    def from_logits(cls, first: Tensor, last: Tensor) -> Self:
        """Logits of the first and of the last window of every clip, both (clips, 21); the largest one counts.

        Raises:
            ValueError: other shapes, no clips, or logits that are not finite.
        """
        import torch

        from teacher.encoders.synchformer_sync import offset_s

        for name, logits in (("first", first), ("last", last)):
            if logits.ndim != 2 or logits.shape[1] != CLASSES or len(logits) == 0:
                raise ValueError(
                    f"{name} must have shape (clips, {CLASSES}) with at least one clip, got {tuple(logits.shape)}"
                )
            bad = ~torch.isfinite(logits).all(dim=1)
            if bad.any():
                raise ValueError(f"{name} must be finite, got NaN or infinite logits in row {int(bad.int().argmax())}")
        if len(first) != len(last):
            raise ValueError(f"first and last must be of the same clips, got {len(first)} and {len(last)}")
        return cls(offsets_s=torch.stack((offset_s(first), offset_s(last)), dim=1).cpu().numpy())

    @property
    def per_clip_s(self) -> NDArray[np.float64]:
        """(clips,): mean of |offset| over the two windows."""
        return np.abs(self.offsets_s).mean(axis=1)


def first_and_last(segments: int) -> tuple[slice, slice]:
    """Segments [0, 14) and [n - 14, n) of a clip of n; the same ones twice for n = 14, overlapping up to n = 27.

    Segments last 0.64 s and start every 0.32 s: 24 in 8 s. Raises ValueError for fewer than 14.
    """
    if segments < WINDOW_SEGMENTS:
        length = f"{segments} segments ({SEGMENT_S + (segments - 1) * STEP_S:.2f} s)" if segments > 0 else "none"
        raise ValueError(f"a clip must have at least {WINDOW_SEGMENTS} segments (4.80 s) for DeSync, got {length}")
    return slice(0, WINDOW_SEGMENTS), slice(segments - WINDOW_SEGMENTS, segments)


class OffsetModel(Protocol):
    """The interface of `eval.extractors.synchformer.DesyncExtractor`, which the scorer uses."""

    @property
    def name(self) -> str:
        """Model, version of the front end and digest of the file."""
        ...

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz of the waves it expects."""
        ...

    def audio_features(self, waves: Tensor) -> Tensor:
        """waves (clips, samples) -> audio features (clips, segments, 6, width)."""
        ...

    def logits(self, visual: Tensor, audio: Tensor) -> Tensor:
        """Features of both -> logits of the first and of the last window, (clips, 2, 21)."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class DesyncScorer:
    """DeSync of single clips. The mean of the wave stays in, as in the published evaluation."""

    model: OffsetModel
    side: Callable[[Record], Tensor]
    """Visual features of a clip, (segments, 8, width)."""

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def tasks(self) -> tuple[Task, ...]:
        return DESYNC.tasks

    def scores(self, records: Sequence[Record], waves: Tensor, sample_rate: int) -> list[Scores]:
        import soxr
        import torch

        having = [k for k, record in enumerate(records) if record.has_video]
        found: list[Scores] = [{} for _ in records]
        if having:
            rate = self.model.sample_rate
            prepared = [waves[k].double().numpy() for k in having]
            if sample_rate != rate:
                prepared = [soxr.resample(wave, sample_rate, rate, quality="HQ") for wave in prepared]
            visual = torch.stack([self.side(records[k]) for k in having])
            audio = self.model.audio_features(torch.from_numpy(np.stack(prepared)).float())
            count = min(visual.shape[1], audio.shape[1])  # both begin together, so equal numbers are equal times
            logits = self.model.logits(visual[:, :count], audio[:, :count])
            values = DeSync.from_logits(logits[:, 0], logits[:, 1]).per_clip_s
            for k, value in zip(having, values.tolist(), strict=True):
                found[k] = {DESYNC.key: value}
        return found


DESYNC = ClipMetric(
    key="desync",
    label="DeSync (s)",
    better="lower",
    digits=3,
    explanation="Synchformer: mean absolute offset between sound and picture in seconds, first and last 4.8 s of each "
    "clip. Guessing gives 1.05 s.",
    source="synchformer",
    main=True,
    aspect="timing",
    paper=PaperColumn(name="DeSync", digits=3, tables=("vta",)),
    tasks=("vta",),
    # The largest of 21 logits: rounding of the wave may move one of two windows to the next class, 0.2 s away.
    tolerance=(0.0, 0.1 + 1e-6),
)
