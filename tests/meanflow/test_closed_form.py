"""The Gaussian oracle and everything that must be exact on it."""

import math

import pytest
import torch

from meanflow import (
    CentralDifference,
    ForwardAD,
    GaussianFlow,
    euler,
    expand_right,
    heun,
    interpolate,
    jump,
    sample,
    time_grid,
    velocity,
)
from meanflow.derivative import identity_residual


@pytest.fixture
def flow():
    g = torch.Generator().manual_seed(1)
    return GaussianFlow(
        mu=torch.randn(5, 3, generator=g, dtype=torch.float64),
        s=torch.rand(5, 3, generator=g, dtype=torch.float64) + 0.2,
    )


@pytest.fixture
def states(generator):
    x_t = torch.randn(7, 5, 3, generator=generator, dtype=torch.float64)
    t = torch.rand(7, generator=generator, dtype=torch.float64)
    return x_t, t * torch.rand(7, generator=generator, dtype=torch.float64), t


def test_average_velocity_meets_the_instantaneous_one_where_the_interval_closes(flow, states):
    x_t, _, t = states
    torch.testing.assert_close(flow.u(x_t, t, t), flow.v(x_t, t), rtol=0, atol=1e-12)


def test_a_jump_with_the_average_velocity_is_the_flow_map(flow, states):
    x_t, r, t = states
    torch.testing.assert_close(jump(x_t, flow.u(x_t, r, t), r, t), flow.flow(x_t, r, t), rtol=0, atol=1e-12)


def test_flow_map_composes(flow, states):
    x_t, r, t = states
    s = 0.5 * (r + t)
    torch.testing.assert_close(flow.flow(flow.flow(x_t, s, t), r, s), flow.flow(x_t, r, t), rtol=0, atol=1e-12)


def test_velocity_is_the_conditional_mean_of_noise_minus_data(flow):
    """E[e - x | x_t] by regression over 400,000 draws: v is affine in x_t, so least squares recovers it."""
    g = torch.Generator().manual_seed(2)
    t = torch.full((400_000,), 0.6, dtype=torch.float64)
    x = flow.sample(400_000, 5, 3, generator=g)
    e = torch.randn(x.shape, generator=g, dtype=torch.float64)
    x_t = interpolate(x, e, t)
    residual = velocity(x, e) - flow.v(x_t, t)
    # Standard error of the mean is below 3 / sqrt(400,000) = 0.005.
    assert residual.mean(0).abs().max() < 0.02
    assert (residual * (x_t - x_t.mean(0))).mean(0).abs().max() < 0.04


@pytest.mark.parametrize(("derivative", "bound"), [(ForwardAD(), 1e-9), (CentralDifference(), 1e-4)])
def test_meanflow_identity(flow, states, derivative, bound):
    x_t, r, t = states
    v = flow.v(x_t, t)
    dudt = derivative(flow.u, x_t, r, t, v)
    assert not dudt.requires_grad
    assert identity_residual(flow.u(x_t, r, t), dudt, v, r, t).abs().max() < bound


def test_identity_with_the_wrong_sign_is_far_off(flow, states):
    x_t, r, t = states
    v = flow.v(x_t, t)
    dudt = ForwardAD()(flow.u, x_t, r, t, v)
    assert (flow.u(x_t, r, t) - expand_right(t - r, x_t) * dudt - v).abs().max() > 0.1


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_average_velocity_sampling_is_exact_in_any_number_of_steps(flow, generator, num_steps):
    e = torch.randn(4, 5, 3, generator=generator, dtype=torch.float64)
    exact = flow.flow(e, torch.zeros(4, dtype=e.dtype), torch.ones(4, dtype=e.dtype))
    torch.testing.assert_close(sample(flow.u, e, time_grid(num_steps)), exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2)])
def test_order_of_convergence(flow, generator, sampler, order):
    """Halving the step divides the error by 2^order; measured between 64 and 128 steps."""
    e = torch.randn(4, 5, 3, generator=generator, dtype=torch.float64)
    exact = flow.flow(e, torch.zeros(4, dtype=e.dtype), torch.ones(4, dtype=e.dtype))
    errors = [(sampler(flow.v, e, time_grid(n)) - exact).abs().max().item() for n in (64, 128)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


def test_rising_grid_is_refused(flow):
    with pytest.raises(ValueError, match="falls strictly"):
        euler(flow.v, torch.zeros(1, 5, 3, dtype=torch.float64), torch.tensor([0.0, 1.0]))


def test_central_difference_is_refused_in_half_precision():
    with pytest.raises(ValueError, match="float32"):
        CentralDifference()(lambda x, r, t: x, *_half())


def _half():
    x = torch.zeros(1, 2, 2, dtype=torch.bfloat16)
    return x, torch.zeros(1), torch.ones(1), x
