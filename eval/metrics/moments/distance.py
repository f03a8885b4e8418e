"""Frechet distance between two Gaussians, and the value sampling alone gives it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import lapack
from torch import Tensor

from eval.metrics.moments.gaussian import Features, Float32Moments, GaussianStats, as_matrix

Form = Literal["auto", "rows", "moments"]
"""`rows`: from the clips themselves, no covariance is formed. `moments`: from the covariances. `auto`: `rows` for
each set given as features with no more clips than dimensions, `moments` for the others; for two large sets of features
`moments` with products in float32 where these are exact enough (see `frechet_distance`)."""

PIVOT_LIMIT = 1e-10
"""Below this ratio of smallest to largest Cholesky pivot a covariance is treated as singular."""

EIGENVALUE_LIMIT = 1e-9
"""Below this ratio of smallest to largest eigenvalue of S_a S_b the singular values of F_a F_b^T are taken instead:
the root of an eigenvalue that is e times the largest is off by about 1e-16 / sqrt(e)."""

SINGLE_LEAST = 1 << 33
"""n d^2 of the smaller set from which float32 is tried: a double product of that size takes a tenth of a second."""

SINGLE_LIMIT = 1e-7
"""Largest standard error due to float32 as a fraction of the distance, a tenth of the accuracy that is required."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """A Gaussian prepared for distances, in float64. Build it once where one set is compared with many."""

    mean: NDArray[np.float64]
    trace: float
    """Of the covariance S."""
    rows: Tensor | None
    """F (n - 1, d) with S = F^T F where the clips themselves serve."""
    covariance: NDArray[np.float64] | None
    """S where the covariance serves."""

    @cached_property
    def cholesky(self) -> Tensor | None:
        """L with S = L L^T; None where S is singular to rounding or not formed."""
        if self.covariance is None:
            return None
        lower, failed = torch.linalg.cholesky_ex(torch.from_numpy(self.covariance))
        pivots = lower.diagonal().square()
        return lower if not failed and pivots.min() > PIVOT_LIMIT * pivots.max() else None

    @cached_property
    def factor(self) -> Tensor:
        """F (rank, d) with S = F^T F."""
        if self.rows is not None:
            return self.rows
        return _eigen_factor(self.covariance) if self.cholesky is None else self.cholesky.T


def frechet_distance(a: GaussianStats | Features, b: GaussianStats | Features, *, form: Form = "auto") -> float:
    """||mu_a - mu_b||^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2)), in float64.

    a, b: features (clips, d) or moments. With S = F^T F, Tr (S_a S_b)^(1/2) is the nuclear norm of F_a F_b^T: no root
    of a product is taken, and covariances of fewer clips than dimensions are no special case. F is, per set,
    the centred clips over sqrt(n - 1), a Cholesky factor, or for a singular covariance its eigenvectors. Where both
    covariances have full rank it is the sum of the roots of the eigenvalues of L_a^T S_b L_a, which is symmetric.
    Two equal sets give zero up to rounding, which may be a little below zero and is returned as it is.

    With form `auto`, the covariances of two large sets of features are taken with float32 products first; the distance
    found so is returned where its error, estimated from what float32 cost in a few columns and from the condition of
    the covariances, is below 1e-7 of it, and found again in float64 where not. Form `moments` is float64 throughout.

    Differs from av-benchmark in three ways: the mean is taken in float64 (there float32), nothing is ever added to the
    diagonal, and no failure becomes the value -1.

    Raises:
        ValueError: different dimensions, entries that are not finite, fewer than two clips, a covariance with a clearly
            negative eigenvalue, or form "rows" for moments.
    """
    if form == "auto" and not isinstance(a, GaussianStats) and not isinstance(b, GaussianStats):
        quick = _single_distance(a, b)
        if quick is not None:
            return quick
    return distance_of_sides(side_of(a, form), side_of(b, form))


def frechet_bias(stats: GaussianStats, n: int, m: int) -> float:
    """Expected Frechet distance between samples of sizes n and m of one and the same Gaussian, to first order.

    (1/n + 1/m) [5/4 Tr S + 1/2 sum_ij l_i l_j / (l_i + l_j)], l the eigenvalues of S. Good to about 1 % when n and m
    are well above the dimension; at n comparable to d it is an order of magnitude, no more. With the eigenvalues of a
    sample of fewer clips than dimensions it is too small, for such a sample shows fewer directions than there are.
    """
    if n < 2 or m < 2:
        raise ValueError(f"n and m must be at least 2, got {n} and {m}")
    return _bias(np.linalg.eigvalsh(stats.covariance).astype(np.float64), n, m)


def side_of(value: GaussianStats | Features, form: Form = "auto") -> Side:
    """The `Side` of features (clips, d) or moments; raises what `frechet_distance` raises."""
    if form not in ("auto", "rows", "moments"):
        raise ValueError(f"form must be auto, rows or moments, got {form!r}")
    if not isinstance(value, GaussianStats):
        if form == "rows" or (form == "auto" and len(value) <= value.shape[-1]):
            return _side_of_rows(as_matrix(value))
        value = GaussianStats.from_features(value)
    elif form == "rows":
        raise ValueError("form rows needs the features themselves, got moments")
    return Side(mean=value.mean, trace=float(np.trace(value.covariance)), rows=None, covariance=value.covariance)


def distance_of_sides(a: Side, b: Side) -> float:
    """The Frechet distance of two sides. Raises ValueError for different dimensions."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"both sets must have the same dimension, got {a.mean.size} and {b.mean.size}")
    shift = a.mean - b.mean
    overlap = _overlap_of_full_rank(a, b)
    if overlap is None:
        overlap = nuclear_norm(a.factor @ b.factor.T)
    return float(shift @ shift) + a.trace + b.trace - 2.0 * overlap


