"""The scores of MMAudio's Greatest-Hits script, faults included, beside the one-to-one matching."""

from itertools import pairwise

import numpy as np
import pytest

from eval.metrics.greatest_hits import (
    SAMPLE_RATE,
    ScriptScores,
    average_precision,
    script_onsets,
    script_scores,
    thin_out,
)
from eval.metrics.onsets import match_onsets

EVENTS = (0.5, 1.5, 2.5, 3.5, 4.5)


def pulses(times, heights, seconds=8.0):
    """One-sided pulses of the given heights, 10 ms each, over zeros; the positions of their first samples."""
    wave = np.zeros(round(seconds * SAMPLE_RATE))
    starts = np.round(np.asarray(times, float) * SAMPLE_RATE).astype(int)
    for start, height in zip(starts, heights, strict=True):
        wave[start : start + 220] = height
    wave[-1] = -1e-9  # the scaled wave is the wave
    return wave, starts


def hits(times, heights, seconds, noise, seed):
    """Decaying hits over noise."""
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    wave = noise * np.random.default_rng(seed).normal(size=len(t))
    for k, (time, height) in enumerate(zip(times, heights, strict=True)):
        after = np.maximum(t - time, 0)
        wave += (t >= time) * height * np.exp(-after / 0.05) * np.sin(2 * np.pi * (300 + 170 * k) * after)
    return wave.astype(np.float32)


def test_silence_has_full_average_precision():
    scores = script_scores(EVENTS, np.zeros(8 * SAMPLE_RATE))
    assert scores == ScriptScores(accuracy=0.0, average_precision=1.0, f1=0.0)
    assert match_onsets(EVENTS, []).f1 == 0.0


def test_one_of_five_has_full_average_precision_and_f1():
    scores = script_scores(EVENTS, *pulses(EVENTS[:1], [1.0]))
    assert scores == ScriptScores(accuracy=0.2, average_precision=1.0, f1=1.0)
    honest = match_onsets(EVENTS, EVENTS[:1])
    assert (honest.precision, honest.recall, honest.f1) == (1.0, 0.2, 2 / 6)


def test_events_before_the_one_found_are_misses_and_those_after_it_are_not():
    # Listed: two misses, one hit, then the matching ends: F1 = 2 / (3 + 1), where all five would give 2 / 6.
    scores = script_scores(EVENTS, *pulses(EVENTS[2:3], [1.0]))
    assert scores == ScriptScores(accuracy=0.2, average_precision=1.0, f1=0.5)


def test_all_found_and_nothing_else_is_perfect():
    assert script_scores(EVENTS, *pulses(EVENTS, [1.0] * 5)) == ScriptScores(
        accuracy=1.0, average_precision=1.0, f1=1.0
    )


def test_five_hits_and_four_false_alarms():
    # F1 = 10 / (5 + 9) = 0.714. The false alarms are louder: precision 1/5, 2/6, 3/7, 4/8, 5/9 at the five hits.
    times = np.sort([*EVENTS, 5.0, 5.5, 6.0, 6.5])
    heights = [0.9 if time > 4.5 else 0.5 + 0.01 * time for time in times]
    scores = script_scores(EVENTS, *pulses(times, heights))
    assert (scores.accuracy, scores.f1) == (1.0, pytest.approx(10 / 14))
    assert scores.average_precision == pytest.approx(np.mean([1 / 5, 2 / 6, 3 / 7, 4 / 8, 5 / 9]))
    # Where they are fainter, average precision does not see them.
    quiet = script_scores(EVENTS, *pulses(times, [0.1 if time > 4.5 else 0.5 for time in times]))
    assert quiet == ScriptScores(accuracy=1.0, average_precision=1.0, f1=10 / 14)


@pytest.mark.parametrize(("late_s", "accuracy"), [(0.29, 1.0), (-0.29, 1.0), (0.31, 0.0)])
def test_the_tolerance_is_0_3_seconds(late_s, accuracy):
    scores = script_scores(EVENTS, *pulses(np.asarray(EVENTS) + late_s, [1.0] * 5))
    assert scores.accuracy == accuracy
    assert match_onsets(EVENTS, np.asarray(EVENTS) + late_s).hits == 0  # 50 ms


