"""Pairs of times (r, t) with 0 <= r <= t <= 1, in this package's clock (t = 1 noise).

Every sampler is a pure function `at` of standard draws (normal or uniform numbers, positions in the batch) and a call
that makes those draws. `PUBLISHED` holds the samplers of published systems.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from meanflow.density import Density, LogitNormal, Shifted, Uniform, other_clock
from meanflow.shapes import Time

__all__ = [
    "PUBLISHED", "Capped", "Density", "Gap", "LogitNormal", "MixedTimes", "Ordered", "Pairs", "Shifted", "TimePairs",
    "Times", "Uniform", "other_clock", "placed",
]  # fmt: skip

Edges: TypeAlias = tuple[int | float, int | float, int | float]
"""Where, among the positions in a batch, three groups of its rows end (see `placed`)."""


@dataclass(frozen=True, kw_only=True)
class Ordered:
    """r = min(a, b), t = max(a, b) with a ~ first and b ~ second (arXiv 2505.13447, section 4.3)."""

    first: Density = field(default_factory=LogitNormal)
    second: Density | None = None
    """Density of the other time; none = the same."""

    def draw(self, n: int, *, generator: torch.Generator) -> tuple[Time, Time]:
        """Standard draws for both times."""
        first, second = self.first, self.second or self.first
        return first.draw(n, generator=generator), second.draw(n, generator=generator)

    def at(self, a: Time, b: Time) -> tuple[Time, Time]:
        """(r, t) of standard draws."""
        a, b = self.first.at(a), (self.second or self.first).at(b)
        return torch.minimum(a, b), torch.maximum(a, b)


@dataclass(frozen=True, kw_only=True)
class Capped:
    """t ~ late, r = min(t, q) with q ~ early: a draw of r above t becomes r = t (MeanFlow's second CIFAR sampler)."""

    late: Density = field(default_factory=lambda: LogitNormal(mean=-0.6, scale=1.6))
    early: Density = field(default_factory=lambda: LogitNormal(mean=-4.0, scale=1.6))

    def draw(self, n: int, *, generator: torch.Generator) -> tuple[Time, Time]:
        """Standard draws for both times."""
        return self.late.draw(n, generator=generator), self.early.draw(n, generator=generator)

    def at(self, a: Time, b: Time) -> tuple[Time, Time]:
        """(r, t) of standard draws."""
        t = self.late.at(a)
        return torch.minimum(t, self.early.at(b)), t


@dataclass(frozen=True, kw_only=True)
class Gap:
    """t - r ~ gap, then r ~ early truncated to [0, 1 - gap] (terminal velocity matching)."""

    gap: LogitNormal = field(default_factory=lambda: LogitNormal(mean=-0.8))
    early: LogitNormal = field(default_factory=LogitNormal)

    def draw(self, n: int, *, generator: torch.Generator) -> tuple[Time, Time]:
        """Standard draws, N(0, 1) for the gap and U(0, 1) for r."""
        return self.gap.draw(n, generator=generator), torch.rand(n, generator=generator, device=generator.device)

    def at(self, a: Time, b: Time) -> tuple[Time, Time]:
        """(r, t) of standard draws."""
        gap = self.gap.at(a)
        r = self.early.below(1 - gap, b)
        return r, (r + gap).clamp(max=1.0)


Pairs: TypeAlias = Ordered | Capped | Gap


def placed(r: Time, t: Time, position: Tensor, edges: Edges, fm_t: Time | None = None) -> tuple[Time, Time]:
    """Pairs with some rows set aside by their position (B,), an exact rank or a uniform number.

    position < edges[0]: r = t (= fm_t where given); else < edges[1]: r = 0; else < edges[2]: (r, t) = (0, 1); the other
    rows keep their pair.
    """
    fm = position < edges[0]
    from_data = ~fm & (position < edges[2])
    corner = from_data & (position >= edges[1])
    t = torch.where(fm, t if fm_t is None else fm_t, t)
    r = torch.where(from_data, torch.zeros_like(r), torch.where(fm, t, r))
    return r, torch.where(corner, torch.ones_like(t), t)


def _check_fractions(config: object, *names: str) -> None:
    for name in names:
        if not 0.0 <= getattr(config, name) <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], got {getattr(config, name)}")


