"""The method of a distillation (`Method`), and its step from a batch to a loss per sample and scalars for the log.

Nothing here depends on the engine.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.method.velocity_source import FromData, Networks, State, Target, VelocitySource, VelocitySourceLike
from meanflow import (
    AdaptiveL2,
    Loss,
    MeanFlow,
    Objective,
    Prediction,
    Residual,
    StudentCalls,
    TimePairs,
    interpolate,
    velocity,
)
from meanflow.loss import squared_error
from meanflow.shapes import OnRows, Predict, VelocityOnRows
from meanflow.time_sampling import Times
from teacher.flow_matching import ConditionDropout, Terms, noise_of
from teacher.network.batch import Batch, BatchSlice
from teacher.network.mmaudio import MMAudio
from teacher.network.velocity import forward_prediction, student_prediction


@dataclass(frozen=True, kw_only=True)
class Method:
    """How the student is trained from the teacher."""

    objective: Objective = field(default_factory=MeanFlow)
    loss: Loss = field(default_factory=AdaptiveL2)
    times: Times = field(default_factory=TimePairs)
    velocity: VelocitySource = field(default_factory=FromData)
    velocity_head: int = 0
    """Number of fused blocks of the student's velocity head, which some objectives train; 0 = no head."""
    time_embedding: Literal["auto", "teacher", "smooth"] = "auto"
    """The student's embeddings of t and t - r. teacher: as the teacher's; smooth: without frequencies above 100 rad per
    unit, fitted to the teacher's (which changes the student's start; train it at r = t first); auto: smooth where the
    teacher's are faster, which is in MMAudio v2, and the teacher's otherwise."""
    guided_from: float = 0.0
    """Fraction of training before which targets are not guided, for a warm start; 0 = guided from the first step, 1 =
    never guided."""
    dropout: ConditionDropout = field(default_factory=ConditionDropout)

    def __post_init__(self) -> None:
        if not 0.0 <= self.guided_from <= 1.0:
            raise ValueError(f"guided_from must lie in [0, 1], got {self.guided_from}")
        if self.time_embedding not in ("auto", "teacher", "smooth"):
            raise ValueError(f"time_embedding must be one of auto, teacher, smooth, got {self.time_embedding!r}")
        needs, name = self.objective.needs, type(self.objective).__name__
        if self.velocity_head < 0 or needs.head != (self.velocity_head > 0):
            raise ValueError(
                "velocity_head must be above 0 with an objective that trains a head, such as "
                f"ImprovedMeanFlow(head=True), and 0 with any other; got {self.velocity_head} with {name}"
            )
        if self.velocity.asks_student and not needs.learns_boundary:
            raise ValueError(
                f"velocity.predictions must be teacher with {name}, which never trains the student's u(x_t, t, t), "
                "got student"
            )


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
    averaged: MMAudio | None = None,
) -> Terms:
    """Draw noise, times and dropped conditions; compute the objective's residual and its weighted loss per sample.

    `student` is the possibly wrapped network and is called exactly once, with gradients; `plain` is the same network
    without a wrapper, on which derivatives and targets are taken without a graph; `teacher` is frozen. `progress` in
    [0, 1] is the fraction of training that is done, for schedules of the objective, of the times and of the guidance.
    `batch_slice` states which rows of a larger batch these are. `averaged` is the student with averaged weights, for
    objectives that declare that they need them (`Needs.averaged`).
    """
    x = batch.latents
    batch_slice = batch_slice or BatchSlice.whole(len(x))
    e = noise_of(batch_slice, x, generator=generator)
    r, t = _times(config, batch_slice, progress, generator, torch.promote_types(x.dtype, torch.float32))
    x_t = interpolate(x, e, t)
    conditions = config.dropout(batch.conditions, generator=generator, batch_slice=batch_slice)
    nets = Networks(teacher, plain, conditions, x.shape[1], averaged)
    source: VelocitySourceLike = config.velocity if progress >= config.guided_from else config.velocity.unguided()
    target = source.target(nets, State(x_t, t, velocity(x, e), generator, batch_slice))

    calls = _calls(student, nets, target, source.teaching(nets, target))
    residual = config.objective(calls, x_t, r, t, target.v, progress=progress)
    loss = residual.loss(config.loss)
    return Terms(loss, {"loss": loss.detach()} | _logs(residual, target, r, t))


def _times(
    config: Method, batch_slice: BatchSlice, progress: float, generator: torch.Generator, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(r, t) of a slice's rows. Rows with r < t, which cost a derivative, are spread evenly over the whole batch, so
    that every process has as many, to within one; which data meet them stays random. A prefix, which is there to meet
    dropped conditions, stays where it is."""
    r, t = (time.to(dtype) for time in config.times(batch_slice.total, generator=generator, progress=progress))
    if not config.times.fixed_order:
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


def _calls(student: nn.Module, nets: Networks, target: Target, teaching: VelocityOnRows) -> StudentCalls:
    """The student on the conditions of a batch, in the ways in which an objective may call it."""

    def omega(rows: Tensor | None) -> Tensor | None:
        return target.omega if rows is None or target.omega is None else target.omega[rows]

    def train(rows: Tensor | None) -> Predict:
        def predict(x_t: Tensor, r: Tensor, t: Tensor) -> Prediction:
            # Casts of the weights that a pass without a graph left in autocast's cache carry none; torch before 2.13
            # would use them here, and the weights would get no gradient.
            torch.clear_autocast_cache()
            return forward_prediction(student, x_t, r, t, nets.conditions_of(rows), omega(rows))

        return predict

    def without_graph(net: MMAudio) -> OnRows:
        def on_rows(rows: Tensor | None) -> Predict:
            with torch.no_grad():
                encoded = net.encode_conditions(nets.conditions_of(rows), nets.frames)
            scale = omega(rows)
            shown = 1.0 if scale is None else scale
            return torch.no_grad()(lambda x_t, r, t: student_prediction(net, x_t, r, t, encoded, shown))

        return on_rows

    return StudentCalls(
        train=train,
        plain=without_graph(nets.student),
        averaged=None if nets.averaged is None else without_graph(nets.averaged),
        teacher=teaching,
    )


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
