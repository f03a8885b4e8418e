"""Encoders by name, and the one way a video becomes features: extraction and sampling both go through here."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from teacher.encoders import clip, embedded, synchformer
from teacher.encoders.base import Frames, ImageEncoder, SyncEncoder, TextEncoder
from teacher.files.errors import WeightsError
from teacher.media import FrameRequest, MediaError, MediaInfo, probe, read_frames
from teacher.network.sequence import IMAGE_DIM, SYNC_DIM, TEXT_DIM

SHORTEST_SHARE = 0.9
"""A video window this complete is used; its last frame stands in for the rest."""
REQUESTS: dict[str, tuple[FrameRequest, FrameRequest]] = {
    "embedded": (embedded.IMAGE_REQUEST, embedded.MOTION_REQUEST),
    "mmaudio": (clip.IMAGE_REQUEST, synchformer.SYNC_REQUEST),
}
"""Frames that the image and the synchronisation encoder of each set look at."""
KNOWN_ENCODERS = tuple(REQUESTS)
CLIP_FILE, SYNCHFORMER_FILE = "clip_dfn5b_h14_378.safetensors", "synchformer.safetensors"


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """The three encoders that belong together."""

    image: ImageEncoder
    sync: SyncEncoder
    text: TextEncoder
    in_worker: bool = True
    """Cheap enough to run in the processes that read files. Otherwise the frames go to the process that owns the
    device, and are encoded there."""

    @property
    def names(self) -> dict[str, str]:
        """Name and version of each; features of different names do not mix."""
        return {"image": self.image.name, "sync": self.sync.name, "text": self.text.name}

    @property
    def requests(self) -> tuple[FrameRequest, FrameRequest]:
        """Frames that the image and the synchronisation encoder look at."""
        return self.image.request, self.sync.request


def load_encoders(name: str, *, weights_dir: Path | None = None, device: str = "cpu") -> Encoders:
    """Encoders of a known set, the last two of them kept in memory; ValueError lists the known names otherwise.

    "embedded" needs nothing else and always runs on the processor. "mmaudio" reads `clip_dfn5b_h14_378.safetensors`
    and, once video is encoded, `synchformer.safetensors` in `weights_dir` and runs on `device`; WeightsError says what
    is missing there and which commands make it. Nothing is downloaded. Features come back in float32 on the processor.
    """
    frame_requests(name)
    if name == "embedded":
        return _load(name, None, "cpu")
    return _load(name, None if weights_dir is None else Path(weights_dir), device)


def frame_requests(name: str) -> tuple[FrameRequest, FrameRequest]:
    """Frames that the image and the synchronisation encoder of a set look at, without loading any weights."""
    if name not in REQUESTS:
        raise ValueError(f"encoders must be one of {', '.join(KNOWN_ENCODERS)}, got {name!r}")
    return REQUESTS[name]


@functools.lru_cache(maxsize=2)
def _load(name: str, weights_dir: Path | None, device: str) -> Encoders:
    if name == "embedded":
        return Encoders(image=embedded.EmbeddedImage(), sync=embedded.EmbeddedMotion(), text=embedded.EmbeddedText())
    if weights_dir is None:
        raise WeightsError(f"encoders {name!r} need a weights folder; give one with --weights-dir")
    if not (weights_dir / CLIP_FILE).is_file():
        _require(weights_dir, CLIP_FILE, SYNCHFORMER_FILE)
    image, text = clip.load_clip(weights_dir / CLIP_FILE, device)
    _check_width(weights_dir / CLIP_FILE, "image", image.width, IMAGE_DIM)
    _check_width(weights_dir / CLIP_FILE, "text", text.width, TEXT_DIM)
    return Encoders(image=image, sync=_Sync(weights_dir / SYNCHFORMER_FILE, device), text=text, in_worker=False)


@dataclass(frozen=True)
class _Sync:
    """Synchformer, loaded when first used: sound from words needs none."""

    path: Path
    device: str
    request: FrameRequest = synchformer.SYNC_REQUEST

    @functools.cached_property
    def _encoder(self) -> synchformer.SynchformerEncoder:
        _require(self.path.parent, self.path.name)
        encoder = synchformer.load_sync_encoder(self.path, self.device)
        _check_width(self.path, "synchronisation", encoder.width, SYNC_DIM)
        return encoder

    @property
    def name(self) -> str:
        return self._encoder.name

    def __call__(self, frames: Frames) -> Float[Tensor, "slots 768"]:
        return self._encoder(frames)


def _require(weights_dir: Path, *files: str) -> None:
    missing = [file for file in files if not (weights_dir / file).is_file()]
    if missing:
        raise WeightsError(
            f"{weights_dir} lacks {' and '.join(missing)}; fetch the official files with mf-fetch and convert them "
            "with mf-convert"
        )


def _check_width(path: Path, kind: str, width: int, needed: int) -> None:
    if width != needed:
        raise WeightsError(f"{path} gives {kind} features of width {width}, the networks take {needed}")


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
    image, sync = read_window_frames(encoders.requests, info, start_s, duration_s)
    return encoders.image(image), encoders.sync(sync)


def read_window_frames(
    requests: tuple[FrameRequest, FrameRequest], info: MediaInfo, start_s: float, duration_s: float
) -> tuple[UInt8[np.ndarray, "image_frames 3 height width"], UInt8[np.ndarray, "sync_frames 3 height width"]]:
    """The frames that `encode_window` encodes, so that one process can read and another encode.

    Where the picture ends early its last frame is held. Raises MediaError as `encode_clip`.
    """
    if not info.has_video:
        raise MediaError(f"{info.path}: has no picture; give a video file")
    available_s = info.duration_s - start_s
    if available_s < SHORTEST_SHARE * duration_s:
        raise MediaError(f"{info.path}: too short: {max(0.0, available_s):.2f} s of video, need {duration_s:g} s")
    shown = read_frames(info.path, requests, start_s=start_s, duration_s=min(available_s, duration_s))
    image, sync = (_held(frames, request, duration_s) for frames, request in zip(shown, requests, strict=True))
    return image, sync


def _held(frames: np.ndarray, request: FrameRequest, duration_s: float) -> np.ndarray:
    """Frames extended to int(fps D) by holding the last one."""
    missing = request.num_frames(duration_s) - len(frames)
    return np.concatenate((frames, np.repeat(frames[-1:], missing, axis=0))) if missing > 0 else frames
