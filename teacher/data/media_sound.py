"""Mono sound at any rate on the clock of the picture, decoding only what is asked for."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr
from av.container import InputContainer
from av.stream import Stream

from teacher.data.media_open import (
    MediaError,
    audio_stream,
    check_window,
    decode,
    open_media,
    origin_s,
    without_sound,
)

PREROLL_S = 0.5
"""Sound is decoded from this much earlier: overlapping transforms and bit reservoirs need what came before."""
LOOKAHEAD_S = 0.05
"""Sound is decoded to this much after the end, for the resampler's filter."""
MAX_GAP_S = 60.0
SOUND_FILES = ("wav", "flac", "ogg")
"""Formats read by libsndfile, which is exact to the sample; FFmpeg's time stamps of Vorbis are up to 3 ms late."""
BLOCK = 65_536
MAX_SOUND_S = 2 * 3600.0
"""Longest sound that is read whole: coded silence takes next to nothing on a disk."""


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
