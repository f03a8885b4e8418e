"""The engine with all weights in every process: a single process, or DistributedDataParallel."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from distill.engines.base import Engine, Tensors
from distill.engines.optim import adamw, named_moments, restore_moments, set_learning_rate
from distill.loop_config import OptimConfig
from teacher.network.mmaudio import MMAudio


class Replicated(Engine):
    """A single process without a wrapper, or DDP, which averages gradients in the backward pass."""

    @property
    def name(self) -> str:  # type: ignore[override]
        return "single process" if self.processes == 1 else "DDP"

    def prepare(self, net: MMAudio, optim: OptimConfig, *, micro_batch: int, accumulation: int) -> None:
        self.plain = net.to(self.device)
        self.optimizer = adamw(self.plain, optim)
        self.model = self.plain
        if self.processes > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            self.model = DistributedDataParallel(self.plain, device_ids=devices, gradient_as_bucket_view=True)

    def micro(self, *, last: bool) -> AbstractContextManager[object]:
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, lr: float, clip_norm: float, *, healthy: bool) -> Tensor | None:
        trained = [p for p in self.plain.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(trained, clip_norm)
        fine = healthy and bool(torch.isfinite(norm))
        if fine:
            set_learning_rate(self.optimizer, lr)
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm.detach() if fine else None

    def moments(self) -> Tensors:
        return named_moments(self.plain, self.optimizer) if self.main else {}

    def load_moments(self, moments: Tensors) -> None:
        restore_moments(self.plain, self.optimizer, moments)
