"""Sources of the velocity v to be averaged, with their guidance.

A source declares what it needs of the student; the step, the configuration and the evaluation read that declaration.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from meanflow import Guidance, MixedGuidance, Velocity
from meanflow.guidance import Guided, check_interval, inside
from meanflow.shapes import VelocityOnRows
from teacher.network.batch import BatchSlice
from teacher.network.conditions import Conditions
from teacher.network.mmaudio import Encoded, MMAudio
from teacher.network.velocity import Guide, student_prediction, teacher_velocity

Predictions: TypeAlias = Literal["teacher", "student"]


class State(NamedTuple):
    """A batch at its noisy latents and times, with the generator of random draws: the input of a source."""

    x_t: Tensor
    """The noisy latents (B, N, C)."""
    t: Tensor
    """Their times (B,)."""
    v: Tensor
    """The conditional velocity e - x of the data (B, N, C)."""
    generator: torch.Generator
    batch_slice: BatchSlice
    """Which rows of the whole batch these are; random numbers are drawn for the whole batch."""


class Target(NamedTuple):
    """The velocity v (B, N, C) to be averaged, and the guidance scale omega (B,) given to the student, if any.

    `guided` holds, for the log, what rescaled guidance did to the velocity, where it was used.
    """

    v: Tensor
    omega: Tensor | None = None
    guided: Guided | None = None


class Pair(NamedTuple):
    """Predictions of v with the conditions and without any, (M, N, C) each."""

    v_cond: Tensor
    v_uncond: Tensor


@dataclass(frozen=True)
class Networks:
    """Teacher and student, both without a wrapper, on the conditions that dropout left in a batch. Nothing that this
    class computes has a graph."""

    teacher: MMAudio
    student: MMAudio
    conditions: Conditions
    frames: int
    averaged: MMAudio | None = None
    """The student with averaged weights, where the objective needs one."""

    def conditions_of(self, rows: Tensor | None) -> Conditions:
        """The conditions of some rows; None = all."""
        return self.conditions if rows is None else self.conditions.rows(rows)

    def guided_rows(self, t: Tensor, interval: tuple[float, float]) -> Tensor:
        """Indices (M,) of rows with any condition left and t in the interval. The others keep v as it is: without
        conditions v_cond is v_uncond, and mixing them in would teach the unconditional branch a scaled field."""
        return torch.nonzero(self.conditioned & inside(t, interval)).squeeze(1)

    @property
    def conditioned(self) -> Tensor:
        """Rows (B,) bool with any condition left."""
        return self.conditions.has_clip | self.conditions.has_sync | self.conditions.has_text

    @torch.no_grad()
    def pair(self, of: Predictions, rows: Tensor, x_t: Tensor, t: Tensor, omega: Tensor | None = None) -> Pair:
        """Both predictions at x_t (M, N, C), t (M,), which belong to `rows`, in one batched evaluation.

        A student's are its own u(x_t, t, t), or its velocity head's; its scale is `omega` with the conditions and 1
        without.
        """
        conditions = self.conditions_of(rows)
        both = Conditions.cat([conditions, conditions.unconditional()])
        x_t, t = torch.cat([x_t, x_t]), torch.cat([t, t])
        if of == "teacher":
            v = teacher_velocity(self.teacher, x_t, t, self.teacher.encode_conditions(both, self.frames))
        else:
            shown = 1.0 if omega is None else torch.cat([omega, torch.ones_like(omega)])
            encoded = self.student.encode_conditions(both, self.frames)
            u, of_head = student_prediction(self.student, x_t, t, t, encoded, shown)
            v = u if of_head is None else of_head
        return Pair(*v.chunk(2))

    def teaching(self, guidance: Guidance, observe: Callable[[Guided], None] | None = None) -> VelocityOnRows:
        """The teacher's velocity on the conditions of some rows, guided by the rule of sampling."""

        def predict(x: Tensor, r: Tensor, t: Tensor, encoded: Encoded) -> Tensor:
            return teacher_velocity(self.teacher, x, t, encoded)

        def of(rows: Tensor | None) -> Velocity:
            with torch.no_grad():
                guide = Guide.of(self.teacher, self.conditions_of(rows), self.frames, guidance, observe)
            return torch.no_grad()(lambda x_t, t: guide(predict, x_t, t, t))

        return of

    def teaching_scaled(self, omega: Tensor, interval: tuple[float, float]) -> VelocityOnRows:
        """v_uncond + omega (v_cond - v_uncond) of the teacher, with one omega (B,) per row, inside the interval."""

        def of(rows: Tensor | None) -> Velocity:
            index = torch.arange(len(omega), device=omega.device) if rows is None else rows
            scale = omega[index][:, None, None]

            def v_fn(x_t: Tensor, t: Tensor) -> Tensor:
                v_cond, v_uncond = self.pair("teacher", index, x_t, t)
                guided = inside(t, interval)[:, None, None]
                return torch.where(guided, v_uncond + scale.to(v_cond.dtype) * (v_cond - v_uncond), v_cond)

            return torch.no_grad()(v_fn)

        return of


