"""Gaussian mixtures with exact velocities and, by quadrature, exact flow maps: with conditions and with guidance.

Data sum_k w_k N(mu_k, s_k^2), noise N(0, 1). The marginal at t is sum_k w_k N((1 - t) mu_k, sig_k,t^2) with
sig_k,t^2 = (1 - t)^2 s_k^2 + t^2, and its velocity is the mean of the components' (arXiv 2210.02747, eq. 8)

    v(x_t, t) = sum_k gamma_k(x_t, t) v_k(x_t, t),     gamma_k = P(k | x_t),     v_k that of `GaussianFlow`.

Flow map and average velocity have no closed form for more than one component; `Quadrature` computes them.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from meanflow.closed_form import GaussianFlow
from meanflow.path import jump
from meanflow.shapes import Latent, PerSample, Time, Velocity, expand_right

SUBSTEPS = (2, 4, 6, 8, 10, 12)
"""Midpoint steps inside one step of the extrapolation: order 12 from 37 evaluations."""


@dataclass(frozen=True, kw_only=True)
class Quadrature:
    """The average velocity of any smooth v: u(x_t, r, t) = 1/(t - r) * integral of v over [r, t] along its flow.

    Along times from t to r the partial average U, defined by x = x_t - (t - r) U, obeys

        dU/dtau = v(x_t - (t - r) U, t(tau)) rho(tau),    U(0) = 0,    U(1) = u,    rho = -t'(tau) / (t - r)

    which needs no division by t - r where they meet: rho = 1 and u = v there. r > t is allowed (towards the noise).
    Times are even in asinh(t / scale) over tau, since velocities of data with deviation s change over a time s near
    t = 0. The rule is the midpoint rule extrapolated in h^2 (W. B. Gragg, SIAM J. Numer. Anal. 2, 1965; E. Hairer,
    S. Norsett, G. Wanner, "Solving ordinary differential equations I", II.9); made of sums and products, it can be
    differentiated, also in forward mode.

    Every row has its own steps, so a result does not depend on its batch; v_fn must work on any rows. A step is taken
    when the results of order 12 and 10 differ by less than `tolerance` (relative to 1 + max |U|), and the one of
    order 12 is the result. At the default, mixtures with s >= 0.05 are exact to 1e-9 (1e-10 as a rule); the worst rows
    start halfway between components, since errors grow along their flow. Computed in float64, returned in the dtype
    of x_t. Raises ArithmeticError after `max_steps` attempts, and when v is not finite.
    """

    scale: float = 0.1
    tolerance: float = 1e-12
    longest: float = 0.25
    """Longest step in tau, which runs from 0 to 1."""
    max_steps: int = 2000

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale must be positive, got {self.scale}")
        if not self.tolerance >= 1e-14:
            raise ValueError(f"tolerance must be at least 1e-14 (rounding in float64), got {self.tolerance}")
        if not 0 < self.longest <= 1:
            raise ValueError(f"longest must lie in (0, 1], got {self.longest}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")

    def u(self, v_fn: Velocity, x_t: Latent, r: Time, t: Time) -> Latent:
        """Average velocity over [r, t]; v where r = t."""
        x, r_, t_ = x_t.double(), r.double(), t.double()
        average, tau = torch.zeros_like(x), torch.zeros(len(x), dtype=x.dtype, device=x.device)
        h = torch.full_like(tau, self.longest)
        for _ in range(self.max_steps):
            rows = torch.nonzero(tau < 1).flatten()
            if len(rows) == 0:
                return average.to(x_t.dtype)
            slope = self._slope(v_fn, x[rows], r_[rows], t_[rows])
            fine, coarse = _extrapolated_step(slope, average[rows], tau[rows], h[rows])
            size = 1 + fine.detach().abs().flatten(1).amax(1)
            error = (fine - coarse).detach().abs().flatten(1).amax(1) / size / self.tolerance
            if not bool(torch.isfinite(error).all()):
                raise ArithmeticError(f"the velocity is not finite near t = {float(t_[rows].max()):.4f}")
            accepted = error < 1
            done = rows[accepted]
            average = average.index_copy(0, done, fine[accepted])
            tau = tau.index_copy(0, done, tau[done] + h[done])
            tau = torch.where(tau > 1 - 1e-12, 1.0, tau)
            # The difference is the error of order 10, so it falls with h^11.
            h = h.index_copy(0, rows, h[rows] * (0.9 * error.clamp_min(1e-30) ** (-1 / 11)).clamp(0.2, 3.0))
            h = torch.minimum(h.clamp_max(self.longest), 1 - tau)
        raise ArithmeticError(
            f"no end after {self.max_steps} steps (smallest {float(h[tau < 1].min()):.1e} of the interval at tolerance "
            f"{self.tolerance:g}); raise tolerance or max_steps"
        )

    def _slope(self, v_fn: Velocity, x_t: Latent, r: Time, t: Time) -> Velocity:
        """dU/dtau as a function of U (B, N, C) and tau (B,)."""
        start, end = torch.asinh(t / self.scale), torch.asinh(r / self.scale)
        middle, half = 0.5 * (start + end), 0.5 * (start - end)
        # rho = cosh(q) / cosh(middle) * half / sinh(half), from t - r = 2 scale cosh(middle) sinh(half).
        closed = half.abs() < 1e-9
        spread = torch.where(closed, 1.0, half / torch.sinh(torch.where(closed, 1.0, half))) / torch.cosh(middle)

        def slope(average: Tensor, tau: Tensor) -> Tensor:
            q = start + tau * (end - start)
            v = v_fn(jump(x_t, average, r, t), self.scale * torch.sinh(q))
            return expand_right(spread * torch.cosh(q), x_t) * v

        return slope


def _extrapolated_step(slope: Velocity, y: Tensor, tau: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """One step of y' = slope(y, tau) by polynomial extrapolation of midpoint results to step zero: orders 12, 10."""
    first, wide = slope(y, tau), expand_right(h, y)
    ends = []
    for n in SUBSTEPS:
        before, now = y, y + wide / n * first
        for i in range(1, n):
            before, now = now, before + 2 * wide / n * slope(now, tau + i * h / n)
        ends.append(now)
    return _at_step_zero(SUBSTEPS, ends), _at_step_zero(SUBSTEPS[1:], ends[1:])


