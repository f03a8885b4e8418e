"""One distillation step: a batch in, a loss per sample and scalars for the log out. Knows nothing of engines."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.method.config import Method
from distill.method.velocity_source import Networks, Rows, Target, Teaching, Unguided
from meanflow import AverageVelocity, Field, Headed, Residual, interpolate, velocity
from meanflow.loss import squared_error
from meanflow.time_sampling import MixedTimes
from teacher.flow_matching import Terms, noise_of
from teacher.network.batch import Batch, BatchSlice
from teacher.network.mmaudio import MMAudio
from teacher.network.velocity import student_headed, student_velocity

INTERVALS = (0.0, 0.3, 0.6, 1.0)
"""Edges of the t - r buckets in which the raw error is logged."""


def train_step(
    student: nn.Module,
    plain: MMAudio,
    teacher: MMAudio,
    batch: Batch,
    config: Method,
    *,
    generator: torch.Generator,
    progress: float = 1.0,
    batch_slice: BatchSlice | None = None,
) -> Terms:
    """Draw noise, times and dropped conditions; form the objective's residual; weigh it.

    `student` is the possibly wrapped network and is called exactly once, with gradients; `plain` is the same network
    without a wrapper, on which derivatives and targets are taken without a graph; `teacher` is frozen. `progress` in
    [0, 1] is the share of training that is done, for schedules of the objective, of the times and of the guidance.
    `batch_slice` says which rows of a larger batch these are.
    """
    x = batch.latents
    batch_slice = batch_slice or BatchSlice.whole(len(x))
    e = noise_of(batch_slice, x, generator=generator)
    r, t = _times(config, batch_slice, progress, generator, torch.promote_types(x.dtype, torch.float32))
    x_t = interpolate(x, e, t)
    conditions = config.dropout(batch.conditions, generator=generator, batch_slice=batch_slice)
    nets = Networks(teacher, plain, conditions, x.shape[1])
    source = config.velocity if progress >= config.guided_from else Unguided(config.velocity)
    target = source.target(nets, x_t, t, velocity(x, e), generator=generator, batch_slice=batch_slice)

    field = _field(student, nets, target, source.teaching(nets, target))
    residual = config.objective(field, x_t, r, t, target.v, progress=progress)
    loss = residual.loss(config.loss)
    return Terms(loss, {"loss": loss.detach()} | _logs(residual, target, r, t))


def _times(
    config: Method, batch_slice: BatchSlice, progress: float, generator: torch.Generator, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(r, t) of a slice's rows. Rows with r < t, which cost a derivative, are spread evenly over the whole batch, so
    that every process has as many, to within one; which data meet them stays random. A prefix, which is there to meet
    dropped conditions, stays where it is."""
    r, t = (time.to(dtype) for time in config.times(batch_slice.total, generator=generator, progress=progress))
    if not (isinstance(config.times, MixedTimes) and config.times.assign == "prefix"):
        order = evenly(r < t)
        r, t = r[order], t[order]
    return batch_slice.of(r), batch_slice.of(t)


def evenly(marked: Tensor) -> Tensor:
    """A permutation (n,) after which the k marked rows stand as evenly as they can: position p holds one exactly where
    floor((p + 1) k / n) > floor(p k / n), so that m positions in a row hold between floor(m k / n) and one more."""
    n, k = len(marked), int(marked.sum())
    steps = torch.arange(n + 1, device=marked.device) * k // n
    order = torch.empty(n, dtype=torch.int64, device=marked.device)
    here = steps[1:] > steps[:-1]
    order[here], order[~here] = torch.nonzero(marked).squeeze(1), torch.nonzero(~marked).squeeze(1)
    return order


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
def _logs(residual: Residual, target: Target, r: Tensor, t: Tensor) -> dict[str, Tensor]:
    """Per row: raw errors by length of the interval, root mean squares of u, v, the correction (t - r) du/dt and du/dt,
    the cosine between u and what it is pulled towards, and what rescaled guidance did."""
    error, moving = squared_error(residual.delta, "mean"), r < t
    correction = squared_error(residual.correction, "mean").sqrt()
    wanted = residual.u - residual.delta
    logs = {
        "error": error,
        "error/instantaneous": _where(~moving, error),
        "norm/u": squared_error(residual.u, "mean").sqrt(),
        "norm/v": squared_error(target.v, "mean").sqrt(),
        "norm/correction": _where(moving, correction),
        "norm/dudt": _where(moving, correction / (t - r)),
        "cosine/target": F.cosine_similarity(residual.u.flatten(1).float(), wanted.flatten(1).float(), dim=1),
    }
    if residual.extra is not None:
        logs["error/extra"] = squared_error(residual.extra, "mean")
    if target.guided is not None:
        for name, value in (("s_star", target.guided.s_star), ("clamped", target.guided.clamped)):
            logs[f"guidance/{name}"] = value.float().reshape(len(value), -1).mean(1)
    for low, high in pairwise(INTERVALS):
        logs[f"error/{low}-{high}"] = _where(moving & (t - r > low) & (t - r <= high), error)
    return logs


def _where(mask: Tensor, values: Tensor) -> Tensor:
    """The values in the rows of a mask, nan elsewhere."""
    return torch.where(mask, values, torch.nan)
