"""Adaptive integration of a velocity from noise (t = 1) to data (t = 0) by Dormand and Prince's pair of orders 5 and 4.

J. R. Dormand, P. J. Prince, "A family of embedded Runge-Kutta formulae", J. Comput. Appl. Math. 6 (1980); step control
and first step after E. Hairer, S. Norsett, G. Wanner, "Solving ordinary differential equations I", section II.4.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from meanflow.shapes import Latent, PerSample, Velocity, expand_right

NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
"""Coefficients of the stages. The last row gives the fifth-order solution, whose slope starts the next step."""
ERROR = (-71 / 57600, 0.0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)
"""Weights of the stages in the fourth-order solution minus those in the fifth-order one."""
SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0


class Integrated(NamedTuple):
    """End state (B, N, C), evaluations of the velocity (each on the whole batch), steps taken per row (B,)."""

    x: Latent
    evaluations: int
    steps: PerSample


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """Integrates dx/dt = v(x, t) from t = 1 to 0 so that each step's error is below atol + rtol |x| (root mean square).

    Every row has its own time and step, so a sound does not depend on the others of its batch; rows at t = 0 stay as
    they are. The state is held in float32 or wider. Raises ArithmeticError when the velocity is not finite or
    `max_evaluations` do not suffice.
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    max_evaluations: int = 2000

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.max_evaluations < 8:
            raise ValueError(f"max_evaluations must be at least 8, got {self.max_evaluations}")

    @torch.no_grad()
    def __call__(self, v_fn: Velocity, e: Latent) -> Integrated:
        x = e if e.dtype == torch.float64 else e.float()
        t = torch.ones(len(x), dtype=torch.float64, device=x.device)
        slope = v_fn(x, t.to(x.dtype)).to(x.dtype)
        h, evaluations = self._first_step(v_fn, x, t, slope), 2
        steps = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        rejected = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        while bool((t > 0).any()):
            if evaluations + 6 > self.max_evaluations:
                raise ArithmeticError(
                    f"no end after {evaluations} evaluations (smallest step {float(h[t > 0].min()):.1e} at rtol "
                    f"{self.rtol:g}, atol {self.atol:g}); raise the tolerances or max_evaluations"
                )
            h = torch.minimum(h, t)
            slopes = [slope]
            for node, row in zip(NODES[1:], STAGES[1:], strict=True):
                moved = x - expand_right(h, x).to(x.dtype) * _combine(row, slopes)
                slopes.append(v_fn(moved, (t - node * h).to(x.dtype)).to(x.dtype))
            evaluations += 6
            difference = expand_right(h, x).to(x.dtype) * _combine(ERROR, slopes)
            error = _rms(difference / (self.atol + self.rtol * torch.maximum(x.abs(), moved.abs())))
            going = t > 0
            if not bool(torch.isfinite(error[going]).all()):
                raise ArithmeticError(f"the velocity is not finite near t = {float(t[going].max()):.4f}")
            accepted = going & (error < 1)
            keep = expand_right(accepted, x)
            x, slope = torch.where(keep, moved, x), torch.where(keep, slopes[-1], slope)
            t = torch.where(accepted, t - h, t)
            t = torch.where(t < 1e-14, 0.0, t)
            factor = (SAFETY * error.clamp_min(1e-30) ** -0.2).clamp(SHRINK, GROW)
            factor = torch.where(rejected | ~accepted, factor.clamp_max(1.0), factor)
            h = torch.where(going, h * factor, h)
            rejected = going & ~accepted
            steps = steps + accepted
        return Integrated(x.to(e.dtype), evaluations, steps)

    def _first_step(self, v_fn: Velocity, x: Latent, t: Tensor, slope: Latent) -> Tensor:
        """Hairer's guess from the size of the state, its slope and the slope's change over a small Euler step."""
        scale = self.atol + self.rtol * x.abs()
        size, speed = _rms(x / scale), _rms(slope / scale)
        small = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed).clamp_max(1.0)
        ahead = v_fn(x - expand_right(small, x).to(x.dtype) * slope, (t - small).to(x.dtype)).to(x.dtype)
        bend = _rms((ahead - slope) / scale) / small
        steepest = torch.maximum(speed, bend)
        guess = torch.where(steepest <= 1e-15, (1e-3 * small).clamp_min(1e-6), (0.01 / steepest) ** 0.2)
        return torch.minimum(torch.minimum(100 * small, guess), torch.ones_like(guess))


def _combine(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    terms = [w * k for w, k in zip(weights, slopes, strict=True) if w]
    return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]


def _rms(x: Tensor) -> Tensor:
    """Root mean square over all but the first axis, float64, (B,)."""
    return x.flatten(1).double().pow(2).mean(1).sqrt()
