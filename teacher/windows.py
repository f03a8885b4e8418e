"""Long sounds in overlapping windows: where they start, and how they are faded into one another."""

import torch
from torch import Tensor

from teacher.sequence import MIN_DURATION_S

OVERLAP_S = 0.25
"""Overlap of neighbouring windows, over which they are cross-faded."""


def window_starts(total_s: float, window_s: float) -> list[float]:
    """Start times of windows of `window_s` that cover `total_s`; one window if it is no longer than that.

    Steps are window_s - 0.25 s; the last window ends exactly at total_s and may overlap its neighbour by more.
    """
    if total_s < MIN_DURATION_S:
        raise ValueError(f"the shortest sound is {MIN_DURATION_S} s, {total_s:.3g} s was asked for")
    if total_s <= window_s:
        return [0.0]
    step = window_s - OVERLAP_S
    if step <= 0:
        raise ValueError(f"a window must be longer than the overlap of {OVERLAP_S} s, got {window_s}")
    starts = [k * step for k in range(int((total_s - window_s) / step) + 1)]
    return starts if total_s - window_s - starts[-1] < 1e-3 else [*starts, total_s - window_s]


def overlap_add(waves: Tensor, starts: list[float], sample_rate: int, total_s: float) -> Tensor:
    """Windows (W, samples) at their start times -> one wave of round(total_s * sample_rate) samples.

    Where two windows overlap, each is weighted by its distance from its own edge, normalised to sum to one; a window
    alone keeps its samples.
    """
    total = round(total_s * sample_rate)
    samples = waves.shape[1]
    fade = max(1, round(OVERLAP_S * sample_rate))
    ramp = torch.arange(1, samples + 1, dtype=waves.dtype)
    weight = torch.minimum(ramp, ramp.flip(0)).clamp(max=fade) / fade
    out, norm = torch.zeros(total), torch.zeros(total)
    for wave, start in zip(waves, starts, strict=True):
        first = round(start * sample_rate)
        count = min(samples, total - first)
        out[first : first + count] += weight[:count] * wave[:count]
        norm[first : first + count] += weight[:count]
    return out / norm.clamp(min=1e-8)