def _at_step_zero(substeps: tuple[int, ...], ends: list[Tensor]) -> Tensor:
    """The polynomial in 1 / n^2 through (n, end), at 0: sum over n of end * product over m of n^2 / (n^2 - m^2)."""
    weights = [math.prod(n * n / (n * n - m * m) for m in substeps if m != n) for n in substeps]
    return torch.stack([w * end for w, end in zip(weights, ends, strict=True)]).sum(0)


@dataclass(frozen=True, kw_only=True)
class MixtureFlow:
    """Exact v, flow and u for a mixture: weights (K,), mu (K, N, C), s that broadcasts against mu, as (K, 1, 1).

    The class condition is the component: `conditional(k)`; a condition that leaves several components open is
    `subset`. Everything is computed in float64 and returned in the dtype of x_t.
    """

    weights: Tensor
    mu: Tensor
    s: Tensor
    tolerance: float = 1e-12

    def __post_init__(self) -> None:
        if self.mu.ndim != 3:
            raise ValueError(f"mu must have the shape (components, frames, channels), got {tuple(self.mu.shape)}")
        if self.weights.shape != (len(self.mu),):
            raise ValueError(f"weights must have the shape ({len(self.mu)},) of mu, got {tuple(self.weights.shape)}")
        if not bool((self.weights > 0).all()) or abs(float(self.weights.double().sum()) - 1) > 1e-6:
            raise ValueError(f"weights must be positive and sum to 1, got {self.weights.tolist()}")
        if not bool((self.s > 0).all()):
            raise ValueError("s, the standard deviations, must be positive everywhere")
        axes = zip(self.s.shape[::-1], self.mu.shape[::-1], strict=False)
        if self.s.ndim > 3 or any(mine not in (1, whole) for mine, whole in axes):
            raise ValueError(f"s must broadcast against mu {tuple(self.mu.shape)}, got {tuple(self.s.shape)}")

    @property
    def quadrature(self) -> Quadrature:
        """Times spaced for the narrowest component."""
        return Quadrature(scale=float(self.s.min()), tolerance=self.tolerance)

    def conditional(self, k: int) -> GaussianFlow:
        """The flow of component k alone, in closed form and float64."""
        return GaussianFlow(mu=self.mu[k].double(), s=self._s[k])

    def subset(self, components: list[int]) -> "MixtureFlow":
        """The flow given that the component is one of these."""
        weights = self.weights[components].double()
        return MixtureFlow(
            weights=weights / weights.sum(), mu=self.mu[components], s=self._s[components], tolerance=self.tolerance
        )

    def log_density(self, x_t: Latent, t: Time) -> PerSample:
        """log p_t(x_t), (B,), float64."""
        return torch.logsumexp(self._at(x_t, t).log_joint, 1)

    def responsibilities(self, x_t: Latent, t: Time) -> Float[Tensor, "batch components"]:
        """gamma_k = P(component k | x_t), (B, K), float64."""
        return torch.softmax(self._at(x_t, t).log_joint, 1)

    def v(self, x_t: Latent, t: Time) -> Latent:
        """Marginal instantaneous velocity E[e - x | x_t], finite for every t in [0, 1]."""
        here, clock = self._at(x_t, t), t.double()[:, None, None, None]
        gamma = torch.softmax(here.log_joint, 1)
        slope = (clock - (1 - clock) * self._s**2) / here.variance
        pull = (gamma[:, :, None, None] * slope * here.offset).sum(1)
        return (pull - torch.einsum("bk,knc->bnc", gamma, self.mu.double())).to(x_t.dtype)

    def flow(self, x_t: Latent, r: Time, t: Time) -> Latent:
        """Where the probability-flow ODE carries x_t from t to r."""
        return jump(x_t, self.u(x_t, r, t), r, t)

    def u(self, x_t: Latent, r: Time, t: Time) -> Latent:
        """Average velocity over [r, t]; v where r = t."""
        return self.quadrature.u(self.v, x_t, r, t)

    def sample(self, n: int, frames: int, channels: int, *, generator: torch.Generator) -> Latent:
        """n draws of data, (n, frames, channels), float64; frames and channels are those of mu, or mu has 1 there."""
        k = torch.multinomial(self.weights.double(), n, replacement=True, generator=generator)
        z = torch.randn(n, frames, channels, generator=generator, dtype=torch.float64)
        return self.mu.double()[k] + self._s[k] * z

    @property
    def _s(self) -> Tensor:
        """s with its component axis, float64, (K, 1 or N, 1 or C): axes that all coordinates share stay short."""
        s = self.s.double().reshape((1,) * (3 - self.s.ndim) + tuple(self.s.shape))
        return s.expand(len(self.mu), *s.shape[1:])

    def _at(self, x_t: Latent, t: Time) -> "_Components":
        x, clock, s = x_t.double(), t.double()[:, None, None, None], self._s
        offset, variance = x[:, None] - (1 - clock) * self.mu.double(), (1 - clock) ** 2 * s**2 + clock**2
        size = self.mu[0].numel() / variance[0, 0].numel()
        log_volume = size * torch.log(2 * torch.pi * variance).flatten(2).sum(2)
        distance = (offset.square() / variance).flatten(2).sum(2)
        return _Components(offset, variance, self.weights.double().log() - 0.5 * (distance + log_volume))


