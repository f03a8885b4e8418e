"""Improved MeanFlow: regress v itself, with a derivative along the predicted velocity (arXiv 2512.02012)."""

import dataclasses
from dataclasses import dataclass

import torch

from meanflow.objectives.correction import Correction
from meanflow.objectives.field import Field, Residual
from meanflow.objectives.heads import bare, parted
from meanflow.shapes import Latent, Time


@dataclass(frozen=True, kw_only=True)
class ImprovedMeanFlow:
    """V = u(x_t, r, t) + (t - r) sg[du/dt],  delta = V - v,  du/dt along (v_p, 0, 1) with v_p predicted.

    What differs from MeanFlow: the target v no longer depends on the network, and the derivative runs along the
    network's estimate of the marginal velocity in place of the single draw e - x, whose scatter would enter the
    target times the gradient of u. `v` is the target only. Two sources of v_p, without a graph, on rows with r < t:

        head=False   v_p = u(x_t, t, t), the boundary form; costs one forward of these rows and needs rows with r = t
                     (fm_fraction > 0), which alone teach the network that value
        head=True    the network returns Headed(u, v) and v_p is its v at (x_t, r, t), where the second error
                     extra = v_head - v trains it on every row

    Raises TypeError if `head` and what the network returns disagree.
    """

    correction: Correction = dataclasses.field(default_factory=Correction)
    head: bool = False
    """Take the tangent from the network's velocity head, and train that head."""

    def __call__(self, field: Field, x_t: Latent, r: Time, t: Time, v: Latent, *, progress: float = 1.0) -> Residual:
        v = v.detach()
        tangent = self.tangent(field, x_t, r, t)
        correction = self.correction(bare(field.plain, head=self.head), x_t, r, t, tangent, progress=progress)
        u, v_head = parted(field.train(None)(x_t, r, t), head=self.head)
        extra = None if v_head is None else v_head - v
        return Residual(u + correction.detach() - v, u.detach(), correction, extra=extra)

    @torch.no_grad()
    def tangent(self, field: Field, x_t: Latent, r: Time, t: Time) -> Latent:
        """v_p (B, N, C), zero on rows with r = t, where no derivative is taken."""
        moving = torch.nonzero(r < t).squeeze(1)
        tangent = torch.zeros_like(x_t)
        if len(moving) == 0:
            return tangent
        arrival = r[moving] if self.head else t[moving]
        u, v_head = parted(field.plain(moving)(x_t[moving], arrival, t[moving]), head=self.head)
        return tangent.index_copy(0, moving, (u if v_head is None else v_head).to(tangent.dtype))
