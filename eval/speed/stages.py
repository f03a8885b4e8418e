"""Generators and encoders cut into stages for timing, and the inputs of a timed call.

They come from a pipeline, or from a published size with random weights, so that a time can be measured without any
files: it does not depend on the values.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from meanflow import Guidance
from teacher.audio.codec import Stage
from teacher.audio.mmaudio_codec import MMAUDIO_16K, MMAUDIO_44K, AudioStack
from teacher.audio.vae import VAE
from teacher.audio.vocoder import BigVGAN
from teacher.encoders.base import ImageEncoder, SyncEncoder, TextEncoder
from teacher.encoders.clip import ClipConfig, ClipImage, ClipText, build_clip, clip_tokenizer
from teacher.encoders.registry import read_window_frames
from teacher.encoders.synchformer import SynchformerEncoder, SynchformerVisual, VisualConfig
from teacher.media import FrameRequest, probe
from teacher.network.conditions import Conditions
from teacher.network.mmaudio import MMAudio
from teacher.network.sequence import ConditionWidths, SequenceConfig
from teacher.network.variants import MMAudioConfig
from teacher.sampling.generator import Generator, Precision, SamplingConfig, network_evaluations, noise
from teacher.sampling.pipeline import Pipeline, as_in_the_demo
from teacher.sampling.stages import IMAGE, MOTION, READ, TEXT

Frames = tuple[np.ndarray, np.ndarray]
"""Frames of one clip for the image encoder and for the motion encoder."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The inputs of one call: duration, captions and videos."""

    duration_s: float
    captions: tuple[str, ...] = ("a dog barks in the distance",)
    """Captions of the sounds of a batch, taken in turn."""
    windows: tuple[tuple[Path, float], ...] = ()
    """(video, start in seconds), taken in turn; without any, nothing is decoded."""
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
    """Evaluations of the network per sound."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StagedGenerator:
    """A generator and the encoders before it, for timing stage by stage. Encoders that are None are not timed."""

    name: str
    generator: Generator
    sequence: SequenceConfig
    text: TextEncoder | None = None
    image: ImageEncoder | None = None
    sync: SyncEncoder | None = None
    precision: Precision = "float32"
    """Precision of the network; encoders and decoders compute in float32."""

    @classmethod
    def of_pipeline(cls, pipeline: Pipeline, name: str) -> Self:
        """The stages of a pipeline's own generator and encoders."""
        return cls(
            name=name,
            generator=pipeline.generator,
            sequence=pipeline.codec.sequence,
            text=pipeline.encoders.text,
            image=pipeline.encoders.image,
            sync=pipeline.encoders.sync,
            precision=pipeline.precision,
        )

    @property
    def device(self) -> str:
        """The device of the network."""
        return str(self.generator.device)

    def calls(
        self, workload: Workload, *, batch: int, steps: tuple[int, ...], guidance: tuple[Guidance, ...]
    ) -> Iterator[StageCall]:
        """The stages in order; the flow network once for every number of steps under every guidance scale.

        Encoders of pictures take one clip after the other, as generation does. Inputs of a stage are made before it.
        """
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        if self.image is not None and self.sync is not None and (workload.windows or workload.random_frames):
            yield from _pictures(self.image, self.sync, workload, batch)
        if self.text is not None:
            encode, texts = self.text, list(islice(cycle(workload.captions), batch))
            yield StageCall(stage=TEXT, call=lambda: encode(texts))
        frames, channels = self.sequence.latent_frames(workload.duration_s), self.generator.net.config.latent_channels
        conditions = _random_features(batch, workload.duration_s, self.generator.net.config.widths).to(
            self.generator.device, self.generator.dtype
        )
        e = noise(range(batch), frames, channels).to(self.generator.device, self.generator.dtype)
        for rule in guidance:
            for count in steps:
                flow, *_ = self.generator.stages(conditions, SamplingConfig(steps=count, guidance=rule))
                yield StageCall(
                    stage=flow.name,
                    call=partial(flow.call, e),
                    dtype="float32" if self.precision == "float32" else "bfloat16",
                    steps=count,
                    guidance=rule.omega,
                    evaluations=network_evaluations(
                        count, rule, guided_input=self.generator.net.config.guidance_embedding
                    ),
                )
        made = torch.randn(batch, frames, channels, generator=torch.Generator().manual_seed(0))
        for stage in self.generator.decoder:
            yield StageCall(stage=stage.name, call=partial(stage.call, made))
            if stage is not self.generator.decoder[-1]:
                with torch.no_grad():
                    made = stage.call(made)


