"""Mean and covariance of feature vectors with float32 products, and what that does to a Frechet distance."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import blas
from torch import Tensor

from eval.metrics.moments.gaussian import SCATTER_ROWS, mirrored

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
