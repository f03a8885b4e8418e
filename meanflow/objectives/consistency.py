"""Consistency training and distillation on the linear path (arXiv 2303.01469), in the parameterisation of u."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from meanflow.objectives.base import Needs, Residual, StudentCalls
from meanflow.path import jump
from meanflow.shapes import Latent, Time


@dataclass(frozen=True, kw_only=True)
class ConsistencyTraining:
    """Trains f(x_t, t) = x_t - t u(x_t, 0, t) to equal sg f(x_s, s),  x_s = x_t - (t - s) v,  s = t (1 - l).

    In units of u, delta = u(x_t, 0, t) - (x_t - sg f(x_s, s)) / t. With s in proportion to t the division is exact,

        (x_t - f(x_s, s)) / t = l v + (1 - l) u(x_s, 0, s),

    so small t need no care. f(x_0, 0) = x_0 holds by form. The target uses averaged weights where the trainer has
    them. With `v` from the data this is consistency training, with a teacher's `v` consistency distillation.

    The relative step l = coarse^(1 - progress) fine^progress goes from long steps (small variance, biased) to short
    ones. The solution deviates from the exact u by l^2 t / 2 times the curvature of the path multiplied by df/dx, even
    where v is the marginal velocity. delta is proportional to l and shrinks during training: choose the c of the loss
    for the fine end. r is not read: only u(x_t, 0, t) is learnt, for one jump or for jumps with fresh noise in between.
    """

    needs: ClassVar[Needs] = Needs(averaged=True, learns_boundary=False)

    coarse: float = 0.5
    """(t - s) / t at the start of training."""
    fine: float = 1 / 128
    """(t - s) / t at the end of training."""

    def __post_init__(self) -> None:
        if not 0.0 < self.fine <= self.coarse <= 1.0:
            raise ValueError(f"fine and coarse must satisfy 0 < fine <= coarse <= 1, got {self.fine} and {self.coarse}")

    def relative_step(self, progress: float) -> float:
        """l = (t - s) / t at a fraction of training."""
        return float(self.coarse ** (1 - progress) * self.fine**progress)

    def __call__(
        self, calls: StudentCalls, x_t: Latent, r: Time, t: Time, v: Latent, *, progress: float = 1.0
    ) -> Residual:
        v = v.detach()
        zero, step = torch.zeros_like(t), self.relative_step(progress)
        s = t * (1 - step)
        with torch.no_grad():
            averaged = (calls.averaged or calls.plain)(None)
            target = step * v + (1 - step) * averaged(jump(x_t, v, s, t), zero, s).u
        u = calls.train(None)(x_t, zero, t).u
        return Residual(u - target, u.detach(), v - target)
