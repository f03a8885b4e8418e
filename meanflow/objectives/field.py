"""What an objective may ask of the network being trained, and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from meanflow.loss import Loss
from meanflow.shapes import AverageVelocity, Latent, PerSample, Time, Velocity

RowsOf = Callable[[Tensor | None], AverageVelocity]
"""Given the indices (M,) of some rows of the batch, repeats allowed, the average velocity on the conditions of just
those rows; None stands for all rows in order."""

VelocityOf = Callable[[Tensor | None], Velocity]
"""The same for an instantaneous velocity."""


class Headed(NamedTuple):
    """What the function of a network with a velocity head returns in place of u."""

    u: Latent
    v: Latent
    """The head's own estimate of v(x_t, t)."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """The network being trained, in the forms an objective needs. Make one for a plain function with `of`.

    `train` runs with a graph, through whatever data-parallel wrapper there is: **exactly one call of what it returns
    per step**, so that wrappers see an ordinary forward. `plain` runs without a graph, on the bare module, as often as
    needed. `average` is the same with averaged weights (targets that follow slowly); where there is none, `plain`
    serves. `teacher` is a frozen instantaneous velocity.
    """

    train: RowsOf
    plain: RowsOf
    average: RowsOf | None = None
    teacher: VelocityOf | None = None

    @classmethod
    def of(cls, u_fn: AverageVelocity, v_fn: Velocity | None = None) -> "Field":
        """The field of a function without conditions, such as a closed form: rows make no difference."""
        return cls(
            train=lambda rows: u_fn,
            plain=lambda rows: u_fn,
            teacher=None if v_fn is None else lambda rows: v_fn,
        )

    @property
    def slow(self) -> RowsOf:
        """Averaged weights where there are any, else the present ones."""
        return self.average or self.plain


class Residual(NamedTuple):
    """The error field of a batch. Only `delta` and `extra` carry a graph."""

    delta: Latent
    """u - u_target, or what an objective has in its place."""
    u: Latent
    """The prediction, for the log."""
    correction: Latent
    """What u_target differs from v by: (t - r) du/dt where the objective has a derivative. For the log."""
    weight: PerSample | None = None
    """Constant factor on each row's loss."""
    extra: Latent | None = None
    """A second error field (a velocity head's, a flow-matching term), weighed like the first and added to it."""

    def loss(self, loss: Loss) -> PerSample:
        """One loss per row: weight loss(delta) + loss(extra)."""
        value = loss(self.delta)
        if self.weight is not None:
            value = value * self.weight.detach().to(value.dtype)
        return value if self.extra is None else value + loss(self.extra)


class ObjectiveLike(Protocol):
    """The call of every objective: x_t (B, N, C), times r <= t (B,), the velocity v to be averaged.

    `progress` in [0, 1] is the share of training that is done; objectives with a schedule read it.
    """

    def __call__(
        self, field: Field, x_t: Latent, r: Time, t: Time, v: Latent, *, progress: float = 1.0
    ) -> Residual: ...
