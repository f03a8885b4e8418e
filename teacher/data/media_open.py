"""Opening media files that nobody vouched for: what is refused, and what a file says about itself."""

import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,wav,flac,ogg,mp3,aac,aiff,w64"
"""Container formats that hold their own data; play lists and concat scripts, which name other files, are left out."""
MAX_PIXELS = 8192 * 8192
"""Largest picture that is decoded; a header can claim any size."""
MAX_ASPECT = 32
"""Largest ratio of the long to the short edge; filling a square from a thinner picture would need a huge resize."""


class MediaError(ValueError):
    """A media file cannot be used. The message is one line that names the file and the reason."""


@dataclass(frozen=True, kw_only=True)
class MediaInfo:
    """What `probe` found out. `duration_s` is that of the picture when there is one, else of the sound.

    `width` and `height` are as displayed (rotation applied) and `fps` is the average rate; all 0 without a picture.
    """

    path: Path
    duration_s: float
    has_video: bool
    has_audio: bool
    width: int
    height: int
    fps: float


@contextmanager
def open_media(path: Path) -> Iterator[InputContainer]:
    """Open a local regular file for reading.

    Only the `file` protocol and the formats in `FORMATS` are allowed, so a file cannot make the library read another
    file or the network. Every failure of the library inside the `with` block becomes a MediaError of one line.
    """
    path = Path(path)
    try:
        status = path.stat()
    except OSError as error:
        raise MediaError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(f"{path}: is not a regular file")
    if status.st_size == 0:
        raise MediaError(f"{path}: is empty (0 bytes)")
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    try:
        with av.open(f"file:{path.absolute()}", mode="r", container_options=options) as container:
            yield container
    except (av.error.FFmpegError, OSError, EOFError) as error:
        raise MediaError(f"{path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, av.error.InvalidDataError):
        return "is not a media file that can be decoded (damaged, cut off, or of another kind)"
    if isinstance(error, av.error.ArgumentError):
        return "its format is not supported or its header is damaged"
    return f"cannot be decoded: {getattr(error, 'strerror', None) or error}".replace("\n", " ")


def video_stream(container: InputContainer) -> VideoStream | None:
    """The first picture stream that is not cover art; None without one."""
    for stream in container.streams.video:
        if stream.disposition & av.stream.Disposition.attached_pic:
            continue
        return stream
    return None


def check_picture(path: Path, width: int, height: int) -> None:
    """Refuse pictures without a size, larger than MAX_PIXELS or thinner than 1 : MAX_ASPECT."""
    if width <= 0 or height <= 0:
        raise MediaError(f"{path}: its video has no picture size; the file is damaged or cut off")
    if width * height > MAX_PIXELS:
        raise MediaError(
            f"{path}: a picture of {width}x{height} is larger than the {MAX_PIXELS} pixels that are decoded"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise MediaError(f"{path}: a picture of {width}x{height} is thinner than 1:{MAX_ASPECT}")


def origin_s(container: InputContainer) -> float:
    """Time stamp that counts as 0 s. Transport streams start anywhere; a negative start is codec delay, not content."""
    return max(0.0, (container.start_time or 0) / av.time_base)


def check_window(start_s: float, duration_s: float | None) -> None:
    """Refuse windows that start before 0 or have no length."""
    if not (math.isfinite(start_s) and start_s >= 0):
        raise ValueError(f"start_s must be at least 0, got {start_s}")
    if duration_s is not None and not (math.isfinite(duration_s) and duration_s > 0):
        raise ValueError(f"duration_s must be positive, got {duration_s}")


def check_wave(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """The wave as float32, scaled down as a whole where |peak| > 1. Raises ValueError unless 1-D, float and finite."""
    wave = np.asarray(wave)
    if wave.ndim != 1 or wave.size == 0 or not np.issubdtype(wave.dtype, np.floating):
        raise ValueError(f"wave must be a non-empty 1-D float array, got shape {wave.shape} and dtype {wave.dtype}")
    if not np.isfinite(wave).all():
        raise ValueError("wave must be finite, it holds NaN or infinity")
    if sample_rate <= 0:
        raise ValueError(f"sample_rate must be positive, got {sample_rate}")
    peak = float(np.abs(wave).max())
    return (wave / peak if peak > 1.0 else wave).astype(np.float32)


def probe(path: Path) -> MediaInfo:
    """Read the header, and one frame of picture or sound to prove that it can be decoded.

    Raises MediaError for files that are missing, empty, damaged, of an unsupported kind, or without picture and sound.
    """
    path = Path(path)
    with open_media(path) as container:
        video = video_stream(container)
        audio = container.streams.audio[0] if container.streams.audio else None
        if video is None and audio is None:
            raise MediaError(f"{path}: holds neither picture nor sound")
        width = height = 0
        fps = 0.0
        if video is not None:
            check_picture(path, video.codec_context.width, video.codec_context.height)
            first = next(container.decode(video), None)
            if first is None:
                raise MediaError(f"{path}: no video frame can be decoded; the file is damaged or cut off")
            width, height = (first.height, first.width) if first.rotation % 180 else (first.width, first.height)
            fps = float(video.average_rate or video.guessed_rate or 0.0)
        elif next(container.decode(audio), None) is None:
            raise MediaError(f"{path}: no sound can be decoded; the file is damaged or cut off")
        stream = video if video is not None else audio
        assert stream is not None
        if stream.duration is not None and stream.time_base is not None:
            duration_s = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration_s = container.duration / av.time_base
        else:
            raise MediaError(f"{path}: states no duration; convert it to mp4 or wav first")
        return MediaInfo(
            path=path,
            duration_s=duration_s,
            has_video=video is not None,
            has_audio=audio is not None,
            width=width,
            height=height,
            fps=fps,
        )
