"""Exact velocities and flow map for Gaussian data: the oracle of the tests.

Data N(mu, s^2), noise N(0, 1), independent per coordinate. With mu_t = (1 - t) mu and sig_t^2 = (1 - t)^2 s^2 + t^2,

    flow(x_t, r, t) = mu_r + (sig_r / sig_t) (x_t - mu_t)
    v(x_t, t)       = -mu + (t - (1 - t) s^2) / sig_t^2 (x_t - mu_t)
    u(x_t, r, t)    = (x_t - flow(x_t, r, t)) / (t - r),   u(x_t, t, t) = v(x_t, t)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from meanflow.shapes import Latent, Time, expand_right


@dataclass(frozen=True, kw_only=True)
class GaussianFlow:
    """Closed forms for data N(mu, s^2); mu and s broadcast against a latent (B, N, C)."""

    mu: Tensor
    s: Tensor

    def __post_init__(self) -> None:
        if not bool((self.s > 0).all()):
            raise ValueError("s, the standard deviation of the data, must be positive everywhere")

    def mean(self, t: Tensor) -> Tensor:
        """mu_t for a broadcastable time."""
        return (1 - t) * self.mu

    def std(self, t: Tensor) -> Tensor:
        """sig_t for a broadcastable time."""
        return ((1 - t) ** 2 * self.s**2 + t**2).sqrt()

    def v(self, x_t: Latent, t: Time) -> Latent:
        """Marginal instantaneous velocity E[e - x | x_t]."""
        t_ = expand_right(t, x_t)
        return -self.mu + (t_ - (1 - t_) * self.s**2) / self.std(t_) ** 2 * (x_t - self.mean(t_))

    def flow(self, x_t: Latent, r: Time, t: Time) -> Latent:
        """Where the probability-flow ODE carries x_t from t to r."""
        r_, t_ = expand_right(r, x_t), expand_right(t, x_t)
        return self.mean(r_) + self.std(r_) / self.std(t_) * (x_t - self.mean(t_))

    def u(self, x_t: Latent, r: Time, t: Time) -> Latent:
        """Average velocity over [r, t], written without the division by t - r so that r = t needs no special case.

        (sig_t - sig_r) / (t - r) = [(t + r) - (2 - t - r) s^2] / (sig_t + sig_r), from the difference of squares.
        """
        r_, t_ = expand_right(r, x_t), expand_right(t, x_t)
        slope = ((t_ + r_) - (2 - t_ - r_) * self.s**2) / (self.std(t_) + self.std(r_))
        return -self.mu + slope / self.std(t_) * (x_t - self.mean(t_))

    def sample(self, n: int, frames: int, channels: int, *, generator: torch.Generator) -> Latent:
        """n draws of data, (n, frames, channels), in the dtype of mu."""
        z = torch.randn(n, frames, channels, generator=generator, dtype=self.mu.dtype)
        return self.mu + self.s * z
