"""MMAudio's audio stack as a codec: what is composed, lengths, statistics, files that point to component files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from teacher.audio.codec import AudioCodec
from teacher.audio.embedded_codec import EmbeddedCodec
from teacher.audio.mel import MEL_16K, log_mel
from teacher.audio.mmaudio_codec import MMAUDIO_16K, STACKS, mmaudio_codec
from teacher.audio.registry import CODECS, open_codec
from teacher.audio.vae import load_vae
from teacher.audio.vocoder import BigVGAN
from teacher.files.errors import WeightsError
from teacher.network.sequence import SEQUENCE_16K, SEQUENCE_44K
from tests.teacher.tiny_codec import VOCODER_CHANNELS, write_tiny_codec


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_codec(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def codec(folder):
    return mmaudio_codec("mmaudio_16k", folder)


def statistics(channels: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(channels, generator=g), 0.5 + torch.rand(channels, generator=g)


def test_every_part_is_used_in_order(codec, folder):
    vae = load_vae(folder / "vae_16k.safetensors")
    vocoder = BigVGAN.from_folded(
        folder / "bigvgan_16k.safetensors", replace(MMAUDIO_16K.vocoder, initial_channels=VOCODER_CHANNELS)
    )
    wave = 0.3 * torch.randn(2, 4096)
    found = vae.encode(log_mel(wave, MEL_16K))
    posterior = codec.posterior(wave)
    assert torch.equal(posterior.mean, found.mean.transpose(1, 2))
    assert torch.equal(posterior.std, found.std.transpose(1, 2))
    mean, std = statistics()
    other = codec.with_statistics(mean, std)
    latent = other.encode(wave)
    torch.testing.assert_close(latent, (posterior.mean - mean) / std)
    mel = vae.decode((latent * std + mean).transpose(1, 2))
    torch.testing.assert_close(other.decode_mel(latent), mel)
    torch.testing.assert_close(other.decode(latent), vocoder(mel)[:, 0])


@pytest.mark.parametrize(("name", "sequence"), [("mmaudio_16k", SEQUENCE_16K), ("mmaudio_44k", SEQUENCE_44K)])
def test_lengths_follow_the_sequence(tmp_path, name, sequence):
    codec = mmaudio_codec(name, write_tiny_codec(tmp_path, name))
    assert isinstance(codec, AudioCodec)
    assert codec.sequence == sequence
    step, channels = sequence.samples_per_latent, codec.latent_channels
    assert channels == CODECS[name].latent_channels
    for samples, frames in ((1, 1), (step, 1), (step + 1, 2), (5 * step - 1, 5)):
        posterior = codec.posterior(torch.zeros(2, samples))
        assert posterior.mean.shape == posterior.std.shape == (2, frames, channels)
        assert bool((posterior.std > 0).all())
    wave = codec.decode(torch.randn(2, 5, channels))
    assert wave.shape == (2, 5 * step)
    assert float(wave.abs().max()) <= 1
    assert codec.decode_mel(torch.zeros(1, 5, channels)).shape == (1, CODECS[name].mel.num_mels, 10)


def test_the_tail_is_silence(codec):
    wave = 0.3 * torch.randn(1, 1000)
    padded = torch.nn.functional.pad(wave, (0, 24))
    assert torch.equal(codec.encode(wave), codec.encode(padded))


def test_only_what_is_used_is_loaded(folder):
    heard, made = mmaudio_codec("mmaudio_16k", folder), mmaudio_codec("mmaudio_16k", folder)
    heard.encode(torch.zeros(1, 512))
    made.decode(torch.zeros(1, 1, 20))
    assert {"encoder", "decoder", "vocoder"} & set(vars(heard.models)) == {"encoder"}
    assert {"encoder", "decoder", "vocoder"} & set(vars(made.models)) == {"decoder", "vocoder"}
    shared = made.with_statistics(*statistics())
    assert shared.models is made.models  # other statistics do not load anything again


def test_statistics_normalise(codec):
    wave = 0.3 * torch.randn(4, 40 * 512, generator=torch.Generator().manual_seed(0))
    raw = codec.encode(wave).flatten(0, 1)
    assert torch.equal(codec.latent_mean, torch.zeros(20))
    assert torch.equal(codec.latent_std, torch.ones(20))
    fitted = codec.with_statistics(raw.mean(0), raw.std(0))
    latent = fitted.encode(wave)
    torch.testing.assert_close(latent.flatten(0, 1).mean(0), torch.zeros(20), atol=1e-4, rtol=0)
    torch.testing.assert_close(latent.flatten(0, 1).std(0), torch.ones(20), atol=1e-4, rtol=0)
    torch.testing.assert_close(fitted.decode(latent), codec.decode(codec.encode(wave)), atol=1e-4, rtol=0)
    assert fitted.digest != codec.digest
    assert fitted.with_statistics(torch.zeros(20), torch.ones(20)).digest == codec.digest


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (torch.zeros(19), torch.ones(20), "latent_mean must hold 20 finite numbers"),
        (torch.zeros(20), torch.full((20,), float("nan")), "latent_std must hold 20 finite numbers"),
        (torch.zeros(20), torch.zeros(20), "latent_std must be positive, got a least value of 0"),
    ],
)
def test_unusable_statistics_are_refused(codec, mean, std, message):
    with pytest.raises(ValueError, match=message):
        codec.with_statistics(mean, std)


def test_wrong_input_is_refused(codec):
    with pytest.raises(ValueError, match=r"wave must have shape \(batch, samples\)"):
        codec.encode(torch.zeros(100))
    with pytest.raises(ValueError, match=r"latent must have shape \(batch, frames, 20\), got \(1, 3, 19\)"):
        codec.decode_mel(torch.zeros(1, 3, 19))
    with pytest.raises(ValueError, match="latent must be finite"):
        codec.decode(torch.full((1, 3, 20), float("nan")))


def test_file_round_trip(codec, folder, tmp_path):
    path = tmp_path / "codec.safetensors"
    mine = codec.with_statistics(*statistics())
    mine.save(path)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {"latent_mean", "latent_std"}
        metadata = file.metadata()
    assert len(metadata.pop("content")) == 64
    assert metadata == {"kind": "mmaudio_16k", "weights_dir": str(folder.resolve())} | codec.models.digests
    assert list(tmp_path.iterdir()) == [path]
    again = open_codec(path)
    assert again.digest == mine.digest
    latent = torch.randn(1, 3, 20)
    assert torch.equal(again.decode(latent), mine.decode(latent))


def test_component_files_may_move_but_not_change(codec, tmp_path):
    path, moved, other = tmp_path / "codec.safetensors", tmp_path / "moved", tmp_path / "other"
    for at in (moved, other):
        at.mkdir()
    codec.save(path)
    tensors, metadata = {"latent_mean": torch.zeros(20), "latent_std": torch.ones(20)}, {}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() | {"weights_dir": str(tmp_path / "gone")}
    del metadata["content"]  # as in files of older versions
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(WeightsError, match=r"gone/vae_16k\.safetensors is missing: .*mf-fetch.*mf-convert"):
        open_codec(path)
    assert open_codec(path, weights_dir=write_tiny_codec(moved)).digest == codec.digest
    with pytest.raises(WeightsError, match=r"codec\.safetensors: was made with another vae than the one in .*other"):
        open_codec(path, weights_dir=write_tiny_codec(other, seed=1))
    save_file(tensors, path, metadata=metadata | {"vae": "", "vocoder": ""})  # written before the components came
    assert open_codec(path, weights_dir=moved).digest == codec.digest


def test_component_files_that_do_not_fit_are_named(tmp_path):
    write_tiny_codec(tmp_path, "mmaudio_44k")
    for wrong, right in (("vae_44k", "vae_16k"), ("bigvgan_v2_44k", "bigvgan_16k")):
        (tmp_path / f"{wrong}.safetensors").rename(tmp_path / f"{right}.safetensors")
    codec = mmaudio_codec("mmaudio_16k", tmp_path)
    with pytest.raises(WeightsError, match=r"vae_16k\.safetensors: .* needs .*data_dim=80.*data_dim=128"):
        codec.encode(torch.zeros(1, 512))
    with pytest.raises(WeightsError, match=r"bigvgan_16k\.safetensors"):
        _ = codec.models.vocoder


def test_a_file_says_which_codec_it_holds(tmp_path):
    path = tmp_path / "codec.safetensors"
    rng = np.random.default_rng(0)
    fitted = EmbeddedCodec.fit([rng.standard_normal(32_000).astype(np.float32) for _ in range(4)])
    fitted.save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert metadata.pop("kind") == "embedded"
    assert open_codec(path).digest == fitted.digest
    save_file(tensors | {"basis": tensors["basis"] + 1e-6}, path, metadata=metadata | {"kind": "embedded"})
    with pytest.raises(WeightsError, match=r"codec\.safetensors is damaged: its content is not what was written"):
        open_codec(path)
    del metadata["content"]
    save_file(tensors, path, metadata=metadata)  # written before there were kinds
    assert open_codec(path).digest == fitted.digest
    save_file(tensors, path, metadata={"kind": "mmaudio_8k"})
    with pytest.raises(WeightsError, match="unknown kind of codec 'mmaudio_8k', expected one of embedded, mmaudio_16k"):
        open_codec(path)
    save_file(tensors, path, metadata={"kind": "mmaudio_16k"})
    with pytest.raises(WeightsError, match="not a codec of kind mmaudio_16k, mmaudio_44k"):
        open_codec(path)
    path.write_bytes(b"?")
    with pytest.raises(WeightsError, match="damaged or not a safetensors file"):
        open_codec(path)
    with pytest.raises(WeightsError, match="no such codec file"):
        open_codec(tmp_path / "nowhere.safetensors")


def test_statistics_in_a_file_are_checked(codec, tmp_path):
    path = tmp_path / "codec.safetensors"
    codec.save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    del metadata["content"]
    save_file({"latent_mean": torch.zeros(20), "latent_std": torch.zeros(20)}, path, metadata=metadata)
    with pytest.raises(WeightsError, match=r"codec\.safetensors: latent_std must be positive"):
        open_codec(path)


def test_names():
    assert list(CODECS) == ["embedded", "embedded_44k", "mmaudio_16k", "mmaudio_44k"]
    assert [name for name, entry in CODECS.items() if not entry.fitted] == list(STACKS)
    with pytest.raises(ValueError, match="codec must be one of mmaudio_16k, mmaudio_44k, got 'embedded'"):
        mmaudio_codec("embedded", "weights")
    with pytest.raises(ValueError, match="rates of front end, VAE, vocoder and sequence disagree"):
        replace(MMAUDIO_16K, sequence=SEQUENCE_44K)
    with pytest.raises(ValueError, match="different numbers of mel bins"):
        replace(MMAUDIO_16K, vae=STACKS["mmaudio_44k"].vae)
