"""The derivative of the MMAudio network: exact, only on rows that move, and at the counted cost."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.meanflow_step import Step, flops, opened, random_conditions
from meanflow import CentralDifference, ForwardAD, MeanFlow, StudentCalls, u_only
from teacher.network.mmaudio import MMAudio
from teacher.network.variants import VARIANTS, replace
from teacher.network.velocity import student_velocity

FRAMES = 31


def _network(name, dtype=torch.float64):
    torch.manual_seed(0)
    net = MMAudio(replace(VARIANTS[name], interval_embedding=True))
    return opened(net, torch.Generator().manual_seed(1)).to(dtype)


def _point(net, rows=2, seed=2):
    g, dtype = torch.Generator().manual_seed(seed), net.final_layer.conv.weight.dtype
    encoded = net.encode_conditions(random_conditions(net.config, rows, 1.0, g).to("cpu", dtype), FRAMES)
    x, v = torch.randn(2, rows, FRAMES, net.config.latent_channels, generator=g, dtype=torch.float64).to(dtype)
    t = torch.linspace(0.4, 0.9, rows, dtype=torch.float64).to(dtype)
    return type(encoded)(*(part.detach() for part in encoded)), (x, t / 2, t, v)


def _u(net, encoded):
    return lambda x, r, t: student_velocity(net, x, r, t, encoded)


@pytest.mark.parametrize("name", ["debug_16k", "tiny_16k"])
def test_forward_mode_agrees_with_differences(name):
    """eps 1e-5 in float64: eps^2 and 1e-16 / eps, both near 1e-10."""
    net = _network(name)
    encoded, point = _point(net)
    u = _u(net, encoded)
    exact, differenced = ForwardAD()(u, *point), CentralDifference(eps=1e-5)(u, *point)
    assert exact.abs().max() > 0.01
    assert (exact - differenced).abs().max() < 1e-7 * exact.abs().max()


def test_rows_that_do_not_move_never_enter():
    net = _network("debug_16k")
    encoded, (x, r, t, v) = _point(net, rows=5)
    r = torch.where(torch.tensor([True, False, True, True, False]), t, r)
    entered = []

    def plain(rows):
        entered.append(rows.tolist())
        some = encoded.rows(rows)

        def u(x, r, t):
            assert len(x) == 2
            return student_velocity(net, x, r, t, some)

        return u_only(u)

    residual = MeanFlow()(StudentCalls(train=lambda rows: u_only(_u(net, encoded)), plain=plain), x, r, t, v)
    assert entered == [[1, 4]]
    assert residual.correction[[0, 2, 3]].abs().max() == 0
    assert residual.correction[[1, 4]].abs().max() > 0


@pytest.mark.parametrize("name", ["debug_16k", "tiny_16k"])
def test_autocast_error_and_whole_gradients(name):
    """bfloat16 autocast against float64, then the gradients of a forward in the same region against those without
    a derivative before it: to the bit.

    Each of at most five blocks rounds some twelve tensors and their tangents to 2^-9, which add up like independent
    errors: sqrt(5 * 24) 2^-9 = 0.021, and processors round in other places, half as much again.
    """
    exact_net = _network(name)
    encoded, point = _point(exact_net)
    exact = ForwardAD()(_u(exact_net, encoded), *point)
    net = _network(name, torch.float32)
    encoded, point = _point(net)
    gradients = []
    for derive in (True, False):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            if derive:
                made = ForwardAD()(_u(net, encoded), *point)
            loss = _u(net, encoded)(*point[:3]).float().square().mean()
        loss.backward()
        gradients.append([p.grad for p in net.parameters()])
    error = ((made.double() - exact).norm() / exact.norm()).item()
    assert error < 0.032, error
    assert sum(g is not None for g in gradients[0]) == sum(g is not None for g in gradients[1])
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


def test_checkpointed_blocks():
    """Every block recomputed in backward: the derivative to the bit, and refused in one line with reentry."""
    net = _network("tiny_16k")
    encoded, point = _point(net)
    expected = ForwardAD()(_u(net, encoded), *point)
    for reentrant in (False, True):
        wrapped = copy.deepcopy(net)
        for block in [*wrapped.joint_blocks, *wrapped.fused_blocks]:
            inner = block.forward
            block.forward = lambda *a, inner=inner, flag=reentrant: checkpoint(inner, *a, use_reentrant=flag)
        if reentrant:
            with pytest.raises(RuntimeError, match="use_reentrant=False"):
                ForwardAD()(_u(wrapped, encoded), *point)
        else:
            assert torch.equal(ForwardAD()(_u(wrapped, encoded), *point), expected)
            _u(wrapped, encoded)(*point[:3]).square().mean().backward()


def test_cost_of_a_step_is_that_of_its_products():
    """(b)/(a) with a quarter of the rows: counted products, fused attention included.

    A forward of F per row has a backward of 2 F, so a plain step of n rows costs 3 n F and the derivative 2 F on
    each of n / 4 rows: 3.5 / 3 = 1.167. Attention deviates: its backward recomputes the scores (2.5 times its forward,
    not 2) and its tangent takes three times its forward, not 2; the first layers' inputs need no gradient; conditions
    are encoded without a tangent. All of that is within 2 %. A derivative on all rows would cost 1.67, and with torch's
    own rule for products a quarter costs 1.25.
    """
    made = {
        name: flops(Step(name, VARIANTS["tiny_16k"], batch=4, duration_s=1.0, device="cpu", bf16=False))
        for name in ("plain", "project", "double")
    }
    assert made["project"] / made["plain"] == pytest.approx(3.5 / 3, rel=0.02)
    assert made["project"] < 0.8 * made["double"]  # 3.5 F against 5 F: two forwards' worth of tangent on every row


def test_derivative_of_the_network_costs_two_forwards():
    """All products but those of attention, to the operation: the kernel chunks three for one."""
    net = _network("tiny_16k", torch.float32)
    encoded, point = _point(net)
    u = _u(net, encoded)
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        u(*point[:3])
    with FlopCounterMode(display=False) as derivative:
        ForwardAD()(u, *point)
    config, visual = net.config, encoded.clip.shape[1]
    tokens = [(FRAMES + visual + config.text_tokens, config.joint_depth), (FRAMES, config.fused_depth)]
    attention = sum(depth * 2 * 2 * 2 * n * n * config.hidden_dim for n, depth in tokens)
    assert derivative.get_total_flops() == 2 * forward.get_total_flops() + 3 * attention
