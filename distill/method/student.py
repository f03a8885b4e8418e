"""The student: the teacher's network with a second time input r, initialised with the teacher's weights."""

from dataclasses import fields, replace
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from meanflow import Objective
from meanflow.path import interpolate
from teacher.network.conditions import Conditions
from teacher.network.embeddings import SMOOTH_LIMIT, compare_embeddings, fit_smooth
from teacher.network.mmaudio import MMAudio
from teacher.network.variants import MMAudioConfig
from teacher.network.velocity import student_velocity, teacher_velocity

NEW_PARAMETERS = ("interval_embed.", "guidance_embed.", "velocity_blocks.", "velocity_layer.")
"""Beginnings of the names of parameters that a student has and its teacher lacks."""
REFITTED_PARAMETERS = ("t_embed.",)
"""Beginnings of the names of parameters fitted anew where the teacher's time embedding is too fast to differentiate."""

TimeEmbedding: TypeAlias = Literal["auto", "teacher", "smooth"]


def student_config(
    teacher: MMAudioConfig,
    *,
    guidance_embedding: bool = False,
    velocity_head: int = 0,
    time_embedding: TimeEmbedding = "auto",
) -> MMAudioConfig:
    """The architecture of a teacher's student.

    A smooth time embedding has no frequency above 100 rad per unit of time; auto is smooth where the teacher's has some
    (v2) and the teacher's otherwise. Raises ValueError if the teacher already has a second time.
    """
    if teacher.interval_embedding:
        raise ValueError("the teacher already has an interval embedding; a student starts from a flow-matching network")
    config = replace(
        teacher, interval_embedding=True, guidance_embedding=guidance_embedding, velocity_head=velocity_head
    )
    if teacher.version == "v2" and time_embedding != "teacher":
        return replace(config, time_frequencies="smooth", time_precision="float32")
    return config


def refitted(student: MMAudioConfig, teacher: MMAudioConfig) -> bool:
    """Whether the student's embedding of t differs from the teacher's and is fitted to it."""
    return student.time_frequencies != teacher.time_frequencies


def in_full(student: MMAudioConfig, teacher: MMAudioConfig) -> tuple[str, ...]:
    """Beginnings of the names of parameters that a student does not take from its teacher; they are always trained."""
    return NEW_PARAMETERS + (REFITTED_PARAMETERS if refitted(student, teacher) else ())


def student_from_teacher(
    teacher: MMAudio,
    *,
    seed: int = 0,
    guidance_embedding: bool = False,
    velocity_head: int = 0,
    time_embedding: TimeEmbedding = "auto",
) -> MMAudio:
    """A network u(x_t, r, t) that starts as the teacher's velocity: u(x_t, r, t) = v(x_t, t) for every r and omega.

    The last layers of the interval's and the guidance scale's embeddings start at zero, so they add nothing until
    trained. A velocity head of `velocity_head` fused blocks starts as a copy of the teacher's last ones and of its
    final layer, and so at v(x_t, t) too. The embedding of t is the teacher's, or a smooth one fitted to it, with which
    u is v only nearly (see `time_fit`). Raises ValueError if the teacher already has a second time.
    """
    config = student_config(
        teacher.config,
        guidance_embedding=guidance_embedding,
        velocity_head=velocity_head,
        time_embedding=time_embedding,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = MMAudio(config).to(teacher.latent_mean.dtype)
    taken, new = teacher.state_dict(), in_full(config, teacher.config)
    if refitted(config, teacher.config):
        taken = {name: tensor for name, tensor in taken.items() if not name.startswith(REFITTED_PARAMETERS)}
        fit_smooth(student.t_embed, teacher.t_embed)
    missing, unexpected = student.load_state_dict(taken, strict=False)
    if unexpected or any(not name.startswith(new) for name in missing):
        raise ValueError(f"the teacher's weights do not fit a student: missing {missing}, unexpected {unexpected}")
    if velocity_head:
        last = list(teacher.fused_blocks)[-velocity_head:]
        for branch, block in zip(student.velocity_blocks, last, strict=True):
            branch.load_state_dict(block.state_dict())
        student.velocity_layer.load_state_dict(teacher.final_layer.state_dict())
    return student


class TimeFit(NamedTuple):
    """Errors of a smooth time embedding, each relative to the root mean square of the exact value."""

    embedding: float
    """Difference of the embeddings of t."""
    variation: float
    """Difference of the embeddings relative to the part of the teacher's that varies with t; 1 = a constant's."""
    velocity: float
    """Difference of u(x_t, t, t) from the teacher's v(x_t, t)."""


@torch.no_grad()
def time_fit(student: MMAudio, teacher: MMAudio, x: Tensor, conditions: Conditions, *, seed: int = 0) -> TimeFit:
    """How far a student is from the velocity it starts from, on latents x (B, N, C) with noise at B times in (0, 1)."""
    e = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    t = (torch.arange(len(x), device=x.device, dtype=x.dtype) + 0.5) / len(x)
    x_t = interpolate(x, e, t)
    v = teacher_velocity(teacher, x_t, t, teacher.encode_conditions(conditions, x.shape[1]))
    u = student_velocity(student, x_t, t, t, student.encode_conditions(conditions, x.shape[1]))
    error = ((u - v).square().mean() / v.square().mean()).sqrt().item()
    return TimeFit(*compare_embeddings(student.t_embed, teacher.t_embed), error)


def check_differences(student: MMAudio, objective: Objective) -> None:
    """Raises ValueError where an objective differentiates by differences, for which the time embedding is too fast."""
    fastest = student.t_embed.fastest
    if objective.needs.derivative == "difference" and fastest > SMOOTH_LIMIT:
        raise ValueError(
            f"{type(objective).__name__} takes its derivative by differences, which mean nothing with a time embedding "
            f"of {fastest:,.0f} rad per unit; use method.time_embedding=smooth, or an exact derivative"
        )


def architecture_changes(found: MMAudioConfig, wanted: MMAudioConfig) -> list[str]:
    """Names of the fields in which two networks differ."""
    return [f.name for f in fields(wanted) if getattr(found, f.name) != getattr(wanted, f.name)]
