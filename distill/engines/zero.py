"""DeepSpeed ZeRO-1, 2 and 3, as `accelerate launch --use_deepspeed` or a config file describes them (arXiv 1910.02054).

Weights, gradients and moments stay float32 and the optimiser stays PyTorch's AdamW, so every stage takes the steps of a
single process; bfloat16 is autocast, which the wrapped network enters by itself, because DeepSpeed switches off an
autocast it does not know. Under stage 3 `plain` is a second, whole copy of the weights, refilled after every step: no
hook stands in the way of a derivative, for 4 bytes a weight; gradients, moments and the trained copy are sharded.
Offloading moves the moments and the float32 weights they act on, in stage 3 also the weights between uses, to the CPU,
where AdamW then runs; on a machine without GPU it takes another path through DeepSpeed and saves nothing.

A step that must not happen goes down DeepSpeed's own path for an overflow, which finds a gradient's norm that is not
a number. `_refuse_norm` and `_adam_state` are where this module leans on DeepSpeed's internals (0.19).
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill.engines.base import Engine, Tensors
from distill.engines.optim import MOMENTS, adamw, check_moments, set_learning_rate, steps_on_device
from distill.loop_config import OptimConfig
from teacher.network.mmaudio import MMAudio

if TYPE_CHECKING:
    from accelerate import Accelerator

GATHERED_AT_ONCE = 2**25
"""Weights of a ZeRO-3 network that are gathered at a time while `plain` is refilled: 128 MiB."""
REFUSED = {
    "bf16.enabled": "use --mixed_precision bf16 instead, which is autocast over float32 weights",
    "fp16.enabled": "use --mixed_precision bf16 instead, whose range needs no loss scaling",
    "torch_autocast.enabled": "use --mixed_precision bf16 instead",
    "amp.enabled": "use --mixed_precision bf16 instead",
    "optimizer": "remove it: AdamW is set by the run's optim",
    "scheduler": "remove it: the learning rate is set by the run's optim",
    "zero_optimization.zero_quantized_weights": "remove it: weights must stay float32",
    "zero_optimization.zero_quantized_nontrainable_weights": "remove it: weights must stay float32",
    "zero_optimization.zero_quantized_gradients": "remove it: gradients must stay float32",
    "zero_optimization.round_robin_gradients": "remove it: DeepSpeed then finds the moments of other parameters",
    "zero_optimization.zenflow": "remove it: steps would no longer be Adam's",
    "zero_optimization.offload_optimizer.super_offload": "remove it: it brings an Adam of its own",
    "compression_training": "remove it: weights must stay float32",
}
"""Settings that a DeepSpeed configuration may not have, and what to use instead."""

MAX_BUCKET = 500_000_000
"""DeepSpeed's own size of a bucket of gradients, in numbers."""


