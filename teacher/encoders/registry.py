"""Encoders by name, and the one way a video becomes features: extraction and sampling both go through here."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from teacher.data.media import FrameRequest, MediaError, MediaInfo, probe, read_frames
from teacher.encoders.base import ImageEncoder, SyncEncoder, TextEncoder
from teacher.encoders.embedded import EmbeddedImage, EmbeddedMotion, EmbeddedText

SHORTEST_SHARE = 0.9
"""A video window this complete is used; its last frame stands in for the rest."""
KNOWN_ENCODERS = ("embedded",)


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """The three encoders that belong together."""

    image: ImageEncoder
    sync: SyncEncoder
    text: TextEncoder

    @property
    def names(self) -> dict[str, str]:
        """Name and version of each; features of different names do not mix."""
        return {"image": self.image.name, "sync": self.sync.name, "text": self.text.name}


@functools.lru_cache(maxsize=2)
def load_encoders(name: str) -> Encoders:
    """Encoders of a known set; ValueError lists the known ones otherwise."""
    if name == "embedded":
        return Encoders(image=EmbeddedImage(), sync=EmbeddedMotion(), text=EmbeddedText())
    raise ValueError(f"encoders must be one of {', '.join(KNOWN_ENCODERS)}, got {name!r}")


def encode_clip(
    encoders: Encoders, path: Path, *, start_s: float, duration_s: float
) -> tuple[Float[Tensor, "image_frames 1024"], Float[Tensor, "sync_frames 768"]]:
    """Image and synchronisation features of [start_s, start_s + duration_s), in one decoding pass, float32.

    Raises MediaError when the file has no picture or less than 0.9 duration_s of it from start_s on.
    """
    return encode_window(encoders, probe(path), start_s=start_s, duration_s=duration_s)


def encode_window(
    encoders: Encoders, info: MediaInfo, *, start_s: float, duration_s: float
) -> tuple[Float[Tensor, "image_frames 1024"], Float[Tensor, "sync_frames 768"]]:
    """`encode_clip` for a file that is already probed."""
    if not info.has_video:
        raise MediaError(f"{info.path}: has no picture; give a video file")
    available_s = info.duration_s - start_s
    if available_s < SHORTEST_SHARE * duration_s:
        raise MediaError(f"{info.path}: too short: {max(0.0, available_s):.2f} s of video, need {duration_s:g} s")
    requests = (encoders.image.request, encoders.sync.request)
    shown = read_frames(info.path, requests, start_s=start_s, duration_s=min(available_s, duration_s))
    image, sync = (_held(frames, request, duration_s) for frames, request in zip(shown, requests, strict=True))
    return encoders.image(image), encoders.sync(sync)


def _held(frames: np.ndarray, request: FrameRequest, duration_s: float) -> np.ndarray:
    """Frames extended to int(fps D) by holding the last one."""
    missing = request.num_frames(duration_s) - len(frames)
    return np.concatenate((frames, np.repeat(frames[-1:], missing, axis=0))) if missing > 0 else frames
