"""MeanFlow: regress the average velocity on its own identity (arXiv 2505.13447, eqs. 9-11)."""

import dataclasses
from dataclasses import dataclass

from meanflow.derivative import Correction
from meanflow.objectives.base import Needs, Residual, StudentCalls
from meanflow.shapes import Latent, Time


@dataclass(frozen=True, kw_only=True)
class MeanFlow:
    """u_target = sg[v - (t - r) du/dt],  delta = u(x_t, r, t) - u_target.

    `v` is the velocity to be averaged (e - x, a guided mixture, or a teacher's) and the direction of the derivative.
    The derivative runs without a graph, on the plain module, and only on rows with r < t; then one ordinary forward
    goes through the wrapper, so rows with r = t pay nothing extra.
    """

    correction: Correction = dataclasses.field(default_factory=Correction)

    @property
    def needs(self) -> Needs:
        """The derivative of the correction."""
        return Needs(derivative=self.correction.derivative.kind)

    def __call__(
        self, calls: StudentCalls, x_t: Latent, r: Time, t: Time, v: Latent, *, progress: float = 1.0
    ) -> Residual:
        correction = self.correction(calls.plain, x_t, r, t, v, progress=progress)
        u = calls.train(None)(x_t, r, t).u
        return Residual(u - (v - correction).detach(), u.detach(), correction)
