"""Pictures of sounds."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

PICTURE_WIDTH, PICTURE_HEIGHT = 480, 150
RANGE_DB = 75.0
"""Dynamic range shown, down from the loudest point of the clip."""
MIN_HZ = 60.0
EVENT_COLOUR = (120, 255, 190)


def spectrogram_png(
    wave: NDArray[np.float32], sample_rate: int, path: Path, events_s: Sequence[float] | None = None
) -> None:
    """Write the log-frequency spectrogram of a mono wave (samples,) as a PNG without axes; known events as ticks.

    Left to right the whole wave, bottom to top 60 Hz to half the sample rate, colour 75 dB down from the loudest point.
    """
    samples = np.asarray(wave, dtype=np.float64)
    if samples.ndim != 1 or len(samples) < 2 or not np.isfinite(samples).all():
        raise ValueError(f"wave must be a finite (samples,) array, got shape {samples.shape}")
    level = 10.0 * np.log10(_picture_power(samples, sample_rate) + 1e-12)
    shade = np.clip((level - level.max()) / RANGE_DB + 1.0, 0.0, 1.0)
    pixels = (matplotlib.colormaps["magma"](shade[::-1])[:, :, :3] * 255).astype(np.uint8)
    for time_s in () if events_s is None else events_s:
        column = int(time_s * sample_rate / len(samples) * PICTURE_WIDTH)
        if 0 <= column < PICTURE_WIDTH:
            pixels[:12, column : column + 2] = EVENT_COLOUR
            pixels[12::6, column] = EVENT_COLOUR
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _picture_power(samples: NDArray[np.float64], sample_rate: int) -> NDArray[np.float64]:
    """Power (PICTURE_HEIGHT, PICTURE_WIDTH), low frequencies first."""
    window = 2 * round(0.016 * sample_rate)
    padded = np.pad(samples, window // 2)
    starts = np.linspace(0, len(samples) - 1, PICTURE_WIDTH).astype(int)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[starts] * np.hanning(window)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    wanted = np.geomspace(MIN_HZ, sample_rate / 2, PICTURE_HEIGHT)
    bins = np.fft.rfftfreq(window, 1.0 / sample_rate)
    return np.stack([np.interp(wanted, bins, frame) for frame in power], axis=1)
