"""AdamW and its learning rate as a pure function of the step, so that resuming needs no scheduler state."""

import math

import torch
from torch import nn

from distill.config import OptimConfig


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, one group per (weight decay, learning-rate scale).

    Weight decay acts on matrices only, never on gains, biases and tokens. Each group carries its "scale": Adam moves
    every weight by about lr whatever the gradient, so an output summing n inputs moves by n lr; beyond
    `reference_fan_in` the scale undoes that growth.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and parameter.shape[0] > 1
            scale = _scale(parameter, config.reference_fan_in) if matrix else 1.0
            groups.setdefault((matrix, scale), []).append(parameter)
    fused = all(p.device.type == "cuda" for members in groups.values() for p in members)
    described = [
        {"params": members, "weight_decay": config.weight_decay if matrix else 0.0, "scale": scale}
        for (matrix, scale), members in groups.items()
    ]
    return torch.optim.AdamW(described, lr=config.lr, betas=config.betas, eps=1e-8, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group to lr times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


def _scale(parameter: nn.Parameter, reference: int | None) -> float:
    return 1.0 if reference is None else min(1.0, reference / parameter[0].numel())


def learning_rate(step: int, total_steps: int, config: OptimConfig) -> float:
    """lr * min(1, (step + 1) / warmup), times (1 + cos(pi progress)) / 2 under `cosine`; step counts from 0."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return config.lr * warm
    progress = max(0, step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return config.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
