"""Facts that hold for every objective on the Gaussian oracle, and the correction of MeanFlow."""

import dataclasses
from typing import get_args

import pytest
import torch
from torch import nn

from meanflow import (
    AdaptiveL2,
    AlphaFlow,
    CentralDifference,
    ConsistencyTraining,
    Correction,
    ForwardAD,
    ImprovedMeanFlow,
    MeanFlow,
    Objective,
    StudentCalls,
    TerminalVelocity,
    TotalDerivative,
    TransitionModel,
    interpolate,
    u_only,
    velocity,
)
from meanflow.config import dumps, from_plain, loads, to_plain

OBJECTIVES = get_args(Objective)

# The oracle's third derivative in time is at most 100 on these points: standard deviations down to 0.37 give
# 1 / 0.37^3 = 20 per unit of z, and |z| < 5. Central differences err by eps^2 / 6 of it, one-sided ones by eps^2 / 3.
# Consistency training errs by fine^2 / 2 of the second derivative, below 30. All others are exact to rounding.
TOLERANCE = {TransitionModel: 0.005**2 / 6 * 100, TerminalVelocity: 0.005**2 / 3 * 100, ConsistencyTraining: 1e-3}


def _times(n, generator):
    t = torch.rand(n, generator=generator, dtype=torch.float64)
    r = t * torch.rand(n, generator=generator, dtype=torch.float64)
    r[::2] = t[::2]
    return r, t


def _batch(flow, n, generator):
    """x_t, r, t and the conditional velocity; every second row has r = t, every eighth r = 0."""
    r, t = _times(n, generator)
    r[1::8] = 0.0
    x = flow.sample(n, 1, 2, generator=generator)
    e = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return interpolate(x, e, t), r, t, velocity(x, e)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_exact_average_velocity_is_a_fixed_point_of_every_objective(flow, generator, kind):
    x_t, r, t, _ = _batch(flow, 256, generator)
    residual = kind()(StudentCalls.of(flow.u, flow.v), x_t, r, t, flow.v(x_t, t))
    assert residual.delta.abs().max() < TOLERANCE.get(kind, 1e-9)
    if residual.extra is not None:
        assert residual.extra.abs().max() < 1e-9


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_conditional_velocity_is_unbiased_for_every_objective(flow, kind):
    """With e - x for v, the error has zero mean given x_t, so the gradient of a squared error vanishes at the exact u.

    Checked against the functions 1 and x_t, on moving and on resting rows: five standard errors, beside the tolerance
    of the fixed point. It holds where v is regressed at x_t itself (all rows with r = t; MeanFlow, ImprovedMeanFlow,
    TransitionModel), and where moving rows do not see v at all (SplitMeanFlow, and TerminalVelocity, whose Lagrangian
    identity wants v at the place of arrival, where e - x would be biased). ConsistencyTraining moves along e - x and is
    unbiased only as l -> 0, AlphaFlow only at alpha = 0, which is its state here (progress = 1).
    """
    generator = torch.Generator().manual_seed(5)
    n = 40_000
    x = flow.sample(n, 1, 2, generator=generator)
    e = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    t = torch.full((n,), 0.8, dtype=torch.float64)
    r = torch.where(torch.arange(n) % 2 == 0, 0.8, 0.2).to(t.dtype)
    x_t = interpolate(x, e, t)
    residual = kind()(StudentCalls.of(flow.u, flow.v), x_t, r, t, velocity(x, e))
    if kind is not ConsistencyTraining:
        assert residual.delta[::2].std() > 0.3  # the scatter of e - x around its mean is there
    for error in (residual.delta, residual.extra):
        for rows in (slice(0, None, 2), slice(1, None, 2)):
            for probe in (torch.ones_like(x_t), x_t - x_t.mean(0)):
                if error is None:
                    continue
                terms = (error * probe)[rows]
                bound = 5 * terms.std(0) / len(terms) ** 0.5 + 2 * TOLERANCE.get(kind, 1e-9)
                assert bool((terms.mean(0).abs() < bound).all()), (terms.mean(0), bound)


