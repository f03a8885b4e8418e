"""MeanFlow: regress the average velocity on its own identity (arXiv 2505.13447, eqs. 9-11)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from meanflow.derivative import ForwardAD, TotalDerivative
from meanflow.shapes import AverageVelocity, Latent, Time, expand_right

RowsOf = Callable[[Tensor], AverageVelocity]
"""Given the indices (M,) of some rows, the average velocity on the conditions of just those rows."""


class Residual(NamedTuple):
    """Error field delta = u - u_target, with the parts worth logging; only `delta` carries a graph."""

    delta: Latent
    u: Latent
    dudt: Latent


@dataclass(frozen=True, kw_only=True)
class MeanFlow:
    """u_target = sg[v - (t - r) du/dt],  delta = u(x_t, r, t) - u_target.

    `v` is the velocity to be averaged (e - x, a guided mixture, or a teacher's); `tangent`, the direction of the
    derivative, defaults to it. The derivative runs without a graph, on the plain module, and only on rows with r < t;
    then one ordinary forward goes through `u_fn`, so data-parallel wrappers see a normal call and rows with r = t pay
    nothing extra. clip_dudt bounds the root mean square of (t - r) du/dt per sample (0 = no bound): early spikes of the
    derivative otherwise dominate a fine-tuning run.
    """

    derivative: TotalDerivative = field(default_factory=ForwardAD)
    clip_dudt: float = 0.0

    def __post_init__(self) -> None:
        if not self.clip_dudt >= 0.0:
            raise ValueError(f"clip_dudt must be at least 0 (0 = off), got {self.clip_dudt}")

    def __call__(
        self,
        u_fn: AverageVelocity,
        rows_of: RowsOf,
        x_t: Latent,
        r: Time,
        t: Time,
        v: Latent,
        tangent: Latent | None = None,
    ) -> Residual:
        correction = self.correction(rows_of, x_t, r, t, v if tangent is None else tangent)
        u = u_fn(x_t, r, t)
        u_target = (v - correction).detach()
        return Residual(u - u_target, u.detach(), correction)

    def correction(self, rows_of: RowsOf, x_t: Latent, r: Time, t: Time, tangent: Latent) -> Latent:
        """(t - r) du/dt, (B, N, C) without a graph; zero on rows with r = t."""
        moving = torch.nonzero(r < t).squeeze(1)
        correction = torch.zeros_like(x_t)
        if len(moving) == 0:
            return correction
        dudt = self.derivative(rows_of(moving), x_t[moving], r[moving], t[moving], tangent[moving])
        step = expand_right((t - r)[moving], dudt) * dudt
        if self.clip_dudt:
            rms = step.flatten(1).pow(2).mean(1).sqrt()
            step = step * expand_right((self.clip_dudt / rms.clamp(min=1e-12)).clamp(max=1.0), step)
        return correction.index_copy(0, moving, step.to(correction.dtype))
