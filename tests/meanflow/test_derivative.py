"""Forward mode under everything a training may put around a network: exact, or refused in one line."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from meanflow import CentralDifference, ForwardAD
from meanflow.attention import attention


class Net(nn.Module):
    """A small u(x_t, r, t) with every kind of product there is a rule for; `attend` may be a foreign call."""

    def __init__(self, attend=attention, dropout=0.0, reentrant=None):
        super().__init__()
        self.into, self.qkv, self.out = nn.Linear(6, 8), nn.Linear(8, 24, bias=False), nn.Linear(8, 6)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.mix = nn.Parameter(torch.randn(8, 8) / 3)
        self.dropout, self.attend, self.reentrant = nn.Dropout(dropout), attend, reentrant

    def block(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        x = x + self.attend(q, k, v).transpose(1, 2).flatten(2)
        x = self.dropout(x + self.conv(x.transpose(1, 2)).transpose(1, 2))
        return x + x.sin() @ self.mix + torch.bmm(x, x.mT @ x).tanh()

    def forward(self, x, r, t):
        x = self.into(x) + (t.cos() + 0.3 * (t - r))[:, None, None]
        x = self.block(x) if self.reentrant is None else checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.out(F.layer_norm(x, (8,)))


def foreign_mha():
    """torch's own attention module, which calls scaled_dot_product_attention."""
    module = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)

    def attend(q, k, v):
        flat = (x.transpose(1, 2).flatten(2) for x in (q, k, v))
        return module(*flat, need_weights=False)[0].unflatten(2, (2, 4)).transpose(1, 2)

    return attend