def test_the_louder_prediction_is_taken_not_the_nearer_one():
    # Events 1.0 and 1.4, predictions 1.0 (faint) and 1.25 (loud): the first event takes 1.25, the second is then 0.4 s
    # from what is left. One to one both are found at this tolerance.
    scores = script_scores((1.0, 1.4), *pulses([1.0, 1.25], [0.3, 0.9]))
    assert scores.accuracy == 0.5
    assert match_onsets((1.0, 1.4), [1.0, 1.25], 0.3).hits == 2


def test_heights_are_looked_up_in_the_wrong_place_after_a_match():
    # Event 0.5 takes prediction 0 (0.5 s). Left are 2.0 s (faint) and 2.1 s (loud), but their heights are read at
    # places 0 and 1 of the whole list, 0.5 s (0.6) and 2.0 s (0.2): the faint one is taken. Event 2.35 is 0.25 s from
    # the loud one, which is thus still there; had the loud one been taken, it would be 0.35 s from the other: missed.
    wave, onsets = pulses([0.5, 2.0, 2.1], [0.6, 0.2, 0.9])
    assert script_scores((0.5, 1.95, 2.35), wave, onsets).accuracy == 1.0
    # Without the first event and prediction the places are right, and the loud one is taken.
    assert script_scores((1.95, 2.35), wave, onsets[1:]).accuracy == 0.5


def test_confidence_follows_the_wave_and_not_its_magnitude():
    # A false alarm at the strongest trough has a low confidence, so average precision does not see it.
    wave, onsets = pulses([1.0, 3.0], [0.5, -1.0])
    assert script_scores((1.0,), wave, onsets).average_precision == 1.0
    flipped = script_scores((1.0,), -wave, onsets)
    assert (flipped.accuracy, flipped.average_precision) == (1.0, 0.5)


def test_digital_zero_beside_a_trough_counts_as_claimed():
    wave = np.zeros(4 * SAMPLE_RATE)
    wave[100], wave[200] = 1.0, -1.0  # scaled, zero becomes 0.5
    scores = script_scores((1.0,), wave, np.array([SAMPLE_RATE, 3 * SAMPLE_RATE]))
    assert scores == ScriptScores(accuracy=1.0, average_precision=0.5, f1=2 / 3)


def test_thinning_skips_the_one_after_each_it_removes():
    # 30 ms around the loudest: three others within 50 ms. The first goes, the second is skipped and the third goes;
    # the skipped one is then the most confident left and stays.
    scaled = np.zeros(SAMPLE_RATE)
    onsets = np.array([5000, 5300, 5600, 5900])
    scaled[5900] = 1.0  # within 50 ms of all four: all confidences are equal, the last in order goes first
    assert thin_out(onsets, scaled).tolist() == [5300, 5900]
    assert thin_out(np.array([5000, 5300]), scaled).tolist() == [5300]
    assert thin_out(np.array([], dtype=np.int64), scaled).tolist() == []


def test_thinning_reaches_just_below_50_ms():
    scaled = np.zeros(SAMPLE_RATE)
    scaled[4990] = 1.0  # near the first one only
    assert thin_out(np.array([5000, 6102]), scaled).tolist() == [5000]  # 0.05 x 22050 = 1102.5
    assert thin_out(np.array([5000, 6103]), scaled).tolist() == [5000, 6103]


def test_average_precision_in_closed_cases():
    def value(labels, confidences):
        return average_precision(np.array(labels), np.array(confidences, float))

    assert value([1, 0], [0.9, 0.1]) == 1.0
    assert value([0, 1], [0.9, 0.1]) == 0.5
    assert value([1, 0, 1], [0.9, 0.5, 0.1]) == pytest.approx((1 + 2 / 3) / 2)
    assert value([1, 0], [0.4, 0.4]) == 0.5  # equal confidences enter together, whatever their order
    assert value([0, 1], [0.4, 0.4]) == 0.5
    assert value([0, 0], [0.4, 0.2]) == 0.0


