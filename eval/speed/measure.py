"""Measures a staged budget: the operations of every stage are counted, then the stage is warmed up and timed."""

from collections.abc import Callable

import torch

from eval.speed.budget import Budget, Roofline, Setting, StageBudget, StageCost, Timing
from eval.speed.cost import count
from eval.speed.roofline import roofline_of
from eval.speed.stages import StageCall, StagedGenerator, Workload
from eval.speed.timing import machine, measure, synchroniser
from meanflow import Guidance


@torch.no_grad()
def measure_budget(
    model: StagedGenerator,
    workload: Workload,
    *,
    steps: tuple[int, ...] = (1,),
    guidance: tuple[Guidance, ...] = (Guidance(),),
    batches: tuple[int, ...] = (1,),
    warmup: int = 1,
    repeats: int = 5,
    command: str = "",
    rooflines: tuple[Roofline, ...] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Budget:
    """Count and time every stage at every batch size. Each is run once to be counted, then `warmup` + `repeats` times.

    The roofline is measured first, unless given or measured before in this process. `report` receives a line per stage
    as it is done. Raises ValueError for empty or repeated choices and for warmup or repeats below 1.
    """
    for name, values in (("steps", steps), ("guidance", guidance), ("batches", batches)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} must be one or more different values, got {values}")
    if warmup < 1 or repeats < 1:
        raise ValueError(f"warmup and repeats must be at least 1, got {warmup} and {repeats}")
    wait, attention, made = synchroniser(model.device), set[str](), []
    if rooflines is None:
        dtypes = [torch.float32] + [torch.bfloat16] * (model.precision != "float32")
        rooflines = tuple(roofline_of(dtype, model.device) for dtype in dtypes)
    for batch in batches:
        for call in model.calls(workload, batch=batch, steps=steps, guidance=guidance):
            counted = count(call.call)
            attention |= counted.attention
            cost = counted.cost if counted.cost.operators else None
            del counted
            _reset_peak(model.device)
            timing = measure(call.call, warmup=warmup, repeats=repeats, synchronise=wait)
            made.append(_stage(call, batch, timing, cost, _peak(model.device)))
            report(f"batch {batch}, {call.stage}{_asked(call)}: {1e3 * timing.median_s:.4g} ms")
    on_gpu = torch.device(model.device).type == "cuda"
    return Budget(
        name=model.name,
        duration_s=workload.duration_s,
        command=command,
        machine=machine(model.device, torch.float32 if model.precision == "float32" else torch.bfloat16),
        cuda=torch.version.cuda if on_gpu else None,
        tf32=_tf32() if on_gpu else "none on a processor",
        compiled=_compiled(model.generator.net),
        attention=tuple(sorted(attention)),
        rooflines=rooflines,
        stages=tuple(made),
    )


def _stage(call: StageCall, batch: int, timing: Timing, cost: StageCost | None, peak: int | None) -> StageBudget:
    setting = None
    if call.steps is not None and call.guidance is not None:
        setting = Setting(steps=call.steps, guidance=call.guidance)
    return StageBudget(
        stage=call.stage,
        batch=batch,
        dtype=call.dtype,
        timing=timing,
        cost=cost,
        setting=setting,
        evaluations=call.evaluations,
        peak_bytes=peak,
    )


def _asked(call: StageCall) -> str:
    return "" if call.steps is None else f" ({call.steps} steps, guidance {call.guidance:g})"


def _reset_peak(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: str) -> int | None:
    return torch.cuda.max_memory_allocated(device) if torch.device(device).type == "cuda" else None


def _tf32() -> str:
    products = torch.get_float32_matmul_precision() != "highest"
    return f"products {'on' if products else 'off'}, convolutions {'on' if torch.backends.cudnn.allow_tf32 else 'off'}"


def _compiled(net: torch.nn.Module) -> bool:
    """Whether `Module.compile` was called on the network or a part of it."""
    return any(part._compiled_call_impl is not None for part in net.modules())
