"""Onset precision, recall and F1: whether sounds begin when something happens in the picture.

Onsets are detected in the wave, matched one to one with the known events of the clip, and counted; the counts are
summed over clips before a ratio is taken. Detection reads two curves, the log-spectral flux by frame and the rise of
energy by millisecond. Every event and every detected onset counts once; `eval.metrics.greatest_hits` has the published
script's scores, where they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from eval.metrics.base import EVENTS, ClipMetric, Metric, PaperColumn, Scores, Task

if TYPE_CHECKING:
    from torch import Tensor

    from teacher.features.store import Record

HOP_S = 0.008
WINDOW_S = 0.032
LAG_FRAMES = 3
"""A rise is measured against the frame 24 ms earlier, with which the 32-ms windows overlap little."""
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


MIN_GAP_S = 0.08
"""Two onsets closer than this are one."""
MEDIAN_SPAN_S = 0.4
"""Half width of the running median that the threshold follows."""
MIN_FLUX = 0.3
"""Threshold above the running median: mean rise per band, in ln(power). Hits at -22 dB above steady noise give 0.4 and
more, the noise itself up to 0.2."""
PEAK_FRACTION = 0.15
"""Threshold above the running median as a fraction of the strongest peak of the clip."""
REFINE_S = 0.04
"""An onset is moved by at most this to the steepest rise of the waveform's energy."""
EDGE_S = 0.02
"""Onsets closer than this to an end of the clip are left out: there the cut itself may be detected as one."""
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
        return float(precision_of(self._row)[0])

    @property
    def recall(self) -> float:
        """hits / (hits + misses); 1 when nothing was there and nothing was claimed."""
        return float(recall_of(self._row)[0])

    @property
    def f1(self) -> float:
        """2 hits / (2 hits + misses + false alarms); 1 when both sets are empty."""
        return float(f1_of(self._row)[0])

    @property
    def _row(self) -> NDArray[np.float64]:
        return np.array([[self.hits, self.misses, self.false_alarms]], dtype=np.float64)


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
    chosen: list[int] = []
    for frame in sorted(strengths, key=lambda k: -strengths[k]):
        if all(abs(frame - other) * HOP_S >= MIN_GAP_S for other in chosen):
            chosen.append(frame)
    times = np.unique([_refine(samples, sample_rate, frame * HOP_S) for frame in chosen])
    return times[(times >= EDGE_S) & (times <= len(samples) / sample_rate - EDGE_S)]


def _peaks(flux: NDArray[np.float64]) -> list[int]:
    """Frames that are local maxima and exceed the running median by both thresholds."""
    span = round(MEDIAN_SPAN_S / HOP_S)
    padded = np.pad(flux, span, mode="reflect" if len(flux) > span else "edge")
    median = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * span + 1), axis=1)
    excess = flux - median
    threshold = max(MIN_FLUX, PEAK_FRACTION * float(excess.max()))
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


COUNTS = ("hits", "misses", "false_alarms")
"""Counts of a clip, which are summed over clips before any ratio is taken."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OnsetScorer:
    """Counts hits, misses and false_alarms of clips with known events; detected onsets are matched one to one."""

    tolerance_s: float = DEFAULT_TOLERANCE_S

    @property
    def name(self) -> str:
        return f"onsets within {self.tolerance_s:g} s"

    @property
    def tasks(self) -> tuple[Task, ...]:
        return ("vta",)

    def scores(self, records: Sequence[Record], waves: Tensor, sample_rate: int) -> list[Scores]:
        found: list[Scores] = []
        for record, wave in zip(records, waves.float(), strict=True):
            if record.events_s is None:
                found.append({})
                continue
            counts = match_onsets(record.events_s, detect_onsets(wave.numpy(), sample_rate), self.tolerance_s)
            found.append(dict(zip(COUNTS, map(float, (counts.hits, counts.misses, counts.false_alarms)), strict=True)))
        return found


def _ratio_of(hits: NDArray[np.float64], wrong: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """hits / (hits + wrong) of rows of counts; where nothing counts, 1 unless there are errors of the `other` kind."""
    whole = hits + wrong
    return np.where(whole > 0, hits / np.where(whole > 0, whole, 1.0), np.where(other > 0, 0.0, 1.0))


def precision_of(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """`OnsetCounts.precision` of rows (rows, 3) of hits, misses and false alarms."""
    hits, misses, false_alarms = counts.T
    return _ratio_of(hits, false_alarms, misses)


def recall_of(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """`OnsetCounts.recall` of rows (rows, 3) of hits, misses and false alarms."""
    hits, misses, false_alarms = counts.T
    return _ratio_of(hits, misses, false_alarms)


def f1_of(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """`OnsetCounts.f1` of rows (rows, 3) of hits, misses and false alarms."""
    hits, misses, false_alarms = counts.T
    return _ratio_of(hits, (misses + false_alarms) / 2.0, np.zeros_like(hits))


def onset_metric(
    key: str,
    label: str,
    explanation: str,
    *,
    ratio: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    main: bool = False,
    paper: PaperColumn | None = None,
) -> ClipMetric:
    """The declaration of one ratio of the counts."""
    return ClipMetric(
        key=key,
        label=label,
        better="higher",
        digits=3,
        explanation=explanation,
        source=EVENTS,
        main=main,
        aspect="events" if main else None,
        paper=paper,
        tasks=("vta",),
        scorer=OnsetScorer,
        columns=COUNTS,
        ratio=ratio,
        count_key="onset_clips",
        tolerance=(0.0, 0.0),
    )


ONSET_F1 = onset_metric(
    "onset_f1",
    "Onset F1",
    "Whether sounds begin when something happens in the picture: detected onsets matched one to one with the known "
    "events within 50 ms, counts pooled over clips. The row of real sound is what the detector reaches on the truth. "
    "Video-to-audio only.",
    ratio=f1_of,
    main=True,
    paper=PaperColumn(name="Onset-F1", digits=3),
)
ONSET_PRECISION = onset_metric(
    "onset_precision",
    "Onset precision",
    "Fraction of the detected onsets that belong to a known event.",
    ratio=precision_of,
)
ONSET_RECALL = onset_metric(
    "onset_recall", "Onset recall", "Fraction of the known events with a detected onset.", ratio=recall_of
)
ONSET_CLIPS = Metric(
    key="onset_clips",
    label="Onset clips",
    better=None,
    digits=0,
    explanation="Clips whose events are known, which the onset scores are of.",
    source=EVENTS,
)