class VelocitySourceLike(Protocol):
    """The interface of every source: what it declares, and the velocity that it returns."""

    guidance_input: ClassVar[bool]
    """Whether the student embeds the guidance scale as an input."""

    @property
    def asks_student(self) -> bool:
        """Whether the target depends on the student's own u(x_t, t, t), which must then be learnt."""

    @property
    def reference_guidance(self) -> Guidance:
        """The guidance with which the teacher samples the flow that the student learns to average."""

    def unguided(self) -> "VelocitySourceLike":
        """The source without its guidance, for the first part of a training that guides later."""

    def target(self, nets: Networks, state: State) -> Target:
        """The velocity to be averaged at x_t of the state."""

    def teaching(self, nets: Networks, target: Target) -> VelocityOnRows:
        """The teacher's velocity with the guidance of `target`, for objectives that need it at points besides x_t."""


@dataclass(frozen=True, kw_only=True)
class FromData:
    """v = e - x of the data, mixed with predictions with and without conditions where `mixed` asks for it.

    v_g = omega v + kappa v_cond + (1 - omega - kappa) v_uncond (arXiv 2505.13447, eq. 19 and appendix B); rows whose
    conditions were all dropped keep v. The scale this amounts to depends on whose predictions they are. The student's
    v_cond is itself on its way to v_g, so that the fixed point has omega / (1 - kappa); the teacher's is not guided, so
    that it has omega + kappa.
    """

    guidance_input: ClassVar[bool] = False

    mixed: MixedGuidance = field(default_factory=MixedGuidance)
    predictions: Predictions = "teacher"
    """The network that predicts v_cond and v_uncond: the teacher, or the student by its u(x_t, t, t) as published."""

    @property
    def scale(self) -> float:
        """The guidance scale of the velocity that is learnt."""
        omega, kappa = self.mixed.omega, self.mixed.kappa
        return omega + kappa if self.predictions == "teacher" else omega / (1 - kappa)

    def target(self, nets: Networks, state: State) -> Target:
        """v_g on the rows that are guided, v = e - x on the others."""
        x_t, t, v = state[:3]
        if self.mixed.omega == 1.0 and self.mixed.kappa == 0.0:
            return Target(v)
        rows = nets.guided_rows(t, self.mixed.interval)
        if len(rows) == 0:
            return Target(v)
        v_cond, v_uncond = nets.pair(self.predictions, rows, x_t[rows], t[rows])
        mixed = self.mixed(v[rows], v_cond.to(v.dtype), v_uncond.to(v.dtype), t[rows])
        return Target(v.index_copy(0, rows, mixed))

    def teaching(self, nets: Networks, target: Target) -> VelocityOnRows:
        """The teacher's velocity with the same scale and interval."""
        return nets.teaching(self.reference_guidance)

    @property
    def asks_student(self) -> bool:
        """Where the predictions are the student's."""
        return self.predictions == "student"

    @property
    def reference_guidance(self) -> Guidance:
        """The scale and the interval of the velocity that is learnt."""
        return Guidance(omega=self.scale, rescale=False, interval=self.mixed.interval)

    def unguided(self) -> "FromData":
        """v = e - x alone."""
        return FromData()


@dataclass(frozen=True, kw_only=True)
class FromTeacher:
    """v = the frozen teacher's guided velocity at x_t: the student averages the flow that the teacher samples."""

    guidance_input: ClassVar[bool] = False
    asks_student: ClassVar[bool] = False

    guidance: Guidance = field(default_factory=Guidance)

    def target(self, nets: Networks, state: State) -> Target:
        """The teacher's velocity in place of v."""
        combined: list[Guided] = []
        made = nets.teaching(self.guidance, combined.append)(None)(state.x_t, state.t)
        return Target(made, guided=combined[0] if combined else None)

    def teaching(self, nets: Networks, target: Target) -> VelocityOnRows:
        """The teacher's velocity with the same guidance, at any point."""
        return nets.teaching(self.guidance)

    @property
    def reference_guidance(self) -> Guidance:
        """The teacher's own."""
        return self.guidance

    def unguided(self) -> "FromTeacher":
        """The teacher's velocity with the conditions."""
        return FromTeacher()


