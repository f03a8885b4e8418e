"""Clocks, noise, guidance wrapping and sampling of networks."""

from itertools import pairwise

import pytest
import torch

from meanflow import Guidance
from teacher.generate import clip_seed, generate, network_evaluations, noise
from teacher.network import Encoded
from teacher.sequence import SEQUENCE_16K, SEQUENCE_44K, image_frames, sync_frames
from teacher.velocity import Guide, TeacherVelocity, student_velocity
from teacher.windows import overlap_add, window_starts
from tests.teacher.test_network import conditions, opened, small


def test_clock_is_reversed_once():
    """v(x_t, t) here is minus the network at 1 - t."""
    config = small()
    net, c = opened(config), conditions(config)
    x, t = torch.randn(2, 9, 4, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    torch.testing.assert_close(TeacherVelocity(net)(x, t, c), -net(x, 1 - t, c), rtol=0, atol=0)


def test_one_euler_step_of_a_teacher_by_hand():
    """From e at t = 1: x = e - 1 * v(e, 1) = e + net(e, 0)."""
    config = small()
    net, c = opened(config), conditions(config)
    e = torch.randn(2, 9, 4, dtype=torch.float64)
    made = generate(net, c, e, num_steps=1, guidance=Guidance())
    torch.testing.assert_close(made, e + net(e, torch.zeros(2, dtype=e.dtype), c).detach(), rtol=0, atol=1e-12)


def test_two_student_steps_by_hand():
    """From t = 1 over r = 1/2 to 0, each a jump of half the average velocity over that interval."""
    config = small(interval_embedding=True)
    net, c = opened(config), conditions(config)
    e = torch.randn(2, 9, 4, dtype=torch.float64)
    encoded = net.encode_conditions(c, 9)
    full = lambda value: torch.full((2,), value, dtype=e.dtype)  # noqa: E731
    x = e - 0.5 * student_velocity(net, e, full(0.5), full(1.0), encoded)
    x = x - 0.5 * student_velocity(net, x, full(0.0), full(0.5), encoded)
    made = generate(net, c, e, num_steps=2, guidance=Guidance())
    torch.testing.assert_close(made, x.detach(), rtol=0, atol=1e-12)


def test_guided_prediction_equals_two_separate_ones():
    config = small()
    net, c = opened(config), conditions(config)
    x, t = torch.randn(2, 9, 4, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    rule = Guidance(omega=2.5)

    def v(x, r, t, encoded: Encoded):
        return -net.predict(x, 1 - t, encoded)

    seen = []
    guided = Guide.of(net, c, 9, rule, seen.append)(v, x, t, t)
    expected = rule(-net(x, 1 - t, c), -net(x, 1 - t, c.unconditional()), t)
    torch.testing.assert_close(guided, expected.value, rtol=0, atol=1e-12)
    torch.testing.assert_close(seen[0], expected.s_star)


def test_evaluations_are_counted():
    assert network_evaluations(25, Guidance(omega=4.5)) == 50
    assert network_evaluations(1, Guidance()) == 1


def test_noise_of_a_clip_does_not_depend_on_its_batch():
    seeds = [clip_seed(0, name) for name in ("a", "b", "c")]
    torch.testing.assert_close(noise(seeds, 5, 4)[1], noise(seeds[1:2], 5, 4)[0], rtol=0, atol=0)
    assert len(set(seeds)) == 3
    assert clip_seed(1, "a") != clip_seed(0, "a")


@pytest.mark.parametrize(
    ("duration_s", "n16", "n44", "tc", "ts"),
    [
        (1, 32, 44, 8, 16),
        (2, 63, 87, 16, 40),
        (5, 157, 216, 40, 112),
        (8, 250, 345, 64, 192),
        (30, 938, 1292, 240, 736),
    ],
)
def test_published_sequence_lengths(duration_s, n16, n44, tc, ts):
    assert SEQUENCE_16K.latent_frames(duration_s) == n16
    assert SEQUENCE_44K.latent_frames(duration_s) == n44
    assert image_frames(duration_s) == tc
    assert sync_frames(duration_s) == ts


def test_too_short_a_clip_is_refused():
    with pytest.raises(ValueError, match=r"0\.64"):
        sync_frames(0.6)


@pytest.mark.parametrize("total_s", [0.7, 2.0, 2.1, 5.0, 61.3])
def test_windows_cover_the_whole_and_sum_to_one(total_s):
    starts = window_starts(total_s, 2.0)
    length = min(total_s, 2.0)
    assert starts[0] == 0
    assert starts[-1] + length == pytest.approx(total_s)
    assert all(b - a <= 1.75 + 1e-9 for a, b in pairwise(starts))
    ones = torch.ones(len(starts), round(length * 1000) + 12)
    made = overlap_add(ones, starts, 1000, total_s)
    assert made.shape == (round(total_s * 1000),)
    torch.testing.assert_close(made, torch.ones_like(made))
