"""FSDP2: weights, gradients and moments in equal parts, one per process (arXiv 2304.11277, torch's `fully_shard`).

Every block is gathered when its turn comes in the forward and the backward pass. `plain` is a second, whole copy of the
weights without hooks, 4 bytes a weight in every process, refilled block by block after every step: what FSDP2 saves
against DDP is the 12 bytes a weight of gradients and moments, what it costs is that one more gathering. The network is
sharded here and not by accelerate, whose preparation would cast trained weights and wrap all of it as one.

Of accelerate's FSDP settings these are read: fsdp_version (2), fsdp_reshard_after_forward, fsdp_offload_params. Those
about wrapping, state dicts and loading say nothing here: blocks are fixed, and checkpoints hold whole tensors.
"""

import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from distill.engines.base import Engine, Tensors
from distill.engines.optim import MOMENTS, adamw, check_moments, set_learning_rate, steps_on_device
from distill.loop_config import OptimConfig
from teacher.network.mmaudio import MMAudio

if TYPE_CHECKING:
    from accelerate import Accelerator

BLOCKS = ("joint_blocks", "fused_blocks", "velocity_blocks")
"""Lists of blocks in the network, each block sharded by itself; what is in none of them is one part more."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Those of `accelerate launch`'s FSDP settings that this engine reads."""

    reshard_after_forward: bool = True
    """Drop a block's gathered weights after its forward pass and gather them again for the backward pass."""
    offload: bool = False
    """Keep weights, gradients and moments of the trained copy, and AdamW, on the CPU."""

    @classmethod
    def from_environment(cls) -> Self:
        """Read from the FSDP_ variables. ValueError for version 1 and for checkpointing, which the run's loop sets."""
        version = os.environ.get("FSDP_VERSION", "2")
        if version != "2":
            raise ValueError(f"FSDP of version {version} is not supported: set fsdp_version: 2 in accelerate's config")
        if _flag("FSDP_ACTIVATION_CHECKPOINTING", "false"):
            raise ValueError("fsdp_activation_checkpointing must be false: use the run's own checkpoint_blocks")
        return cls(
            reshard_after_forward=_flag("FSDP_RESHARD_AFTER_FORWARD", "true"),
            offload=_flag("FSDP_OFFLOAD_PARAMS", "false"),
        )


