"""Reading frames at exact presentation times (several sizes and rates in one decode), and mono sound at any rate.

Only the requested time is decoded; the times of the sound are those of the picture."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
import soundfile
import soxr
from av.container import InputContainer
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from teacher.media.open import (
    MediaError,
    audio_stream,
    check_picture,
    check_window,
    decode,
    open_media,
    origin_s,
    video_stream,
    without_picture,
    without_sound,
)

TIME_TOLERANCE_S = 1e-6
"""Slack when a time stamp is compared with k / fps; stamps are exact fractions, sums of floats are not."""
THREADED_PIXELS = 1280 * 720
"""Pictures of at least this size are decoded by several threads; for smaller ones, starting them costs more."""
MAX_FPS = 1000
"""Most frames per second, and most consecutive frames out of order; beyond, a file counts as damaged."""
PREROLL_S = 0.5
"""Windows that start earlier than this are reached by decoding from the start instead of seeking."""


@dataclass(frozen=True, kw_only=True)
class FrameRequest:
    """Frames wanted from one decode: rate (1/s), size in pixels and how the picture is made to fit.

    `stretch` resizes both edges (MMAudio's image encoder); `crop` resizes so that the target is covered and cuts the
    centre (its synchronisation encoder). Both are bicubic with the support widened when shrinking.
    """

    fps: float
    height: int
    width: int
    fit: Literal["stretch", "crop"] = "stretch"

    def __post_init__(self) -> None:
        if not self.fps > 0:
            raise ValueError(f"fps must be positive, got {self.fps}")
        if self.height < 1 or self.width < 1:
            raise ValueError(f"height and width must be at least 1, got {self.height}x{self.width}")
        if self.fit not in ("stretch", "crop"):
            raise ValueError(f"fit must be 'stretch' or 'crop', got {self.fit!r}")

    def num_frames(self, duration_s: float) -> int:
        """Frames of a window of D seconds: int(fps D), with 1e-9 against binary fractions."""
        return int(self.fps * duration_s + 1e-9)


class _Collector:
    """The frames of one request, filled in presentation order."""

    def __init__(self, request: FrameRequest, start_s: float, duration_s: float, path: Path) -> None:
        self.request = request
        self.start_s = start_s
        self.count = request.num_frames(duration_s)
        self.path = path
        self.frames: list[np.ndarray] = []
        self._reformatter = VideoReformatter()

    @property
    def next_due_s(self) -> float:
        return self.start_s + len(self.frames) / self.request.fps

    @property
    def full(self) -> bool:
        return len(self.frames) >= self.count

    def offer(self, frame: VideoFrame, time_s: float) -> None:
        """Take the frame for every sample that is due by its time."""
        picture: np.ndarray | None = None
        while not self.full and self.next_due_s <= time_s + TIME_TOLERANCE_S:
            if picture is None:
                picture = self._resize(frame)
            self.frames.append(picture)

    def finish(self, last: VideoFrame, last_s: float, shown_s: float) -> bool:
        """Repeat the last frame over a tail it covers, or of at most 2 / fps. False when the video is too short."""
        if self.full:
            return True
        last_due_s = self.start_s + (self.count - 1) / self.request.fps
        if last_due_s > last_s + max(shown_s, 2.0 / self.request.fps) + TIME_TOLERANCE_S:
            return False
        self.offer(last, math.inf)
        return True

    def _resize(self, frame: VideoFrame) -> np.ndarray:
        check_picture(self.path, frame.width, frame.height)
        turns = round(frame.rotation / 90) % 4
        height, width = self.request.height, self.request.width
        if turns % 2:
            height, width = width, height
        full_height, full_width = height, width
        if self.request.fit == "crop":
            if frame.width * height >= frame.height * width:
                full_width = max(width, height * frame.width // frame.height)
            else:
                full_height = max(height, width * frame.height // frame.width)
        small = self._reformatter.reformat(
            frame, width=full_width, height=full_height, format="rgb24", interpolation=Interpolation.BICUBIC
        )
        pixels = small.to_ndarray()
        top, left = round((full_height - height) / 2), round((full_width - width) / 2)
        pixels = np.rot90(pixels[top : top + height, left : left + width], turns)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def read_frames(
    path: Path, requests: Sequence[FrameRequest], *, start_s: float = 0.0, duration_s: float
) -> list[np.ndarray]:
    """Frames for every request from one decoding pass: uint8 arrays (int(fps D), 3, height, width), RGB.

    Sample k is the first decoded frame whose presentation time is at least start_s + k / fps, the rule of MMAudio's own
    reader; slow videos repeat frames. Where the video ends early, its last frame is repeated for as long as it is
    shown, or for at most 2 / fps. Rotation metadata is applied. Full-size frames are held one at a time.

    Raises MediaError when the file has no picture, is shorter than asked or cannot be decoded.
    """
    path = Path(path)
    if not requests:
        raise ValueError("requests must name at least one FrameRequest")
    check_window(start_s, duration_s)
    for request in requests:
        if request.num_frames(duration_s) < 1:
            raise ValueError(f"duration_s {duration_s} is too short for one frame at {request.fps} fps")
    collectors = [_Collector(request, start_s, duration_s, path) for request in requests]
    last: VideoFrame | None = None
    last_s = shown_s = 0.0
    with open_media(path) as container:
        stream = video_stream(container)
        if stream is None:
            raise without_picture(container, path)
        for frame, time_s in decode_video(container, stream, start_s, path):
            for collector in collectors:
                collector.offer(frame, time_s)
            last, last_s, shown_s = frame, time_s, frame_duration_s(frame, stream)
            if all(collector.full for collector in collectors):
                break
        if last is None or not all(collector.finish(last, last_s, shown_s) for collector in collectors):
            has_s = max(0.0, last_s + shown_s - start_s)
            after = f" after {start_s:g} s" if start_s else ""
            raise MediaError(f"{path}: has only {has_s:.2f} s of video{after}, {duration_s:g} s are needed")
    return [np.stack(collector.frames) for collector in collectors]


def decode_video(
    container: InputContainer, stream: VideoStream, start_s: float, path: Path
) -> Iterator[tuple[VideoFrame, float]]:
    """Frames with their presentation time in seconds, from the last one before `start_s` on, in rising order."""
    check_picture(path, stream.codec_context.width, stream.codec_context.height)
    large = stream.codec_context.width * stream.codec_context.height >= THREADED_PIXELS
    stream.thread_type = "AUTO" if large else "NONE"
    origin = origin_s(container)
    if start_s > PREROLL_S:
        container.seek(int((start_s + origin) * av.time_base), backward=True)
        frame = next(_frames(container, stream), None)
        # Some indexes land behind the target; then the file is read from its start.
        landed = frame is not None and frame.time is not None and frame.time - origin <= start_s + TIME_TOLERANCE_S
        container.seek(int((start_s + origin) * av.time_base) if landed else 0, backward=True)
    previous_s = first_s = -math.inf
    for count, frame in enumerate(_frames(container, stream)):
        if count > MAX_FPS * (1.0 + max(0.0, previous_s - first_s)):
            raise MediaError(f"{path}: has more than {MAX_FPS} frames a second; its time stamps are damaged")
        if frame.time is None or frame.is_corrupt:
            continue
        time_s = frame.time - origin
        if time_s > previous_s and time_s >= -TIME_TOLERANCE_S:
            first_s = time_s if first_s == -math.inf else first_s
            previous_s = time_s
            yield frame, time_s


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    return (frame for frame in decode(container, stream) if isinstance(frame, VideoFrame))


def frame_duration_s(frame: VideoFrame, stream: VideoStream) -> float:
    """How long a frame is shown: as the file states, else one period of the average rate."""
    if frame.duration and frame.time_base is not None:
        return float(frame.duration * frame.time_base)
    return float(1 / stream.average_rate) if stream.average_rate else 0.0


PREROLL_S = 0.5
"""Sound is decoded from this much earlier: overlapping transforms and bit reservoirs need what came before."""
LOOKAHEAD_S = 0.05
"""Sound is decoded to this much after the end, for the resampler's filter."""
MAX_GAP_S = 60.0
SOUND_FILES = ("wav", "flac", "ogg")
"""Formats that libsndfile reads, exact to the sample; FFmpeg's time stamps of Vorbis are up to 3 ms late."""
BLOCK = 65_536
MAX_SOUND_S = 2 * 3600.0
"""Longest sound that is read as a whole, because a small file can hold hours of encoded silence."""


def read_audio(path: Path, *, sample_rate: int, start_s: float = 0.0, duration_s: float | None = None) -> np.ndarray:
    """Sound as float32 (samples,): the mean of the channels, resampled, on the clock of the picture.

    Silence stands in where the sound starts late or has a gap, so sample n is at start_s + n / sample_rate. The end is
    cut to round(D sample_rate) samples but never padded; without a duration, up to one codec frame of the encoder's
    own padding may follow the sound. Raises MediaError without an audio stream, when nothing can be decoded, and
    without a duration for more than two hours.
    """
    path = Path(path)
    if sample_rate <= 0:
        raise ValueError(f"sample_rate must be positive, got {sample_rate}")
    check_window(start_s, duration_s)
    chunks: list[np.ndarray] = []
    read = 0
    with open_media(path) as container:
        stream = audio_stream(container)
        if stream is None:
            raise without_sound(container, path)
        resampler: soxr.ResampleStream | None = None
        if container.format.name in SOUND_FILES and not container.streams.video and _is_sound_file(path):
            pieces = _sound_file_chunks(path, start_s, duration_s)
        else:
            pieces = _mono_chunks(container, stream, start_s, duration_s, path)
        for mono, rate in pieces:
            if resampler is None:
                resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ")
            chunks.append(resampler.resample_chunk(mono))
            read += len(chunks[-1])
            if duration_s is None and read > MAX_SOUND_S * sample_rate:
                raise MediaError(f"{path}: holds more than {MAX_SOUND_S:g} s of sound; ask for a part of it")
        if resampler is not None:
            chunks.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    wave = np.concatenate(chunks) if chunks else np.zeros(0, np.float32)
    if wave.size == 0:
        after = f" after {start_s:g} s" if start_s else ""
        raise MediaError(f"{path}: no sound can be decoded{after}; the file is too short, damaged or cut off")
    return wave if duration_s is None else wave[: round(duration_s * sample_rate)]


def _is_sound_file(path: Path) -> bool:
    """Whether libsndfile knows the codec inside; the container formats above may hold others."""
    try:
        soundfile.info(os.fsencode(path))
    except soundfile.LibsndfileError:
        return False
    return True


def _sound_file_chunks(path: Path, start_s: float, duration_s: float | None) -> Iterator[tuple[np.ndarray, int]]:
    """Mono float32 chunks of a plain sound file with their rate."""
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:
            rate = file.samplerate
            begin = min(round(start_s * rate), file.frames)
            left = file.frames - begin if duration_s is None else round((duration_s + LOOKAHEAD_S) * rate)
            file.seek(begin)
            while left > 0:
                block = file.read(min(BLOCK, left), dtype="float32", always_2d=True)
                if len(block) == 0:
                    return
                yield block.mean(axis=1), rate
                left -= len(block)
    except soundfile.LibsndfileError as error:
        raise MediaError(f"{path}: cannot be decoded: {error.error_string}") from error


def _mono_chunks(
    container: InputContainer, stream: Stream, start_s: float, duration_s: float | None, path: Path
) -> Iterator[tuple[np.ndarray, int]]:
    """Mono float32 chunks with their rate; the first sample is at `start_s`, gaps are silence."""
    origin = origin_s(container)
    if start_s > 2 * PREROLL_S:
        container.seek(int((start_s - PREROLL_S + origin) * av.time_base), backward=True)
    rate = 0
    position = 0  # samples handed out since start_s
    for frame in decode(container, stream):
        assert isinstance(frame, av.AudioFrame)
        if rate == 0:
            rate = frame.sample_rate
            stop = math.inf if duration_s is None else round((duration_s + LOOKAHEAD_S) * rate)
        if frame.sample_rate != rate:
            raise MediaError(f"{path}: its sample rate changes from {rate} to {frame.sample_rate} Hz")
        mono = _mono(frame)
        begin = position if frame.time is None else round((frame.time - origin - start_s) * rate)
        if position == 0 and begin < 0:
            mono = mono[-begin:]
            begin = 0
        gap = begin - position
        if gap > MAX_GAP_S * rate and not (position == 0 and duration_s is not None):
            raise MediaError(f"{path}: its sound has a gap of {gap / rate:.0f} s")
        if gap > 0.02 * rate or (position == 0 and gap > 0):
            silence = int(min(gap, stop - position))
            yield np.zeros(silence, np.float32), rate
            position += silence
        if mono.size and position < stop:
            yield mono, rate
            position += mono.size
        if position >= stop:
            return


def _mono(frame: av.AudioFrame) -> np.ndarray:
    """Mean over channels as float32 in [-1, 1]."""
    samples: np.ndarray = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128.0) / 128.0
    elif np.issubdtype(samples.dtype, np.integer):
        samples = samples.astype(np.float32) / float(2 ** (8 * samples.itemsize - 1))
    return samples.astype(np.float32).mean(axis=0)
