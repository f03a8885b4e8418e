"""The MMAudio network: published sizes, recorded numbers, symmetries."""

from dataclasses import replace

import pytest
import torch

from teacher.conditions import Conditions
from teacher.embeddings import rotary, rotate
from teacher.network import MMAudio
from teacher.variants import MMAudioConfig, variant
from tests.golden.recipe import Recording, recorded_network


def small(**changes):
    base = MMAudioConfig(
        num_heads=2,
        head_dim=8,
        joint_depth=2,
        fused_depth=1,
        latent_channels=4,
        clip_dim=6,
        sync_dim=5,
        text_dim=7,
        text_tokens=3,
        mlp_multiple_of=8,
    )
    return replace(base, **changes)


def opened(config, seed=0):
    """A network with every branch open: the official initialisation outputs exactly zero."""
    torch.manual_seed(seed)
    net = MMAudio(config).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def conditions(config, batch=2):
    g = torch.Generator().manual_seed(7)
    has = torch.ones(batch, dtype=torch.bool)
    draw = lambda n, d: torch.randn(batch, n, d, generator=g, dtype=torch.float64)  # noqa: E731
    return Conditions(
        clip=draw(4, config.clip_dim),
        sync=draw(16, config.sync_dim),
        text=draw(config.text_tokens, config.text_dim),
        has_clip=has,
        has_sync=has,
        has_text=has,
    )


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("small_16k", 157_283_644),
        ("small_44k", 157_409_144),
        ("medium_44k", 621_805_944),
        ("large_44k", 1_030_002_168),
        ("large_44k_v2", 1_030_575_608),
    ],
)
def test_published_sizes(name, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in MMAudio(variant(name)).parameters()) == count


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_output_is_zero_at_initialisation(version):
    config = small(version=version)
    net, c = MMAudio(config).double(), conditions(config)
    assert net(torch.randn(2, 9, 4, dtype=torch.float64), torch.rand(2, dtype=torch.float64), c).abs().max() == 0


def test_unit_initialisation_keeps_signals_of_unit_size():
    """Every projection keeps a unit signal within a factor of three, and the output still starts at zero."""
    config = variant("tiny_16k")
    torch.manual_seed(0)
    net = MMAudio(config)
    net.initialise_unit()
    g = torch.Generator().manual_seed(1)
    has = torch.ones(4, dtype=torch.bool)
    unit = lambda n, d: torch.nn.functional.normalize(torch.randn(4, n, d, generator=g), dim=-1)  # noqa: E731
    sync = torch.randn(4, 40, 768, generator=g)
    c = Conditions(clip=unit(16, 1024), sync=sync, text=unit(77, 1024), has_clip=has, has_sync=has, has_text=has)
    encoded = net.encode_conditions(c, 63)
    for part in (encoded.clip, encoded.sync, encoded.text):
        assert 1 / 3 < part.std() < 3
    assert net(torch.randn(4, 63, 20, generator=g), torch.rand(4, generator=g), c).abs().max() == 0


def test_rows_do_not_depend_on_their_batch():
    config = small()
    net, c = opened(config), conditions(config, 3)
    x, t = torch.randn(3, 9, 4, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    torch.testing.assert_close(net(x, t, c)[1:2], net(x[1:2], t[1:2], c.rows(slice(1, 2))), rtol=0, atol=1e-12)


def test_absent_modalities_ignore_their_features_and_their_tokens_learn():
    config = small()
    net, c = opened(config), conditions(config)
    x, t = torch.randn(2, 9, 4, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    none = c.unconditional()
    other = replace(none, clip=none.clip + 1, sync=none.sync + 1, text=none.text + 1)
    out = net(x, t, none)
    torch.testing.assert_close(out, net(x, t, other), rtol=0, atol=0)
    assert (net(x, t, c) - out).abs().max() > 1e-3
    out.sum().backward()
    assert net.empty_clip_feat.grad.abs().max() > 0
    assert net.empty_sync_feat.grad.abs().max() > 0


def test_encoded_conditions_give_the_same_output_as_the_whole_call():
    config = small()
    net, c = opened(config), conditions(config)
    x, t = torch.randn(2, 9, 4, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    torch.testing.assert_close(net.predict(x, t, net.encode_conditions(c, 9)), net(x, t, c), rtol=0, atol=0)


def test_rotation_preserves_length_and_depends_on_relative_position(generator):
    """<R_a q, R_b k> is a function of a - b alone."""
    q, k = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    table = rotary(12, 8, device=torch.device("cpu"), dtype=torch.float64)
    rq, rk = rotate(q.expand(12, 8), table), rotate(k.expand(12, 8), table)
    torch.testing.assert_close(rq.norm(dim=-1), q.norm().expand(12))
    torch.testing.assert_close(rq[7] @ rk[4], rq[5] @ rk[2], rtol=1e-12, atol=1e-12)


def test_interval_goes_with_an_interval_embedding_only():
    config = small()
    net, c = opened(config), conditions(config)
    x, t = torch.randn(2, 9, 4, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="interval"):
        net(x, t, c, t)


def test_unknown_variant_lists_the_known_ones():
    with pytest.raises(ValueError, match="small_16k"):
        variant("smal_16k")


@pytest.mark.parametrize(
    "name", ["A1_mmaudio_16k_v1", "A2_mmaudio_44k_v1", "A3_mmaudio_44k_v2", "A4_mmaudio_16k_v1_explicit"]
)
@torch.no_grad()
def test_recorded_numbers_are_reproduced(recordings, name):
    """Ten times the agreement of two independent float32 implementations: 2e-5 of the largest value."""
    recording = Recording.read(recordings, name)
    net, c = recorded_network(recording)
    t = recording.tensors
    checks = {
        "out.forward": net(t["in.latent"], t["in.t"], c),
        "out.predict_flow_uncond": net(t["in.latent"], t["in.t"], c.unconditional()),
    }
    for key, value in checks.items():
        assert (value - t[key]).abs().max() <= 2e-5 * t[key].abs().max(), key
