"""A small network u(x_t, r, t): SiLU layers modulated by t and by t - r, which starts without an effect."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from meanflow.objectives import Headed
from meanflow.shapes import Latent, Time


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
    """x_t (B, frames, channels), r and t (B,) -> u, or Headed(u, v) with a velocity head.

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

    def forward(self, x_t: Latent, r: Time, t: Time) -> Latent | Headed:
        """One evaluation."""
        moment = torch.cat([torch.ones_like(t)[:, None], self._features(t)], 1)
        c = silu(self.time(moment) + self.interval(self._features(t - r)))
        h = self.enter(x_t.flatten(1))
        for layer in self.layers:
            h = layer(h, c)
        u: Tensor = self.leave(h).view_as(x_t)
        if self.head_layer is None or self.head_leave is None:
            return u
        return Headed(u, self.head_leave(self.head_layer(h, c)).view_as(x_t))

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


def average_velocity(net: nn.Module, x_t: Latent, r: Time, t: Time) -> Latent:
    """u alone, whether the network has a head or not."""
    out = net(x_t, r, t)
    u: Tensor = out.u if isinstance(out, Headed) else out
    return u


def warm_started(net: ToyNetwork, trained: dict[str, Tensor]) -> None:
    """Load a trained flow-matching network without a head; a head's last layer begins as a copy of the network's.

    Raises RuntimeError when anything but the head is missing.
    """
    head = {name: value for name, value in net.state_dict().items() if name.startswith("head_")}
    if head:
        head["head_leave.weight"] = trained["leave.weight"]
    net.load_state_dict(head | trained)
