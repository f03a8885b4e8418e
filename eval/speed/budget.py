"""The staged budget: what each stage on the way to sound costs, takes and could take at best on this machine.

    floor = max(flops / F, bytes / B)      with F and B measured on the same device (eval/speed/roofline.py), flops and
    bytes
                                           counted on the same calls (eval/speed/cost.py)
    share of the roofline = floor / median time

A budget is plain numbers: taken by eval/speed/budget.py, written as JSON, read back, shown by
eval/speed/budget_text.py.


Taking a staged budget (eval/speed/budget.py) of a chain: every stage counted, warmed up, timed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from eval.speed.cost import StageCost, count
from eval.speed.roofline import Roofline, roofline_of
from eval.speed.stages import Chain, StageCall, Work
from eval.speed.timing import (
    FINE_STAGES,
    STAGES,
    SUBTOTALS,
    TOTALS,
    Machine,
    Timing,
    check_stage,
    machine,
    measure,
    synchroniser,
    with_totals,
)
from meanflow import Guidance
from meanflow.config import dumps, loads

FLOW = "flow network"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a generation was asked for."""

    steps: int
    guidance: float
    """Scale; 1 is off."""


@dataclass(frozen=True, kw_only=True)
class StageBudget:
    """One stage of one batch."""

    stage: str
    batch: int
    dtype: str
    timing: Timing
    cost: StageCost | None = None
    """None where there is nothing torch could count, as in decoding a video."""
    setting: Setting | None = None
    """Of the flow network; no other stage depends on it."""
    evaluations: int | None = None
    """Of the network, per sound."""
    peak_bytes: int | None = None
    """Most memory taken on a GPU, weights of all stages included; None on a processor."""

    def __post_init__(self) -> None:
        check_stage(self.stage)
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        if (self.setting is None) == (self.stage == FLOW):
            raise ValueError(f"setting belongs to the flow network and to nothing else, got {self.setting}")


@dataclass(frozen=True, kw_only=True)
class Total:
    """A named sum of stages at one batch size and setting."""

    name: str
    stages: tuple[str, ...]
    median_s: float
    """Sum of the stages' medians, not the median of a sum."""
    floor_s: float
    """Sum of the floors of those stages that have one."""
    uncounted: tuple[str, ...]
    """Stages without a floor."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Everything that was measured, and on what."""

    name: str
    duration_s: float
    """Of one clip."""
    command: str
    machine: Machine
    cuda: str | None
    """Version of CUDA; None on a processor."""
    tf32: str
    """Whether float32 products and convolutions were allowed to be rounded to TF32."""
    compiled: bool
    attention: tuple[str, ...]
    """Attention operators that were taken, as torch calls them."""
    rooflines: tuple[Roofline, ...]
    stages: tuple[StageBudget, ...]

    def __post_init__(self) -> None:
        if not self.duration_s > 0.0:
            raise ValueError(f"duration_s must be positive, got {self.duration_s}")
        missing = {s.dtype for s in self.stages} - {r.dtype for r in self.rooflines}
        if missing:
            raise ValueError(f"rooflines must cover the dtypes of the stages, {', '.join(sorted(missing))} is missing")

    @property
    def batches(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(s.batch for s in self.stages))

    def settings(self, batch: int) -> tuple[Setting, ...]:
        """That the flow network was measured at, at this batch size."""
        return tuple(dict.fromkeys(s.setting for s in self.stages if s.batch == batch and s.setting is not None))

    def at(self, batch: int, setting: Setting) -> dict[str, StageBudget]:
        """Stages by name in their order: those without a setting, and the flow network at this one.

        Raises ValueError when that was not measured.
        """
        found = {s.stage: s for s in self.stages if s.batch == batch and s.setting in (None, setting)}
        if FLOW not in found:
            raise ValueError(f"the budget has no {setting} at batch {batch}")
        order = dict.fromkeys((*FINE_STAGES, *STAGES))
        return {stage: found[stage] for stage in order if stage in found}

    def rtf(self, batch: int, setting: Setting) -> dict[str, float]:
        """Median time over the audio made in it, by stage and total. Above batch 1 this is no latency."""
        made_s = batch * self.duration_s
        return with_totals({name: s.timing.rtf(made_s) for name, s in self.at(batch, setting).items()})

    def floor_s(self, stage: StageBudget) -> float | None:
        """Least time of the stage on this machine; None where nothing was counted."""
        if stage.cost is None:
            return None
        return self.roofline(stage).floor_s(stage.cost.flops, stage.cost.bytes)

    def share(self, stage: StageBudget) -> float | None:
        """floor / median; above 1 where a cache served what memory was counted for."""
        floor_s = self.floor_s(stage)
        return None if floor_s is None else floor_s / stage.timing.median_s

    def roofline(self, stage: StageBudget) -> Roofline:
        """Of the precision that the stage computes in."""
        return next(r for r in self.rooflines if r.dtype == stage.dtype)

    def totals(self, batch: int, setting: Setting) -> tuple[Total, ...]:
        """Those of TOTALS whose stages were all measured, in seconds a batch."""
        measured = self.at(batch, setting)
        made = []
        for name, wanted in TOTALS.items():
            stages = tuple(s for w in wanted for s in ((w,) if w in measured else SUBTOTALS.get(w, (w,))))
            if not all(stage in measured for stage in stages):
                continue
            floors = {stage: self.floor_s(measured[stage]) for stage in stages}
            made.append(
                Total(
                    name=name,
                    stages=stages,
                    median_s=sum(measured[stage].timing.median_s for stage in stages),
                    floor_s=sum(floor_s for floor_s in floors.values() if floor_s is not None),
                    uncounted=tuple(stage for stage, floor_s in floors.items() if floor_s is None),
                )
            )
        return tuple(made)

    def write(self, path: Path) -> None:
        """As JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dumps(self) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` wrote; ValueError naming the file and what is wrong with it otherwise."""
        try:
            return loads(cls, path.read_text(encoding="utf-8"))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a budget ({error})") from error


