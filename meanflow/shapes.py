"""Shapes and callables that every signature of the package uses, the rows with r < t, and the broadcasting helper."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

Latent: TypeAlias = Float[Tensor, "batch frames channels"]
Time: TypeAlias = Float[Tensor, " batch"]
PerSample: TypeAlias = Float[Tensor, " batch"]

Velocity: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""v(x_t, t) -> Latent, the instantaneous velocity."""

AverageVelocity: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""u(x_t, r, t) -> Latent, the velocity averaged over [r, t]."""


class Prediction(NamedTuple):
    """What a network in training returns at (x_t, r, t)."""

    u: Latent
    """The average velocity over [r, t]."""
    v: Latent | None = None
    """The estimate of v(x_t, t) by the network's velocity head; None where the network has no head."""


Predict: TypeAlias = Callable[[Tensor, Tensor, Tensor], Prediction]
"""(x_t, r, t) -> Prediction: a network whose conditions are fixed."""

OnRows: TypeAlias = Callable[[Tensor | None], Predict]
"""Takes indices (M,) of rows of the batch, repeats allowed, or None for all rows in order, and returns the network on
the conditions of those rows. Conditions are encoded once per call, so the returned function may be called repeatedly.
"""

VelocityOnRows: TypeAlias = Callable[[Tensor | None], Velocity]
"""Takes indices of rows as `OnRows` does and returns the instantaneous velocity on the conditions of those rows."""


def u_only(u_fn: AverageVelocity) -> Predict:
    """A plain function u(x_t, r, t), such as a closed form, as the prediction of a network without a velocity head."""
    return lambda x_t, r, t: Prediction(u_fn(x_t, r, t))


def moving_rows(r: Time, t: Time) -> Int[Tensor, " moving"]:
    """Indices (M,) of the rows with r < t, which move in time; rows with r = t are plain flow matching."""
    return torch.nonzero(r < t).squeeze(1)


def on_moving_rows(
    make: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], x_t: Latent, r: Time, t: Time, *, otherwise: Latent
) -> Latent:
    """The result of make(rows, x_t, r, t) on the M rows with r < t, of indices `rows`; `otherwise` on the others.

    `make` receives those rows alone and is not called where there are none, so rows with r = t cost nothing. The result
    (B, N, C) has the dtype of `otherwise`.
    """
    rows = moving_rows(r, t)
    if len(rows) == 0:
        return otherwise
    return otherwise.index_copy(0, rows, make(rows, x_t[rows], r[rows], t[rows]).to(otherwise.dtype))


def expand_right(a: Shaped[Tensor, " batch"], like: Tensor) -> Tensor:
    """Reshape (B,) to (B, 1, ..., 1) so that it broadcasts against `like` (B, ...)."""
    return a.reshape(a.shape + (1,) * (like.ndim - a.ndim))
