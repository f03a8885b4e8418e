"""The way from files and words to sound, cut where it is timed."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from meanflow import Guidance
from teacher.audio.codec import AudioCodec
from teacher.audio.embedded_codec import EmbeddedCodec
from teacher.audio.griffin_lim import griffin_lim
from teacher.audio.mmaudio_codec import MMAudioCodec
from teacher.encoders.base import ImageEncoder, SyncEncoder, TextEncoder
from teacher.encoders.registry import read_window_frames
from teacher.media import FrameRequest, probe
from teacher.network.conditions import Conditions
from teacher.network.mmaudio import MMAudio
from teacher.network.sequence import SequenceConfig
from teacher.sampling.generator import generate, network_evaluations, noise
from teacher.sampling.pipeline import Pipeline, Precision

Decoder = tuple[str, Callable[[Tensor], Tensor]]
"""A stage's name and what it does to the result of the one before; the first takes normalised latents (B, N, C)."""
Frames = tuple[np.ndarray, np.ndarray]
"""Of one clip, for the image and for the motion encoder."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be made in one call."""

    duration_s: float
    captions: tuple[str, ...] = ("a dog barks in the distance",)
    """A batch takes them in turn."""
    windows: tuple[tuple[Path, float], ...] = ()
    """(video, start in seconds) likewise; without any, nothing is decoded."""
    random_frames: bool = False
    """Where there are no videos, time the image and the motion encoder on random frames; their cost is the same."""

    def __post_init__(self) -> None:
        if not self.duration_s > 0.0:
            raise ValueError(f"duration_s must be positive, got {self.duration_s}")
        if not self.captions:
            raise ValueError("captions must hold at least one text, got none")


@dataclass(frozen=True, kw_only=True)
class StageCall:
    """One stage of a batch, ready to be timed as often as wanted."""

    stage: str
    call: Callable[[], Any]
    dtype: str = "float32"
    steps: int | None = None
    guidance: float | None = None
    evaluations: int | None = None
    """Of the network, per sound."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Chain:
    """A network, the decoders behind it and the encoders before it. Encoders that are None are not timed."""

    name: str
    net: MMAudio
    sequence: SequenceConfig
    decoders: tuple[Decoder, ...]
    text: TextEncoder | None = None
    image: ImageEncoder | None = None
    sync: SyncEncoder | None = None
    device: str = "cpu"
    precision: Precision = "float32"
    """Of the network; encoders and decoders compute in float32."""

    @classmethod
    def of_pipeline(cls, pipeline: Pipeline, name: str) -> "Chain":
        """The pipeline's own parts."""
        return cls(
            name=name,
            net=pipeline.net,
            sequence=pipeline.codec.sequence,
            decoders=decoders_of(pipeline.codec),
            text=pipeline.encoders.text,
            image=pipeline.encoders.image,
            sync=pipeline.encoders.sync,
            device=pipeline.device,
            precision=pipeline.precision,
        )

    def calls(
        self, work: Work, *, batch: int, steps: tuple[int, ...], guidance: tuple[Guidance, ...]
    ) -> Iterator[StageCall]:
        """The stages in order; the flow network once for every number of steps under every guidance.

        Encoders of pictures take one clip after the other, as generation does. Inputs of a stage are made before it.
        """
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        if self.image is not None and self.sync is not None and (work.windows or work.random_frames):
            yield from _pictures(self.image, self.sync, work, batch)
        if self.text is not None:
            encode, texts = self.text, list(islice(cycle(work.captions), batch))
            yield StageCall(stage="text encoder", call=lambda: encode(texts))
        for rule in guidance:
            for count in steps:
                yield self._flow(work, batch, count, rule)
        frames = self.sequence.latent_frames(work.duration_s)
        given = torch.randn(batch, frames, self.net.config.latent_channels, generator=torch.Generator().manual_seed(0))
        for k, (stage, decode) in enumerate(self.decoders):
            yield _decoding(stage, decode, given)
            if k < len(self.decoders) - 1:
                with torch.no_grad():
                    given = decode(given)

    def _flow(self, work: Work, batch: int, steps: int, guidance: Guidance) -> StageCall:
        """`generate` from noise and features on the device: the step-independent part of the network is in it."""
        dtype = torch.bfloat16 if self.precision == "demo" else torch.float32
        present = torch.ones(batch, dtype=torch.bool)
        blank = Conditions.empty(batch, work.duration_s, self.net.config.widths)
        features = {
            name: functional.normalize(torch.randn(feature.shape, generator=torch.Generator().manual_seed(0)), dim=-1)
            for name, feature in (("clip", blank.clip), ("sync", blank.sync), ("text", blank.text))
        }
        conditions = replace(blank, **features, has_clip=present, has_sync=present, has_text=present)
        conditions = conditions.to(self.device, dtype)
        frames = self.sequence.latent_frames(work.duration_s)
        e = noise(range(batch), frames, self.net.config.latent_channels).to(self.device, dtype)

        def flow() -> Tensor:
            with self._arithmetic():
                return generate(self.net, conditions, e, num_steps=steps, guidance=guidance)

        guided = self.net.config.guidance_embedding
        return StageCall(
            stage="flow network",
            call=flow,
            dtype="float32" if self.precision == "float32" else "bfloat16",
            steps=steps,
            guidance=guidance.omega,
            evaluations=network_evaluations(steps, guidance, guided_input=guided),
        )

    def _arithmetic(self) -> AbstractContextManager[object]:
        if self.precision == "bfloat16":
            return torch.autocast(torch.device(self.device).type, torch.bfloat16)
        return nullcontext()


def decoders_of(codec: AudioCodec) -> tuple[Decoder, ...]:
    """`codec.decode` in its two parts where it is known to have two, wave on the processor in either case.

    Left out: the check for NaN, and the embedded codec's division by a peak above 1.
    """
    if isinstance(codec, MMAudioCodec):
        models = codec.models
        return (
            ("latent decode", lambda latent: codec.decode_mel(latent.to(models.device))),
            ("vocoder", lambda mel: models.vocoder(mel)[:, 0].cpu()),
        )
    if isinstance(codec, EmbeddedCodec):
        config, rounds = codec.mel, codec.num_iterations
        return (
            ("latent decode", codec.decode_mel),
            ("vocoder", lambda mel: griffin_lim(mel, config, num_iterations=rounds)),
        )
    return (("codec decode", codec.decode),)


def _decoding(stage: str, decode: Callable[[Tensor], Tensor], given: Tensor) -> StageCall:
    return StageCall(stage=stage, call=lambda: decode(given))


def _pictures(image: ImageEncoder, sync: SyncEncoder, work: Work, batch: int) -> Iterator[StageCall]:
    requests = (image.request, sync.request)
    if work.windows:
        windows = list(islice(cycle(work.windows), batch))

        def read() -> list[Frames]:
            return [read_window_frames(requests, probe(path), start_s, work.duration_s) for path, start_s in windows]

        yield StageCall(stage="decode+resize", call=read)
        shown = read()
    else:
        shown = [(_frames(image.request, work.duration_s), _frames(sync.request, work.duration_s))] * batch
    yield StageCall(stage="image encoder", call=lambda: [image(frames) for frames, _ in shown])
    yield StageCall(stage="motion encoder", call=lambda: [sync(frames) for _, frames in shown])


def _frames(request: FrameRequest, duration_s: float) -> np.ndarray:
    shape = (request.num_frames(duration_s), 3, request.height, request.width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
