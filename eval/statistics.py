"""Mean and covariance of feature vectors, in float64."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Features = Tensor | NDArray[np.floating]
"""Feature vectors, one per row; a torch tensor on any device or a numpy array."""


def as_matrix(features: Features, name: str = "features") -> NDArray[np.float64]:
    """`features` as a finite float64 array (n, d).

    Raises:
        ValueError: not two-dimensional, without columns, or with NaN or infinite entries.
    """
    array = features.detach().cpu().numpy() if isinstance(features, Tensor) else np.asarray(features)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"{name} must have shape (clips, dimensions), got {array.shape}")
    matrix = np.asarray(array, dtype=np.float64)
    bad = ~np.isfinite(matrix).all(axis=1)
    if bad.any():
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
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise ValueError("mean and covariance must be finite, got NaN or infinite entries")
        asymmetry = float(np.abs(self.covariance - self.covariance.T).max())
        if asymmetry > 1e-8 * float(np.abs(self.covariance).max()):
            raise ValueError(f"covariance must be symmetric, got entries that differ by {asymmetry:.3g}")

    @classmethod
    def from_features(cls, features: Features) -> Self:
        """Moments of the rows of `features` (n, d); n may be smaller than d."""
        matrix = as_matrix(features)
        if len(matrix) < 2:
            raise ValueError(f"features must have at least 2 rows (a covariance needs two clips), got {len(matrix)}")
        mean = matrix.mean(axis=0)
        centred = matrix - mean
        return cls(mean=mean, covariance=centred.T @ centred / (len(matrix) - 1), count=len(matrix))

    def merge(self, other: Self) -> Self:
        """Moments of both sets together.

        With d = mean_b - mean_a: scatter = scatter_a + scatter_b + d d^T n_a n_b / (n_a + n_b).
        """
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"merge needs equal dimensions, got {self.mean.size} and {other.mean.size}")
        total = self.count + other.count
        shift = other.mean - self.mean
        scatter = (
            self.covariance * (self.count - 1)
            + other.covariance * (other.count - 1)
            + np.outer(shift, shift) * (self.count * other.count / total)
        )
        return type(self)(mean=self.mean + shift * (other.count / total), covariance=scatter / (total - 1), count=total)
