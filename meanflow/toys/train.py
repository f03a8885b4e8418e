"""Training of one toy network, step for step as a real trainer does it: interpolate, objective, AdamW, averages."""

import copy
import math
import time
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import nn

from meanflow.objectives import Field
from meanflow.path import interpolate, velocity
from meanflow.toys.network import ToyConfig, ToyNetwork, warm_started
from meanflow.toys.problems import Problem
from meanflow.toys.recipes import FLOW_MATCHING, Recipe

Source: TypeAlias = Literal["data", "exact"]
"""The velocity to be averaged: e - x, or the problem's own v(x_t, t), which stands for a perfect teacher."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every objective gets alike."""

    steps: int = 3000
    """Optimiser steps of each training."""
    batch_size: int = 256
    """Rows a step."""
    lr: float = 2e-3
    """Highest learning rate of AdamW; 100 steps of warm-up (a tenth of a shorter training), then a cosine to zero."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    ema_std: float = 0.05
    """Relative width of the average of the weights that is judged: 0.05 averages about the last twentieth."""
    slow_decay: float = 0.99
    """Decay of the second average, from which objectives with slow targets take them."""
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
    """Of processor time, which on one thread is what a step takes on an idle machine."""
    diverged_at: int | None = None
    """The step whose gradient was not finite, where training ended; None = it ran to the end."""


def train(recipe: Recipe, problem: Problem, budget: Budget, *, seed: int, source: Source = "data") -> Trained:
    """Train one network; the result is a function of the arguments.

    Initial weights, data and noise depend on the seed alone, so objectives are compared on the same draws.
    """
    net = _network(budget.network, problem, seed, head=recipe.head)
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
    field = _field(net, slow, problem, source)
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
        loss = objective(field, x_t, r, t, v, progress=step / steps).loss(recipe.loss).mean()

        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), budget.clip_norm)
        if not math.isfinite(float(norm)):
            return Trained(net=average, seconds_per_step=_since(began, step + 1), diverged_at=step)
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, steps, budget.lr)
        optimizer.step()
        _blend(slow, net, 1.0 if step == 0 else 1 - budget.slow_decay)
        _blend(average, net, _new_share(step + 1, budget.ema_std))
    return Trained(net=average, seconds_per_step=_since(began, steps))


def _field(net: nn.Module, slow: nn.Module, problem: Problem, source: Source) -> Field:
    """The network has no conditions, so rows make no difference; the exact velocity, where used, is the teacher."""
    plain, still = torch.no_grad()(net.__call__), torch.no_grad()(slow.__call__)
    return Field(
        train=lambda rows: net,
        plain=lambda rows: plain,
        average=lambda rows: still,
        teacher=(lambda rows: problem.v) if source == "exact" else None,
    )


def _learning_rate(step: int, steps: int, lr: float) -> float:
    warm = min(1.0, (step + 1) / max(1, min(100, steps // 10)))
    return lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def _new_share(step: int, std: float) -> float:
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
