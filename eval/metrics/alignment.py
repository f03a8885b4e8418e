"""Cosine between the two embeddings of a clip: the ImageBind score and the CLAP scores.

ImageBind score (arXiv 2305.05665): picture and sound of a clip, each the mean over its parts of unit vectors; papers
print 100 times the mean over clips. CLAP score (arXiv 2211.06687): sound and caption; printed as it is, with negative
values. Nothing is clipped or scaled here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from eval.metrics.base import ClipMetric, PaperColumn, Scores, SoundModel, Task

if TYPE_CHECKING:
    from torch import Tensor

    from eval.metrics.moments.gaussian import Features
    from teacher.features.store import Record

    Side = Callable[[Record], Tensor]
    """A function of a clip that returns the embedding (dimensions,) of its picture or of its caption."""

Against = Literal["picture", "caption"]


def paired_cosines(a: Features, b: Features) -> NDArray[np.float64]:
    """<a_i, b_i> / (|a_i| |b_i|) for rows of a and b (clips, d); (clips,) in float64.

    No epsilon guards the division, unlike torch's cosine_similarity: a zero vector has no direction.

    Raises:
        ValueError: unequal shapes, no clips, a row that is zero or not finite.
    """
    return _row_products(*_unit_pair(a, b))


def _unit_pair(a: Features, b: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if tuple(a.shape) != tuple(b.shape):
        raise ValueError(f"a and b must be paired embeddings of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if len(a) == 0:
        raise ValueError("a and b must hold at least one clip, got none")
    return _unit(a, "a"), _unit(b, "b")


def _unit(features: Features, name: str) -> NDArray[np.float64]:
    from eval.metrics.moments.gaussian import as_matrix

    matrix = as_matrix(features, name)
    # Divided by the largest entry first: squares of 1e-200 or 1e200 leave the range of float64.
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    if not largest.all():
        raise ValueError(f"{name} must have no zero row (it has no direction), row {int(largest.argmin())} is zero")
    matrix = matrix / largest
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def _row_products(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.einsum("nd,nd->n", a, b).clip(-1.0, 1.0)  # beyond 1 only by rounding


@dataclass(frozen=True, kw_only=True, eq=False)
class CosineScorer:
    """Computes the cosine between the embedding of a sound and that of its picture or caption, where a clip has one."""

    key: str
    model: SoundModel
    side: Side
    tasks: tuple[Task, ...]
    against: Against

    def __post_init__(self) -> None:
        if self.against not in get_args(Against):
            raise ValueError(f"against must be one of {', '.join(get_args(Against))}, got {self.against!r}")

    @property
    def name(self) -> str:
        return f"{self.key} by {self.model.name}"

    def scores(self, records: Sequence[Record], waves: Tensor, sample_rate: int) -> list[Scores]:
        import torch

        having = [k for k, record in enumerate(records) if self._has_side(record)]
        found: list[Scores] = [{} for _ in records]
        if having:
            sounds = self.model.embed(waves[having], sample_rate).rows
            sides = torch.stack([self.side(records[k]) for k in having])
            for k, value in zip(having, paired_cosines(sounds, sides).tolist(), strict=True):
                found[k] = {self.key: value}
        return found

    def _has_side(self, record: Record) -> bool:
        return record.has_video if self.against == "picture" else bool(record.caption.strip())


def clap_metric(key: str, label: str, *, model: str, sub: str) -> ClipMetric:
    """The declaration of the CLAP score of one model."""
    return ClipMetric(
        key=key,
        label=label,
        better="higher",
        digits=3,
        explanation=f"Cosine between the sound and its caption in the space of {model}, mean over clips, not times "
        "100.",
        source=key,
        main=True,
        aspect="caption",
        paper=PaperColumn(name="CLAP", sub=sub, digits=3, tables=("tta",)),
    )


IB_SCORE = ClipMetric(
    key="ib_score",
    label="IB-score",
    better="higher",
    digits=4,
    explanation="ImageBind: cosine between the sound and the picture, mean over clips; papers print it times 100.",
    source="imagebind",
    main=True,
    aspect="picture",
    paper=PaperColumn(name="IB", scale=100.0, tables=("vta",)),
    tasks=("vta",),
)
CLAP_LAION = clap_metric("clap_laion", "CLAP (LAION)", model="LAION-CLAP", sub="LAION")
CLAP_MS = clap_metric("clap_ms", "CLAP (MS)", model="MS-CLAP 2023", sub="MS")
