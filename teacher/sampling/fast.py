"""Noise to wave in one call of fixed size: one step of a student, latent decoder and vocoder, without copies between.

    x = e - u(e, 0, 1),    mel = VAE(x std + mean),    wave = vocoder(mel)

The ordinary path is `teacher.sampling.generator.generate` and a codec's `decode`; this one computes the same numbers.
On a CUDA device the whole of it is recorded once as a CUDA graph and replayed, so that a call costs one launch instead
of some thousands. Conditions are encoded outside: new seeds cost the generator only. The part for CUDA devices has its
tests (marker gpu) but has not been run on one yet, and no timing of it is claimed.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple, Self, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from meanflow.guidance import Guidance, GuidanceRule
from meanflow.sampling import sample, time_grid
from teacher.audio.alias_free import resamplers
from teacher.audio.mmaudio_codec import MMAudioCodec
from teacher.audio.vae import VAE
from teacher.audio.vocoder import BigVGAN, with_toom_cook
from teacher.network.conditions import Conditions
from teacher.network.mmaudio import Encoded, MMAudio
from teacher.network.velocity import Guide, student_velocity
from teacher.sampling.cuda_graph import CudaGraphCall, record

NetworkArithmetic: TypeAlias = Literal["float32", "autocast", "bfloat16"]
SoundArithmetic: TypeAlias = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class FastConfig:
    """What a generator is made for; another size needs another one."""

    batch: int = 1
    frames: int
    """Latent frames of a sound."""
    network: NetworkArithmetic = "float32"
    """float32; autocast: float32 weights, products in bfloat16, the pipeline's "bfloat16"; bfloat16: weights cast once,
    which reads half the bytes. The state, the times and the tables of positions are float32 in every case."""
    sound: SoundArithmetic = "float32"
    """Of latent decoder and vocoder; bfloat16 casts their weights and signals."""
    tf32: bool = False
    """Allow TF32 in float32 products and convolutions on a CUDA device. Always set, whatever the process has set."""
    cuda_graph: bool = True
    """Record a graph on a CUDA device; elsewhere it is not looked at."""
    compile: bool = False
    """torch.compile of network and latent decoder, at the first call. The vocoder stays eager: on a processor its
    compilation takes more than seven minutes."""
    toom_cook: bool = False
    """Deep convolutions of the vocoder with fewer products, equal to 1e-5 of the wave's size: a sixth of the time of
    the vocoder on a processor for 0.64 GB. Needs sound=float32."""

    def __post_init__(self) -> None:
        for name in ("batch", "frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, value, kind in (("network", self.network, NetworkArithmetic), ("sound", self.sound, SoundArithmetic)):
            if value not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {value!r}")
        if self.toom_cook and self.sound != "float32":
            raise ValueError(f"toom_cook needs sound=float32, got {self.sound}")


class Made(NamedTuple):
    """What one call makes, float32 on the generator's device."""

    latent: Float[Tensor, "batch frames channels"]
    wave: Float[Tensor, "batch samples"]


