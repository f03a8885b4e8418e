"""Frechet distance extrapolated to infinitely many clips (arXiv 1911.07023)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.metrics.moments.distance import distance_of_sides, side_of
from eval.metrics.moments.gaussian import Features, GaussianStats, as_matrix


@dataclass(frozen=True, kw_only=True)
class Extrapolation:
    """The line distance = intercept + slope / n through the distances of ever smaller subsets."""

    intercept: float
    """The distance at 1/n = 0."""
    standard_error: float
    """Standard error of the intercept, from the scatter about the line. The subsets overlap, so it does not include the
    variation between clips, which the jackknife interval of the distance itself does."""
    slope: float
    sizes: tuple[int, ...]
    """Generated clips in each subset, the last being all of them."""
    distances: tuple[float, ...]
    reference_shrinks: bool
    """Whether the reference was cut in proportion; if not, its part of the bias is still in the intercept."""
    seed: int


def frechet_infinity(
    reference: GaussianStats | Features,
    generated: Features,
    *,
    points: int = 15,
    smallest: int | None = None,
    seed: int = 0,
) -> Extrapolation:
    """Least-squares line in 1/n through the Frechet distance of `points` random subsets, and its intercept.

    The sizes are equally spaced in 1/n from `smallest` (default: a quarter of the clips) to all. Clips are drawn
    without replacement; fadtk draws with replacement, which repeats clips and biases every point, and without
    a seed. With the reference as features both sets shrink in one ratio (and pairs of clips stay together when the sets
    have one length), so that the bias of both goes; with the reference as moments only that of the generated set does.
    The bias is linear in 1/n only well above the dimension: choose `smallest` at several times d where there are clips
    enough, and read the intercept with caution where there are not.

    Raises:
        ValueError: fewer than three points, `smallest` not between 2 and the number of clips, sizes that coincide,
            or what `frechet_distance` raises.
    """
    y = as_matrix(generated, "generated")
    fixed = side_of(reference) if isinstance(reference, GaussianStats) else None
    x = np.zeros((0, 0)) if isinstance(reference, GaussianStats) else as_matrix(reference, "reference")
    count = len(y)
    least = max(count // 4, 2) if smallest is None else smallest
    if points < 3:
        raise ValueError(f"points must be at least 3 (a line and its scatter), got {points}")
    if not 2 <= least < count:
        raise ValueError(f"smallest must be between 2 and the number of generated clips, {count}, got {least}")
    sizes = np.rint(1.0 / np.linspace(1.0 / least, 1.0 / count, points)).astype(int)
    if len(set(sizes.tolist())) < points:
        raise ValueError(f"sizes must be distinct: {points} points do not fit between {least} and {count} clips")
    rng = np.random.default_rng(seed)
    distances = []
    for size in sizes:
        subset = rng.permutation(count)[:size]
        shrunk = fixed or side_of(x[_in_proportion(subset, count, len(x), rng)])
        distances.append(distance_of_sides(shrunk, side_of(y[subset])))
    slope, intercept, error = _line(1.0 / sizes, np.asarray(distances))
    return Extrapolation(
        intercept=intercept,
        standard_error=error,
        slope=slope,
        sizes=tuple(int(size) for size in sizes),
        distances=tuple(distances),
        reference_shrinks=fixed is None,
        seed=seed,
    )


def _in_proportion(subset: NDArray[np.int64], count: int, total: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of a set of `total` to go with the rows `subset` of `count`: the same ones if the sets have one length."""
    if total == count:
        return subset
    return rng.permutation(total)[: max(round(total * len(subset) / count), 2)]


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float, float]:
    """Slope, intercept and the intercept's standard error sqrt(s^2 (1/k + mean(x)^2 / sum (x - mean(x))^2))."""
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
    intercept = float(y.mean()) - slope * float(x.mean())
    variance = float(((y - intercept - slope * x) ** 2).sum()) / (len(x) - 2)
    return slope, intercept, float(np.sqrt(variance * (1.0 / len(x) + float(x.mean()) ** 2 / spread)))
