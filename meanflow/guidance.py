"""Classifier-free guidance: mixing velocities for training, combining predictions for sampling.

omega is the guidance scale with **1 = off** everywhere.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from meanflow.shapes import Latent, PerSample, Time, expand_right


@dataclass(frozen=True, kw_only=True)
class MixedGuidance:
    """Guided velocity of MeanFlow training (arXiv 2505.13447, eq. 19 and appendix).

    v_g = omega v + kappa v_cond + (1 - omega - kappa) v_uncond where t lies in `interval`, else v.
    The effective scale is omega / (1 - kappa).
    """

    omega: float = 1.0
    kappa: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not 0.0 <= self.kappa < 1.0:
            raise ValueError(f"kappa must lie in [0, 1), got {self.kappa}")
        _check_interval(self.interval)

    def __call__(self, v: Latent, v_cond: Latent, v_uncond: Latent, t: Time) -> Latent:
        mixed = self.omega * v + self.kappa * v_cond + (1 - self.omega - self.kappa) * v_uncond
        return torch.where(expand_right(_inside(t, self.interval), v), mixed, v)


class Guided(NamedTuple):
    """Combined prediction and the scalar that rescaled the unconditional one, s* (B,)."""

    value: Latent
    s_star: PerSample


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Classifier-free guidance with the scalar rescaling that keeps one step from distorting.

    s* = <p_c, p_u> / ||p_u||^2 per sample over all other dimensions: the least-squares projection of the conditional
    prediction on the unconditional one (CFG-Zero*, arXiv 2503.18886, eq. 10; used for one-step generation by MF-MJT,
    arXiv 2509.06389). Then

        p = s* p_u + omega (p_c - s* p_u)

    With rescale=False, s* = 1: plain guidance. s* is computed in float32 (float64 for float64 inputs) and clamped to
    `clamp`, since it is ill-conditioned where the unconditional prediction is small. Outside `interval` the conditional
    prediction alone is returned.
    """

    omega: float = 1.0
    rescale: bool = True
    clamp: tuple[float, float] = (0.0, 2.0)
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not self.omega >= 0.0:
            raise ValueError(f"omega must be at least 0 (1 = no guidance), got {self.omega}")
        if not self.clamp[0] <= self.clamp[1]:
            raise ValueError(f"clamp must be (low, high) with low <= high, got {self.clamp}")
        _check_interval(self.interval)

    @property
    def active(self) -> bool:
        """Whether an unconditional evaluation is needed at all."""
        return self.omega != 1.0

    def __call__(self, p_cond: Latent, p_uncond: Latent, t: Time) -> Guided:
        s_star = self.s_star(p_cond, p_uncond)
        scaled = expand_right(s_star, p_uncond).to(p_uncond.dtype) * p_uncond
        value = scaled + self.omega * (p_cond - scaled)
        return Guided(torch.where(expand_right(_inside(t, self.interval), value), value, p_cond), s_star)

    def s_star(self, p_cond: Latent, p_uncond: Latent) -> PerSample:
        """The clamped rescaling scalar, (B,); all ones when rescale is off."""
        wide = torch.float64 if p_cond.dtype == torch.float64 else torch.float32
        c, u = p_cond.flatten(1).to(wide), p_uncond.flatten(1).to(wide)
        if not self.rescale:
            return torch.ones(len(c), dtype=wide, device=c.device)
        return ((c * u).sum(1) / ((u * u).sum(1) + 1e-8)).clamp(*self.clamp)


def _inside(t: Time, interval: tuple[float, float]) -> torch.Tensor:
    return (t >= interval[0]) & (t <= interval[1])


def _check_interval(interval: tuple[float, float]) -> None:
    if not 0.0 <= interval[0] <= interval[1] <= 1.0:
        raise ValueError(f"interval must satisfy 0 <= start <= end <= 1, got {interval}")
