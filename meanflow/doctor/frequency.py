"""How fast u turns along t, in rad per unit time, and how large that makes the correction (t - r) du/dt beside v.

Two independent readings in float64: `local`, sqrt(E (d_tt u)^2 / E (d_t u)^2) from second differences, which for a sum
of waves weighs the fast ones; and `spectral`, below which 99 % of the power of d_t u lies, by a Fourier transform of u
on a fine grid of t at fixed x_t and r = 0, detrended, under a Hann window.
"""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from meanflow.doctor.patient import Patient, interval_times, rms
from meanflow.doctor.verdict import Verdict, figure

LIMIT_RAD = 1e2
"""Above this, low precision and differences break down (maxf 100: 1 % error, 1000: tens of per cent)."""
GRID = 256


@dataclass(frozen=True, kw_only=True)
class Frequency:
    """Angular frequencies in rad per unit t; sizes as root mean squares."""

    local: float
    spectral: float | None
    """None if the time limit was reached before the whole grid was computed."""
    resolution: float
    """Distance between two neighbouring lines of the spectrum."""
    u: float
    v: float
    d_t: float
    """rms of the partial derivative of u by t."""
    correction: float
    """rms((t - r) du/dt)."""
    verdict: Verdict

    @property
    def highest(self) -> float:
        """The larger reading; the spectral one counts from four lines on, the width of the window's own peak."""
        spectral = self.spectral if self.spectral is not None and self.spectral > 4 * self.resolution else 0.0
        return max(self.local, spectral)


def examine_frequency(patient: Patient, *, forward_mode: bool = True, limit_s: float = 60.0) -> Frequency:
    """Second differences at eight times for every row, then a grid of times for the first row."""
    fine = patient.reference()
    deadline = time.monotonic() + limit_s
    h = 1e-5 if fine.x_t.dtype == torch.float64 else 1e-3
    first = second = level = 0.0
    count = 0
    generator = torch.Generator().manual_seed(patient.seed)
    zero = torch.zeros_like(fine.r)
    with torch.no_grad():
        for _ in range(8):
            count += 1
            t = (0.05 + 0.9 * torch.rand(len(fine.t), generator=generator)).to(fine.t)
            before, here, after = (fine.u(fine.x_t, zero, t + k * h) for k in (-1, 0, 1))
            first += rms((after - before) / (2 * h)) ** 2
            second += rms((after - 2 * here + before) / h**2) ** 2
            level += rms(here) ** 2
            if time.monotonic() > deadline:
                break
    first, second, level = (math.sqrt(a / count) for a in (first, second, level))
    noise = 4 * torch.finfo(fine.x_t.dtype).eps * level / h**2  # rounding of a second difference
    local = second / first if first > 0 and second > 10 * noise else 0.0
    window = min(0.9, math.pi * GRID / (4 * local)) if local > 0 else 0.9  # four times the local reading still resolved
    with torch.no_grad():
        spectral = _spectral(fine, window, deadline)
    dudt = fine.dudt() if forward_mode else fine.differences(fine.v, zero, torch.ones_like(fine.t), h)[0]
    correction = rms(interval_times(fine, dudt))
    found = Frequency(
        local=local, spectral=spectral, resolution=2 * math.pi / window, u=level, v=rms(fine.v), d_t=first,
        correction=correction, verdict=Verdict(level="unknown", line=""),
    )  # fmt: skip
    return Frequency(**(vars(found) | {"verdict": _verdict(found)}))


def _spectral(fine: Patient, window: float, deadline: float) -> float | None:
    """Frequency below which 99 % of the power of d_t u lies, for the first row, in rad per unit time."""
    row = torch.nonzero(fine.r < fine.t)[0].expand(len(fine.t))
    same = fine.rows(row)
    index = torch.arange(GRID, dtype=fine.t.dtype, device=fine.t.device)
    values: list[Tensor] = []
    for part in (0.5 + window * (index / GRID - 0.5)).split(len(row)):
        times = torch.cat([part, part[-1:].expand(len(row) - len(part))])
        values.append(same.u(same.x_t, torch.zeros_like(same.r), times)[: len(part)].flatten(1))
        if time.monotonic() > deadline:
            return None
    u = torch.cat(values)
    ramp = (index / GRID - 0.5)[:, None]
    u = u - u.mean(0)
    u = u - ramp * (ramp * u).sum(0) / ramp.pow(2).sum()
    hann = 0.5 - 0.5 * torch.cos(2 * math.pi * index / GRID)
    power = torch.fft.rfft(u * hann[:, None], dim=0).abs().pow(2).sum(1)
    omega = 2 * math.pi * torch.arange(len(power), dtype=power.dtype, device=power.device) / window
    below = torch.cumsum(power * omega**2, 0)
    return float(omega[torch.searchsorted(below, 0.99 * below[-1])]) if float(below[-1]) > 0 else 0.0


def _verdict(found: Frequency) -> Verdict:
    ratio = found.correction / found.v
    size = f"(t - r) du/dt is {figure(ratio)} of v"
    if found.highest > LIMIT_RAD:
        line = f"u turns at about {figure(found.highest)} rad per unit t (limit {LIMIT_RAD:g}); {size}"
        return Verdict(level="bad" if found.highest > 10 * LIMIT_RAD else "warn", line=line)
    line = f"about {figure(found.highest)} rad per unit t; {size}"
    return Verdict(level="warn" if ratio > 3.0 else "ok", line=line)
