"""Sounds that begin when something in the picture changes its speed score high; others score near zero."""

import numpy as np
import pytest

from eval.metrics.motion import FPS, motion, motion_score, read_motion
from teacher.media import write_video

RATE = 16_000


def picture(turns_s, duration_s=3.0):
    """A soft bright bar that turns back at some times, (frames, 32, 32)."""
    place, direction, frames = 12.0, 1.0, []
    turns = {round(t * FPS) for t in turns_s}
    for k in range(round(duration_s * FPS)):
        if k in turns:
            direction = -direction
        place += 0.5 * direction
        row = np.exp(-0.5 * ((np.arange(32) - place) / 3.0) ** 2)
        frames.append(np.outer(np.ones(32), row))
    return np.stack(frames)


def clicks(times_s, duration_s=3.0):
    wave = 1e-3 * np.random.default_rng(0).standard_normal(round(duration_s * RATE))
    for t in times_s:
        start = round(t * RATE)
        wave[start : start + 800] += np.random.default_rng(1).standard_normal(800) * np.exp(-np.arange(800) / 150)
    return wave


TURNS = (0.6, 1.2, 1.48, 2.32)


def test_acceleration_is_the_second_difference():
    steady = np.arange(5.0)[:, None, None] * np.ones((1, 2, 2))
    assert motion(steady).tolist() == [0.0] * 5
    steady[3] += 2.0  # 0 1 2 5 4: second differences 0, 2, -4
    assert motion(steady).tolist() == [0.0, 0.0, 2.0, 4.0, 0.0]
    with pytest.raises(ValueError, match="3 frames or more"):
        motion(np.zeros((2, 4, 4)))


def test_the_right_sound_wins_over_shifted_and_foreign_ones():
    moved = motion(picture(TURNS))
    right = motion_score(moved, clicks(TURNS), RATE)
    shifted = motion_score(moved, clicks([t + 0.2 for t in TURNS]), RATE)
    foreign = motion_score(moved, clicks((0.3, 0.9, 1.8, 2.7)), RATE)
    assert right > 0.5  # each turn is one frame of motion and up to three of sound: 1 / sqrt(3) = 0.58 at most
    assert max(shifted, foreign) < 0.2


def test_silence_and_a_still_picture_score_nothing():
    moved = motion(picture(TURNS))
    assert motion_score(moved, np.zeros(3 * RATE), RATE) == 0.0
    assert motion_score(np.zeros(75), clicks(TURNS), RATE) == 0.0
    with pytest.raises(ValueError, match="finite"):
        motion_score(moved, np.full(RATE, np.nan), RATE)


def test_loudness_does_not_matter():
    moved = motion(picture(TURNS))
    loud, soft = (motion_score(moved, g * clicks(TURNS), RATE) for g in (1.0, 0.05))
    assert soft == pytest.approx(loud, abs=1e-6)


def test_a_film_is_read(tmp_path):
    frames = np.repeat((200 * picture(TURNS)[..., None]).astype(np.uint8), 3, axis=-1)
    write_video(tmp_path / "film.mp4", frames, float(FPS), clicks(TURNS).astype(np.float32), RATE)
    moved = read_motion(tmp_path / "film.mp4", duration_s=3.0)
    assert moved.shape == (75,)
    assert motion_score(moved, clicks(TURNS), RATE) > 0.45
