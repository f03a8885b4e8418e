"""Terminal velocity matching: where a jump arrives, it must move with the velocity of that place (arXiv 2511.19797)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from meanflow.objectives.base import Needs, Residual, StudentCalls
from meanflow.path import jump
from meanflow.shapes import Latent, OnRows, Time, expand_right, moving_rows


@dataclass(frozen=True, kw_only=True)
class TerminalVelocity:
    """f(r) = x_t - (t - r) u(x_t, r, t),  df/dr = u - (t - r) d_r u,  delta = df/dr - sg v(f(r), r).

    The Lagrangian form of the identity: t and x_t stay, the arrival time r moves. v(f, r) is the network's own
    u(f, r, r), on averaged weights where the trainer has them, or the frozen teacher's. It is needed at the point of
    arrival f(r), where e - x of the row is not the velocity, so `v` enters through flow matching alone: on rows with
    r = t, delta = u(x_t, t, t) - v, and with `anchor` also on the others, extra = u(x_t, t, t) - v. With source "self"
    this term is essential: without it u = 0 is a solution, so use fm_fraction > 0 or `anchor`.

    Unlike the other objectives, the gradient runs through the derivative, in one of two ways, both with one call of the
    network:

        difference   the rows with r < t are repeated at two more arrival times: B + 2 M rows (and M for the anchor)
                     with M rows that move. An ordinary forward under every data-parallel wrapper, error O(eps^2),
                     in float32 without autocast and without dropout, whose masks differ from row to row.
        exact        forward mode in r with a graph: plain modules in one process only, since gradients taken through
                     a wrapper this way differ between ranks in silence. Over all rows, in MATH attention, at two to
                     three times the memory of a forward.

    Arrival times stay in [0, t]: with h = min(eps, t / 3) the two times are r - h and r + h, but r + h and r + 2 h
    where r < h, and r - h and r - 2 h where t - r < h, all through the same second-order formula.

    Raises ValueError for source "teacher" without a teacher, for "difference" in low precision, and for "exact" in
    more than one process.
    """

    derivative: Literal["difference", "exact"] = "difference"
    """How the derivative in r is taken: by difference of arrival times, or exact, by forward mode."""
    eps: float = 5e-3
    """Distance between the arrival times of the difference."""
    source: Literal["self", "teacher"] = "self"
    """Whose velocity is used at the point of arrival: the student's own or the teacher's."""
    anchor: bool = True
    """Add flow matching on rows with r < t as well, which computes one more row for each."""

    def __post_init__(self) -> None:
        for name, known in (("derivative", ("difference", "exact")), ("source", ("self", "teacher"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {list(known)}, got {getattr(self, name)!r}")
        if not 0.0 < self.eps < 0.1:
            raise ValueError(f"eps must lie in (0, 0.1), got {self.eps}")

    @property
    def needs(self) -> Needs:
        """The derivative in the arrival time, and averaged weights or the teacher for the velocity there."""
        return Needs(derivative=self.derivative, averaged=self.source == "self", teacher=self.source == "teacher")

    def __call__(
        self, calls: StudentCalls, x_t: Latent, r: Time, t: Time, v: Latent, *, progress: float = 1.0
    ) -> Residual:
        v = v.detach()
        moving = moving_rows(r, t)
        predict = self._exact if self.derivative == "exact" else self._difference
        u, dudr, boundary = (part.to(v.dtype) for part in predict(calls.train, x_t, r, t, moving))

        step = expand_right((t - r)[moving], dudr) * dudr
        arrival = jump(x_t, u.detach(), r, t)[moving]
        target = v.index_copy(0, moving, self.velocity(calls, moving, arrival, r[moving]).to(v.dtype))
        extra = u.new_zeros(u.shape).index_copy(0, moving, boundary - v[moving]) if self.anchor else None
        correction = torch.zeros_like(u).index_copy(0, moving, step.detach())
        return Residual(u.index_add(0, moving, -step) - target, u.detach(), correction, extra=extra)

    @torch.no_grad()
    def velocity(self, calls: StudentCalls, rows: Tensor, x_r: Latent, r: Time) -> Latent:
        """v(x_r, r) of some rows (M, N, C), without a graph."""
        if self.source == "teacher" and calls.teacher is None:
            raise ValueError("source='teacher' needs a teacher, and these calls have none; use source='self'")
        if len(rows) == 0:
            return x_r
        if self.source == "teacher" and calls.teacher is not None:
            return calls.teacher(rows)(x_r, r)
        return (calls.averaged or calls.plain)(rows)(x_r, r, r).u

    def offsets(self, r: Time, t: Time) -> tuple[Time, Time]:
        """Distances a != b from r, with r + a and r + b in [0, t], of the two further arrival times."""
        h = (t / 3).clamp(max=self.eps)
        low, high = r < h, t - r < h
        return torch.where(high, -h, h), torch.where(low, 2 * h, torch.where(high, -2 * h, -h))

    def _difference(
        self, train: OnRows, x_t: Latent, r: Time, t: Time, moving: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """u (B, N, C), d_r u (M, N, C) and u(x_t, t, t) (M, N, C; empty without anchor), with a graph.

        d_r u = [b/a (u(r + a) - u(r)) - a/b (u(r + b) - u(r))] / (b - a) + O(a b), which is the central difference
        for b = -a.
        """
        if x_t.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(x_t.device.type):
            raise ValueError("derivative='difference' needs float32 or float64 without autocast; use 'exact'")
        a, b = self.offsets(r[moving], t[moving])
        again = [moving] * (3 if self.anchor else 2)
        rows = torch.cat([torch.arange(len(t), device=t.device), *again])
        arrivals = torch.cat([r, r[moving] + a, r[moving] + b, *([t[moving]] if self.anchor else [])])
        u, at_a, at_b, boundary = train(rows)(x_t[rows], arrivals, t[rows]).u.tensor_split(
            [len(t), len(t) + len(moving), len(t) + 2 * len(moving)]
        )
        a_, b_, here = expand_right(a, u), expand_right(b, u), u[moving]
        return u, (b_ / a_ * (at_a - here) - a_ / b_ * (at_b - here)) / (b_ - a_), boundary

    def _exact(self, train: OnRows, x_t: Latent, r: Time, t: Time, moving: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `_difference` returns, with d_r u by forward mode in r."""
        parallel = torch.distributed
        if parallel.is_available() and parallel.is_initialized() and parallel.get_world_size() > 1:
            raise ValueError("derivative='exact' runs in one process only; use 'difference'")
        rows = torch.cat([torch.arange(len(t), device=t.device), *([moving] if self.anchor else [])])
        predict = train(rows)

        def at(arrival: Tensor) -> Tensor:
            return predict(x_t[rows], torch.cat([arrival, t[rows[len(t) :]]]), t[rows]).u

        with sdpa_kernel([SDPBackend.MATH]):
            u, dudr = torch.func.jvp(at, (r,), (torch.ones_like(r),))[:2]
        return u[: len(t)], dudr[moving], u[len(t) :]
