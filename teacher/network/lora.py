"""Low-rank adapters (LoRA, arXiv 2106.09685) for fine-tuning a network on little data, and folding them back in.

An adapted layer computes with W + (alpha / rank) B A. For a convolution along time W (out, in, k) is read as a matrix
(out, in k). B starts at zero, so an adapted network starts as the same function; everything but A and B is frozen.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teacher.files.components import check_fit
from teacher.files.errors import WeightsError
from teacher.network.blocks import ChannelLastConv1d, channel_last_conv
from teacher.network.mmaudio import FROZEN_PARAMETERS

ALPHA = "lora_alpha"
"""Name of the scalar that an adapter file holds beside its matrices."""


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Which layers are adapted, and how. Adds rank * (out + in * k) parameters to each of them."""

    rank: int = 16
    """Rank of the update."""
    alpha: float = 16.0
    """The update is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("attn.qkv", "linear1", "ffn")
    """Names of layers, or of modules whose layers are all meant: attention, its output and the MLPs of every block by
    default. A name is some consecutive parts of a dotted path: "ffn" and "fused_blocks.0" both select
    fused_blocks.0.ffn.w1. Linear layers and convolutions along time can be adapted."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if not self.alpha > 0:
            raise ValueError(f"alpha must be positive, got {self.alpha}")
        if not self.targets or not all(self.targets):
            raise ValueError(f"targets must name at least one layer and none may be empty, got {self.targets}")


class LoRALinear(nn.Linear):
    """A linear layer with its parameters under unchanged names, and adapters lora_a (rank, in), lora_b (out, rank)."""

    def __init__(self, base: nn.Linear, a: Tensor, b: Tensor, alpha: float) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.alpha, self.lora_a, self.lora_b = alpha, nn.Parameter(a), nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + _scale(self) * F.linear(F.linear(x, self.lora_a), self.lora_b)

    def folded(self) -> nn.Linear:
        """The plain layer that computes the same."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        plain.weight, plain.bias = _folded_weight(self), self.bias
        return plain.train(self.training)


class LoRAConv1d(ChannelLastConv1d):
    """A convolution with its parameters under unchanged names, and adapters lora_a (rank, in k), lora_b (out, rank).

    B A as a kernel is the convolution with A followed by B at every frame, which needs no kernel of full size.
    """

    def __init__(self, base: ChannelLastConv1d, a: Tensor, b: Tensor, alpha: float) -> None:
        with torch.device("meta"):
            super().__init__(base.in_channels, base.out_channels, base.kernel_size[0], base.bias is not None)
        self.weight, self.bias = base.weight, base.bias
        self.alpha, self.lora_a, self.lora_b = alpha, nn.Parameter(a), nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.lora_a.unflatten(1, self.weight.shape[1:])
        return super().forward(x) + _scale(self) * F.linear(channel_last_conv(x, kernel), self.lora_b)

    def folded(self) -> ChannelLastConv1d:
        """The plain layer that computes the same."""
        with torch.device("meta"):
            plain = ChannelLastConv1d(self.in_channels, self.out_channels, self.kernel_size[0], self.bias is not None)
        plain.weight, plain.bias = _folded_weight(self), self.bias
        return plain.train(self.training)


def add_lora(net: nn.Module, config: LoRAConfig, *, generator: torch.Generator | None = None) -> list[str]:
    """Freeze `net` and adapt the layers that `config` names, in place; the names of the trained parameters.

    A is drawn from N(0, 1 / fan-in). Raises ValueError if the network has adapters already, or if a target selects no
    layer.
    """
    if _adapted(net):
        raise ValueError("the network already has adapters; merge_lora folds them in")
    layers = _layers(net)
    chosen: set[str] = set()
    for target in config.targets:
        found = [name for name in layers if f".{target}." in f".{name}."]
        if not found:
            words = sorted({word for name in layers for word in name.split(".") if not word.isdigit()})
            raise ValueError(f"LoRA target {target!r} selects no layer; layer names consist of {', '.join(words)}")
        chosen.update(found)
    net.requires_grad_(False)
    device = None if generator is None else generator.device
    for name in (n for n in layers if n in chosen):
        out, fan_in = _matrix(layers[name])
        a = torch.randn(config.rank, fan_in, generator=generator, device=device) * fan_in**-0.5
        _adapt(net, name, a, torch.zeros(out, config.rank), config.alpha)
    return [n for n, p in net.named_parameters() if p.requires_grad]


def lora_parameters(net: nn.Module) -> list[nn.Parameter]:
    """The factors A and B of every adapted layer of a network, layer by layer."""
    return [p for layer in _adapted(net).values() for p in (layer.lora_a, layer.lora_b)]


def merge_lora(net: nn.Module) -> None:
    """Fold every adapter into its layer, in place: plain layers under their old names, all trainable as before.

    Parameters that are never trained (statistics, stored features) stay frozen. Raises ValueError without adapters.
    """
    layers = _adapted(net)
    if not layers:
        raise ValueError("the network has no adapters to merge")
    for name, layer in layers.items():
        net.set_submodule(name, layer.folded())
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in FROZEN_PARAMETERS)


def adapter_state(net: nn.Module) -> dict[str, Tensor]:
    """The adapters alone, for a small file: <layer>.lora_a, <layer>.lora_b and the scalar lora_alpha.

    Raises ValueError without adapters.
    """
    layers = _adapted(net)
    if not layers:
        raise ValueError("the network has no adapters to save")
    state = {ALPHA: torch.tensor(next(iter(layers.values())).alpha, dtype=torch.float64)}
    for name, layer in layers.items():
        state |= {f"{name}.lora_a": layer.lora_a.detach().clone(), f"{name}.lora_b": layer.lora_b.detach().clone()}
    return state


def load_adapter(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put adapters from `adapter_state` on a network in place: a plain one, or one with adapters of the same layers.

    Everything else is frozen. Raises WeightsError, before anything is changed, naming what does not fit.
    """
    if ALPHA not in state:
        raise WeightsError(f"the tensors are no adapter: they lack {ALPHA}")
    layers, alpha = _layers(net), float(state[ALPHA])
    names = sorted(n.removesuffix(".lora_a") for n in state if n.endswith(".lora_a")) or ["<layer>"]
    rank = len(state.get(f"{names[0]}.lora_a", ()))
    expected: dict[str, tuple[int, ...]] = {ALPHA: ()}
    for name in _adapted(net) or names:
        out, fan_in = _matrix(layers[name]) if name in layers else (0, 0)
        expected |= {f"{name}.lora_a": (rank, fan_in), f"{name}.lora_b": (out, rank)}
    check_fit(expected, {n: tuple(t.shape) for n, t in state.items()}, "the adapter")
    net.requires_grad_(False)
    for name in names:
        a, b = (state[f"{name}.{part}"].detach().clone() for part in ("lora_a", "lora_b"))
        _adapt(net, name, a, b, alpha)


