"""The interface between the training loop and an engine, which distributes weights, gradients and moments.

Two views of the network matter. `model` is called once per forward pass, with gradients, and may hold a shard. `plain`
is the same network whole, with nothing hooked into it and current after every step: derivatives, targets and samples
are computed on it without a graph, so that no collective hides in code that runs a different number of times in each
process (arXiv 2505.13447 needs the derivative only under stop-gradient).
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from distill.loop_config import OptimConfig
from teacher.network.mmaudio import MMAudio

if TYPE_CHECKING:
    from accelerate import Accelerator

Tensors: TypeAlias = dict[str, Tensor]


class TogetherError(RuntimeError):
    """An error that occurred in one or several processes and is raised in all of them."""


def precision_name(precision: torch.dtype) -> str:
    """As people read it."""
    return "float32" if precision == torch.float32 else "bfloat16 autocast"


class Engine(ABC):
    """A started engine. Methods marked collective must be called by every process, in the same order."""

    name: str
    """The name in the log: single process, DDP, FSDP2, ZeRO-2."""
    model: nn.Module
    plain: MMAudio

    def __init__(self, accelerator: "Accelerator", precision: torch.dtype) -> None:
        self.accelerator = accelerator
        self.precision = precision
        """float32, or bfloat16 by autocast: weights, gradients and moments stay float32 in every engine."""

    @property
    def process(self) -> int:
        return int(self.accelerator.process_index)

    @property
    def processes(self) -> int:
        return int(self.accelerator.num_processes)

    @property
    def main(self) -> bool:
        """Whether this is the main process, which writes files and prints."""
        return self.process == 0

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    def describe(self) -> str:
        """One line for the log: strategy, processes, device, precision."""
        return f"{self.name}, {self.processes} process(es), {self.device}, {precision_name(self.precision)}"

    def autocast(self) -> AbstractContextManager[object]:
        """Context of every forward pass, with a graph or without: autocast in the precision of the run."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)

    @abstractmethod
    def prepare(self, net: MMAudio, optim: OptimConfig, *, micro_batch: int, accumulation: int) -> None:
        """Take over a network on the CPU or the device, with its weights loaded; sets `model` and `plain`. Collective.

        `micro_batch` sounds per process and forward, `accumulation` forwards per step. Raises ValueError where this
        engine cannot train the network as configured, saying what to use.
        """

    @abstractmethod
    def micro(self, *, last: bool) -> AbstractContextManager[object]:
        """Context of one forward and backward pass; gradients are averaged over processes in the `last` of a step."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar loss, already divided by the number of micro-batches. Collective."""

    @abstractmethod
    def step(self, lr: float, clip_norm: float, *, healthy: bool) -> Tensor | None:
        """One optimiser step at rate lr with the gradient clipped to clip_norm; returns the norm before clipping.

        The norm is that over all processes. Where it is not finite or `healthy` (the same in every process) is false,
        the result is None and weights and moments stay as they are. Gradients are cleared in any case. Collective.
        """

    @abstractmethod
    def moments(self) -> Tensors:
        """Adam's state as exp_avg.<parameter>, exp_avg_sq.<parameter> (full tensors, float32, CPU) and step ().

        It is complete in the main process and empty elsewhere, and empty before the first step. Collective.
        """

    @abstractmethod
    def load_moments(self, moments: Tensors) -> None:
        """Restore what `moments` returned; each process passes all of it. ValueError where names or shapes differ."""

    def total(self, values: Tensor) -> Tensor:
        """The elementwise sum of a tensor over processes. Collective."""
        total: Tensor = self.accelerator.reduce(values, "sum")
        return total

    def gather(self, item: Any) -> list[Any]:
        """Returns to every process what all processes pass, in their order; for small CPU tensors. Collective."""
        if self.processes == 1:
            return [item]
        from accelerate.utils import gather_object

        items: list[Any] = gather_object([item])
        return items

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """Returns the tensor of process `source` to every process, overwriting `tensor` in the others. Collective."""
        if self.processes > 1:
            torch.distributed.broadcast(tensor, src=source)
        return tensor

    def together(self, error: str | None) -> None:
        """Raises TogetherError in every process if one of them passes an error. Collective."""
        found = [(k, text) for k, text in enumerate(self.gather(error)) if text is not None]
        if found:
            where = "" if self.processes == 1 else f"process {found[0][0]}: "
            raise TogetherError(where + found[0][1])

    def wait(self) -> None:
        """Barrier. Collective."""
        self.accelerator.wait_for_everyone()
