"""The staged budget: cost, measured time and least possible time of each stage of generation on one machine.

    floor = max(flops / F, bytes / B)      with F and B measured on the same device (eval/speed/roofline.py), flops and
                                           bytes counted on the same calls (eval/speed/cost.py)
    efficiency = floor / median time

A budget is plain numbers, for which no torch is needed: eval/speed/measure.py takes one, it is written as JSON and read
back, and eval/report/budgets.py shows it.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from teacher.sampling.stages import DECODE, DECODE_PARTS, FLOW, STAGES

SUBTOTALS: Mapping[str, tuple[str, ...]] = {DECODE: DECODE_PARTS}
"""Stages that may be timed in parts: latent -> spectrogram -> wave. The stage is then the sum of its parts."""

FINE_STAGES = tuple(part for stage in STAGES for part in SUBTOTALS.get(stage, (stage,)))
"""STAGES with the parts in the place of the stages they make up."""

TOTALS: Mapping[str, tuple[str, ...]] = {
    "generator only": ("flow network",),
    "noise to wave": ("flow network", "codec decode"),
    "text-to-audio": ("text encoder", "flow network", "codec decode"),
    "frames to wave": STAGES[1:],
    "video-to-audio": STAGES,
}
"""Named sums of stages. Published figures differ in scope; the names here state theirs."""

SCOPES: Mapping[str, str] = {
    "generator only": "the flow network with its features given, latents out, no sound yet",
    "noise to wave": "the flow network with its features given, latent decoder and vocoder",
    "text-to-audio": "from a caption to the wave: text encoder, flow network, latent decoder and vocoder",
    "frames to wave": "the three encoders on frames that are decoded already, flow network, latent decoder and vocoder",
    "video-to-audio": "from the video file to the wave: decoding and resizing as well; no muxing, no writing",
}
"""A description of what each total includes. Papers call both of the first two the time of generation."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Wall-clock time of one call, in seconds: median, 10th and 90th percentile over `repeats` calls.

    The percentiles are calls that were measured (nearest rank), not interpolations: of 5 the first and the last.
    """

    median_s: float
    p10_s: float
    p90_s: float
    repeats: int
    warmup: int = 0
    """Untimed calls before the timed ones."""
    warmup_s: float = 0.0
    """Seconds of all warm-up calls together, which include compilation and the choice of algorithms."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.p10_s <= self.median_s <= self.p90_s < float("inf"):
            raise ValueError(
                f"times must be finite with 0 <= p10_s <= median_s <= p90_s, "
                f"got {self.p10_s}, {self.median_s}, {self.p90_s}"
            )
        if self.repeats < 1 or self.warmup < 0 or self.warmup_s < 0.0:
            raise ValueError(
                f"repeats must be at least 1, warmup and warmup_s at least 0, "
                f"got {self.repeats}, {self.warmup}, {self.warmup_s}"
            )

    def rtf(self, audio_s: float) -> float:
        """Real-time factor: median wall time / duration of the audio made; below 1 is faster than real time."""
        if not audio_s > 0.0:
            raise ValueError(f"audio_s must be positive, got {audio_s}")
        return self.median_s / audio_s


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine and the software of a timing."""

    device: str
    torch_version: str
    threads: int
    dtype: str


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """Operations and bytes of one call, as eval/speed/cost.py counts them."""

    flops: int
    bytes: int
    traffic: int
    operators: int
    """Operators that access memory: on a GPU about the number of kernels launched, at some 5 microseconds each."""

    def __post_init__(self) -> None:
        for name in ("flops", "bytes", "traffic", "operators"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Measured rates of one device in one precision."""

    flops_per_s: float
    """Rate of a large matrix product in operations per second; a multiply-add counts as 2."""
    bytes_per_s: float
    """Rate of the fastest way of streaming large blocks, in bytes per second: reading, copying, or a = b + s c."""
    dtype: str
    device: str

    def __post_init__(self) -> None:
        for name, rate in (("flops_per_s", self.flops_per_s), ("bytes_per_s", self.bytes_per_s)):
            if not 0.0 < rate < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {rate}")

    def floor_s(self, flops: float, bytes: float) -> float:
        """max(flops / F, bytes / B) in seconds: the least time of a call that overlaps both perfectly."""
        if flops < 0 or bytes < 0:
            raise ValueError(f"flops and bytes must not be negative, got {flops} and {bytes}")
        return max(flops / self.flops_per_s, bytes / self.bytes_per_s)

    def bound(self, flops: float, bytes: float) -> str:
        """The limit that decides the floor: "arithmetic" or "memory"."""
        return "arithmetic" if flops / self.flops_per_s >= bytes / self.bytes_per_s else "memory"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Steps and guidance scale of a generation."""

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
    """Steps and guidance of the flow network; None for other stages, which do not depend on them."""
    evaluations: int | None = None
    """Evaluations of the network per sound."""
    peak_bytes: int | None = None
    """Peak memory on a GPU in bytes, weights of all stages included; None on a CPU."""

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
    """All measurements of a generator's stages, with the machine they were made on."""

    name: str
    duration_s: float
    """Of one clip."""
    command: str
    machine: Machine
    cuda: str | None
    """Version of CUDA; None on a CPU."""
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
        """Settings at which the flow network was measured, at this batch size."""
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

    def efficiency(self, stage: StageBudget) -> float | None:
        """floor / median time; above 1 where a cache held data that were counted as read from memory."""
        floor_s = self.floor_s(stage)
        return None if floor_s is None else floor_s / stage.timing.median_s

    def roofline(self, stage: StageBudget) -> Roofline:
        """The rates in the precision in which the stage computes."""
        return next(r for r in self.rooflines if r.dtype == stage.dtype)

    def totals(self, batch: int, setting: Setting) -> tuple[Total, ...]:
        """The totals of TOTALS whose stages were all measured, in seconds a batch."""
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
        """Write the budget as JSON."""
        from meanflow.config import dumps  # imports torch, which whoever writes a budget has and who reads one need not

        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dumps(self) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote; ValueError naming the file and what is wrong with it otherwise."""
        try:
            plain = json.loads(path.read_text(encoding="utf-8"), object_hook=_untagged)
            stages = tuple(
                StageBudget(
                    **stage
                    | {"timing": Timing(**stage["timing"])}
                    | {"cost": None if stage.get("cost") is None else StageCost(**stage["cost"])}
                    | {"setting": None if stage.get("setting") is None else Setting(**stage["setting"])}
                )
                for stage in plain.pop("stages")
            )
            machine = Machine(**plain.pop("machine"))
            rooflines = tuple(Roofline(**rates) for rates in plain.pop("rooflines"))
            attention = tuple(plain.pop("attention"))
            return cls(machine=machine, rooflines=rooflines, attention=attention, stages=stages, **plain)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: not a budget ({error})") from error


def _untagged(plain: dict[str, object]) -> dict[str, object]:
    """A JSON object without the name of its class, which `write` puts into every one."""
    return {name: value for name, value in plain.items() if name != "type"}


def check_stage(stage: str) -> None:
    """ValueError unless `stage` is one of STAGES or FINE_STAGES."""
    known = dict.fromkeys((*STAGES, *FINE_STAGES))
    if stage not in known:
        raise ValueError(f"stage must be one of {', '.join(known)}, got {stage!r}")


def with_totals(values: Mapping[str, float]) -> dict[str, float]:
    """Real-time factors (or seconds) by stage with the sums added whose stages are all present.

    A stage given in parts is added as their sum; one that is given itself stays as it is.
    """
    found = dict(values)
    for sums in (SUBTOTALS, TOTALS):
        for name, parts in sums.items():
            if name not in found and all(part in found for part in parts):
                found[name] = sum(found[part] for part in parts)
    return found
