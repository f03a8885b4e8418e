"""The mel front ends agree with the numbers of the released ones, and Griffin-Lim inverts them."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from teacher.audio.griffin_lim import griffin_lim, mel_to_magnitude
from teacher.audio.mel import MEL_16K, MEL_44K, MelConfig, hz_to_mel, log_mel, mel_filterbank, mel_to_hz
from tests.rounding import HANN, UNIT, transform

RECORDED = json.loads((Path(__file__).parents[2] / "golden" / "mel.json").read_text())
SHARED = Path(__file__).parents[4] / "shared" / "golden" / "open"
CONFIGS = [pytest.param(MEL_16K, id="16k"), pytest.param(MEL_44K, id="44k")]
REFERENCES = [pytest.param("C1_mel_16k", MEL_16K, id="16k"), pytest.param("C2_mel_44k", MEL_44K, id="44k")]


def chirps(config: MelConfig, duration_s: float = 1.0) -> torch.Tensor:
    """The signal of the recorded numbers: two sweeps, exact in any precision."""
    t = torch.arange(round(duration_s * config.sample_rate), dtype=torch.float64) / config.sample_rate
    wave = 0.5 * torch.sin(2 * torch.pi * (200 * t + 900 * t**2)) + 0.3 * torch.sin(2 * torch.pi * 3000 * t**2)
    return wave[None].float()


@pytest.mark.parametrize("config", CONFIGS)
def test_recorded_values(config):
    recorded = RECORDED[str(config.sample_rate)]
    mel = log_mel(chirps(config), config)[0]
    for place in recorded["log_mel"]:
        assert mel[place["mel"], place["frame"]].item() == pytest.approx(place["value"], abs=1e-4)
    basis = mel_filterbank(config)
    for place in recorded["mel_basis"]:
        assert basis[place["mel"], place["bin"]].item() == pytest.approx(place["value"], abs=1e-7)


@pytest.mark.parametrize(("name", "config"), REFERENCES)
def test_published_front_end(name, config):
    path = SHARED / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"reference tensors {path.name} are not on this machine; test_recorded_values holds a few of them")
    reference = load_file(path)
    torch.testing.assert_close(mel_filterbank(config), reference["out.mel_basis"], atol=1e-7, rtol=0)
    wave = reference["in.waveform"]
    # The recorded window was computed in float32, and the recorded float32 transform is one of several. An error d of
    # every bin is d sum_k f_k of a band m, and ln m is off by that over m: it shows in quiet bands. Where the bins are
    # loud the window's error adds up in phase with the wave: HANN of a window whose mean is 1 / 2.
    norm = float(wave.unfold(1, config.n_fft, config.hop_length).norm(dim=2).max())
    area = mel_filterbank(config).sum(1)[:, None] / (math.log(10.0) if config.log == "log10" else 1.0)
    for made, recorded, d in (
        (log_mel(wave, config), reference["out.log_mel"], HANN * norm + transform(norm, config.n_fft)),
        (log_mel(wave.double(), config), reference["out.log_mel_f64"], HANN * norm),
    ):
        energy = torch.pow(10.0, recorded) if config.log == "log10" else recorded.exp()
        tolerance = d * area / energy + 2 * HANN + 2 * UNIT * recorded.abs()
        assert float(tolerance.median()) < 5e-5
        assert bool(((made - recorded).abs() <= tolerance).all())


@pytest.mark.parametrize("config", CONFIGS)
def test_one_frame_per_hop_and_silence_is_the_floor(config):
    mel = log_mel(torch.zeros(2, 10 * config.hop_length), config)
    assert mel.shape == (2, config.num_mels, 10)
    torch.testing.assert_close(mel, torch.full_like(mel, config.log_floor))


def test_mel_scale_round_trip_and_anchor():
    hz = torch.linspace(0, 22050, 200, dtype=torch.float64)
    torch.testing.assert_close(mel_to_hz(hz_to_mel(hz)), hz)
    # Slaney's scale: 15 mel at 1 kHz, 27 more per factor of 6.4.
    torch.testing.assert_close(hz_to_mel(torch.tensor([1000.0, 6400.0])), torch.tensor([15.0, 42.0]))


def test_every_filter_has_unit_area_in_hz():
    # Sampled triangles: the area is exact up to the bin width over the filter's width, below 1 % from 2 kHz on.
    basis = mel_filterbank(MEL_16K)
    areas = basis.sum(1) * MEL_16K.sample_rate / MEL_16K.n_fft
    torch.testing.assert_close(areas[45:], torch.ones(35), atol=0.01, rtol=0)


def test_refuses_what_it_cannot_frame():
    with pytest.raises(ValueError, match=r"longer than 384 samples"):
        log_mel(torch.zeros(1, 384), MEL_16K)
    with pytest.raises(ValueError, match=r"\(batch, samples\)"):
        log_mel(torch.zeros(1000), MEL_16K)
    with pytest.raises(ValueError, match="Nyquist"):
        MelConfig(sample_rate=16_000, n_fft=1024, hop_length=256, num_mels=80, fmin=0, fmax=9000, log="ln")


@pytest.mark.parametrize("config", CONFIGS)
def test_griffin_lim_restores_the_spectrogram(config):
    mel = log_mel(chirps(config), config)
    wave = griffin_lim(mel, config)
    assert wave.shape == (1, mel.shape[2] * config.hop_length)
    audible = mel > mel.max() - (2.0 if config.log == "log10" else 4.6)  # within 40 dB of the loudest
    error = (log_mel(wave, config) - mel)[audible].abs().mean() * (20.0 if config.log == "log10" else 8.686)
    assert error < 2.5  # dB; half a dB more than measured, and random phases without iterations give over 4


def test_griffin_lim_is_deterministic_and_rows_do_not_meet():
    wave = torch.cat((chirps(MEL_16K, 0.5), chirps(MEL_16K, 0.5).flip(1), torch.zeros(1, 8000)))
    mel = log_mel(wave, MEL_16K)
    together = griffin_lim(mel, MEL_16K, num_iterations=4)
    torch.testing.assert_close(together, griffin_lim(mel, MEL_16K, num_iterations=4), atol=0, rtol=0)
    alone = griffin_lim(mel[1:2], MEL_16K, num_iterations=4)
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=0)
    assert together[2].abs().max() < 1e-3


def test_magnitudes_reproduce_the_mel_energies():
    mel = log_mel(chirps(MEL_16K, 0.5), MEL_16K)
    magnitude = mel_to_magnitude(mel, MEL_16K)
    assert bool((magnitude >= 0).all())
    again = (magnitude @ mel_filterbank(MEL_16K).T).transpose(1, 2)
    target = torch.pow(10.0, mel)
    assert ((again - target).abs().sum() / target.sum()).item() < 0.1


def test_griffin_lim_refuses_bad_settings():
    mel = torch.zeros(1, 80, 4)
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\), got 1.0"):
        griffin_lim(mel, MEL_16K, momentum=1.0)
    with pytest.raises(ValueError, match=r"\(batch, 80, frames\)"):
        griffin_lim(torch.zeros(1, 4, 80), MEL_16K)