def _random_features(batch: int, duration_s: float, widths: ConditionWidths) -> Conditions:
    """Features of random directions and length 1, as image and text features are; every modality is there."""
    present, blank = torch.ones(batch, dtype=torch.bool), Conditions.empty(batch, duration_s, widths)
    clip, sync, text = (
        functional.normalize(torch.randn(feature.shape, generator=torch.Generator().manual_seed(0)), dim=-1)
        for feature in (blank.clip, blank.sync, blank.text)
    )
    return Conditions(clip=clip, sync=sync, text=text, has_clip=present, has_sync=present, has_text=present)


def _pictures(image: ImageEncoder, sync: SyncEncoder, workload: Workload, batch: int) -> Iterator[StageCall]:
    requests = (image.request, sync.request)
    if workload.windows:
        windows = list(islice(cycle(workload.windows), batch))

        def read() -> list[Frames]:
            return [
                read_window_frames(requests, probe(path), start_s, workload.duration_s) for path, start_s in windows
            ]

        yield StageCall(stage=READ, call=read)
        shown = read()
    else:
        shown = [(_frames(image.request, workload.duration_s), _frames(sync.request, workload.duration_s))] * batch
    yield StageCall(stage=IMAGE, call=lambda: [image(frames) for frames, _ in shown])
    yield StageCall(stage=MOTION, call=lambda: [sync(frames) for _, frames in shown])


def _frames(request: FrameRequest, duration_s: float) -> np.ndarray:
    shape = (request.num_frames(duration_s), 3, request.height, request.width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


EncoderSet: TypeAlias = Literal["none", "text", "all"]
NAME = "random weights"


def published_stack(config: MMAudioConfig) -> AudioStack:
    """VAE and vocoder of the network's sample rate."""
    return MMAUDIO_16K if config.sequence == MMAUDIO_16K.sequence else MMAUDIO_44K


@torch.no_grad()
def random_stages(
    config: MMAudioConfig,
    *,
    name: str,
    stack: AudioStack | None = None,
    encoders: EncoderSet = "text",
    clip: ClipConfig | None = None,
    visual: VisualConfig | None = None,
    device: str = "cpu",
    precision: Precision = "float32",
) -> StagedGenerator:
    """Network, VAE decoder and vocoder with random weights, and CLIP's text tower or all encoders on request.

    `stack`, `clip` and `visual` replace the published sizes. The whole of CLIP takes 4 GB, its text tower 1.4 GB. The
    network has the published initialisation but for its zero layers, which are random too.
    """
    stack, torch_device = stack or published_stack(config), torch.device(device)
    with torch_device:
        net = MMAudio(config).eval().requires_grad_(False)
        vae = VAE(stack.vae, part="decoder").normalise_().eval().requires_grad_(False)
        vocoder = BigVGAN(stack.vocoder).eval().requires_grad_(False)
    for parameter in net.parameters():
        if not bool(parameter.any()):  # a closed branch of zeros
            nn.init.normal_(parameter, std=0.02)

    def mel(latent: Tensor) -> Tensor:
        return vae.decode(latent.to(torch_device).transpose(1, 2))

    image, text = None, None
    if encoders != "none":
        image, text = _clip(clip or ClipConfig(), torch_device, with_image=encoders == "all")
    return StagedGenerator(
        name=f"{name}, random weights",
        generator=Generator.of(
            as_in_the_demo(net).to(device) if precision == "demo" else net,
            (Stage("latent decode", mel), Stage("vocoder", lambda spectrogram: vocoder(spectrogram)[:, 0].cpu())),
            device=device,
            precision=precision,
        ),
        sequence=config.sequence,
        text=text,
        image=image,
        sync=_synchformer(visual or VisualConfig(), torch_device) if encoders == "all" else None,
        precision=precision,
    )


def _clip(config: ClipConfig, device: torch.device, *, with_image: bool) -> tuple[ClipImage | None, ClipText]:
    """Made on the meta device; only the towers that are wanted get memory."""
    with torch.device("meta"):
        net = build_clip(config)
    for name, parameter in list(net.named_parameters()):
        if with_image or not name.startswith("visual."):
            owner, _, leaf = name.rpartition(".")
            values = 0.02 * torch.randn(parameter.shape, device=device)
            net.get_submodule(owner).register_parameter(leaf, nn.Parameter(values, requires_grad=False))
    net.eval()
    text = ClipText(name=NAME, net=net, tokenizer=clip_tokenizer(config.positions))
    return (ClipImage(name=NAME, net=net) if with_image else None), text


def _synchformer(config: VisualConfig, device: torch.device) -> SynchformerEncoder:
    with device:
        network = SynchformerVisual(config).eval().requires_grad_(False)
    return SynchformerEncoder(name=NAME, network=network)
