"""AlphaFlow: from trajectory flow matching to MeanFlow along one number (arXiv 2510.20771)."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from meanflow.derivative import Correction
from meanflow.objectives.base import Needs, Residual, StudentCalls
from meanflow.path import jump
from meanflow.shapes import Latent, PerSample, Time, on_moving_rows


@dataclass(frozen=True, kw_only=True)
class AlphaFlow:
    """u_target = sg[alpha v + (1 - alpha) u(x_s, r, s)],  s = t - alpha (t - r),  x_s = x_t - (t - s) v.

    alpha = 1 is trajectory flow matching (u_target = v for every r), alpha = 1/2 has the form of a shortcut model. As
    alpha -> 0, delta / alpha tends to the residual of MeanFlow, and at alpha = 0 the derivative itself is used:
    u_target = sg[v - (t - r) du/dt]. In between no derivative is taken; delta shrinks like alpha, and rows with r < t
    carry the weight alpha. Rows with r = t are flow matching throughout.

    alpha falls along a sigmoid while `progress` goes from `start` to `end`,

        alpha = 1 / (1 + exp(gamma (z - 1/2))),   z = (progress - start) / (end - start),

    and is exactly 1 or 0 where it is within `snap` of them. Two traps:

    * some ports invert the number (0 = flow matching, 1 = MeanFlow); here 1 is flow matching;
    * `end` must lie well inside the run: with a schedule longer than the training, a model ends as trajectory flow
      matching, whose jumps fall on conditional means. `end` is a fraction of training, at most 1, so this cannot happen
      here unless a run is stopped early; in a run that is made longer the schedule stretches with `progress`.

    With the defaults alpha is 1 up to progress 0.288 and 0 from 0.712.
    """

    correction: Correction = dataclasses.field(default_factory=Correction)
    """Used where alpha = 0."""
    start: float = 0.0
    """Fraction of training at which the schedule begins."""
    end: float = 1.0
    """Fraction of training at which the schedule ends."""
    gamma: float = 25.0
    """Steepness of the sigmoid over [start, end]."""
    snap: float = 5e-3
    """Distance from 0 and 1 within which alpha is rounded to them."""
    clamp: float = 4.0
    """Bound on each value of u_target while 0 < alpha < 1 and r < t, in units of the latent; 0 = no bound."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.start < self.end <= 1.0:
            raise ValueError(f"start and end must satisfy 0 <= start < end <= 1, got {self.start} and {self.end}")
        if not 0.0 < self.snap < 0.5:
            raise ValueError(f"snap must lie in (0, 0.5), got {self.snap}")
        least = 2 * math.log(1 / self.snap - 1)
        if not self.gamma >= least:
            raise ValueError(
                f"gamma must be at least {least:.1f} to reach alpha = 0 with snap {self.snap}, got {self.gamma}"
            )
        if not self.clamp >= 0.0:
            raise ValueError(f"clamp must be at least 0 (0 = off), got {self.clamp}")

    @property
    def needs(self) -> Needs:
        """The derivative of the correction, which is taken once alpha = 0."""
        return Needs(derivative=self.correction.derivative.kind)

    def alpha(self, progress: float) -> float:
        """alpha at a fraction of training; 1 = flow matching, 0 = MeanFlow."""
        z = min(1.0, max(0.0, (progress - self.start) / (self.end - self.start)))
        alpha = 1 / (1 + math.exp(self.gamma * (z - 0.5)))
        if alpha <= self.snap:
            return 0.0
        return 1.0 if alpha >= 1 - self.snap else alpha

    def __call__(
        self, calls: StudentCalls, x_t: Latent, r: Time, t: Time, v: Latent, *, progress: float = 1.0
    ) -> Residual:
        v, alpha = v.detach(), self.alpha(progress)
        weight = None
        if alpha == 0.0:
            correction = self.correction(calls.plain, x_t, r, t, v, progress=progress)
        elif alpha == 1.0:
            correction = torch.zeros_like(v)
        else:
            correction = v - self.discrete_target(calls, x_t, r, t, v, alpha)
            weight = _alpha_where_moving(alpha, r, t)
        u = calls.train(None)(x_t, r, t).u
        return Residual(u - (v - correction), u.detach(), correction, weight)

    @torch.no_grad()
    def discrete_target(self, calls: StudentCalls, x_t: Latent, r: Time, t: Time, v: Latent, alpha: float) -> Latent:
        """u_target (B, N, C) for 0 < alpha < 1; v on rows with r = t."""

        def moving(rows: Tensor, x_t: Tensor, r: Tensor, t: Tensor) -> Tensor:
            s = torch.maximum(r, t - alpha * (t - r))  # rounding must not carry s below r
            target = alpha * v[rows] + (1 - alpha) * calls.plain(rows)(jump(x_t, v[rows], s, t), r, s).u
            return target.clamp(-self.clamp, self.clamp) if self.clamp else target

        return on_moving_rows(moving, x_t, r, t, otherwise=v)


def _alpha_where_moving(alpha: float, r: Time, t: Time) -> PerSample:
    return torch.where(r < t, alpha, torch.ones_like(t))
