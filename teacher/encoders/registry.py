"""The encoder sets by name, and reading the frames that they request; used by extraction and sampling."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from teacher.encoders import clip, embedded, synchformer
from teacher.encoders.base import ImageEncoder, SyncEncoder, TextEncoder, require_files
from teacher.files.errors import WeightsError
from teacher.media import FrameRequest, MediaError, MediaInfo, read_frames
from teacher.network.sequence import ConditionWidths

SHORTEST_FRACTION = 0.9
"""Least part of a window for which a video must have frames; its last frame is repeated for the rest."""
Requests = tuple[FrameRequest, FrameRequest]
"""Rate and size of the frames for the image and the synchronisation encoder of a set."""


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """A set of loaded encoders for images, synchronisation and text."""

    image: ImageEncoder
    sync: SyncEncoder
    text: TextEncoder
    in_worker: bool = True
    """Whether the encoders are cheap enough to run in the processes that read files. Otherwise these return frames, and
    the process that owns the device encodes them."""

    @property
    def names(self) -> dict[str, str]:
        """Name and version of each; features of different names do not mix."""
        return {"image": self.image.name, "sync": self.sync.name, "text": self.text.name}

    @property
    def requests(self) -> Requests:
        """Rate and size of the frames for the image and the synchronisation encoder."""
        return self.image.request, self.sync.request

    @property
    def widths(self) -> ConditionWidths:
        """Widths of the features, which a network that takes them must have too."""
        return ConditionWidths(
            image=self.image.width, sync=self.sync.width, text=self.text.width, text_tokens=self.text.positions
        )


@dataclass(frozen=True, kw_only=True)
class EncoderSet:
    """An entry of the registry: how to load a set of encoders, and its frame requests."""

    requests: Requests
    load: Callable[[Path, str], Encoders]
    """Loads the set from (weights folder, device such as "cpu" or "cuda:0")."""
    files: tuple[str, ...] = ()
    """Names of the weight files that `load` reads; a set without any needs no folder and runs on the CPU."""


def _embedded(weights_dir: Path, device: str) -> Encoders:
    return Encoders(image=embedded.EmbeddedImage(), sync=embedded.EmbeddedMotion(), text=embedded.EmbeddedText())


def _mmaudio(weights_dir: Path, device: str) -> Encoders:
    if not (weights_dir / clip.FILE).is_file():
        require_files(weights_dir, clip.FILE, synchformer.FILE)
    image, text = clip.load_clip(weights_dir / clip.FILE, device)
    sync = synchformer.SynchformerOnUse(path=weights_dir / synchformer.FILE, device=device)
    return Encoders(image=image, sync=sync, text=text, in_worker=False)


ENCODERS: dict[str, EncoderSet] = {
    "embedded": EncoderSet(requests=(embedded.IMAGE_REQUEST, embedded.MOTION_REQUEST), load=_embedded),
    "mmaudio": EncoderSet(
        requests=(clip.IMAGE_REQUEST, synchformer.SYNC_REQUEST),
        load=_mmaudio,
        files=(clip.FILE, synchformer.FILE),
    ),
}
"""Every set of encoders, by the name that --encoders takes and features.json records."""


def encoder_set(name: str) -> EncoderSet:
    """The entry of `ENCODERS` called `name`; ValueError lists the known names otherwise."""
    if name not in ENCODERS:
        raise ValueError(f"encoders must be one of {', '.join(ENCODERS)}, got {name!r}")
    return ENCODERS[name]


def load_encoders(name: str, *, weights_dir: Path | None = None, device: str = "cpu") -> Encoders:
    """Encoders of a known set, the last two of them stay in memory; ValueError lists the known names otherwise.

    "embedded" needs nothing else and always runs on the processor. "mmaudio" reads `clip_dfn5b_h14_378.safetensors`
    and, once video is encoded, `synchformer.safetensors` in `weights_dir` and runs on `device`; WeightsError names
    what is missing there and the commands that make it. Nothing is downloaded. Features come back in float32 on the
    processor.
    """
    if not encoder_set(name).files:
        return _load(name, Path(), "cpu")
    if weights_dir is None:
        raise WeightsError(f"encoders {name!r} need a weights folder; give one with --weights-dir")
    return _load(name, Path(weights_dir), device)


@functools.lru_cache(maxsize=2)
def _load(name: str, weights_dir: Path, device: str) -> Encoders:
    return ENCODERS[name].load(weights_dir, device)


def read_window_frames(
    requests: Requests, info: MediaInfo, start_s: float, duration_s: float
) -> tuple[UInt8[np.ndarray, "image_frames 3 _ _"], UInt8[np.ndarray, "sync_frames 3 _ _"]]:
    """Frames of [start_s, start_s + duration_s) of a probed film for each request, in one decoding pass.

    Reading and encoding are apart, so that one process can read and another encode. Where the picture ends early its
    last frame is held. Raises MediaError when the film has no picture, or less than 0.9 duration_s of it from start_s
    on.
    """
    if not info.has_video:
        raise MediaError(f"{info.path}: has no picture; give a video file")
    available_s = info.duration_s - start_s
    if available_s < SHORTEST_FRACTION * duration_s:
        raise MediaError(f"{info.path}: too short: {max(0.0, available_s):.2f} s of video, need {duration_s:g} s")
    shown = read_frames(info.path, requests, start_s=start_s, duration_s=min(available_s, duration_s))
    image, sync = (_held(frames, request, duration_s) for frames, request in zip(shown, requests, strict=True))
    return image, sync


def _held(frames: np.ndarray, request: FrameRequest, duration_s: float) -> np.ndarray:
    """Frames extended to int(fps D) by holding the last one."""
    missing = request.num_frames(duration_s) - len(frames)
    return np.concatenate((frames, np.repeat(frames[-1:], missing, axis=0))) if missing > 0 else frames
