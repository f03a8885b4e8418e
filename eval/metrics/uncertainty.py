"""Interval and bias of a score: how far it would move with other clips. Bootstrap for per-clip scores, jackknife for
corpus scores."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]
DRAWS = 2000
"""Bootstrap samples; the end points of a 95 % interval then rest on about 50 values each."""
RESAMPLED_AT_ONCE = 1 << 18
"""Clips resampled in one step, which bounds the memory; the draws do not depend on it."""

GROUPS = 20
"""Groups of the jackknife; the t quantile below allows for how few there are."""
FEWEST_CLIPS = 4
"""An interval needs at least two groups of two clips."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and the interval around it; `method` and `seed` say how it was found, `count` from how many clips."""

    value: float
    low: float
    high: float
    level: float
    method: str
    count: int
    seed: int

    def __post_init__(self) -> None:
        _check_level(self.level)
        if not self.low <= self.high:
            raise ValueError(f"low must not be above high, got {self.low} and {self.high}")


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Mean of first - second over the same clips, its interval, and the two-sided Wilcoxon signed-rank p-value.

    zeros: clips with equal scores; the test leaves them out. p_value is 1 where all are equal.
    """

    interval: Interval
    p_value: float
    zeros: int


@dataclass(frozen=True, kw_only=True)
class Jackknife:
    """A corpus score with its delete-a-group replicates: replicates[g] is the score without group g."""

    value: float
    replicates: tuple[float, ...]
    counts: tuple[int, ...]
    """Number of clips of every sample the score was taken from."""
    seed: int

    def __post_init__(self) -> None:
        if len(self.replicates) < 2:
            raise ValueError(f"replicates must be at least 2, got {len(self.replicates)}")
        if not np.isfinite([self.value, *self.replicates]).all():
            raise ValueError("value and replicates must be finite, got NaN or infinite entries")

    @property
    def standard_error(self) -> float:
        """sqrt((G - 1) / G sum_g (replicate_g - mean)^2)."""
        replicates, groups = np.asarray(self.replicates), len(self.replicates)
        return float(np.sqrt((groups - 1) * replicates.var()))

    @property
    def corrected(self) -> float:
        """G value - (G - 1) mean(replicates): the score without its bias of order 1/n."""
        groups = len(self.replicates)
        return groups * self.value - (groups - 1) * float(np.mean(self.replicates))

    def interval(self, *, level: float = 0.95, corrected: bool = False) -> Interval:
        """value +- t standard errors, t the Student quantile with G - 1 degrees of freedom.

        It covers what the score is on average at this number of clips; with `corrected`, about `corrected`, what it
        would be with infinitely many (to first order). Where the score is at its least, as the distance of
        two equal laws, it is not normally distributed and the interval only a rough one.
        """
        from scipy.special import stdtrit

        _check_level(level)
        centre = self.corrected if corrected else self.value
        half = float(stdtrit(len(self.replicates) - 1, 0.5 + level / 2)) * self.standard_error
        method = f"delete-a-group jackknife, {len(self.replicates)} groups" + (", bias-corrected" if corrected else "")
        low, high = centre - half, centre + half
        count = min(self.counts)
        return Interval(value=centre, low=low, high=high, level=level, method=method, count=count, seed=self.seed)

    def minus(self, other: Self) -> "Jackknife":
        """The difference of two scores over the same clips, group by group: paired, so common luck cancels.

        Raises:
            ValueError: the two were not found with the same clips, groups and seed.
        """
        mine, theirs = ((len(one.replicates), one.counts, one.seed) for one in (self, other))
        if mine != theirs:
            raise ValueError(f"a difference needs equal groups, clips and seed, got {mine} and {theirs}")
        replicates = tuple(a - b for a, b in zip(self.replicates, other.replicates, strict=True))
        return Jackknife(value=self.value - other.value, replicates=replicates, counts=self.counts, seed=self.seed)


def bootstrap_interval(
    scores: ArrayLike,
    *,
    statistic: Callable[[Vector], Vector] | None = None,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over clips, drawn with replacement.

    scores (clips,), or (clips, k) with `statistic` taking means (draws, k) of the columns to (draws,): a ratio of sums,
    say F1 from hits, misses and false alarms. Without it, the mean. For corpus scores that repeated clips distort
    (Frechet distance, manifold scores) use `jackknife`.

    Raises:
        ValueError: not finite, fewer than two clips, columns without a statistic, or level or draws out of range.
    """
    rows = np.asarray(scores, dtype=np.float64)
    _check_level(level)
    if rows.ndim not in (1, 2) or len(rows) < 2:
        raise ValueError(f"scores must be (clips,) or (clips, k) of at least 2 clips, got shape {rows.shape}")
    if rows.ndim == 2 and statistic is None:
        raise ValueError(f"scores with columns need a statistic, got shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError(f"scores must be finite; {int((~np.isfinite(rows)).sum())} entries are not")
    if draws < 100:
        raise ValueError(f"draws must be at least 100, got {draws}")
    columns = rows.reshape(len(rows), -1)

    def of(means: Vector) -> Vector:
        return means[:, 0] if statistic is None else np.asarray(statistic(means), dtype=np.float64)

    rng, count = np.random.default_rng(seed), len(rows)
    at_once = max(1, RESAMPLED_AT_ONCE // count)
    means = np.concatenate(
        [
            columns[rng.integers(count, size=(min(at_once, draws - done), count))].mean(axis=1)
            for done in range(0, draws, at_once)
        ]
    )
    replicates = of(means)
    if replicates.shape != (draws,):
        raise ValueError(f"statistic must return one value per draw, ({draws},), got {replicates.shape}")
    if not np.isfinite(replicates).all():
        raise ValueError(f"statistic is not finite in {int((~np.isfinite(replicates)).sum())} of {draws} draws")
    low, high = np.quantile(replicates, [0.5 - level / 2, 0.5 + level / 2])
    value = float(of(columns.mean(axis=0, keepdims=True))[0])
    method = f"percentile bootstrap, {draws} draws"
    return Interval(value=value, low=float(low), high=float(high), level=level, method=method, count=count, seed=seed)


def paired_difference(
    first: ArrayLike, second: ArrayLike, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> PairedDifference:
    """first - second, clip by clip: bootstrap of the mean difference and the Wilcoxon signed-rank test.

    first, second (clips,): one score per clip and side, same order; several samples of a clip are averaged before.

    Raises:
        ValueError: unequal lengths, not finite, fewer than two clips.
    """
    from scipy.stats import wilcoxon

    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"first and second must be (clips,) of one length, got {a.shape} and {b.shape}")
    difference = a - b
    interval = bootstrap_interval(difference, level=level, draws=draws, seed=seed)
    zeros = int((difference == 0.0).sum())
    p_value = 1.0 if zeros == len(difference) else float(wilcoxon(difference, zero_method="wilcox").pvalue)
    return PairedDifference(interval=interval, p_value=p_value, zeros=zeros)


def group_labels(counts: tuple[int, ...], *, groups: int = GROUPS, seed: int = 0) -> list[NDArray[np.int64]]:
    """Group 0..groups-1 of every clip of every sample: random, sizes equal but for one.

    Samples of one length are paired (clip i of each stands for the same clip) and have the same groups.

    Raises:
        ValueError: fewer than two groups, or groups that would leave a sample with fewer than two clips.
    """
    if groups < 2:
        raise ValueError(f"groups must be at least 2, got {groups}")
    if min(counts) < max(groups, 4):
        raise ValueError(f"every sample must have at least {max(groups, 4)} clips for {groups} groups, got {counts}")
    by_count = {
        count: np.random.default_rng([seed, count]).permutation(np.arange(count) % groups) for count in set(counts)
    }
    return [by_count[count] for count in counts]


def groups_for(*counts: int) -> int | None:
    """Groups of the jackknife: 20, or one per clip where there are fewer; None below four clips."""
    fewest = min(counts)
    return None if fewest < FEWEST_CLIPS else min(GROUPS, fewest)


def jackknife(
    statistic: Callable[..., float], *samples: NDArray[np.generic], groups: int = GROUPS, seed: int = 0
) -> Jackknife:
    """`statistic(*samples)` and its replicates with one group of clips deleted from every sample at a time.

    samples: arrays whose rows are clips, for instance `jackknife(frechet_distance, reference, generated)`. A
    bootstrap would repeat clips, which lowers the rank of a covariance and biases such scores; deletion does not.
    The statistic must not draw at random: its variation would count as variation between clips, G - 1 times over.

    Raises:
        ValueError: see `group_labels`; a value that is not finite.
    """
    if not samples:
        raise ValueError("samples must be at least one, got none")
    counts = tuple(len(sample) for sample in samples)
    labels = group_labels(counts, groups=groups, seed=seed)
    replicates = tuple(
        float(statistic(*(sample[label != group] for sample, label in zip(samples, labels, strict=True))))
        for group in range(groups)
    )
    return Jackknife(value=float(statistic(*samples)), replicates=replicates, counts=counts, seed=seed)


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be between 0 and 1, got {level}")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Interval [low, high] of a score at `level`, from `count` clips.

    bias: how much of the score its method and the number of clips make by themselves, so that value - bias is its
    estimate for infinitely many clips; 0 for means over clips and for unbiased estimators.
    """

    low: float
    high: float
    level: float
    bias: float
    count: int
    method: str
    bias_method: str
    replicates: tuple[float, ...] = ()
    """Delete-a-group values, by which two scores of the same clips can be compared pairwise; empty for means."""
    seed: int = 0
    """Seed of the groups or of the bootstrap."""

    def __post_init__(self) -> None:
        values = {"low": self.low, "high": self.high, "bias": self.bias}
        for name, value in (*values.items(), *(("replicates", r) for r in self.replicates)):
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}")
        if self.low > self.high:
            raise ValueError(f"low must not be above high, got {self.low} and {self.high}")

    @classmethod
    def of_jackknife(cls, found: Jackknife, *, bias: float | None = None, bias_method: str = "") -> Self:
        """Interval around the value; the bias is value - corrected value unless one is given with its method."""
        interval = found.interval()
        return cls(
            low=interval.low,
            high=interval.high,
            level=interval.level,
            bias=found.value - found.corrected if bias is None else bias,
            count=min(found.counts),
            method=interval.method,
            bias_method="delete-a-group jackknife" if bias is None else bias_method,
            replicates=found.replicates,
            seed=found.seed,
        )

    @classmethod
    def of_mean(cls, interval: Interval, *, bias_method: str = "a mean over clips has none") -> Self:
        """The estimate of a mean over clips, or of a ratio of such means."""
        return cls(
            low=interval.low,
            high=interval.high,
            level=interval.level,
            bias=0.0,
            count=interval.count,
            method=interval.method,
            bias_method=bias_method,
            seed=interval.seed,
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The estimate of a dictionary made by `dataclasses.asdict`. ValueError naming unknown or missing fields."""
        names = {f.name for f in fields(cls)}
        if set(data) != names:
            raise ValueError(f"an estimate needs exactly {sorted(names)}, got {sorted(data)}")
        return cls(**{**data, "replicates": tuple(data["replicates"])})
