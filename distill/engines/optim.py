"""AdamW and its learning rate as a pure function of the step, so that resuming needs no scheduler state."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distill.loop_config import OptimConfig


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, one group per (weight decay, learning-rate scale).

    Weight decay acts on matrices only, never on gains, biases and tokens, unless `decay_all`. Each group carries its
    "scale": Adam moves every weight by about lr whatever the gradient, so an output summing n inputs moves by n lr;
    beyond `reference_fan_in` the scale undoes that growth.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and parameter.shape[0] > 1
            scale = _scale(parameter, config.reference_fan_in) if matrix else 1.0
            groups.setdefault((matrix or config.decay_all, scale), []).append(parameter)
    fused = all(p.device.type == "cuda" for members in groups.values() for p in members)
    described = [
        {"params": members, "weight_decay": config.weight_decay if decayed else 0.0, "scale": scale}
        for (decayed, scale), members in groups.items()
    ]
    return torch.optim.AdamW(described, lr=config.lr, betas=config.betas, eps=config.adam_eps, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group to lr times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's averages, by the names PyTorch gives them."""


def named_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """exp_avg.<parameter>, exp_avg_sq.<parameter>, float32 on the CPU, and step (); empty before the first step."""
    named = {n: optimizer.state.get(p) for n, p in model.named_parameters() if p.requires_grad}
    found = {n: entry for n, entry in named.items() if entry}
    if not found:
        return {}
    tensors = {f"{key}.{n}": entry[key].detach().float().cpu().clone() for n, entry in found.items() for key in MOMENTS}
    step = next(iter(found.values()))["step"]
    return tensors | {"step": torch.as_tensor(step, dtype=torch.float32).cpu().clone()}


def restore_moments(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Set the moments to those that `named_moments` gave; ValueError unless names and shapes fit the parameters."""
    check_moments({n: p.shape for n, p in model.named_parameters() if p.requires_grad}, tensors)
    if not tensors:
        return
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            entry = optimizer.state[parameter]
            for key in MOMENTS:
                entry[key] = tensors[f"{key}.{name}"].to(parameter.device, parameter.dtype, copy=True)
            on = parameter.device if steps_on_device(optimizer) else torch.device("cpu")
            entry["step"] = tensors["step"].to(on, torch.float32, copy=True)


def check_moments(shapes: Mapping[str, torch.Size], tensors: dict[str, Tensor]) -> None:
    """Raises ValueError unless `tensors` is empty or holds the moments of exactly these parameters."""
    wanted = {f"{key}.{name}": shape for name, shape in shapes.items() for key in MOMENTS} | {"step": torch.Size()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if tensors and found != wanted:
        odd = sorted(n for n in set(wanted) | set(found) if wanted.get(n) != found.get(n))
        raise ValueError(f"the optimiser state does not fit the trained weights: {len(odd)} differ, such as {odd[0]}")


def steps_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether Adam's step counts are on the device of the parameters instead of the CPU."""
    return any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)


def _scale(parameter: nn.Parameter, reference: int | None) -> float:
    return 1.0 if reference is None else min(1.0, reference / parameter[0].numel())


def learning_rate(step: int, total_steps: int, config: OptimConfig) -> float:
    """lr * warm-up * decay at `step`, counted from 0.

    The warm-up is min(1, (step + 1) / warmup), with warmup + 1 in place of warmup where it is not inclusive. The decay
    is 1 for `constant`, (1 + cos(pi progress)) / 2 for `cosine`, and decay^(milestones passed) for `step`.
    """
    ramp = config.warmup_steps + (0 if config.warmup_inclusive else 1)
    warm = min(1.0, (step + 1) / ramp) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return config.lr * warm
    if config.schedule == "step":
        passed = sum(step >= config.warmup_steps + round(m * total_steps) for m in config.milestones)
        return config.lr * warm * config.decay**passed
    progress = max(0, step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return config.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
