"""Long sounds in overlapping windows: where they start, their noise, and how they are cross-faded.

Windows start on latent frames and noise is a function of (seed, latent frame), so neighbours have the same noise where
they overlap and generate similar sound there. Cross-fades preserve the energy: with weights w and 1 - w and correlation
c of the two sounds, the sum is divided by sqrt(w^2 + (1 - w)^2 + 2 w (1 - w) c), which is 1 for equal sounds and
restores 3 dB in the middle of unrelated ones. c is bounded below by -0.9, because sounds that cancel leave nothing to
amplify.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from teacher.network.sequence import MIN_DURATION_S, SequenceConfig
from teacher.sampling.generator import clip_seed, noise

OVERLAP_S = 0.5
"""Seconds over which neighbouring windows overlap and are cross-faded; at most a quarter of a window."""


def window_starts(total_s: float, window_s: float, sequence: SequenceConfig) -> tuple[int, ...]:
    """First latent frames of windows of `window_s` that cover `total_s`; one window if it is no longer than that.

    The last window ends at total_s or less than one frame later, and may overlap more than the others do.
    Raises ValueError below the shortest sound, 0.64 s.
    """
    if not math.isfinite(total_s):
        raise ValueError(f"the duration of a sound must be finite, got {total_s}")
    if total_s < MIN_DURATION_S:
        raise ValueError(f"the shortest sound is {MIN_DURATION_S} s, {total_s:.3g} s was asked for")
    if total_s <= window_s:
        return (0,)
    rate = sequence.latent_rate
    step = max(1, math.floor((window_s - overlap_s(window_s)) * rate))
    last = math.ceil(round((total_s - window_s) * rate, 9))
    return (*range(0, last, step), last)


def overlap_s(window_s: float) -> float:
    """Seconds of the cross-fade between windows of `window_s`."""
    return min(OVERLAP_S, window_s / 4)


def window_noise(
    seed: int, starts: tuple[int, ...], frames: int, channels: int
) -> Float[Tensor, "windows frames channels"]:
    """Standard normal noise of windows of `frames` latent frames: frame n is the same in every window that holds it.

    It is drawn in blocks of `frames` frames, block k with the seed of (seed, "window k"). The first window therefore
    has the noise of a sound that consists of one window.
    """
    blocks: dict[int, Tensor] = {}

    def block(k: int) -> Tensor:
        if k not in blocks:
            blocks[k] = noise([clip_seed(seed, f"window {k}")], frames, channels)[0]
        return blocks[k]

    made = []
    for start in starts:
        k, offset = divmod(start, frames)
        made.append(block(k) if offset == 0 else torch.cat([block(k)[offset:], block(k + 1)[:offset]]))
    return torch.stack(made)


class Joiner:
    """Joins windows, given in order, into one sound; stores only the samples that a later window may still change."""

    def __init__(self, *, fade: int, total: int) -> None:
        """fade: samples of a cross-fade; total: samples of the whole sound."""
        self._fade, self._total = fade, total
        self._done = 0
        self._tail = torch.zeros(0)

    def add(self, wave: Float[Tensor, " samples"], start: int, *, then: int | None) -> Float[Tensor, " finished"]:
        """Add `wave`, which begins at sample `start`; returns the samples that are final now: those before `then`, the
        beginning of the next window, or all after the last window (None).

        Raises ValueError where a window leaves a gap to the one before it.
        """
        wave = wave[: max(0, self._total - start)]
        overlap = self._done + len(self._tail) - start
        if overlap < 0:
            raise ValueError(f"a window must begin where the one before it ends or earlier, got a gap of {-overlap}")
        before, old = self._tail[: len(self._tail) - overlap], self._tail[len(self._tail) - overlap :]
        # Of a longer overlap the middle is faded, away from both windows' edges.
        fade = min(self._fade, overlap, len(wave))
        first = (min(overlap, len(wave)) - fade) // 2
        between = _faded(old[first : first + fade], wave[first : first + fade])
        mixed = torch.cat([before, old[:first], between, wave[first + fade :]])
        count = len(mixed) if then is None else min(len(mixed), then - self._done)
        finished, self._tail = mixed[:count], mixed[count:]
        self._done += len(finished)
        return finished


def _faded(old: Float[Tensor, " samples"], new: Float[Tensor, " samples"]) -> Float[Tensor, " samples"]:
    """Cross-fade from `old` to `new` at constant energy."""
    if len(old) == 0:
        return new[:0]
    w = (torch.arange(len(old), dtype=old.dtype) + 0.5) / len(old)
    power = float((old.square().sum() * new.square().sum()).sqrt())
    alike = min(1.0, max(-0.9, float(old @ new) / power)) if power > 0.0 else 1.0
    mixed = (1.0 - w) * old + w * new
    return mixed / (w.square() + (1.0 - w).square() + 2.0 * w * (1.0 - w) * alike).sqrt()