@torch.no_grad()
def measure_budget(
    chain: Chain,
    work: Work,
    *,
    steps: tuple[int, ...] = (1,),
    guidance: tuple[Guidance, ...] = (Guidance(),),
    batches: tuple[int, ...] = (1,),
    warmup: int = 1,
    repeats: int = 5,
    command: str = "",
    rooflines: tuple[Roofline, ...] | None = None,
    told: Callable[[str], None] = lambda line: None,
) -> Budget:
    """Count and time every stage at every batch size. Each is run once to be counted, then `warmup` + `repeats` times.

    The roofline is measured first, unless given or measured before in this process. `told` receives a line per stage
    as it is done. Raises ValueError for empty or repeated choices and for warmup or repeats below 1.
    """
    for name, values in (("steps", steps), ("guidance", guidance), ("batches", batches)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} must be one or more different values, got {values}")
    if warmup < 1 or repeats < 1:
        raise ValueError(f"warmup and repeats must be at least 1, got {warmup} and {repeats}")
    wait, attention, made = synchroniser(chain.device), set[str](), []
    if rooflines is None:
        dtypes = [torch.float32] + [torch.bfloat16] * (chain.precision != "float32")
        rooflines = tuple(roofline_of(dtype, chain.device) for dtype in dtypes)
    for batch in batches:
        for call in chain.calls(work, batch=batch, steps=steps, guidance=guidance):
            counted = count(call.call)
            attention |= counted.attention
            cost = counted.cost if counted.cost.operators else None
            del counted
            _reset_peak(chain.device)
            timing = measure(call.call, warmup=warmup, repeats=repeats, synchronise=wait)
            made.append(_stage(call, batch, timing, cost, _peak(chain.device)))
            told(f"batch {batch}, {call.stage}{_asked(call)}: {1e3 * timing.median_s:.4g} ms")
    on_gpu = torch.device(chain.device).type == "cuda"
    return Budget(
        name=chain.name,
        duration_s=work.duration_s,
        command=command,
        machine=machine(chain.device, torch.float32 if chain.precision == "float32" else torch.bfloat16),
        cuda=torch.version.cuda if on_gpu else None,
        tf32=_tf32() if on_gpu else "none on a processor",
        compiled=_compiled(chain.net),
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
