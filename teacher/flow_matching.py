"""Flow-matching training of the teacher (arXiv 2412.15322, section 3.1): configuration and one step."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from meanflow.path import interpolate, velocity
from meanflow.shapes import PerSample
from meanflow.time_sampling import Density, LogitNormal
from teacher.network.batch import Batch, BatchSlice
from teacher.network.conditions import Conditions
from teacher.network.velocity import forward_velocity


class Terms(NamedTuple):
    """Result of a training step: one loss per sample (with a graph), and values per sample for the log."""

    loss: PerSample
    logs: dict[str, Tensor]
    """Values (B,) by name, nan in rows to which a value does not apply; their means are logged."""


@dataclass(frozen=True, kw_only=True)
class ConditionDropout:
    """Random dropout of conditions during training.

    text_only is the fraction of audio-video-text rows that are used as audio-text rows (joint training on one set). In
    the others video (image and sync) and text are dropped independently, which trains the unconditional branch of
    guidance.
    """

    video: float = 0.1
    text: float = 0.1
    text_only: float = 0.0
    joint_video: bool = True
    """Image and sync are dropped together, as in the first published networks. Otherwise each on its own with
    probability `video`, as in the second version, which then also knows sync without pictures and the reverse."""

    def __post_init__(self) -> None:
        for name in ("video", "text", "text_only"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"dropout {name} must lie in [0, 1), got {getattr(self, name)}")

    def __call__(
        self, conditions: Conditions, *, generator: torch.Generator, batch_slice: BatchSlice | None = None
    ) -> Conditions:
        """The conditions with some modalities marked absent; the input is not modified.

        The random numbers are drawn for the whole batch, of which `batch_slice` describes these rows.
        """
        batch_slice = batch_slice or BatchSlice.whole(len(conditions))
        kinds = 3 if self.joint_video else 4
        draw = batch_slice.of(torch.rand(kinds, batch_slice.total, generator=generator, device=generator.device), dim=1)
        no_video = draw[2] < self.text_only
        clip = no_video | (draw[0] < self.video)
        sync = no_video | (draw[0 if self.joint_video else 3] < self.video)
        return replace(
            conditions,
            has_clip=conditions.has_clip & ~clip,
            has_sync=conditions.has_sync & ~sync,
            has_text=conditions.has_text & ~(draw[1] < self.text),
        )


@dataclass(frozen=True, kw_only=True)
class FlowMatching:
    """Configuration of flow-matching training: density of the times, dropout of conditions."""

    times: Density = field(default_factory=lambda: LogitNormal(mean=0.0))
    """MMAudio's density: logit-normal with mean 0 and scale 1, the same in either clock."""
    dropout: ConditionDropout = field(default_factory=ConditionDropout)


def flow_matching_step(
    net: nn.Module,
    batch: Batch,
    config: FlowMatching,
    *,
    generator: torch.Generator,
    batch_slice: BatchSlice | None = None,
) -> Terms:
    """Mean over frames and channels of ||v_net(x_t, t) - (e - x)||^2, one value per sample (B,).

    `net` may be wrapped by a data-parallel engine: it is called once. `batch_slice` describes which rows of a larger
    batch these are.
    """
    x = batch.latents
    batch_slice = batch_slice or BatchSlice.whole(len(x))
    e = noise_of(batch_slice, x, generator=generator)
    t = batch_slice.of(config.times(batch_slice.total, generator=generator))
    conditions = config.dropout(batch.conditions, generator=generator, batch_slice=batch_slice)
    v = forward_velocity(net, interpolate(x, e, t), t, conditions)
    loss = (v - velocity(x, e)).float().pow(2).flatten(1).mean(1)
    return Terms(loss, {"loss": loss.detach()})


def noise_of(batch_slice: BatchSlice, x: Tensor, *, generator: torch.Generator) -> Tensor:
    """Gaussian noise for the rows `x` of a batch slice, taken from the noise drawn for the whole batch."""
    shape = (batch_slice.total, *x.shape[1:])
    return batch_slice.of(torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype))
