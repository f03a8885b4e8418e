"""PAM: closed forms of the probability, means over windows, and where windows lie."""

import math

import numpy as np
import pytest
import torch

from eval.metrics.embeddings import Embeddings
from eval.metrics.pam import PROMPTS, WINDOW_SAMPLES, Pam, pam_windows

PLANE = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
"""Prompt embeddings at right angles: the clean one along x, the noisy one along y."""


def at_angles(*degrees: float, counts: tuple[int, ...] | None = None) -> Embeddings:
    """Unit rows in the plane, one clip each unless counted."""
    angles = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    rows = torch.stack((angles.cos(), angles.sin()), dim=1)
    return Embeddings(rows=rows, counts=counts or (1,) * len(degrees))


# Scores


def test_probability_by_the_formula():
    """Cosines with the prompts are cos a and sin a: P = 1 / (1 + exp(-s (cos a - sin a)))."""
    made = Pam.from_embeddings(at_angles(0, 45, 90, 180, 300), PLANE, logit_scale=3.0)
    halves = (1.0, 0.0, -1.0, -1.0, 0.5 + math.sqrt(0.75))
    expected = [1 / (1 + math.exp(-3.0 * difference)) for difference in halves]
    np.testing.assert_allclose(made.per_clip, expected, rtol=1e-12)
    assert made.per_clip[1] == pytest.approx(0.5, abs=1e-15)
    assert made.mean == pytest.approx(sum(expected) / 5, rel=1e-12)


def test_it_is_the_softmax_over_the_prompts():
    generator = torch.Generator().manual_seed(3)
    rows, prompts = (torch.randn(n, 16, generator=generator, dtype=torch.float64) for n in (7, 2))
    unit = [x / x.norm(dim=1, keepdim=True) for x in (rows, prompts)]
    expected = torch.softmax(33.0 * unit[0] @ unit[1].T, dim=1)[:, 0]
    made = Pam.from_embeddings(Embeddings(rows=rows, counts=(1,) * 7), prompts, logit_scale=33.0)
    np.testing.assert_allclose(made.per_window, expected.numpy(), rtol=1e-10)
    longer = Pam.from_embeddings(Embeddings(rows=5 * rows, counts=(1,) * 7), 0.1 * prompts, logit_scale=33.0)
    np.testing.assert_allclose(longer.per_window, made.per_window, rtol=1e-12)  # lengths do not matter


def test_swapped_prompts_give_the_rest_to_one():
    windows = at_angles(10, 80, 200)
    clean = Pam.from_embeddings(windows, PLANE, logit_scale=5.0).per_clip
    noisy = Pam.from_embeddings(windows, PLANE.flip(0), logit_scale=5.0).per_clip
    np.testing.assert_allclose(clean + noisy, 1.0, rtol=1e-12)


def test_great_scales_end_at_0_and_1():
    made = Pam.from_embeddings(at_angles(0, 90), PLANE, logit_scale=1e6)
    assert made.per_clip.tolist() == [1.0, 0.0]


def test_a_clip_is_the_mean_of_its_windows():
    """Means of probabilities, not of cosines; each window weighs the same; the corpus mean is over clips."""
    windows = at_angles(0, 90, 45, 0, counts=(2, 1, 1))
    made = Pam.from_embeddings(windows, PLANE, logit_scale=4.0)
    high, low = 1 / (1 + math.exp(-4.0)), 1 / (1 + math.exp(4.0))
    np.testing.assert_allclose(made.per_clip, [(high + low) / 2, 0.5, high], rtol=1e-12)
    assert made.mean == pytest.approx((0.5 + 0.5 + high) / 3, rel=1e-12)
    uneven = Pam.from_embeddings(at_angles(0, 0, 90, counts=(3,)), PLANE, logit_scale=4.0)
    assert uneven.per_clip.tolist() == pytest.approx([(2 * high + low) / 3], rel=1e-12)
    assert uneven.per_clip[0] != pytest.approx(1 / (1 + math.exp(-4.0 / 3)), rel=1e-2)  # that of the mean cosine


def test_what_cannot_be_scored_is_refused():
    windows = at_angles(0, 90)
    for prompts in (PLANE[:1], torch.zeros(2), torch.ones(2, 3), torch.ones(3, 2)):
        with pytest.raises(ValueError, match=r"prompts must be the clean one and the noisy one, \(2, 2\)"):
            Pam.from_embeddings(windows, prompts, logit_scale=1.0)
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="logit_scale must be positive and finite"):
            Pam.from_embeddings(windows, PLANE, logit_scale=scale)
    with pytest.raises(ValueError, match="zero row"):
        Pam.from_embeddings(Embeddings(rows=torch.zeros(1, 2), counts=(1,)), PLANE, logit_scale=1.0)
    with pytest.raises(ValueError, match="zero row"):
        Pam.from_embeddings(windows, torch.zeros(2, 2), logit_scale=1.0)
    with pytest.raises(ValueError, match="at least one clip"):
        Pam.from_embeddings(Embeddings(rows=torch.zeros(0, 2), counts=()), PLANE, logit_scale=1.0)


# Windows


@pytest.mark.parametrize(
    ("samples", "tail", "expected"),
    [
        (3, "tiled", ["01201"]),  # up to one window: repeated until it is full
        (3, "last", ["01201"]),
        (3, "first", ["01201"]),
        (5, "tiled", ["01234"]),
        (8, "tiled", ["01234", "56756"]),
        (8, "last", ["01234", "34567"]),
        (8, "first", ["01234"]),
        (10, "tiled", ["01234", "56789"]),  # no rest
        (10, "last", ["01234", "56789"]),
        (11, "tiled", ["01234", "56789", "aaaaa"]),
        (11, "last", ["01234", "56789", "6789a"]),
    ],
)
def test_windows_of_five_samples(samples, tail, expected):
    made = pam_windows(torch.arange(samples), tail=tail, window=5)
    assert ["".join(f"{int(n):x}" for n in row) for row in made] == expected


def test_windows_are_seven_seconds_and_hold_no_view_of_the_clip():
    assert WINDOW_SAMPLES == 7 * 44_100
    wave = torch.zeros(2 * WINDOW_SAMPLES)
    for clip, count in ((wave[:WINDOW_SAMPLES], 1), (wave, 2), (torch.zeros(352_800), 2), (torch.zeros(441_000), 2)):
        made = pam_windows(clip)  # 7, 14, 8 and 10 s
        assert made.shape == (count, WINDOW_SAMPLES)
        made += 1
        assert float(clip.abs().max()) == 0


def test_windows_of_nothing_are_refused():
    for wave in (torch.zeros(0), torch.zeros(2, 10)):
        with pytest.raises(ValueError, match=r"wave must be \(samples,\)"):
            pam_windows(wave)
    with pytest.raises(ValueError, match="tail must be one of tiled, last, first, got zeros"):
        pam_windows(torch.zeros(10), tail="zeros")
    with pytest.raises(ValueError, match="window must be positive"):
        pam_windows(torch.zeros(10), window=0)


def test_prompts_are_the_published_ones():
    assert PROMPTS == ("the sound is clear and clean.", "the sound is noisy and with artifacts.")
