"""Mean and covariance of feature vectors: in float64, and with float32 products and what that does to a distance."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import blas
from torch import Tensor

Features = Tensor | NDArray[np.floating]
"""Feature vectors, one per row; a torch tensor on any device or a numpy array."""


SCATTER_ROWS = 2048
"""Rows multiplied at a time."""


def as_matrix(features: Features, name: str = "features") -> NDArray[np.float64]:
    """`features` as a finite float64 array (n, d).

    Raises:
        ValueError: not two-dimensional, without columns, or with NaN or infinite entries.
    """
    array = features.detach().cpu().numpy() if isinstance(features, Tensor) else np.asarray(features)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"{name} must have shape (clips, dimensions), got {array.shape}")
    matrix = np.asarray(array, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        total = matrix.sum()
    if not np.isfinite(total):  # one quick pass; only a sum that overflowed needs the slow search
        bad = ~np.isfinite(matrix).all(axis=1)
        if not bad.any():
            return matrix
        raise ValueError(f"{name} must be finite; {int(bad.sum())} rows are not, the first is row {int(bad.argmax())}")
    return matrix


@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianStats:
    """Moments of `count` feature vectors.

    mean (d,); covariance (d, d) with divisor count - 1; both float64.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    count: int

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.covariance.shape != (self.mean.size, self.mean.size):
            raise ValueError(
                f"mean must be (d,) and covariance (d, d), got {self.mean.shape} and {self.covariance.shape}"
            )
        if self.count < 2:
            raise ValueError(f"count must be at least 2 (a covariance needs two clips), got {self.count}")
        largest = float(np.abs(self.covariance).max())
        if not (np.isfinite(self.mean).all() and np.isfinite(largest)):
            raise ValueError("mean and covariance must be finite, got NaN or infinite entries")
        rows = range(0, self.mean.size, 256)  # in strips that stay in the cache
        strips = (np.abs(self.covariance[i : i + 256] - self.covariance[:, i : i + 256].T).max() for i in rows)
        asymmetry = float(max(strips))
        if asymmetry > 1e-8 * largest:
            raise ValueError(f"covariance must be symmetric, got entries that differ by {asymmetry:.3g}")

    @classmethod
    def from_features(cls, features: Features) -> Self:
        """Moments of the rows of `features` (n, d); n may be smaller than d."""
        matrix = as_matrix(features)
        if len(matrix) < 2:
            raise ValueError(f"features must have at least 2 rows (a covariance needs two clips), got {len(matrix)}")
        mean = matrix.mean(axis=0)
        return cls(mean=mean, covariance=scatter_about(matrix, mean) / (len(matrix) - 1), count=len(matrix))


