"""The teacher that a student is held against while it trains, and how near the student's latents come to its own."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.velocity_source import FromData, FromTeacher, VelocitySource
from meanflow import Guidance
from teacher.network import MMAudio


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A frozen teacher on the engine's device, guided as the student's targets were."""

    net: MMAudio
    digest: str
    """Of its weights: latents kept of another teacher are not used."""
    guidance: Guidance


def reference_guidance(source: VelocitySource) -> Guidance:
    """The guidance with which the teacher samples the flow that a student learns to average.

    A student that takes the scale as an input learns many; it is shown, and held against, the median of those drawn.
    """
    if isinstance(source, FromTeacher):
        return source.guidance
    if isinstance(source, FromData):
        return Guidance(omega=source.scale, rescale=False, interval=source.mixed.interval)
    q = 1 - source.power
    median = math.sqrt(source.max_omega) if q == 0 else ((1 + source.max_omega**q) / 2) ** (1 / q)
    return Guidance(omega=median, rescale=False, interval=source.interval)


def agreement(made: Tensor, reference: Tensor) -> dict[str, float]:
    """Of latents m (B, N, C) with reference latents x, in float64: norms over frames and channels, means over clips.

    latent_error = ||m - x||^2 / ||x||^2, latent_cosine = <m, x> / (||m|| ||x||), energy_ratio = ||m||^2 / ||x||^2.
    """
    m, x = made.double().flatten(1), reference.double().flatten(1)
    tiny = torch.finfo(torch.float64).tiny
    energy = x.square().sum(1).clamp_min(tiny)
    norms = (m.norm(dim=1) * x.norm(dim=1)).clamp_min(tiny)
    return {
        "latent_error": float(((m - x).square().sum(1) / energy).mean()),
        "latent_cosine": float(((m * x).sum(1) / norms).mean()),
        "energy_ratio": float((m.square().sum(1) / energy).mean()),
    }
