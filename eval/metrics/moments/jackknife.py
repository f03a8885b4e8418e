"""Delete-a-group jackknife of the Frechet distance from one pass over the clips."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from eval.metrics.moments.distance import Side, distance_of_sides, nuclear_norm, side_of
from eval.metrics.moments.gaussian import Features, as_matrix, scatter_about
from eval.metrics.uncertainty import GROUPS, Jackknife, group_labels


def frechet_jackknife(reference: Features, generated: Features, *, groups: int = GROUPS, seed: int = 0) -> Jackknife:
    """`jackknife(frechet_distance, reference, generated)` in float64, without taking the clips `groups` times.

    For a set (n, d) of more clips than dimensions the scatter matrix W_g of every group about the mean of all is stored
    (groups d^2 numbers a set: 0.7 GB at d = 2048 and 20 groups). The n' clips left without group g, their mean shifted
    by d, have the scatter W - W_g - n' d d^T, W the sum over the groups. For two sets of no more clips than dimensions
    the products X Y^T of centred clips are taken once; without a group rows and columns are struck out and the rest
    is centred again. What remains is one eigenvalue problem per group, near a second each at d = 2048.

    Raises:
        ValueError: what `group_labels` and `frechet_distance` raise.
    """
    x, y = as_matrix(reference, "reference"), as_matrix(generated, "generated")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"both sets must have the same dimension, got {x.shape[1]} and {y.shape[1]}")
    labels = group_labels((len(x), len(y)), groups=groups, seed=seed)
    first, second = (_Grouped(matrix=z, labels=label) for z, label in zip((x, y), labels, strict=True))
    if max(len(x), len(y)) <= x.shape[1]:
        products = first.centred @ second.centred.T
        value, *replicates = (_from_products(first, second, products, group) for group in (None, *range(groups)))
    else:
        value, *replicates = (
            distance_of_sides(first.without(group), second.without(group)) for group in (None, *range(groups))
        )
    return Jackknife(value=value, replicates=tuple(replicates), counts=(len(x), len(y)), seed=seed)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Grouped:
    """A set of clips (n, d) and the group of every clip; sums by group about the mean of all."""

    matrix: NDArray[np.float64]
    labels: NDArray[np.int64]

    @cached_property
    def mean(self) -> NDArray[np.float64]:
        return self.matrix.mean(axis=0)

    @cached_property
    def centred(self) -> NDArray[np.float64]:
        return self.matrix - self.mean

    @cached_property
    def squares(self) -> NDArray[np.float64]:
        """|x - mean|^2 of every clip (n,)."""
        return np.einsum("ij,ij->i", self.centred, self.centred)

    @cached_property
    def scatters(self) -> list[NDArray[np.float64]]:
        """W_g (d, d) of every group."""
        return [scatter_about(self.matrix[self.labels == g], self.mean) for g in range(self.labels.max() + 1)]

    @cached_property
    def total(self) -> NDArray[np.float64]:
        """W (d, d), the sum of `scatters`."""
        total = np.zeros_like(self.scatters[0])
        for scatter in self.scatters:
            total += scatter
        return total

    def remaining(self, group: int | None) -> NDArray[np.bool_]:
        return self.labels != (-1 if group is None else group)

    def shift(self, remaining: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Mean of the clips `remaining` less that of all (d,), from the fewer clips that are not."""
        return (self.mean - self.matrix[~remaining]).sum(axis=0) / remaining.sum()

    def without(self, group: int | None) -> Side:
        """The side of all clips, or of all but a group's."""
        remaining = self.remaining(group)
        count = int(remaining.sum())
        if count <= len(self.mean):
            return side_of(self.matrix[remaining], "rows")
        shift = self.shift(remaining)
        scatter = self.total.copy()
        if group is not None:
            scatter -= self.scatters[group]
            scatter -= np.multiply.outer(shift, count * shift)
        scatter /= count - 1
        return Side(mean=self.mean + shift, trace=float(np.trace(scatter)), rows=None, covariance=scatter)


def _from_products(first: _Grouped, second: _Grouped, products: NDArray[np.float64], group: int | None) -> float:
    """The distance without a group from products (n, m) of clips about the means of all."""
    remaining = first.remaining(group), second.remaining(group)
    n, m = (int(rows.sum()) for rows in remaining)
    shifts = first.shift(remaining[0]), second.shift(remaining[1])
    traces = [
        (float(side.squares[rows].sum()) - len(side.squares[rows]) * float(shift @ shift)) / (rows.sum() - 1)
        for side, rows, shift in zip((first, second), remaining, shifts, strict=True)
    ]
    reduced = _without_mean(_without_mean(products[np.ix_(*remaining)]).T) / np.sqrt((n - 1) * (m - 1))
    between = first.mean + shifts[0] - second.mean - shifts[1]
    return float(between @ between) + sum(traces) - 2.0 * nuclear_norm(torch.from_numpy(reduced))


def _without_mean(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """`rows` (n, k) less their mean in an orthonormal basis of what is left, (n - 1, k); as the rows of a `Side`."""
    centred = rows - rows.mean(axis=0)
    return centred[1:] + centred[0] / (np.sqrt(len(rows)) - 1.0)
