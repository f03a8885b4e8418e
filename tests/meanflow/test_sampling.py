"""Grids and samplers: closed forms, order, what is refused."""

import math
from itertools import pairwise

import pytest
import torch

from meanflow import GaussianFlow, euler, heun, sample, time_grid
from meanflow.sampling import midpoint

VELOCITY_SAMPLERS = [euler, heun, midpoint]


@pytest.fixture
def flow(generator):
    return GaussianFlow(
        mu=torch.randn(5, 3, generator=generator, dtype=torch.float64),
        s=torch.rand(5, 3, generator=generator, dtype=torch.float64) + 0.2,
    )


@pytest.fixture
def e(generator):
    return torch.randn(4, 5, 3, generator=generator, dtype=torch.float64)


def exact(flow, e):
    return flow.flow(e, torch.zeros(len(e), dtype=e.dtype), torch.ones(len(e), dtype=e.dtype))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2), (midpoint, 2)])
def test_order_of_convergence_on_any_smooth_grid(e, sampler, order, shift):
    """dx/dt = t x^2 with 1 / x(0) = 1 / x(1) + 1/2. Halving every step divides the error by 2^order.

    Not the Gaussian flow: there the errors of the midpoint rule cancel over the whole path, and it has order 3.
    """
    x_1 = 0.5 + e.abs()
    v = lambda x, t: t[:, None, None] * x**2  # noqa: E731
    errors = [(sampler(v, x_1, time_grid(n, shift)) - 1 / (1 / x_1 + 0.5)).abs().max().item() for n in (64, 128)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("sampler", "end"), [(euler, 15 / 64), (heun, 19 / 32), (midpoint, 45 / 64)])
def test_two_uneven_steps_by_hand(sampler, end):
    """v = t^2 from x(1) = 1 over t = 1/4 to 0, steps of 3/4 and 1/4.

    Euler      1 - 3/4 * 1 - 1/4 * 1/16                    = 15/64
    trapezoid  1 - 3/4 * (1 + 1/16) / 2 - 1/4 * (1/16) / 2 = 19/32
    midpoint   1 - 3/4 * (5/8)^2 - 1/4 * (1/8)^2           = 45/64
    """
    e = torch.ones(1, 1, 1, dtype=torch.float64)
    v = lambda x, t: (t**2)[:, None, None] + 0 * x  # noqa: E731
    assert sampler(v, e, torch.tensor([1.0, 0.25, 0.0])).item() == pytest.approx(end, abs=1e-15)


@pytest.mark.parametrize("grid", [[1.0, 0.9, 0.05, 0.0], time_grid(3, 5.0).tolist(), time_grid(30, 0.2).tolist()])
def test_jumps_are_exact_on_any_grid(flow, e, grid):
    torch.testing.assert_close(sample(flow.u, e, torch.tensor(grid)), exact(flow, e), rtol=0, atol=1e-6)


def test_shifted_grid():
    """shift 3 moves 1/2 to 1.5 / (1.5 + 0.5) = 3/4; the ends stay exactly; 1 / shift mirrors the grid."""
    assert time_grid(2, 3.0).tolist() == [1.0, 0.75, 0.0]
    assert torch.equal(time_grid(7), torch.linspace(1, 0, 8, dtype=torch.float64))
    for shift in (0.3, 1.7, 5.0):
        ts = time_grid(9, shift)
        assert (ts[0], ts[-1]) == (1.0, 0.0)
        assert all(t > r for t, r in pairwise(ts))
        torch.testing.assert_close(time_grid(9, 1 / shift), 1 - ts.flip(0), rtol=0, atol=1e-12)
    early, late = time_grid(9, 5.0).diff().abs()[[0, -1]]
    assert early < 1 / 9 < late


@pytest.mark.parametrize("shift", [0.0, -1.0, math.nan])
def test_wrong_shift_is_named(shift):
    with pytest.raises(ValueError, match="shift"):
        time_grid(4, shift)


@pytest.mark.parametrize("sampler", [*VELOCITY_SAMPLERS, sample])
@pytest.mark.parametrize("ts", [[0.0, 1.0], [1.0, 1.0, 0.0], [1.0], [1.0, math.nan, 0.0]])
def test_grids_that_do_not_fall_are_refused(sampler, ts):
    with pytest.raises(ValueError, match="falls strictly"):
        sampler(lambda x, *_: x, torch.zeros(1, 5, 3), torch.tensor(ts))


@pytest.mark.parametrize("sampler", VELOCITY_SAMPLERS)
def test_zero_velocity_in_the_first_steps_leaves_the_noise_while_time_goes_on(flow, e, sampler):
    """Two of 25 steps left out: the rest of the grid from t = 23/25, started at the noise itself."""
    ts = time_grid(25)
    started_late = sampler(flow.v, e, ts[2:])
    torch.testing.assert_close(sampler(flow.v, e, ts, zero_init_steps=2), started_late, rtol=0, atol=0)
    assert (started_late - sampler(flow.v, e, ts)).abs().max() > 1e-3


def test_zero_velocity_of_jumps(flow, e):
    ts = time_grid(25)
    left = sample(flow.u, e, ts, zero_init_steps=1)
    torch.testing.assert_close(left, sample(flow.u, e, ts[1:]), rtol=0, atol=0)


@pytest.mark.parametrize("sampler", [*VELOCITY_SAMPLERS, sample])
def test_zero_velocity_is_refused_at_few_steps(flow, e, sampler):
    fn = flow.u if sampler is sample else flow.v
    for steps in (1, 2, 24):
        with pytest.raises(ValueError, match="zero_init_steps") as caught:
            sampler(fn, e, time_grid(steps), zero_init_steps=1)
        assert "\n" not in str(caught.value)
    for wrong in (-1, 25, 26):
        with pytest.raises(ValueError, match="zero_init_steps"):
            sampler(fn, e, time_grid(25), zero_init_steps=wrong)
