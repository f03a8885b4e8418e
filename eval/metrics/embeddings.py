"""Embeddings and class logits that one model gives for a number of clips: the input of every metric of features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    """Embedding rows and class logits of a number of clips; float32 on the CPU."""

    rows: Tensor
    """(rows, dimensions): the rows of the first clip in order of time, then those of the second, and so on."""
    counts: tuple[int, ...]
    """Rows of each clip, at least one."""
    logits: Tensor | None = None
    """(clips, classes), before any sigmoid or softmax; None where the model has no classes."""

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or sum(self.counts) != len(self.rows) or min(self.counts, default=1) < 1:
            raise ValueError(
                f"rows must be (rows, dimensions) with at least one row per clip, counted in counts: got "
                f"{tuple(self.rows.shape)} and {len(self.counts)} counts that add up to {sum(self.counts)}"
            )
        if self.logits is not None and (self.logits.ndim != 2 or len(self.logits) != len(self.counts)):
            raise ValueError(f"logits must be ({len(self.counts)}, classes), got {tuple(self.logits.shape)}")
        for name, values in (("rows", self.rows), ("logits", self.logits)):
            if values is not None and not values.isfinite().all():
                raise ValueError(f"{name} must be finite, got NaN or infinite values")

    @classmethod
    def join(cls, parts: Sequence[Embeddings]) -> Embeddings:
        """The clips of all parts in order. Raises ValueError without parts, or if only some of them have logits."""
        import torch

        if not parts:
            raise ValueError("parts must not be empty")
        logits = [part.logits for part in parts if part.logits is not None]
        if logits and len(logits) != len(parts):
            raise ValueError(f"logits must be there in all parts or in none, got {len(logits)} of {len(parts)}")
        return cls(
            rows=torch.cat([part.rows for part in parts]),
            counts=sum((part.counts for part in parts), ()),
            logits=torch.cat(logits) if logits else None,
        )

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.counts)

    @property
    def matrix(self) -> NDArray[np.float64]:
        """All rows (rows, dimensions) in float64."""
        return self.rows.double().numpy()

    @property
    def by_clip(self) -> list[NDArray[np.float64]]:
        """The rows of each clip, (its count, dimensions) in float64."""
        return np.split(self.matrix, np.cumsum(self.counts)[:-1])

    @property
    def means(self) -> NDArray[np.float64]:
        """One row per clip (clips, dimensions), the mean where a clip has several; float64."""
        return np.stack([rows.mean(axis=0) for rows in self.by_clip])

    @property
    def class_logits(self) -> Tensor:
        """(clips, classes). Raises ValueError for a model without classes."""
        if self.logits is None:
            raise ValueError("these embeddings have no class logits")
        return self.logits
