"""Onset accuracy, average precision and F1 as the Greatest-Hits script of MMAudio (arXiv 2412.15322) computes them.

Use them only for comparison with published numbers; `eval.metrics.onsets` has reliable scores. These properties of the
script decide its numbers and are reproduced, each with a test:

1. Matching ends with the last unmatched prediction: events after that are no misses. One event found of five gives
   average precision 1, and F1 1 if it is the first. Silence has average precision 1 as well: its list holds events
   alone, all at confidence 0, and where no row is a false alarm nothing lowers the precision.
2. The tolerance is 0.3 s, and the same number is the detector's threshold.
3. Among the predictions near an event not the nearest is taken but the one where the waveform is highest, and after
   the first match the heights looked up are those of other predictions, earlier in the list.
4. Confidence is the largest sample, not magnitude, within 50 ms of the waveform scaled to [0, 1]; digital zero has
   about 0.5, so nearly every prediction counts as claimed.
5. Thinning of predictions closer than 50 ms skips the neighbour of each one it removes, so some close ones stay.
6. Ratios are taken by file, then averaged; a file without events has accuracy 0.

Departs from it where it stops with an error or reads what is not there: a file with neither events nor predictions, or
without files at all, raises; a window that would begin before the file begins at 0. Equal values keep their order,
which the script leaves to its sorting routine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eval.metrics.base import EVENTS, ClipMetric, Scores, Task

if TYPE_CHECKING:
    from torch import Tensor

    from teacher.features.store import Record

SAMPLE_RATE = 22_050
"""Hz; what the script resamples to."""
DURATION_S = 8
"""Only the head of a clip is scored."""
DELTA = 0.3
"""Threshold of the detector (fraction of the strongest flux) and also tolerance of the matching (s)."""
NEAR_SAMPLES = int(0.05 * SAMPLE_RATE)
NEAR_THINNED = 0.05 * SAMPLE_RATE
N_FFT, HOP_LENGTH, NUM_MELS = 2048, 512, 128
"""librosa's defaults, over all frequencies from 0 Hz to half the sample rate."""
AVERAGED_BEFORE, AVERAGED_AFTER, WAIT_FRAMES = 4, 5, 1
"""librosa's peak picking at this rate: 100 ms on either side, and no second peak in the next frame."""


@dataclass(frozen=True, kw_only=True)
class ScriptScores:
    """Scores of one file."""

    accuracy: float
    average_precision: float
    f1: float

    def __post_init__(self) -> None:
        for name in ("accuracy", "average_precision", "f1"):
            if not 0.0 <= getattr(self, name) <= 1.0 + 1e-12:  # a sum of fractions may round up
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")


def script_scores(
    events_s: Sequence[float], wave: NDArray[np.floating], onsets: NDArray[np.int64] | None = None
) -> ScriptScores:
    """Scores of a generated mono wave (samples,) at 22 050 Hz against the annotated events (s).

    Events and samples from 8 s on are left out. `onsets` are sample positions and take the place of `script_onsets`.

    Raises:
        ValueError: a wave that is not mono, empty or not finite, events that are not finite or not in order, or
            neither events nor onsets.
    """
    head = _head(wave)
    times = np.asarray(events_s, dtype=np.float64).reshape(-1)
    if not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise ValueError(f"events_s must be finite times in ascending order, got {times.tolist()}")
    events = times[times < DURATION_S] * SAMPLE_RATE
    scaled = (head - head.min()) / (head.max() - head.min() + 1e-6)
    found = thin_out(script_onsets(head) if onsets is None else np.asarray(onsets), scaled)
    labels, confidences = _match(events, found, scaled)
    if not labels:
        raise ValueError("a file must have an event or an onset to be scored, got neither")
    hits = sum(label and confidence is not None for label, confidence in zip(labels, confidences, strict=True))
    values = np.array([0.0 if confidence is None else confidence for confidence in confidences])
    truth = np.array(labels)
    return ScriptScores(
        accuracy=hits / len(events) if len(events) else 0.0,
        average_precision=average_precision(truth, values),
        f1=_f1(truth, values > 0),
    )


