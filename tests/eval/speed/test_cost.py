"""Counts of operations and bytes equal their closed forms."""

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional

from eval.speed.budget import StageCost
from eval.speed.cost import count
from teacher.network.conditions import Conditions
from teacher.network.mmaudio import MMAudio
from teacher.network.variants import variant

F = 4  # bytes of a float32


def cost_of(call):
    with torch.no_grad():
        return count(call).cost


def test_a_linear_layer_costs_two_flops_per_multiply_add_and_reads_everything_once():
    layer, x = nn.Linear(100, 50), torch.randn(8, 100)
    size = F * (8 * 100 + 100 * 50 + 50 + 8 * 50)
    assert cost_of(lambda: layer(x)) == StageCost(flops=2 * 8 * 100 * 50, bytes=size, traffic=size, operators=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_convolution(dtype):
    layer, x = nn.Conv1d(3, 5, 7, padding=3).to(dtype), torch.randn(2, 3, 40).to(dtype)
    size = dtype.itemsize * (2 * 3 * 40 + 3 * 5 * 7 + 5 + 2 * 5 * 40)
    # Every one of 2 * 5 * 40 outputs is a sum of 3 * 7 products.
    assert cost_of(lambda: layer(x)) == StageCost(flops=2 * 2 * 5 * 40 * 3 * 7, bytes=size, traffic=size, operators=1)


def test_attention_is_two_products_of_all_queries_with_all_keys():
    q, k, v = torch.randn(2, 4, 10, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 8)
    counted = count(lambda: functional.scaled_dot_product_attention(q, k, v))
    assert counted.cost.flops == 2 * 2 * 4 * 10 * 7 * (8 + 8)
    assert counted.cost.bytes == F * (q.numel() + k.numel() + v.numel() + q.numel())
    assert any("attention" in name for name in counted.attention)


def test_what_is_made_on_the_way_is_traffic_but_need_not_be_moved():
    first, second, x = nn.Linear(16, 32), nn.Linear(32, 4), torch.randn(8, 16)
    weights = sum(p.numel() for layer in (first, second) for p in layer.parameters())
    least = F * (x.numel() + weights + 8 * 4)
    cost = cost_of(lambda: second(torch.tanh(first(x))))
    # The hidden layer, 8 x 32, is written and read twice: before and after the tanh.
    assert (cost.bytes, cost.traffic, cost.operators) == (least, least + F * 4 * 8 * 32, 3)


def test_every_evaluation_reads_the_weights_again():
    layer, x = nn.Linear(16, 16), torch.randn(8, 16)

    def steps(n):
        y = x
        for _ in range(n):
            y = layer(y)
        return y

    once, five = cost_of(lambda: steps(1)), cost_of(lambda: steps(5))
    assert five.flops == 5 * once.flops
    assert five.bytes - once.bytes == 4 * F * sum(p.numel() for p in layer.parameters())


def test_views_move_nothing_and_an_expanded_dimension_is_read_once():
    x = torch.randn(8, 100)
    assert cost_of(lambda: (x.t().view(2, 50, 8)[:, :3], None)[1]) == StageCost(
        flops=0, bytes=0, traffic=0, operators=0
    )
    row = torch.randn(8, 100)[:1]
    assert cost_of(lambda: row.expand(8, 100) + x).bytes == F * (100 + 800 + 800)
    assert cost_of(lambda: x * x).traffic == F * 2 * 800  # one tensor, read once


def test_a_lookup_reads_the_rows_it_takes():
    table, rows = nn.Embedding(1000, 16), torch.tensor([3, 1, 4])
    assert cost_of(lambda: table(rows)).bytes == F * 2 * 3 * 16 + 3 * 8  # int64 indices


def test_writing_in_place():
    x, y = torch.randn(100), torch.randn(100)
    assert cost_of(lambda: x.add_(y)).traffic == F * 300  # reads both, writes one
    assert cost_of(lambda: x.copy_(y)).traffic == F * 200  # what is overwritten is not read
    assert cost_of(lambda: torch.add(y, y, out=x)).traffic == F * 200
    assert cost_of(lambda: torch.empty(100)).operators == 0


def test_inference_mode_counts_the_same():
    layer, x = nn.Linear(100, 50), torch.randn(8, 100)
    with torch.inference_mode():
        assert count(lambda: layer(x)).cost == cost_of(lambda: layer(x))


def test_an_evaluation_of_the_small_network_costs_what_was_counted_by_hand():
    # 57.3 GFLOP for 8 s at 16 kHz (250 latent frames), 315 MB of weights in bfloat16; 4.0 for the part done once.
    with FakeTensorMode():
        net = MMAudio(variant("small_16k"))
        c, x, t = Conditions.empty(1, 8.0), torch.randn(1, 250, 20), torch.full((1,), 0.3)
        encoded = net.encode_conditions(c, 250)
        once = cost_of(lambda: net.encode_conditions(c, 250))
        each = cost_of(lambda: net.predict(x, t, encoded))
    assert once.flops == pytest.approx(4.0e9, rel=0.02)
    assert each.flops == pytest.approx(57.3e9, rel=0.01)
    assert once.bytes + each.bytes == pytest.approx(2 * 315e6, rel=0.02)  # float32 is twice as long


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="traffic must not be negative, got -1"):
        StageCost(flops=0, bytes=0, traffic=-1, operators=0)
