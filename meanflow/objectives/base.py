"""What every objective has: what it declares, how it is called, how it may call the network, and what it returns."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from meanflow.derivative import DerivativeKind
from meanflow.loss import Loss
from meanflow.shapes import (
    AverageVelocity,
    Latent,
    OnRows,
    PerSample,
    Time,
    Velocity,
    VelocityOnRows,
    u_only,
)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an objective declares: what it needs of the network and of the trainer, and what it teaches the network.

    Trainers decide by this declaration alone, never by the class of the objective. The defaults are those of an
    objective that learns u(x_t, r, t) for every r <= t and takes no derivative.
    """

    head: bool = False
    """The objective trains a velocity head, which the network must have; with False the network must have none, since
    nothing would train it."""
    derivative: DerivativeKind = "none"
    """How the objective differentiates the network: not at all, exactly, or by differences, which need float32 without
    autocast and a network without fast frequencies in time."""
    teacher: bool = False
    """The objective calls `StudentCalls.teacher`."""
    averaged: bool = False
    """The objective's targets come from `StudentCalls.averaged`, so the trainer keeps averaged weights for it."""
    learns_boundary: bool = True
    """The objective trains u(x_t, t, t) = v. Otherwise the student's own predictions of v mean nothing."""
    learns_intervals: bool = True
    """The objective trains u(x_t, r, t) for r < t. Otherwise nothing trains the network's embedding of t - r."""


@dataclass(frozen=True, kw_only=True)
class StudentCalls:
    """The ways in which an objective may call the network in training. `of` makes them for a plain function.

    Each takes the rows of the batch that are computed and returns a function of (x_t, r, t); `teacher` one of (x_t, t).
    """

    train: OnRows
    """The network with a graph, inside its data-parallel wrapper if it has one. **Call the returned function exactly
    once per step**, so that a wrapper sees one ordinary forward."""
    plain: OnRows
    """The network without a graph and without a wrapper; call it as often as needed."""
    averaged: OnRows | None = None
    """Like `plain`, but with averaged weights, for targets that change slowly; None where nothing is averaged."""
    teacher: VelocityOnRows | None = None
    """A frozen instantaneous velocity; None where there is no teacher."""

    @classmethod
    def of(cls, u_fn: AverageVelocity, v_fn: Velocity | None = None) -> "StudentCalls":
        """The calls of a function u(x_t, r, t) without conditions and without a head, which ignores the rows; `v_fn` is
        the teacher."""
        predict = u_only(u_fn)
        return cls(
            train=lambda rows: predict,
            plain=lambda rows: predict,
            teacher=None if v_fn is None else lambda rows: v_fn,
        )


class Residual(NamedTuple):
    """The error field of a batch. Only `delta` and `extra` carry a graph."""

    delta: Latent
    """u - u_target, or what an objective has in its place."""
    u: Latent
    """The prediction, for the log."""
    correction: Latent
    """v - u_target, which is (t - r) du/dt where the objective has a derivative. For the log."""
    weight: PerSample | None = None
    """Constant factor on each row's loss."""
    extra: Latent | None = None
    """A second error field (a velocity head's, a flow-matching term), whose loss is computed alike and added."""

    def loss(self, loss: Loss) -> PerSample:
        """One loss per row: weight loss(delta) + loss(extra)."""
        value = loss(self.delta)
        if self.weight is not None:
            value = value * self.weight.detach().to(value.dtype)
        return value if self.extra is None else value + loss(self.extra)


@runtime_checkable
class ObjectiveLike(Protocol):
    """Every objective: a declaration, and a call on x_t (B, N, C), times r <= t (B,), the velocity v to be averaged.

    `progress` in [0, 1] is the fraction of training that is done; objectives with a schedule read it.
    """

    @property
    def needs(self) -> Needs: ...

    def __call__(
        self, calls: StudentCalls, x_t: Latent, r: Time, t: Time, v: Latent, *, progress: float = 1.0
    ) -> Residual: ...
