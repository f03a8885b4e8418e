"""What a sound is made for, and the sound."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from teacher.conditions import Conditions
from teacher.data.media import MediaError, probe, write_audio
from teacher.encoders.registry import Encoders, encode_clip
from teacher.sampling import SamplingConfig
from teacher.sequence import MIN_DURATION_S, SequenceConfig
from teacher.windows import window_starts


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """Pictures and words of one sound, cut into windows of `length_s`."""

    video: Path | None
    prompt: str | None
    negative_prompt: str | None
    negative: Tensor | None
    """Encoded negative prompt, (1, tokens, width)."""
    total_s: float
    """Duration of the sound."""
    length_s: float
    starts: tuple[int, ...]
    """First latent frame of every window."""
    conditions: Callable[[int, int], Conditions]
    """Encoded conditions of windows first .. last - 1."""

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.starts)

    def kept(self, *, at_once: int) -> Self:
        """The same with all windows encoded now, `at_once` at a time, and held in memory (1.2 MB for 8 s)."""
        parts = [self.conditions(k, min(k + at_once, len(self))) for k in range(0, len(self), at_once)]
        whole = Conditions.cat(parts)
        return replace(self, conditions=lambda first, last: whole.rows(slice(first, last)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Sound:
    """One sound and how it was made."""

    wave: Float[Tensor, "samples"]
    sample_rate: int
    seed: int
    sampling: SamplingConfig
    scene: Scene
    licence: str
    """Of the weights."""

    @property
    def duration_s(self) -> float:
        return len(self.wave) / self.sample_rate

    def save(self, path: Path | str) -> Path:
        """Write .wav or .flac with the way it was made in its tags."""
        comment = f"licence of the weights: {self.licence}; {self.sampling}, seed {self.seed}"
        write_audio(Path(path), self.wave.numpy(), self.sample_rate, comment=comment)
        return Path(path)


def make_scene(
    encoders: Encoders,
    sequence: SequenceConfig,
    window_s: float,
    *,
    video: Path | None,
    prompt: str | None,
    negative_prompt: str | None,
    duration_s: float | None,
) -> Scene:
    """A scene whose windows are encoded when they are asked for.

    Raises:
        MediaError: a video that is unreadable, without picture, or shorter than 0.64 s.
        ValueError: neither video nor prompt, or too short a duration.
    """
    if video is None and prompt is None:
        raise ValueError("give a video, a prompt or both")
    total_s = _duration(video, duration_s, window_s)
    length_s = min(total_s, window_s)
    starts = window_starts(total_s, window_s, sequence)
    seconds = [start / sequence.latent_rate for start in starts]
    words, negative = (None if text is None else encoders.text([text]).cpu() for text in (prompt, negative_prompt))
    return Scene(
        video=video,
        prompt=prompt,
        negative_prompt=negative_prompt,
        negative=negative,
        total_s=total_s,
        length_s=length_s,
        starts=starts,
        conditions=lambda first, last: _conditions(encoders, video, words, seconds[first:last], length_s),
    )


def _duration(video: Path | None, duration_s: float | None, window_s: float) -> float:
    if video is None:
        return window_s if duration_s is None else duration_s
    info = probe(video)
    if not info.has_video:
        raise MediaError(f"{video}: has no picture to make sound for; use a prompt for sound from words")
    if info.duration_s < MIN_DURATION_S:
        raise MediaError(f"{video}: lasts {info.duration_s:.2f} s, the shortest usable video is {MIN_DURATION_S} s")
    return info.duration_s if duration_s is None else min(duration_s, info.duration_s)


def _conditions(
    encoders: Encoders, video: Path | None, words: Tensor | None, starts_s: Sequence[float], length_s: float
) -> Conditions:
    """Conditions of windows [start, start + length_s) of one video under one prompt, on the CPU."""
    blank = Conditions.empty(len(starts_s), length_s)
    has = torch.ones(len(starts_s), dtype=torch.bool)
    clip, sync, text = blank.clip, blank.sync, blank.text
    if video is not None:
        encoded = [encode_clip(encoders, video, start_s=s, duration_s=length_s) for s in starts_s]
        clip = torch.stack([c for c, _ in encoded]).cpu()
        sync = torch.stack([s for _, s in encoded]).cpu()
    if words is not None:
        text = words.expand(len(starts_s), -1, -1)
    return Conditions(
        clip=clip,
        sync=sync,
        text=text,
        has_clip=has & (video is not None),
        has_sync=has & (video is not None),
        has_text=has & (words is not None),
    )