@dataclass(frozen=True, kw_only=True)
class TimePairs:
    """Pairs (r, t): both times from `density`, ordered; some rows get r = t, some r = 0 and t = 1.

    fm_fraction is P(r = t), the rows of plain flow matching (arXiv 2505.13447, table 1a). full_fraction is the fraction
    of the other rows that get (r, t) = (0, 1), the only pair that one-step sampling uses. Rows are assigned at
    random, independently of everything else in the batch; the counts are exact up to rounding.
    """

    density: Density = field(default_factory=LogitNormal)
    fm_fraction: float = 0.75
    """P(r = t), the fraction of rows of plain flow matching."""
    full_fraction: float = 0.0
    """Fraction of the other rows that get (r, t) = (0, 1)."""
    fixed_order: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_fractions(self, "fm_fraction", "full_fraction")

    def __call__(self, n: int, *, generator: torch.Generator, progress: float = 1.0) -> tuple[Time, Time]:
        pairs = Ordered(first=self.density)
        r, t = pairs.at(*pairs.draw(n, generator=generator))
        order = torch.randperm(n, generator=generator, device=generator.device)
        num_fm = round(self.fm_fraction * n)
        num_full = round(self.full_fraction * (n - num_fm))
        return placed(r, t, order, (num_fm, num_fm, num_fm + num_full))


@dataclass(frozen=True, kw_only=True)
class MixedTimes:
    """Pairs (r, t) of any density, with fractions of the whole batch set aside: r = t, r = 0, and (r, t) = (0, 1).

    `progress` in [0, 1] moves the fraction of r = t linearly from `fm_fraction` to `fm_fraction_end`.
    """

    pairs: Pairs = field(default_factory=Ordered)
    fm_fraction: float = 0.5
    """Fraction of rows with r = t, which is plain flow matching."""
    fm_fraction_end: float | None = None
    """fm_fraction at the end of training; none = it stays the same."""
    fm_density: Density | None = None
    """Density of t on rows with r = t; none = the t of their pair, a maximum of two for ordered pairs."""
    zero_fraction: float = 0.0
    """Fraction of rows with r = 0: straight to the data, as in consistency models."""
    corner_fraction: float = 0.0
    """Fraction of rows with r = 0 and t = 1, the only pair that one-step sampling uses."""
    max_gap: float = 1.0
    """Largest t - r: r is raised to t - max_gap (restricted MeanFlow, arXiv 2602.05449); 1 = no bound."""
    assign: Literal["random", "prefix", "independent"] = "random"
    """Which rows make up these fractions. random: exact counts, rounded down, of random rows. prefix: the same counts
    of the first rows of the batch. independent: every row is drawn by itself, so that counts are random. The published
    MeanFlow code drops the conditions of the first rows too, so that with prefix only rows with r = t lose them."""

    def __post_init__(self) -> None:
        _check_fractions(self, "fm_fraction", "zero_fraction", "corner_fraction")
        if self.fm_fraction_end is not None:
            _check_fractions(self, "fm_fraction_end")
        fm = max(self.fm_fraction, self.fm_fraction_end or 0.0)
        if fm + self.zero_fraction + self.corner_fraction > 1.0 + 1e-9:
            raise ValueError(
                f"fm_fraction, zero_fraction and corner_fraction must add up to at most 1, got {fm}, "
                f"{self.zero_fraction} and {self.corner_fraction}"
            )
        if self.assign not in ("random", "prefix", "independent"):
            raise ValueError(f"assign must be one of random, prefix, independent, got {self.assign!r}")
        if not 0.0 < self.max_gap <= 1.0:
            raise ValueError(f"max_gap must lie in (0, 1] (1 = no bound), got {self.max_gap}")
        if self.max_gap < 1.0 and self.zero_fraction + self.corner_fraction > 0.0:
            raise ValueError(f"max_gap must be 1 where zero_fraction or corner_fraction is used, got {self.max_gap}")

    def __call__(self, n: int, *, generator: torch.Generator, progress: float = 1.0) -> tuple[Time, Time]:
        a, b = self.pairs.draw(n, generator=generator)
        device = generator.device
        if self.assign == "independent":
            position = torch.rand(n, generator=generator, device=device)
        elif self.assign == "random":
            position = torch.randperm(n, generator=generator, device=device)
        else:
            position = torch.arange(n, device=device)
        fm = None if self.fm_density is None else self.fm_density.draw(n, generator=generator)
        return self.at(a, b, position, fm, progress=progress)

    def at(
        self, a: Time, b: Time, position: Tensor, fm: Time | None = None, *, progress: float = 1.0
    ) -> tuple[Time, Time]:
        """(r, t) of standard draws a, b and fm and of each row's position (B,): its rank, or a uniform number where
        assign is "independent"."""
        r, t = self.pairs.at(a, b)
        if self.max_gap < 1.0:
            r = torch.maximum(r, t - self.max_gap)
        fm_t = None if self.fm_density is None or fm is None else self.fm_density.at(fm)
        return placed(r, t, position, self.edges(len(a), progress), fm_t)

    @property
    def fixed_order(self) -> bool:
        """Whether rows are assigned by their position, so that they must stay in the order in which they were drawn."""
        return self.assign == "prefix"

    def edges(self, n: int, progress: float = 1.0) -> Edges:
        """The positions at which the rows with r = t, r = 0 and (0, 1) end: counts, or fractions of the batch."""
        end = self.fm_fraction if self.fm_fraction_end is None else self.fm_fraction_end
        fm = self.fm_fraction + progress * (end - self.fm_fraction)
        zero, corner = self.zero_fraction, self.corner_fraction
        if self.assign != "independent":
            fm, zero, corner = (math.floor(fraction * n) for fraction in (fm, zero, corner))
        return fm, fm + zero, fm + zero + corner


