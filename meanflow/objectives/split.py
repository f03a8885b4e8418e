"""SplitMeanFlow: an average over [r, t] is the average of its two parts (arXiv 2507.16884)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from meanflow.objectives.base import Needs, Residual, StudentCalls
from meanflow.path import jump
from meanflow.shapes import Latent, PerSample, Time, expand_right, on_moving_rows


@dataclass(frozen=True, kw_only=True)
class SplitMeanFlow:
    """u_target = sg[(1 - l) u(x_s, r, s) + l u(x_t, s, t)],  s = t - l (t - r),  x_s = x_t - (t - s) u(x_t, s, t).

    It takes no derivative but two forwards without a graph on rows with r < t, so it runs in any precision and with any
    attention. `v` enters on rows with r = t alone, delta = u(x_t, t, t) - v. Those rows are the boundary
    from which everything else follows: without them (fm_fraction = 0) u = 0 solves the objective, so fm_fraction must
    be well above zero. An error of the short averages enters the long ones undamped.

    The fraction l of each row is one of `shares`, chosen by the digits of its first value, which hold noise. So a step
    needs no random numbers of its own, and l does not depend on the other rows of the batch.
    """

    needs: ClassVar[Needs] = Needs()

    shares: tuple[float, ...] = (0.5, 0.25, 0.75)
    """l = (t - s) / (t - r), each in (0, 1)."""

    def __post_init__(self) -> None:
        if not self.shares or not all(0.0 < fraction < 1.0 for fraction in self.shares):
            raise ValueError(f"shares must be one or more numbers in (0, 1), got {self.shares}")

    def __call__(
        self, calls: StudentCalls, x_t: Latent, r: Time, t: Time, v: Latent, *, progress: float = 1.0
    ) -> Residual:
        v = v.detach()
        target = self.target(calls, x_t, r, t, v)
        u = calls.train(None)(x_t, r, t).u
        return Residual(u - target, u.detach(), v - target)

    def fraction_of(self, x_t: Latent) -> PerSample:
        """l of each row, (B,)."""
        digits = (x_t.flatten(1)[:, 0].double().abs() * 2**20).long()
        return torch.tensor(self.shares, dtype=torch.float64, device=x_t.device)[digits % len(self.shares)]

    @torch.no_grad()
    def target(self, calls: StudentCalls, x_t: Latent, r: Time, t: Time, v: Latent) -> Latent:
        """u_target (B, N, C); v on rows with r = t."""

        def moving(rows: Tensor, x_t: Tensor, r: Tensor, t: Tensor) -> Tensor:
            fraction = self.fraction_of(x_t).to(t.dtype)
            s = torch.minimum(t, torch.maximum(r, t - fraction * (t - r)))  # rounding must not carry s out of [r, t]
            predict = calls.plain(rows)
            late = predict(x_t, s, t).u.to(v.dtype)
            early = predict(jump(x_t, late, s, t), r, s).u.to(v.dtype)
            return torch.lerp(early, late, expand_right(fraction, late).to(v.dtype))

        return on_moving_rows(moving, x_t, r, t, otherwise=v)
