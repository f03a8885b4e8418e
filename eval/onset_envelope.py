"""The two curves onset detection reads: log-spectral flux by frame and the rise of energy by millisecond."""

import numpy as np
from numpy.typing import NDArray

HOP_S = 0.008
WINDOW_S = 0.032
LAG_FRAMES = 3
"""A rise is measured against the frame 24 ms earlier, which the 32-ms windows hardly share."""
NUM_BANDS = 36
MIN_HZ = 80.0
MAX_HZ = 7600.0
FLOOR_QUANTILE = 0.25
FLOOR_FACTOR = 4.0
"""A band's floor is 6 dB above its lower quartile over time, above the fluctuation of steady noise."""
PEAK_FLOOR = 1e-4
"""No band's floor lies further than 40 dB below the loudest band and frame of the clip."""


def flux_envelope(samples: NDArray[np.float64], sample_rate: int) -> NDArray[np.float64]:
    """Mean over bands of the positive rise of ln(1 + power / floor) within 24 ms; frame k is centred at 8 k ms.

    The earlier frame is first widened by one band to each side (maximum), so that a partial drifting between bands is
    no rise. samples (n,), returns (frames,).
    """
    level = np.log1p(_floored_band_power(samples, sample_rate))
    padded = np.pad(level, ((0, 0), (1, 1)), mode="edge")
    widened = np.maximum(np.maximum(padded[:, :-2], padded[:, 1:-1]), padded[:, 2:])
    earlier = np.concatenate([np.repeat(widened[:1], LAG_FRAMES, axis=0), widened[:-LAG_FRAMES]])
    return np.maximum(level - earlier, 0.0).mean(axis=1)


def energy_rise(
    samples: NDArray[np.float64], sample_rate: int, start_s: float, stop_s: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Times (s) at 1-ms steps in [start_s, stop_s] and sqrt(P+) ln((P+ + floor) / (P- + floor)) there.

    P+ and P- are the mean powers of the next 8 ms and of the last 16 ms of the first difference, which weighs the
    attack above a low hum. The root makes the beginning of the sound win over the first stir of a quiet passage; the
    floor, 40 dB below the loudest P+, keeps digital silence from making every sample a rise.
    """
    step, ahead, behind = round(0.001 * sample_rate), round(0.008 * sample_rate), round(0.016 * sample_rate)
    power = np.diff(samples, prepend=samples[:1]) ** 2
    total = np.concatenate([[0.0], np.cumsum(power)])
    first, last = max(round(start_s * sample_rate), 0), min(round(stop_s * sample_rate), len(samples) - 1)
    centres = np.arange(first, last + 1, step)
    later = (total[np.minimum(centres + ahead, len(samples))] - total[centres]) / ahead
    earlier = (total[centres] - total[np.maximum(centres - behind, 0)]) / behind
    floor = 1e-4 * float(later.max()) + 1e-30
    return centres / sample_rate, np.log((later + floor) / (earlier + floor)) * np.sqrt(later)


def _floored_band_power(samples: NDArray[np.float64], sample_rate: int) -> NDArray[np.float64]:
    """Band powers divided by the floor of their band, (frames, bands)."""
    window = 2 * round(WINDOW_S * sample_rate / 2)
    centres = np.round(np.arange(0.0, len(samples), HOP_S * sample_rate)).astype(int)
    # At the ends the nearest whole window stands in: padding would make an edge, and an edge sounds like an onset.
    starts = np.clip(centres - window // 2, 0, len(samples) - window)
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[starts]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) ** 2
    bands = power @ _bands(sample_rate, window).T
    floor = FLOOR_FACTOR * np.quantile(bands, FLOOR_QUANTILE, axis=0) + PEAK_FLOOR * bands.max()
    return bands / floor


def _bands(sample_rate: int, window: int) -> NDArray[np.float64]:
    """Triangular mel-spaced band weights (bands, bins), each summing to 1 so that bands are mean powers."""
    top = 2595.0 * np.log10(1.0 + min(MAX_HZ, 0.48 * sample_rate) / 700.0)
    low = 2595.0 * np.log10(1.0 + MIN_HZ / 700.0)
    edges = 700.0 * (10.0 ** (np.linspace(low, top, NUM_BANDS + 2) / 2595.0) - 1.0)
    # A band is never narrower than two bins, or the low ones would hold none.
    width = np.maximum(edges[2:] - edges[1:-1], 2.0 * sample_rate / window)
    offset = np.abs(np.fft.rfftfreq(window, 1.0 / sample_rate)[None, :] - edges[1:-1, None])
    weights = np.clip(1.0 - offset / width[:, None], 0.0, None)
    return weights / weights.sum(axis=1, keepdims=True)
