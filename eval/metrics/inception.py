"""Inception score (IS): how clear and how varied the classes of the generated clips are, from class logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eval.metrics.base import EMBEDDED, PaperColumn, SetMetric
from eval.metrics.uncertainty import GROUPS, Estimate, Jackknife, groups_for, jackknife

if TYPE_CHECKING:
    from torch import Tensor

    from eval.metrics.embeddings import Embeddings

SHUFFLE_SEED = 2020
"""Seed of the row shuffle before splitting; the one torch-fidelity and av-benchmark use."""

BLOCK = 512
"""Rows worked on at a time: about 2 MiB of 527 classes in float64, so that they stay in the cache."""


@dataclass(frozen=True, kw_only=True)
class InceptionScore:
    """Mean and population standard deviation of the score over `splits` parts of `count` clips.

    seed: of the shuffle before splitting; None if the clips were split in their order.
    """

    mean: float
    std: float
    splits: int
    seed: int | None
    count: int


def inception_score(logits: Tensor, *, splits: int = 10, seed: int | None = SHUFFLE_SEED) -> InceptionScore:
    """exp(mean_x KL(p(y|x) || p(y))) per split, p = softmax(logits), in float64.

    logits (clips, classes). The rows are shuffled with a legacy Mersenne-Twister permutation of `seed` (None: not at
    all); split s of S holds rows floor(s n / S) to floor((s + 1) n / S) - 1. Between 1 and the number of classes; it
    depends strongly on the number of clips per split, so compare only equal numbers of both.

    Raises:
        ValueError: not (clips, classes), not finite, or fewer clips than splits.
    """
    labels = split_labels(logits, splits=splits, seed=seed)
    scores = _split_scores(logits, labels, splits)
    return InceptionScore(
        mean=float(scores.mean()), std=float(scores.std()), splits=splits, seed=seed, count=len(logits)
    )


def inception_jackknife(
    logits: Tensor,
    *,
    splits: int = 10,
    seed: int | None = SHUFFLE_SEED,
    groups: int = GROUPS,
    group_seed: int = 0,
) -> Jackknife:
    """`jackknife` of the mean score. Every clip stays in its split when others are deleted.

    A new shuffle for every replicate would count as variation between clips and widen the interval many times.
    """
    import torch

    labels = split_labels(logits, splits=splits, seed=seed)

    def score(rows: NDArray[np.floating], row_labels: NDArray[np.int64]) -> float:
        return float(_split_scores(torch.from_numpy(rows), row_labels, splits).mean())

    return jackknife(score, logits.detach().cpu().numpy(), labels, groups=groups, seed=group_seed)


def split_labels(logits: Tensor, *, splits: int, seed: int | None) -> NDArray[np.int64]:
    """The split (0 to splits - 1) of every clip."""
    if logits.ndim != 2:
        raise ValueError(f"logits must have shape (clips, classes), got {tuple(logits.shape)}")
    count = len(logits)
    if not 1 <= splits <= count:
        raise ValueError(f"splits must be between 1 and the number of clips, {count}, got {splits}")
    edges = np.array([part * count // splits for part in range(splits + 1)])
    # The legacy generator is what published numbers were shuffled with; a new one would change every split.
    order = np.arange(count) if seed is None else np.random.RandomState(seed).permutation(count)
    labels = np.empty(count, dtype=np.int64)
    labels[order] = np.repeat(np.arange(splits), np.diff(edges))
    return labels


def _split_scores(logits: Tensor, labels: NDArray[np.int64], splits: int) -> NDArray[np.float64]:
    """Score of every split as exp(entropy of the mean posterior - mean entropy of the posteriors).

    With e = exp(z - max z) and Z = sum e, the negative entropy of a clip is sum e (z - max z) / Z - ln Z, and
    the mean posterior a weighted sum of rows of e: one exponential per logit and no log.
    """
    import torch

    logits = logits.detach().cpu()
    split_of = torch.from_numpy(labels)
    counts = torch.bincount(split_of, minlength=splits).double()
    if (counts == 0).any():
        raise ValueError("every split must keep at least one clip; use fewer splits or more jackknife groups")
    posterior = torch.zeros(splits, logits.shape[1], dtype=torch.float64)
    negative_entropy = torch.zeros(splits, dtype=torch.float64)
    for begin in range(0, len(logits), BLOCK):
        z = logits[begin : begin + BLOCK].double()
        z = z - z.amax(dim=1, keepdim=True)
        e = z.exp()
        total = e.sum(dim=1)
        part = split_of[begin : begin + BLOCK]
        weights = torch.zeros(splits, len(z), dtype=torch.float64)
        weights[part, torch.arange(len(z))] = 1.0 / total
        posterior.addmm_(weights, e)
        negative_entropy.index_add_(0, part, torch.linalg.vecdot(e, z) / total - total.log())
    posterior /= counts[:, None]
    scores = (negative_entropy / counts - torch.xlogy(posterior, posterior).sum(dim=1)).exp()
    if not torch.isfinite(scores).all():
        raise ValueError("logits must be finite, got NaN or infinite entries")
    return scores.numpy()


EXPLANATION = (
    "Inception score over {classes}: clear and varied classes score high, from 1 to the number of classes. It never "
    "uses the real clips; their own value is what to aim at. It rises with the number of clips."
)
PUBLISHED_SPLITS = 10
"""Parts over which publications average the score."""
LEAST_PER_SPLIT = 10
"""With fewer clips than this per part one part is taken; the row states the number of parts."""


def splits_for(clips: int, *, wanted: int) -> int:
    """Number of parts that the score is averaged over, for a number of clips."""
    return wanted if clips >= LEAST_PER_SPLIT * wanted else 1


def inception_metric(
    key: str,
    label: str,
    *,
    source: str,
    classes: str,
    splits: int,
    paper: PaperColumn,
    main: bool = False,
    summary: bool = False,
) -> SetMetric:
    """IS of one source; as KEY_std and KEY_splits its deviation over the parts and their number."""

    def value(_: Embeddings, generated: Embeddings) -> dict[str, float]:
        parts = splits_for(len(generated), wanted=splits)
        score = inception_score(generated.class_logits, splits=parts)
        return {key: score.mean, f"{key}_std": score.std, f"{key}_splits": float(parts)}

    def estimate(_: Embeddings, generated: Embeddings) -> dict[str, Estimate]:
        parts = splits_for(len(generated), wanted=splits)
        groups = groups_for(len(generated) // parts)
        if groups is None:
            return {}
        return {key: Estimate.of_jackknife(inception_jackknife(generated.class_logits, splits=parts, groups=groups))}

    return SetMetric(
        key=key,
        label=label,
        better="higher",
        digits=2,
        explanation=EXPLANATION.format(classes=classes),
        source=source,
        main=main,
        aspect="clarity" if summary else None,
        paper=paper,
        needs="logits",
        formula="inception",
        value=value,
        estimate=estimate,
        uses_reference=False,
    )


IS_PANNS = inception_metric(
    "is_panns",
    "IS (PANNs)",
    source="panns",
    classes="527 AudioSet classes by PANNs",
    splits=PUBLISHED_SPLITS,
    paper=PaperColumn(name="IS", tables=("vta", "tta")),
    main=True,
    summary=True,
)
IS_PASST = inception_metric(
    "is_passt",
    "IS (PaSST)",
    source="passt",
    classes="527 AudioSet classes by PaSST",
    splits=PUBLISHED_SPLITS,
    paper=PaperColumn(name="IS", sub="PaSST"),
)
IS_EMBEDDED = inception_metric(
    "inception_score",
    "IS (embedded)",
    source=EMBEDDED,
    classes="the embedded classes",
    splits=1,  # the embedded classes are few and so are their clips
    paper=PaperColumn(name="Embedded-IS"),
    main=True,
    summary=True,
)
