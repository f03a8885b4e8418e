"""Opening media files of unknown origin: limits, and reading a file's streams and tags."""

import math
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.frame import Frame
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream

from teacher.files.errors import MediaError
from teacher.media.boxes import BoxError, check_boxes

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,wav,flac,ogg,mp3,aac,aiff,w64"
"""Container formats that hold their own data; play lists and concat scripts, which name other files, are left out."""
MAX_PIXELS = 8192 * 8192
"""Largest picture that is decoded; a header can claim any size."""
MAX_STREAMS = 128
"""Most streams of a file; each may cost a decoder."""
MAX_DURATION_S = 24 * 3600.0
"""Longest duration a header may claim; memory and time are planned from it before the end is read."""
SAMPLE_RATES = (1000, 1_536_000)
"""Lowest and highest rate of sound; outside, resampling would need memory without bound."""
CUT_OFF_S = 1.0
"""A picture that ends more than this before its stated end is taken for cut off, and reading to that end fails."""
READ_TIMEOUT_S = 10.0
"""Timeout for the next packet, and for each of the two phases of opening; a damaged file can be searched forever."""
PROBE_TIMEOUT_S = 20.0
"""Longest search of `probe` for a first frame."""
MAX_HOLES = 256 * 2**20
"""Most bytes of a file that were never written, because a sparse file of terabytes would take hours to read."""
LIBRARIES = ("av/", str(soundfile.__file__), *(f"{Path(m.__file__ or '').parent}/" for m in (av, soxr)))
"""Path prefixes of the code of the media libraries; the compiled parts of PyAV have paths av/... in tracebacks."""
MAX_ASPECT = 32
"""Largest ratio of the long to the short edge; filling a square from a thinner picture would need a huge resize."""


@dataclass(frozen=True, kw_only=True)
class MediaInfo:
    """Properties of a file, found by `probe`. `duration_s` is the end of the last picture, else that of the sound.

    `width` and `height` are as displayed (rotation applied) and `fps` is the average rate; all 0 without a picture.
    Sound that cannot be decoded, beside a picture, counts as none.
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
    file or the network. Streams without a decoder are there, with a `codec_context` of None. Every failure of PyAV,
    soundfile and soxr inside the `with` block becomes a MediaError of one line; other errors pass.
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
    if (holes := _holes(path, status.st_size)) > MAX_HOLES:
        raise MediaError(f"{path}: {holes >> 20} MiB of it were never written; is a download or a copy unfinished?")
    try:
        with path.open("rb") as file:
            check_boxes(file)
    except BoxError as error:
        raise MediaError(f"{path}: {error}") from error
    except OSError as error:
        raise MediaError(f"{path}: cannot be read: {error.strerror}") from error
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS, "max_streams": str(MAX_STREAMS)}
    limits = {"max_pixels": str(MAX_PIXELS)}
    try:
        with av.open(
            f"file:{path.absolute()}",
            mode="r",
            container_options=options,
            options=limits,
            metadata_errors="replace",
            timeout=READ_TIMEOUT_S,
        ) as container:
            for picture in container.streams.video:
                if picture.codec_context is not None:
                    picture.codec_context.options = limits
            yield container
    except (av.error.FFmpegError, EOFError, MemoryError) as error:
        raise MediaError(f"{path}: {_reason(error)}") from error
    except Exception as error:  # damage leads the libraries into errors of every kind; ours keep their traceback
        if not raised_by_library(error):
            raise
        raise MediaError(f"{path}: cannot be decoded: {type(error).__name__}: {_one_line(error)}") from error


def raised_by_library(error: BaseException) -> bool:
    """Whether an error arose inside PyAV, soundfile or soxr, by the last entry of its traceback."""
    entry = error.__traceback__
    while entry is not None and entry.tb_next is not None:
        entry = entry.tb_next
    file = "" if entry is None else entry.tb_frame.f_code.co_filename
    return file.startswith(LIBRARIES)


def _holes(path: Path, size: int) -> int:
    """Bytes of the file's holes (never written), from the file system; at most the first hundred holes are counted."""
    if size <= MAX_HOLES or not hasattr(os, "SEEK_HOLE"):
        return 0
    holes = position = 0
    with path.open("rb", buffering=0) as file:
        for _ in range(100):
            begin = os.lseek(file.fileno(), position, os.SEEK_HOLE)
            try:
                position = os.lseek(file.fileno(), begin, os.SEEK_DATA)
            except OSError:  # nothing but a hole up to the end
                position = size
            holes += position - begin
            if position >= size:
                break
    return holes


