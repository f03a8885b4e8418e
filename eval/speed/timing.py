"""Times one call over repetitions, waiting for the device, and describes the machine that it ran on."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict

import torch

from eval.speed.budget import Machine, Timing


def synchroniser(device: torch.device | str) -> Callable[[], None]:
    """A function that waits until the device has finished; on the CPU it does nothing."""
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


def machine(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Machine:
    """The facts about `device` and this process that a timing depends on."""
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
    """Model name from /proc/cpuinfo, else the architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()
