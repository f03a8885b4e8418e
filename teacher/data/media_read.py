"""Frames at exact presentation times, for several sizes and rates in one decode of only what is asked for."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from teacher.data.media_open import (
    MediaError,
    check_picture,
    check_window,
    decode,
    open_media,
    origin_s,
    video_stream,
    without_picture,
)

TIME_TOLERANCE_S = 1e-6
"""Slack when a time stamp is compared with k / fps; stamps are exact fractions, sums of floats are not."""
THREADED_PIXELS = 1280 * 720
"""From this size on, decoding uses several threads; below, starting them costs more than it saves."""
MAX_FPS = 1000
"""Frames a second, and frames out of order in a row, beyond which a file is not believed."""
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
        """int(fps D); 1e-9 guards against binary fractions."""
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
    """How long a frame is shown: as the file says, else one period of the average rate."""
    if frame.duration and frame.time_base is not None:
        return float(frame.duration * frame.time_base)
    return float(1 / stream.average_rate) if stream.average_rate else 0.0
