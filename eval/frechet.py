"""Frechet distance between two Gaussians, and the value sampling alone gives it."""

import numpy as np
from numpy.typing import NDArray

from eval.statistics import GaussianStats


def frechet_distance(a: GaussianStats, b: GaussianStats) -> float:
    """||mu_a - mu_b||^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2)), in float64.

    With S = L L^T from the symmetric eigendecomposition, Tr (S_a S_b)^(1/2) is the sum of the singular values of
    L_a^T L_b. No root of a product is taken, so covariances of fewer clips than dimensions are no special case.
    A result that rounding left a little below zero is returned as 0.

    Raises:
        ValueError: different dimensions, or a covariance with a clearly negative eigenvalue.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"both sets must have the same dimension, got {a.mean.size} and {b.mean.size}")
    shift = a.mean - b.mean
    overlap = np.linalg.svd(_factor(a).T @ _factor(b), compute_uv=False).sum()
    traces = float(np.trace(a.covariance) + np.trace(b.covariance))
    return max(float(shift @ shift) + traces - 2.0 * float(overlap), 0.0)


def frechet_bias(stats: GaussianStats, n: int, m: int) -> float:
    """Expected Frechet distance between samples of sizes n and m of one and the same Gaussian, to first order.

    (1/n + 1/m) [5/4 Tr S + 1/2 sum_ij l_i l_j / (l_i + l_j)], l the eigenvalues of S. Good to about 1 % when n and m
    are well above the dimension; at n comparable to d it is an order of magnitude, no more.
    """
    if n < 2 or m < 2:
        raise ValueError(f"n and m must be at least 2, got {n} and {m}")
    eigenvalues = np.clip(np.linalg.eigvalsh(stats.covariance), 0.0, None)
    eigenvalues = eigenvalues[eigenvalues > 0.0]
    pairs = np.multiply.outer(eigenvalues, eigenvalues) / np.add.outer(eigenvalues, eigenvalues)
    return (1.0 / n + 1.0 / m) * float(1.25 * eigenvalues.sum() + 0.5 * pairs.sum())


def _factor(stats: GaussianStats) -> NDArray[np.float64]:
    """L (d, rank) with S = L L^T, the eigenvalues that are only rounding noise left out."""
    eigenvalues, vectors = np.linalg.eigh((stats.covariance + stats.covariance.T) / 2)
    largest = float(np.abs(eigenvalues).max())
    if eigenvalues.min() < -1e-6 * largest:
        raise ValueError(
            f"a covariance must have no negative eigenvalue, got {eigenvalues.min():.3g} beside {largest:.3g}"
        )
    keep = eigenvalues > largest * len(eigenvalues) * np.finfo(np.float64).eps
    return vectors[:, keep] * np.sqrt(eigenvalues[keep])
