"""The MMAudio network: published sizes and names, recorded numbers, symmetries."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from teacher.network.blocks import ChannelLastConv1d, channel_last_conv
from teacher.network.conditions import Conditions
from teacher.network.embeddings import TimestepEmbedder, rotary, rotate
from teacher.network.mmaudio import FROZEN_PARAMETERS, MMAudio
from teacher.network.sequence import SEQUENCE_16K, SEQUENCE_44K
from teacher.network.variants import RMS_NORM_EPS_BFLOAT16, MMAudioConfig, variant
from tests.golden.network import mmaudio_network
from tests.golden.recipe import Recording, recorded_config

GOLDEN = Path(__file__).parents[2] / "golden"
PUBLISHED = ("small_16k", "small_44k", "medium_44k", "large_44k", "large_44k_v2")


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


@pytest.mark.parametrize("size", [1, 3, 7])
def test_convolution_along_tokens_is_the_native_one(size):
    """The matrix form taken on a CPU against the library's convolution, at lengths below the kernel too."""
    g = torch.Generator().manual_seed(0)
    conv = ChannelLastConv1d(4, 5, size).double()
    for frames in (1, 2, 9):
        x = torch.randn(2, frames, 4, generator=g, dtype=torch.float64)
        native = torch.nn.functional.conv1d(x.transpose(1, 2), conv.weight, conv.bias, padding=size // 2)
        torch.testing.assert_close(conv(x), native.transpose(1, 2), rtol=0, atol=1e-12)
        elsewhere = channel_last_conv(x.to("meta"), conv.weight.to("meta"), conv.bias.to("meta"))
        assert elsewhere.shape == conv(x).shape


# Durations and lengths of the specification: latent at 16 kHz and 44.1 kHz, image and synchronisation features.
LENGTHS = [
    (1, 32, 44, 8, 16),
    (2, 63, 87, 16, 40),
    (5, 157, 216, 40, 112),
    (8, 250, 345, 64, 192),
    (10, 313, 431, 80, 240),
    (30, 938, 1292, 240, 736),
]


@pytest.mark.parametrize(("duration_s", "n16", "n44", "image", "sync"), LENGTHS)
def test_lengths_follow_the_duration(duration_s, n16, n44, image, sync):
    c = Conditions.empty(1, duration_s)
    assert (SEQUENCE_16K.latent_frames(duration_s), SEQUENCE_44K.latent_frames(duration_s)) == (n16, n44)
    assert (c.clip.shape[1], c.sync.shape[1]) == (image, sync)


@pytest.mark.parametrize("duration_s", [0.64, 0.97, 1.28, 3.333])
@torch.no_grad()
def test_any_duration_goes_through_the_network(duration_s):
    """Real widths and the lengths of odd durations, down to one segment."""
    net = MMAudio(variant("debug_16k"))
    frames = net.config.sequence.latent_frames(duration_s)
    out = net(torch.randn(1, frames, 20), torch.rand(1), Conditions.empty(1, duration_s))
    assert out.shape == (1, frames, 20)


def test_interval_goes_with_an_interval_embedding_only():
    config = small()
    net, c = opened(config), conditions(config)
    x, t = torch.randn(2, 9, 4, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="interval"):
        net(x, t, c, t)


def test_unknown_variant_lists_the_known_ones():
    with pytest.raises(ValueError, match="small_16k"):
        variant("smal_16k")


@pytest.fixture(scope="module", params=["A1_mmaudio_16k_v1", "A3_mmaudio_44k_v2"])
def recorded(request):
    """A recording of the reference implementation at small width, first and second version."""
    return Recording.read(GOLDEN / "recordings", request.param)


def test_recorded_numbers_are_reproduced(recorded):
    """Every output within ten times the agreement of two independent implementations, float64 to 1e-10."""
    deviations = list(mmaudio_network(recorded))
    assert len(deviations) > len(recorded.document["outputs"])
    assert [d for d in deviations if not d.value <= d.tolerance] == []


def test_a_recorded_output_that_nothing_makes_is_a_failure(recorded):
    document = recorded.document | {"outputs": {"forward": {}, "forward.twice": {}}}
    beyond = [d for d in mmaudio_network(Recording(document, recorded.tensors)) if not d.value <= d.tolerance]
    assert [d.name for d in beyond] == ["forward.twice: not made here"]


def test_recorded_numbers_notice_a_small_change(recorded):
    """A state off by 1e-4 is seen by every output that depends on it, and by no other."""
    moved = {"forward", "ode_wrapper.cfg4.5", "trace.joint_blocks.0.latent", "f64.jvp.tangent"}
    document = recorded.document | {"outputs": dict.fromkeys([*moved, "cond.clip_f", "table.clip_rot"])}
    tensors = recorded.tensors | {"in.latent": recorded.tensors["in.latent"] * (1 + 1e-4)}
    beyond = {d.name for d in mmaudio_network(Recording(document, tensors)) if not d.value <= d.tolerance}
    assert beyond == moved


def test_a_recording_without_a_modality_stands_for_the_learned_tokens(recorded):
    """What is not stored is absent: with all three gone the conditional outputs are the unconditional ones.

    The network was built for other lengths and re-sized since, which changes nothing but the lengths of what is absent.
    """
    absent = {n: t for n, t in recorded.tensors.items() if n not in ("in.clip_f", "in.sync_f", "in.text_f")}
    for name in ("clip_f", "sync_f", "text_f", "clip_f_c", "text_f_c"):
        absent[f"out.cond.{name}"] = absent[f"out.empty_cond.{name}"]
    absent["out.forward"] = absent["out.predict_flow_uncond"]
    outputs = {n: {} for n in recorded.document["outputs"] if n.startswith(("cond.", "empty_cond.", "forward"))}
    config = recorded.document["config"]
    built = {"latent_seq_len": 250, "clip_seq_len": 64, "sync_seq_len": 192}
    resized = config | built | {"update_seq_lengths": [config[name] for name in built]}
    document = recorded.document | {"outputs": outputs, "config": resized}
    made = {d.name: d for d in mmaudio_network(Recording(document, absent)) if d.name in outputs}
    assert set(made) == set(outputs)
    assert [d for d in made.values() if not d.value <= d.tolerance] == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_shapes_and_dtypes_are_those_of_the_published_checkpoints(name):
    manifest = json.loads((GOLDEN / "manifests" / f"mmaudio_{name}.json").read_text())
    config = variant(name)
    assert replace(recorded_config(manifest["config"]), sequence=config.sequence) == config
    assert config.sequence.latent_frames(8.0) == manifest["config"]["latent_seq_len"]
    with torch.device("meta"):
        net = MMAudio(config)
    expected = dict(expand(manifest["tensors"]))
    assert {n: list(t.shape) for n, t in net.state_dict().items()} == expected
    assert len(expected) == manifest["num_tensors"]
    assert {t.dtype for t in net.state_dict().values()} == {getattr(torch, manifest["dtype"])}
    assert sum(p.numel() for p in net.parameters()) == manifest["num_parameters"]
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == manifest["num_trainable_parameters"]
    assert sorted(FROZEN_PARAMETERS) == sorted(manifest["non_trainable_parameters"])


def expand(tensors):
    """(name, shape) of every tensor; "blocks.{0..3}.x" stands for four names."""
    for name, shape in tensors:
        found = re.search(r"\{(\d+)\.\.(\d+)\}", name)
        indices = range(int(found[1]), int(found[2]) + 1) if found else (None,)
        for i in indices:
            yield (name if found is None else name.replace(found[0], str(i))), shape


def test_a_negative_prompt_replaces_the_empty_text_alone():
    config = small()
    net, c = opened(config), conditions(config)
    prompt = torch.randn(1, 3, 7, dtype=torch.float64)
    negative = c.unconditional(prompt)
    by_hand = replace(
        c,
        clip=net.empty_clip_feat.detach().expand_as(c.clip),
        sync=net.empty_sync_feat.detach().expand_as(c.sync),
        text=prompt.expand_as(c.text),
    )
    x, t = torch.randn(2, 9, 4, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    assert torch.equal(net(x, t, negative), net(x, t, by_hand))
    torch.testing.assert_close(net(x, t, c.unconditional(prompt.expand(2, 3, 7))), net(x, t, negative), rtol=0, atol=0)
    empty = net.empty_string_feat.detach()[None]
    assert torch.equal(net(x, t, c.unconditional(empty)), net(x, t, c.unconditional()))
    for wrong in (prompt[:, :2], prompt.expand(3, 3, 7), prompt[0]):
        with pytest.raises(ValueError, match="negative_text"):
            c.unconditional(wrong)


def phase_errors(version, hidden_dim, t):
    """|phase in bfloat16 - exact phase|, radians, per frequency."""
    rounded, exact = TimestepEmbedder(hidden_dim, version, "bfloat16"), TimestepEmbedder(hidden_dim, version)
    return (rounded.phases(torch.tensor([t]))[0] - exact.phases(torch.tensor([t], dtype=torch.float64))[0]).abs()


@pytest.mark.parametrize(("t", "v1", "v2", "share"), [(0.28, 0.0009, 11.6, 0.417), (0.96, 0.0020, 35.4, 0.484)])
def test_what_bfloat16_does_to_the_phases_of_time(t, v1, v2, share):
    """At 10^4 rad per unit a bfloat16 frequency is off by up to 32 rad per unit, a time near 1 by up to 2^-9.

    The published account: at most 0.002 rad in the first version; 11.6 rad at t = 0.28 and 35 rad at t = 0.96 in the
    second (hidden 896), where 42 to 48 % of the frequencies are off by more than 0.1 rad.
    """
    assert float(phase_errors("v1", 448, t).max()) == pytest.approx(v1, abs=1e-4)
    errors = phase_errors("v2", 896, t)
    assert float(errors.max()) == pytest.approx(v2, abs=0.05)
    assert float((errors > 0.1).double().mean()) == pytest.approx(share, abs=1e-3)


def test_the_documented_extremes_over_the_25_euler_times():
    worst = {v: max(float(phase_errors(v, h, k / 25).max()) for k in range(25)) for v, h in (("v1", 448), ("v2", 896))}
    assert worst["v1"] == pytest.approx(0.0028, abs=1e-4)
    assert worst["v2"] == pytest.approx(42.2, abs=0.1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_rounded_time_features_match_an_embedding_cast_to_bfloat16(precision):
    """The demo's arithmetic by hand: bfloat16 table and time, float32 product, bfloat16 features."""
    net = MMAudio(small(version="v2", time_precision=precision)).bfloat16()
    seen = []
    net.t_embed.mlp.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    t = torch.tensor([0.28, 0.96])
    net.t_embed(t)
    i = torch.arange(0, 16, 2)
    table = 1e4 / 1e4 ** (i / 16)
    time = t
    if precision == "bfloat16":
        table, time = table.bfloat16().float(), t.bfloat16().float()
    product = time[:, None] * table
    expected = torch.cat([product.cos(), product.sin()], 1).bfloat16()
    assert seen[0].dtype == torch.bfloat16
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=4e-3)


def test_the_older_epsilon_of_bfloat16_is_a_choice():
    """x / sqrt(mean x^2 + eps): with a mean square of 2^-7 an epsilon of that size shrinks the result by sqrt 2."""
    norm = MMAudio(small(rms_norm_eps=RMS_NORM_EPS_BFLOAT16)).fused_blocks[0].attn.q_norm
    x = torch.full((1, 8), 2**-3.5)
    torch.testing.assert_close(norm(x), torch.full((1, 8), 0.5**0.5))
    torch.testing.assert_close(MMAudio(small()).fused_blocks[0].attn.q_norm(x), torch.ones(1, 8), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": torch.zeros(2, 4, 5)}, r"image features must be \(B, 1 or more, 6\)"),
        ({"sync": torch.zeros(2, 12, 5)}, r"synchronisation features must be \(B, 8 per segment, 5\)"),
        ({"text": torch.zeros(2, 4, 7)}, r"text features must be \(B, 3, 7\)"),
    ],
)
def test_features_of_another_shape_are_named(change, message):
    config = small()
    with pytest.raises(ValueError, match=message):
        MMAudio(config).encode_conditions(replace(conditions(config), **change), 9)
