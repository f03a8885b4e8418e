"""Objectives built on a derivative: ImprovedMeanFlow, TransitionModel."""

import math

import pytest
import torch
from torch import nn

from meanflow import (
    AdaptiveL2,
    CentralDifference,
    Correction,
    ForwardAD,
    ImprovedMeanFlow,
    MeanFlow,
    Prediction,
    StudentCalls,
    TransitionModel,
    interpolate,
    velocity,
)
from meanflow.config import dumps, loads


class Wrong(nn.Module):
    """Not an average velocity, with one parameter of which u is linear: u = 0.8 u_exact + size phi."""

    def __init__(self, flow):
        super().__init__()
        self.flow, self.size = flow, nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def phi(self, x, r, t):
        return (x * (1 + r + t**2)[:, None, None]).sin()

    def forward(self, x, r, t):
        return 0.8 * self.flow.u(x, r, t) + self.size * self.phi(x, r, t)


def headed(net):
    """Calls of a network that has a velocity head."""
    return StudentCalls(train=lambda rows: net, plain=lambda rows: net)


def over(times, like):
    return times.reshape(-1, *[1] * (like.ndim - 1))


# ImprovedMeanFlow


def test_improved_derivative_runs_along_the_predicted_velocity(flow, batch):
    """correction = (t - r) du/dt along (u(x_t, t, t), 0, 1), whatever the target v is."""
    x_t, r, t, v = batch
    u = Wrong(flow)
    tangents = (u(x_t, t, t).detach(), torch.zeros_like(r), torch.ones_like(t))
    dudt = torch.func.jvp(u, (x_t, r, t), tangents)[1].detach()
    residual = ImprovedMeanFlow()(StudentCalls.of(u), x_t, r, t, v)
    torch.testing.assert_close(residual.correction, over(t - r, x_t) * dudt)
    torch.testing.assert_close(residual.delta, u(x_t, r, t) + residual.correction - v)
    assert residual.extra is None


def test_scatter_of_the_conditional_velocity_stays_as_it_is(flow, batch):
    """At the exact u, with e - x: delta = v(x_t, t) - (e - x), free of the network; MeanFlow, whose derivative runs
    along e - x, multiplies that by 1 - (t - r) grad u = d x_r / d x_t = sig_r / sig_t."""
    x_t, r, t, v = batch
    scatter = flow.v(x_t, t) - v
    torch.testing.assert_close(ImprovedMeanFlow()(StudentCalls.of(flow.u), x_t, r, t, v).delta, scatter)
    ratio = flow.std(over(r, x_t)) / flow.std(over(t, x_t))
    torch.testing.assert_close(MeanFlow()(StudentCalls.of(flow.u), x_t, r, t, v).delta, ratio * scatter)


class TwoHeaded(Wrong):
    """A head that depends on r as well, so that a wrong argument shows."""

    def __init__(self, flow):
        super().__init__(flow)
        self.tilt = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))

    def forward(self, x, r, t):
        return Prediction(super().forward(x, r, t), self.flow.v(x, t) + self.tilt * (1 + r + t)[:, None, None])


def test_head_gives_the_tangent_and_learns_from_its_own_error(flow, batch):
    x_t, r, t, v = batch
    net = TwoHeaded(flow)
    residual = ImprovedMeanFlow(head=True)(headed(net), x_t, r, t, v)
    tangents = (net(x_t, r, t).v.detach(), torch.zeros_like(r), torch.ones_like(t))
    dudt = torch.func.jvp(lambda *a: net(*a).u, (x_t, r, t), tangents)[1].detach()
    torch.testing.assert_close(residual.correction, over(t - r, x_t) * dudt)
    torch.testing.assert_close(residual.delta, net(x_t, r, t).u + residual.correction - v)
    torch.testing.assert_close(residual.extra, net(x_t, r, t).v - v)

    (of_delta,) = torch.autograd.grad(residual.delta.pow(2).sum(), net.tilt, retain_graph=True, allow_unused=True)
    assert of_delta is None  # the tangent has no graph
    (of_extra,) = torch.autograd.grad(residual.extra.pow(2).sum(), net.tilt, retain_graph=True)
    torch.testing.assert_close(of_extra, (2 * (net(x_t, r, t).v - v) * over(1 + r + t, x_t)).sum().detach())
    loss = residual.loss(AdaptiveL2(p=0.0))
    torch.testing.assert_close(loss, (residual.delta**2 + residual.extra**2).flatten(1).mean(1))