def foreign_masked(q, k, v):
    """A mask keeps scaled_dot_product_attention in its MATH form."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@pytest.fixture
def point():
    g = torch.Generator().manual_seed(3)
    x, v = torch.randn(2, 3, 10, 6, generator=g, dtype=torch.float64)
    t = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    return x, t / 3, t, v


def make(**options):
    torch.manual_seed(0)
    return Net(**options).double()


@pytest.mark.parametrize("attend", [attention, F.scaled_dot_product_attention, foreign_masked, "mha"])
def test_forward_mode_agrees_with_differences(point, attend):
    """Error of the difference: eps^2 u''' / 6 + rounding 1e-16 / eps; at eps 1e-5 about 1e-10 each."""
    net = make(attend=foreign_mha() if attend == "mha" else attend)
    exact, differenced = ForwardAD()(net, *point), CentralDifference(eps=1e-5)(net, *point)
    assert not exact.requires_grad
    assert (exact - differenced).abs().max() < 1e-8 * exact.abs().max()


def test_forward_mode_agrees_with_reverse_mode(point):
    """Double backward through torch's own formulas: no rule of ours is in it."""
    x, r, t, v = point
    tangents = (v, torch.zeros_like(r), torch.ones_like(t))
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        expected = torch.autograd.functional.jvp(make(), (x, r, t), tangents)[1]
    torch.testing.assert_close(ForwardAD()(make(), *point), expected, rtol=0, atol=1e-12)


def test_a_tangent_of_weights_is_not_lost(point):
    """A product whose weight depends on the state (a hypernetwork) keeps the full product rule."""
    weight = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def u(x, r, t):
        scaled = weight * x.mean().exp()
        kernel = scaled[..., None] * t.sum()
        return F.linear(x, scaled, scaled[0]) + F.conv1d(x.mT, kernel, scaled[1]).mT + torch.ones_like(x) @ scaled

    exact, differenced = ForwardAD()(u, *point), CentralDifference(eps=1e-5)(u, *point)
    assert (exact - differenced).abs().max() < 1e-8 * exact.abs().max()


def test_sums_and_products_with_constants(point):
    """Numbers, constants of more dimensions than the state, either side, and a moving row of lower rank."""
    wide = torch.randn(3, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def u(x, r, t):
        row = t[:, None] if x.ndim == 2 else t[:, None, None]
        y = 2 * x + 1 - (wide - x) * wide + (x * row - 3.0) * x - torch.sub(wide, row, alpha=2)
        return torch.add(torch.mul(y, 0.5), wide).sum(0) * (1 - row) + (5 - x) + (row + torch.ones_like(x))

    exact, differenced = ForwardAD()(u, *point), CentralDifference(eps=1e-5)(u, *point)
    assert exact.shape == point[0].shape
    assert (exact - differenced).abs().max() < 1e-8 * exact.abs().max()


@pytest.mark.parametrize("inside", [torch.vmap, torch.func.grad, torch.func.jvp])
def test_transforms_inside_u(point, inside):
    """A u made of another transform, such as one with an energy's gradient in it, has its exact derivative."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
    transformed = {
        torch.vmap: lambda x, t: torch.vmap(lambda a, b: net(a) * b)(x, t),
        torch.func.grad: lambda x, t: torch.func.grad(lambda a: net(a).square().sum())(x),
        torch.func.jvp: lambda x, t: torch.func.jvp(net, (x,), (x.sin(),))[1],
    }[inside]

    def u(x, r, t):
        return transformed(x, t)

    exact, differenced = ForwardAD()(u, *point), CentralDifference(eps=1e-5)(u, *point)
    assert (exact - differenced).abs().max() < 1e-8 * exact.abs().max()


def test_derivative_costs_two_forwards(point):
    """Products of constant weights, for the value and the tangent. torch's own rule makes a third, by zeros."""
    net = nn.Sequential(
        nn.Linear(6, 32), nn.SiLU(), nn.Linear(32, 32, bias=False), nn.Tanh(), nn.Linear(32, 6)
    ).double()

    def u(x, r, t):
        return net(x * t[:, None, None])

    with FlopCounterMode(display=False) as forward:
        u(*point[:3])
    with FlopCounterMode(display=False) as derivative:
        ForwardAD()(u, *point)
    assert derivative.get_total_flops() == 2 * forward.get_total_flops()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_any_gradient_mode_around_it(point, mode):
    expected = ForwardAD()(make(), *point)
    with mode():
        made = ForwardAD()(make(), *point)
    torch.testing.assert_close(made, expected, rtol=0, atol=0)


def test_autocast_is_close_and_leaves_the_next_gradients_whole(point):
    """bfloat16 rounds to 2^-9 = 0.2 % per operation, with a dozen in a row: measured 0.7 %."""
    net, exact = make().float(), ForwardAD()(make(), *point)
    x, r, t, v = (a.float() for a in point)
    with torch.autocast("cpu", torch.bfloat16):
        made = ForwardAD()(net, x, r, t, v)
        loss = net(x, r, t).float().square().mean()
    loss.backward()
    assert (made.double() - exact).norm() < 0.02 * exact.norm()
    alone = make().float()
    with torch.autocast("cpu", torch.bfloat16):
        alone(x, r, t).float().square().mean().backward()
    for (name, a), b in zip(net.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0, msg=name)


def test_checkpointing_without_reentry_is_exact(point):
    torch.testing.assert_close(ForwardAD()(make(reentrant=False), *point), ForwardAD()(make(), *point), rtol=0, atol=0)


def test_reentrant_checkpointing_is_refused(point):
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        ForwardAD()(make(reentrant=True), *point)


@pytest.mark.parametrize("derivative", [ForwardAD(), CentralDifference()])
def test_random_numbers_inside_are_refused(point, derivative):
    net = make(dropout=0.5)
    with pytest.raises(RuntimeError, match="random numbers"):
        derivative(net, *point)
    assert derivative(net.eval(), *point).abs().min() > 0


def test_a_lost_tangent_is_refused_and_a_constant_is_not(point):
    net = make()

    def detached(x, r, t):
        return net(x.detach(), r.detach(), t.detach())

    for u in (torch.inference_mode()(net), detached):
        with pytest.raises(RuntimeError, match="loses the tangent"):
            ForwardAD()(u, *point)
    constant = torch.randn_like(point[0])
    assert torch.equal(ForwardAD()(lambda x, r, t: constant, *point), torch.zeros_like(constant))


def test_operators_without_forward_mode_are_named(point):
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad

    with pytest.raises(RuntimeError, match=r"custom autograd\.Function"):
        ForwardAD()(lambda x, r, t: Opaque.apply(x), *point)


def test_what_is_wrong_inside_u_keeps_its_own_error(point):
    with pytest.raises(RuntimeError, match="size of tensor"):
        ForwardAD()(lambda x, r, t: x + torch.ones(7, dtype=x.dtype), *point)


@pytest.mark.parametrize("kind", ["state", "time", "autocast", "result"])
def test_differences_refuse_low_precision(point, kind):
    x, r, t, v = (a.float() for a in point)
    net = make().float()
    if kind == "state":
        x, v = x.bfloat16(), v.bfloat16()
    if kind == "time":
        r, t = r.bfloat16(), t.bfloat16()
    u = (lambda *a: net(*a).bfloat16()) if kind == "result" else net
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"), pytest.raises(ValueError, match="float32"):
        CentralDifference()(u, x, r, t, v)


COMPILED = """
import torch
from tests.meanflow.test_derivative import make
from meanflow import ForwardAD
x, v = torch.randn(2, 3, 10, 6, dtype=torch.float64)
t = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
point = (x, t / 3, t, v)
expected = ForwardAD()(make(), *point)
calls = []
def backend(graph, inputs):
    return lambda *a: (calls.append(1), graph.forward(*a))[1]
net, u = make(), None
u = torch.compile(net, backend=backend) if METHOD == "function" else (net.compile(backend=backend), net)[1]
for _ in range(2):  # before the first compiled call and after it
    calls.clear()
    assert torch.equal(ForwardAD()(u, *point), expected)
    assert not calls
    u(*point[:3]).sum().backward()
    assert calls, "the forward with gradients no longer runs compiled"
step = torch.compile(lambda *a: ForwardAD()(net, *a) + 1, backend=backend)
try:
    step(*point)
except RuntimeError as error:
    assert "inside a compiled function" in str(error), error
else:
    raise AssertionError("not refused")
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["function", "module"])
def test_compiled_networks_are_exact_and_stay_compiled(method):
    """In a process of its own, before anything has been compiled. Dynamo takes seconds to load."""
    code = COMPILED.replace("METHOD", repr(method))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
