"""Writing sound, and what sound and video share: always to a temporary file that is renamed when complete."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr
from av.audio.stream import AudioStream
from av.container import OutputContainer

from teacher.data.media_open import MediaError, check_wave, raised_by_library
from teacher.files import replacing

MP3_ENCODER = "libmp3lame"
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
SOUND_FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
"""Container and coding by libsndfile."""
SOUND_SUFFIXES = (*SOUND_FORMATS, ".mp3")
BLOCK = 65_536
"""Samples written at once."""
MAX_COMMENT = 32_000
"""Longest comment in bytes; libsndfile leaves out one of 60,000 without a word."""


class CannotHoldError(MediaError):
    """The container or a coding does not take what it is given; there is room on the disk."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Failures of PyAV inside the block become an OSError that names `path` where the disk is the reason (full, read
    only, not there), else a CannotHoldError."""
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
    """A container for writing that takes the place of `path` once it is closed whole.

    The block writes inside `writing`, as what it reads may fail too. FFmpeg is given the name as that of a file: it
    would take what stands before a colon for a protocol.
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
    (192 kbit/s, lower where its rate allows no more) and at the next rate that MP3 knows; its header tells players how
    much padding to leave out at both ends, and those that ignore it play up to 0.1 s of silence around the sound.
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
    held = io.BytesIO()  # libsndfile says of a full disk no more than "System error", and of some not even that
    with soundfile.SoundFile(held, "w", sample_rate, channels=1, subtype=coding, format=container) as file:
        if comment is not None:
            file.comment = comment
        for start in range(0, len(wave), BLOCK):  # libvorbis puts a whole call on the stack
            file.write(wave[start : start + BLOCK])
    with replacing(path) as temporary:
        temporary.write_bytes(held.getbuffer())


def check_sound_format(path: Path) -> None:
    """ValueError where `write_audio` cannot write files of this suffix."""
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
    """Must come before the first packet, with which the header is written."""
    if comment is not None:
        output.metadata["comment"] = comment


def next_rate(sample_rate: int, rates: tuple[int, ...]) -> int:
    """The rate itself if a coding knows it, else the next higher one, else 48 kHz."""
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
