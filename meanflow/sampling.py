"""From noise at t = 1 to data at t = 0: average-velocity jumps, and Euler and Heun for instantaneous velocities."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from meanflow.path import jump
from meanflow.shapes import AverageVelocity, Latent, Velocity


def time_grid(num_steps: int) -> Float[Tensor, "points"]:
    """num_steps + 1 equally spaced times from 1 (noise) to 0 (data)."""
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    return torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)


def sample(u_fn: AverageVelocity, e: Latent, ts: Float[Tensor, "points"]) -> Latent:
    """x_{r} = x_t - (t - r) u(x_t, r, t) along the grid; exact for a true average velocity on any grid."""
    x = e
    for t, r in _pairs(ts, e):
        x = jump(x, u_fn(x, r, t), r, t)
    return x


def euler(v_fn: Velocity, e: Latent, ts: Float[Tensor, "points"]) -> Latent:
    """x_r = x_t - (t - r) v(x_t, t), order 1."""
    x = e
    for t, r in _pairs(ts, e):
        x = jump(x, v_fn(x, t), r, t)
    return x


def heun(v_fn: Velocity, e: Latent, ts: Float[Tensor, "points"]) -> Latent:
    """Explicit trapezoidal rule, order 2, two evaluations a step."""
    x = e
    for t, r in _pairs(ts, e):
        v = v_fn(x, t)
        x = jump(x, 0.5 * (v + v_fn(jump(x, v, r, t), r)), r, t)
    return x


def _pairs(ts: Tensor, e: Tensor) -> list[tuple[Tensor, Tensor]]:
    if ts.ndim != 1 or len(ts) < 2 or not bool((ts[:-1] > ts[1:]).all()):
        raise ValueError(f"a time grid falls strictly from noise to data and has at least 2 points, got {ts.tolist()}")
    return [(e.new_full((len(e),), float(t)), e.new_full((len(e),), float(r))) for t, r in pairwise(ts)]
