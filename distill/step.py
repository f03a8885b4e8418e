"""One distillation step: a batch in, a loss per sample and scalars for the log out. Knows nothing of engines."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from distill.config import Distillation
from distill.velocity_source import Networks, Rows, Target, Teaching
from meanflow import AverageVelocity, Field, Headed, Residual, interpolate, velocity
from meanflow.loss import squared_error
from teacher.data.dataset import Batch
from teacher.network import MMAudio
from teacher.train import Terms
from teacher.velocity import student_headed, student_velocity

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
    """Draw noise, times and dropped conditions; form the objective's residual; weigh it.

    `student` is the possibly wrapped network and is called exactly once, with gradients; `plain` is the same network
    without a wrapper, on which derivatives and targets are taken without a graph; `teacher` is frozen. `progress` in
    [0, 1] is the share of training that is done, for schedules of the objective and of the times.
    """
    x = batch.latents
    e = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    wide = torch.promote_types(x.dtype, torch.float32)
    r, t = (time.to(wide) for time in config.times(len(x), generator=generator, progress=progress))
    x_t = interpolate(x, e, t)
    conditions = config.dropout(batch.conditions, generator=generator)
    nets = Networks(teacher, plain, conditions, x.shape[1])
    target = config.velocity.target(nets, x_t, t, velocity(x, e), generator=generator)

    field = _field(student, nets, target, config.velocity.teaching(nets, target))
    residual = config.objective(field, x_t, r, t, target.v, progress=progress)
    return Terms(residual.loss(config.loss), _logs(residual, target.v, r, t))


def _field(student: nn.Module, nets: Networks, target: Target, teaching: Teaching) -> Field:
    """The student on the conditions of a batch, in the forms an objective asks for."""
    plain, omega = nets.student, target.omega

    def shown(rows: Rows) -> tuple[Tensor, ...]:
        return () if omega is None else (omega if rows is None else omega[rows],)

    def train(rows: Rows) -> AverageVelocity:
        def u_fn(x_t: Tensor, r: Tensor, t: Tensor) -> Any:
            # Casts of the weights that a pass without a graph left in autocast's cache carry none; torch before 2.13
            # would use them here, and the weights would get no gradient.
            torch.clear_autocast_cache()
            out = student(x_t, 1 - t, nets.chosen(rows), t - r, *shown(rows))
            return Headed(-out[0], -out[1]) if isinstance(out, tuple) else -out

        return u_fn

    def without_graph(rows: Rows) -> AverageVelocity:
        with torch.no_grad():
            encoded = plain.encode_conditions(nets.chosen(rows), nets.frames)
        predict: Callable[..., Any] = student_headed if plain.config.velocity_head else student_velocity
        return torch.no_grad()(lambda x_t, r, t: predict(plain, x_t, r, t, encoded, *shown(rows)))

    return Field(train=train, plain=without_graph, teacher=teaching)


@torch.no_grad()
def _logs(residual: Residual, v: Tensor, r: Tensor, t: Tensor) -> dict[str, Tensor]:
    error, moving = squared_error(residual.delta, "mean"), r < t
    logs = {
        "error": error.mean(),
        "error/instantaneous": _mean(error, ~moving),
        "norm/u": residual.u.float().pow(2).mean().sqrt(),
        "norm/v": v.float().pow(2).mean().sqrt(),
        "norm/correction": _mean(squared_error(residual.correction, "mean").sqrt(), moving),
    }
    if residual.extra is not None:
        logs["error/extra"] = squared_error(residual.extra, "mean").mean()
    for low, high in pairwise(INTERVALS):
        logs[f"error/{low}-{high}"] = _mean(error, moving & (t - r > low) & (t - r <= high))
    return logs


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the rows of a mask, nan where it is empty (the tracker drops those)."""
    return torch.where(mask, values, 0.0).sum() / mask.sum()