def scatter_about(matrix: NDArray[np.float64], origin: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of (x - origin)(x - origin)^T over the rows x (d, d), block by block; no copy of the whole."""
    upper = np.zeros((origin.size, origin.size), order="F")
    buffer = np.empty((min(SCATTER_ROWS, len(matrix)), origin.size))
    for begin in range(0, len(matrix), SCATTER_ROWS):
        block = matrix[begin : begin + SCATTER_ROWS]
        centred = np.subtract(block, origin, out=buffer[: len(block)])
        upper = blas.dsyrk(1.0, centred.T, beta=1.0, c=upper, overwrite_c=1)
    return mirrored(upper)


def mirrored(upper: NDArray[np.float64]) -> NDArray[np.float64]:
    """`upper` (d, d) with its upper triangle copied below, in place and in strips that stay in the cache."""
    for begin in range(0, len(upper), 128):
        strip = slice(begin, min(begin + 128, len(upper)))
        corner = np.triu(upper[strip, strip])
        upper[strip, strip] = corner + np.triu(corner, 1).T
        upper[strip.stop :, strip] = upper[strip, strip.stop :].T
    return upper.T  # C order


CENTRED_ROWS = 256
"""Rows centred at a time, few enough for the cache."""

EXACT_COLUMNS = 8
"""Columns of a scatter matrix taken in both precisions, to see what float32 cost."""

PROBES = 8
"""Random vectors for a norm known to a factor well below two."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Float32Moments:
    """Moments with products taken in float32: twice as fast, for a single distance and never stored.

    mean (d,) and the diagonal of covariance (d, d) as in `GaussianStats`; the other entries sums in float64 of float32
    products of blocks. rounding: root mean square of their errors e_ij / (s_i s_j), s the standard deviations,
    over EXACT_COLUMNS columns that were also taken in float64; nan where float32 overflowed.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    rounding: float

    @classmethod
    def from_matrix(cls, matrix: NDArray[np.float64]) -> Self | None:
        """Moments of the finite rows of `matrix` (n, d); None where a column has no spread."""
        (n, d), mean = matrix.shape, matrix.mean(axis=0)
        sample = np.unique(np.linspace(0, d - 1, EXACT_COLUMNS).round().astype(int))
        squares, columns = np.zeros(d), np.zeros((d, len(sample)))
        total, upper = np.zeros((d, d), order="F"), np.zeros((d, d), np.float32, order="F")
        single = np.empty((min(SCATTER_ROWS, n), d), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for begin in range(0, n, SCATTER_ROWS):
                block = single[: min(SCATTER_ROWS, n - begin)]
                for rows, centred in _centred_blocks(matrix[begin : begin + SCATTER_ROWS], mean):
                    block[rows] = centred
                    # SciPy's product as below: threads of a second library, waiting, would take the cores.
                    columns += blas.dgemm(1.0, centred.T, np.asfortranarray(centred[:, sample]))
                    squares += np.einsum("ij,ij->j", centred, centred)
                upper = blas.ssyrk(1.0, block.T, c=upper, overwrite_c=1)
                total += upper
            if not squares.min() > 0.0:
                return None
            scatter = mirrored(total)
            errors = (scatter[:, sample] - columns) / np.sqrt(np.multiply.outer(squares, squares[sample]))
        errors[sample, np.arange(len(sample))] = 0.0
        np.fill_diagonal(scatter, squares)
        scatter /= n - 1
        return cls(mean=mean, covariance=scatter, rounding=float(np.sqrt(np.square(errors).mean())))

    @property
    def trace(self) -> float:
        """Of the covariance."""
        return float(self.covariance.trace())

    def frechet_errors(self, cholesky: Tensor) -> tuple[float, float]:
        """(f, g): errors E of the covariance S off its diagonal move a distance by f sqrt(distance) + g sqrt(Tr S').

        That is a standard error; S' is the covariance of the other side and `cholesky` (d, d) the factor of S. It takes
        E = rounding C G C, C = diag(S)^(1/2), the entries of G independent of variance one. With T the optimal map from
        this Gaussian to the other the first order is Tr((I - T) E), sqrt(2) rounding ||C (I - T) C||_F. Since
        Tr (I - T) S (I - T) is the distance without its shift, and C^2 <= k S for k = ||C S^-1 C||, it is at most
        sqrt(2) rounding max(C) sqrt(k distance). The second order Tr(E T E S^-1) / 4 is on average
        rounding^2 / 4 Tr(C T C) Tr(C S^-1 C), where Tr(C T C) <= sqrt(k Tr S Tr S'). k and the trace are from probes.
        """
        spread = torch.from_numpy(np.sqrt(self.covariance.diagonal()))[:, None]
        probes = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], size=(len(spread), PROBES)))
        once = spread * torch.cholesky_solve(spread * probes, cholesky)
        twice = spread * torch.cholesky_solve(spread * once, cholesky)
        trace = float((probes * once).sum()) / PROBES
        norm = float(twice.square().sum() / PROBES) ** 0.25  # Tr((C S^-1 C)^4)^(1/4), not below the norm
        first = np.sqrt(2.0 * norm) * self.rounding * float(spread.max())
        return float(first), float(self.rounding**2 / 4.0 * np.sqrt(norm * self.trace) * trace)


def _centred_blocks(
    matrix: NDArray[np.float64], origin: NDArray[np.float64]
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Slices of at most CENTRED_ROWS rows and those rows less `origin`, in a buffer that the next ones overwrite."""
    buffer = np.empty((min(CENTRED_ROWS, len(matrix)), origin.size))
    for begin in range(0, len(matrix), CENTRED_ROWS):
        rows = slice(begin, min(begin + CENTRED_ROWS, len(matrix)))
        yield rows, np.subtract(matrix[rows], origin, out=buffer[: rows.stop - rows.start])
