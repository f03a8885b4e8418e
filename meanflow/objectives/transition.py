"""Transition models on the linear path: MeanFlow's identity by central differences (arXiv 2509.04394)."""

import dataclasses
from dataclasses import dataclass

import torch

from meanflow.derivative import CentralDifference, Correction
from meanflow.objectives.base import Needs, Residual, StudentCalls
from meanflow.shapes import Latent, PerSample, Time


def _difference() -> Correction:
    return Correction(derivative=CentralDifference(eps=5e-3))


@dataclass(frozen=True, kw_only=True)
class TransitionModel:
    """u_target = sg[v - (t - r) du/dt],  du/dt ~ [u(x_{t+eps}, r, t+eps) - u(x_{t-eps}, r, t-eps)] / (2 eps).

    x_{t+-eps} keeps the same x and e, which on the linear path is x_t +- eps v with v = e - x. Each row weighs

        1 / sqrt(tan t - tan r + sigma_d)   where r < t,      1 where r = t.

    Two ordinary forwards without a graph take the place of forward mode, so any attention kernel serves; they need
    float32 and a time embedding without fast frequencies (see `CentralDifference`). Only the linear path is here; the
    other transports of the paper are not.
    """

    correction: Correction = dataclasses.field(default_factory=_difference)
    sigma_d: float = 1.0
    """Offset of the weight; at 1 the weight is continuous in r -> t."""

    def __post_init__(self) -> None:
        if not self.sigma_d > 0.0:
            raise ValueError(f"sigma_d must be positive, got {self.sigma_d}")

    @property
    def needs(self) -> Needs:
        """The derivative of the correction."""
        return Needs(derivative=self.correction.derivative.kind)

    def __call__(
        self, calls: StudentCalls, x_t: Latent, r: Time, t: Time, v: Latent, *, progress: float = 1.0
    ) -> Residual:
        v = v.detach()
        correction = self.correction(calls.plain, x_t, r, t, v, progress=progress)
        u = calls.train(None)(x_t, r, t).u
        return Residual(u - (v - correction), u.detach(), correction, self.weight(r, t))

    def weight(self, r: Time, t: Time) -> PerSample:
        """Weight of each row (B,)."""
        return torch.where(r < t, (t.tan() - r.tan() + self.sigma_d).rsqrt(), torch.ones_like(t))
