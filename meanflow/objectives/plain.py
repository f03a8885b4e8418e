"""Flow matching of the instantaneous velocity (arXiv 2210.02747): the baseline, which learns no average velocity."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from meanflow.objectives.base import Needs, Residual, StudentCalls
from meanflow.shapes import Latent, Time


@dataclass(frozen=True, kw_only=True)
class PlainFlowMatching:
    """delta = u(x_t, t, t) - v.

    r is not read: the network is only trained at r = t, so what it returns for r < t means nothing. Sample it with
    `euler` or `heun` on v(x_t, t) = u(x_t, t, t), not with jumps.
    """

    needs: ClassVar[Needs] = Needs(learns_intervals=False)

    def __call__(
        self, calls: StudentCalls, x_t: Latent, r: Time, t: Time, v: Latent, *, progress: float = 1.0
    ) -> Residual:
        u = calls.train(None)(x_t, t, t).u
        return Residual(u - v.detach(), u.detach(), torch.zeros_like(u))
