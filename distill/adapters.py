"""Training low-rank adapters: what is trained, and how a run folder stays usable without knowing of them."""

import copy
from dataclasses import dataclass

import torch

from distill.checkpoint import Tensors
from teacher.lora import LoRAConfig, adapter_state, add_lora, merge_lora
from teacher.network import MMAudio

ADAPTER = "adapter"
"""File of the adapters alone, beside the weights they are merged into."""


@dataclass(frozen=True)
class Merging:
    """Turns a state dict of an adapted network into plain weights of the same name, and the adapters in a file."""

    net: MMAudio

    def __call__(self, name: str, tensors: Tensors) -> dict[str, Tensors]:
        plain = copy.deepcopy(self.net)
        plain.load_state_dict(tensors)
        alone = {ADAPTER: adapter_state(plain)} if name == "model" else {}
        merge_lora(plain)
        return {name: dict(plain.state_dict())} | alone


def adapt(net: MMAudio, config: LoRAConfig, *, seed: int) -> Merging:
    """Freeze the network and add adapters in place; at the start they change nothing."""
    add_lora(net, config, generator=torch.Generator().manual_seed(seed))
    return Merging(net)
