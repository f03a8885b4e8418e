"""A small network u(x_t, r, t) and its training, step for step as a real trainer does it, averages included."""

import copy
import math
import time
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from meanflow.objectives import StudentCalls
from meanflow.path import interpolate, velocity
from meanflow.shapes import Latent, Prediction, Time
from meanflow.toys.problems import Problem
from meanflow.toys.recipes import FLOW_MATCHING, Recipe

Source: TypeAlias = Literal["data", "exact"]
"""The velocity to be averaged: e - x, or the problem's own v(x_t, t), which stands for a perfect teacher."""


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Size of the network."""

    width: int = 128
    """Width of every layer."""
    depth: int = 3
    """Number of layers between the first and the last."""
    time_width: int = 64
    """Width of the embedding of the two times."""
    frequencies: int = 6
    """Sines and cosines of pi/2, 2 pi/2, ..., k pi/2 rad per unit of time. Low ones: the derivative of u along the
    flow grows with the highest."""

    def __post_init__(self) -> None:
        for name in ("width", "depth", "time_width", "frequencies"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class ToyNetwork(nn.Module):
    """x_t (B, frames, channels), r and t (B,) -> Prediction(u, v), v being None without a velocity head.

    c = silu(E(t) + I(t - r)); every layer is `Modulated` by c. The features of t - r vanish at t = r and I starts at
    zero. So u(x_t, t, t) never depends on I, and a network that only saw rows with r = t has u(x_t, r, t) = v(x_t, t)
    for every r.

    There are no biases, and no number is added to a tensor: E has a constant feature in their place. In forward mode a
    sum of something that moves and something that does not takes three times as long as any other operation here.
    """

    omega: Tensor

    def __init__(self, config: ToyConfig, frames: int, channels: int, *, head: bool = False) -> None:
        super().__init__()
        size, width, features = frames * channels, config.width, 2 * config.frequencies + 1
        omega = torch.arange(1, config.frequencies + 1) * (math.pi / 2)
        self.register_buffer("omega", omega[None], persistent=False)
        self.time = nn.Linear(features + 1, config.time_width, bias=False)
        self.interval = nn.Linear(features, config.time_width, bias=False)
        self.enter = nn.Linear(size, width, bias=False)
        self.layers = nn.ModuleList(Modulated(width, config.time_width) for _ in range(config.depth))
        self.leave = nn.Linear(width, size, bias=False)
        self.head_layer = Modulated(width, config.time_width) if head else None
        self.head_leave = nn.Linear(width, size, bias=False) if head else None
        nn.init.zeros_(self.interval.weight)

    def forward(self, x_t: Latent, r: Time, t: Time) -> Prediction:
        """One evaluation."""
        moment = torch.cat([torch.ones_like(t)[:, None], self._features(t)], 1)
        c = silu(self.time(moment) + self.interval(self._features(t - r)))
        h = self.enter(x_t.flatten(1))
        for layer in self.layers:
            h = layer(h, c)
        u: Tensor = self.leave(h).view_as(x_t)
        if self.head_layer is None or self.head_leave is None:
            return Prediction(u)
        return Prediction(u, self.head_leave(self.head_layer(h, c)).view_as(x_t))

    def _features(self, time: Tensor) -> Tensor:
        """[t, sin(omega t), sin^2(omega t / 2)], (B, 2 frequencies + 1), all zero at t = 0; the last are
        (1 - cos(omega t)) / 2."""
        time = time[:, None]
        half = (0.5 * time @ self.omega).sin()
        return torch.cat([time, (time @ self.omega).sin(), half * half], 1)


class Modulated(nn.Module):
    """h <- h + silu((1 + scale(c)) * (W h) + shift(c))."""

    def __init__(self, width: int, time_width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width, bias=False)
        self.modulate = nn.Linear(time_width, 2 * width, bias=False)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.modulate(c).chunk(2, 1)
        mixed = self.mix(h)
        out: Tensor = h + silu(mixed + scale * mixed + shift)
        return out


def warm_started(net: ToyNetwork, trained: dict[str, Tensor]) -> None:
    """Load a trained flow-matching network without a head; a head's last layer begins as a copy of the network's.

    Raises RuntimeError when anything but the head is missing.
    """
    head = {name: value for name, value in net.state_dict().items() if name.startswith("head_")}
    if head:
        head["head_leave.weight"] = trained["leave.weight"]
    net.load_state_dict(head | trained)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The settings of a training that are the same for every objective."""

    steps: int = 3000
    """Optimiser steps of each training."""
    batch_size: int = 256
    """Rows a step."""
    lr: float = 2e-3
    """Highest learning rate of AdamW; 100 steps of warm-up (a tenth of a shorter training), then a cosine to zero."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    ema_std: float = 0.05
    """Relative width of the average of the weights that is evaluated: 0.05 averages about the last twentieth."""
    slow_decay: float = 0.99
    """Decay of the second average, from which objectives with averaged targets compute them."""
    warm_start: int = 0
    """Steps of plain flow matching before, as in distillation; the same network for every objective of a seed."""
    network: ToyConfig = field(default_factory=ToyConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0.0 < self.ema_std < 0.28:
            raise ValueError(f"ema_std must lie in (0, 0.28), got {self.ema_std}")
        if not 0.0 <= self.slow_decay < 1.0:
            raise ValueError(f"slow_decay must lie in [0, 1), got {self.slow_decay}")
        if self.warm_start < 0:
            raise ValueError(f"warm_start must be at least 0 (0 = off), got {self.warm_start}")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The averaged network and what it cost."""

    net: ToyNetwork
    seconds_per_step: float
    """Processor time of a step in seconds, which on one thread is its wall-clock time on an idle machine."""
    diverged_at: int | None = None
    """The step whose gradient was not finite, where training ended; None = it ran to the end."""


