"""How far a made tensor lies from a recorded one."""

from typing import NamedTuple

from torch import Tensor


class Deviation(NamedTuple):
    """Largest deviation of one quantity, relative to its largest recorded value, and what is allowed."""

    name: str
    value: float
    tolerance: float

    @classmethod
    def missing(cls, name: str) -> "Deviation":
        """What stands for a recorded quantity that nothing here makes."""
        return cls(f"{name}: not made here", float("inf"), 0.0)


def relative(name: str, made: Tensor, recorded: Tensor, tolerance: float) -> Deviation:
    """max |made - recorded| / max |recorded|; infinite where the shapes differ."""
    if made.shape != recorded.shape:
        return Deviation(f"{name}: shape {tuple(made.shape)} for {tuple(recorded.shape)}", float("inf"), tolerance)
    scale = max(float(recorded.abs().max()), 1e-30)
    return Deviation(name, float((made.double() - recorded.double()).abs().max()) / scale, tolerance)