def _reason(error: Exception) -> str:
    if isinstance(error, av.error.InvalidDataError):
        return "is not a media file that can be decoded (damaged, cut off, or of another kind)"
    if isinstance(error, av.error.ExitError):
        return f"nothing can be read from it for {READ_TIMEOUT_S:g} s; it is damaged, or its disk does not answer"
    if isinstance(error, av.error.MemoryError):
        return "its header asks for more memory or streams than it is given"
    if isinstance(error, av.error.ArgumentError):
        return "its format is not supported or its header is damaged"
    return f"cannot be decoded: {_one_line(getattr(error, 'strerror', None) or error)}"


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


def _pictures(container: InputContainer) -> list[VideoStream]:
    """Picture streams that are not cover art."""
    attached = av.stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & attached]


def video_stream(container: InputContainer) -> VideoStream | None:
    """The first picture stream that can be decoded and is not cover art; None if there is none."""
    return next((stream for stream in _pictures(container) if stream.codec_context is not None), None)


def audio_stream(container: InputContainer) -> AudioStream | None:
    """The first audio stream that can be decoded and whose rate is within SAMPLE_RATES; None if there is none."""
    for stream in container.streams.audio:
        if stream.codec_context is not None and _usable_rate(stream.sample_rate):
            return stream
    return None


def _usable_rate(sample_rate: int) -> bool:
    return not sample_rate or SAMPLE_RATES[0] <= sample_rate <= SAMPLE_RATES[1]  # 0: not stated before decoding


def without_picture(container: InputContainer, path: Path) -> MediaError:
    """The error for a file without usable picture: it has none, or there is no decoder for it."""
    if pictures := _pictures(container):
        codec = codec_name(container, pictures[0])
        return MediaError(f"{path}: there is no decoder for its picture: codec {codec}; convert it to H.264")
    return MediaError(f"{path}: has no picture; give a video file, or use it for its sound only")


def without_sound(container: InputContainer, path: Path) -> MediaError:
    """The error for a file without usable sound: it has none, no decoder knows it, or its rate is out of bounds."""
    for stream in container.streams.audio:
        if stream.codec_context is None:
            codec = codec_name(container, stream)
            return MediaError(f"{path}: there is no decoder for its sound: codec {codec}; convert it to AAC")
        return MediaError(f"{path}: sound at {stream.sample_rate} Hz is not one that can be read")
    return MediaError(f"{path}: has no sound")


def codec_name(container: InputContainer, stream: Stream) -> str:
    """Name of a stream's codec, else the container's tag for it, else "unknown".

    PyAV has no name for streams without a decoder; it is taken from FFmpeg's description of the file.
    """
    if stream.codec_context is not None:
        return stream.codec_context.name
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        printed = container.dumps_format()
    finally:
        av.logging.set_level(level)
    found = re.search(rf"Stream #0:{stream.index}\b.*?: \w+: (\w+)[^,(\n]*(?:\((\S+) / 0x)?", printed)
    names = [] if found is None else [name for name in found.groups() if name and name != "none"]
    return names[0] if names else "unknown"


def demux(container: InputContainer, stream: Stream) -> Iterator[Packet]:
    """Yield the packets of one stream, and an empty one at the end, which makes its decoder output delayed frames.

    PyAV 18 fails with an IndexError on streams that appear later in the file (as in transport streams), after all
    packets of `stream`; that ends the packets here.
    """
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, IndexError):
            return
        yield packet


