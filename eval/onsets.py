"""Onset detection, one-to-one matching and pooled precision, recall and F1.

Every event and every claim counts once. `eval.greatest_hits` has the published script's scores, which do not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from eval.onset_envelope import HOP_S, energy_rise, flux_envelope

MIN_GAP_S = 0.08
"""Two onsets closer than this are one."""
MEDIAN_SPAN_S = 0.4
"""Half width of the running median that the threshold follows."""
MIN_FLUX = 0.3
"""Threshold above the running median: mean rise per band, in ln(power). Hits at -22 dB above steady noise give 0.4 and
more, the noise itself up to 0.2."""
PEAK_SHARE = 0.15
"""Threshold above the running median as a share of the strongest peak of the clip."""
REFINE_S = 0.04
"""An onset is moved by at most this to the steepest rise of the waveform's energy."""
EDGE_S = 0.02
"""What lies closer to an end of the clip is left out: there the cut itself may sound like an onset."""
DEFAULT_TOLERANCE_S = 0.05


@dataclass(frozen=True, kw_only=True)
class OnsetCounts:
    """Outcome of a one-to-one matching; counts add up over clips before any ratio is taken (micro average)."""

    hits: int
    misses: int
    false_alarms: int

    def __post_init__(self) -> None:
        for name in ("hits", "misses", "false_alarms"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    def __add__(self, other: Self) -> Self:
        return type(self)(
            hits=self.hits + other.hits,
            misses=self.misses + other.misses,
            false_alarms=self.false_alarms + other.false_alarms,
        )

    @property
    def precision(self) -> float:
        """hits / (hits + false alarms); 1 when nothing was claimed and nothing was there, 0 when only claims fail."""
        return _ratio(self.hits, self.hits + self.false_alarms, empty=self.misses == 0)

    @property
    def recall(self) -> float:
        """hits / (hits + misses); 1 when nothing was there and nothing was claimed."""
        return _ratio(self.hits, self.hits + self.misses, empty=self.false_alarms == 0)

    @property
    def f1(self) -> float:
        """2 hits / (2 hits + misses + false alarms); 1 when both sets are empty."""
        return _ratio(2 * self.hits, 2 * self.hits + self.misses + self.false_alarms, empty=True)


def match_onsets(
    reference: Sequence[float] | NDArray[np.float64],
    estimate: Sequence[float] | NDArray[np.float64],
    tolerance_s: float = DEFAULT_TOLERANCE_S,
) -> OnsetCounts:
    """Largest one-to-one matching of times (s) at most `tolerance_s` apart.

    Both lists are walked in order and the earliest admissible pair is taken, which is a maximum matching when every
    reference has a window of the same width. What is left over counts as a miss or a false alarm.
    """
    if not tolerance_s > 0.0:
        raise ValueError(f"tolerance_s must be positive, got {tolerance_s}")
    wanted, found = _sorted_times(reference, "reference"), _sorted_times(estimate, "estimate")
    hits = i = j = 0
    while i < len(wanted) and j < len(found):
        difference = found[j] - wanted[i]
        if abs(difference) <= tolerance_s + 1e-9:
            hits, i, j = hits + 1, i + 1, j + 1
        elif difference > 0:
            i += 1
        else:
            j += 1
    return OnsetCounts(hits=hits, misses=len(wanted) - hits, false_alarms=len(found) - hits)


def detect_onsets(wave: NDArray[np.float32], sample_rate: int) -> NDArray[np.float64]:
    """Times (s) at which a sound begins in a mono wave (samples,), ascending.

    Log-spectral flux over mel-like bands, floored at the steady level of each band, so steady noise and silence give
    nothing; peaks above a running median; at least 80 ms apart, the stronger one staying; each moved to the steepest
    rise of energy nearby. A click at t is found within 10 ms; the first and last 20 ms of a clip are left out.

    Raises:
        ValueError: not one-dimensional, not finite, or a sample rate below 8 kHz.
    """
    samples = np.asarray(wave, dtype=np.float64)
    if samples.ndim != 1:
        raise ValueError(f"wave must have shape (samples,), got {samples.shape}")
    if not np.isfinite(samples).all():
        raise ValueError("wave must be finite, got NaN or infinite samples")
    if sample_rate < 8000:
        raise ValueError(f"sample_rate must be at least 8000 Hz, got {sample_rate}")
    if len(samples) < sample_rate // 10 or np.abs(samples).max() < 1e-5:
        return np.zeros(0)
    flux = flux_envelope(samples, sample_rate)
    strengths = {frame: flux[frame] for frame in _peaks(flux)}
    kept: list[int] = []
    for frame in sorted(strengths, key=lambda k: -strengths[k]):
        if all(abs(frame - other) * HOP_S >= MIN_GAP_S for other in kept):
            kept.append(frame)
    times = np.unique([_refine(samples, sample_rate, frame * HOP_S) for frame in kept])
    return times[(times >= EDGE_S) & (times <= len(samples) / sample_rate - EDGE_S)]


def _peaks(flux: NDArray[np.float64]) -> list[int]:
    """Frames that are local maxima and exceed the running median by both thresholds."""
    span = round(MEDIAN_SPAN_S / HOP_S)
    padded = np.pad(flux, span, mode="reflect" if len(flux) > span else "edge")
    median = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * span + 1), axis=1)
    excess = flux - median
    threshold = max(MIN_FLUX, PEAK_SHARE * float(excess.max()))
    left, right = np.r_[-np.inf, flux[:-1]], np.r_[flux[1:], -np.inf]
    return [int(k) for k in np.flatnonzero((excess > threshold) & (flux > left) & (flux >= right))]


def _refine(samples: NDArray[np.float64], sample_rate: int, time_s: float) -> float:
    """The time near `time_s` at which the energy rises most."""
    times, rise = energy_rise(samples, sample_rate, time_s - REFINE_S, time_s + REFINE_S)
    return float(times[int(rise.argmax())])


def _sorted_times(times: Sequence[float] | NDArray[np.float64], name: str) -> NDArray[np.float64]:
    array = np.sort(np.asarray(times, dtype=np.float64).reshape(-1))
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite times in seconds, got {array.tolist()}")
    return array


def _ratio(part: int, whole: int, *, empty: bool) -> float:
    if whole == 0:
        return 1.0 if empty else 0.0
    return part / whole
