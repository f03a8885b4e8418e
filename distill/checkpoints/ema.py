"""Power-function exponential moving averages of weights (Karras et al., arXiv 2312.02696, section 3 and appendix C).

The average of width gamma weights training time tau in [0, T] by p(tau) = (gamma + 1) tau^gamma / T^(gamma + 1). Its
relative width is sigma_rel = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))): a width of 0.1 averages the last tenth.

With the weights theta_s held over (T(s - 1), T(s)], the update that follows from p is

    theta_bar <- beta theta_bar + (1 - beta) theta_s,    beta = (T(s - 1) / T(s))^(gamma + 1),    s = 1, 2, ...

Two clocks are offered. `T(s) = s` is the paper's. MMAudio's step-size correction takes the geometric mean of two
neighbouring decays, beta = [(1 - 1/(s + 1)) (1 - 1/(s + 2))]^((gamma + 1) / 2) = (s / (s + 2))^((gamma + 1) / 2), which
is the same rule on the clock T(s) = sqrt((s + 1) (s + 2)). On either clock the first update copies the weights.

`PowerEMA` is one average; `SharedAverages` are all averages of a run, their tensors dealt out over the processes, each
of which holds and updates its part alone.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from distill.engines.base import Engine, Tensors
from teacher.weights.loading import average_name


def gamma_from_std(std: float) -> float:
    """The positive real root of gamma^3 + 7 gamma^2 + (16 - s^-2) gamma + (12 - s^-2) = 0 (eq. 126)."""
    if not 0.0 < std < 1 / math.sqrt(12):
        raise ValueError(f"std must lie in (0, 0.2887), got {std}")
    roots = np.roots([1.0, 7.0, 16.0 - std**-2, 12.0 - std**-2])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))


def clock(step: int, *, corrected: bool) -> float:
    """T(step), the training time up to which update `step` (from 1) holds."""
    return math.sqrt((step + 1) * (step + 2)) if corrected else float(step)


def new_weight(step: int, gamma: float, *, corrected: bool) -> float:
    """1 - beta, the weight of the newest weights at update `step`, counted from 1; it is 1 at the first."""
    if step < 1:
        raise ValueError(f"updates count from 1, got {step}")
    if corrected:
        return 1.0 if step == 1 else 1.0 - (step / (step + 2.0)) ** ((gamma + 1) / 2)
    return 1.0 - (1.0 - 1.0 / step) ** (gamma + 1)


class PowerEMA:
    """The average of one relative width over the trainable parameters of a module, or those named, in float32."""

    def __init__(
        self, model: nn.Module, std: float, *, corrected: bool = False, names: Collection[str] | None = None
    ) -> None:
        self.std = std
        self.corrected = corrected
        self.gamma = gamma_from_std(std)
        chosen = trained_names(model) if names is None else names
        self.shadow = {n: p.detach().clone().float() for n, p in model.named_parameters() if n in chosen}

    @property
    def name(self) -> str:
        """File name without suffix, as in ema-0.05."""
        return average_name(self.std)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Add the weights after update `step`, counted from 1, to the average; the first replace the initial value."""
        weight = new_weight(step, self.gamma, corrected=self.corrected)
        named = dict(model.named_parameters())
        targets = list(self.shadow.values())
        if targets:
            torch._foreach_lerp_(targets, [named[n].detach().float() for n in self.shadow], weight)

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """A complete state dict of `model` with the averaged parameters in place of the trained ones."""
        return {
            n: self.shadow[n].to(p.dtype).clone() if n in self.shadow else p.detach().clone()
            for n, p in model.state_dict().items()
        }


def trained_names(model: nn.Module) -> list[str]:
    """Names of the parameters that are trained, in the module's order."""
    return [n for n, p in model.named_parameters() if p.requires_grad]


def deal(sizes: dict[str, int], processes: int) -> list[list[str]]:
    """Names divided among processes, the largest first and each to the one that holds least: (processes,) lists."""
    hands: list[list[str]] = [[] for _ in range(processes)]
    held = [0] * processes
    for name in sorted(sizes, key=lambda n: (-sizes[n], n)):
        least = held.index(min(held))
        hands[least].append(name)
        held[least] += sizes[name]
    return hands


class SharedAverages:
    """Power-function averages of several widths of the trained parameters; each process holds a part of the tensors."""

    def __init__(
        self,
        engine: Engine,
        names: Sequence[str],
        stds: Sequence[float],
        *,
        corrected: bool,
        network: nn.Module | None = None,
    ) -> None:
        """Start every average at the present weights of a prepared engine.

        `network`, a copy of the network in training, holds the weights of the narrowest average from here on, all of
        them in every process, for objectives whose targets come from averaged weights. Each process updates its copy
        from `engine.plain`, which is complete and the same in all of them, so this needs no collective.
        """
        self.engine = engine
        sizes = {n: p.numel() for n, p in engine.plain.named_parameters() if n in set(names)}
        hands = deal(sizes, engine.processes)
        self.owner = {name: k for k, hand in enumerate(hands) for name in hand}
        mine = set(hands[engine.process])
        self.parts = [PowerEMA(engine.plain, std, corrected=corrected, names=mine) for std in stds]
        self.network_average: PowerEMA | None = None
        """The average that `network` holds; its tensors are the network's parameters."""
        if network is not None:
            self.network_average = PowerEMA(engine.plain, min(stds), corrected=corrected, names=set(names))
            present = dict(engine.plain.named_parameters())
            for name, parameter in network.requires_grad_(False).named_parameters():
                averaged = self.network_average.shadow.get(name)
                parameter.data = present[name].data if averaged is None else averaged

    @property
    def _all(self) -> list[PowerEMA]:
        return [*self.parts, *([] if self.network_average is None else [self.network_average])]

    @property
    def names(self) -> list[str]:
        """File names without suffix, in the order of the widths."""
        return [part.name for part in self.parts]

    def update(self, step: int) -> None:
        """Add the weights after update `step`, counted from 1, to every average."""
        for part in self._all:
            part.update(self.engine.plain, step)

    def load(self, read: Callable[[str], Tensors]) -> None:
        """Set each process's part, and all of `network`, from complete averages by name, such as ema-0.05."""
        for part in self._all:
            average = read(part.name)
            for name, tensor in part.shadow.items():
                tensor.copy_(average[name])

    def whole(self, index: int, *, everywhere: bool = False) -> Tensors:
        """All tensors of one average, on the CPU, in the main process or everywhere; empty elsewhere. Collective."""
        part, named = self.parts[index], dict(self.engine.plain.named_parameters())
        made: Tensors = {}
        for name, owner in self.owner.items():
            tensor = part.shadow.get(name)
            if tensor is None:
                tensor = torch.empty_like(named[name], dtype=torch.float32)
            tensor = self.engine.broadcast(tensor, owner)
            if everywhere or self.engine.main:
                made[name] = tensor.detach().cpu().clone()
        return made


@contextmanager
def holding(net: nn.Module, tensors: Tensors) -> Iterator[None]:
    """Context in which the named parameters of the network have these values in place of their own."""
    named = dict(net.named_parameters())
    own: dict[str, Tensor] = {name: named[name].detach().to("cpu", copy=True) for name in tensors}
    with torch.no_grad():
        for name, tensor in tensors.items():
            named[name].copy_(tensor)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in own.items():
                named[name].copy_(tensor)
