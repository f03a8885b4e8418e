"""From noise at t = 1 to data at t = 0: average-velocity jumps; Euler, Heun and midpoint for instantaneous velocities.

Every sampler takes any strictly falling grid. The first `zero_init_steps` steps use the velocity zero, so that the
state stays at the noise while time goes on (CFG-Zero*, arXiv 2503.18886). This is meant for many steps: with few, the
skipped time is most of the path, so grids of fewer than 25 steps refuse it.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from meanflow.path import jump
from meanflow.shapes import AverageVelocity, Latent, Velocity

ZERO_INIT_MIN_STEPS = 25
"""One step of 25 is the 4 % of the path that CFG-Zero* leaves out."""


def time_grid(num_steps: int, shift: float = 1.0) -> Float[Tensor, " points"]:
    """num_steps + 1 times from 1 (noise) to 0 (data): equally spaced times s, moved to shift s / (shift s + 1 - s).

    A shift above 1 takes smaller steps near the noise, below 1 near the data (arXiv 2403.03206, section 5.3.2); 1 is
    uniform. Raises ValueError for fewer than 1 step and for a shift that is not positive.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if not shift > 0:
        raise ValueError(f"shift must be positive (1 = uniform), got {shift}")
    s = torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)
    return s if shift == 1.0 else shift * s / (shift * s + (1 - s))


def sample(u_fn: AverageVelocity, e: Latent, ts: Float[Tensor, " points"], *, zero_init_steps: int = 0) -> Latent:
    """x_{r} = x_t - (t - r) u(x_t, r, t) along the grid; exact for a true average velocity on any grid."""
    x = e
    for t, r in _pairs(ts, e, zero_init_steps):
        x = jump(x, u_fn(x, r, t), r, t)
    return x


def euler(v_fn: Velocity, e: Latent, ts: Float[Tensor, " points"], *, zero_init_steps: int = 0) -> Latent:
    """x_r = x_t - (t - r) v(x_t, t), order 1."""
    x = e
    for t, r in _pairs(ts, e, zero_init_steps):
        x = jump(x, v_fn(x, t), r, t)
    return x


def heun(v_fn: Velocity, e: Latent, ts: Float[Tensor, " points"], *, zero_init_steps: int = 0) -> Latent:
    """Explicit trapezoidal rule, order 2, two evaluations a step."""
    x = e
    for t, r in _pairs(ts, e, zero_init_steps):
        v = v_fn(x, t)
        x = jump(x, 0.5 * (v + v_fn(jump(x, v, r, t), r)), r, t)
    return x


def midpoint(v_fn: Velocity, e: Latent, ts: Float[Tensor, " points"], *, zero_init_steps: int = 0) -> Latent:
    """x_r = x_t - (t - r) v(x_m, m), m = (t + r) / 2 and x_m an Euler step to m; order 2, two evaluations a step."""
    x = e
    for t, r in _pairs(ts, e, zero_init_steps):
        m = 0.5 * (t + r)
        x = jump(x, v_fn(jump(x, v_fn(x, t), m, t), m), r, t)
    return x


def check_zero_init(zero_init_steps: int, num_steps: int) -> None:
    """Raises ValueError unless zero_init_steps is 0, or is less than num_steps and num_steps is 25 or more."""
    if zero_init_steps == 0:
        return
    if not 0 < zero_init_steps < num_steps:
        raise ValueError(f"zero_init_steps must be at least 0 and below the number of steps, got {zero_init_steps}")
    if num_steps < ZERO_INIT_MIN_STEPS:
        raise ValueError(
            f"zero_init_steps needs {ZERO_INIT_MIN_STEPS} or more steps (with few, the noise is not left), "
            f"got {num_steps} steps"
        )


def _pairs(ts: Tensor, e: Tensor, zero_init_steps: int) -> list[tuple[Tensor, Tensor]]:
    """(t, r), each (B,), of the steps to take; with zero velocity a step changes nothing, so those are left out."""
    if ts.ndim != 1 or len(ts) < 2 or not bool((ts[:-1] > ts[1:]).all()):
        raise ValueError(f"a time grid falls strictly from noise to data and has at least 2 points, got {ts.tolist()}")
    check_zero_init(zero_init_steps, len(ts) - 1)
    full = [(e.new_full((len(e),), float(t)), e.new_full((len(e),), float(r))) for t, r in pairwise(ts)]
    return full[zero_init_steps:]