class Shifted(nn.Module):
    """The oracle's u plus a trainable multiple of a smooth function of all arguments."""

    def __init__(self, flow, size):
        super().__init__()
        self.flow, self.size = flow, nn.Parameter(torch.tensor(size, dtype=torch.float64))

    def forward(self, x, r, t):
        return self.flow.u(x, r, t) + self.size * (x.sin() + (r + t**2)[:, None, None])


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("progress", [0.5, 1.0])
def test_gradient_goes_through_the_trained_call_alone(flow, generator, kind, progress):
    x_t, r, t, v = _batch(flow, 32, generator)
    v.requires_grad_()
    train, plain, average, teacher = (Shifted(flow, size) for size in (0.3, 0.2, 0.1, 0.4))
    calls = StudentCalls(
        train=lambda rows: u_only(train),
        plain=lambda rows: u_only(plain),
        averaged=lambda rows: u_only(average),
        teacher=lambda rows: lambda x, t: teacher(x, t, t),
    )
    for objective in (kind(), kind(source="teacher")) if kind is TerminalVelocity else (kind(),):
        residual = objective(calls, x_t, r, t, v, progress=progress)
        assert not residual.u.requires_grad
        assert not residual.correction.requires_grad
        residual.loss(AdaptiveL2()).mean().backward()
    assert abs(train.size.grad) > 1e-3
    assert plain.size.grad is None
    assert average.size.grad is None
    assert teacher.size.grad is None
    assert v.grad is None


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("progress", [0.5, 1.0])
def test_one_trained_call_and_no_other_work_on_resting_rows(flow, generator, kind, progress):
    x_t, r, t, v = _batch(flow, 16, generator)
    calls = {"train": 0}
    others = []

    def train(rows):
        def u(x, r, t):
            calls["train"] += 1
            assert len(x) == (16 if rows is None else len(rows))
            if rows is not None:
                torch.testing.assert_close(x, x_t[rows], rtol=0, atol=0)
            return flow.u(x, r, t)

        return u_only(u)

    def plain(rows):
        others.append(rows)
        return u_only(flow.u)

    def teacher(rows):
        others.append(rows)
        return flow.v

    kind()(StudentCalls(train=train, plain=plain, teacher=teacher), x_t, r, t, v, progress=progress)
    assert calls["train"] == 1
    if kind().needs.learns_boundary and kind().needs.learns_intervals:
        assert others
        for rows in others:
            assert rows.tolist() == list(range(1, 16, 2))


@pytest.mark.parametrize("kind", [k for k in OBJECTIVES if k().needs.learns_boundary])
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_on_resting_rows_every_objective_is_flow_matching(flow, generator, kind, progress):
    """delta = u(x_t, t, t) - v where r = t, alone or beside moving rows; a batch without moving rows asks for nothing
    but the trained call."""
    x_t, r, t, v = _batch(flow, 16, generator)
    u = Shifted(flow, 0.3)
    mixed = kind()(StudentCalls.of(u, flow.v), x_t, r, t, v, progress=progress)
    expected = (u(x_t, t, t) - v).detach()
    torch.testing.assert_close(mixed.delta[::2].detach(), expected[::2])
    fail = lambda rows: pytest.fail("asked")  # noqa: E731
    trained_only = StudentCalls(train=lambda rows: u_only(u), plain=fail, averaged=fail, teacher=fail)
    alone = kind()(trained_only, x_t, t, t, v, progress=progress)
    torch.testing.assert_close(alone.delta.detach(), expected)
    torch.testing.assert_close(
        alone.loss(AdaptiveL2()).detach(), AdaptiveL2()(expected), msg="weights and second terms rest where r = t"
    )


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_arguments_are_left_as_they_were(flow, generator, kind):
    batch = _batch(flow, 16, generator)
    before = [part.clone() for part in batch]
    kind()(StudentCalls.of(flow.u, flow.v), *batch, progress=0.5)
    for part, kept in zip(batch, before, strict=True):
        torch.testing.assert_close(part, kept, rtol=0, atol=0)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_objective_survives_its_file(kind):
    assert from_plain(Objective, to_plain(kind())) == kind()
    assert loads(kind, dumps(kind())) == kind()
    assert dataclasses.fields(kind) == () or all(field.kw_only for field in dataclasses.fields(kind))


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_declarations_say_what_is_called(flow, generator, kind):
    """A teacher or averaged weights are asked for only where they are declared, and a derivative is taken at the end of
    training where one is."""
    asked = set()

    def asking(name, made):
        def on_rows(rows):
            asked.add(name)
            return made

        return on_rows

    calls = StudentCalls(
        train=lambda rows: u_only(flow.u),
        plain=lambda rows: u_only(flow.u),
        averaged=asking("averaged", u_only(flow.u)),
        teacher=asking("teacher", flow.v),
    )
    for objective in (kind(), kind(source="teacher")) if kind is TerminalVelocity else (kind(),):
        asked.clear()
        objective(calls, *_batch(flow, 8, generator))
        assert asked == {name for name in ("averaged", "teacher") if getattr(objective.needs, name)}
        assert not objective.needs.head


