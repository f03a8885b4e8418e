"""A pipeline whose stages are timed while it works, and which can be stopped between them."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import Tensor

from teacher.audio.codec import AudioCodec
from teacher.encoders.base import Frames, ImageEncoder, SyncEncoder, TextEncoder
from teacher.encoders.registry import Encoders
from teacher.media import FrameRequest
from teacher.network.mmaudio import MMAudio
from teacher.sampling.pipeline import Pipeline

READ, IMAGE, MOTION, TEXT = "decode+resize", "image encoder", "motion encoder", "text encoder"
FLOW, DECODE = "flow network", "codec decode"
ENCODING = (READ, IMAGE, MOTION, TEXT)
STAGES = (*ENCODING, FLOW, DECODE)
"""Named as in eval/speed/budget.py, in order."""
Result = TypeVar("Result")


def _go_on() -> None:
    """Nobody stops this work."""


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Seconds by stage, added up until they are taken."""

    seconds: dict[str, float] = field(default_factory=dict)
    going: Callable[[], None] = _go_on
    """Called before every window that is encoded or decoded and every evaluation of the network; raises where the work
    is to end."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage, unless the work is to end."""
        self.going()
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def take(self) -> dict[str, float]:
        """What was added since the last time."""
        taken = dict(self.seconds)
        self.seconds.clear()
        return taken

    def encoding(self, work: Callable[[], Result], *, video: bool) -> tuple[Result, dict[str, float]]:
        """Encode a scene; seconds by stage. What is no encoder's is reading and resizing, where there is a video."""
        result, whole = self._whole(work)
        found = self.take()
        return result, ({READ: max(0.0, whole - sum(found.values())), **found} if video else found)

    def generation(self, work: Callable[[], Result]) -> tuple[Result, dict[str, float]]:
        """Make sounds; seconds of flow network and decoding. Drawing noise and joining windows count as the former."""
        result, whole = self._whole(work)
        decoding = self.take().get(DECODE, 0.0)
        return result, {FLOW: max(0.0, whole - decoding), DECODE: decoding}

    def _whole(self, work: Callable[[], Result]) -> tuple[Result, float]:
        self.take()
        began = time.perf_counter()
        result = work()
        return result, time.perf_counter() - began


def timed(pipeline: Pipeline, clock: Clock) -> Pipeline:
    """The same pipeline with encoders and codec that report to `clock`. Results of all of them lie on the processor,
    so that nothing is left to wait for on a GPU when they return."""
    encoders = Encoders(
        image=_Pictures(pipeline.encoders.image, IMAGE, clock),
        sync=_Pictures(pipeline.encoders.sync, MOTION, clock),
        text=_Words(pipeline.encoders.text, clock),
        in_worker=pipeline.encoders.in_worker,
    )
    return replace(pipeline, net=_net(pipeline.net, clock), encoders=encoders, codec=_codec(pipeline.codec, clock))


@dataclass(frozen=True)
class _Pictures:
    inner: ImageEncoder | SyncEncoder
    stage: str
    clock: Clock

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def request(self) -> FrameRequest:
        return self.inner.request

    def __call__(self, frames: Frames) -> Tensor:
        with self.clock.stage(self.stage):
            return self.inner(frames)


@dataclass(frozen=True)
class _Words:
    inner: TextEncoder
    clock: Clock

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def shared_positions(self) -> int:
        return self.inner.shared_positions

    def __call__(self, texts: Sequence[str]) -> Tensor:
        with self.clock.stage(TEXT):
            return self.inner(texts)


def _net(net: MMAudio, clock: Clock) -> MMAudio:
    """The same network, parameters shared, asking before every evaluation whether to go on."""
    twin = copy.copy(net)
    predict = net.predict

    def asked(*given: Any) -> Tensor:
        clock.going()
        return predict(*given)

    object.__setattr__(twin, "predict", asked)
    return twin


def _codec(codec: AudioCodec, clock: Clock) -> AudioCodec:
    """A copy of the codec whose `decode` is timed. Not a wrapper: a codec's kind is asked for elsewhere."""
    twin = copy.copy(codec)

    def decode(latent: Tensor) -> Tensor:
        with clock.stage(DECODE):
            return codec.decode(latent)

    object.__setattr__(twin, "decode", decode)  # an attribute of its own comes before the class's method
    return twin