def nuclear_norm(product: Tensor) -> float:
    """Sum of the singular values of `product` (k, l).

    Where no singular value is small they are the roots of the eigenvalues of P^T P, five times faster; else the
    singular values themselves, since the root of an eigenvalue lost in rounding would be wrong by 1e-8.
    """
    if product.numel() == 0:
        return 0.0
    tall = product if product.shape[0] >= product.shape[1] else product.T
    roots = _sum_of_roots(torch.linalg.eigvalsh(tall.T @ tall))
    return float(torch.linalg.svdvals(product).sum()) if roots is None else roots


def _single_distance(a: Features, b: Features) -> float | None:
    """The distance with products in float32; None where the sets are small, singular, or too alike for float32."""
    shapes = (tuple(a.shape), tuple(b.shape))
    if any(len(shape) != 2 or not shape[0] > shape[1] for shape in shapes) or shapes[0][1] != shapes[1][1]:
        return None
    if min(n * d * d for n, d in shapes) < SINGLE_LEAST:
        return None
    x, y = Float32Moments.from_matrix(as_matrix(a)), Float32Moments.from_matrix(as_matrix(b))
    if x is None or y is None:
        return None
    first, second = (Side(mean=z.mean, trace=z.trace, rows=None, covariance=z.covariance) for z in (x, y))
    if first.cholesky is None or second.cholesky is None:
        return None
    (first_root, first_rest), (second_root, second_rest) = (
        x.frechet_errors(first.cholesky),
        y.frechet_errors(second.cholesky),
    )
    rest = first_rest * np.sqrt(y.trace) + second_rest * np.sqrt(x.trace)

    def precise(distance: float) -> bool:  # not so where the error is nan or the distance not positive
        error = (first_root + second_root) * np.sqrt(max(distance, 0.0)) + rest
        return bool(error < SINGLE_LIMIT * distance)

    shift = x.mean - y.mean
    largest = float(shift @ shift) + x.trace + y.trace
    overlap = _overlap_of_full_rank(first, second) if precise(largest) else None
    return None if overlap is None or not precise(largest - 2.0 * overlap) else largest - 2.0 * overlap


def _overlap_of_full_rank(a: Side, b: Side) -> float | None:
    """Tr (S_a S_b)^(1/2) from the eigenvalues of L_a^T S_b L_a, LAPACK's reduction of S_b S_a; None where unsafe."""
    if a.cholesky is None or b.covariance is None:
        return None
    # The transposes of symmetric matrices spare copies: LAPACK stores columns. Only one triangle is filled.
    reduced, _ = lapack.dsygst(b.covariance.T, np.asfortranarray(a.cholesky.numpy()), itype=2, lower=1)
    return _sum_of_roots(torch.linalg.eigvalsh(torch.from_numpy(reduced.T), UPLO="U"))


def _sum_of_roots(eigenvalues: Tensor) -> float | None:
    """Sum of the roots of ascending `eigenvalues`; None where the smallest is too near to rounding."""
    if eigenvalues[0] > EIGENVALUE_LIMIT * eigenvalues[-1]:
        return float(eigenvalues.sqrt().sum())
    return None


def _side_of_rows(matrix: NDArray[np.float64]) -> Side:
    if len(matrix) < 2:
        raise ValueError(f"features must have at least 2 rows (a covariance needs two clips), got {len(matrix)}")
    mean = matrix.mean(axis=0)
    centred = torch.from_numpy(matrix - mean)
    # n centred rows span n - 1 directions. The reflection that takes (1, ..., 1) / sqrt(n) to the first axis leaves
    # row 0 zero, by which it is dropped, and row i as below; without it every product would be singular.
    factor = (centred[1:] + centred[0] / (np.sqrt(len(matrix)) - 1.0)) / np.sqrt(len(matrix) - 1)
    return Side(mean=mean, trace=float(factor.square().sum()), rows=factor, covariance=None)


def _eigen_factor(covariance: NDArray[np.float64] | None) -> Tensor:
    """F (rank, d) with S = F^T F, the eigenvalues that are only rounding noise left out."""
    eigenvalues, vectors = torch.linalg.eigh(torch.from_numpy(covariance))
    largest = float(eigenvalues.abs().max())
    if eigenvalues[0] < -1e-6 * largest:
        raise ValueError(
            f"a covariance must have no negative eigenvalue, got {eigenvalues[0]:.3g} beside {largest:.3g}"
        )
    keep = eigenvalues > largest * len(eigenvalues) * np.finfo(np.float64).eps
    return (vectors[:, keep] * eigenvalues[keep].sqrt()).T


def _bias(eigenvalues: NDArray[np.float64], n: int, m: int) -> float:
    positive = eigenvalues[eigenvalues > 0.0]
    pairs = np.multiply.outer(positive, positive) / np.add.outer(positive, positive)
    return (1.0 / n + 1.0 / m) * float(1.25 * positive.sum() + 0.5 * pairs.sum())
