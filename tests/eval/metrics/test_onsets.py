"""Matching of onsets in closed cases, and the detector on clicks, noise, silence and decaying hits."""

from functools import reduce
from operator import add

import numpy as np
import pytest

from eval.metrics.onsets import OnsetCounts, detect_onsets, match_onsets

RATE = 16_000


def noise(seed, seconds=2.0, level_db=-26.0, rate=RATE):
    return 10 ** (level_db / 20) * np.random.default_rng(seed).normal(size=round(seconds * rate))


def click_train(times, rate=RATE, seconds=2.0):
    wave = np.zeros(round(seconds * rate))
    for time_s in times:
        start = round(time_s * rate)
        length = min(round(0.02 * rate), len(wave) - start)
        wave[start : start + length] += np.exp(-np.arange(length) / (0.003 * rate)) * (-1.0) ** np.arange(length)
    return wave


def scene(seed, rate=RATE, seconds=2.0):
    """One to five hits, 0.15 s apart or more, on one body of 3 to 8 decaying modes, over coloured noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    events: list[float] = []
    while len(events) < seed % 5 + 1:
        candidate = rng.uniform(0.08, seconds - 0.15)
        if all(abs(candidate - other) >= 0.15 for other in events):
            events.append(candidate)
    modes = rng.integers(3, 9)
    frequencies = np.minimum(
        rng.uniform(150, 2000) * np.cumprod(np.r_[1, rng.uniform(1.1, 1.7, modes - 1)]), 0.45 * rate
    )
    decays = rng.uniform(0.02, 0.4) * (frequencies / frequencies[0]) ** -0.7
    weights, hiss = rng.uniform(0.2, 1, modes), rng.uniform(0, 1)
    wave = np.zeros(len(t))
    for event in events:
        after = t[t >= event] - event
        hit = sum(
            w * np.exp(-after / d) * np.sin(2 * np.pi * f * after + p)
            for w, d, f, p in zip(weights, decays, frequencies, rng.uniform(0, 6.28, modes), strict=True)
        )
        hit = hit + hiss * rng.normal(size=len(after)) * np.exp(-after / 0.015)
        wave[t >= event] += rng.uniform(0.4, 1.0) * hit * np.minimum(after / 0.002, 1.0)
    spectrum = np.fft.rfft(rng.normal(size=len(t))) * np.maximum(np.fft.rfftfreq(len(t), 1 / rate), 40) ** -rng.uniform(
        0, 1
    )
    ambience = np.fft.irfft(spectrum, len(t))
    ambience *= 10 ** (rng.uniform(-34, -22) / 20) / ambience.std()
    return wave / np.abs(wave).max() + ambience, np.sort(events)


@pytest.mark.parametrize(
    ("reference", "estimate", "hits", "misses", "false_alarms", "f1"),
    [
        ([0.2, 0.6, 1.0, 1.4, 1.8], [], 0, 5, 0, 0.0),  # silence is no success
        ([0.2, 0.6, 1.0, 1.4, 1.8], [0.6], 1, 4, 0, 2 / 6),  # what was not found counts
        ([0.2, 0.6, 1.0, 1.4, 1.8], [0.2, 0.6, 1.0, 1.4, 1.8], 5, 0, 0, 1.0),
        ([0.2, 0.6], [0.2, 0.6, 0.8, 1.0, 1.2, 1.4], 2, 0, 4, 4 / 8),
        ([0.5, 1.0], [0.54, 0.96], 2, 0, 0, 1.0),  # 40 ms off: inside
        ([0.5, 1.0], [0.56, 0.94], 0, 2, 2, 0.0),  # 60 ms off: outside
        ([0.5], [0.5, 0.51, 0.52], 1, 0, 2, 2 / 4),  # one to one
        ([0.50, 0.58], [0.54, 0.46], 2, 0, 0, 1.0),  # nearest first would leave one of each alone
        ([0.5], [0.55], 1, 0, 0, 1.0),  # the tolerance itself is inside
        ([], [], 0, 0, 0, 1.0),
        ([], [0.3], 0, 0, 1, 0.0),
    ],
)
def test_matching(reference, estimate, hits, misses, false_alarms, f1):
    counts = match_onsets(reference, estimate)
    assert counts == OnsetCounts(hits=hits, misses=misses, false_alarms=false_alarms)
    assert counts.f1 == pytest.approx(f1)


def test_matching_is_maximum():
    # Against the largest matching found by trying every assignment, on small random sets.
    rng = np.random.default_rng(0)

    def largest(reference, estimate):
        if not reference:
            return 0
        best = largest(reference[1:], estimate)
        for k, time in enumerate(estimate):
            if abs(time - reference[0]) <= 0.05:
                best = max(best, 1 + largest(reference[1:], estimate[:k] + estimate[k + 1 :]))
        return best

    for _ in range(200):
        reference, estimate = rng.uniform(0, 0.4, 4).tolist(), rng.uniform(0, 0.4, 5).tolist()
        assert match_onsets(reference, estimate).hits == largest(reference, estimate)


def test_counts_are_pooled_before_the_ratio():
    total = OnsetCounts(hits=1, misses=0, false_alarms=0) + OnsetCounts(hits=0, misses=3, false_alarms=1)
    assert (total.precision, total.recall, total.f1) == (1 / 2, 1 / 4, 2 / 6)


def test_precision_and_recall_of_nothing():
    nothing, only_false = match_onsets([], []), match_onsets([], [1.0])
    assert (nothing.precision, nothing.recall) == (1.0, 1.0)
    assert (only_false.precision, only_false.recall) == (0.0, 0.0)
    assert match_onsets([1.0], []).precision == 0.0


def test_negative_counts_and_tolerances_are_refused():
    with pytest.raises(ValueError, match="hits must not be negative, got -1"):
        OnsetCounts(hits=-1, misses=0, false_alarms=0)
    with pytest.raises(ValueError, match="tolerance_s must be positive"):
        match_onsets([], [], 0.0)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_clicks_are_found_within_ten_milliseconds(rate):
    times = [0.1, 0.35, 0.5013, 0.9, 1.2, 1.777]
    for background in (0.0, 1.0):
        wave = click_train(times, rate) + background * noise(1, level_db=-40, rate=rate)
        found = detect_onsets(wave.astype(np.float32), rate)
        assert len(found) == len(times)
        assert np.abs(found - times).max() < 0.010


def test_silence_and_steady_sound_hold_no_onset():
    t = np.arange(2 * RATE) / RATE
    assert len(detect_onsets(np.zeros(2 * RATE, np.float32), RATE)) == 0
    assert len(detect_onsets(np.sin(2 * np.pi * 440 * t).astype(np.float32), RATE)) == 0
    for seed in range(20):
        assert len(detect_onsets(noise(seed).astype(np.float32), RATE)) == 0
        swelling = noise(seed) * (1 + 0.4 * np.sin(2 * np.pi * t))
        assert len(detect_onsets(swelling.astype(np.float32), RATE)) == 0


def test_level_does_not_matter():
    wave, _ = scene(4)
    np.testing.assert_allclose(detect_onsets(wave, RATE), detect_onsets(0.01 * wave, RATE))


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_decaying_hits_over_ambience_are_found(rate):
    clips = [scene(seed, rate) for seed in range(40)]
    total = reduce(add, [match_onsets(events, detect_onsets(wave, rate)) for wave, events in clips])
    assert total.precision > 0.97
    assert total.recall > 0.97


def test_bad_waves_are_refused():
    with pytest.raises(ValueError, match="shape"):
        detect_onsets(np.zeros((2, 100)), RATE)
    with pytest.raises(ValueError, match="finite"):
        detect_onsets(np.full(4000, np.nan), RATE)
    with pytest.raises(ValueError, match="at least 8000 Hz, got 4000"):
        detect_onsets(np.zeros(4000), 4000)
