"""Writing sound and video, always to a temporary file that is renamed when complete.

A video is written from frames, or again with new sound."""

import io
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.video.stream import VideoStream

from teacher.files import replacing
from teacher.media.open import (
    MAX_DURATION_S,
    MediaError,
    check_wave,
    demux,
    open_media,
    origin_s,
    raised_by_library,
    video_stream,
    without_picture,
)
from teacher.media.read import TIME_TOLERANCE_S, decode_video, frame_duration_s

MP3_ENCODER = "libmp3lame"
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
SOUND_FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
"""Container and encoding in libsndfile, by suffix."""
SOUND_SUFFIXES = (*SOUND_FORMATS, ".mp3")
BLOCK = 65_536
"""Samples written at once."""
MAX_COMMENT = 32_000
"""Longest comment in bytes; libsndfile drops one of 60,000 bytes silently."""


class CannotHoldError(MediaError):
    """The container or an encoding does not support the content; the disk is not the reason."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context in which failures of PyAV become an OSError that names `path` if the disk is the reason (full, read-only,
    missing), else a CannotHoldError."""
    try:
        yield
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise CannotHoldError(f"{path}: cannot be written: {error.strerror}") from error
    except Exception as error:
        if isinstance(error, MediaError) or not raised_by_library(error):
            raise
        raise CannotHoldError(f"{path}: cannot be written: {' '.join(str(error).split())}") from error


@contextmanager
def open_output(path: Path, options: dict[str, str] | None = None) -> Iterator[OutputContainer]:
    """A container for writing, which replaces `path` when it is closed without an error.

    Write inside `writing`, because reading inside the block may fail too. The name is passed to FFmpeg as that of a
    file, because it would take text before a colon for a protocol.
    """
    with replacing(path) as temporary:
        with writing(path):
            output = av.open(f"file:{temporary.absolute()}", mode="w", container_options=options or {})
        try:
            yield output
            with writing(path):
                output.close()
        except BaseException:
            with suppress(Exception):  # what is half written goes anyway
                output.close()
            raise


def write_audio(path: Path, wave: np.ndarray, sample_rate: int, comment: str | None = None) -> None:
    """Write a mono sound. A wave with |peak| > 1 is scaled down as a whole, never clipped.

    .wav and .flac hold exactly these samples in 16 bits; .ogg (Vorbis) exactly as many. .mp3 is of constant bit rate
    (192 kbit/s, lower where its rate allows no more) and at the next rate that MP3 knows; its header informs players
    how much padding to leave out at both ends, and those that ignore it play up to 0.1 s of silence around the sound.
    `comment` goes into the file's tags: ICMT in WAV, COMMENT in FLAC and Ogg, ID3v2 in MP3. Raises ValueError for
    other suffixes and for an MP3 where this build of PyAV has no encoder, OSError where the disk does not take it.
    """
    path = Path(path)
    check_sound_format(path)
    wave = check_wave(wave, sample_rate)
    check_comment(comment)
    suffix = path.suffix.lower()
    if suffix == ".mp3":
        _write_mp3(path, wave, sample_rate, comment)
        return
    container, coding = SOUND_FORMATS[suffix]
    held = io.BytesIO()  # libsndfile reports of a full disk no more than "System error", and of some not even that
    with soundfile.SoundFile(held, "w", sample_rate, channels=1, subtype=coding, format=container) as file:
        if comment is not None:
            file.comment = comment
        for start in range(0, len(wave), BLOCK):  # libvorbis puts a whole call on the stack
            file.write(wave[start : start + BLOCK])
    with replacing(path) as temporary:
        temporary.write_bytes(held.getbuffer())


def check_sound_format(path: Path) -> None:
    """Raise ValueError if `write_audio` cannot write files with this suffix."""
    suffix = path.suffix.lower()
    if suffix not in SOUND_SUFFIXES:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(SOUND_SUFFIXES)}")
    if suffix == ".mp3" and MP3_ENCODER not in av.codecs_available:
        raise ValueError(f"{path}: this build of PyAV cannot write MP3 (it has no {MP3_ENCODER}); use .flac or .wav")


def _write_mp3(path: Path, wave: np.ndarray, sample_rate: int, comment: str | None) -> None:
    rate = next_rate(sample_rate, MP3_RATES)
    if rate != sample_rate:
        wave = soxr.resample(wave, sample_rate, rate)
    with open_output(path) as output, writing(path):
        set_comment(output, comment)
        stream = output.add_stream(MP3_ENCODER, rate=rate, layout="mono", format="fltp")
        assert isinstance(stream, AudioStream)
        stream.bit_rate = 192_000 if rate >= 32_000 else 128_000 if rate >= 16_000 else 64_000
        encode_sound(output, stream, wave, len(wave))


def set_comment(output: OutputContainer, comment: str | None) -> None:
    """Put a comment into the tags of a container; call it before the first packet, which writes the header."""
    if comment is not None:
        output.metadata["comment"] = comment


def next_rate(sample_rate: int, rates: tuple[int, ...]) -> int:
    """The sample rate in Hz at which a coding holds a sound: its own, else the next higher one, else 48 kHz."""
    return next((r for r in rates if r >= sample_rate), 48_000)


def encode_sound(output: OutputContainer, stream: AudioStream, wave: np.ndarray, size: int) -> None:
    """The first `size` samples of the wave, with silence after its end, a frame of the coding at a time."""
    step = stream.codec_context.frame_size or 1024
    for start in range(0, size, step):
        piece = wave[start : min(start + step, size)]
        piece = np.pad(piece, (0, min(step, size - start) - len(piece)))
        frame = av.AudioFrame.from_ndarray(piece[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = stream.rate, start, Fraction(1, stream.rate)
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def check_comment(comment: str | None) -> None:
    """Raises ValueError for a comment longer than MAX_COMMENT bytes."""
    if comment is not None and len(comment.encode()) > MAX_COMMENT:
        raise ValueError(f"comment must have at most {MAX_COMMENT} bytes, got {len(comment.encode())}")


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
    """Write a video again with new sound, which is cut, or padded with silence, to the length of the picture.

    Without a window the video packets are copied bit by bit; with one (or if the container does not support them) the
    frames of [start_s, start_s + duration_s) are encoded again with their own time stamps. `comment` goes into the
    metadata of the container. Raises MediaError for a video that cannot be used, OSError if it cannot be written.
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
    """The new sound of a video."""

    wave: np.ndarray
    sample_rate: int
    comment: str | None


def _picture(source: InputContainer, path: Path) -> VideoStream:
    stream = video_stream(source)
    if stream is None:
        raise without_picture(source, path)
    return stream


def _copy_with_sound(path: Path, sound: _Sound, out_path: Path) -> None:
    """Copy the packets; raises CannotHoldError if this container does not support them."""
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
    """Give each packet the duration noted under its time; encoders forget it, and the last one would be a guess."""
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
