"""The fitted codec: what its latents are, what survives the round trip, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from teacher.audio.codec import AudioCodec
from teacher.audio.embedded_codec import EmbeddedCodec
from teacher.audio.mel import MEL_16K, MEL_44K, log_mel
from teacher.network.sequence import SEQUENCE_16K


def hits(seed: int, *, sample_rate: int = 16_000, duration_s: float = 2.0) -> np.ndarray:
    """Damped modes struck at random times over faint noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(sample_rate * duration_s)) / sample_rate
    wave = 1e-4 * rng.standard_normal(len(t))
    for start_s in rng.uniform(0.1, 1.8, rng.integers(1, 4)):
        age = np.maximum(t - start_s, 0)
        for k in range(4):
            tone = np.sin(2 * np.pi * rng.uniform(200, 1200) * (1 + 1.3 * k) * age) * 0.6**k
            wave += (t >= start_s) * rng.uniform(0.1, 0.3) * np.exp(-age * rng.uniform(5, 40)) * tone
    return (0.95 * wave / np.abs(wave).max()).astype(np.float32)


@pytest.fixture(scope="module")
def codec() -> EmbeddedCodec:
    return EmbeddedCodec.fit(hits(seed) for seed in range(64))


@pytest.fixture(scope="module")
def unseen() -> torch.Tensor:
    return torch.from_numpy(np.stack([hits(1000 + seed) for seed in range(8)]))


def test_latents_are_whitened_over_the_training_sounds(codec):
    latent = codec.encode(torch.from_numpy(np.stack([hits(seed) for seed in range(64)]))).flatten(0, 1).double()
    torch.testing.assert_close(latent.mean(0), torch.zeros(20, dtype=torch.float64), atol=1e-3, rtol=0)
    covariance = latent.T @ latent / len(latent)  # principal components are uncorrelated
    torch.testing.assert_close(covariance, torch.eye(20, dtype=torch.float64), atol=5e-3, rtol=0)


def test_lengths_follow_the_sequence(codec):
    assert isinstance(codec, AudioCodec)
    assert codec.sequence == SEQUENCE_16K
    assert codec.latent_channels == 20
    for samples, frames in ((32_000, 63), (32_256, 63), (32_257, 64), (1, 1)):  # ceil(samples / 512)
        latent = codec.encode(torch.zeros(1, samples))
        assert latent.shape == (1, frames, 20)
    assert codec.decode(latent).shape == (1, 512)


def test_keeps_most_of_the_variance_of_unseen_sounds(codec, unseen):
    padded = torch.nn.functional.pad(unseen, (0, 256))
    mel, again = log_mel(padded, MEL_16K), codec.decode_mel(codec.encode(unseen))
    mean = codec.patch_mean.view(2, 80).mean(0)[:, None]
    explained = 1 - (mel - again).square().sum() / (mel - mean).square().sum()
    # Pitches and dampings of every hit are unrelated here; sounds of one kind reach 0.94 and more. Measured: 0.877.
    assert explained > 0.85
    assert (mel - again).abs().mean() < 0.2  # log10 units: 4 dB
    assert codec.explained_variance > explained