def _layers(net: nn.Module) -> dict[str, nn.Linear | ChannelLastConv1d]:
    return {name: m for name, m in net.named_modules() if isinstance(m, nn.Linear | ChannelLastConv1d)}


def _matrix(layer: nn.Linear | ChannelLastConv1d) -> tuple[int, int]:
    """Rows and columns of the weight read as a matrix: out, in * k."""
    return layer.weight.shape[0], layer.weight.shape[1:].numel()


def _adapted(net: nn.Module) -> dict[str, LoRALinear | LoRAConv1d]:
    return {name: m for name, m in net.named_modules() if isinstance(m, LoRALinear | LoRAConv1d)}


def _adapt(net: nn.Module, name: str, a: Tensor, b: Tensor, alpha: float) -> None:
    """Put an adapted layer in the place of `name`, its factors in the weight's dtype and on its device."""
    layer = _layers(net)[name]
    a, b = a.to(layer.weight), b.to(layer.weight)
    adapted = LoRALinear(layer, a, b, alpha) if isinstance(layer, nn.Linear) else LoRAConv1d(layer, a, b, alpha)
    net.set_submodule(name, adapted.train(layer.training))


def _scale(layer: LoRALinear | LoRAConv1d) -> float:
    return layer.alpha / len(layer.lora_a)


@torch.no_grad()
def _folded_weight(layer: LoRALinear | LoRAConv1d) -> nn.Parameter:
    """W + (alpha / rank) B A, summed in float32 or wider."""
    weight = layer.weight
    wide = torch.promote_types(weight.dtype, torch.float32)
    update = _scale(layer) * (layer.lora_b.to(wide) @ layer.lora_a.to(wide))
    return nn.Parameter((weight.to(wide) + update.view_as(weight)).to(weight.dtype))
