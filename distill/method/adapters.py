"""Training low-rank adapters: what is trained, and how they are merged so that a run folder holds plain weights."""

import copy
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from teacher.files.components import check_fit
from teacher.network.lora import (
    ALPHA,
    LoRAConfig,
    LoRAConv1d,
    LoRALinear,
    adapter_state,
    add_lora,
    load_adapter,
    lora_parameters,
    merge_lora,
)
from teacher.network.mmaudio import MMAudio
from teacher.network.variants import MMAudioConfig

Tensors: TypeAlias = dict[str, Tensor]
ADAPTER = "adapter"
"""File of the adapters alone, beside the weights they are merged into."""


@dataclass(frozen=True)
class Merging:
    """Turns the state dict of an adapted network into plain weights of the same name, and a file of the adapters.

    The file of adapters is written only where nothing else was trained, so that it and the base network make the
    trained one.
    """

    template: MMAudio
    """The adapted network without values (on the meta device)."""
    adapters_alone: bool

    @classmethod
    def of(cls, net: MMAudio, *, adapters_alone: bool = True) -> "Merging":
        """The merging of an adapted network; training may change the network afterwards."""
        hollow = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in net.parameters()}
        return cls(copy.deepcopy(net, dict(hollow)), adapters_alone)

    def __call__(self, name: str, tensors: Tensors) -> dict[str, Tensors]:
        plain = copy.deepcopy(self.template)
        plain.load_state_dict(tensors, assign=True)
        alone = {ADAPTER: adapter_state(plain)} if name == "model" and self.adapters_alone else {}
        merge_lora(plain)
        return {name: dict(plain.state_dict())} | alone


def adapt(net: MMAudio, config: LoRAConfig, *, seed: int, in_full: tuple[str, ...] = ()) -> Merging:
    """Freeze the network and add adapters in place; before training they do not change what the network computes.

    Parameters whose names begin with one of `in_full` are trained themselves and get no adapters. Raises ValueError
    where that leaves no layer to adapt.
    """
    add_lora(net, config, generator=torch.Generator().manual_seed(seed))
    if in_full:
        for name, layer in list(net.named_modules()):
            if name.startswith(in_full) and isinstance(layer, LoRALinear | LoRAConv1d):
                net.set_submodule(name, layer.folded())
        if not lora_parameters(net):
            raise ValueError(f"lora.targets {config.targets} select only layers that are trained in full anyway")
        for name, parameter in net.named_parameters():
            if name.startswith(in_full):
                parameter.requires_grad_(True)
    return Merging.of(net, adapters_alone=not in_full)


def merged(tensors: Tensors, network: MMAudioConfig, alpha: float, where: str) -> Tensors:
    """Plain weights from the state dict of an adapted network in a file, whose names show which layers have adapters.
    Tensors of other layers are passed on, not copied. Raises WeightsError naming what does not fit.
    """
    adapters = {name: tensor for name, tensor in tensors.items() if name.endswith((".lora_a", ".lora_b"))}
    with torch.device("meta"):  # names and shapes alone
        net = MMAudio(network)
    load_adapter(net, {ALPHA: torch.tensor(alpha, dtype=torch.float64)} | adapters)
    expected = {name: tensor.shape for name, tensor in net.state_dict().items()}
    check_fit(expected, {name: tensor.shape for name, tensor in tensors.items()}, where)
    net.load_state_dict(tensors, assign=True)
    merge_lora(net)
    return dict(net.state_dict())
