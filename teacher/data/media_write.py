"""Writing sound and video: always to a temporary file that is renamed when complete."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.stream import VideoStream

from teacher.data.media_open import MediaError, check_wave, open_media, origin_s, video_stream
from teacher.data.media_read import TIME_TOLERANCE_S, decode_video, frame_duration_s

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
SOUND_SUFFIXES = {".wav": "WAV", ".flac": "FLAC"}
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv")
H264 = {"preset": "veryfast", "crf": "20", "threads": "1", "x264-params": "mbtree=0"}
"""One thread and no macroblock tree: with small pictures x264's tree reads stale memory, and files differ by run."""
CLOCK = 90_000
"""Ticks a second for re-encoded pictures; a multiple of the usual rates."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed over it at the end, removed if the block fails or is interrupted."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except av.error.FFmpegError as error:
        raise MediaError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_audio(path: Path, wave: np.ndarray, sample_rate: int, comment: str | None = None) -> None:
    """Write a mono 16-bit .wav or .flac. A wave with |peak| > 1 is scaled down as a whole, never clipped.

    `comment` goes into the file's tags: COMMENT in FLAC, ICMT in WAV.
    """
    path = Path(path)
    if path.suffix.lower() not in SOUND_SUFFIXES:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(SOUND_SUFFIXES)}")
    wave = check_wave(wave, sample_rate)
    kind = SOUND_SUFFIXES[path.suffix.lower()]
    with (
        replacing(path) as temporary,
        soundfile.SoundFile(temporary, "w", sample_rate, channels=1, subtype="PCM_16", format=kind) as file,
    ):
        if comment is not None:
            file.comment = comment
        file.write(wave)


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
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    with replacing(path) as temporary, av.open(str(temporary), mode="w") as output:
        _comment(output, comment)
        rate = Fraction(fps).limit_denominator(1001)
        video = _add_h264(output, frames.shape[2], frames.shape[1], rate, 1 / rate)
        audio, wave = _add_aac(output, wave, sample_rate)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, 1 / rate
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        _encode_aac(output, audio, wave)


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

    Without a window the video packets are copied bit by bit; with one (or when the container cannot hold the codec) the
    frames of [start_s, start_s + duration_s) are encoded anew with their own time stamps. `comment` goes into the
    metadata of the container. Raises MediaError.
    """
    video_path, out_path = Path(video_path), Path(out_path)
    _check_video_suffix(out_path)
    wave = check_wave(wave, sample_rate)
    if start_s < 0 or (duration_s is not None and not duration_s > 0):
        raise ValueError(f"start_s must be at least 0 and duration_s positive, got {start_s} and {duration_s}")
    with (
        replacing(out_path) as temporary,
        av.open(str(temporary), mode="w") as output,
        open_media(video_path) as source,
    ):
        _comment(output, comment)
        stream = video_stream(source)
        if stream is None:
            raise MediaError(f"{video_path}: has no picture to put the sound under")
        whole = start_s == 0 and duration_s is None
        if whole and stream.codec_context.name in output.supported_codecs:
            _copy_with_sound(source, stream, output, wave, sample_rate, video_path)
        else:
            _encode_with_sound(source, stream, output, wave, sample_rate, video_path, start_s, duration_s or math.inf)


def _copy_with_sound(
    source: av.container.InputContainer,
    stream: VideoStream,
    output: OutputContainer,
    wave: np.ndarray,
    sample_rate: int,
    path: Path,
) -> None:
    copy = output.add_stream_from_template(stream)
    audio, wave = _add_aac(output, wave, sample_rate)
    assert stream.time_base is not None
    shift = round(origin_s(source) / stream.time_base)
    end_s = 0.0
    for packet in source.demux(stream):
        if packet.dts is None:
            continue
        packet.dts -= shift
        if packet.pts is not None:
            packet.pts -= shift
            end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * stream.time_base))
        packet.stream = copy
        output.mux(packet)
    if end_s <= 0:
        raise MediaError(f"{path}: holds no video packets; the file is damaged or cut off")
    _encode_aac(output, audio, _fit(wave, audio, end_s))


def _encode_with_sound(
    source: av.container.InputContainer,
    stream: VideoStream,
    output: OutputContainer,
    wave: np.ndarray,
    sample_rate: int,
    path: Path,
    start_s: float,
    duration_s: float,
) -> None:
    video: VideoStream | None = None
    audio: AudioStream | None = None
    end_s = 0.0
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
            video = _add_h264(output, picture.shape[1], picture.shape[0], rate, Fraction(1, CLOCK))
            audio, wave = _add_aac(output, wave, sample_rate)
        new = av.VideoFrame.from_ndarray(picture, format="rgb24")
        new.pts, new.time_base = round(at_s * CLOCK), Fraction(1, CLOCK)
        end_s = min(at_s + frame_duration_s(frame, stream), duration_s)
        output.mux(video.encode(new))
    if video is None or audio is None:
        raise MediaError(f"{path}: has no video after {start_s:g} s")
    output.mux(video.encode(None))
    _encode_aac(output, audio, _fit(wave, audio, end_s))


def _comment(output: OutputContainer, comment: str | None) -> None:
    """Must come before the first packet, with which the header is written."""
    if comment is not None:
        output.metadata["comment"] = comment


def _add_h264(output: OutputContainer, width: int, height: int, rate: Fraction, time_base: Fraction) -> VideoStream:
    stream = output.add_stream("libx264", rate=rate, options=H264)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.codec_context.time_base = time_base
    return stream


def _add_aac(output: OutputContainer, wave: np.ndarray, sample_rate: int) -> tuple[AudioStream, np.ndarray]:
    """A mono AAC stream and the wave at its rate: the next higher one that AAC knows, or 48 kHz."""
    rate = sample_rate if sample_rate in AAC_RATES else next((r for r in AAC_RATES if r >= sample_rate), 48_000)
    if rate != sample_rate:
        wave = soxr.resample(wave, sample_rate, rate)
    stream = output.add_stream("aac", rate=rate, layout="mono")
    stream.bit_rate = min(128_000, 5 * rate)
    return stream, wave


def _encode_aac(output: OutputContainer, stream: AudioStream, wave: np.ndarray) -> None:
    size = stream.codec_context.frame_size or 1024
    for start in range(0, len(wave), size):
        frame = av.AudioFrame.from_ndarray(wave[None, start : start + size], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = stream.rate, start, Fraction(1, stream.rate)
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def _fit(wave: np.ndarray, stream: AudioStream, duration_s: float) -> np.ndarray:
    """Cut or fill with silence to `duration_s`."""
    size = round(duration_s * stream.rate)
    return np.pad(wave[:size], (0, max(0, size - len(wave))))


def _check_video_suffix(path: Path) -> None:
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(VIDEO_SUFFIXES)}")
