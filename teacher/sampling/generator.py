"""The one generator, noise -> latent -> wave in named stages, with either kind of network and any codec.

`SamplingConfig` has its settings: steps, guidance, solver and seed.

    latent = generate(network, conditions, noise)          a teacher's velocity is integrated, a student's average
                                                           velocity jumps
    wave   = codec's decoding stages, one after the other  for MMAudio's codec: latent decoder, vocoder

The pipeline, comparisons, the evaluation while training and the measurement of stages all go through `Generator`;
teacher/sampling/fast.py makes a faster form of one, teacher/sampling/exportable.py states the same for files.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Self, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from meanflow.guidance import Guidance, GuidanceRule, Guided, JointGuidance
from meanflow.ode import Adaptive
from meanflow.sampling import check_zero_init, euler, heun, midpoint, sample, time_grid
from teacher.audio.codec import Stage
from teacher.network.conditions import Conditions
from teacher.network.mmaudio import Encoded, MMAudio
from teacher.network.velocity import Guide, student_velocity, teacher_velocity
from teacher.sampling.stages import FLOW, StageClock, never_stop

FixedSolver: TypeAlias = Literal["euler", "heun", "midpoint"]
Solver: TypeAlias = FixedSolver | Adaptive
"""Integrator of an instantaneous velocity (a teacher); an average velocity (a student) jumps and needs none."""
Precision: TypeAlias = Literal["float32", "bfloat16", "demo"]
"""Arithmetic of the flow network. float32 throughout; bfloat16: float32 weights and state, products in bfloat16 (how
MMAudio is evaluated); demo: weights, state, times and the table of time frequencies in bfloat16 (how MMAudio's own
demo runs, which for v2 networks scrambles the time embedding: teacher/network/embeddings.py)."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How latents are sampled: number of steps, guidance, seed, and a teacher's solver."""

    steps: int = 1
    """Number of sampling steps; students are trained for 1, a teacher is usually sampled with 25."""
    guidance: GuidanceRule = field(default_factory=Guidance)
    """Classifier-free guidance; scale 1 is off and needs a single evaluation per step."""
    seed: int = 0
    solver: Solver = "euler"
    """Integrator of a teacher's velocity; for a student it must stay euler."""
    shift: float = 1.0
    """Shift of the time grid: above 1 the steps near the noise are smaller, below 1 those near the data."""
    zero_init_steps: int = 0
    """Number of first steps whose velocity is zero (CFG-Zero*); meant for 25 or more steps."""

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Adaptive) and self.solver not in get_args(FixedSolver):
            choices = ", ".join(get_args(FixedSolver))
            raise ValueError(f"solver must be {choices} or an Adaptive(...), got {self.solver!r}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not self.shift > 0:
            raise ValueError(f"shift must be positive (1 = uniform), got {self.shift}")
        check_zero_init(self.zero_init_steps, self.steps)

    def __str__(self) -> str:
        """Steps and guidance as text, such as "25 step(s), guidance 4.5"."""
        solver, rule = self.solver, self.guidance
        steps = f"adaptive to {solver.rtol:g}" if isinstance(solver, Adaptive) else f"{self.steps} step(s)"
        if isinstance(rule, JointGuidance):
            return f"{steps}, guidance {rule.video:g} for video, {rule.text:g} for text"
        return f"{steps}, guidance {rule.omega:g}"


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
    """Number of evaluations of the network per sound.

    A jump or an Euler step takes one, Heun and midpoint two, a step of zero velocity none. Guidance multiplies this by
    the number of predictions that it combines: 2, or 3 for separate video and text scales, or 1 for a network that
    takes the scale as an input.
    """
    combined = 1 if guided_input else guidance.evaluations
    return (num_steps - zero_init_steps) * (1 if solver == "euler" else 2) * combined


Draw: TypeAlias = Callable[[MMAudio, Guide, Tensor, float, SamplingConfig, Callable[[], None]], Tensor]
"""A function that samples latents: `draw_latents`, or its recorded form `teacher.sampling.fast.RecordedDraw`."""


@torch.no_grad()
def generate(
    net: MMAudio,
    conditions: Conditions,
    e: Tensor,
    sampling: SamplingConfig,
    *,
    negative: Tensor | None = None,
    observe: Callable[[Guided], None] | None = None,
    check: Callable[[], None] = never_stop,
    draw: Draw | None = None,
) -> Tensor:
    """Latents (B, N, C) from noise e (B, N, C): a network with an interval embedding jumps, another is integrated.

    `negative` (1 or B, tokens, width) replaces the empty text under guidance. `observe` receives every guided
    evaluation with its rescaling scalars s*; `check` is called before every evaluation of the network and stops the
    sampling by raising. `draw` replaces `draw_latents`. The seed of `sampling` is not used, because the noise is given.
    The state has the dtype of `e`. A network with the guidance scale as an input is given omega and needs no second
    prediction; the other options of guidance have no effect there. Raises ValueError for a solver with an average
    velocity, for a shift or zero steps together with an `Adaptive` solver, and for separate scales or a negative prompt
    with a network that takes the scale as an input.
    """
    omega, guidance = 1.0, sampling.guidance
    if net.config.guidance_embedding and guidance.active:
        if not isinstance(guidance, Guidance) or negative is not None:
            raise ValueError("a network that takes the guidance scale as an input takes one, and no negative prompt")
        omega, guidance = guidance.omega, Guidance()
    guide = Guide.of(net, conditions, e.shape[1], guidance, observe, negative)
    return (draw or draw_latents)(net, guide, e, omega, sampling, check)


def draw_latents(
    net: MMAudio, guide: Guide, e: Tensor, omega: float, sampling: SamplingConfig, check: Callable[[], None]
) -> Tensor:
    """Latents from noise `e`, with conditions that are encoded already: the part of `generate` that uses the noise.

    `omega` is the guidance scale for a network that takes it as an input, and 1 for every other one. An `Adaptive`
    solver chooses its own steps and ignores their number.
    """
    solver, zero_init_steps = sampling.solver, sampling.zero_init_steps
    if isinstance(solver, Adaptive) and (sampling.shift != 1.0 or zero_init_steps):
        raise ValueError("an adaptive solver chooses its own steps and takes neither shift nor zero_init_steps")
    if net.config.interval_embedding and solver != "euler":
        raise ValueError(
            "an average velocity jumps and is not integrated; choose a number of steps instead of a solver"
        )
    ts = time_grid(sampling.steps, sampling.shift)
    if net.config.interval_embedding:

        def u(x: Tensor, r: Tensor, t: Tensor, encoded: Encoded) -> Tensor:
            check()
            return student_velocity(net, x, r, t, encoded, omega)

        return sample(lambda x, r, t: guide(u, x, r, t), e, ts, zero_init_steps=zero_init_steps)

    def v(x: Tensor, r: Tensor, t: Tensor, encoded: Encoded) -> Tensor:
        check()
        return teacher_velocity(net, x, t, encoded)

    def v_fn(x: Tensor, t: Tensor) -> Tensor:
        return guide(v, x, t, t)

    if isinstance(solver, Adaptive):
        return solver(v_fn, e).x
    integrate = {"euler": euler, "heun": heun, "midpoint": midpoint}[solver]
    return integrate(v_fn, e, ts, zero_init_steps=zero_init_steps)


@dataclass(frozen=True, kw_only=True, eq=False)
class Generator:
    """A network and the decoder of its latents, with their device and precision.

    Features and noise may be on any device; latents and waves are returned as float32 on the CPU.
    """

    net: MMAudio
    decoder: tuple[Stage, ...]
    """Stages from normalised latents (B, frames, channels) on the CPU to waves (B, samples) within [-1, 1]."""
    device: torch.device | str = "cpu"
    """Device of the network."""
    dtype: torch.dtype = torch.float32
    """Type of features, noise and state."""
    arithmetic: Callable[[], AbstractContextManager[object]] = nullcontext
    """Context entered around the evaluations of the network, such as autocast."""
    draw: Draw = draw_latents

    @classmethod
    def of(
        cls, net: MMAudio, decoder: tuple[Stage, ...], *, device: str = "cpu", precision: Precision = "float32"
    ) -> Self:
        """A generator in one of the precisions of a pipeline; `decoder` is a codec's `decode_stages`."""
        autocast = partial(torch.autocast, torch.device(device).type, torch.bfloat16)
        return cls(
            net=net,
            decoder=decoder,
            device=device,
            dtype=torch.bfloat16 if precision == "demo" else torch.float32,
            arithmetic=autocast if precision == "bfloat16" else nullcontext,
        )

    def stages(
        self,
        conditions: Conditions,
        sampling: SamplingConfig,
        *,
        negative: Tensor | None = None,
        observe: Callable[[Guided], None] | None = None,
        check: Callable[[], None] = never_stop,
    ) -> tuple[Stage, ...]:
        """The stages for one batch of conditions; the first takes noise (B, N, C), the last gives waves (B, samples).

        `negative` (1 or B, tokens, width), `observe` and `check` are those of `generate`. The seed of `sampling` is not
        used, because the noise is given.
        """
        return (Stage(FLOW, partial(self._latents, conditions, sampling, negative, observe, check)), *self.decoder)

    @torch.no_grad()
    def __call__(
        self,
        conditions: Conditions,
        e: Float[Tensor, "batch frames channels"],
        sampling: SamplingConfig,
        *,
        negative: Tensor | None = None,
        observe: Callable[[Guided], None] | None = None,
        clock: StageClock | None = None,
    ) -> Float[Tensor, "batch samples"]:
        """Waves (B, samples) from noise and encoded conditions: runs all stages, and times them if `clock` is given."""
        clock = clock or StageClock()
        value = e
        for stage in self.stages(conditions, sampling, negative=negative, observe=observe, check=clock.check):
            with clock.stage(stage.name):
                value = stage.call(value)
        return value

    def latents(
        self, conditions: Conditions, e: Float[Tensor, "batch frames channels"], sampling: SamplingConfig
    ) -> Float[Tensor, "batch frames channels"]:
        """Normalised latents from noise and encoded conditions: runs the first stage only."""
        return self.stages(conditions, sampling)[0].call(e)

    def _latents(
        self,
        conditions: Conditions,
        sampling: SamplingConfig,
        negative: Tensor | None,
        observe: Callable[[Guided], None] | None,
        check: Callable[[], None],
        e: Tensor,
    ) -> Tensor:
        with self.arithmetic():
            made = generate(
                self.net,
                conditions.to(self.device, self.dtype),
                e.to(self.device, self.dtype),
                sampling,
                negative=None if negative is None else negative.to(self.device, self.dtype),
                observe=observe,
                check=check,
                draw=self.draw,
            )
        return made.float().cpu()
