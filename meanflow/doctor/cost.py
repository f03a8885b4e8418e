"""Time and memory of each way to the derivative, beside a plain forward and backward.

Memory is the peak of bytes allocated during the call: on a CUDA device as its allocator reports it, elsewhere the sum
of the live storages that operators make.
"""

import math
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from meanflow.doctor.patient import Patient, plain_attention, tensors_in
from meanflow.doctor.verdict import Verdict, figure, one_line

Way: TypeAlias = Literal["forward and backward", "ForwardAD", "CentralDifference", "double backward"]


@dataclass(frozen=True, kw_only=True)
class Price:
    """One way: seconds and bytes, and both relative to a plain forward and backward."""

    way: Way
    seconds: float | None
    peak_bytes: int | None
    times: float | None
    memory: float | None
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Prices on all rows, the plain forward and backward first."""

    prices: tuple[Price, ...]
    verdict: Verdict

    def of(self, way: Way) -> Price:
        """The price of one way."""
        return next(p for p in self.prices if p.way == way)


def examine_cost(patient: Patient, *, repeats: int = 5, limit_s: float = 60.0) -> Cost:
    """Shortest of up to `repeats` calls, after one for the memory; a way that fails is listed with its error."""
    bench = patient.to(torch.float32)
    if not any(a.requires_grad for a in bench.module.parameters()):
        bench.module.requires_grad_(True)  # a frozen copy would have nothing to save for backward
    inputs = (bench.x_t, bench.r, bench.t)
    tangents = (bench.v, torch.zeros_like(bench.r), torch.ones_like(bench.t))

    def plain() -> None:
        bench.module.zero_grad(set_to_none=True)
        bench.u(*inputs).pow(2).mean().backward()

    def double_backward() -> Tensor:
        with plain_attention():  # fused attention has no second derivative
            out: Tensor = torch.autograd.functional.jvp(bench.u, inputs, tangents, create_graph=True)[1]
        return out

    ways: dict[Way, Callable[[], Any]] = {
        "forward and backward": plain,
        "ForwardAD": bench.dudt,
        "CentralDifference": bench.central_dudt,
        "double backward": double_backward,
    }
    peaks: dict[Way, int] = {}
    errors: dict[Way, str] = {}
    for way, call in ways.items():
        torch.manual_seed(bench.seed)
        try:
            peaks[way] = _peak(call, bench.x_t.device)
        except Exception as error:  # a module without forward mode, or without a second derivative
            errors[way] = one_line(error)
    seconds = _seconds({way: ways[way] for way in peaks}, bench.x_t.device, repeats, limit_s)
    base: Way = "forward and backward"
    prices = tuple(
        Price(
            way=way, seconds=seconds.get(way), peak_bytes=peaks.get(way), error=errors.get(way, ""),
            times=seconds[way] / seconds[base] if way in seconds and base in seconds else None,
            memory=peaks[way] / peaks[base] if way in peaks and peaks.get(base) else None,
        )
        for way in ways
    )  # fmt: skip
    bench.module.zero_grad(set_to_none=True)
    return Cost(prices=prices, verdict=_verdict(prices))


class _Live(TorchDispatchMode):
    """Bytes of the storages that operators make and that are still held by somebody."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {a.untyped_storage()._cdata for a in tensors_in((args, kwargs or {}))}
        result = func(*args, **(kwargs or {}))
        for a in tensors_in(result):
            storage = a.untyped_storage()
            key = storage._cdata
            if key not in self.known and key not in before:
                self.known.add(key)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, key, storage.nbytes())
        return result

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def _peak(call: Callable[[], Any], device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - start
    with _Live() as live:
        call()
    return live.peak


def _seconds(
    ways: dict[Way, Callable[[], Any]], device: torch.device, repeats: int, limit_s: float
) -> dict[Way, float]:
    """The shortest of several calls each, taking turns, so that what else the machine does hits them alike."""
    deadline = time.monotonic() + limit_s
    taken: dict[Way, float] = {}
    for turn in range(repeats):
        for way, call in ways.items():
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken[way] = min(taken.get(way, math.inf), time.perf_counter() - start)
        if turn and time.monotonic() > deadline:
            break
    return taken


def _verdict(prices: tuple[Price, ...]) -> Verdict:
    """The price of a training step whose derivative runs on a quarter of the rows follows from that on all of them."""
    base, exact = prices[0], next(p for p in prices if p.way == "ForwardAD")
    if base.error:
        return Verdict(level="unknown", line=f"forward and backward fail: {base.error}")
    if exact.times is None:
        return Verdict(level="warn", line="ForwardAD does not run, so that there is no exact derivative to be timed")
    line = (
        f"ForwardAD on all rows: {figure(exact.times)} times a forward and backward, {figure(exact.memory)} its "
        f"memory; a step with a quarter of rows r < t about {1 + exact.times / 4:.2f} times a plain one"
    )
    return Verdict(level="ok", line=line)
