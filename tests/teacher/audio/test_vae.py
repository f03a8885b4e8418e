"""The VAE: published names, recorded numbers, weights normalised exactly once, magnitudes preserved, lengths, files."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from teacher.audio.vae import (
    VAE,
    VAE_16K,
    VAE_44K,
    LatentGaussian,
    MPAttention,
    MPConv1d,
    MPResBlock,
    VAEConfig,
    load_vae,
    mp_silu,
    mp_sum,
    normalised_weight,
    pixel_norm,
)
from teacher.files.errors import WeightsError
from tests.golden import audio
from tests.golden.recipe import Recording

GOLDEN = Path(audio.__file__).parent
TINY = VAEConfig(data_dim=10, latent_channels=3, width=8)


def raw(seed: int = 0, config: VAEConfig = TINY) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    vae = VAE(config)
    with torch.no_grad():
        vae.encoder.learnable_gain.fill_(0.3)
        vae.decoder.learnable_gain.fill_(-0.2)
        vae.data_mean.normal_(-2.0, 1.0)
        vae.data_std.uniform_(0.5, 1.5)
    return {name: tensor.detach().clone() for name, tensor in vae.state_dict().items()}


def check(recording: Recording) -> None:
    deviations = list(audio.vae(recording))
    assert {d.name for d in deviations} == set(recording.document["outputs"])
    assert [d for d in deviations if not d.value <= d.tolerance] == []


def test_recorded_numbers():
    check(Recording.read(GOLDEN / "recordings", "D1_vae_small_16k"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["D2_vae_16k", "D3_vae_44k"])
def test_recorded_numbers_of_the_published_sizes(recordings, name):
    check(Recording.read(recordings, name))


@pytest.mark.parametrize(
    ("name", "config", "total", "encoder"),
    [("vae_16k", VAE_16K, 171_657_378, 72_529_921), ("vae_44k", VAE_44K, 305_479_938, 129_138_689)],
)
def test_names_and_shapes_are_the_published_ones(name, config, total, encoder):
    manifest = json.loads((GOLDEN / "manifests" / f"{name}.json").read_text())
    with torch.device("meta"):
        state = VAE(config).state_dict()
        halves = [set(VAE(config, part).state_dict()) for part in ("encoder", "decoder")]
    assert {n: list(t.shape) for n, t in state.items()} == dict(manifest["entries"])
    assert len(state) == 57
    assert sum(t.numel() for t in state.values()) == total
    assert sum(t.numel() for n, t in state.items() if n.startswith("encoder.")) == encoder
    assert halves[0] | halves[1] == set(state)
    assert halves[0] & halves[1] == {"data_mean", "data_std"}


def test_normalised_rows_have_a_norm_just_below_one():
    weight = torch.randn(7, 5, 3, dtype=torch.float64)
    weight[3] *= 1e-3
    norm = weight.flatten(1).norm(dim=1)
    # w / (eps + |w| / sqrt n) / sqrt n  has norm  1 / (1 + eps sqrt(n) / |w|), n = 15
    expected = 1 / (1 + 1e-4 * math.sqrt(15) / norm)
    torch.testing.assert_close(normalised_weight(weight).flatten(1).norm(dim=1), expected, rtol=1e-12, atol=0)
    assert normalised_weight(weight.bfloat16()).dtype == torch.float32


def test_raw_weights_do_not_run_and_are_normalised_once():
    vae = VAE(TINY)
    mel = torch.randn(1, 10, 8)
    with pytest.raises(RuntimeError, match="raw weights: call its normalise_"):
        vae.encode(mel)
    assert not vae.normalised
    vae.normalise_()
    assert vae.normalised
    once = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    for name, tensor in vae.normalise_().state_dict().items():
        assert torch.equal(tensor, once[name])
    with pytest.raises(ValueError, match="normalised already; load the raw ones"):
        VAE.from_raw(once, TINY)


def test_loading_asks_for_normalisation_again():
    vae = VAE.from_raw(raw(0), TINY)
    vae.load_state_dict(raw(1))
    assert not vae.normalised
    expected = VAE.from_raw(raw(1), TINY)
    z = torch.randn(1, 3, 4)
    assert torch.equal(vae.normalise_().decode(z), expected.decode(z))


def test_casting_comes_after_normalisation():
    with pytest.raises(ValueError, match=r"normalised in float32 before they are cast, got torch\.bfloat16"):
        VAE(TINY).bfloat16().normalise_()
    z = torch.randn(2, 3, 6)
    exact = VAE.from_raw(raw()).decode(z)
    half = VAE.from_raw(raw()).bfloat16().decode(z.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half - exact).abs().max() < 0.1 * exact.std()  # 8 bits through some twenty layers


def test_layers_preserve_magnitude(generator):
    x = torch.randn(4, 256, 200, generator=generator)
    block, attention = MPResBlock(256, 128), MPAttention(256)
    for module in (block, attention):
        for conv in module.modules():
            if isinstance(conv, MPConv1d):
                conv.normalise_()
    with torch.no_grad():
        assert mp_silu(x).square().mean().sqrt() == pytest.approx(1, abs=0.01)
        assert mp_sum(x, torch.randn(x.shape, generator=generator)).std() == pytest.approx(1, abs=0.01)
        assert block.conv1(x).std() == pytest.approx(1, abs=0.02)
        assert block(10 * x).square().mean().sqrt() == pytest.approx(1, abs=0.05)  # whatever the input's scale
        # Attention averages 200 nearly independent values, so its branch is small and 0.7 / sqrt(0.58) of x remains.
        assert attention(x).square().mean().sqrt() == pytest.approx(0.7 / math.sqrt(0.58), abs=0.03)
    torch.testing.assert_close(pixel_norm(x).square().mean(1), torch.ones(4, 200), atol=1e-3, rtol=0)
    assert torch.equal(pixel_norm(torch.zeros(1, 4, 2)), torch.zeros(1, 4, 2))


def test_attention_is_permutation_equivariant(generator):
    attention = MPAttention(16).double()
    attention.qkv.normalise_()
    attention.proj_out.normalise_()
    x, order = torch.randn(2, 16, 9, generator=generator, dtype=torch.float64), torch.randperm(9, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(attention(x[:, :, order]), attention(x)[:, :, order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frames", [2, 3, 24, 25])
def test_lengths(frames):
    vae = VAE.from_raw(raw(), TINY)
    posterior = vae.encode(torch.randn(2, 10, frames))
    assert posterior.mean.shape == posterior.std.shape == (2, 3, frames // 2)  # an odd last frame is dropped
    assert vae.decode(posterior.mean).shape == (2, 10, frames // 2 * 2)


def test_decode_restores_the_bins(generator):
    vae = VAE.from_raw(raw(), TINY)
    z = torch.randn(2, 3, 5, generator=generator)
    torch.testing.assert_close((vae.decode(z) - vae.data_mean) / vae.data_std, vae.decode_raw(z), rtol=1e-5, atol=1e-5)


def test_encoding_ignores_the_statistics_of_the_bins(generator):
    tensors, mel = raw(), torch.randn(1, 10, 12, generator=generator, dtype=torch.float64)
    moved = tensors | {"data_mean": tensors["data_mean"] + 3, "data_std": tensors["data_std"] * 2}
    a, b = (VAE.from_raw(t, TINY, dtype=torch.float64) for t in (tensors, moved))
    again = (mel - a.data_mean) / a.data_std * b.data_std + b.data_mean
    torch.testing.assert_close(a.encode(mel).mean, b.encode(again).mean, rtol=1e-10, atol=1e-10)


def test_float32_agrees_with_float64_and_a_row_with_its_batch(generator):
    mel, z = torch.randn(3, 10, 20, generator=generator), torch.randn(3, 3, 10, generator=generator)
    single, double = VAE.from_raw(raw(), TINY), VAE.from_raw(raw(), TINY, dtype=torch.float64)
    for made, exact in (
        (single.encode(mel).mean, double.encode(mel.double()).mean),
        (single.encode(mel).logvar, double.encode(mel.double()).logvar),
        (single.decode(z), double.decode(z.double())),
    ):
        assert exact.dtype == torch.float64
        assert (made - exact).abs().max() < 1e-5 * exact.abs().max()
    torch.testing.assert_close(single.decode(z)[1:2], single.decode(z[1:2]), rtol=1e-5, atol=1e-5)


def test_posterior():
    mean, logvar = torch.full((1, 2, 50_000), 3.0), torch.full((1, 2, 50_000), 2 * math.log(0.5))
    gaussian = LatentGaussian(mean, logvar)
    torch.testing.assert_close(gaussian.std, torch.full_like(mean, 0.5))
    drawn, again = (gaussian.sample(torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(drawn, again)
    assert drawn.mean() == pytest.approx(3, abs=0.01)  # 0.5 / sqrt(100,000) = 0.0016
    assert drawn.std() == pytest.approx(0.5, abs=0.01)
    assert torch.equal(gaussian.at(torch.zeros_like(mean)), mean)


def test_log_variances_are_clamped():
    tensors = raw()
    tensors["encoder.learnable_gain"].fill_(1e6)
    logvar = VAE.from_raw(tensors, TINY).encode(torch.randn(1, 10, 40)).logvar
    assert float(logvar.min()) == -30
    assert float(logvar.max()) == 20


def test_wrong_use_is_refused():
    vae = VAE.from_raw(raw(), TINY)
    with pytest.raises(ValueError, match=r"mel must have shape \(batch, 10, frames > 1\), got \(1, 9, 8\)"):
        vae.encode(torch.zeros(1, 9, 8))
    with pytest.raises(ValueError, match="z must have shape"):
        vae.decode(torch.zeros(1, 4, 8))
    with pytest.raises(ValueError, match="part must be one of both, encoder, decoder, got 'all'"):
        VAE(TINY, "all")
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        VAEConfig(data_dim=1, latent_channels=1, width=0)


@pytest.fixture
def path(tmp_path):
    save_file(raw(), tmp_path / "vae.safetensors")
    return tmp_path / "vae.safetensors"


def test_halves_of_a_file_are_the_whole(path):
    whole, encoder, decoder = load_vae(path), load_vae(path, part="encoder"), load_vae(path, TINY, part="decoder")
    mel, z = torch.randn(1, 10, 8), torch.randn(1, 3, 4)
    assert whole.config == TINY
    assert torch.equal(whole.encode(mel).mean, encoder.encode(mel).mean)
    assert torch.equal(whole.decode(z), decoder.decode(z))
    assert not any(p.requires_grad for p in whole.parameters())
    with pytest.raises(ValueError, match="without its encoder"):
        decoder.encode(mel)
    with pytest.raises(ValueError, match="without its decoder"):
        encoder.decode(z)


def test_a_file_with_one_half_serves_that_half(path):
    save_file({n: t for n, t in raw().items() if not n.startswith("encoder.")}, path)
    assert VAEConfig.from_tensors(load_vae(path, part="decoder").state_dict()) == TINY
    with pytest.raises(WeightsError, match=r"25 missing \(encoder\.learnable_gain"):
        load_vae(path, TINY)


def test_files_that_do_not_fit_are_named(path):
    tensors = raw()
    with pytest.raises(WeightsError, match=r"vae\.safetensors does not fit: .*instead of"):
        load_vae(path, VAEConfig(data_dim=10, latent_channels=3, width=4))
    save_file({"extra.weight": torch.zeros(1), **tensors}, path)
    with pytest.raises(WeightsError, match=r"1 unexpected \(extra\.weight\)"):
        load_vae(path, part="decoder")
    save_file({"something": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="not the tensors of a VAE"):
        load_vae(path)
    save_file(dict(VAE.from_raw(tensors, TINY).state_dict()), path)
    with pytest.raises(WeightsError, match=r"vae\.safetensors: the weights of this VAE are normalised already"):
        load_vae(path)
    path.write_bytes(b"garbage")
    with pytest.raises(WeightsError, match="cannot read weights"):
        load_vae(path)