def test_the_derivative_that_is_declared_is_the_configured_one():
    for kind in (MeanFlow, ImprovedMeanFlow, AlphaFlow, TransitionModel):
        for derivative, name in ((ForwardAD(), "exact"), (CentralDifference(), "difference")):
            assert kind(correction=Correction(derivative=derivative)).needs.derivative == name
    assert TransitionModel().needs.derivative == TerminalVelocity().needs.derivative == "difference"
    assert TerminalVelocity(derivative="exact").needs.derivative == "exact"
    assert ImprovedMeanFlow(head=True).needs.head


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 2))

    def forward(self, x, r, t):
        times = torch.stack([r, t], -1)[:, None].expand(-1, x.shape[1], -1)
        return self.layers(torch.cat([x, times.to(x.dtype)], -1))


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_objective_trains_under_autocast_or_says_why_not(flow, generator, kind):
    x_t, r, t, v = (part.float() for part in _batch(flow, 16, generator))
    net, teacher = Net(), lambda x, t: x.cos()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if kind().needs.derivative == "difference":
            with pytest.raises(ValueError, match="float32 or float64 without autocast"):
                kind()(StudentCalls.of(net, teacher), x_t, r, t, v, progress=0.5)
            return
        loss = kind()(StudentCalls.of(net, teacher), x_t, r, t, v, progress=0.5).loss(AdaptiveL2())
    assert loss.dtype == torch.float32
    loss.mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())


@pytest.mark.parametrize("derivative", get_args(TotalDerivative))
def test_exact_average_velocity_is_a_fixed_point(flow, generator, derivative):
    r, t = _times(64, generator)
    x_t = torch.randn(64, 1, 2, generator=generator, dtype=torch.float64)
    objective = MeanFlow(correction=Correction(derivative=derivative()))
    residual = objective(StudentCalls.of(flow.u), x_t, r, t, flow.v(x_t, t))
    assert residual.delta.abs().max() < 1e-4


def test_conditional_velocity_leaves_the_fixed_point_in_expectation(flow):
    """With e - x in place of v the residual is not zero but has zero mean given x_t: 1 / sqrt(200,000) = 0.002."""
    g = torch.Generator().manual_seed(5)
    x = flow.sample(200_000, 1, 2, generator=g)
    e = torch.randn(x.shape, generator=g, dtype=torch.float64)
    t, r = torch.full((len(x),), 0.8, dtype=torch.float64), torch.full((len(x),), 0.2, dtype=torch.float64)
    x_t = interpolate(x, e, t)
    delta = MeanFlow()(StudentCalls.of(flow.u), x_t, r, t, velocity(x, e)).delta
    assert delta.abs().mean() > 0.3
    assert delta.mean(0).abs().max() < 0.02
    assert (delta * (x_t - x_t.mean(0))).mean(0).abs().max() < 0.04


def test_derivative_is_taken_only_on_rows_that_move(flow, generator):
    r, t = _times(10, generator)
    x_t = torch.randn(10, 1, 2, generator=generator, dtype=torch.float64)
    seen = []

    def rows_of(rows):
        seen.append(rows.tolist())
        return u_only(flow.u)

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

    delta = MeanFlow()(StudentCalls.of(u), x_t, r, t, flow.v(x_t, t)).delta
    delta.pow(2).mean().backward()
    expected = (2 * delta.detach() * t[:, None, None]).mean()
    torch.testing.assert_close(shift.grad, expected)


def test_clip_bounds_the_correction_and_keeps_its_direction(flow, generator):
    r, t = _times(8, generator)
    x_t = 3 * torch.randn(8, 1, 2, generator=generator, dtype=torch.float64)
    v = flow.v(x_t, t)
    free = Correction()(lambda rows: u_only(flow.u), x_t, r, t, v)
    held = Correction(clip=0.05)(lambda rows: u_only(flow.u), x_t, r, t, v)
    rms = held.flatten(1).pow(2).mean(1).sqrt()
    assert rms.max() <= 0.05 + 1e-12
    cosine = torch.nn.functional.cosine_similarity(free[1::2].flatten(1), held[1::2].flatten(1))
    torch.testing.assert_close(cosine, torch.ones_like(cosine))