def test_a_file_without_events_has_accuracy_zero_whatever_was_heard():
    assert script_scores((), *pulses([1.0], [1.0])) == ScriptScores(accuracy=0.0, average_precision=0.0, f1=0.0)


def test_only_eight_seconds_are_scored():
    wave, _ = pulses([1.0, 9.0], [1.0, 1.0], seconds=10.0)
    onsets = np.array([SAMPLE_RATE])
    assert script_scores((1.0, 8.0, 9.0), wave, onsets) == script_scores((1.0,), wave[: 8 * SAMPLE_RATE], onsets)


@pytest.mark.parametrize(
    ("times", "heights", "seconds", "noise", "recorded"),
    [
        ((0.2, 0.5, 0.9, 1.3, 1.7), (1, 0.5, 0.1, 0.8, 0.03), 2.0, 1e-3, [5120, 11776, 20480, 29184]),  # one too faint
        ((0.04, 0.3, 0.33, 0.37, 1.0, 1.95), (1, 1, 1, 1, 0.02, 1), 2.0, 1e-2, [1536, 7168, 43520]),  # three in one
        ((0.5, 4.0, 7.9, 8.1), (0.3, 0.3, 0.3, 0.9), 9.0, 1e-4, [11264, 88576, 174592]),  # the ninth second is cut off
    ],
)
def test_onsets_recorded_from_librosa(times, heights, seconds, noise, recorded):
    # librosa 0.11.0: onset_detect(y=wave[:8 * 22050], sr=22050, units="samples", delta=0.3) on the same waves.
    seed = {4: 2, 5: 0, 6: 1}[len(times)]
    assert script_onsets(hits(times, heights, seconds, noise, seed)).tolist() == recorded


def test_a_falling_flux_is_no_onset_though_it_is_well_above_its_surroundings():
    # Noise that rises by 10, 15 and 12 dB in successive frames: the first is the onset, the second is too near and the
    # third is 0.3 above the mean, but below the second. librosa 0.11.0 gives [11264] as well.
    level_db = np.repeat([-75.0] * 20 + [-65.0, -50.0, -38.0] + [-38.0] * 20, 512)
    noise = np.random.default_rng(0).normal(size=len(level_db))
    assert script_onsets((10 ** (level_db / 20) * noise).astype(np.float32)).tolist() == [11264]


def test_an_onset_in_the_first_50_ms_has_a_confidence():
    assert script_scores((0.02,), *pulses([0.02], [1.0])) == ScriptScores(accuracy=1.0, average_precision=1.0, f1=1.0)


def test_onsets_are_found_from_the_wave_where_none_are_given():
    wave = hits(EVENTS, [1.0] * 5, 8.0, 1e-3, 0)
    assert script_scores(EVENTS, wave).accuracy == 1.0
    assert script_scores(EVENTS, wave) == script_scores(EVENTS, wave, script_onsets(wave))
    assert script_onsets(np.zeros(1000)).tolist() == []
    assert all(b > a for a, b in pairwise(script_onsets(wave).tolist()))


def test_what_cannot_be_scored_is_refused():
    silence = np.zeros(SAMPLE_RATE)
    with pytest.raises(ValueError, match="an event or an onset to be scored, got neither"):
        script_scores((), silence)
    with pytest.raises(ValueError, match="got neither"):
        script_scores((8.0,), silence)
    with pytest.raises(ValueError, match="ascending"):
        script_scores((2.0, 1.0), silence)
    with pytest.raises(ValueError, match="events_s must be finite"):
        script_scores((np.nan,), silence)
    with pytest.raises(ValueError, match=r"shape \(samples,\) .* got \(2, 100\)"):
        script_scores((1.0,), np.zeros((2, 100)))
    with pytest.raises(ValueError, match=r"f1 must be between 0 and 1, got 1\.5"):
        ScriptScores(accuracy=0.0, average_precision=1.0, f1=1.5)
    with pytest.raises(ValueError, match="wave must be finite"):
        script_scores((1.0,), np.full(100, np.inf))
