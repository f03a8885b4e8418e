"""Chooses the engine from the configuration of `accelerate launch` and checks it before anything is trained."""

import atexit
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from distill.engines.base import Engine
from distill.processes import is_single_in_place_of_several, this_process

if TYPE_CHECKING:
    from accelerate import Accelerator

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16}


def choose_engine(*, timeout_s: float = 1800.0) -> Engine:
    """The engine that `accelerate launch` configured; a single process without it.

    Raises ValueError for precisions other than no and bf16, and where fewer processes started than were asked for.
    """
    if is_single_in_place_of_several():
        raise ValueError(
            "several processes were asked for and accelerate launch started one, as it does with --cpu and for a file "
            "of distributed_type NO: use --config_file distill/configs/ddp_8gpu.yaml (or ddp_float32_8gpu.yaml), which "
            "needs no GPU; or unset MASTER_PORT if one process is wanted"
        )
    wanted = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if wanted not in PRECISIONS:
        raise ValueError(
            f"mixed precision {wanted!r} is not supported: use bf16, whose range needs no loss scaling, or no"
        )
    precision = PRECISIONS[wanted]
    deepspeed = _asked_for("ACCELERATE_USE_DEEPSPEED")
    fsdp = _asked_for("ACCELERATE_USE_FSDP")
    if fsdp:
        from distill.engines.fsdp import Settings

        Settings.from_environment()  # refused before accelerate acts on them
    # Later than the loop's watchdog, whose message explains more than a collective's timeout.
    accelerator = _accelerator(timedelta(seconds=2 * timeout_s + 60), deepspeed)
    atexit.register(_leave)
    expected = this_process().world_size
    if accelerator.num_processes != expected:
        raise ValueError(f"expected {expected} processes, accelerate started {accelerator.num_processes}")
    if str(accelerator.distributed_type).endswith("DEEPSPEED"):
        from distill.engines.zero import ZeRO

        return ZeRO(accelerator, precision)
    if deepspeed:
        raise ValueError(f"DeepSpeed was asked for, accelerate started {accelerator.distributed_type}")
    if fsdp and accelerator.num_processes > 1:
        from distill.engines.fsdp import FSDP2

        return FSDP2(accelerator, precision)
    from distill.engines.replicated import Replicated

    return Replicated(accelerator, precision)


def _accelerator(timeout: timedelta, deepspeed: bool) -> "Accelerator":
    """Accelerate's own mixed precision stays off: every engine uses the autocast of `Engine.autocast`.

    Without a CUDA device the CPU is claimed first: otherwise DeepSpeed's path counts zero devices and miscomputes batch
    sizes.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs, PartialState

    handlers: list[Any] = [InitProcessGroupKwargs(timeout=timeout)]
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        if deepspeed:
            _without_shared_memory()
        PartialState(cpu=True, timeout=timeout)
    return Accelerator(mixed_precision="no", kwargs_handlers=handlers)


def _without_shared_memory() -> None:
    """DeepSpeed compiles an operator of its own for CPU collectives, for a minute or two; gloo does without."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _leave() -> None:
    """Ends the process group before the interpreter does: gloo's threads abort a process that ends with them running,
    and a finished training would be reported as failed. Processes that leave early by os._exit do not come here."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _asked_for(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1", "yes")
