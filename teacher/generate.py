"""From conditions to latents with either kind of network: Euler for a velocity, jumps for an average velocity."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from meanflow.guidance import Guidance
from meanflow.ode import Adaptive
from meanflow.sampling import euler, heun, sample, time_grid
from teacher.conditions import Conditions
from teacher.network import Encoded, MMAudio
from teacher.velocity import Guide, student_velocity, teacher_velocity

Solver: TypeAlias = Literal["euler", "heun"] | Adaptive
"""How an instantaneous velocity is integrated; an average velocity jumps and needs none."""


def noise(seeds: Sequence[int], frames: int, channels: int) -> Tensor:
    """Standard normal (B, frames, channels), one CPU generator per sample: a sample does not depend on its batch."""
    draws = [torch.randn(frames, channels, generator=torch.Generator().manual_seed(seed % (1 << 63))) for seed in seeds]
    return torch.stack(draws)


def clip_seed(seed: int, clip_id: str) -> int:
    """A seed for one clip, from (seed, clip id): the same noise whatever the order, batch or number of steps."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{clip_id}".encode()).digest()[:7], "big")


def network_evaluations(num_steps: int, guidance: Guidance) -> int:
    """Evaluations of the network per sound; guidance costs a second one per step."""
    return num_steps * (2 if guidance.active else 1)


@torch.no_grad()
def generate(
    net: MMAudio,
    conditions: Conditions,
    e: Tensor,
    *,
    num_steps: int,
    guidance: Guidance,
    observe: Callable[[Tensor], None] | None = None,
    negative_text: Tensor | None = None,
    solver: Solver = "euler",
) -> Tensor:
    """Latents (B, N, C) from noise e (B, N, C): a network with an interval embedding jumps, another is integrated.

    `observe` receives the rescaling scalars s* of every guided evaluation. `negative_text` (1 or B, tokens, width)
    takes the place of the empty text under guidance. An `Adaptive` solver chooses its own steps and ignores num_steps.
    The state keeps the dtype of `e`. Raises ValueError when a solver is asked of an average velocity.
    """
    guide = Guide.of(net, conditions, e.shape[1], guidance, observe, negative_text)
    ts = time_grid(num_steps)
    if net.config.interval_embedding and solver != "euler":
        raise ValueError(
            "an average velocity jumps and is not integrated; choose a number of steps instead of a solver"
        )
    if net.config.interval_embedding:

        def u(x: Tensor, r: Tensor, t: Tensor, encoded: Encoded) -> Tensor:
            return student_velocity(net, x, r, t, encoded)

        return sample(lambda x, r, t: guide(u, x, r, t), e, ts)

    def v(x: Tensor, r: Tensor, t: Tensor, encoded: Encoded) -> Tensor:
        return teacher_velocity(net, x, t, encoded)

    def v_fn(x: Tensor, t: Tensor) -> Tensor:
        return guide(v, x, t, t)

    if isinstance(solver, Adaptive):
        return solver(v_fn, e).x
    return (heun if solver == "heun" else euler)(v_fn, e, ts)
