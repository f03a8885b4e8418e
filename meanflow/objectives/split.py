"""SplitMeanFlow: an average over [r, t] is the average of its two parts (arXiv 2507.16884)."""

from dataclasses import dataclass

import torch

from meanflow.objectives.field import Field, Residual
from meanflow.objectives.heads import bare
from meanflow.path import jump
from meanflow.shapes import Latent, PerSample, Time, expand_right


@dataclass(frozen=True, kw_only=True)
class SplitMeanFlow:
    """u_target = sg[(1 - l) u(x_s, r, s) + l u(x_t, s, t)],  s = t - l (t - r),  x_s = x_t - (t - s) u(x_t, s, t).

    No derivative: two forwards without a graph, on rows with r < t only, so it runs in any precision and with any
    attention. `v` enters on rows with r = t alone, delta = u(x_t, t, t) - v. Those rows are the boundary
    from which everything else follows: without them (fm_fraction = 0) u = 0 solves the objective, so their share must
    be well above zero. An error of the short averages is handed on to the long ones undamped.

    The share l of each row is one of `shares` by the digits of its first value, which hold noise, so that a step needs
    no random numbers of its own and a row's share does not depend on the rows it shares a batch with.
    """

    shares: tuple[float, ...] = (0.5, 0.25, 0.75)
    """l = (t - s) / (t - r), each in (0, 1)."""

    def __post_init__(self) -> None:
        if not self.shares or not all(0.0 < share < 1.0 for share in self.shares):
            raise ValueError(f"shares must be one or more numbers in (0, 1), got {self.shares}")

    def __call__(self, field: Field, x_t: Latent, r: Time, t: Time, v: Latent, *, progress: float = 1.0) -> Residual:
        v = v.detach()
        target = self.target(field, x_t, r, t, v)
        u = bare(field.train)(None)(x_t, r, t)
        return Residual(u - target, u.detach(), v - target)

    def share_of(self, x_t: Latent) -> PerSample:
        """l of each row, (B,)."""
        digits = (x_t.flatten(1)[:, 0].double().abs() * 2**20).long()
        return torch.tensor(self.shares, dtype=torch.float64, device=x_t.device)[digits % len(self.shares)]

    @torch.no_grad()
    def target(self, field: Field, x_t: Latent, r: Time, t: Time, v: Latent) -> Latent:
        """u_target (B, N, C); v on rows with r = t."""
        moving = torch.nonzero(r < t).squeeze(1)
        if len(moving) == 0:
            return v
        x_t, r, t = x_t[moving], r[moving], t[moving]
        share = self.share_of(x_t).to(t.dtype)
        s = torch.minimum(t, torch.maximum(r, t - share * (t - r)))  # rounding must not carry s out of [r, t]
        u_fn = bare(field.plain)(moving)
        late = u_fn(x_t, s, t).to(v.dtype)
        early = u_fn(jump(x_t, late, s, t), r, s).to(v.dtype)
        return v.index_copy(0, moving, torch.lerp(early, late, expand_right(share, late).to(v.dtype)))
