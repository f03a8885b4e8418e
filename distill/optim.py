"""AdamW and its learning rate as a pure function of the step, so that resuming needs no scheduler state."""

import math

import torch
from torch import nn

from distill.config import OptimConfig


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; weight decay on matrices only, never on gains, biases and tokens."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2 and p.shape[0] > 1], "weight_decay": config.weight_decay},
        {"params": [p for _, p in named if p.ndim < 2 or p.shape[0] == 1], "weight_decay": 0.0},
    ]
    fused = all(p.device.type == "cuda" for _, p in named)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=1e-8, fused=fused)


def learning_rate(step: int, total_steps: int, config: OptimConfig) -> float:
    """lr * min(1, (step + 1) / warmup), times (1 + cos(pi progress)) / 2 under `cosine`; step counts from 0."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return config.lr * warm
    progress = max(0, step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return config.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