class _Components(NamedTuple):
    """Of every component at x_t: offset x_t - (1 - t) mu_k (B, K, N, C); sig_k,t^2 (B, K, 1 or N, 1 or C);
    log w_k + log N(x_t; (1 - t) mu_k, sig_k,t^2) (B, K)."""

    offset: Tensor
    variance: Tensor
    log_joint: Tensor


@runtime_checkable
class HasVelocity(Protocol):
    """Anything with an instantaneous velocity."""

    def v(self, x_t: Latent, t: Time) -> Latent: ...


@dataclass(frozen=True, kw_only=True)
class GuidedFlow:
    """The flow of the guided velocity v_g = v_u + omega (v_c - v_u), which sampling with many small steps follows.

    Its u is the average that a network trained on v_g (`MixedGuidance`) learns, and with which one step is exact. v_g
    is averaged along its own flow, so u is no mixture of the averages of v_u and v_c. omega 1 is the conditional flow.
    """

    cond: HasVelocity
    uncond: HasVelocity
    omega: float
    quadrature: Quadrature = field(default_factory=Quadrature)

    def v(self, x_t: Latent, t: Time) -> Latent:
        """v_g(x_t, t)."""
        v_uncond = self.uncond.v(x_t, t)
        return v_uncond + self.omega * (self.cond.v(x_t, t) - v_uncond)

    def flow(self, x_t: Latent, r: Time, t: Time) -> Latent:
        """Where the guided ODE carries x_t from t to r."""
        return jump(x_t, self.u(x_t, r, t), r, t)

    def u(self, x_t: Latent, r: Time, t: Time) -> Latent:
        """Average of v_g over [r, t] along its own flow; v_g where r = t."""
        return self.quadrature.u(self.v, x_t, r, t)
