"""Kernel distance (KAD): unbiased squared maximum mean discrepancy with a Gaussian kernel, in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from eval.metrics.base import EMBEDDED, PaperColumn, SetMetric
from eval.metrics.uncertainty import GROUPS, Estimate, Jackknife, group_labels, groups_for

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from eval.metrics.embeddings import Embeddings
    from eval.metrics.moments.gaussian import Features

KAD_SCALE = 100.0
"""KAD is printed as 100 x MMD^2 (arXiv 2502.15602)."""

SINGLE_PAIRS, SINGLE_REACH = 1_000_000, 100.0
"""Products may be taken in float32 where the mean runs over at least so many pairs, which averages their rounding,
and no squared distance from the centre exceeds so many squared bandwidths: an exponent is off by 1e-5 at most."""

Precision = Literal["auto", "single", "double"]
"""Precision of the products x.y; norms, exponents and sums are float64. `auto` is `single` where SINGLE_PAIRS and
SINGLE_REACH allow it.
At 4,000 x 2,048 `single` moves the distance by about 1e-10 of its scale of 100, and halves the time."""

BINS = 1 << 16
"""Bins of the histogram in which the median distance is located before it is found exactly."""


def reference_bandwidth(reference: Features) -> float:
    """Median distance between different clips of the reference; for an even number of pairs the mean of the middle two.

    The bandwidth belongs to the reference, never to the evaluated set: distances with different kernels do not compare.
    (The code of kadtk takes it from the evaluated set.) Two passes over the blocks: a histogram finds the
    bin of the median, then the distances of that bin are sorted.

    Raises:
        ValueError: fewer than two clips, or at least half of the pairs identical to rounding.
    """
    import torch

    from eval.metrics.moments.gaussian import as_matrix
    from eval.metrics.moments.pairwise import centred

    matrix = as_matrix(reference, "reference")
    if len(matrix) < 2:
        raise ValueError(f"reference must have at least 2 clips, got {len(matrix)}")
    x = centred(matrix)
    pairs = len(x) * (len(x) - 1) // 2
    spread = float(x.square().sum(dim=1).mean())
    top = 4.0 * float(x.square().sum(dim=1).max())  # (|x| + |y|)^2 is at most this
    if not top > 0.0:
        raise ValueError("reference must have distinct clips: the median distance between them is 0")
    histogram = torch.zeros(BINS, dtype=torch.int64)
    for values in _pair_values(x):
        histogram += torch.bincount(_bin_of(values, top), minlength=BINS)
    below = histogram.cumsum(0)
    ranks = ((pairs - 1) // 2, pairs // 2)
    first, last = (int(torch.searchsorted(below, rank, right=True)) for rank in ranks)
    found = []
    for values in _pair_values(x):
        bins = _bin_of(values, top)
        found.append(values[(bins >= first) & (bins <= last)])
    ordered = torch.cat(found).sort().values
    offset = int(below[first - 1]) if first > 0 else 0
    low, high = (float(ordered[rank - offset]) for rank in ranks)
    if low <= 1e-12 * spread:
        raise ValueError("reference must have distinct clips: the median distance between them is 0")
    return (np.sqrt(low) + np.sqrt(high)) / 2.0


def kernel_distance(
    reference: Features, generated: Features, *, bandwidth: float, precision: Precision = "auto"
) -> float:
    """100 x unbiased MMD^2 with k(x, y) = exp(-||x - y||^2 / (2 bandwidth^2)).

    The diagonal is left out of both within-set means, so the expectation is 0 when the laws are equal and a single
    value may be negative. Blocks of 1024 x 1024 pairs; each pair within a set is visited once.

    Raises:
        ValueError: different dimensions, fewer than two clips, not finite, or a bandwidth that is not positive.
    """
    from eval.metrics.moments.pairwise import row_blocks

    x, y = _checked(reference, generated, bandwidth)
    products = _products(x, y, bandwidth, precision)
    return _Sums.of(x, y, row_blocks(len(x)), row_blocks(len(y)), bandwidth, products).distance()


def kernel_jackknife(
    reference: Features,
    generated: Features,
    *,
    bandwidth: float,
    precision: Precision = "auto",
    groups: int = GROUPS,
    seed: int = 0,
) -> Jackknife:
    """`jackknife` of `kernel_distance` from one pass, with the kernel sums of every pair of groups.

    The bandwidth stays that of the full reference. Sets of one length are taken as paired.
    """
    x, y = _checked(reference, generated, bandwidth)
    labels = group_labels((len(x), len(y)), groups=groups, seed=seed)
    (x, x_slices), (y, y_slices) = (_by_group(z, label, groups) for z, label in zip((x, y), labels, strict=True))
    sums = _Sums.of(x, y, x_slices, y_slices, bandwidth, _products(x, y, bandwidth, precision))
    replicates = tuple(sums.distance(without=group) for group in range(groups))
    return Jackknife(value=sums.distance(), replicates=replicates, counts=(len(x), len(y)), seed=seed)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sums:
    """Kernel sums between parts of the sets: xx and yy over ordered pairs of different clips, xy over all."""

    xx: NDArray[np.float64]
    yy: NDArray[np.float64]
    xy: NDArray[np.float64]
    x_sizes: NDArray[np.int64]
    y_sizes: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        x: Tensor,
        y: Tensor,
        x_slices: list[slice],
        y_slices: list[slice],
        bandwidth: float,
        products: torch.dtype,
    ) -> _Sums:
        from eval.metrics.moments.pairwise import squared_distances

        xy = np.zeros((len(x_slices), len(y_slices)))
        for i, j, block in squared_distances(x, y, x_slices, y_slices, products=products):
            xy[i, j] = _kernel(block, bandwidth).sum()
        return cls(
            xx=_sums_within(x, x_slices, bandwidth, products),
            yy=_sums_within(y, y_slices, bandwidth, products),
            xy=xy,
            x_sizes=np.array([part.stop - part.start for part in x_slices]),
            y_sizes=np.array([part.stop - part.start for part in y_slices]),
        )

    def distance(self, *, without: int | None = None) -> float:
        """100 x MMD^2 of all parts, or of all but part `without` of both sets."""
        keep_x, keep_y = (np.arange(len(sizes)) != without for sizes in (self.x_sizes, self.y_sizes))
        n, m = int(self.x_sizes[keep_x].sum()), int(self.y_sizes[keep_y].sum())
        within_x = self.xx[np.ix_(keep_x, keep_x)].sum() / (n * (n - 1))
        within_y = self.yy[np.ix_(keep_y, keep_y)].sum() / (m * (m - 1))
        return KAD_SCALE * float(within_x + within_y - 2.0 * self.xy[np.ix_(keep_x, keep_y)].sum() / (n * m))


def _products(x: Tensor, y: Tensor, bandwidth: float, precision: Precision) -> torch.dtype:
    import torch

    from eval.metrics.moments.pairwise import row_blocks

    if precision not in ("auto", "single", "double"):
        raise ValueError(f"precision must be auto, single or double, got {precision!r}")
    pairs = min(len(x), len(y)) ** 2 / 2
    reach = max(float(z[rows].square().sum(dim=1).max()) for z in (x, y) for rows in row_blocks(len(z)))
    fits = pairs >= SINGLE_PAIRS and reach <= SINGLE_REACH * bandwidth**2
    return torch.float32 if precision == "single" or (precision == "auto" and fits) else torch.float64


def _sums_within(x: Tensor, slices: list[slice], bandwidth: float, products: torch.dtype) -> NDArray[np.float64]:
    from eval.metrics.moments.pairwise import squared_distances_within

    sums = np.zeros((len(slices), len(slices)))
    for i, j, block in squared_distances_within(x, slices, products=products):
        values = _kernel(block, bandwidth)
        if i == j:
            values.fill_diagonal_(0.0)
        sums[i, j] = sums[j, i] = values.sum()
    return sums


def _kernel(squared: Tensor, bandwidth: float) -> Tensor:
    return squared.mul_(-0.5 / bandwidth**2).exp_()


def _pair_values(x: Tensor) -> Iterator[Tensor]:
    """Squared distances of all pairs of different clips, block by block, each pair once."""
    import torch

    from eval.metrics.moments.pairwise import row_blocks, squared_distances_within

    for i, j, block in squared_distances_within(x, row_blocks(len(x))):
        if i == j:
            above = torch.triu_indices(len(block), len(block), offset=1)
            yield block[above[0], above[1]].clamp_min_(0.0)
        else:
            yield block.flatten().clamp_min_(0.0)


def _bin_of(values: Tensor, top: float) -> Tensor:
    return (values * (BINS / top)).long().clamp_max_(BINS - 1)


def _by_group(z: Tensor, label: NDArray[np.int64], groups: int) -> tuple[Tensor, list[slice]]:
    """Rows sorted by group, and the slice of each group."""
    import torch

    edges = np.concatenate([[0], np.bincount(label, minlength=groups).cumsum()])
    return z[torch.from_numpy(np.argsort(label, kind="stable"))], [
        slice(int(begin), int(end)) for begin, end in pairwise(edges)
    ]


def _checked(reference: Features, generated: Features, bandwidth: float) -> tuple[Tensor, Tensor]:
    from eval.metrics.moments.pairwise import aligned

    if not bandwidth > 0.0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")
    return aligned(reference, generated, least=2)


EXPLANATION = (
    "Kernel distance of {features}, 100 x unbiased squared maximum mean discrepancy, bandwidth from the real clips: as "
    "FD, without its bias from few clips. As an unbiased estimate of a distance that is zero for real sound it may "
    "come out negative, which means no more than zero."
)


def kernel_metric(
    key: str, label: str, *, source: str, features: str, paper: PaperColumn, main: bool = False
) -> SetMetric:
    """The declaration of KAD for one source: bandwidth of the reference, one row per clip (the mean of several)."""

    def value(reference: Embeddings, generated: Embeddings) -> dict[str, float]:
        x = reference.means
        return {key: kernel_distance(x, generated.means, bandwidth=reference_bandwidth(x))}

    def estimate(reference: Embeddings, generated: Embeddings) -> dict[str, Estimate]:
        groups = groups_for(len(reference), len(generated))
        if groups is None:
            return {}
        x = reference.means
        found = kernel_jackknife(x, generated.means, bandwidth=reference_bandwidth(x), groups=groups)
        return {key: Estimate.of_jackknife(found, bias=0.0, bias_method="unbiased for a fixed bandwidth")}

    return SetMetric(
        key=key,
        label=label,
        better="lower",
        digits=2,
        explanation=EXPLANATION.format(features=features),
        source=source,
        main=main,
        paper=paper,
        needs="features",
        formula="kernel",
        value=value,
        estimate=estimate,
    )


KAD_PASST = kernel_metric(
    "kad_passt", "KAD (PaSST)", source="passt", features="PaSST features", paper=PaperColumn(name="KAD", sub="PaSST")
)
KAD_PANNS = kernel_metric(
    "kad_panns", "KAD (PANNs)", source="panns", features="PANNs features", paper=PaperColumn(name="KAD", sub="PANNs")
)
KAD_EMBEDDED = kernel_metric(
    "kad",
    "KAD (embedded)",
    source=EMBEDDED,
    features="embedded features",
    paper=PaperColumn(name="Embedded-KAD"),
    main=True,
)