class FSDP2(Engine):
    """The engine that applies `fully_shard` to every block and to the rest. ValueError for unsupported settings."""

    def __init__(self, accelerator: "Accelerator", precision: torch.dtype) -> None:
        super().__init__(accelerator, precision)
        self._settings = Settings.from_environment()

    @property
    def name(self) -> str:  # type: ignore[override]
        return "FSDP2, weights and optimiser on the CPU" if self._settings.offload else "FSDP2"

    def prepare(self, net: MMAudio, optim: OptimConfig, *, micro_batch: int, accumulation: int) -> None:
        # Blocks hand on inputs as they came and the network flips a sign: nothing is changed in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        self._same_everywhere(net)
        self.plain = deepcopy(net).requires_grad_(False).to(self.device)
        pinned = self.device.type == "cuda"
        policy = CPUOffloadPolicy(pin_memory=pinned) if self._settings.offload else OffloadPolicy()
        mesh = init_device_mesh(self.device.type, (self.processes,))
        blocks = {f"{kind}.{k}": b for kind in BLOCKS for k, b in enumerate(getattr(net, kind, ()))}
        for part in (*blocks.values(), net):
            fully_shard(
                part, mesh=mesh, reshard_after_forward=self._settings.reshard_after_forward, offload_policy=policy
            )
        self.model = net
        self._trained: dict[str, DTensor] = {n: p for n, p in net.named_parameters() if p.requires_grad}  # type: ignore[misc]
        self._parts: list[tuple[FSDPModule, list[str]]] = []
        rest = list(self._trained)
        for prefix, block in blocks.items():
            self._parts.append((block, [n for n in rest if n.startswith(f"{prefix}.")]))
            rest = [n for n in rest if not n.startswith(f"{prefix}.")]
        self._parts.append((net, rest))  # type: ignore[arg-type]
        self.optimizer = adamw(net, optim)

    def micro(self, *, last: bool) -> AbstractContextManager[object]:
        """Averages the gradient of every micro-batch over processes, since accumulating unsharded ones takes memory."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    @torch.no_grad()
    def step(self, lr: float, clip_norm: float, *, healthy: bool) -> Tensor | None:
        norm = self._clip(clip_norm)
        fine = healthy and bool(torch.isfinite(norm))
        if fine:
            set_learning_rate(self.optimizer, lr)
            self.optimizer.step()
            self._refill()
        self.optimizer.zero_grad()
        return norm if fine else None

    def moments(self) -> Tensors:
        found = {n: self.optimizer.state[p] for n, p in self._trained.items() if self.optimizer.state.get(p)}
        if not found:
            return {}
        tensors = {}
        for name, entry in found.items():
            for key in MOMENTS:
                whole = self._whole(entry[key])
                if self.main:
                    tensors[f"{key}.{name}"] = whole.cpu()
        step = next(iter(found.values()))["step"]
        return tensors | {"step": step.detach().float().cpu().clone()} if self.main else {}

    def load_moments(self, moments: Tensors) -> None:
        check_moments({n: p.shape for n, p in self._trained.items()}, moments)
        if not moments:
            return
        on = self.device if steps_on_device(self.optimizer) else torch.device("cpu")
        for name, parameter in self._trained.items():
            entry = self.optimizer.state[parameter]
            for key in MOMENTS:
                entry[key] = self._own_part(moments[f"{key}.{name}"], parameter)
            entry["step"] = moments["step"].to(on, torch.float32, copy=True)

    def _same_everywhere(self, net: MMAudio) -> None:
        """The main process's weights in all of them, as DDP does: the parts must be parts of one network."""
        for parameter in net.parameters():
            values = parameter.detach().to(self.device)
            dist.broadcast(values, 0)
            parameter.data.copy_(values)

    def _clip(self, clip_norm: float) -> Tensor:
        """Scale the gradient down to clip_norm; its norm over all processes' parts, before."""
        parts = [p.grad.to_local() for p in self._trained.values() if isinstance(p.grad, DTensor)]
        own = torch.nn.utils.get_total_norm(parts).to(self.device, torch.float64)
        norm = self.total(own.square()).sqrt().float()
        factor = (clip_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_ has it
        if parts:
            torch._foreach_mul_(parts, factor.to(parts[0].device))
        return norm

    def _refill(self) -> None:
        """Copy the trained weights into `plain`, with one block of them whole at a time."""
        for part, names in self._parts:
            if names:
                part.reshard()  # weights left whole by a forward pass without a backward pass are those of then
                part.unshard()
                for name in names:
                    self.plain.get_parameter(name).copy_(self.model.get_parameter(name))
                part.reshard()

    def _whole(self, part: DTensor) -> Tensor:
        """The tensor on this device that the processes hold parts of."""
        local = part.to_local().to(self.device)
        on_device = DTensor.from_local(
            local, part.device_mesh, part.placements, run_check=False, shape=part.shape, stride=part.stride()
        )
        return on_device.full_tensor()

    def _own_part(self, whole: Tensor, like: DTensor) -> DTensor:
        """This process's part of a whole float32 tensor, where and how `like` has its own."""
        spread = distribute_tensor(
            whole.to(self.device, torch.float32), like.device_mesh, like.placements, src_data_rank=None
        )
        # As AdamW makes its own, offloaded ones on the CPU.
        part: DTensor = torch.zeros_like(like, requires_grad=False)  # type: ignore[assignment]
        with torch.no_grad():
            part.to_local().copy_(spread.to_local())
        return part


def _flag(variable: str, default: str) -> bool:
    value = os.environ.get(variable, default).lower()
    if value not in ("true", "false"):
        raise ValueError(f"{variable.lower()} must be true or false, got {value!r}")
    return value == "true"
