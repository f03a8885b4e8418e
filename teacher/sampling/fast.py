"""The fast form of a generator (`mf-sample --fast`): the same stages, and the same numbers to float32 rounding.

    CPU           the vocoder's deep convolutions take fewer products (teacher/audio/toom_cook.py), which saves a sixth
                  of the vocoder's time for 0.64 GB of memory at the published size
    CUDA device   every stage is recorded as a CUDA graph at the first call with new shapes, and replayed afterwards:
                  the same kernels, launched together instead of one by one. Conditions are encoded before the graph

A stage that cannot be recorded runs eagerly, operator by operator, and one line reports why. The part for CUDA
devices has its tests (marker gpu) but has not been run on one yet, and no timing of it is claimed.
"""

from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from meanflow.ode import Adaptive
from teacher.audio.alias_free import resamplers
from teacher.audio.codec import AudioCodec, Stage, check_finite
from teacher.audio.mmaudio_codec import MMAudioCodec
from teacher.audio.vocoder import with_toom_cook
from teacher.network.mmaudio import Encoded, MMAudio
from teacher.network.velocity import Guide
from teacher.sampling.generator import Generator, SamplingConfig, draw_latents
from teacher.sampling.stages import never_stop

WARM_UP = 3
"""Calls before recording, in which libraries choose algorithms, allocate workspaces and fill caches."""


def fast_form(generator: Generator, codec: AudioCodec, *, report: Callable[[str], None]) -> Generator:
    """The generator in the form that is fast on its device. `report` receives a line for a stage that is not recorded.

    Raises ValueError for another codec than MMAudio's.
    """
    check_fast(codec)
    assert isinstance(codec, MMAudioCodec)
    if torch.device(generator.device).type != "cuda":
        mel, wave = codec.decode_stages()
        vocoder = with_toom_cook(codec.models.vocoder)
        return replace(generator, decoder=(mel, Stage(wave.name, lambda spectrogram: vocoder(spectrogram)[:, 0])))
    arithmetic = generator.arithmetic
    if arithmetic is not nullcontext:
        arithmetic = partial(torch.autocast, "cuda", torch.bfloat16, cache_enabled=False)
    return replace(
        generator,
        arithmetic=arithmetic,
        draw=RecordedDraw(report=report),
        decoder=_recorded_decoder(codec, report),
    )


def check_fast(codec: AudioCodec) -> None:
    """Raise ValueError for a codec other than MMAudio's, because only that one has a fast form."""
    if not isinstance(codec, MMAudioCodec):
        raise ValueError("the fast form needs MMAudio's codec; this model has a codec fitted on its own sounds")


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedDraw:
    """`draw_latents` as CUDA graphs, one per shape, sampling configuration and scale; conditions are encoded before.

    A graph cannot be observed, so an observer of the guidance receives nothing; `check` is called once before each
    replay. An adaptive solver, whose steps depend on the values, is not recorded.
    """

    report: Callable[[str], None]
    recorded: dict[Hashable, "Recorded"] = field(default_factory=dict)

    def __call__(
        self, net: MMAudio, guide: Guide, e: Tensor, omega: float, sampling: SamplingConfig, check: Callable[[], None]
    ) -> Tensor:
        if isinstance(sampling.solver, Adaptive):
            return draw_latents(net, guide, e, omega, sampling, check)
        check()

        def latents(e: Tensor, *parts: Tensor) -> tuple[Tensor]:
            return (draw_latents(net, _filled(guide, parts), e, omega, sampling, never_stop),)

        key = (omega, replace(sampling, seed=0))
        recorded = self.recorded.setdefault(key, Recorded(call=latents, report=self.report))
        return recorded(e, *_flat(guide))[0]


def _recorded_decoder(codec: MMAudioCodec, report: Callable[[str], None]) -> tuple[Stage, ...]:
    """The codec's two stages, recorded. Operations that wait for the device stay outside the recorded functions."""
    models, vocoder = codec.models, codec.models.vocoder
    device = vocoder.conv_pre.weight.device
    placed = replace(codec, latent_mean=codec.latent_mean.to(device), latent_std=codec.latent_std.to(device))
    mel = Recorded(call=lambda latent: (placed.decode_mel(latent),), report=report)
    filters = resamplers(torch.float32, device)
    wave = Recorded(call=lambda spectrogram: (vocoder(spectrogram)[:, 0],), report=report, keep=(models, filters))
    names = [stage.name for stage in codec.decode_stages()]
    return (
        Stage(names[0], lambda latent: mel(check_finite(latent).to(device))[0]),
        Stage(names[1], lambda spectrogram: wave(spectrogram)[0].cpu()),
    )


def _flat(guide: Guide) -> tuple[Tensor, ...]:
    """The tensors of a guide: conditional, unconditional, video only."""
    given = (guide.conditional, guide.unconditional, guide.video)
    return tuple(tensor for part in given if part is not None for tensor in part)


def _filled(guide: Guide, tensors: tuple[Tensor, ...]) -> Guide:
    """The same guide with other tensors in their places."""
    parts = [Encoded(*tensors[k : k + 4]) for k in range(0, len(tensors), 4)]
    unconditional = parts[1] if guide.unconditional is not None else None
    return Guide(parts[0], unconditional, guide.guidance, None, parts[2] if guide.video is not None else None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Recorded:
    """A function of tensors on a CUDA device, recorded at the first call with given shapes and replayed afterwards."""

    call: Callable[..., Sequence[Tensor]]
    """The function; it must not wait for the device."""
    report: Callable[[str], None]
    keep: object = None
    """References to tensors that the function reads from caches, so that their memory is not freed."""
    graphs: dict[Hashable, "CudaGraphCall | None"] = field(default_factory=dict)

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        """The function's results, as copies that belong to the caller."""
        shapes = tuple((tuple(x.shape), x.dtype) for x in tensors)
        if shapes not in self.graphs:
            self.graphs[shapes] = record(self.call, tensors, report=self.report, keep=self.keep)
        graph = self.graphs[shapes]
        return self.call(*tensors) if graph is None else graph(*tensors)


@dataclass(frozen=True, eq=False)
class CudaGraphCall:
    """Replays a CUDA graph on tensors of the recorded shapes and dtypes; its results are copies.

    `keep` refers to the other tensors that the graph reads, whose memory would otherwise be freed and reused.
    """

    replay: Callable[[], None]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    keep: object = None

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Replay the graph. Raises ValueError for tensors of other shapes or dtypes than the recorded ones."""
        found, wanted = ([(tuple(x.shape), x.dtype) for x in xs] for xs in (tensors, self.inputs))
        if found != wanted:
            raise ValueError(f"a recorded call takes {wanted}, got {found}")
        for place, x in zip(self.inputs, tensors, strict=True):
            place.copy_(x)
        self.replay()
        return tuple(x.clone() for x in self.outputs)


@torch.no_grad()
def record(
    call: Callable[..., Sequence[Tensor]],
    example: Sequence[Tensor],
    *,
    report: Callable[[str], None],
    keep: object = None,
) -> CudaGraphCall | None:
    """Warm `call` up on its own stream and record it on copies of `example`; `keep` refers to cached tensors it reads.

    Returns None and reports one line where recording fails: without a CUDA device, for an operation that waits for the
    device, or for lack of memory.
    """
    inputs = tuple(x.clone() for x in example)
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                call(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = tuple(call(*inputs))
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        report(f"no CUDA graph ({reason}); operators are launched one by one")
        return None
    return CudaGraphCall(graph.replay, inputs, outputs, keep=(call, keep))
