"""One distillation step: a batch in, a loss per sample and scalars for the log out. Knows nothing of engines."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from distill.config import Distillation, FromData, FromTeacher
from meanflow import AverageVelocity, Field, Velocity, interpolate, velocity
from teacher.conditions import Conditions
from teacher.data.dataset import Batch
from teacher.network import Encoded, MMAudio
from teacher.train import Terms
from teacher.velocity import Guide, student_velocity, teacher_velocity

INTERVALS = (0.0, 0.3, 0.6, 1.0)
"""Edges of the t - r buckets in which the raw error is logged."""


def train_step(
    student: nn.Module,
    plain: MMAudio,
    teacher: MMAudio,
    batch: Batch,
    config: Distillation,
    *,
    generator: torch.Generator,
    progress: float = 1.0,
) -> Terms:
    """Draw noise, times and dropped conditions; form the MeanFlow residual; weigh it.

    `student` is the possibly wrapped network and is called exactly once, with gradients; `plain` is the same network
    without a wrapper, on which the derivative is taken without a graph; `teacher` is frozen.
    """
    x = batch.latents
    e = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    r, t = config.times(len(x), generator=generator)
    x_t = interpolate(x, e, t)
    conditions = config.dropout(batch.conditions, generator=generator)
    v = _velocity(config.velocity, teacher, x, e, x_t, t, conditions)

    residual = config.objective(
        _field(student, plain, teacher, conditions, x.shape[1]), x_t, r, t, v, progress=progress
    )
    return Terms(residual.loss(config.loss), _logs(residual.delta, residual.u, residual.correction, v, r, t))


def _field(student: nn.Module, plain: MMAudio, teacher: MMAudio, conditions: Conditions, frames: int) -> Field:
    """The student on the conditions of a batch, in the forms an objective asks for."""

    def chosen(rows: Tensor | None) -> Conditions:
        return conditions if rows is None else conditions.rows(rows)

    def train(rows: Tensor | None) -> AverageVelocity:
        return lambda x_t, r, t: -student(x_t, 1 - t, chosen(rows), t - r)

    def without_graph(rows: Tensor | None) -> AverageVelocity:
        with torch.no_grad():
            encoded = plain.encode_conditions(chosen(rows), frames)
        return torch.no_grad()(lambda x_t, r, t: student_velocity(plain, x_t, r, t, encoded))

    def teaching(rows: Tensor | None) -> Velocity:
        with torch.no_grad():
            encoded = teacher.encode_conditions(chosen(rows), frames)
        return torch.no_grad()(lambda x_t, t: teacher_velocity(teacher, x_t, t, encoded))

    return Field(train=train, plain=without_graph, teacher=teaching)


@torch.no_grad()
def _velocity(
    source: FromData | FromTeacher,
    teacher: MMAudio,
    x: Tensor,
    e: Tensor,
    x_t: Tensor,
    t: Tensor,
    conditions: Conditions,
) -> Tensor:
    """The velocity to be averaged; rows without any condition are never guided."""

    def v_fn(x: Tensor, r: Tensor, t: Tensor, encoded: Encoded) -> Tensor:
        return teacher_velocity(teacher, x, t, encoded)

    if isinstance(source, FromTeacher):
        return Guide.of(teacher, conditions, x.shape[1], source.guidance)(v_fn, x_t, t, t)
    v = velocity(x, e)
    if source.mixed.omega == 1.0 and source.mixed.kappa == 0.0:
        return v
    v_cond, v_uncond = (
        teacher_velocity(teacher, x_t, t, teacher.encode_conditions(c, x.shape[1]))
        for c in (conditions, conditions.unconditional())
    )
    free = ~(conditions.has_clip | conditions.has_sync | conditions.has_text)
    return torch.where(free[:, None, None], v, source.mixed(v, v_cond, v_uncond, t))


@torch.no_grad()
def _logs(delta: Tensor, u: Tensor, correction: Tensor, v: Tensor, r: Tensor, t: Tensor) -> dict[str, Tensor]:
    error = delta.detach().float().pow(2).flatten(1).mean(1)
    moving = r < t
    logs = {
        "error": error.mean(),
        "error/instantaneous": _mean(error, ~moving),
        "norm/u": u.float().pow(2).mean().sqrt(),
        "norm/v": v.float().pow(2).mean().sqrt(),
        "norm/correction": _mean(correction.float().pow(2).flatten(1).mean(1).sqrt(), moving),
    }
    for low, high in pairwise(INTERVALS):
        logs[f"error/{low}-{high}"] = _mean(error, moving & (t - r > low) & (t - r <= high))
    return logs


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the rows of a mask, nan where it is empty (the tracker drops those)."""
    return torch.where(mask, values, 0.0).sum() / mask.sum()
