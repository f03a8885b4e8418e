"""Inception score from class logits."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.metrics.uncertainty import GROUPS, Jackknife, jackknife

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

    A new shuffle for every replicate would be counted as luck with clips and widen the interval many times.
    """
    labels = split_labels(logits, splits=splits, seed=seed)

    def score(kept: NDArray[np.floating], kept_labels: NDArray[np.int64]) -> float:
        return float(_split_scores(torch.from_numpy(kept), kept_labels, splits).mean())

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