def script_onsets(wave: NDArray[np.floating]) -> NDArray[np.int64]:
    """Onsets in samples at 22 050 Hz of a mono wave: what librosa's onset_detect finds with delta 0.3, no backtracking.

    Flux: mean over 128 Slaney mel bands of the rise of the level in dB (80 dB below the loudest at least) from one
    frame of 512 samples to the next, set three frames later and scaled to [0, 1]. A frame is an onset if it is not
    below the one before it and 0.3 above the mean from 4 frames earlier to 4 later, and the one before is none.
    """
    flux = _flux(_head(wave))
    flux = flux - flux.min()
    if not flux.any():
        return np.zeros(0, dtype=np.int64)
    flux = flux / (flux.max() + np.finfo(np.float32).tiny)
    frames: list[int] = []
    for n, value in enumerate(flux):
        if frames and n - frames[-1] <= WAIT_FRAMES:
            continue
        before = flux[n - 1] if n else value
        around = flux[max(0, n - AVERAGED_BEFORE) : n + AVERAGED_AFTER]
        if value >= before and value >= around.mean() + DELTA:
            frames.append(n)
    return np.array(frames, dtype=np.int64) * HOP_LENGTH


def thin_out(onsets: NDArray[np.int64], scaled: NDArray[np.float64]) -> NDArray[np.int64]:
    """Onsets in samples left after the script's thinning, ascending; the most confident ones go first.

    Of the others, in order, one closer than 50 ms goes and the one after it is skipped (point 5).
    """
    confidence = [_confidence(scaled, int(onset)) for onset in onsets]
    waiting, chosen = onsets.tolist(), []
    for index in np.argsort(confidence, kind="stable")[::-1]:
        current = int(onsets[index])
        if current not in waiting:
            continue
        chosen.append(current)
        waiting.remove(current)
        place = 0
        while place < len(waiting):
            if abs(waiting[place] - current) < NEAR_THINNED:
                del waiting[place]
            place += 1  # also after a removal, when the next one has moved into this place
    return np.array(sorted(chosen), dtype=np.int64)


def average_precision(labels: NDArray[np.int64], confidences: NDArray[np.float64]) -> float:
    """sum_k (R_k - R_(k-1)) P_k over the distinct confidences from the highest down; 0 without positives.

    Equal confidences enter together: a miss and a false alarm of confidence 0 are one step.
    """
    if not labels.any():
        return 0.0
    order = np.argsort(-confidences, kind="stable")
    true, claimed = np.cumsum(labels[order]), np.arange(1, len(labels) + 1)
    last_of_step = np.r_[np.diff(confidences[order]) != 0, True]
    true, claimed = true[last_of_step], claimed[last_of_step]
    return float((np.diff(true, prepend=0) / labels.sum() * true / claimed).sum())


def _match(
    events: NDArray[np.float64], onsets: NDArray[np.int64], scaled: NDArray[np.float64]
) -> tuple[list[int], list[float | None]]:
    """Labels (1 event, 0 false alarm) and confidences (None: missed) in the order in which the script lists them."""
    left = onsets.tolist()
    labels: list[int] = []
    confidences: list[float | None] = []
    for event in events:
        near = [k for k, onset in enumerate(left) if abs(onset - event) < DELTA * SAMPLE_RATE]
        labels.append(1)
        if not near:
            confidences.append(None)
            continue
        # Looked up in the whole list by places in the shortened one (point 3).
        chosen = near[int(np.argsort([scaled[onsets[k]] for k in near], kind="stable")[-1])]
        confidences.append(_confidence(scaled, left.pop(chosen)))
        if not left:
            break  # the remaining events are forgotten (point 1)
    labels.extend(0 for _ in left)
    confidences.extend(_confidence(scaled, onset) for onset in left)
    return labels, confidences


def _confidence(scaled: NDArray[np.float64], onset: int) -> float:
    """Largest value from 50 ms before the onset to 50 ms after."""
    return float(scaled[max(0, onset - NEAR_SAMPLES) : onset + NEAR_SAMPLES].max())


