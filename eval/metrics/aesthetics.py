"""Audiobox-Aesthetics (arXiv 2502.05139): quality, complexity, enjoyment and usefulness of single clips, 1 to 10.

A published network predicts the ratings of human listeners. It needs no reference, no video and no caption.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.metrics.base import Better, ClipMetric, PaperColumn, Scores, Task

if TYPE_CHECKING:
    from torch import Tensor

    from teacher.features.store import Record


@dataclass(frozen=True, kw_only=True, eq=False)
class AestheticsScorer:
    """Computes the four predictions for single clips. The mean of the wave is not removed, as in the published code."""

    name: str
    """Model, digest of its weights, and policy."""
    prepare: Callable[[Tensor, int], Tensor]
    """waves (clips, samples) and their sample rate -> waves as the model takes them."""
    model: Callable[[Tensor], Tensor]
    """Prepared waves -> (clips, 4), in the order of `AESTHETICS`."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        return ("vta", "tta")

    def scores(self, records: Sequence[Record], waves: Tensor, sample_rate: int) -> list[Scores]:
        keys = [metric.key for metric in AESTHETICS]
        values = self.model(self.prepare(waves, sample_rate)).tolist()
        return [dict(zip(keys, row, strict=True)) for row in values]


def aesthetics_metric(
    key: str, label: str, *, what: str, better: Better | None = "higher", sub: str = ""
) -> ClipMetric:
    """The declaration of one of the four predictions."""
    return ClipMetric(
        key=key,
        label=label,
        better=better,
        digits=2,
        explanation=f"Audiobox-Aesthetics: {what}.",
        source="aesthetics",
        paper=PaperColumn(name="AES", sub=sub) if sub else None,
    )


AESTHETICS = (
    aesthetics_metric("aes_pq", "AES quality", what="production quality, 1 to 10", sub="PQ"),
    aesthetics_metric(
        "aes_pc", "AES complexity", what="production complexity, 1 to 10; neither end is better", better=None
    ),
    aesthetics_metric("aes_ce", "AES enjoyment", what="content enjoyment, 1 to 10", sub="CE"),
    aesthetics_metric("aes_cu", "AES usefulness", what="content usefulness, 1 to 10", sub="CU"),
)
"""The four metrics in the order in which the model gives them."""