def decode(container: InputContainer, stream: Stream) -> Iterator[Frame]:
    """The frames of one stream."""
    for packet in demux(container, stream):
        yield from packet.decode()


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

    Raises MediaError for files that are missing, empty, damaged, of an unsupported kind, or without picture and sound,
    and for those with a picture of which no stream can be decoded.
    """
    path = Path(path)
    with open_media(path) as container:
        video, audio = video_stream(container), audio_stream(container)
        if video is None and _pictures(container):
            raise without_picture(container, path)
        if video is None and audio is None:
            raise (
                without_sound(container, path)
                if container.streams.audio
                else MediaError(f"{path}: holds neither picture nor sound")
            )
        width = height = 0
        fps = 0.0
        if video is not None:
            check_picture(path, video.codec_context.width, video.codec_context.height)
            first = _first_frame(container, video, path)
            if not isinstance(first, av.VideoFrame):
                raise MediaError(f"{path}: no video frame can be decoded; the file is damaged or cut off")
            check_picture(path, first.width, first.height)
            width, height = (first.height, first.width) if first.rotation % 180 else (first.width, first.height)
            fps = float(video.average_rate or video.guessed_rate or 0.0)
        elif audio is not None and _first_frame(container, audio, path) is None:
            raise MediaError(f"{path}: no sound can be decoded; the file is damaged or cut off")
        duration_s = _claimed_duration_s(container, video or audio, path)
        if video is not None:
            end_s = _last_end_s(container, video)
            duration_s = end_s if duration_s - CUT_OFF_S <= end_s <= MAX_DURATION_S else duration_s
        return MediaInfo(
            path=path,
            duration_s=duration_s,
            has_video=video is not None,
            has_audio=audio is not None,
            width=width,
            height=height,
            fps=fps,
        )


def _first_frame(container: InputContainer, stream: Stream, path: Path) -> Frame | None:
    """The first frame that can be decoded; None at the end of the file."""
    began = time.monotonic()
    for packet in demux(container, stream):
        for frame in packet.decode():
            if isinstance(frame, Frame):
                return frame
        if time.monotonic() - began > PROBE_TIMEOUT_S:
            raise MediaError(f"{path}: nothing could be decoded within {PROBE_TIMEOUT_S:g} s; the file is damaged")
    return None


def _last_end_s(container: InputContainer, video: VideoStream) -> float:
    """Time in seconds at which the last picture ends; 0 if it cannot be determined.

    Headers are wrong about it: MP4 adds up decoding times, which differ where frames are reordered and of unequal
    length, and Matroska counts the sound.
    """
    end_s, origin = 0.0, origin_s(container)
    began = time.monotonic()
    try:
        container.seek(container.duration or 0, backward=True)
        for packet in demux(container, video):
            if packet.pts is not None and packet.size and not packet.is_discard and video.time_base is not None:
                end = packet.pts + (packet.duration or 0)
                end_s = max(end_s, float(end * video.time_base) - origin)
            if time.monotonic() - began > PROBE_TIMEOUT_S:
                return 0.0
    except av.error.FFmpegError:
        return 0.0
    return end_s


def _claimed_duration_s(container: InputContainer, stream: Stream | None, path: Path) -> float:
    """The duration that the header states of the stream, else of the whole file; at most MAX_DURATION_S."""
    if stream is not None and stream.duration is not None and stream.time_base is not None:
        duration_s = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        duration_s = container.duration / av.time_base
    else:
        raise MediaError(f"{path}: states no duration; convert it to mp4 or wav first")
    if not 0 <= duration_s <= MAX_DURATION_S:
        raise MediaError(f"{path}: states a duration of {duration_s:.4g} s; from 0 to {MAX_DURATION_S:g} s can be used")
    return duration_s


@dataclass(frozen=True, kw_only=True)
class StreamInfo:
    """One stream of a file. Figures that do not apply, or are not stated, are 0."""

    kind: str
    """video, audio, picture (cover art), subtitle, data or attachment."""
    codec: str
    sample_rate: int = 0
    channels: int = 0
    width: int = 0
    """As stored; rotation is not applied."""
    height: int = 0
    fps: float = 0.0
    duration_s: float = 0.0


def stream_infos(container: InputContainer) -> list[StreamInfo]:
    """What the header states of every stream; nothing is decoded."""
    infos = []
    for stream in container.streams:
        duration_s = 0.0
        if stream.duration is not None and stream.time_base is not None:
            duration_s = float(stream.duration * stream.time_base)
        info = StreamInfo(kind=stream.type or "data", codec=codec_name(container, stream), duration_s=duration_s)
        if isinstance(stream, VideoStream):
            cover = bool(stream.disposition & av.stream.Disposition.attached_pic)
            info = replace(info, kind="picture" if cover else "video", fps=float(stream.average_rate or 0.0))
        if stream.codec_context is not None and isinstance(stream, AudioStream):
            info = replace(info, sample_rate=stream.sample_rate, channels=stream.channels)
        elif stream.codec_context is not None and isinstance(stream, VideoStream):
            info = replace(info, width=stream.codec_context.width, height=stream.codec_context.height)
        infos.append(info)
    return infos


def text_tags(container: InputContainer) -> list[str]:
    """The texts of all tags, first of the file, then of its streams; some containers have only one of the two."""
    tags = [container.metadata, *(stream.metadata for stream in container.streams)]
    return [value for group in tags for value in group.values()]
