"""Long sounds in overlapping windows: where they start, their noise, and how they are faded into one another.

Windows start on latent frames, so that neighbours have the same noise where they overlap: noise is a function of
(seed, latent frame), and two windows make similar sound where they overlap. Fades keep the energy whatever the two
have in common: where they are weighted w and 1 - w and correlated by c, the sum is divided by
sqrt(w^2 + (1 - w)^2 + 2 w (1 - w) c), which is 1 for equal sounds and makes up for 3 dB amid unrelated ones.
c is bounded at -0.9: of sounds that cancel, nothing is left to be made louder.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from teacher.network.sequence import MIN_DURATION_S, SequenceConfig
from teacher.sampling.generator import clip_seed, noise

OVERLAP_S = 0.5
"""Overlap of neighbouring windows, over which they are cross-faded; a quarter of a shorter window at most."""


def window_starts(total_s: float, window_s: float, sequence: SequenceConfig) -> tuple[int, ...]:
    """First latent frames of windows of `window_s` that cover `total_s`; one window if it is no longer than that.

    The last window ends at total_s or less than one frame later, and may overlap its neighbour by more than the rest.
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
    """Seconds over which windows of `window_s` are faded."""
    return min(OVERLAP_S, window_s / 4)


def window_noise(
    seed: int, starts: tuple[int, ...], frames: int, channels: int
) -> Float[Tensor, "windows frames channels"]:
    """Standard normal noise of windows of `frames` latent frames: frame n is the same in every window that holds it.

    It is drawn in blocks of `frames` frames; block k by the seed of (seed, "window k"), so that the first window has
    the noise of a sound that needs no other.
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
    """Joins windows, given in order, into one sound; holds no more than what a later window may still change."""

    def __init__(self, *, fade: int, total: int) -> None:
        """`fade`: samples over which neighbours are faded; `total`: samples of the whole sound."""
        self._fade, self._total = fade, total
        self._done = 0
        self._tail = torch.zeros(0)

    def add(self, wave: Float[Tensor, " samples"], start: int, *, then: int | None) -> Float[Tensor, " finished"]:
        """The samples that are final once `wave`, which begins at sample `start`, is there: those before `then`, where
        the next window begins; all, if it is the last (None).

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
    """From `old` to `new` at constant energy."""
    if len(old) == 0:
        return new[:0]
    w = (torch.arange(len(old), dtype=old.dtype) + 0.5) / len(old)
    power = float((old.square().sum() * new.square().sum()).sqrt())
    alike = min(1.0, max(-0.9, float(old @ new) / power)) if power > 0.0 else 1.0
    mixed = (1.0 - w) * old + w * new
    return mixed / (w.square() + (1.0 - w).square() + 2.0 * w * (1.0 - w) * alike).sqrt()
