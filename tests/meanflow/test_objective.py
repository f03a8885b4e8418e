"""Facts about the MeanFlow objective on the Gaussian oracle."""

from typing import get_args

import pytest
import torch

from meanflow import Correction, Field, GaussianFlow, MeanFlow, TotalDerivative, interpolate, velocity


@pytest.fixture
def flow():
    return GaussianFlow(
        mu=torch.tensor([[0.7, -1.2]], dtype=torch.float64), s=torch.tensor([[0.4, 1.5]], dtype=torch.float64)
    )


def _times(n, generator):
    t = torch.rand(n, generator=generator, dtype=torch.float64)
    r = t * torch.rand(n, generator=generator, dtype=torch.float64)
    r[::2] = t[::2]
    return r, t


@pytest.mark.parametrize("derivative", get_args(TotalDerivative))
def test_exact_average_velocity_is_a_fixed_point(flow, generator, derivative):
    r, t = _times(64, generator)
    x_t = torch.randn(64, 1, 2, generator=generator, dtype=torch.float64)
    residual = MeanFlow(correction=Correction(derivative=derivative()))(Field.of(flow.u), x_t, r, t, flow.v(x_t, t))
    assert residual.delta.abs().max() < 1e-4


def test_conditional_velocity_leaves_the_fixed_point_in_expectation(flow):
    """With e - x in place of v the residual is not zero but has zero mean given x_t: 1 / sqrt(200,000) = 0.002."""
    g = torch.Generator().manual_seed(5)
    x = flow.sample(200_000, 1, 2, generator=g)
    e = torch.randn(x.shape, generator=g, dtype=torch.float64)
    t, r = torch.full((len(x),), 0.8, dtype=torch.float64), torch.full((len(x),), 0.2, dtype=torch.float64)
    x_t = interpolate(x, e, t)
    delta = MeanFlow()(Field.of(flow.u), x_t, r, t, velocity(x, e)).delta
    assert delta.abs().mean() > 0.3
    assert delta.mean(0).abs().max() < 0.02
    assert (delta * (x_t - x_t.mean(0))).mean(0).abs().max() < 0.04


def test_derivative_is_taken_only_on_rows_that_move(flow, generator):
    r, t = _times(10, generator)
    x_t = torch.randn(10, 1, 2, generator=generator, dtype=torch.float64)
    seen = []

    def rows_of(rows):
        seen.append(rows.tolist())
        return flow.u

    correction = Correction()(rows_of, x_t, r, t, flow.v(x_t, t))
    assert seen == [[1, 3, 5, 7, 9]]
    assert correction[::2].abs().max() == 0
    assert correction[1::2].abs().min() > 0


def test_gradient_flows_through_the_prediction_alone(flow, generator):
    """The target is stop-gradient: d(loss)/d(shift) of u + shift equals 2 mean(delta)."""
    r, t = _times(16, generator)
    x_t = torch.randn(16, 1, 2, generator=generator, dtype=torch.float64)
    shift = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def u(x, r, t):
        return flow.u(x, r, t) + shift * t[:, None, None]

    delta = MeanFlow()(Field.of(u), x_t, r, t, flow.v(x_t, t)).delta
    delta.pow(2).mean().backward()
    expected = (2 * delta.detach() * t[:, None, None]).mean()
    torch.testing.assert_close(shift.grad, expected)


def test_clip_bounds_the_correction_and_keeps_its_direction(flow, generator):
    r, t = _times(8, generator)
    x_t = 3 * torch.randn(8, 1, 2, generator=generator, dtype=torch.float64)
    v = flow.v(x_t, t)
    free = Correction()(lambda rows: flow.u, x_t, r, t, v)
    held = Correction(clip=0.05)(lambda rows: flow.u, x_t, r, t, v)
    rms = held.flatten(1).pow(2).mean(1).sqrt()
    assert rms.max() <= 0.05 + 1e-12
    cosine = torch.nn.functional.cosine_similarity(free[1::2].flatten(1), held[1::2].flatten(1))
    torch.testing.assert_close(cosine, torch.ones_like(cosine))
