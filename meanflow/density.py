"""Densities over a single time t in [0, 1], in this package's clock (t = 1 noise).

Each is a pure function `at` of standard draws, normal or uniform numbers, and a call that makes those draws.
"""

from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from meanflow.shapes import Time


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """t ~ U(low, high)."""

    low: float = 0.0
    """Least time."""
    high: float = 1.0
    """Greatest time."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.low < self.high <= 1.0:
            raise ValueError(f"Uniform needs 0 <= low < high <= 1, got low={self.low}, high={self.high}")

    def draw(self, n: int, *, generator: torch.Generator) -> Time:
        """n standard draws, here of U(0, 1)."""
        return torch.rand(n, generator=generator, device=generator.device)

    def at(self, draw: Time) -> Time:
        """The times of standard draws."""
        return self.low + (self.high - self.low) * draw

    def __call__(self, n: int, *, generator: torch.Generator) -> Time:
        return self.at(self.draw(n, generator=generator))


@dataclass(frozen=True, kw_only=True)
class LogitNormal:
    """t = sigmoid(mean + scale z), z ~ N(0, 1) (arXiv 2403.03206, eq. 19).

    In this package's clock (t = 1 noise). A mean of -0.4 puts mass near the data; MMAudio's own clock is 1 - t, in
    which the same density has mean +0.4 (`other_clock`).
    """

    mean: float = -0.4
    """Mean of the logit of t, in the clock with t = 1 noise."""
    scale: float = 1.0
    """Standard deviation of the logit of t."""

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"LogitNormal needs scale > 0, got {self.scale}")

    def draw(self, n: int, *, generator: torch.Generator) -> Time:
        """n standard draws, here of N(0, 1)."""
        return torch.randn(n, generator=generator, device=generator.device)

    def at(self, draw: Time) -> Time:
        """The times of standard draws."""
        return torch.sigmoid(self.mean + self.scale * draw)

    def below(self, bound: Time, uniform: Time) -> Time:
        """The time, truncated to [0, bound], of draws of U(0, 1): sigmoid(mean + scale Phi^-1(u Phi(z(bound)))).

        In float64 inside: Phi of a bound near 0 is small.
        """
        z = (torch.logit(bound.double()) - self.mean) / self.scale
        below = torch.special.ndtri(uniform.double() * torch.special.ndtr(z))
        return torch.minimum(torch.sigmoid(self.mean + self.scale * below).to(bound.dtype), bound)

    def __call__(self, n: int, *, generator: torch.Generator) -> Time:
        return self.at(self.draw(n, generator=generator))


@dataclass(frozen=True, kw_only=True)
class Shifted:
    """t = shift q / (1 + (shift - 1) q) with q ~ density: more noise for shift > 1 (arXiv 2403.03206, eq. 23)."""

    density: Uniform | LogitNormal = field(default_factory=Uniform)
    shift: float = 5.0
    """Factor of the shift towards the noise; 1 = off."""

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"Shifted needs shift > 0 (1 = off), got {self.shift}")

    def draw(self, n: int, *, generator: torch.Generator) -> Time:
        """n standard draws of the density inside."""
        return self.density.draw(n, generator=generator)

    def at(self, draw: Time) -> Time:
        """The times of standard draws."""
        q = self.density.at(draw)
        return self.shift * q / (1 + (self.shift - 1) * q)

    def __call__(self, n: int, *, generator: torch.Generator) -> Time:
        return self.at(self.draw(n, generator=generator))


Density: TypeAlias = Uniform | LogitNormal | Shifted


def other_clock(density: Density) -> Density:
    """The density of 1 - t where t has this one: mean -> -mean, (low, high) -> (1 - high, 1 - low), shift -> 1 / shift.

    For numbers published in a clock that has noise at t = 0, such as MMAudio's.
    """
    match density:
        case Uniform(low=low, high=high):
            return Uniform(low=1 - high, high=1 - low)
        case LogitNormal(mean=mean, scale=scale):
            return LogitNormal(mean=-mean, scale=scale)
        case Shifted(density=Uniform(low=low, high=high), shift=shift):
            return Shifted(density=Uniform(low=1 - high, high=1 - low), shift=1 / shift)
        case Shifted(density=LogitNormal(mean=mean, scale=scale), shift=shift):
            return Shifted(density=LogitNormal(mean=-mean, scale=scale), shift=1 / shift)
    raise TypeError(f"no rule for the other clock of {density}")
