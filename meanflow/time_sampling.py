"""Densities over a single time t and over pairs (r, t) with 0 <= r <= t <= 1."""

from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from meanflow.shapes import Time


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """t ~ U(low, high)."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.low < self.high <= 1.0:
            raise ValueError(f"Uniform needs 0 <= low < high <= 1, got low={self.low}, high={self.high}")

    def __call__(self, n: int, *, generator: torch.Generator) -> Time:
        return self.low + (self.high - self.low) * torch.rand(n, generator=generator, device=generator.device)


@dataclass(frozen=True, kw_only=True)
class LogitNormal:
    """t = sigmoid(mean + scale z), z ~ N(0, 1) (arXiv 2403.03206, eq. 19).

    In this package's clock (t = 1 noise). A mean of -0.4 puts mass near the data; MMAudio's own clock is 1 - t, in
    which the same density has mean +0.4.
    """

    mean: float = -0.4
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"LogitNormal needs scale > 0, got {self.scale}")

    def __call__(self, n: int, *, generator: torch.Generator) -> Time:
        z = torch.randn(n, generator=generator, device=generator.device)
        return torch.sigmoid(self.mean + self.scale * z)


Density: TypeAlias = Uniform | LogitNormal


@dataclass(frozen=True, kw_only=True)
class TimePairs:
    """Pairs (r, t): both times from `density`, ordered; a share of rows with r = t; a share with r = 0, t = 1.

    fm_fraction is P(r = t), the rows of plain flow matching (arXiv 2505.13447, table 1a). full_fraction is the share of
    the remaining rows placed on the corner (r, t) = (0, 1), all that one-step sampling uses. Rows are assigned at
    random, independently of everything else in the batch; the counts are exact up to rounding.
    """

    density: Density = field(default_factory=LogitNormal)
    fm_fraction: float = 0.75
    full_fraction: float = 0.0

    def __post_init__(self) -> None:
        for name in ("fm_fraction", "full_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")

    def __call__(self, n: int, *, generator: torch.Generator) -> tuple[Time, Time]:
        a, b = self.density(n, generator=generator), self.density(n, generator=generator)
        t, r = torch.maximum(a, b), torch.minimum(a, b)
        order = torch.randperm(n, generator=generator, device=generator.device)
        num_fm = round(self.fm_fraction * n)
        num_full = round(self.full_fraction * (n - num_fm))
        fm = order < num_fm
        full = (order >= num_fm) & (order < num_fm + num_full)
        r = torch.where(fm, t, r)
        return torch.where(full, torch.zeros_like(r), r), torch.where(full, torch.ones_like(t), t)
