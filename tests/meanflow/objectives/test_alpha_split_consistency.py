"""Objectives built on jumps in place of a derivative: AlphaFlow, SplitMeanFlow, ConsistencyTraining."""

import math

import pytest
import torch

from meanflow import (
    AlphaFlow,
    ConsistencyTraining,
    MeanFlow,
    SplitMeanFlow,
    StudentCalls,
    jump,
    u_only,
)


@pytest.fixture
def wrong(flow):
    """Not an average velocity: every objective sees a residual."""
    return lambda x, r, t: 0.8 * flow.u(x, r, t) + 0.1 * (x * (1 + r + t**2)[:, None, None]).sin()


def _progress_at(objective, alpha):
    """Inverse of the schedule."""
    z = 0.5 + math.log(1 / alpha - 1) / objective.gamma
    return objective.start + z * (objective.end - objective.start)


def test_alpha_falls_from_one_to_zero_and_is_exact_at_both_ends():
    objective = AlphaFlow(start=0.2, end=0.6)
    alphas = [objective.alpha(k / 1000) for k in range(1001)]
    assert alphas == sorted(alphas, reverse=True)
    assert objective.alpha(0.4) == pytest.approx(0.5)
    # alpha = snap at z = 0.5 +- ln(1 / 0.005 - 1) / 25 = 0.5 +- 0.2117; over [0.2, 0.6] at 0.3153 and 0.4847
    assert objective.alpha(0.315) == 1.0
    assert 0.99 < objective.alpha(0.316) < 1.0
    assert 0.0 < objective.alpha(0.484) < 0.01
    assert objective.alpha(0.485) == 0.0
    # the slope in the middle is -gamma / 4 per unit of z
    slope = (objective.alpha(0.401) - objective.alpha(0.399)) / 0.002 * 0.4
    assert slope == pytest.approx(-25 / 4, rel=1e-3)


def test_alpha_one_is_trajectory_flow_matching(batch, wrong):
    """u_target = v for every r; only the trained call is made, and rows are not weighted."""
    x_t, r, t, v = batch
    calls = StudentCalls(train=lambda rows: u_only(wrong), plain=lambda rows: pytest.fail("asked"))
    residual = AlphaFlow()(calls, x_t, r, t, 9 * v, progress=0.0)  # 9 v: the clamp must not touch this branch
    torch.testing.assert_close(residual.delta, wrong(x_t, r, t) - 9 * v)
    assert residual.weight is None


def test_alpha_zero_is_meanflow(batch, wrong):
    calls = StudentCalls.of(wrong)
    a, b = AlphaFlow()(calls, *batch, progress=1.0), MeanFlow()(calls, *batch)
    torch.testing.assert_close(a.delta, b.delta, rtol=0, atol=0)
    assert a.weight is None


def test_meanflow_is_the_limit_of_small_alpha(batch, wrong):
    """delta / alpha = the residual of MeanFlow + O(alpha) on moving rows: a tenth of alpha, a tenth of the distance."""
    calls, moving = StudentCalls.of(wrong), batch[1] < batch[2]
    limit = MeanFlow()(calls, *batch).delta[moving]
    errors = []
    for alpha in (1e-2, 1e-3):
        objective = AlphaFlow(gamma=50.0, snap=1e-4, clamp=0.0)
        progress = _progress_at(objective, alpha)
        assert objective.alpha(progress) == pytest.approx(alpha)
        delta = objective(calls, *batch, progress=progress).delta[moving]
        errors.append((delta / alpha - limit).abs().max().item())
    assert errors[1] < 0.02 * limit.abs().max().item()
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("alpha", [0.02, 0.5, 0.9])
def test_discrete_target_joins_a_straight_step_and_a_jump(batch, wrong, alpha):
    """Following u_target over [r, t] lands where the step along v to s and then the jump from s to r land."""
    x_t, r, t, v = batch
    objective = AlphaFlow(clamp=0.0)
    residual = objective(StudentCalls.of(wrong), x_t, r, t, v, progress=_progress_at(objective, alpha))
    target = wrong(x_t, r, t) - residual.delta
    s = t - alpha * (t - r)
    x_s = jump(x_t, v, s, t)
    torch.testing.assert_close(jump(x_t, target, r, t), jump(x_s, wrong(x_s, r, s), r, s))
    torch.testing.assert_close(residual.correction, v - target)
    expected = torch.where(r < t, alpha, 1.0).to(residual.weight.dtype)
    torch.testing.assert_close(residual.weight, expected)


