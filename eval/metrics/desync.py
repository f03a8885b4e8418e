"""DeSync: by how many seconds sound and picture are apart in the ears and eyes of Synchformer (arXiv 2401.16423).

The model sorts a window of 14 segments (4.8 s) into 21 offsets from -2.0 to 2.0 s. A clip is judged on its first and on
its last window, and its DeSync is the mean of the two |offsets| (arXiv 2412.15322). Chance is 22/21 = 1.048 s for a
model that answers evenly; one that always answers "0" scores a perfect 0, so look at the ground truth's score too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacher.encoders.synchformer_sync import class_offsets_s, offset_s

WINDOW_SEGMENTS = 14
"""As many as the offset head has positions for."""
SEGMENT_S = 0.64
STEP_S = 0.32
CLASSES = 21
CHANCE_S = 22 / 21
"""Expected DeSync of offsets drawn evenly from the classes: 2 (0.2 + 0.4 + ... + 2.0) / 21."""

OffsetHead = Callable[[Tensor, Tensor], Tensor]
"""Features of one window, visual (clips, 14, 8, d) and audio (clips, 14, 6, d) -> logits (clips, 21)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DeSync:
    """Offsets in seconds, signed: class k stands for -2.0 + 0.2 k."""

    offsets_s: NDArray[np.float64]
    """(clips, 2): of the first and of the last window."""

    def __post_init__(self) -> None:
        if self.offsets_s.ndim != 2 or self.offsets_s.shape[1] != 2 or len(self.offsets_s) == 0:
            raise ValueError(f"offsets_s must have shape (clips, 2) with at least one clip, got {self.offsets_s.shape}")

    @classmethod
    def from_logits(cls, first: Tensor, last: Tensor) -> Self:
        """Logits of the first and of the last window of every clip, both (clips, 21); the largest one counts.

        Raises:
            ValueError: other shapes, no clips, or logits that are not finite.
        """
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

    @classmethod
    def from_features(cls, visual: Tensor, audio: Tensor, head: OffsetHead) -> Self:
        """visual (clips, segments, 8, d) and audio (clips, segments, 6, d) of equally many segments.

        Raises:
            ValueError: unequal numbers of clips or segments, or fewer than 14 segments.
        """
        if visual.shape[:2] != audio.shape[:2]:
            raise ValueError(
                "visual and audio must have the same clips and segments, "
                f"got {tuple(visual.shape[:2])} and {tuple(audio.shape[:2])}"
            )
        first, last = first_and_last(visual.shape[1])
        return cls.from_logits(head(visual[:, first], audio[:, first]), head(visual[:, last], audio[:, last]))

    @property
    def per_clip_s(self) -> NDArray[np.float64]:
        """(clips,): mean of |offset| over the two windows."""
        return np.abs(self.offsets_s).mean(axis=1)

    @property
    def mean_s(self) -> float:
        """The score: mean over clips; 0 at best, 2 at worst."""
        return float(self.per_clip_s.mean())


def first_and_last(segments: int) -> tuple[slice, slice]:
    """Segments [0, 14) and [n - 14, n) of a clip of n; the same ones twice for n = 14, overlapping up to n = 27.

    Segments last 0.64 s and start every 0.32 s: 24 in 8 s. Raises ValueError for fewer than 14.
    """
    if segments < WINDOW_SEGMENTS:
        length = f"{segments} segments ({SEGMENT_S + (segments - 1) * STEP_S:.2f} s)" if segments > 0 else "none"
        raise ValueError(f"a clip must have at least {WINDOW_SEGMENTS} segments (4.80 s) for DeSync, got {length}")
    return slice(0, WINDOW_SEGMENTS), slice(segments - WINDOW_SEGMENTS, segments)


def expected_s(probabilities: Tensor) -> Tensor:
    """Mean |offset| of a law over the classes, (..., 21) -> (...); 22/21 for the even one. Float64."""
    if probabilities.shape[-1] != CLASSES:
        raise ValueError(f"probabilities must be over {CLASSES} classes, got {probabilities.shape[-1]}")
    return probabilities.double() @ class_offsets_s(CLASSES).abs().to(probabilities.device)
