"""The averages of a run, their tensors dealt out over the processes: each keeps and updates its part alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from distill.ema import PowerEMA
from distill.engines.base import Engine, Tensors


def deal(sizes: dict[str, int], processes: int) -> list[list[str]]:
    """Names dealt over processes, the largest first and each to the one that holds least: (processes,) lists."""
    hands: list[list[str]] = [[] for _ in range(processes)]
    held = [0] * processes
    for name in sorted(sizes, key=lambda n: (-sizes[n], n)):
        least = held.index(min(held))
        hands[least].append(name)
        held[least] += sizes[name]
    return hands


class SharedAverages:
    """Power-function averages (distill.ema) of the parameters `names`, of several widths."""

    def __init__(self, engine: Engine, names: Sequence[str], stds: Sequence[float], *, corrected: bool) -> None:
        """The engine is prepared; every average starts at the present weights."""
        self.engine = engine
        sizes = {n: p.numel() for n, p in engine.plain.named_parameters() if n in set(names)}
        hands = deal(sizes, engine.processes)
        self.owner = {name: k for k, hand in enumerate(hands) for name in hand}
        mine = set(hands[engine.process])
        self.parts = [PowerEMA(engine.plain, std, corrected=corrected, names=mine) for std in stds]

    @property
    def names(self) -> list[str]:
        """File names without suffix, in the order of the widths."""
        return [part.name for part in self.parts]

    def update(self, step: int) -> None:
        """Fold in the weights after update `step`, counted from 1."""
        for part in self.parts:
            part.update(self.engine.plain, step)

    def load(self, read: Callable[[str], Tensors]) -> None:
        """Take each process's part out of whole averages by name, such as ema-0.05."""
        for part in self.parts:
            kept = read(part.name)
            for name, tensor in part.shadow.items():
                tensor.copy_(kept[name])

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
    """Inside, the network has these values in place of its own for the parameters they name."""
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
