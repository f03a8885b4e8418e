"""Real-time factors: what one clip costs, stage by stage, and on which machine."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch

STAGES = (
    "decode+resize",
    "image encoder",
    "motion encoder",
    "text encoder",
    "flow network",
    "codec decode",
)
"""Everything between a video file or a caption and a waveform, in order."""

SUBTOTALS: Mapping[str, tuple[str, ...]] = {"codec decode": ("latent decode", "vocoder")}
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
"""Named sums of stages. Published figures differ in scope; these say what they include."""

SCOPES: Mapping[str, str] = {
    "generator only": "the flow network with its features given, latents out, no sound yet",
    "noise to wave": "the flow network with its features given, latent decoder and vocoder",
    "text-to-audio": "from a caption to the wave: text encoder, flow network, latent decoder and vocoder",
    "frames to wave": "the three encoders on frames that are decoded already, flow network, latent decoder and vocoder",
    "video-to-audio": "from the video file to the wave: decoding and resizing as well; no muxing, no writing",
}
"""What each total includes, in words. Papers call both of the first two the time of generation."""


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
    """Calls before those, not in the figures."""
    warmup_s: float = 0.0
    """What they took altogether: compilation and the choice of algorithms are in here."""

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
    """What a timing was taken on."""

    device: str
    torch_version: str
    threads: int
    dtype: str


def synchroniser(device: torch.device | str) -> Callable[[], None]:
    """A function that waits until the device has finished; does nothing on the CPU."""
    if torch.device(device).type != "cuda":
        return lambda: None
    return lambda: torch.cuda.synchronize(device)


def measure(
    call: Callable[[], object],
    *,
    warmup: int = 1,
    repeats: int = 5,
    synchronise: Callable[[], None] = lambda: None,
) -> Timing:
    """Time `call` `repeats` times after `warmup` untimed calls, waiting for the device before and after each.

    On a GPU 10 and 50 are advised: the first calls choose algorithms, and a launched call has not run yet, which is
    why the device is waited for within the time.
    """
    if warmup < 0 or repeats < 1:
        raise ValueError(f"warmup must be at least 0 and repeats at least 1, got {warmup} and {repeats}")
    began = time.perf_counter()
    for _ in range(warmup):
        call()
    times, warmup_s = [], 0.0
    for k in range(repeats):
        synchronise()
        start = time.perf_counter()
        if k == 0 and warmup:
            warmup_s = start - began
        call()
        synchronise()
        times.append(time.perf_counter() - start)
    times.sort()
    return Timing(
        median_s=statistics.median(times),
        p10_s=times[round(0.1 * (repeats - 1))],
        p90_s=times[round(0.9 * (repeats - 1))],
        repeats=repeats,
        warmup=warmup,
        warmup_s=warmup_s,
    )


class StageTimer:
    """Times the stages of making one batch of clips and turns them into real-time factors.

    >>> timer = StageTimer(audio_s=2.0)
    >>> timer.measure("codec decode", lambda: None, repeats=3).repeats
    3
    """

    def __init__(self, *, audio_s: float, synchronise: Callable[[], None] = lambda: None) -> None:
        """`audio_s` is the audio one call makes, in seconds: clip duration x clips in the batch."""
        if not audio_s > 0.0:
            raise ValueError(f"audio_s must be positive, got {audio_s}")
        self.audio_s = audio_s
        self.synchronise = synchronise
        self.timings: dict[str, Timing] = {}

    def measure(self, stage: str, call: Callable[[], object], *, warmup: int = 1, repeats: int = 5) -> Timing:
        """Time one stage; `stage` must be one of STAGES or FINE_STAGES."""
        check_stage(stage)
        self.timings[stage] = measure(call, warmup=warmup, repeats=repeats, synchronise=self.synchronise)
        return self.timings[stage]

    def rtf(self) -> dict[str, float]:
        """Real-time factor by measured stage, in their order, and the totals whose stages are all measured."""
        order = dict.fromkeys((*FINE_STAGES, *STAGES))
        return with_totals({s: self.timings[s].rtf(self.audio_s) for s in order if s in self.timings})


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


def machine(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Machine:
    """Facts about `device` and this process that a timing depends on."""
    on_gpu = torch.device(device).type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else f"CPU {_cpu_name()}, {os.cpu_count()} cores"
    return Machine(
        device=name,
        torch_version=torch.__version__,
        threads=torch.get_num_threads(),
        dtype=str(dtype).removeprefix("torch."),
    )


def machine_facts(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, str]:
    """`machine` as strings, the way a row stores it."""
    return {name: str(value) for name, value in asdict(machine(device, dtype)).items()}


def _cpu_name() -> str:
    """Model name where Linux tells it, else the architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()
