"""Writing video, with its own or with new sound."""

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soxr
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.video.stream import VideoStream

from teacher.data.media_open import (
    MAX_DURATION_S,
    MediaError,
    check_wave,
    demux,
    open_media,
    origin_s,
    video_stream,
    without_picture,
)
from teacher.data.media_read import TIME_TOLERANCE_S, decode_video, frame_duration_s
from teacher.data.media_write_sound import (
    CannotHoldError,
    check_comment,
    encode_sound,
    next_rate,
    open_output,
    set_comment,
    writing,
)

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
MAX_WAITING = 64
"""Packets without a decoding time that are held back for the first that has one."""
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv")
H264 = {"preset": "veryfast", "crf": "20", "threads": "1", "x264-params": "mbtree=0"}
"""One thread and no macroblock tree: with small pictures x264's tree reads stale memory, and files differ by run."""
IN_ORDER = {"bf": "0"}
"""For frames of unequal length: where they are reordered, MP4 states the sum of decoding times as their duration."""
CLOCK = 90_000
"""Ticks a second for re-encoded pictures; a multiple of the usual rates."""


def write_video(
    path: Path, frames: np.ndarray, fps: float, wave: np.ndarray, sample_rate: int, comment: str | None = None
) -> None:
    """Write H.264 (yuv420p) and AAC. `frames` uint8 (T, H, W, 3) RGB; an odd edge is repeated once to make it even.

    `comment` goes into the metadata of the container.
    """
    path = Path(path)
    _check_video_suffix(path)
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.shape[0] == 0 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 of shape (T, H, W, 3), got {frames.dtype} {frames.shape}")
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    wave = check_wave(wave, sample_rate)
    check_comment(comment)
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    with _open_film(path, sample_rate) as output, writing(path):
        set_comment(output, comment)
        rate = Fraction(fps).limit_denominator(1001)
        video = _add_h264(output, frames.shape[2], frames.shape[1], rate, 1 / rate)
        audio, wave = _add_aac(output, _Sound(wave=wave, sample_rate=sample_rate, comment=comment))
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, 1 / rate
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        encode_sound(output, audio, wave, len(wave))


def remux(
    video_path: Path,
    wave: np.ndarray,
    sample_rate: int,
    out_path: Path,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    comment: str | None = None,
) -> None:
    """Put new sound under a video. The sound is cut, or filled with silence, to the length of the picture.

    Without a window the video packets are copied bit by bit; with one (or when the container does not take them) the
    frames of [start_s, start_s + duration_s) are encoded anew with their own time stamps. `comment` goes into the
    metadata of the container. Raises MediaError for a film that cannot be used, OSError where the disk does not take
    the new one.
    """
    video_path, out_path = Path(video_path), Path(out_path)
    _check_video_suffix(out_path)
    check_comment(comment)
    wave = check_wave(wave, sample_rate)
    if start_s < 0 or (duration_s is not None and not duration_s > 0):
        raise ValueError(f"start_s must be at least 0 and duration_s positive, got {start_s} and {duration_s}")
    sound = _Sound(wave=wave, sample_rate=sample_rate, comment=comment)
    if start_s == 0 and duration_s is None:
        try:
            _copy_with_sound(video_path, sound, out_path)
        except CannotHoldError:  # a codec the container has no place for, or packets it refuses
            pass
        else:
            return
    _encode_with_sound(video_path, sound, out_path, start_s, duration_s or math.inf)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sound:
    """What goes under a film."""

    wave: np.ndarray
    sample_rate: int
    comment: str | None


def _picture(source: InputContainer, path: Path) -> VideoStream:
    stream = video_stream(source)
    if stream is None:
        raise without_picture(source, path)
    return stream


def _copy_with_sound(path: Path, sound: _Sound, out_path: Path) -> None:
    """Raises CannotHoldError where the packets cannot be copied into this container."""
    with _open_film(out_path, sound.sample_rate) as output, open_media(path) as source:
        stream = _picture(source, path)
        assert stream.time_base is not None
        with writing(out_path):
            set_comment(output, sound.comment)
            if stream.codec_context.name not in output.supported_codecs:
                raise CannotHoldError(f"{out_path}: this container does not hold {stream.codec_context.name}")
            # Opaque: the codec is known by its decoder, of which there may be no encoder of the same name (AV1).
            copy = output.add_stream_from_template(stream, opaque=True)
            audio, wave = _add_aac(output, sound)
        shift = round(origin_s(source) / stream.time_base)
        end_s = 0.0
        for packet in _in_decoding_order(demux(source, stream)):
            assert packet.dts is not None
            packet.dts -= shift
            if packet.pts is not None:
                packet.pts -= shift
                end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * stream.time_base))
                _check_end(path, end_s)
            packet.stream = copy
            with writing(out_path):
                output.mux(packet)
        if end_s <= 0:
            raise MediaError(f"{path}: holds no video packets; the file is damaged or cut off")
        with writing(out_path):
            encode_sound(output, audio, wave, round(end_s * audio.rate))


