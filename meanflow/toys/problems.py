"""Problems whose velocity, average velocity and flow map are known: a 2-D mixture, and 64 correlated coordinates."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from meanflow.closed_form import GaussianFlow
from meanflow.mixture import MixtureFlow
from meanflow.shapes import Latent, Time


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A closed form in rotated coordinates: data Q y with y from `base`, Q orthogonal over all frames and channels.

    White noise stays white under a rotation, so with y_t = Q^T x_t everything rotates along:

        v(x_t, t) = Q v_base(y_t, t),    u(x_t, r, t) = Q u_base(y_t, r, t),    flow(x_t, r, t) = Q flow_base(y_t, r, t)

    which turns independent coordinates into correlated ones and stays exact. Results have the dtype of x_t.
    """

    name: str
    base: GaussianFlow | MixtureFlow
    frames: int
    channels: int
    rotation: Tensor | None = None
    """Q, (frames * channels, frames * channels), float64; None = identity."""

    def __post_init__(self) -> None:
        size = self.frames * self.channels
        if self.rotation is None:
            return
        if self.rotation.shape != (size, size):
            raise ValueError(f"rotation must be ({size}, {size}), got {tuple(self.rotation.shape)}")
        error = float((self.rotation @ self.rotation.T - torch.eye(size, dtype=self.rotation.dtype)).abs().max())
        if error > 1e-8:
            raise ValueError(f"rotation must be orthogonal, but Q Q^T differs from 1 by {error:.1e}")

    def v(self, x_t: Latent, t: Time) -> Latent:
        """Marginal instantaneous velocity."""
        return self._out(self.base.v(self._in(x_t), t.double()), x_t)

    def u(self, x_t: Latent, r: Time, t: Time) -> Latent:
        """Average velocity over [r, t]."""
        return self._out(self.base.u(self._in(x_t), r.double(), t.double()), x_t)

    def flow(self, x_t: Latent, r: Time, t: Time) -> Latent:
        """Where the probability-flow ODE carries x_t from t to r."""
        return self._out(self.base.flow(self._in(x_t), r.double(), t.double()), x_t)

    def sample(self, n: int, *, generator: torch.Generator) -> Latent:
        """n draws of data, (n, frames, channels), float32."""
        return self._out(self.base.sample(n, self.frames, self.channels, generator=generator), torch.empty(0))

    def _in(self, x: Tensor) -> Tensor:
        return x.double() if self.rotation is None else (x.double().flatten(1) @ self.rotation).view_as(x)

    def _out(self, y: Tensor, like: Tensor) -> Tensor:
        return (y if self.rotation is None else (y.flatten(1) @ self.rotation.T).view_as(y)).to(like.dtype)


def mixture_2d() -> Problem:
    """Five components of unequal weight and width around the origin; mean square 1 per coordinate, like a latent.

    Where the noise falls between two components, the flow map is steep: the part that one step finds hard.
    """
    angle = torch.tensor([0.0, 1.1, 2.6, 3.9, 5.1], dtype=torch.float64)
    radius = torch.tensor([1.5, 1.2, 1.5, 1.1, 1.4], dtype=torch.float64)
    mu = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    base = MixtureFlow(
        weights=torch.tensor([0.3, 0.2, 0.2, 0.15, 0.15], dtype=torch.float64),
        mu=mu[:, None],
        s=torch.tensor([0.25, 0.35, 0.2, 0.3, 0.25], dtype=torch.float64)[:, None, None],
        tolerance=1e-7,
    )
    return Problem(name="mixture-2d", base=base, frames=1, channels=2)


def gaussian_64d() -> Problem:
    """64 correlated coordinates, 8 frames of 8 channels: deviations from 2.5 down to 0.05 along random axes.

    The flow map is linear; what is to be learnt is its change with r and t along each axis.
    """
    s = torch.logspace(math.log10(2.5), math.log10(0.05), 64, dtype=torch.float64).reshape(8, 8)
    g = torch.Generator().manual_seed(64)
    mu = 0.3 * torch.randn(8, 8, generator=g, dtype=torch.float64)
    return Problem(name="gaussian-64d", base=GaussianFlow(mu=mu, s=s), frames=8, channels=8, rotation=_rotation(64, g))


def mixture_64d() -> Problem:
    """Four components in 64 correlated coordinates (8 frames of 8 channels), each wide along axes of its own."""
    g = torch.Generator().manual_seed(65)
    spectrum = torch.logspace(math.log10(1.6), math.log10(0.1), 64, dtype=torch.float64)
    s = torch.stack([spectrum[torch.randperm(64, generator=g)].reshape(8, 8) for _ in range(4)])
    base = MixtureFlow(
        weights=torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64),
        mu=0.6 * torch.randn(4, 8, 8, generator=g, dtype=torch.float64),
        s=s,
        tolerance=1e-7,
    )
    return Problem(name="mixture-64d", base=base, frames=8, channels=8, rotation=_rotation(64, g))


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "mixture-2d": mixture_2d,
    "gaussian-64d": gaussian_64d,
    "mixture-64d": mixture_64d,
}


def problem(name: str) -> Problem:
    """The problem of that name."""
    if name not in PROBLEMS:
        raise ValueError(f"problem must be one of {list(PROBLEMS)}, got {name!r}")
    return PROBLEMS[name]()


def _rotation(size: int, generator: torch.Generator) -> Tensor:
    """A random orthogonal matrix, from the QR decomposition of a Gaussian one."""
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
