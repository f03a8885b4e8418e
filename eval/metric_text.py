"""Names, directions and one-line explanations of the metrics a report shows."""

from dataclasses import dataclass
from typing import Literal

EMBEDDED_NOTE = (
    "Distances, divergences and inception scores here use this project's embedded audio features, which need no "
    "weights. They rank the models of this run against each other and against real sound. They are not comparable with "
    "published figures, which use pretrained networks (PaSST, PANNs, VGGish) and other clips."
)


@dataclass(frozen=True, kw_only=True)
class MetricText:
    """How one metric is shown."""

    key: str
    label: str
    better: Literal["lower", "higher"]
    digits: int
    explanation: str

    @property
    def arrow(self) -> str:
        return "↓" if self.better == "lower" else "↑"


METRICS = (
    MetricText(
        key="frechet",
        label="FD (embedded)",
        better="lower",
        digits=2,
        explanation="Frechet distance between the features of all generated and all real clips: how far the sounds "
        "as a set are from real ones, in kind and in variety. The floor is what other real clips score; sampling alone "
        "keeps it above zero, so compare only equal numbers of clips.",
    ),
    MetricText(
        key="kad",
        label="KAD (embedded)",
        better="lower",
        digits=2,
        explanation="Kernel distance, 100 x unbiased squared maximum mean discrepancy: as FD, without its bias from "
        "few clips. Zero on average for real sound, so small values may be negative.",
    ),
    MetricText(
        key="kl",
        label="KL (embedded)",
        better="lower",
        digits=3,
        explanation="Divergence from the class posterior of each real clip to that of the clip generated for the same "
        "video or caption, averaged: whether the right kind of sound was made.",
    ),
    MetricText(
        key="inception_score",
        label="IS (embedded)",
        better="higher",
        digits=2,
        explanation="Inception score: clear and varied classes score high, from 1 to the number of classes. It never "
        "looks at the reference; the value of real sound is what to aim at.",
    ),
    MetricText(
        key="onset_f1",
        label="Onset F1",
        better="higher",
        digits=3,
        explanation="Whether sounds begin when something happens in the picture: detected onsets matched one to one "
        "with the known events within 50 ms, counts pooled over clips. The row of real sound is what the detector "
        "reaches on the truth. Video-to-audio only.",
    ),
)


def metric(key: str) -> MetricText:
    """The metric of a key.

    Raises:
        KeyError: no such metric is shown.
    """
    return {m.key: m for m in METRICS}[key]
