"""DeepSpeed's settings: which are refused because they would change what is computed, and what the run fills in."""

from copy import deepcopy
from typing import Any

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
"""What may not be set in a DeepSpeed configuration, and what to use instead."""

MAX_BUCKET = 500_000_000
"""DeepSpeed's own size of a bucket of gradients, in numbers."""


def check_settings(settings: dict[str, Any]) -> None:
    """ValueError, saying what to use instead, for settings that would change what is computed or that never ran."""
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
