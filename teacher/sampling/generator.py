"""From conditions to latents with either kind of network: Euler for a velocity, jumps for an average velocity."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from meanflow.guidance import Guidance, GuidanceRule, Guided
from meanflow.ode import Adaptive
from meanflow.sampling import euler, heun, midpoint, sample, time_grid
from teacher.network.conditions import Conditions
from teacher.network.mmaudio import Encoded, MMAudio
from teacher.network.velocity import Guide, student_velocity, teacher_velocity

FixedSolver: TypeAlias = Literal["euler", "heun", "midpoint"]
Solver: TypeAlias = FixedSolver | Adaptive
"""How an instantaneous velocity is integrated; an average velocity jumps and needs none."""


def noise(seeds: Sequence[int], frames: int, channels: int) -> Tensor:
    """Standard normal (B, frames, channels), one CPU generator per sample: a sample does not depend on its batch."""
    draws = [torch.randn(frames, channels, generator=torch.Generator().manual_seed(seed % (1 << 63))) for seed in seeds]
    return torch.stack(draws)


def clip_seed(seed: int, clip_id: str) -> int:
    """A seed for one clip, from (seed, clip id): the same noise whatever the order, batch or number of steps."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{clip_id}".encode()).digest()[:7], "big")


def network_evaluations(
    num_steps: int,
    guidance: GuidanceRule,
    *,
    solver: FixedSolver = "euler",
    zero_init_steps: int = 0,
    guided_input: bool = False,
) -> int:
    """Evaluations of the network per sound.

    A jump or an Euler step takes one, Heun and midpoint two, a step of zero velocity none; each is one for every
    prediction that the guidance combines (2, or 3 for separate video and text scales; 1 for a network that takes the
    scale as an input).
    """
    combined = 1 if guided_input else guidance.evaluations
    return (num_steps - zero_init_steps) * (1 if solver == "euler" else 2) * combined


@torch.no_grad()
def generate(
    net: MMAudio,
    conditions: Conditions,
    e: Tensor,
    *,
    num_steps: int,
    guidance: GuidanceRule,
    observe: Callable[[Guided], None] | None = None,
    negative_text: Tensor | None = None,
    solver: Solver = "euler",
    shift: float = 1.0,
    zero_init_steps: int = 0,
) -> Tensor:
    """Latents (B, N, C) from noise e (B, N, C): a network with an interval embedding jumps, another is integrated.

    `observe` receives every guided evaluation with its rescaling scalars s*. `negative_text` (1 or B, tokens, width)
    takes the place of the empty text under guidance. `shift` and `zero_init_steps` as in `meanflow.sampling`. An
    `Adaptive` solver chooses its own steps and ignores num_steps. The state keeps the dtype of `e`. A network with the
    guidance scale as an input is given omega and needs no second prediction; the other options of `guidance` do
    nothing there. Raises ValueError when a solver is asked of an average velocity, for a shift or zero steps together
    with an `Adaptive` solver, and for separate scales or a negative prompt with such a network.
    """
    if isinstance(solver, Adaptive) and (shift != 1.0 or zero_init_steps):
        raise ValueError("an adaptive solver chooses its own steps and takes neither shift nor zero_init_steps")
    omega = 1.0
    if net.config.guidance_embedding and guidance.active:
        if not isinstance(guidance, Guidance) or negative_text is not None:
            raise ValueError("a network that takes the guidance scale as an input takes one, and no negative prompt")
        omega, guidance = guidance.omega, Guidance()
    guide = Guide.of(net, conditions, e.shape[1], guidance, observe, negative_text)
    ts = time_grid(num_steps, shift)
    if net.config.interval_embedding and solver != "euler":
        raise ValueError(
            "an average velocity jumps and is not integrated; choose a number of steps instead of a solver"
        )
    if net.config.interval_embedding:

        def u(x: Tensor, r: Tensor, t: Tensor, encoded: Encoded) -> Tensor:
            return student_velocity(net, x, r, t, encoded, omega)

        return sample(lambda x, r, t: guide(u, x, r, t), e, ts, zero_init_steps=zero_init_steps)

    def v(x: Tensor, r: Tensor, t: Tensor, encoded: Encoded) -> Tensor:
        return teacher_velocity(net, x, t, encoded)

    def v_fn(x: Tensor, t: Tensor) -> Tensor:
        return guide(v, x, t, t)

    if isinstance(solver, Adaptive):
        return solver(v_fn, e).x
    integrate = {"euler": euler, "heun": heun, "midpoint": midpoint}[solver]
    return integrate(v_fn, e, ts, zero_init_steps=zero_init_steps)
