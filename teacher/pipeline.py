"""From a video and/or words to sound with the networks of one run folder."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self, TypeAlias, get_args

import torch
from torch import Tensor

from meanflow import Adaptive, Guidance
from meanflow.guidance import GuidanceRule, Guided
from meanflow.sampling import check_zero_init
from teacher.audio.codec import AudioCodec
from teacher.audio.registry import open_codec
from teacher.conditions import Conditions
from teacher.data.media import MediaError, probe
from teacher.encoders.registry import Encoders, encode_clip, load_encoders
from teacher.generate import FixedSolver, Solver, clip_seed, generate, noise
from teacher.network import MMAudio
from teacher.sequence import MIN_DURATION_S
from teacher.weights import load_network, read_features_info, read_licence
from teacher.windows import overlap_add, window_starts

BATCH = 16
"""Windows generated at once; bounds memory on long videos."""

Precision: TypeAlias = Literal["float32", "bfloat16", "demo"]
"""Arithmetic of the flow network. float32 throughout; bfloat16: float32 weights and state, products in bfloat16 (how
MMAudio is evaluated); demo: weights, state, times and the table of time frequencies in bfloat16 (how MMAudio's own
demo runs, which for v2 networks scrambles the time embedding: teacher/embeddings.py)."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How latents are drawn."""

    steps: int = 1
    """Network evaluations along the path; 1 is what the student is for, 25 the teacher's default."""
    guidance: GuidanceRule = field(default_factory=Guidance)
    """Classifier-free guidance; scale 1 is off and needs a single evaluation per step."""
    seed: int = 0
    solver: Solver = "euler"
    """Integrator of a teacher's velocity; a student jumps and takes none."""
    shift: float = 1.0
    """Above 1 smaller steps near the noise, below 1 near the data."""
    zero_init_steps: int = 0
    """First steps that leave the noise as it is, of 25 or more."""

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Adaptive) and self.solver not in get_args(FixedSolver):
            choices = ", ".join(get_args(FixedSolver))
            raise ValueError(f"solver must be {choices} or an Adaptive(...), got {self.solver!r}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not self.shift > 0:
            raise ValueError(f"shift must be positive (1 = uniform), got {self.shift}")
        check_zero_init(self.zero_init_steps, self.steps)


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A network with the codec and encoders it was trained with."""

    net: MMAudio
    codec: AudioCodec
    encoders: Encoders
    window_s: float
    """Duration the network was trained on; longer sounds are made in overlapping windows of it."""
    device: str = "cpu"
    precision: Precision = "float32"
    licence: str = "unspecified"
    """Of the network's weights; belongs into the metadata of every sound."""

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, got {self.precision!r}")

    @classmethod
    def load(
        cls,
        run: Path,
        *,
        weights: str = "auto",
        weights_dir: Path | None = None,
        device: str = "cpu",
        precision: Precision = "float32",
    ) -> Self:
        """Everything a run folder names; strict, nothing is downloaded.

        `weights_dir`, the folder of codec and encoder files, replaces the one the run folder was made with.
        """
        info = read_features_info(run)
        folder = weights_dir or info.weights_dir
        net = load_network(run, weights=weights)
        if precision == "demo":
            net = as_in_the_demo(net)
        return cls(
            net=net.to(device),
            codec=open_codec(run / "codec.safetensors", weights_dir=folder, device=device),
            encoders=load_encoders(info.encoders, weights_dir=folder, device=device),
            window_s=info.duration_s,
            device=device,
            precision=precision,
            licence=read_licence(run),
        )

    def sound(
        self,
        *,
        video: Path | None,
        prompt: str | None,
        negative_prompt: str | None = None,
        duration_s: float | None = None,
        sampling: SamplingConfig,
        observe: Callable[[Guided], None] | None = None,
    ) -> Tensor:
        """One wave (samples,), exactly as long as the video or as `duration_s`.

        `negative_prompt` is what guidance leads away from; it takes the place of the empty text and needs
        sampling.guidance other than 1. `observe` sees every guided evaluation. Raises MediaError (unreadable or too
        short video) and ValueError (neither video nor prompt; a negative prompt without guidance).
        """
        if video is None and prompt is None:
            raise ValueError("give a video, a prompt or both")
        if negative_prompt is not None and not sampling.guidance.active:
            raise ValueError("a negative prompt acts through guidance; set a guidance scale other than 1")
        negative = None if negative_prompt is None else self.encoders.text([negative_prompt])
        total_s = self._duration(video, duration_s)
        starts = window_starts(total_s, self.window_s)
        length_s = min(total_s, self.window_s)
        waves = [
            self._windows(video, prompt, negative, starts[k : k + BATCH], k, length_s, sampling, observe)
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
        negative: Tensor | None,
        starts: list[float],
        first: int,
        length_s: float,
        sampling: SamplingConfig,
        observe: Callable[[Guided], None] | None,
    ) -> Tensor:
        count = len(starts)
        conditions = self.conditions(video, prompt, starts, length_s)
        seeds = [clip_seed(sampling.seed, f"window {first + k}") for k in range(count)]
        return self.codec.decode(self.latents(conditions, seeds, length_s, sampling, observe, negative))

    @torch.no_grad()
    def latents(
        self,
        conditions: Conditions,
        seeds: Sequence[int],
        length_s: float,
        sampling: SamplingConfig,
        observe: Callable[[Guided], None] | None = None,
        negative: Tensor | None = None,
    ) -> Tensor:
        """Normalised latents (B, N, C), float32 on the CPU, for encoded conditions in the pipeline's precision."""
        frames = self.codec.sequence.latent_frames(length_s)
        dtype = torch.bfloat16 if self.precision == "demo" else torch.float32
        e = noise(seeds, frames, self.codec.latent_channels).to(self.device, dtype)
        with self._arithmetic():
            made = generate(
                self.net,
                conditions.to(self.device, dtype),
                e,
                num_steps=sampling.steps,
                guidance=sampling.guidance,
                observe=observe,
                negative_text=None if negative is None else negative.to(self.device, dtype),
                solver=sampling.solver,
                shift=sampling.shift,
                zero_init_steps=sampling.zero_init_steps,
            )
        return made.float().cpu()

    def _arithmetic(self) -> AbstractContextManager[object]:
        if self.precision == "bfloat16":
            return torch.autocast(torch.device(self.device).type, torch.bfloat16)
        return nullcontext()

    def conditions(self, video: Path | None, prompt: str | None, starts: list[float], length_s: float) -> Conditions:
        """Conditions of windows [start, start + length_s) of one video under one prompt."""
        blank = Conditions.empty(len(starts), length_s)
        has = torch.ones(len(starts), dtype=torch.bool)
        clip, sync, text = blank.clip, blank.sync, blank.text
        if video is not None:
            encoded = [encode_clip(self.encoders, video, start_s=s, duration_s=length_s) for s in starts]
            clip = torch.stack([c for c, _ in encoded]).cpu()
            sync = torch.stack([s for _, s in encoded]).cpu()
        if prompt is not None:
            text = self.encoders.text([prompt]).cpu().expand(len(starts), -1, -1)
        return Conditions(
            clip=clip,
            sync=sync,
            text=text,
            has_clip=has & (video is not None),
            has_sync=has & (video is not None),
            has_text=has & (prompt is not None),
        )


def as_in_the_demo(net: MMAudio) -> MMAudio:
    """The same network in bfloat16 throughout, the table of time frequencies included."""
    with torch.device("meta"):
        rounded = MMAudio(replace(net.config, time_precision="bfloat16"))
    rounded.load_state_dict(net.state_dict(), strict=True, assign=True)
    return rounded.to(torch.bfloat16).eval().requires_grad_(False)