class ZeRO(Engine):
    """DeepSpeed's engine around the network. ValueError for settings that would change what is computed."""

    def __init__(self, accelerator: "Accelerator", precision: torch.dtype) -> None:
        super().__init__(accelerator, precision)
        self._settings: dict[str, Any] = accelerator.state.deepspeed_plugin.deepspeed_config
        check_settings(self._settings)
        self._stage = int(self._settings["zero_optimization"]["stage"])
        self._healthy = True

    @property
    def name(self) -> str:  # type: ignore[override]
        zero = self._settings["zero_optimization"]
        moved = [
            what
            for key, what in (("offload_optimizer", "optimiser"), ("offload_param", "weights"))
            if (zero.get(key) or {}).get("device") == "cpu"
        ]
        return f"ZeRO-{self._stage}" + (f", {' and '.join(moved)} on the CPU" if moved else "")

    def prepare(self, net: MMAudio, optim: OptimConfig, *, micro_batch: int, accumulation: int) -> None:
        import deepspeed

        _quiet()
        net.to(self.device)
        self._trained = {n: p for n, p in net.named_parameters() if p.requires_grad}
        self._shapes = {n: p.shape for n, p in self._trained.items()}
        self.plain = deepcopy(net).requires_grad_(False) if self._stage == 3 else net
        settings = complete_settings(
            self._settings,
            micro_batch=micro_batch,
            accumulation=accumulation,
            processes=self.processes,
            clip_norm=optim.clip_norm,
            trained=sum(p.numel() for p in self._trained.values()),
        )
        wrapped = Autocast(net, self.device.type, self.precision)
        self.model, self._zero, _, _ = deepspeed.initialize(model=wrapped, optimizer=adamw(net, optim), config=settings)
        self._engine: Any = self.model
        self._adam: torch.optim.Optimizer = self._zero.optimizer
        self._adam_state()
        self._refuse_norm()
        if self._stage == 3:
            self._refill(dict(net.named_parameters()))

    @contextmanager
    def micro(self, *, last: bool) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, lr: float, clip_norm: float, *, healthy: bool) -> Tensor | None:
        set_learning_rate(self._adam, lr)
        self._zero.clip_grad = clip_norm
        self._healthy = healthy
        self._engine.step()
        if self._zero.overflow:
            return None
        if self._stage == 3:
            self._refill(self._trained)
        return torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32, device=self.device)

    def moments(self) -> Tensors:
        from deepspeed.utils import safe_get_full_optimizer_state

        step = self._adam.state[self._partitions[0]]["step"]
        if step == 0:
            return {}
        found: Tensors = {"step": step.to("cpu", torch.float32, copy=True)}
        for name, parameter in self._trained.items():
            for key in MOMENTS:
                whole = safe_get_full_optimizer_state(parameter, key)
                if self.main:
                    found[f"{key}.{name}"] = whole.to("cpu", torch.float32, copy=True)
        return found if self.main else {}

    def load_moments(self, moments: Tensors) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        check_moments(self._shapes, moments)
        if not moments:
            return
        for name, parameter in self._trained.items():
            for key in MOMENTS:
                whole = moments[f"{key}.{name}"]
                if self._stage == 3:  # DeepSpeed's own setter of whole values forgets that the last part is padded
                    safe_set_local_optimizer_state(parameter, _own_part(whole, parameter), key)
                else:
                    safe_set_full_optimizer_state(parameter, whole, key)
        for part in self._partitions:
            self._adam.state[part]["step"].copy_(moments["step"])

    def _adam_state(self) -> None:
        """Adam's state before the first step, so that it can be set; DeepSpeed links that of one group only later."""
        z = self._zero
        self._partitions: list[Tensor] = (
            z.fp32_partitioned_groups_flat if self._stage == 3 else z.single_partition_of_fp32_groups
        )
        for part in self._partitions:
            where = part.device if steps_on_device(self._adam) else torch.device("cpu")
            self._adam.state[part] = {"step": torch.zeros((), dtype=torch.float32, device=where)} | {
                key: torch.zeros_like(part, requires_grad=False) for key in MOMENTS
            }
        if self._stage < 3:
            z._lazy_init_hp_params_optimizer_state()

    def _refuse_norm(self) -> None:
        """Have DeepSpeed find a norm that is not a number where the step must not happen."""
        zero, nan = self._zero, torch.tensor(float("nan"))
        if self._stage == 3:
            groups = zero._get_norm_groups
            zero._get_norm_groups = lambda: groups() if self._healthy else [nan]
        else:
            norm = zero.scaled_global_norm
            zero.scaled_global_norm = lambda: norm() if self._healthy else nan

    @torch.no_grad()
    def _refill(self, parameters: dict[str, nn.Parameter]) -> None:
        """Copy sharded parameters into `plain`, a few at a time."""
        whole = dict(self.plain.named_parameters())
        for names in _portions({n: whole[n].numel() for n in parameters}, GATHERED_AT_ONCE):
            with _gathered([parameters[n] for n in names]):
                for name in names:
                    whole[name].copy_(parameters[name].detach())


class Autocast(nn.Module):
    """The network under autocast, which DeepSpeed calls. Casts are not cached, as they would keep sharded weights."""

    def __init__(self, net: nn.Module, device: str, precision: torch.dtype) -> None:
        super().__init__()
        self.net, self.device, self.precision = net, device, precision

    def forward(self, *inputs: Any) -> Any:
        low = self.precision != torch.float32
        with torch.autocast(self.device, dtype=self.precision, cache_enabled=False) if low else nullcontext():
            return self.net(*inputs)


