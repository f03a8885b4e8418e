"""Power-function exponential moving averages of weights (Karras et al., arXiv 2312.02696, section 3 and appendix C).

At update s (from 1) the decay is beta = (1 - 1/s)^(gamma + 1): the average weights training time tau by tau^gamma. Its
relative width is sigma_rel = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))). A width of 0.1 averages the last tenth.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn


def gamma_from_std(std: float) -> float:
    """The positive real root of gamma^3 + 7 gamma^2 + (16 - s^-2) gamma + (12 - s^-2) = 0 (eq. 126)."""
    if not 0.0 < std < 1 / math.sqrt(12):
        raise ValueError(f"std must lie in (0, 0.2887), got {std}")
    roots = np.roots([1.0, 7.0, 16.0 - std**-2, 12.0 - std**-2])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))


class PowerEMA:
    """The average of one relative width over the trainable parameters of a module, kept in float32."""

    def __init__(self, model: nn.Module, std: float) -> None:
        self.std = std
        self.gamma = gamma_from_std(std)
        self.shadow = {n: p.detach().clone().float() for n, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Fold in the weights after update `step`, counted from 1; the first replaces the initial value."""
        weight = 1.0 - (1.0 - 1.0 / step) ** (self.gamma + 1)
        named = dict(model.named_parameters())
        targets = list(self.shadow.values())
        torch._foreach_lerp_(targets, [named[n].detach().float() for n in self.shadow], weight)

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """A complete state dict of `model` with the averaged parameters in place of the trained ones."""
        return {
            n: self.shadow[n].to(p.dtype).clone() if n in self.shadow else p.detach().clone()
            for n, p in model.state_dict().items()
        }
