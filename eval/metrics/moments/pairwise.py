"""Squared distances between two sets of vectors, a block at a time: never the whole matrix in memory."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.metrics.moments.gaussian import Features, as_matrix

BLOCK = 1024
"""Rows and columns of a block; 8 MiB in float64."""


def row_blocks(count: int, block: int = BLOCK) -> list[slice]:
    """Consecutive slices of at most `block` rows that cover range(count)."""
    return [slice(begin, min(begin + block, count)) for begin in range(0, count, block)]


def centred(matrix: NDArray[np.float64], about: NDArray[np.float64] | None = None) -> Tensor:
    """Rows of `matrix` less the mean of `about` (of `matrix` itself if not given), as a float64 tensor.

    Distances do not depend on the centre; a near one keeps |x|^2 + |y|^2 - 2 x.y from cancelling. It is rounded to 8
    bits so that distances between small integers stay exact.
    """
    mean = torch.from_numpy((matrix if about is None else about).mean(axis=0))
    return torch.from_numpy(matrix) - mean.to(torch.bfloat16).double()


def aligned(x: Features, y: Features, *, least: int) -> tuple[Tensor, Tensor]:
    """Reference and generated features as float64 tensors about one common centre.

    Raises:
        ValueError: different dimensions, fewer than `least` rows in either, or entries that are not finite.
    """
    first, second = as_matrix(x, "reference"), as_matrix(y, "generated")
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"both sets must have the same dimension, got {first.shape[1]} and {second.shape[1]}")
    if min(len(first), len(second)) < least:
        raise ValueError(f"both sets must have at least {least} clips, got {len(first)} and {len(second)}")
    return centred(first), centred(second, about=first)


def squared_distances(
    x: Tensor, y: Tensor, rows: list[slice], columns: list[slice], *, products: torch.dtype = torch.float64
) -> Iterator[tuple[int, int, Tensor]]:
    """(i, j, ||x_k - y_l||^2 for k in rows[i], l in columns[j]) for every pair of slices; the block may be overwritten.

    x (n, d), y (m, d) float64, blocks float64. An entry is off by rounding of about 1e-16 (|x|^2 + |y|^2) and may be
    that much below 0; with `products` in float32, twice as fast, by about 1e-7 times as much.
    """
    left, right = x.to(products), y.to(products)
    left_norms, right_norms = _squared_norms(left), _squared_norms(right)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            yield i, j, _block(left[row], right[column], left_norms[row], right_norms[column])


def squared_distances_within(
    x: Tensor, blocks: list[slice], *, products: torch.dtype = torch.float64
) -> Iterator[tuple[int, int, Tensor]]:
    """The blocks i <= j of the distances of `x` to itself; those with i < j stand for their mirror image as well."""
    vectors = x.to(products)
    norms = _squared_norms(vectors)
    for i, row in enumerate(blocks):
        for j in range(i, len(blocks)):
            yield i, j, _block(vectors[row], vectors[blocks[j]], norms[row], norms[blocks[j]])


def _squared_norms(x: Tensor) -> Tensor:
    """Of the vectors as rounded, so that equal ones stay at distance 0; float64."""
    return torch.cat([x[rows].double().square().sum(dim=1) for rows in row_blocks(len(x))])


def _block(left: Tensor, right: Tensor, left_norms: Tensor, right_norms: Tensor) -> Tensor:
    return (left @ right.T).double().mul_(-2.0).add_(left_norms[:, None]).add_(right_norms)
