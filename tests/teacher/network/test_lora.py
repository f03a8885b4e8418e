"""Adapters: the same function at the start, after merging, and under forward-mode differentiation."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from meanflow.config import dumps, loads
from teacher.flow_matching import FlowMatching, flow_matching_step
from teacher.network.lora import LoRAConfig, adapter_state, add_lora, load_adapter, lora_parameters, merge_lora
from teacher.network.mmaudio import MMAudio
from tests.teacher.network.test_network import conditions, opened, small
from tests.teacher.network.test_variants import synthetic


def state(config, batch=2):
    g = torch.Generator().manual_seed(5)
    return torch.randn(batch, 9, 4, generator=g, dtype=torch.float64), torch.rand(
        batch, generator=g, dtype=torch.float64
    )


def trained(net, seed=3):
    """As if trained: both factors non-zero."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in lora_parameters(net):
            p.copy_(0.3 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return net


def test_an_adapted_network_starts_as_the_same_function_exactly():
    """Bit for bit beside a frozen network: the library folds a product differently where the weight has a gradient."""
    config = small()
    net, c = opened(config).requires_grad_(False), conditions(config)
    x, t = state(config)
    before = net(x, t, c)
    add_lora(net, LoRAConfig(rank=3), generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(x, t, c), before)


def test_merging_keeps_the_function_and_restores_names_types_and_trainability():
    config = small()
    net, c = opened(config), conditions(config)
    x, t = state(config)
    names, kinds, flags = list(net.state_dict()), [type(m) for m in net.modules()], _flags(net)
    base = net(x, t, c)
    add_lora(
        net, LoRAConfig(rank=3, alpha=6.0, targets=("attn.qkv", "linear1", "ffn", "audio_input_proj", "clip_cond_proj"))
    )
    adapted = trained(net)(x, t, c)
    assert (adapted - base).abs().max() > 1e-3
    merge_lora(net)
    torch.testing.assert_close(net(x, t, c), adapted, rtol=1e-6, atol=1e-6)
    assert list(net.state_dict()) == names
    assert [type(m) for m in net.modules()] == kinds
    assert _flags(net) == flags


def _flags(net):
    return {n: p.requires_grad for n, p in net.named_parameters()}


def test_the_update_of_a_convolution_is_alpha_over_rank_b_a_read_as_a_kernel():
    """Checked against the dense kernel W + (alpha / rank) (B A), reshaped (out, in, k)."""
    config = small()
    net = opened(config)
    weight = net.fused_blocks[0].ffn.w1.weight.detach().clone()
    add_lora(net, LoRAConfig(rank=2, alpha=5.0, targets=("fused_blocks.0.ffn.w1",)))
    layer = trained(net).fused_blocks[0].ffn.w1
    x = torch.randn(2, 7, weight.shape[1], dtype=torch.float64)
    dense = weight + 2.5 * (layer.lora_b @ layer.lora_a).reshape(weight.shape)
    expected = nn.functional.conv1d(x.transpose(1, 2), dense, padding=1).transpose(1, 2)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)


def test_only_the_factors_get_gradients_and_their_number_follows_the_formula():
    """rank (out + in k) summed over the layers: qkv, linear1 and the three of each MLP in the 5 full streams (3 + 1 in
    the joint blocks, 1 fused), qkv alone in the 2 others of the last joint block."""
    config = small()
    net, c = opened(config), conditions(config)
    layers = {
        n: m.weight for n, m in net.named_modules() if n.endswith(("attn.qkv", "linear1", "ffn.w1", "ffn.w2", "ffn.w3"))
    }
    assert len(layers) == 5 * 5 + 2
    names = add_lora(net, LoRAConfig(rank=4))
    assert sorted(names) == sorted(f"{n}.lora_{f}" for n in layers for f in "ab")
    expected = sum(4 * (w.shape[0] + w[0].numel()) for w in layers.values())
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == expected
    assert sum(p.numel() for p in lora_parameters(net)) == expected
    x, t = state(config)
    trained(net)(x, t, c).square().mean().backward()
    with_gradient = {n for n, p in net.named_parameters() if p.grad is not None}
    assert with_gradient == set(names)