def test_clamp_bounds_the_target_of_moving_rows_only(batch, wrong):
    x_t, r, t, v = batch
    moving = r < t
    free, held = (
        wrong(x_t, r, t) - AlphaFlow(clamp=clamp)(StudentCalls.of(wrong), x_t, r, t, 6 * v, progress=0.5).delta
        for clamp in (0.0, 4.0)
    )
    assert free[moving].abs().max() > 4
    torch.testing.assert_close(held[moving], free[moving].clamp(-4, 4))
    torch.testing.assert_close(held[~moving], 6 * v[~moving])
    assert (6 * v[~moving]).abs().max() > 4


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_at_the_exact_u_the_discrete_branch_errs_by_the_euler_step(flow, batch, alpha):
    """(t - r) delta = flow(x_s) - flow(x_t), both carried to r, with x_s one Euler step from x_t: O((t - s)^2)."""
    x_t, r, t, _ = batch
    objective = AlphaFlow(clamp=0.0)
    delta = objective(StudentCalls.of(flow.u), x_t, r, t, flow.v(x_t, t), progress=_progress_at(objective, alpha)).delta
    s = t - alpha * (t - r)
    arrived = flow.flow(jump(x_t, flow.v(x_t, t), s, t), r, s) - flow.flow(x_t, r, t)
    torch.testing.assert_close((t - r)[:, None, None] * delta, arrived)
    assert delta.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start": 0.5, "end": 0.5}, "start and end must satisfy 0 <= start < end <= 1, got 0.5 and 0.5"),
        ({"end": 1.5}, "end must satisfy"),
        ({"snap": 0.0}, "snap must lie in"),
        ({"gamma": 10.0}, "gamma must be at least 10.6"),
        ({"clamp": -1.0}, "clamp must be at least 0"),
    ],
)
def test_schedules_that_never_reach_meanflow_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        AlphaFlow(**fields)


def test_split_target_is_one_jump_for_two(batch, wrong):
    """jump(x_t, u_target, r, t) = jump(jump(x_t to s) to r) for any u."""
    x_t, r, t, v = batch
    moving = torch.nonzero(r < t).squeeze(1)
    shares = (0.3, 0.9)
    residual = SplitMeanFlow(shares=shares)(StudentCalls.of(wrong), x_t, r, t, v)
    target = (wrong(x_t, r, t) - residual.delta)[moving]
    x_t, r, t = x_t[moving], r[moving], t[moving]
    fraction = SplitMeanFlow(shares=shares).fraction_of(x_t).to(t.dtype)
    assert set(fraction.tolist()) == set(shares)
    s = t - fraction * (t - r)
    x_s = jump(x_t, wrong(x_t, s, t), s, t)
    torch.testing.assert_close(jump(x_t, target, r, t), jump(x_s, wrong(x_s, r, s), r, s))


def test_shares_of_a_split_are_as_frequent_as_each_other_and_belong_to_the_row():
    x = torch.randn(3000, 2, 3, generator=torch.Generator().manual_seed(0))
    fraction = SplitMeanFlow().fraction_of(x)
    for one in SplitMeanFlow().shares:
        assert abs((fraction == one).double().mean() - 1 / 3) < 4 * (2 / 9 / 3000) ** 0.5
    assert torch.equal(SplitMeanFlow().fraction_of(x[700:900]), fraction[700:900])