def _in_decoding_order(packets: Iterable[av.Packet]) -> Iterator[av.Packet]:
    """The packets that hold something, each with a decoding time.

    Matroska states none, and FFmpeg knows them only from the second or third frame on; the first (a key frame, without
    which nothing can be decoded) get times one frame apart before that.
    """
    waiting: list[av.Packet] = []
    last: int | None = None
    for packet in packets:
        if packet.size == 0:
            continue
        if packet.dts is None and last is None and len(waiting) < MAX_WAITING:
            waiting.append(packet)
            continue
        if packet.dts is None:
            packet.dts = (0 if packet.pts is None else packet.pts) if last is None else last + 1
        for back, early in enumerate(reversed(waiting), start=1):
            early.dts = packet.dts - back * (packet.duration or 1)
        yield from (*waiting, packet)
        waiting, last = [], packet.dts
    for early in waiting:  # none knew its time
        early.dts = last = (0 if early.pts is None else early.pts) if last is None else max(last + 1, early.pts or 0)
        yield early


def _encode_with_sound(path: Path, sound: _Sound, out_path: Path, start_s: float, duration_s: float) -> None:
    video: VideoStream | None = None
    audio: AudioStream | None = None
    shown: dict[int, int] = {}
    end_s = 0.0
    with _open_film(out_path, sound.sample_rate) as output, open_media(path) as source:
        set_comment(output, sound.comment)
        stream = _picture(source, path)
        for frame, time_s in decode_video(source, stream, start_s, path):
            at_s = time_s - start_s
            if at_s < -TIME_TOLERANCE_S:
                continue
            if at_s >= duration_s - TIME_TOLERANCE_S:
                break
            picture: np.ndarray = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
            picture = np.ascontiguousarray(picture[: len(picture) // 2 * 2, : picture.shape[1] // 2 * 2])
            if video is None:
                rate = Fraction(stream.average_rate or 25)
                with writing(out_path):
                    video = _add_h264(output, picture.shape[1], picture.shape[0], rate, Fraction(1, CLOCK), IN_ORDER)
                    audio, wave = _add_aac(output, sound)
            new = av.VideoFrame.from_ndarray(picture, format="rgb24")
            new.pts, new.time_base = round(at_s * CLOCK), Fraction(1, CLOCK)
            end_s = min(at_s + frame_duration_s(frame, stream), duration_s)
            _check_end(path, end_s)
            shown[new.pts] = round(end_s * CLOCK) - new.pts
            with writing(out_path):
                _mux_shown(output, video.encode(new), shown)
        if video is None or audio is None:
            raise MediaError(f"{path}: has no video after {start_s:g} s")
        with writing(out_path):
            _mux_shown(output, video.encode(None), shown)
            encode_sound(output, audio, wave, round(end_s * audio.rate))


def _mux_shown(output: OutputContainer, packets: Iterable[av.Packet], shown: dict[int, int]) -> None:
    """Give each packet the duration kept under its time; encoders forget it, and the last one would be a guess."""
    for packet in packets:
        if packet.pts is not None:
            packet.duration = shown.pop(packet.pts, packet.duration or 0)
        output.mux(packet)


def _open_film(path: Path, sample_rate: int) -> AbstractContextManager[OutputContainer]:
    """An output whose edit lists count in samples: in the milliseconds of FFmpeg's default, sound and picture would end
    up to 1 ms beside each other."""
    rate = next_rate(sample_rate, AAC_RATES)
    return open_output(path, {} if path.suffix.lower() == ".mkv" else {"movie_timescale": str(rate)})


def _add_h264(
    output: OutputContainer,
    width: int,
    height: int,
    rate: Fraction,
    time_base: Fraction,
    options: dict[str, str] | None = None,
) -> VideoStream:
    stream = output.add_stream("libx264", rate=rate, options=H264 | (options or {}))
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.codec_context.time_base = time_base
    return stream


def _add_aac(output: OutputContainer, sound: _Sound) -> tuple[AudioStream, np.ndarray]:
    """A mono AAC stream and the wave at its rate: the next higher one that AAC knows, or 48 kHz."""
    rate, wave = next_rate(sound.sample_rate, AAC_RATES), sound.wave
    if rate != sound.sample_rate:
        wave = soxr.resample(wave, sound.sample_rate, rate)
    stream = output.add_stream("aac", rate=rate, layout="mono")
    stream.bit_rate = min(128_000, 5 * rate)
    return stream, wave


def _check_end(path: Path, end_s: float) -> None:
    if end_s > MAX_DURATION_S:
        raise MediaError(f"{path}: has a picture at {end_s:.4g} s; at most {MAX_DURATION_S:g} s can be used")


def _check_video_suffix(path: Path) -> None:
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(VIDEO_SUFFIXES)}")