Times: TypeAlias = TimePairs | MixedTimes
"""Every sampler of (r, t): times(n, generator=..., progress=...) -> (r, t), each (n,), r <= t."""

_MEANFLOW = LogitNormal(mean=-0.4)

PUBLISHED: dict[str, MixedTimes] = {
    # arXiv 2505.13447, table 4 and Gsunshine/meanflow: data_proportion = 0.75 is P(r = t), the front of the batch.
    "meanflow_imagenet": MixedTimes(pairs=Ordered(first=_MEANFLOW), fm_fraction=0.75, assign="prefix"),
    # The same paper's CIFAR-10, Gsunshine/py-meanflow: ratio = 0.75 is P(r != t), row by row; v0 is the paper's.
    "meanflow_cifar_v0": MixedTimes(
        pairs=Ordered(first=LogitNormal(mean=-2.0, scale=2.0)), fm_fraction=0.25, assign="independent"
    ),
    "meanflow_cifar_v1": MixedTimes(pairs=Capped(), fm_fraction=0.25, assign="independent"),
    # Improved MeanFlow, Lyy-iiis/imeanflow; alpha-Flow (arXiv 2510.20771, from a port) and dots.tts draw the same.
    "improved_meanflow": MixedTimes(pairs=Ordered(first=_MEANFLOW), fm_fraction=0.5),
    # kyungmnlee/dmf: every sample enters a flow-matching and a MeanFlow loss, each with times and noise of its own and
    # weight 1/2, so one of its batches is a batch of twice the rows here.
    "decoupled_meanflow": MixedTimes(
        pairs=Ordered(first=LogitNormal(mean=0.4), second=LogitNormal(mean=-1.2)),
        fm_fraction=0.5, fm_density=LogitNormal(mean=0.0),
    ),
    # WZDTHU/TiM: half r = t, a tenth r = 0; its counts are rounded to the nearest.
    "transition": MixedTimes(pairs=Ordered(first=_MEANFLOW), fm_fraction=0.5, zero_fraction=0.1, assign="prefix"),
    # lumalabs/tvm; its flow-matching term has a time of its own and belongs to the objective.
    "terminal_velocity": MixedTimes(pairs=Gap(), fm_fraction=0.0),
    # arXiv 2605.13724, NVlabs/AnyFlow: the fractions are counted over all processes together.
    "anyflow": MixedTimes(
        pairs=Ordered(first=Shifted(shift=5.0)), fm_fraction=0.5, zero_fraction=0.25, assign="prefix"
    ),
    # xiquan-li/MeanAudio: flow_ratio = 0.75 is P(r = t), by a random permutation.
    "meanaudio": MixedTimes(pairs=Ordered(first=_MEANFLOW), fm_fraction=0.75),
    # VoxCPM: P(r != t) from 0.25 to 0.75 over training; a row with r = t keeps its first draw, not the maximum.
    "voxcpm": MixedTimes(
        pairs=Ordered(first=_MEANFLOW), fm_fraction=0.75, fm_fraction_end=0.25, fm_density=_MEANFLOW,
        assign="independent",
    ),
}  # fmt: skip
"""Samplers of published systems, in this package's clock. In a batch in random order "prefix" and "random" are the same
unless something else depends on the position in the batch."""
