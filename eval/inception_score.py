"""Inception score from class logits."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SHUFFLE_SEED = 2020
"""Seed of the row shuffle before splitting; the one torch-fidelity and av-benchmark use."""


@dataclass(frozen=True, kw_only=True)
class InceptionScore:
    """Mean and population standard deviation of the score over `splits` parts."""

    mean: float
    std: float
    splits: int
    seed: int | None


def inception_score(logits: Tensor, *, splits: int = 10, seed: int | None = SHUFFLE_SEED) -> InceptionScore:
    """exp(mean_x KL(p(y|x) || p(y))) per split, p = softmax(logits), in float64.

    logits (clips, classes). The rows are shuffled with a legacy Mersenne-Twister permutation of `seed` (None: not at
    all); split s of S holds rows floor(s n / S) to floor((s + 1) n / S) - 1. Between 1 and the number of classes; it
    depends strongly on the number of clips per split, so compare only equal numbers of both.

    Raises:
        ValueError: not (clips, classes), not finite, or fewer clips than splits.
    """
    if logits.ndim != 2:
        raise ValueError(f"logits must have shape (clips, classes), got {tuple(logits.shape)}")
    if not 1 <= splits <= len(logits):
        raise ValueError(f"splits must be between 1 and the number of clips, {len(logits)}, got {splits}")
    if not torch.isfinite(logits).all():
        raise ValueError("logits must be finite, got NaN or infinite entries")
    count = len(logits)
    log_p = logits.detach().cpu().double().log_softmax(dim=1)
    if seed is not None:
        # The legacy generator is what published numbers were shuffled with; a new one would change every split.
        order = np.random.RandomState(seed).permutation(count)
        log_p = log_p[torch.from_numpy(order)]
    scores = []
    for part in range(splits):
        rows = log_p[part * count // splits : (part + 1) * count // splits]
        log_q = rows.logsumexp(dim=0, keepdim=True) - np.log(len(rows))
        scores.append(float((rows.exp() * (rows - log_q)).sum(dim=1).mean().exp()))
    return InceptionScore(mean=float(np.mean(scores)), std=float(np.std(scores)), splits=splits, seed=seed)
