"""Flow matching of the instantaneous velocity (arXiv 2210.02747): the baseline that knows nothing of averages."""

from dataclasses import dataclass

import torch

from meanflow.objectives.field import Field, Residual
from meanflow.objectives.heads import bare
from meanflow.shapes import Latent, Time


@dataclass(frozen=True, kw_only=True)
class PlainFlowMatching:
    """delta = u(x_t, t, t) - v.

    r is not read: the network only ever sees r = t, so what it returns for r < t means nothing. Sample it with `euler`
    or `heun` on v(x_t, t) = u(x_t, t, t), not with jumps.
    """

    def __call__(self, field: Field, x_t: Latent, r: Time, t: Time, v: Latent, *, progress: float = 1.0) -> Residual:
        u = bare(field.train)(None)(x_t, t, t)
        return Residual(u - v.detach(), u.detach(), torch.zeros_like(u))