def train(recipe: Recipe, problem: Problem, budget: Budget, *, seed: int, source: Source = "data") -> Trained:
    """Train one network; the result is a function of the arguments.

    Initial weights, data and noise depend on the seed alone, so objectives are compared on the same draws.
    """
    net = _network(budget.network, problem, seed, head=recipe.objective.needs.head)
    if budget.warm_start:
        before = _run(
            _network(budget.network, problem, seed), FLOW_MATCHING, problem, budget, budget.warm_start, seed, source
        )
        warm_started(net, before.net.state_dict())
    return _run(net, recipe, problem, budget, budget.steps, seed, source)


def _network(config: ToyConfig, problem: Problem, seed: int, *, head: bool = False) -> ToyNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ToyNetwork(config, problem.frames, problem.channels, head=head)


def _run(
    net: ToyNetwork, recipe: Recipe, problem: Problem, budget: Budget, steps: int, seed: int, source: Source
) -> Trained:
    slow, average = (copy.deepcopy(net).requires_grad_(False) for _ in range(2))
    calls = _calls(net, slow, problem, source)
    objective = recipe.with_teacher if source == "exact" and recipe.with_teacher is not None else recipe.objective
    optimizer = torch.optim.AdamW(net.parameters(), lr=budget.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    draws, clock = (torch.Generator().manual_seed(2 * seed + k) for k in range(2))
    began = time.process_time()
    for step in range(steps):
        x = problem.sample(budget.batch_size, generator=draws)
        e = torch.randn(x.shape, generator=draws)
        r, t = recipe.times(len(x), generator=clock, progress=step / steps)
        x_t = interpolate(x, e, t)
        v = problem.v(x_t, t) if source == "exact" else velocity(x, e)
        loss = objective(calls, x_t, r, t, v, progress=step / steps).loss(recipe.loss).mean()

        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), budget.clip_norm)
        if not math.isfinite(float(norm)):
            return Trained(net=average, seconds_per_step=_since(began, step + 1), diverged_at=step)
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, steps, budget.lr)
        optimizer.step()
        _blend(slow, net, 1.0 if step == 0 else 1 - budget.slow_decay)
        _blend(average, net, _new_weight(step + 1, budget.ema_std))
    return Trained(net=average, seconds_per_step=_since(began, steps))


def _calls(net: nn.Module, slow: nn.Module, problem: Problem, source: Source) -> StudentCalls:
    """The network has no conditions, so rows make no difference; the exact velocity, where used, is the teacher."""
    plain, averaged = torch.no_grad()(net.__call__), torch.no_grad()(slow.__call__)
    return StudentCalls(
        train=lambda rows: net,
        plain=lambda rows: plain,
        averaged=lambda rows: averaged,
        teacher=(lambda rows: problem.v) if source == "exact" else None,
    )


def _learning_rate(step: int, steps: int, lr: float) -> float:
    warm = min(1.0, (step + 1) / max(1, min(100, steps // 10)))
    return lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def _new_weight(step: int, std: float) -> float:
    """1 - (1 - 1/step)^(gamma + 1), the power-function average (arXiv 2312.02696, section 3); 1 at the first step.

    Its relative width sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))) is 1 / (gamma + 3) + O(gamma^-2).
    """
    gamma = max(0.0, 1 / std - 3)
    return 1.0 - (1.0 - 1.0 / step) ** (gamma + 1)


@torch.no_grad()
def _blend(target: nn.Module, source: nn.Module, weight: float) -> None:
    """target <- target + weight (source - target)."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), weight)


def _since(began: float, steps: int) -> float:
    return (time.process_time() - began) / steps
