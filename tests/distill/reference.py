"""A tiny student, batches for it and plain single-process training, which engines are held against."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from distill.config import OptimConfig
from distill.engines.optim import adamw, named_moments, restore_moments, set_learning_rate
from meanflow import AdaptiveL2, MeanFlow, StudentCalls
from meanflow.shapes import Predict, u_only
from teacher.network.conditions import Conditions
from teacher.network.mmaudio import MMAudio
from teacher.network.velocity import student_velocity
from tests.distill import tiny

NETWORK = replace(tiny.NETWORK, interval_embedding=True, latent_channels=21, mlp_multiple_of=15)
"""Odd widths, which divide over no even number of processes; some of its parameters have a single row."""
FRAMES = 10
OPTIM = OptimConfig(lr=1e-3, weight_decay=1.0, reference_fan_in=64)
UNCLIPPED = 1e9
LOSS = AdaptiveL2(p=0.5)


def network(seed: int = 0) -> MMAudio:
    """A student with all weights off zero, so that every parameter has a gradient."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MMAudio(NETWORK)
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    return net


@dataclass(frozen=True, kw_only=True)
class Sounds:
    """What a step sees of a batch, noise and times drawn already."""

    x_t: Tensor
    r: Tensor
    t: Tensor
    v: Tensor
    conditions: Conditions

    def __len__(self) -> int:
        return len(self.x_t)

    def rows(self, index: slice) -> Self:
        x_t, r, t, v = (part[index] for part in (self.x_t, self.r, self.t, self.v))
        return type(self)(x_t=x_t, r=r, t=t, v=v, conditions=self.conditions.rows(index))

    def pieces(self, count: int) -> list[Self]:
        """Equal parts in order."""
        size = len(self) // count
        return [self.rows(slice(k * size, (k + 1) * size)) for k in range(count)]


def sounds(seed: int, count: int = 4) -> Sounds:
    """Every modality present in some rows and absent in others; r = t in every second row."""
    g = torch.Generator().manual_seed(seed)
    t = torch.rand(count, generator=g) * 0.9 + 0.1
    r = torch.where(torch.arange(count) % 2 == 0, t * torch.rand(count, generator=g), t)

    def features(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=g) * 0.3

    conditions = Conditions(
        clip=features(4, NETWORK.clip_dim),
        sync=features(8, NETWORK.sync_dim),
        text=features(NETWORK.text_tokens, NETWORK.text_dim),
        has_clip=torch.arange(count) % 2 == 0,
        has_sync=torch.arange(count) % 2 == 1,
        has_text=torch.arange(count) % 3 > 0,
    )
    shape = (count, FRAMES, NETWORK.latent_channels)
    x_t, v = (torch.randn(shape, generator=g) for _ in range(2))
    return Sounds(x_t=x_t, r=r, t=t, v=v, conditions=conditions)


def loss(model: nn.Module, plain: MMAudio, batch: Sounds) -> Tensor:
    """MeanFlow's mean loss: the derivative without a graph on `plain`, then one forward through `model`."""

    def train(rows: Tensor | None) -> Predict:
        return u_only(lambda x_t, r, t: -model(x_t, 1 - t, _chosen(batch, rows), t - r))

    def without_graph(rows: Tensor | None) -> Predict:
        with torch.no_grad():
            encoded = plain.encode_conditions(_chosen(batch, rows), FRAMES)
        return u_only(torch.no_grad()(lambda x_t, r, t: student_velocity(plain, x_t, r, t, encoded)))

    residual = MeanFlow()(StudentCalls(train=train, plain=without_graph), batch.x_t, batch.r, batch.t, batch.v)
    return residual.loss(LOSS).mean()


def _chosen(batch: Sounds, rows: Tensor | None) -> Conditions:
    return batch.conditions if rows is None else batch.conditions.rows(rows)


class Reference:
    """Plain PyTorch on the whole batch: what every engine must compute."""

    def __init__(self, net: MMAudio, optim: OptimConfig = OPTIM) -> None:
        self.net, self.optimizer = net, adamw(net, optim)

    def gradient(self, batch: Sounds) -> tuple[float, dict[str, Tensor]]:
        """The loss and its gradient by parameter, before clipping."""
        self.optimizer.zero_grad()
        value = loss(self.net, self.net, batch)
        value.backward()
        grads = {n: p.grad.clone() for n, p in self.net.named_parameters() if p.grad is not None}
        return float(value.detach()), grads

    def step(self, batch: Sounds, *, lr: float = OPTIM.lr, clip_norm: float = UNCLIPPED) -> float:
        """One step; the loss before it."""
        value, _ = self.gradient(batch)
        torch.nn.utils.clip_grad_norm_([p for p in self.net.parameters() if p.requires_grad], clip_norm)
        set_learning_rate(self.optimizer, lr)
        self.optimizer.step()
        return value

    def moments(self) -> dict[str, Tensor]:
        return named_moments(self.net, self.optimizer)

    def load_moments(self, moments: dict[str, Tensor]) -> None:
        restore_moments(self.net, self.optimizer, moments)