@dataclass(frozen=True, kw_only=True, eq=False)
class FastGenerator:
    """See the module. The parts lie on one device; their weights are not changed.

    Raises ValueError for a network without an interval embedding, for guidance that the network cannot take, and for
    tf32 elsewhere than on a CUDA device.
    """

    net: MMAudio
    decoder: VAE
    vocoder: BigVGAN
    latent_mean: Float[Tensor, "channels"]
    latent_std: Float[Tensor, "channels"]
    config: FastConfig
    guidance: GuidanceRule = field(default_factory=Guidance)
    told: Callable[[str], None] = print
    """Receives the reason where a CUDA graph cannot be recorded."""

    def __post_init__(self) -> None:
        if not self.net.config.interval_embedding:
            raise ValueError("one step needs an average velocity: a network built with interval_embedding=True")
        if self._scale_is_input and not isinstance(self.guidance, Guidance):
            raise ValueError("a network that takes the guidance scale as an input takes one scale")
        if self.config.tf32 and self.device.type != "cuda":
            raise ValueError(f"tf32 needs a CUDA device, got {self.device}")

    @classmethod
    def of_codec(
        cls,
        net: MMAudio,
        codec: MMAudioCodec,
        config: FastConfig,
        *,
        guidance: GuidanceRule | None = None,
        told: Callable[[str], None] = print,
    ) -> Self:
        """With a codec's models, which are shared."""
        models = codec.models
        return cls(
            net=net,
            decoder=models.decoder,
            vocoder=models.vocoder,
            latent_mean=codec.latent_mean,
            latent_std=codec.latent_std,
            config=config,
            guidance=guidance or Guidance(),
            told=told,
        )

    @property
    def device(self) -> torch.device:
        return self.net.final_layer.conv.weight.device

    @torch.no_grad()
    def encode(self, conditions: Conditions, negative_text: Tensor | None = None) -> Guide:
        """The part that does not depend on the noise, for any number of calls; `negative_text` as in `generate`."""
        if len(conditions) != self.config.batch:
            raise ValueError(f"conditions must be for {self.config.batch} sounds, got {len(conditions)}")
        if self._scale_is_input and negative_text is not None:
            raise ValueError("a network that takes the guidance scale as an input takes no negative prompt")
        negative = None if negative_text is None else negative_text.to(self.device)
        with self._tf32(), self._arithmetic():
            given = conditions.to(self.device, torch.float32)
            return Guide.of(self._net, given, self.config.frames, self._rule, negative_text=negative)

    @torch.no_grad()
    def __call__(self, e: Float[Tensor, "batch frames channels"], guide: Guide) -> Made:
        """Latents and waves (B, samples) within [-1, 1] of noise e and what `encode` made; both are the caller's own.

        Raises ValueError for another size, for a guide made with other guidance or lengths, and for a latent that is
        not finite.
        """
        wanted = (self.config.batch, self.config.frames, self.net.config.latent_channels)
        if tuple(e.shape) != wanted:
            raise ValueError(f"noise must have shape {wanted}, got {tuple(e.shape)}")
        if guide.guidance != self._rule or len(guide.conditional.pooled) != self.config.batch:
            raise ValueError(f"the conditions were encoded for {guide.guidance}, or another batch; encode them here")
        inputs = (e.to(self.device, torch.float32), *_flat(guide))
        with self._tf32():
            recorded = self._recorded(guide) if self.device.type == "cuda" and self.config.cuda_graph else None
            made = Made(*recorded(*inputs)) if recorded else self._make(guide, *inputs)
        if not bool(torch.isfinite(made.latent).all()):
            raise ValueError("latent must be finite, got NaN or infinity")
        return made

    def _make(self, guide: Guide, e: Tensor, *parts: Tensor) -> Made:
        """Everything between noise and wave; nothing here waits for the device."""
        latent = self._flow(_filled(guide, parts), e)
        return Made(latent, self._sound(latent))

    @property
    def _scale_is_input(self) -> bool:
        return self.net.config.guidance_embedding and self.guidance.active

    @property
    def _rule(self) -> GuidanceRule:
        """How predictions are combined; nothing is where the network takes the scale itself."""
        return Guidance() if self._scale_is_input else self.guidance

    @cached_property
    def _net(self) -> MMAudio:
        return self.net if self.config.network != "bfloat16" else copy.deepcopy(self.net).bfloat16()

    @cached_property
    def _flow(self) -> Callable[[Guide, Tensor], Tensor]:
        omega = self.guidance.omega if self._scale_is_input and isinstance(self.guidance, Guidance) else 1.0

        def u(x: Tensor, r: Tensor, t: Tensor, encoded: Encoded) -> Tensor:
            return student_velocity(self._net, x, r, t, encoded, omega)

        predict = torch.compile(u) if self.config.compile else u

        def flow(guide: Guide, e: Tensor) -> Tensor:
            with self._arithmetic():
                return sample(lambda x, r, t: guide(predict, x, r, t), e, time_grid(1)).float()

        return flow

    @cached_property
    def _sound(self) -> Callable[[Tensor], Tensor]:
        half = self.config.sound == "bfloat16"
        decoder, vocoder = self.decoder, self.vocoder
        if half:
            decoder, vocoder = copy.deepcopy(decoder).bfloat16(), copy.deepcopy(vocoder).bfloat16()
        if self.config.toom_cook:
            vocoder = with_toom_cook(vocoder)
        dtype = torch.bfloat16 if half else torch.float32
        mean, std = (s.to(self.device, torch.float32) for s in (self.latent_mean, self.latent_std))
        decode = torch.compile(decoder.decode) if self.config.compile else decoder.decode

        def sound(latent: Tensor) -> Tensor:
            raw = (latent * std + mean).transpose(1, 2).to(dtype)
            return vocoder(decode(raw))[:, 0].float()

        return sound

    def _recorded(self, guide: Guide) -> CudaGraphCall | None:
        """The graph, recorded at the first call; None where that failed. A guide of other lengths is refused by it."""
        if not self._graph:
            e = torch.zeros(self.config.batch, self.config.frames, self.net.config.latent_channels, device=self.device)
            tables = [resamplers(dtype, self.device) for dtype in (torch.float32, torch.bfloat16)]
            call = functools.partial(self._make, guide)
            self._graph.append(record(call, (e, *_flat(guide)), told=self.told, keep=tables))
        return self._graph[0]

    @cached_property
    def _graph(self) -> list[CudaGraphCall | None]:
        return []

    def _arithmetic(self) -> AbstractContextManager[object]:
        """A recorded graph must not hold casts of weights that autocast throws away, so it keeps none."""
        if self.config.network == "autocast":
            return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)
        return nullcontext()

    @contextmanager
    def _tf32(self) -> Iterator[None]:
        if self.device.type != "cuda":
            yield
            return
        products, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        try:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.config.tf32
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, convolutions


def _flat(guide: Guide) -> tuple[Tensor, ...]:
    """The tensors of a guide: conditional, unconditional, video only."""
    given = (guide.conditional, guide.unconditional, guide.video)
    return tuple(tensor for part in given if part is not None for tensor in part)


def _filled(guide: Guide, tensors: tuple[Tensor, ...]) -> Guide:
    """The same guide with other tensors in their places."""
    parts = [Encoded(*tensors[k : k + 4]) for k in range(0, len(tensors), 4)]
    unconditional = parts[1] if guide.unconditional is not None else None
    return Guide(parts[0], unconditional, guide.guidance, None, parts[2] if guide.video is not None else None)
