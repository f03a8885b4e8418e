"""Kullback-Leibler divergences (KL) between the class posteriors of a clip and of its reference, one value per clip.

Both take (clips, classes) logits, row i of one paired with row i of the other, and return (clips,) in float64. The
reference comes first: probability the reference has and the generated clip lacks is what counts. No epsilon is added.
Both raise ValueError for unequal shapes and for logits that are not finite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eval.metrics.base import EMBEDDED, ClipMetric, PaperColumn

if TYPE_CHECKING:
    from torch import Tensor


def kl_divergence(reference_logits: Tensor, generated_logits: Tensor) -> Tensor:
    """KL(softmax(reference) || softmax(generated)) for each clip: av-benchmark's KL-*-softmax, the one papers print.

    The mean over one sample per clip; av-benchmark's loop over several samples keeps only the last, here a caller
    averages the values of a clip first.
    """
    reference, generated = _checked(reference_logits, generated_logits)
    log_p, log_q = reference.log_softmax(dim=1), generated.log_softmax(dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def kl_sigmoid_positive_part(reference_logits: Tensor, generated_logits: Tensor) -> Tensor:
    """sum_y p log(p / q), p and q sigmoids: av-benchmark's kl_sigmoid.

    It leaves out the terms (1 - p) log((1 - p) / (1 - q)), so it is no divergence: it may be negative, and equals zero
    for unlike posteriors. It is here for comparison with numbers published so, and in no row.
    """
    reference, generated = _checked(reference_logits, generated_logits)
    return _weighted_log_ratio(reference, generated).sum(dim=1)


def _weighted_log_ratio(reference: Tensor, generated: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return reference.sigmoid() * (logsigmoid(reference) - logsigmoid(generated))


def _checked(reference_logits: Tensor, generated_logits: Tensor) -> tuple[Tensor, Tensor]:
    if reference_logits.shape != generated_logits.shape or reference_logits.ndim != 2:
        raise ValueError(
            "logits must be two (clips, classes) tensors of one shape, "
            f"got {tuple(reference_logits.shape)} and {tuple(generated_logits.shape)}"
        )
    for name, logits in (("reference_logits", reference_logits), ("generated_logits", generated_logits)):
        if not logits.isfinite().all():
            raise ValueError(f"{name} must be finite, got NaN or infinite entries")
    return reference_logits.double(), generated_logits.double()


EXPLANATION = (
    "Divergence from the class posterior of each real clip to that of the clip generated for the same video or "
    "caption, softmax over {classes}, averaged: whether the right kind of sound was made."
)


def kl_metric(
    key: str, label: str, *, source: str, classes: str, paper: PaperColumn, leads: bool = False
) -> ClipMetric:
    """The declaration of KL over the classes of one source."""
    return ClipMetric(
        key=key,
        label=label,
        better="lower",
        digits=3,
        explanation=EXPLANATION.format(classes=classes),
        source=source,
        main=True,
        aspect="kind",
        leads=leads,
        paper=paper,
        divergence=kl_divergence,
    )


KL_PANNS = kl_metric(
    "kl_panns",
    "KL (PANNs)",
    source="panns",
    classes="527 AudioSet classes by PANNs",
    paper=PaperColumn(name="KL", sub="PANNs", tables=("vta",)),
)
KL_PASST = kl_metric(
    "kl_passt",
    "KL (PaSST)",
    source="passt",
    classes="527 AudioSet classes by PaSST",
    paper=PaperColumn(name="KL", sub="PaSST", tables=("vta",)),
    leads=True,
)
KL_EMBEDDED = kl_metric(
    "kl",
    "KL (embedded)",
    source=EMBEDDED,
    classes="the embedded classes",
    paper=PaperColumn(name="Embedded-KL", digits=3),
)