def test_forward_mode_deepcopy_and_functional_call_see_the_adapted_function():
    config = small()
    net, c = opened(config), conditions(config)
    add_lora(net, LoRAConfig(rank=3))
    trained(net)
    x, t = state(config)
    v, one = torch.randn_like(x), torch.ones_like(t)
    merged = copy.deepcopy(net)
    merge_lora(merged)
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        expected = torch.func.jvp(lambda a, b: merged(a, b, c), (x, t), (v, one))
        made = torch.func.jvp(lambda a, b: net(a, b, c), (x, t), (v, one))
        named = {n: p.detach() for n, p in net.named_parameters()}
        called = torch.func.jvp(lambda a, b: functional_call(net, named, (a, b, c)), (x, t), (v, one))
    for a, b, e in zip(made, called, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(b, e, rtol=1e-10, atol=1e-10)


def test_an_adapter_travels_without_its_network_and_knows_its_alpha():
    config = small()
    net, c = opened(config), conditions(config)
    plain, fresh = copy.deepcopy(net), copy.deepcopy(net)
    add_lora(net, LoRAConfig(rank=3, alpha=7.0))
    x, t = state(config)
    out = trained(net)(x, t, c)
    saved = adapter_state(net)
    assert not any("weight" in name for name in saved)
    load_adapter(plain, saved)
    torch.testing.assert_close(plain(x, t, c), out, rtol=0, atol=1e-12)
    add_lora(fresh, LoRAConfig(rank=3, alpha=1.0))
    load_adapter(fresh, saved)
    torch.testing.assert_close(fresh(x, t, c), out, rtol=0, atol=1e-12)
    assert [n for n, p in plain.named_parameters() if p.requires_grad] == [
        n for n, p in net.named_parameters() if p.requires_grad
    ]


def test_an_adapter_of_another_network_is_refused_and_changes_nothing():
    net = opened(small())
    add_lora(net, LoRAConfig(rank=3))
    saved, other = adapter_state(net), opened(small(num_heads=4))
    before = list(other.state_dict())
    with pytest.raises(ValueError, match="of another shape"):
        load_adapter(other, saved)
    shallow = opened(small())
    add_lora(shallow, LoRAConfig(rank=3, targets=("linear1",)))
    with pytest.raises(ValueError, match="unexpected"):
        load_adapter(shallow, saved)
    with pytest.raises(ValueError, match="lora_alpha"):
        load_adapter(other, net.state_dict())
    assert list(other.state_dict()) == before
    assert all(p.requires_grad for n, p in other.named_parameters() if n.endswith("qkv.weight"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: add_lora(opened(small()), LoRAConfig(targets=("atn.qkv",))), "'atn.qkv' selects no layer.*attn"),
        (lambda: add_lora(opened(small()), LoRAConfig(targets=("q_norm",))), "selects no layer"),
        (lambda: LoRAConfig(rank=0), "rank"),
        (lambda: LoRAConfig(alpha=0.0), "alpha"),
        (lambda: LoRAConfig(targets=()), "targets"),
        (lambda: merge_lora(opened(small())), "no adapters"),
        (lambda: adapter_state(opened(small())), "no adapters"),
    ],
)
def test_what_cannot_be_adapted_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_configuration_survives_json():
    config = LoRAConfig(rank=4, alpha=2.0, targets=("linear1",))
    assert loads(LoRAConfig, dumps(config)) == config


def test_adapters_are_not_stacked():
    net = opened(small())
    add_lora(net, LoRAConfig())
    with pytest.raises(ValueError, match="already has adapters"):
        add_lora(net, LoRAConfig())


def test_the_loss_falls_while_the_base_stays():
    """Twenty steps on one batch with fixed draws: the factors alone fit it better, the base is bit for bit the same."""
    config = small()
    net = opened(config).float()
    base = {n: p.clone() for n, p in net.state_dict().items()}
    add_lora(net, LoRAConfig(rank=4), generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.Adam(lora_parameters(net), lr=1e-2)
    batch, losses = synthetic(config), []
    for _ in range(20):
        g = torch.Generator().manual_seed(1)
        loss = flow_matching_step(net, batch, FlowMatching(), generator=g).loss.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(net.state_dict()[n], p) for n, p in base.items())


def test_a_bfloat16_network_is_adapted_in_its_precision():
    net = MMAudio(small()).bfloat16()
    add_lora(net, LoRAConfig(rank=2))
    assert {p.dtype for p in lora_parameters(net)} == {torch.bfloat16}
