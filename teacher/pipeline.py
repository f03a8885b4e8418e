"""From a video and/or words to sound with the networks of one run folder."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from meanflow import Guidance
from teacher.audio.codec import AudioCodec
from teacher.conditions import Conditions
from teacher.data.dataset import load_codec
from teacher.data.media import MediaError, probe
from teacher.encoders.registry import Encoders, encode_clip, load_encoders
from teacher.generate import clip_seed, generate, noise
from teacher.network import MMAudio
from teacher.sequence import MIN_DURATION_S
from teacher.weights import load_network, read_features_info
from teacher.windows import overlap_add, window_starts

BATCH = 16
"""Windows generated at once; bounds memory on long videos."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How latents are drawn."""

    steps: int = 1
    """Network evaluations along the path; 1 is what the student is for, 25 the teacher's default."""
    guidance: Guidance = field(default_factory=Guidance)
    """Classifier-free guidance; omega 1 is off and needs a single evaluation per step."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A network with the codec and encoders it was trained with."""

    net: MMAudio
    codec: AudioCodec
    encoders: Encoders
    window_s: float
    """Duration the network was trained on; longer sounds are made in overlapping windows of it."""
    device: str = "cpu"

    @classmethod
    def load(cls, run: Path, *, weights: str = "auto", device: str = "cpu") -> Self:
        """Everything a run folder names; strict, nothing is downloaded."""
        info = read_features_info(run)
        return cls(
            net=load_network(run, weights=weights).to(device),
            codec=load_codec(run),
            encoders=load_encoders(info.encoders),
            window_s=info.duration_s,
            device=device,
        )

    def sound(
        self,
        *,
        video: Path | None,
        prompt: str | None,
        duration_s: float | None = None,
        sampling: SamplingConfig,
        observe: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """One wave (samples,), exactly as long as the video or as `duration_s`.

        Raises MediaError (unreadable or too short video) and ValueError (neither video nor prompt).
        """
        if video is None and prompt is None:
            raise ValueError("give a video, a prompt or both")
        total_s = self._duration(video, duration_s)
        starts = window_starts(total_s, self.window_s)
        length_s = min(total_s, self.window_s)
        waves = [
            self._windows(video, prompt, starts[k : k + BATCH], k, length_s, sampling, observe)
            for k in range(0, len(starts), BATCH)
        ]
        return overlap_add(torch.cat(waves), starts, self.codec.sequence.sample_rate, total_s)

    def _duration(self, video: Path | None, duration_s: float | None) -> float:
        if video is None:
            return duration_s or self.window_s
        info = probe(video)
        if not info.has_video:
            raise MediaError(f"{video}: has no picture to make sound for; use a prompt for sound from words")
        if info.duration_s < MIN_DURATION_S:
            raise MediaError(f"{video}: lasts {info.duration_s:.2f} s, the shortest usable video is {MIN_DURATION_S} s")
        return min(duration_s or info.duration_s, info.duration_s)

    def _windows(
        self,
        video: Path | None,
        prompt: str | None,
        starts: list[float],
        first: int,
        length_s: float,
        sampling: SamplingConfig,
        observe: Callable[[Tensor], None] | None,
    ) -> Tensor:
        count = len(starts)
        conditions = self.conditions(video, prompt, starts, length_s).to(self.device)
        frames = self.codec.sequence.latent_frames(length_s)
        seeds = [clip_seed(sampling.seed, f"window {first + k}") for k in range(count)]
        e = noise(seeds, frames, self.codec.latent_channels).to(self.device)
        latents = generate(
            self.net, conditions, e, num_steps=sampling.steps, guidance=sampling.guidance, observe=observe
        )
        return self.codec.decode(latents.cpu().float())

    def conditions(self, video: Path | None, prompt: str | None, starts: list[float], length_s: float) -> Conditions:
        """Conditions of windows [start, start + length_s) of one video under one prompt."""
        blank = Conditions.empty(len(starts), length_s)
        has = torch.ones(len(starts), dtype=torch.bool)
        clip, sync, text = blank.clip, blank.sync, blank.text
        if video is not None:
            encoded = [encode_clip(self.encoders, video, start_s=s, duration_s=length_s) for s in starts]
            clip, sync = torch.stack([c for c, _ in encoded]), torch.stack([s for _, s in encoded])
        if prompt is not None:
            text = self.encoders.text([prompt]).expand(len(starts), -1, -1)
        return Conditions(
            clip=clip,
            sync=sync,
            text=text,
            has_clip=has & (video is not None),
            has_sync=has & (video is not None),
            has_text=has & (prompt is not None),
        )