def _quiet() -> None:
    """No warning of every skipped step, which the run's log counts, nor of the names of collectives DeepSpeed uses."""
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", r".*torch\.distributed\..* is deprecated", FutureWarning)


def _gathered(parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
    """Whole values of ZeRO-3 parameters; DeepSpeed keeps the small ones whole, and would shard those on leaving."""
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters, ZeroParamStatus

    absent = [p for p in parameters if p.ds_status != ZeroParamStatus.AVAILABLE]  # type: ignore[attr-defined]
    return GatheredParameters(absent) if absent else nullcontext()  # type: ignore[no-any-return]


def _own_part(whole: Tensor, parameter: Any) -> Tensor:
    """This process's part of a whole value, padded with zeros as DeepSpeed pads the parameter."""
    size, rank = parameter.ds_tensor.ds_numel, torch.distributed.get_rank(parameter.ds_process_group)
    part = whole.flatten()[rank * size : (rank + 1) * size]
    return nn.functional.pad(part, (0, size - part.numel()))


def _portions(sizes: dict[str, int], limit: int) -> Iterator[list[str]]:
    """Names in their order, in lists whose sizes add up to at most `limit`, a larger one alone."""
    names: list[str] = []
    total = 0
    for name, size in sizes.items():
        if names and total + size > limit:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    if names:
        yield names


def check_settings(settings: dict[str, Any]) -> None:
    """Raises ValueError, naming what to use instead, for settings that would change results or were never tested."""
    for path, instead in REFUSED.items():
        if _at(settings, path) not in (None, False, "auto", {}):
            raise ValueError(f"DeepSpeed's setting {path} is not supported: {instead}")
    zero = settings.get("zero_optimization") or {}
    if zero.get("stage") not in (1, 2, 3):
        raise ValueError(f"ZeRO stage must be 1, 2 or 3, got {zero.get('stage')}; without ZeRO leave DeepSpeed out")
    for part in ("offload_optimizer", "offload_param"):
        device = _at(zero, f"{part}.device")
        if device not in (None, "none", "cpu"):
            raise ValueError(f"DeepSpeed's {part} device must be none or cpu, got {device}")
    if _at(zero, "offload_param.device") == "cpu" and zero["stage"] != 3:
        raise ValueError(f"offload_param needs ZeRO stage 3, got {zero['stage']}; offload_optimizer works in every one")
    if _at(zero, "offload_optimizer.ratio") not in (None, 1, "auto"):
        raise ValueError("DeepSpeed's offload_optimizer ratio must be 1: the optimiser is on the CPU or not")
    for path in ("tensor_parallel.autotp_size", "sequence_parallel_size"):
        if _at(settings, path) not in (None, 0, 1, "auto"):
            raise ValueError(f"DeepSpeed's setting {path} is not supported: use ZeRO stage 3 for large networks")


def complete_settings(
    settings: dict[str, Any], *, micro_batch: int, accumulation: int, processes: int, clip_norm: float, trained: int
) -> dict[str, Any]:
    """A copy for `deepspeed.initialize`: batch, clipping and optimiser are the run's, "auto" is DeepSpeed's default.

    Buckets hold at most all `trained` numbers, since DeepSpeed sets whole buckets aside. `memory_efficient_linear`
    would replace torch.nn.functional.linear for the whole program by a function without forward mode.
    """
    made: dict[str, Any] = _without_auto(deepcopy(settings))
    made |= {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro_batch * accumulation * processes,
        "gradient_clipping": clip_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    zero = made["zero_optimization"]
    zero["memory_efficient_linear"] = False
    zero.setdefault("reduce_bucket_size", min(MAX_BUCKET, max(trained, 1)))
    return made


def _at(settings: dict[str, Any], path: str) -> Any:
    """The value under a.b.c; None where there is none."""
    found: Any = settings
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _without_auto(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_auto(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if not (isinstance(value, str) and value == "auto")
    }
