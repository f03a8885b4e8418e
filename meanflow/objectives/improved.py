"""Improved MeanFlow: regress v itself, with a derivative along the predicted velocity (arXiv 2512.02012)."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from meanflow.derivative import Correction
from meanflow.objectives.base import Needs, Residual, StudentCalls
from meanflow.shapes import Latent, Prediction, Time, on_moving_rows


@dataclass(frozen=True, kw_only=True)
class ImprovedMeanFlow:
    """V = u(x_t, r, t) + (t - r) sg[du/dt],  delta = V - v,  du/dt along (v_p, 0, 1) with v_p predicted.

    What differs from MeanFlow: the target v no longer depends on the network, and the derivative runs along the
    network's estimate of the marginal velocity in place of the single draw e - x, whose scatter would enter the
    target times the gradient of u. `v` is the target only. Two sources of v_p, without a graph, on rows with r < t:

        head=False   v_p = u(x_t, t, t), the boundary form; costs one forward of these rows and needs rows with r = t
                     (fm_fraction > 0), which alone teach the network that value
        head=True    the network has a velocity head and v_p is its v at (x_t, r, t), where the second error
                     extra = v_head - v trains it on every row

    Raises TypeError where `head` is set and the network has none.
    """

    correction: Correction = dataclasses.field(default_factory=Correction)
    head: bool = False
    """Take the tangent from the network's velocity head, and train that head."""

    @property
    def needs(self) -> Needs:
        """The derivative of the correction, and the head."""
        return Needs(derivative=self.correction.derivative.kind, head=self.head)

    def __call__(
        self, calls: StudentCalls, x_t: Latent, r: Time, t: Time, v: Latent, *, progress: float = 1.0
    ) -> Residual:
        v = v.detach()
        tangent = self.tangent(calls, x_t, r, t)
        correction = self.correction(calls.plain, x_t, r, t, tangent, progress=progress)
        predicted = calls.train(None)(x_t, r, t)
        extra = _of_head(predicted) - v if self.head else None
        return Residual(predicted.u + correction.detach() - v, predicted.u.detach(), correction, extra=extra)

    @torch.no_grad()
    def tangent(self, calls: StudentCalls, x_t: Latent, r: Time, t: Time) -> Latent:
        """v_p (B, N, C), zero on rows with r = t, where no derivative is taken."""

        def moving(rows: Tensor, x_t: Tensor, r: Tensor, t: Tensor) -> Tensor:
            predict = calls.plain(rows)
            return _of_head(predict(x_t, r, t)) if self.head else predict(x_t, t, t).u

        return on_moving_rows(moving, x_t, r, t, otherwise=torch.zeros_like(x_t))


def _of_head(predicted: Prediction) -> Latent:
    """The velocity head's v; TypeError for a network without a head."""
    if predicted.v is None:
        raise TypeError("ImprovedMeanFlow(head=True) trains a velocity head, but the network has none; set head=False")
    return predicted.v
