"""Flow-matching training of the teacher (arXiv 2412.15322, section 3.1): configuration and one step."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from meanflow.path import interpolate, velocity
from meanflow.shapes import PerSample
from meanflow.time_sampling import Density, LogitNormal
from teacher.conditions import Conditions
from teacher.data.dataset import Batch
from teacher.variants import MMAudioConfig, variant


class Terms(NamedTuple):
    """What a training step returns: one loss per sample (with a graph) and scalars for the log."""

    loss: PerSample
    logs: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class ConditionDropout:
    """Which conditions a training row keeps.

    text_only is the share of audio-video-text rows shown as audio-text rows (joint training on one set); of the rest,
    video (image and sync together) and text are dropped independently, which trains the unconditional branch of
    guidance.
    """

    video: float = 0.1
    text: float = 0.1
    text_only: float = 0.0

    def __post_init__(self) -> None:
        for name in ("video", "text", "text_only"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"dropout {name} must lie in [0, 1), got {getattr(self, name)}")

    def __call__(self, conditions: Conditions, *, generator: torch.Generator) -> Conditions:
        """The conditions with some modalities marked absent; the input is not modified."""
        draw = torch.rand(3, len(conditions), generator=generator, device=generator.device)
        video = (draw[0] < self.video) | (draw[2] < self.text_only)
        return conditions.drop(video=video, text=draw[1] < self.text)


@dataclass(frozen=True, kw_only=True)
class FlowMatching:
    """How the teacher is trained: network size, time density, condition dropout."""

    network: MMAudioConfig = field(default_factory=lambda: variant("small_16k"))
    times: Density = field(default_factory=lambda: LogitNormal(mean=0.0))
    """MMAudio's density: logit-normal with mean 0 and scale 1, the same in either clock."""
    dropout: ConditionDropout = field(default_factory=ConditionDropout)
    init: Literal["published", "unit"] = "published"
    """Starting weights: as MMAudio's, or with signals of unit size throughout, which learns far sooner when small."""


def flow_matching_step(net: nn.Module, batch: Batch, config: FlowMatching, *, generator: torch.Generator) -> Terms:
    """Mean over frames and channels of ||v_net(x_t, t) - (e - x)||^2, one value per sample (B,).

    `net` may be wrapped by a data-parallel engine: it is called once, on MMAudio's clock.
    """
    x = batch.latents
    e = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    t = config.times(len(x), generator=generator)
    conditions = config.dropout(batch.conditions, generator=generator)
    v = -net(interpolate(x, e, t), 1 - t, conditions)
    loss = (v - velocity(x, e)).float().pow(2).flatten(1).mean(1)
    return Terms(loss, {"loss": loss.detach().mean()})
