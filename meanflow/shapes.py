"""Shape aliases used by every signature of the package, and the one broadcasting helper."""

from collections.abc import Callable
from typing import TypeAlias

from jaxtyping import Float, Shaped
from torch import Tensor

Latent: TypeAlias = Float[Tensor, "batch frames channels"]
Time: TypeAlias = Float[Tensor, "batch"]
PerSample: TypeAlias = Float[Tensor, "batch"]

Velocity: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""v(x_t, t) -> Latent, the instantaneous velocity."""

AverageVelocity: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""u(x_t, r, t) -> Latent, the velocity averaged over [r, t]."""


def expand_right(a: Shaped[Tensor, "batch"], like: Tensor) -> Tensor:
    """Reshape (B,) to (B, 1, ..., 1) so that it broadcasts against `like` (B, ...)."""
    return a.reshape(a.shape + (1,) * (like.ndim - a.ndim))