def test_exact_head_is_a_fixed_point(flow, batch):
    x_t, r, t, _ = batch

    def u(x, r, t):
        return Prediction(flow.u(x, r, t), flow.v(x, t))

    residual = ImprovedMeanFlow(head=True)(headed(u), x_t, r, t, flow.v(x_t, t))
    assert residual.delta.abs().max() < 1e-9
    assert residual.extra.abs().max() == 0


@pytest.mark.parametrize("resting", [False, True])
def test_missing_head_is_refused(flow, batch, resting):
    x_t, r, t, v = batch
    with pytest.raises(TypeError, match="the network has none; set head=False"):
        ImprovedMeanFlow(head=True)(StudentCalls.of(flow.u), x_t, t if resting else r, t, v)


# TransitionModel


def test_transition_error_is_of_second_order_in_eps(flow, batch):
    x_t, r, t, _ = batch
    errors = [
        TransitionModel(correction=Correction(derivative=CentralDifference(eps=eps)))(
            StudentCalls.of(flow.u), x_t, r, t, flow.v(x_t, t)
        )
        .delta.abs()
        .max()
        .item()
        for eps in (1e-2, 5e-3)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


def test_transition_target_keeps_data_and_noise(flow, generator):
    """x_{t +- eps} is the same x and e at t +- eps, so the derivative is that of s -> u(x_s, r, s) along the draw."""
    x = flow.sample(8, 1, 2, generator=generator)
    e = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    t, r = torch.full((8,), 0.7, dtype=torch.float64), torch.full((8,), 0.2, dtype=torch.float64)
    u, eps = Wrong(flow), 5e-3
    ends = [u(interpolate(x, e, t + h), r, t + h) for h in (eps, -eps)]
    residual = TransitionModel()(StudentCalls.of(u), interpolate(x, e, t), r, t, velocity(x, e))
    torch.testing.assert_close(residual.correction, (0.5 * (ends[0] - ends[1]) / (2 * eps)).detach())


def test_transition_weights(flow):
    """(tan 1 + 1)^-1/2, (tan 1 - tan 0.5 + 0.25)^-1/2; ten roundings of numbers near 1 in float32."""
    first, second = (math.tan(1.0) + 1.0) ** -0.5, (math.tan(1.0) - math.tan(0.5) + 0.25) ** -0.5
    r, t = torch.tensor([0.0, 0.5, 0.5]), torch.tensor([1.0, 1.0, 0.5])
    made = TransitionModel().weight(r, t)[:1], TransitionModel(sigma_d=0.25).weight(r, t)[1:]
    torch.testing.assert_close(torch.cat(made), torch.tensor([first, second, 1.0]), atol=6e-7, rtol=0)
    residual = TransitionModel()(StudentCalls.of(flow.u), torch.ones(3, 1, 2), r, t, torch.ones(3, 1, 2))
    torch.testing.assert_close(residual.weight, TransitionModel().weight(r, t))


def test_transition_refuses_a_weight_that_explodes():
    with pytest.raises(ValueError, match=r"sigma_d must be positive, got 0.0"):
        TransitionModel(sigma_d=0.0)


def test_options_survive_the_file():
    for objective in (
        ImprovedMeanFlow(correction=Correction(derivative=ForwardAD(), clip=2.0), head=True),
        TransitionModel(sigma_d=0.5),
    ):
        assert loads(type(objective), dumps(objective)) == objective
