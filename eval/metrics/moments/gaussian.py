"""Mean and covariance of feature vectors, in float64."""

from dataclasses import dataclass
from typing import Self

import numpy as np
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
