"""Kullback-Leibler divergence between the class posteriors of a clip and of its reference."""

import torch
from torch import Tensor


def kl_divergence(reference_logits: Tensor, generated_logits: Tensor) -> Tensor:
    """KL(softmax(reference) || softmax(generated)) for each clip, float64.

    Both (clips, classes); row i of one is paired with row i of the other. The reference comes first: probability
    the reference has and the generated clip lacks is what counts. No epsilon is added. Returns (clips,).

    Raises:
        ValueError: unequal shapes, or logits that are not finite.
    """
    if reference_logits.shape != generated_logits.shape or reference_logits.ndim != 2:
        raise ValueError(
            "logits must be two (clips, classes) tensors of one shape, "
            f"got {tuple(reference_logits.shape)} and {tuple(generated_logits.shape)}"
        )
    for name, logits in (("reference_logits", reference_logits), ("generated_logits", generated_logits)):
        if not torch.isfinite(logits).all():
            raise ValueError(f"{name} must be finite, got NaN or infinite entries")
    log_p = reference_logits.double().log_softmax(dim=1)
    log_q = generated_logits.double().log_softmax(dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)
