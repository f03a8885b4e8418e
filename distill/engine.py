"""Accelerate and DeepSpeed: the one file that knows how a run is spread over processes."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Engine:
    """A started accelerator with what the loop asks of it."""

    accelerator: "Accelerator"

    @property
    def zero_stage(self) -> int:
        plugin = self.accelerator.state.deepspeed_plugin if self.sharded else None
        return int(plugin.zero_stage) if plugin is not None else 0

    @property
    def sharded(self) -> bool:
        """Whether DeepSpeed runs the step."""
        return str(self.accelerator.distributed_type).endswith("DEEPSPEED")

    def describe(self) -> str:
        """One line for the log: strategy, processes, device, precision."""
        a = self.accelerator
        zero = f" ZeRO-{self.zero_stage}" if self.sharded else ""
        kind = str(a.distributed_type).removeprefix("DistributedType.")
        return f"{kind}{zero}, {a.num_processes} process(es), {a.device}, mixed precision {a.mixed_precision}"

    def prepare(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, batch_size: int
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Wrap model and optimiser; `batch_size` is per process, which DeepSpeed wants to know."""
        if self.sharded:
            if self.zero_stage == 3:
                raise ValueError("ZeRO-3 shards the weights the derivative needs whole; use --zero_stage 1 or 2")
            config = self.accelerator.state.deepspeed_plugin.deepspeed_config
            config["train_micro_batch_size_per_gpu"] = batch_size
        return self.accelerator.prepare(model, optimizer)


def start() -> Engine:
    """Start accelerate as `accelerate launch` configured it; a single process without it.

    Without a CUDA device the CPU is claimed first: otherwise DeepSpeed's path counts zero devices and miscomputes batch
    sizes. The number of processes is checked, since `accelerate launch --cpu --num_processes 2` silently runs one.
    """
    from accelerate import Accelerator, PartialState

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        PartialState(cpu=True)
    engine = Engine(Accelerator())
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if engine.accelerator.num_processes != wanted:
        raise ValueError(f"expected {wanted} processes, accelerate started {engine.accelerator.num_processes}")
    return engine