def test_decode_mel_then_encode_is_the_identity_on_latents(codec, unseen):
    # Decoding is linear and the basis orthonormal; only the clamp at digital silence is not.
    latent = codec.encode(unseen)
    patches = codec.decode_mel(latent).transpose(1, 2).reshape(8, -1, 160)
    again = ((patches - codec.patch_mean) @ codec.basis - codec.component_mean) / codec.component_std
    torch.testing.assert_close(again, latent, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("start_s", [0.3, 0.5117, 1.2031])
def test_a_click_stays_within_20_ms(codec, start_s):
    wave = torch.zeros(1, 32_000)
    age = torch.arange(32_000) / 16_000 - start_s
    wave[0] = torch.where(age >= 0, torch.exp(-60 * age.clamp_min(0)) * torch.sin(2 * torch.pi * 900 * age), 0.0)
    out = codec.decode(codec.encode(wave))[0].abs()
    first = int((out > 0.15 * out.max()).nonzero()[0])
    assert abs(first / 16_000 - start_s) < 0.02


def test_decode_is_deterministic_and_bounded(codec):
    latent = 3.0 * torch.randn(3, 20, 20, generator=torch.Generator().manual_seed(0))
    wave = codec.decode(latent)
    torch.testing.assert_close(wave, codec.decode(latent), atol=0, rtol=0)
    assert wave.abs().max() <= 1.0
    with pytest.raises(ValueError, match="latent must be finite"):
        codec.decode(torch.full((1, 4, 20), float("nan")))


def test_file_round_trip(codec, tmp_path):
    codec.save(tmp_path / "codec.safetensors")
    again = EmbeddedCodec.load(tmp_path / "codec.safetensors")
    assert again.digest == codec.digest
    assert again.explained_variance == codec.explained_variance
    assert list(tmp_path.iterdir()) == [tmp_path / "codec.safetensors"]  # no temporary file remains
    other = replace(codec, component_mean=codec.component_mean + 1e-6)
    assert other.digest != codec.digest


def test_load_names_the_file_and_the_fault(codec, tmp_path):
    path = tmp_path / "codec.safetensors"
    with pytest.raises(ValueError, match="no such codec file"):
        EmbeddedCodec.load(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"codec\.safetensors: damaged or not a safetensors file"):
        EmbeddedCodec.load(path)
    save_file({"a": torch.zeros(1)}, path, metadata={"codec": '{"kind": "vae", "version": 1}'})
    with pytest.raises(ValueError, match="expected a codec of kind 'embedded-pca' version 1, found kind 'vae'"):
        EmbeddedCodec.load(path)
    codec.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        EmbeddedCodec.load(path)


def test_fit_refuses_too_little_and_silence():
    with pytest.raises(ValueError, match=r"needs at least 200 latent frames .* got 63 \(2\.0 s\)"):
        EmbeddedCodec.fit([hits(0)])
    with pytest.raises(ValueError, match="silent or constant"):
        EmbeddedCodec.fit([np.zeros(32_000, np.float32)] * 8)


def test_44_khz_has_40_channels():
    codec = EmbeddedCodec.fit((hits(seed, sample_rate=44_100) for seed in range(8)), mel=MEL_44K, latent_channels=40)
    latent = codec.encode(torch.from_numpy(hits(9, sample_rate=44_100))[None])
    assert latent.shape == (1, 87, 40)  # ceil(88200 / 1024)
    assert codec.decode(latent).shape == (1, 87 * 1024)


def test_the_latent_is_its_own_posterior(codec, unseen):
    posterior = codec.posterior(unseen)
    assert posterior.std is None
    assert torch.equal(posterior.mean, codec.encode(unseen))
    assert torch.equal(codec.latent_mean, torch.zeros(20))
    assert torch.equal(codec.latent_std, torch.ones(20))


def test_other_statistics_shift_and_scale_the_latent(codec, unseen, tmp_path):
    mean, std = torch.linspace(-1, 1, 20), torch.linspace(0.5, 2, 20)
    other = codec.with_statistics(mean, std)
    latent = other.encode(unseen)
    assert torch.equal(latent, (codec.encode(unseen) - mean) / std)
    assert torch.equal(other.posterior(unseen).mean, codec.encode(unseen))
    torch.testing.assert_close(other.decode_mel(latent), codec.decode_mel(codec.encode(unseen)), atol=1e-4, rtol=0)
    other.save(tmp_path / "codec.safetensors")
    again = EmbeddedCodec.load(tmp_path / "codec.safetensors")
    assert torch.equal(again.encode(unseen), latent)
    assert again.digest == other.digest != codec.digest
    assert other.with_statistics(torch.zeros(20), torch.ones(20)).digest == codec.digest
    with pytest.raises(ValueError, match="latent_std must be positive"):
        codec.with_statistics(mean, -std)


def test_the_digest_of_a_codec_never_changes():
    # Feature folders and run folders name their codec by it; the number was taken when the first of them were made.
    codec = EmbeddedCodec(
        mel=MEL_16K,
        patch_mean=torch.arange(160) / 160,
        basis=torch.eye(160)[:, :20].contiguous(),
        component_mean=torch.zeros(20),
        component_std=torch.arange(1.0, 21.0),
        explained_variance=0.9,
    )
    assert codec.digest == "6a542f0b34b37444ed718303446be7b3e9825444bd899257dd15524b9a00d864"