@dataclass(frozen=True, kw_only=True)
class GuidedInput:
    """Guidance as an input of the student: one network for every scale omega in [1, max_omega] (iMF, arXiv 2512.02012).

    Each row draws omega with density ~ omega^-power; the student embeds it as 1 - 1/omega. In `interval`, v = e - x,

        v_g = v + (1 - 1/omega) (v_cond - v_uncond)     predictions of the student at the same omega
        v_g = v + (omega - 1)   (v_cond - v_uncond)     predictions of the teacher

    both of which are v_uncond + omega (v_cond - v_uncond) on average: the student's v_cond is itself guided, so that
    v_g - v_cond = 0 there; the teacher's is not. Rows without conditions keep v and get omega = 1.
    """

    guidance_input: ClassVar[bool] = True

    max_omega: float = 8.0
    """Largest guidance scale; the scales lie in [1, max_omega]."""
    power: float = 1.0
    """Exponent of the density omega^-power of the guidance scales."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Times t at which the velocity is guided."""
    predictions: Predictions = "student"
    """The network that predicts v_cond and v_uncond: the frozen teacher or the student."""

    def __post_init__(self) -> None:
        if not 1.0 < self.max_omega < math.inf:
            raise ValueError(f"max_omega must be above 1 (1 = no guidance) and finite, got {self.max_omega}")
        if not math.isfinite(self.power):
            raise ValueError(f"power must be finite, got {self.power}")
        check_interval(self.interval)

    def draw(self, n: int, *, generator: torch.Generator) -> Tensor:
        """omega (n,) by inversion: omega^(1 - power) is uniform; for power = 1, log omega is."""
        uniform = torch.rand(n, generator=generator, device=generator.device)
        if self.power == 1.0:
            return torch.exp(uniform * math.log(self.max_omega))
        end = self.max_omega ** (1 - self.power)
        return ((1 + uniform * (end - 1)) ** (1 / (1 - self.power))).clamp(1.0, self.max_omega)

    def target(self, nets: Networks, state: State) -> Target:
        """v_g with the omega drawn for each row."""
        x_t, t, v, generator, batch_slice = state
        omega = batch_slice.of(self.draw(batch_slice.total, generator=generator)).to(t.dtype)
        omega = torch.where(nets.conditioned, omega, torch.ones_like(omega))
        rows = nets.guided_rows(t, self.interval)
        if len(rows) == 0:
            return Target(v, omega)
        v_cond, v_uncond = nets.pair(self.predictions, rows, x_t[rows], t[rows], omega[rows])
        factor = (omega[rows] - 1) if self.predictions == "teacher" else (1 - 1 / omega[rows])
        guided = v[rows] + factor[:, None, None].to(v.dtype) * (v_cond - v_uncond).to(v.dtype)
        return Target(v.index_copy(0, rows, guided), omega)

    def teaching(self, nets: Networks, target: Target) -> VelocityOnRows:
        """The teacher's velocity with each row's scale."""
        assert target.omega is not None
        return nets.teaching_scaled(target.omega, self.interval)

    @property
    def asks_student(self) -> bool:
        """Where the predictions are the student's."""
        return self.predictions == "student"

    @property
    def reference_guidance(self) -> Guidance:
        """The median of the drawn scales, with which the student is compared; it learns every one."""
        q = 1 - self.power
        median = math.sqrt(self.max_omega) if q == 0 else ((1 + self.max_omega**q) / 2) ** (1 / q)
        return Guidance(omega=median, rescale=False, interval=self.interval)

    def unguided(self) -> "UnguidedInput":
        """v = e - x, and every row gets omega = 1."""
        return UnguidedInput()


@dataclass(frozen=True)
class UnguidedInput:
    """v = e - x of the data for a student that embeds the guidance scale: every row gets omega = 1."""

    guidance_input: ClassVar[bool] = True
    asks_student: ClassVar[bool] = False
    reference_guidance: ClassVar[Guidance] = Guidance()

    def target(self, nets: Networks, state: State) -> Target:
        """v = e - x."""
        return Target(state.v, torch.ones_like(state.t))

    def teaching(self, nets: Networks, target: Target) -> VelocityOnRows:
        """The teacher's velocity with the conditions."""
        return nets.teaching(Guidance())

    def unguided(self) -> "UnguidedInput":
        """Itself."""
        return self


VelocitySource: TypeAlias = FromData | FromTeacher | GuidedInput
