"""A scene, the video and prompt of one sound as encoded windows; and the sound that was generated for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from teacher.encoders.cache import EncodedCache, Pictures
from teacher.encoders.registry import Encoders, read_window_frames
from teacher.files import file_sha256
from teacher.media import MediaError, MediaInfo, probe, remux, write_audio
from teacher.network.conditions import Conditions
from teacher.network.sequence import MIN_DURATION_S, ConditionWidths, SequenceConfig
from teacher.sampling.generator import SamplingConfig
from teacher.sampling.provenance import Provenance, describe
from teacher.sampling.stages import IMAGE, MOTION, READ, TEXT, StageClock
from teacher.sampling.windows import window_starts
from teacher.weights.loading import ModelIdentity


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """Video and prompt of one sound, encoded in windows of `length_s`."""

    video: Path | None
    video_sha256: str | None
    """SHA-256 of the video's file."""
    prompt: str | None
    negative_prompt: str | None
    negative: Tensor | None
    """Encoded negative prompt, (1, tokens, width)."""
    total_s: float
    """Duration of the sound in seconds."""
    cut: bool
    """Whether the sound is shorter than the video."""
    length_s: float
    starts: tuple[int, ...]
    """First latent frame of every window."""
    conditions: Callable[[int, int], Conditions]
    """Maps (first, last) to the encoded conditions of windows first .. last - 1."""

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.starts)

    def encoded(self, *, at_once: int) -> Self:
        """A scene whose windows are all encoded now, `at_once` per batch, and stored in memory (1.2 MB for 8 s)."""
        parts = [self.conditions(k, min(k + at_once, len(self))) for k in range(0, len(self), at_once)]
        whole = Conditions.cat(parts)
        return replace(self, conditions=lambda first, last: whole.rows(slice(first, last)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Sound:
    """One generated sound, and how it was generated."""

    wave: Float[Tensor, " samples"]
    sample_rate: int
    seed: int
    sampling: SamplingConfig
    scene: Scene
    licence: str
    """Licence of the weights."""
    identity: ModelIdentity | None = None
    precision: str = "float32"
    device: str = "cpu"

    @property
    def duration_s(self) -> float:
        """Duration in seconds: samples / sample_rate."""
        return len(self.wave) / self.sample_rate

    @cached_property
    def provenance(self) -> Provenance | None:
        """Model, settings and inputs that reproduce the sound; None for a network that was not loaded from files."""
        if self.identity is None:
            return None
        return describe(
            self.identity,
            self.sampling,
            duration_s=self.duration_s,
            precision=self.precision,
            device=self.device,
            prompt=self.scene.prompt,
            negative_prompt=self.scene.negative_prompt,
            source=self.scene.video,
            source_sha256=self.scene.video_sha256,
        )

    @property
    def comment(self) -> str:
        """The text for the tags of a file: the provenance, or else licence, steps, guidance and seed."""
        found = self.provenance
        if found is not None:
            return found.to_line()
        return f"licence of the weights: {self.licence}; {self.sampling}, seed {self.seed}"

    def save(self, path: Path | str) -> Path:
        """Write a .wav, .flac, .ogg or .mp3 file with the provenance in its tags; returns the path."""
        write_audio(Path(path), self.wave.numpy(), self.sample_rate, comment=self.comment)
        return Path(path)

    def save_film(self, path: Path | str) -> Path:
        """Write a copy of the video with this sound and with the provenance in its metadata; returns the path.

        Raises:
            ValueError: the sound has no video, or the video itself would be overwritten.
        """
        if self.scene.video is None:
            raise ValueError("a sound generated without a video has no picture to write")
        if Path(path).resolve() == self.scene.video.resolve():
            raise ValueError(f"{path} is the video of this sound and would be overwritten; choose another name")
        remux(
            self.scene.video,
            self.wave.numpy(),
            self.sample_rate,
            Path(path),
            duration_s=self.scene.total_s if self.scene.cut else None,
            comment=self.comment,
        )
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
    cache: EncodedCache | None = None,
    clock: StageClock | None = None,
) -> Scene:
    """A scene whose windows are encoded when they are requested, timed by `clock` if it is given.

    The video is probed once, here. Bytes of a prompt that are not UTF-8 are replaced by U+FFFD.

    Raises:
        MediaError: the video is unreadable, has no picture, or is shorter than 0.64 s.
        ValueError: there is neither video nor prompt, or the duration is too short.
    """
    prompt, negative_prompt = _readable(prompt), _readable(negative_prompt)
    if video is None and prompt is None:
        raise ValueError("give a video, a prompt or both")
    clock = clock or StageClock()
    info = None if video is None else probe(video)
    total_s, cut = _duration(info, duration_s, window_s)
    length_s = min(total_s, window_s)
    starts = window_starts(total_s, window_s, sequence)
    seconds = [start / sequence.latent_rate for start in starts]
    words, negative = (_words(encoders, text, clock) for text in (prompt, negative_prompt))
    sha256 = None if video is None else file_sha256(video)
    pictures = None
    if info is not None and sha256 is not None:
        pictures = partial(_pictures, encoders, info, sha256, length_s, cache, clock)
    return Scene(
        video=video,
        video_sha256=sha256,
        prompt=prompt,
        negative_prompt=negative_prompt,
        negative=negative,
        total_s=total_s,
        cut=cut,
        length_s=length_s,
        starts=starts,
        conditions=lambda first, last: _conditions(pictures, words, seconds[first:last], length_s, encoders.widths),
    )


def _readable(text: str | None) -> str | None:
    return None if text is None else "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)


def _words(encoders: Encoders, text: str | None, clock: StageClock) -> Tensor | None:
    if text is None:
        return None
    with clock.stage(TEXT):
        return encoders.text([text]).cpu()


def _duration(info: MediaInfo | None, duration_s: float | None, window_s: float) -> tuple[float, bool]:
    """Seconds of sound, and whether the video is longer."""
    if info is None:
        return window_s if duration_s is None else duration_s, False
    if not info.has_video:
        raise MediaError(f"{info.path}: has no picture to make sound for; use a prompt for sound from words")
    if info.duration_s < MIN_DURATION_S:
        raise MediaError(f"{info.path}: lasts {info.duration_s:.2f} s, the shortest usable video is {MIN_DURATION_S} s")
    if duration_s is None or duration_s >= info.duration_s:
        return info.duration_s, False
    return duration_s, True


def _conditions(
    pictures: Callable[[float], Pictures] | None,
    words: Tensor | None,
    starts_s: Sequence[float],
    length_s: float,
    widths: ConditionWidths,
) -> Conditions:
    """Conditions of windows [start, start + length_s) of one video under one prompt, on the CPU."""
    blank = Conditions.empty(len(starts_s), length_s, widths)
    has = torch.ones(len(starts_s), dtype=torch.bool)
    clip, sync, text = blank.clip, blank.sync, blank.text
    if pictures is not None:
        encoded = [pictures(start_s) for start_s in starts_s]
        clip = torch.stack([c for c, _ in encoded]).cpu()
        sync = torch.stack([s for _, s in encoded]).cpu()
    if words is not None:
        text = words.expand(len(starts_s), -1, -1)
    return Conditions(
        clip=clip,
        sync=sync,
        text=text,
        has_clip=has & (pictures is not None),
        has_sync=has & (pictures is not None),
        has_text=has & (words is not None),
    )


def _pictures(
    encoders: Encoders,
    info: MediaInfo,
    sha256: str,
    length_s: float,
    cache: EncodedCache | None,
    clock: StageClock,
    start_s: float,
) -> Pictures:
    """Image and synchronisation features of the window [start_s, start_s + length_s), from the cache or encoded now."""

    def encode() -> Pictures:
        with clock.stage(READ):
            image, sync = read_window_frames(encoders.requests, info, start_s, length_s)
        with clock.stage(IMAGE):
            clip = encoders.image(image)
        with clock.stage(MOTION):
            return clip, encoders.sync(sync)

    return encode() if cache is None else cache.get(sha256, start_s, length_s, encoders.names, encode)
