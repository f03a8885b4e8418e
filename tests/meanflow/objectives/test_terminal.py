"""Terminal velocity matching: the one objective whose gradient runs through a derivative."""

import pytest
import torch
from torch import nn

from meanflow import AdaptiveL2, StudentCalls, TerminalVelocity, jump, u_only
from meanflow.config import dumps, loads
from tests.meanflow.objectives.test_improved_transition import Wrong, over


def test_terminal_exact_derivative_makes_the_exact_u_a_fixed_point(flow, batch):
    x_t, r, t, _ = batch
    residual = TerminalVelocity(derivative="exact")(StudentCalls.of(flow.u), x_t, r, t, flow.v(x_t, t))
    assert residual.delta.abs().max() < 1e-9
    assert residual.extra.abs().max() < 1e-9


def test_terminal_difference_is_of_second_order_everywhere(flow, batch):
    """Also at r = 0 and within eps of t, where the two further arrival times lie on one side."""
    x_t, r, t, v = batch
    r = torch.where(torch.arange(len(r)) % 6 == 2, t - 5e-4, r)
    u = Wrong(flow)
    exact = TerminalVelocity(derivative="exact")(StudentCalls.of(u), x_t, r, t, v).delta
    inside, left, right = (r > 0.01) & (t - r > 0.01), r == 0, (t - r < 1e-3) & (r < t)
    for rows, scale in ((inside, 1.0), (left, 1.0), (right, 1e-3)):
        errors = [
            (TerminalVelocity(eps=eps)(StudentCalls.of(u), x_t, r, t, v).delta - exact)[rows].abs().max().item()
            for eps in (2e-3, 1e-3)
        ]
        assert 0 < errors[1] < 1e-4 * scale
        assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_terminal_arrival_times_stay_between_data_and_t():
    t = torch.rand(2000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 3
    r = t * torch.rand(2000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    r[::4], r[1::4] = 0.0, t[1::4] * (1 - 1e-6)
    a, b = TerminalVelocity(eps=0.05).offsets(r, t)
    for offset in (a, b):
        assert bool((r + offset >= -1e-15).all())
        assert bool((r + offset <= t + 1e-15).all())
        assert bool((offset.abs() <= 0.1).all())
    torch.testing.assert_close((a - b).abs(), torch.where((a * b) < 0, 2 * a, a.abs()))
    inside = (r > 0.05) & (t - r > 0.05) & (t > 0.15)
    assert bool((a[inside] == 0.05).all())
    assert bool((b[inside] == -0.05).all())


@pytest.mark.parametrize("derivative", ["exact", "difference"])
def test_terminal_gradient_goes_through_the_derivative_and_not_through_the_arrival(flow, batch, derivative):
    """u = 0.8 u_exact + size phi: d delta / d size = phi - (t - r) d_r phi on moving rows, phi where r = t. Neither the
    place of arrival nor the velocity there adds to it."""
    x_t, r, t, v = batch
    net = Wrong(flow)
    delta = TerminalVelocity(derivative=derivative, eps=1e-4)(StudentCalls.of(net), x_t, r, t, v).delta
    (grad,) = torch.autograd.grad(delta.pow(2).sum(), net.size)
    phi, dphi = torch.func.jvp(lambda a: net.phi(x_t, a, t), (r,), (torch.ones_like(r),))
    expected = (2 * delta * (phi - over(t - r, x_t) * dphi)).sum().detach()
    torch.testing.assert_close(grad, expected, rtol=1e-6, atol=0)


def test_terminal_velocity_is_taken_where_the_jump_arrives(flow, batch):
    """With slow weights w and the present ones u: delta = d/dr [x_t - (t - r) u] - w(f, r, r) on moving rows."""
    x_t, r, t, v = batch
    net, moving = Wrong(flow), r < t

    def slow(x, r, t):
        return 1.5 * flow.u(x, r, t) + (r + t)[:, None, None]

    def teacher(x, t):
        return 0.5 * flow.v(x, t) + t[:, None, None]

    calls = StudentCalls(
        train=lambda rows: u_only(net),
        plain=lambda rows: pytest.fail("asked"),
        averaged=lambda rows: u_only(slow),
        teacher=lambda rows: teacher,
    )
    f, dfdr = torch.func.jvp(lambda a: jump(x_t, net(x_t, a, t), a, t), (r,), (torch.ones_like(r),))
    for source, there in (("self", slow(f, r, r)), ("teacher", teacher(f, r))):
        delta = TerminalVelocity(derivative="exact", source=source)(calls, x_t, r, t, v).delta
        torch.testing.assert_close(delta[moving], (dfdr - there)[moving])


def test_terminal_anchor_is_flow_matching_on_moving_rows(flow, batch):
    x_t, r, t, v = batch
    net, moving = Wrong(flow), (r < t)[:, None, None]
    for derivative in ("exact", "difference"):
        residual = TerminalVelocity(derivative=derivative)(StudentCalls.of(net), x_t, r, t, v)
        torch.testing.assert_close(residual.extra, torch.where(moving, net(x_t, t, t) - v, 0.0))
        free = TerminalVelocity(derivative=derivative, anchor=False)(StudentCalls.of(net), x_t, r, t, v)
        assert free.extra is None
        torch.testing.assert_close(free.delta, residual.delta)


def test_terminal_without_flow_matching_is_solved_by_nothing(batch):
    """u = 0 stays put and its velocity there is 0: only rows with r = t, the anchor or a teacher know better."""
    x_t, r, t, v = batch
    residual = TerminalVelocity(anchor=False)(StudentCalls.of(lambda x, r, t: 0 * x), x_t, r, t, v)
    assert residual.delta[r < t].abs().max() == 0


@pytest.mark.parametrize("anchor", [False, True])
def test_terminal_rows_of_the_one_call(flow, batch, anchor):
    """B + 2 M rows, and M more for the anchor, each on its own conditions."""
    x_t, r, t, v = batch
    seen = []

    def train(rows):
        seen.append(rows)
        return u_only(flow.u)

    TerminalVelocity(anchor=anchor)(StudentCalls(train=train, plain=lambda rows: u_only(flow.u)), x_t, r, t, v)
    moving = torch.nonzero(r < t).squeeze(1).tolist()
    assert [rows.tolist() for rows in seen] == [list(range(48)) + (3 if anchor else 2) * moving]


def test_terminal_exact_is_refused_across_processes(flow, batch, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="one process only; use 'difference'"):
        TerminalVelocity(derivative="exact")(StudentCalls.of(flow.u), *batch)


def test_terminal_exact_runs_through_attention_under_autocast(generator):
    class Attentive(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 24)
            self.outer = nn.Linear(8, 2)

        def forward(self, x, r, t):
            times = torch.stack([r, t], -1)[:, None].expand(-1, x.shape[1], -1)
            q, k, v = self.inner(torch.cat([x, times], -1)).unsqueeze(1).chunk(3, -1)
            return self.outer(nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1))

    net = Attentive()
    x_t, v = (torch.randn(6, 5, 2, generator=generator) for _ in range(2))
    t = torch.linspace(0.2, 1.0, 6)
    r = torch.tensor([0.2, 0.1, 0.0, 0.3, 0.5, 0.2])
    objective = TerminalVelocity(derivative="exact")
    grads = []
    for enabled in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            objective(StudentCalls.of(net), x_t, r, t, v).loss(AdaptiveL2(p=0.0)).mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert torch.nn.functional.cosine_similarity(*grads, dim=0) > 0.99  # bfloat16: 8 bits, errors of a per cent


def test_terminal_teacher_must_be_there(flow, batch):
    with pytest.raises(ValueError, match="source='teacher' needs a teacher"):
        TerminalVelocity(source="teacher")(StudentCalls.of(flow.u), *batch)


@pytest.mark.parametrize("fields", [{"derivative": "none"}, {"source": "data"}, {"eps": 0.0}])
def test_terminal_wrong_fields_are_refused_by_name(fields):
    with pytest.raises((ValueError, TypeError), match=next(iter(fields))):  # TypeError where annotations are checked
        TerminalVelocity(**fields)


def test_terminal_options_survive_the_file():
    objective = TerminalVelocity(derivative="exact", source="teacher", anchor=False)
    assert loads(TerminalVelocity, dumps(objective)) == objective
