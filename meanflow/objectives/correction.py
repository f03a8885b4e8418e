"""(t - r) du/dt on the rows that move, with the switches that keep its early spikes from ruling a training run."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from meanflow.derivative import ForwardAD, TotalDerivative
from meanflow.objectives.field import RowsOf
from meanflow.shapes import Latent, Time, expand_right


@dataclass(frozen=True, kw_only=True)
class Correction:
    """c = (t - r) du/dt, without a graph; zero on rows with r = t, which pay nothing.

    In this order, with rms the root mean square over one row: warm-up, c <- min(1, progress / warmup) c (rCM's tangent
    warm-up); normalisation, c <- c / (rms(c) + normalise) (sCM, arXiv 2410.11081, section 4.2); clipping,
    c <- c min(1, clip / rms(c)). Each is off at 0.
    """

    derivative: TotalDerivative = field(default_factory=ForwardAD)
    clip: float = 0.0
    """Largest root mean square of (t - r) du/dt per row; 0 = no bound."""
    normalise: float = 0.0
    """Constant of tangent normalisation (0.1 in sCM); 0 = off."""
    warmup: float = 0.0
    """Share of training over which the correction grows from nothing to its full size."""

    def __post_init__(self) -> None:
        for name in ("clip", "normalise"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"{name} must be at least 0 (0 = off), got {getattr(self, name)}")
        if not 0.0 <= self.warmup <= 1.0:
            raise ValueError(f"warmup must lie in [0, 1], got {self.warmup}")

    def __call__(
        self, plain: RowsOf, x_t: Latent, r: Time, t: Time, tangent: Latent, *, progress: float = 1.0
    ) -> Latent:
        """c (B, N, C), the derivative taken along (tangent, 0, 1) and only on rows with r < t."""
        moving = torch.nonzero(r < t).squeeze(1)
        correction = torch.zeros_like(x_t)
        if len(moving) == 0:
            return correction
        dudt = self.derivative(plain(moving), x_t[moving], r[moving], t[moving], tangent[moving])
        step = self.stabilised(expand_right((t - r)[moving], dudt) * dudt, progress)
        return correction.index_copy(0, moving, step.to(correction.dtype))

    def stabilised(self, step: Tensor, progress: float) -> Tensor:
        """Warm-up, normalisation and clipping of (t - r) du/dt (M, N, C)."""
        if self.warmup:
            step = step * min(1.0, progress / self.warmup)
        if self.normalise:
            step = step / (_rms(step) + self.normalise)
        if self.clip:
            step = step * (self.clip / _rms(step).clamp(min=1e-12)).clamp(max=1.0)
        return step


def _rms(step: Tensor) -> Tensor:
    return expand_right(step.flatten(1).pow(2).mean(1).sqrt(), step)
