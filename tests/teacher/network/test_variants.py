"""The paper's alternatives (tables 6, 7, A3): every one trains, differentiates forward and takes any length."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from meanflow import ForwardAD
from meanflow.config import from_plain, to_plain
from teacher.flow_matching import FlowMatching, flow_matching_step
from teacher.network.batch import Batch
from teacher.network.conditions import Conditions
from teacher.network.embeddings import TimestepEmbedder
from teacher.network.mmaudio import FROZEN_PARAMETERS, MMAudio
from teacher.network.sequence import SEQUENCE_44K
from teacher.network.variants import MMAudioConfig, variant
from tests.golden.recipe import masked
from tests.teacher.network.test_network import conditions, opened, small

CHOICES = [
    {"sync": "sum"},
    {"sync": "none"},
    {"rope": "default"},
    {"rope": "none"},
    {"mlp": "linear"},
    {"missing": "learned"},
    {"missing": "zeros"},
    {"sync": "none", "rope": "none", "mlp": "linear", "missing": "zeros", "version": "v2"},
    {"sync": "sum", "missing": "zeros"},
    {"sync": "sum", "missing": "learned", "time_precision": "bfloat16", "version": "v2"},
]
named = pytest.mark.parametrize("choice", [{}, *CHOICES], ids=lambda c: "-".join(c.values()) or "published")


def synthetic(config, batch=4, seed=2):
    """A batch of random latents whose loss is easy to lower: the latents are small, so the velocity is the noise."""
    g = torch.Generator().manual_seed(seed)
    return Batch(
        latents=0.1 * torch.randn(batch, 9, config.latent_channels, generator=g),
        conditions=conditions(config, batch).to("cpu", torch.float32),
        indices=torch.arange(batch),
    )


@named
def test_a_few_steps_lower_the_loss(choice):
    """From the published initialisation the loss starts at E||e - x||^2 = 1.01; thirty steps on fixed draws."""
    config = small(**choice)
    torch.manual_seed(0)
    net = MMAudio(config)
    batch, recipe, losses = synthetic(config), FlowMatching(), []
    optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(30):
        loss = flow_matching_step(net, batch, recipe, generator=torch.Generator().manual_seed(1)).loss.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0], losses


@named
def test_every_trainable_parameter_is_used(choice):
    """Some row lacks each modality, so the empty tokens too have gradients; two queries of the last joint block have
    none because nothing attends with them."""
    config = small(**choice)
    net, c = opened(config), conditions(config, 4)
    c = masked(c, video=torch.tensor([True, False, True, False]), text=torch.tensor([True, True, False, False]))
    x, t = torch.randn(4, 9, 4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    net(x, t, c).square().mean().backward()
    without = {n for n, p in net.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    assert without == {f"joint_blocks.1.{s}_block.attn.q_norm.weight" for s in ("clip", "text")}


@named
def test_forward_mode_agrees_with_differences_with_an_interval_too(choice):
    """d/de u(x + e v, r, t + e), the interval t - r embedded, by both; differences in float64.

    A time rounded to bfloat16 is a staircase, which has no such derivative: this is about the other choices.
    """
    config = small(**choice | {"time_precision": "float32"}, interval_embedding=True)
    net, c = opened(config), conditions(config)
    encoded = net.encode_conditions(c, 9)
    g = torch.Generator().manual_seed(1)
    x, v = torch.randn(2, 2, 9, 4, generator=g, dtype=torch.float64)
    r, t = torch.tensor([0.1, 0.4], dtype=torch.float64), torch.tensor([0.5, 0.9], dtype=torch.float64)

    def u(x, r, t):
        return net.predict(x, t, encoded, t - r)

    made = ForwardAD()(u, x, r, t, v)
    h = 1e-7 if config.version == "v2" else 1e-5
    differences = (u(x + h * v, r, t + h) - u(x - h * v, r, t - h)) / (2 * h)
    assert (made - differences).abs().max() < 1e-4 * made.abs().max()


def test_forward_mode_takes_a_rounded_time_for_the_time_itself():
    """d cos(t w) / dt = -w sin(t w) at the rounded w and t, to the rounding of a feature."""
    embedder = TimestepEmbedder(16, "v2", "bfloat16").double()
    embedder.mlp = torch.nn.Identity()
    embedder.mlp.register_parameter("dtype", torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)))
    t = torch.tensor([0.28], dtype=torch.float64)
    tangent = torch.func.jvp(embedder, (t,), (torch.ones_like(t),))[1][0, :8]
    phases = embedder.phases(t)[0]
    frequencies = embedder.frequencies(t).bfloat16().double()
    torch.testing.assert_close(tangent, -frequencies * phases.sin(), rtol=2**-8, atol=1e-6)


@named
@pytest.mark.parametrize(("latent", "image", "segments"), [(1, 1, 1), (7, 5, 2), (33, 3, 5), (50, 41, 1)])
def test_any_lengths_go_together(choice, latent, image, segments):
    config = small(**choice)
    net, g = opened(config), torch.Generator().manual_seed(0)
    has = torch.ones(2, dtype=torch.bool)
    draw = lambda n, d: torch.randn(2, n, d, generator=g, dtype=torch.float64)  # noqa: E731
    c = Conditions(
        clip=draw(image, config.clip_dim),
        sync=draw(8 * segments, config.sync_dim),
        text=draw(config.text_tokens, config.text_dim),
        has_clip=has,
        has_sync=has,
        has_text=has,
    )
    out = net(draw(latent, 4), torch.rand(2, dtype=torch.float64), c)
    assert out.shape == (2, latent, 4)
    assert out.isfinite().all()


@pytest.mark.parametrize("choice", CHOICES[:7], ids=lambda c: "-".join(c.values()))
def test_every_choice_changes_the_function(choice):
    """With equal shared weights and one row without text, each alternative gives another velocity."""
    published, other = opened(small()), opened(small(**choice))
    for name, parameter in other.named_parameters():
        if name in dict(published.named_parameters()) and parameter.shape == published.get_parameter(name).shape:
            parameter.data.copy_(published.get_parameter(name))
    c = masked(conditions(small()), video=torch.tensor([True, False]), text=torch.tensor([True, False]))
    x, t = torch.randn(2, 9, 4, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    assert (published(x, t, c) - other(x, t, c)).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("choice", "gone", "new"),
    [
        ({"sync": "sum"}, (), ()),
        ({"rope": "none"}, (), ()),
        ({"rope": "default"}, (), ()),
        ({"mlp": "linear"}, (), ()),
        ({"missing": "learned"}, (), ("empty_text_feat",)),
        ({"missing": "zeros"}, ("empty_clip_feat", "empty_sync_feat"), ()),
        ({"sync": "none"}, ("sync_input_proj", "sync_pos_emb", "empty_sync_feat"), ()),
    ],
)
def test_which_parameters_exist(choice, gone, new):
    published, made = (set(MMAudio(small(**c)).state_dict()) for c in ({}, choice))
    assert published - made == {n for n in published if n.startswith(gone) and gone}
    assert made - published == set(new)
    frozen = {n for n, p in MMAudio(small(**choice)).named_parameters() if not p.requires_grad}
    assert frozen == set(FROZEN_PARAMETERS)


@pytest.mark.parametrize(
    ("name", "count"), [("mlp_16k", 160_547_132), ("n2_13_16k", 157_393_724), ("n6_3_16k", 157_173_564)]
)
def test_comparisons_of_table_7_have_the_size_of_the_published_network(name, count):
    """ "roughly match the number of parameters": within 2.1 % of 157,283,644, and 0.1 % for the block ratios."""
    with torch.device("meta"):
        assert sum(p.numel() for p in MMAudio(variant(name)).parameters()) == count
    assert abs(count / 157_283_644 - 1) < (0.021 if name == "mlp_16k" else 0.001)


def test_linear_streams_mix_no_neighbours_before_attention_but_for_the_first_convolution():
    """With the input convolutions reduced to their centre, a token of a linear stream depends on its own input only."""
    net = opened(small(mlp="linear"))
    for stage in (net.audio_input_proj, net.sync_input_proj):
        stage[0].weight.data[:, :, [0, 1, 2, 4, 5, 6]] = 0
    x = torch.randn(1, 9, 4, dtype=torch.float64)
    moved = x.clone()
    moved[:, 4] += 1
    changed = (net.audio_input_proj(x) - net.audio_input_proj(moved)).abs().amax((0, 2)) > 0
    assert changed.nonzero().flatten().tolist() == [4]
    conv = opened(small())
    conv.audio_input_proj[0].weight.data[:, :, [0, 1, 2, 4, 5, 6]] = 0
    changed = (conv.audio_input_proj(x) - conv.audio_input_proj(moved)).abs().amax((0, 2)) > 0
    assert changed.sum() == 9


def test_summed_synchronisation_is_a_visual_stream_at_its_own_rate():
    """clip'_j = P_clip(clip[floor((j + 1/2) Tc / Ts)]) + P_sync(sync_j + position), in audio-frame units N / Ts; the
    modulation has no synchronisation, and the pooled condition is the mean of the summed stream."""
    config = small(sync="sum")
    net, c = opened(config), conditions(config)
    encoded = net.encode_conditions(c, 9)
    index = torch.tensor([int((j + 0.5) * 4 / 16) for j in range(16)])
    position = net.sync_pos_emb.flatten(1, 2).repeat(1, 2, 1)
    expected = net.clip_input_proj(c.clip[:, index]) + net.sync_input_proj(c.sync + position)
    torch.testing.assert_close(encoded.clip, expected, rtol=0, atol=1e-12)
    assert encoded.sync.shape == (2, 1, config.hidden_dim)
    assert not encoded.sync.any()
    pooled = net.global_cond_mlp(net.clip_cond_proj(expected.mean(1)) + net.text_cond_proj(encoded.text.mean(1)))
    torch.testing.assert_close(encoded.pooled, pooled, rtol=0, atol=1e-12)
    _, table = net.rotary_tables(9, 16, like=c.clip)
    assert float(table.sin[1, 0]) == pytest.approx(torch.tensor(9 / 16).sin().item())


def test_without_synchronisation_its_features_do_not_matter():
    config = small(sync="none")
    net, c = opened(config), conditions(config)
    x, t = torch.randn(2, 9, 4, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    other = replace(c, sync=torch.full((2, 3, 1), float("nan"), dtype=torch.float64))
    assert torch.equal(net(x, t, c), net(x, t, other))


@pytest.mark.parametrize(("rope", "scale"), [("aligned", 250 / 64), ("default", 1.0)])
def test_positions_of_the_visual_stream(rope, scale):
    """Angle of token p, pair i: p s 10000^(-2i/d)."""
    net = MMAudio(small(rope=rope))
    latent, clip = net.rotary_tables(250, 64, like=torch.zeros(1, dtype=torch.float64))
    p, i = torch.arange(64, dtype=torch.float64)[:, None], torch.arange(4, dtype=torch.float64)
    torch.testing.assert_close(clip.cos, torch.cos(p * scale * 1e4 ** (-i / 4)), rtol=0, atol=1e-10)
    torch.testing.assert_close(latent.cos[:64], torch.cos(p * 1e4 ** (-i / 4)), rtol=0, atol=1e-10)
    assert MMAudio(small(rope="none")).rotary_tables(250, 64, like=p) == (None, None)


def test_without_positions_the_order_of_images_does_not_matter_to_attention():
    """No rotation, no convolution: the visual stream is a set, so permuting the images changes nothing."""
    net, c = opened(small(rope="none", mlp="linear", joint_depth=1)), conditions(small())
    x, t = torch.randn(2, 9, 4, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(net(x, t, replace(c, clip=c.clip[:, order])), net(x, t, c), rtol=0, atol=1e-12)
    ordered = opened(small(mlp="linear", joint_depth=1))
    assert (ordered(x, t, replace(c, clip=c.clip[:, order])) - ordered(x, t, c)).abs().max() > 1e-3


def test_what_fills_in_for_text():
    config = small(missing="learned")
    net, c = opened(config), conditions(config)
    absent = c.unconditional()
    by_hand = replace(absent, text=net.empty_text_feat.detach().expand(2, 3, -1), has_text=~absent.has_text)
    x, t = torch.randn(2, 9, 4, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    assert torch.equal(net(x, t, absent), net(x, t, by_hand))
    blank = opened(small(missing="zeros"))
    zeros = replace(c, clip=0 * c.clip, sync=0 * c.sync, text=0 * c.text)
    assert torch.equal(blank(x, t, absent), blank(x, t, zeros))


@pytest.mark.parametrize("name", ["version", "sync", "rope", "mlp", "missing", "time_precision"])
def test_an_unknown_choice_names_the_known_ones(name):
    with pytest.raises(ValueError, match=rf"{name} must be one of \w+, \w+.*'blue'"):
        small(**{name: "blue"})


def test_a_configuration_written_before_the_choices_loads_as_the_published_network():
    config = replace(variant("small_16k"), sequence=SEQUENCE_44K)
    plain = to_plain(config)
    for name in ("sync", "rope", "mlp", "missing", "time_precision"):
        del plain[name]
    assert from_plain(MMAudioConfig, plain) == config
    chosen = small(sync="sum", rope="none", mlp="linear", missing="zeros", time_precision="bfloat16")
    assert from_plain(MMAudioConfig, to_plain(chosen)) == chosen


@pytest.mark.parametrize("choice", [{}, {"sync": "sum", "rope": "default"}], ids=["published", "sum"])
def test_a_network_cast_to_bfloat16_stays_close(choice):
    """bfloat16 keeps 8 bits, a relative error of up to 2^-9 = 0.2 % per rounding. Over the dozens of roundings of three
    blocks it stays below 3 % of the output, 10 % of a directional derivative (measured: 7 %). The state may be float32
    or bfloat16, and the answer comes in its dtype."""
    config = small(**choice)
    net, c = opened(config).float(), conditions(config).to("cpu", torch.float32)
    g = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 9, 4, generator=g), torch.rand(2, generator=g)
    expected = net(x, t, c)
    half = opened(config).bfloat16()
    made = half(x, t, c)
    assert made.dtype == torch.float32
    assert (made - expected).norm() < 0.03 * expected.norm()
    short = half(x.bfloat16(), t, c.to("cpu", torch.bfloat16))
    assert short.dtype == torch.bfloat16
    assert (short.float() - made).norm() < 0.03 * expected.norm()
    assert half.t_embed.phases(t).dtype == torch.float32
    torch.testing.assert_close(half.t_embed.phases(t), net.t_embed.phases(t), rtol=0, atol=0)
    v = torch.randn(x.shape, generator=g)
    with sdpa_kernel([SDPBackend.MATH]):
        exact, rounded = (torch.func.jvp(lambda a, n=n: n(a, t, c), (x,), (v,))[1] for n in (net, half))
    assert (rounded - exact).norm() < 0.1 * exact.norm()