def _f1(labels: NDArray[np.int64], claimed: NDArray[np.bool_]) -> float:
    """2 hits / (labels + claims); 0 when both are none."""
    whole = int(labels.sum()) + int(claimed.sum())
    return 2 * int((labels * claimed).sum()) / whole if whole else 0.0


def _flux(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean rise in dB by frame, (frames,); frame k is centred at 512 k, zeros outside the wave."""
    import torch

    from teacher.audio.mel import MelConfig, hann_window, mel_filterbank

    mel = MelConfig(
        sample_rate=SAMPLE_RATE,
        n_fft=N_FFT,
        hop_length=HOP_LENGTH,
        num_mels=NUM_MELS,
        fmin=0.0,
        fmax=SAMPLE_RATE / 2,
        log="ln",
    )  # its logarithm is not used here
    wave = torch.from_numpy(samples).float()
    window = hann_window(N_FFT, like=wave)
    spectrum = torch.stft(wave, N_FFT, HOP_LENGTH, window=window, center=True, pad_mode="constant", return_complex=True)
    power = mel_filterbank(mel) @ spectrum.abs().square()
    level = 10.0 * power.clamp_min(1e-10).log10()
    level = level.clamp_min(float(level.max()) - 80.0)
    rise = level.diff(dim=1).clamp_min(0.0).mean(dim=0).numpy().astype(np.float64)
    # One frame for the difference and two for half a window, which librosa takes the flux to be early by.
    late = 1 + N_FFT // (2 * HOP_LENGTH)
    return np.r_[np.zeros(late), rise][: level.shape[1]]


def _head(wave: NDArray[np.floating]) -> NDArray[np.float64]:
    samples = np.asarray(wave, dtype=np.float64)
    if samples.ndim != 1 or len(samples) == 0:
        raise ValueError(f"wave must have shape (samples,) with at least one sample, got {samples.shape}")
    if not np.isfinite(samples).all():
        raise ValueError("wave must be finite, got NaN or infinite samples")
    return samples[: DURATION_S * SAMPLE_RATE]


@dataclass(frozen=True, kw_only=True, eq=False)
class ScriptScorer:
    """Computes gh_accuracy, gh_ap and gh_f1 of single clips, but not of clips without events, as the script cannot."""

    @property
    def name(self) -> str:
        return "greatest-hits-script-v1"

    @property
    def tasks(self) -> tuple[Task, ...]:
        return ("vta",)

    def scores(self, records: Sequence[Record], waves: Tensor, sample_rate: int) -> list[Scores]:
        import soxr

        found: list[Scores] = []
        for record, wave in zip(records, waves.double().numpy(), strict=True):
            events = sorted(event for event in record.events_s or () if event < DURATION_S)
            if not events:
                found.append({})
                continue
            if sample_rate != SAMPLE_RATE:
                wave = soxr.resample(wave, sample_rate, SAMPLE_RATE, quality="HQ")
            scores = script_scores(events, wave)
            values = scores.accuracy, scores.average_precision, scores.f1
            found.append({metric.key: value for metric, value in zip(GREATEST_HITS, values, strict=True)})
        return found


def script_metric(key: str, label: str, *, what: str) -> ClipMetric:
    """The declaration of one of the script's three scores, which a comparison computes on request."""
    return ClipMetric(
        key=key,
        label=label,
        better="higher",
        digits=3,
        explanation=f"As MMAudio's Greatest Hits script prints it, faults included: {what}",
        source=EVENTS,
        tasks=("vta",),
        scorer=ScriptScorer,
        compared=False,
    )


GREATEST_HITS = (
    script_metric("gh_accuracy", "GH accuracy", what="fraction of the known events it matches."),
    script_metric("gh_ap", "GH AP", what="silence scores 1. Read Onset F1 instead."),
    script_metric("gh_f1", "GH F1", what="events that were missed after the last detection are not counted."),
)