def test_split_needs_resting_rows(batch):
    """On moving rows u = 0 is a solution whatever v is: the boundary has to come from rows with r = t."""
    x_t, r, t, v = batch
    delta = SplitMeanFlow()(StudentCalls.of(lambda x, r, t: torch.zeros_like(x)), x_t, r, t, v).delta
    assert delta[r < t].abs().max() == 0
    torch.testing.assert_close(delta[::3], -v[::3])


@pytest.mark.parametrize("shares", [(), (0.0,), (0.5, 1.0), (float("nan"),)])
def test_shares_outside_the_interval_are_refused(shares):
    with pytest.raises(ValueError, match=r"shares must be one or more numbers in \(0, 1\)"):
        SplitMeanFlow(shares=shares)


@pytest.mark.parametrize("progress", [0.0, 0.6])
def test_consistency_compares_two_images_of_f_with_slow_weights(flow, batch, wrong, progress):
    """t delta = f_slow(x_s, s) - f(x_t, t) with f(x_t, t) = x_t - t u(x_t, 0, t); r makes no difference."""
    x_t, r, t, v = batch

    def slow(x, r, t):
        return 0.5 * wrong(x, r, t) - 0.2

    calls = StudentCalls(
        train=lambda rows: u_only(wrong), plain=lambda rows: pytest.fail("asked"), averaged=lambda rows: u_only(slow)
    )
    objective = ConsistencyTraining(coarse=0.4, fine=0.1)
    delta = objective(calls, x_t, r, t, v, progress=progress).delta
    zero = torch.zeros_like(t)
    s = t * (1 - 0.4 * 0.25**progress)
    x_s = jump(x_t, v, s, t)
    ends = jump(x_s, slow(x_s, zero, s), zero, s) - jump(x_t, wrong(x_t, zero, t), zero, t)
    torch.testing.assert_close(t[:, None, None] * delta, ends)
    torch.testing.assert_close(objective(calls, x_t, t, t, v, progress=progress).delta, delta, rtol=0, atol=0)


def test_consistency_leaves_the_exact_u_by_the_euler_step(flow, batch):
    """t delta = flow(x_s) - flow(x_t), both carried to 0, so a tenth of l leaves a hundredth of the error."""
    x_t, r, t, _ = batch
    v, zero = flow.v(x_t, t), torch.zeros_like(t)
    largest = []
    for fraction in (0.02, 0.002):
        delta = ConsistencyTraining(coarse=fraction, fine=fraction)(StudentCalls.of(flow.u), x_t, r, t, v).delta
        s = t * (1 - fraction)
        ends = flow.flow(jump(x_t, v, s, t), zero, s) - flow.flow(x_t, zero, t)
        torch.testing.assert_close(t[:, None, None] * delta, ends)
        largest.append(delta.abs().max().item())
    assert largest[0] / largest[1] == pytest.approx(100, rel=0.1)


def test_consistency_is_finite_at_the_data(flow):
    """At t = 0 nothing is divided by t: delta = l (u - v) + (1 - l) (u - u)."""
    x_t = torch.ones(3, 1, 2, dtype=torch.float64)
    t = torch.tensor([0.0, 1e-12, 1e-6], dtype=torch.float64)
    v = torch.full_like(x_t, 5.0)
    delta = ConsistencyTraining(coarse=0.25, fine=0.25)(StudentCalls.of(flow.u), x_t, t, t, v).delta
    torch.testing.assert_close(delta, 0.25 * (flow.v(x_t, t) - v), rtol=1e-4, atol=0)


def test_consistency_steps_go_from_coarse_to_fine():
    objective = ConsistencyTraining(coarse=0.5, fine=0.125)
    assert [objective.relative_step(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.5, 0.25, 0.125])


@pytest.mark.parametrize("fields", [{"fine": 0.0}, {"fine": 0.6}, {"coarse": 1.5}])
def test_wrong_shares_are_refused(fields):
    with pytest.raises(ValueError, match="fine and coarse must satisfy 0 < fine <= coarse <= 1"):
        ConsistencyTraining(**fields)
