"""How sound reaches the embedding models: channels, offset, rate, length, and what is refused."""

import math

import numpy as np
import pytest
import soundfile

from eval.extractors.clip_audio import ClipAudio


def tone(hz: float, rate: int, seconds: float, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)


def test_channels_are_averaged_and_the_clips_own_mean_is_taken_off():
    sound = np.stack([np.array([1.0, 2.0, 3.0, 6.0]), np.zeros(4)], axis=1)
    # Means of the channels 0.5, 1, 1.5, 3; their mean is 1.5.
    assert ClipAudio(sample_rate=8000).prepare(sound, 8000).tolist() == [-1.0, -0.5, 0.0, 1.5]
    with_dc = ClipAudio(sample_rate=8000, remove_dc=False).prepare(sound, 8000)
    assert with_dc.tolist() == [0.5, 1.0, 1.5, 3.0]


def test_the_mean_is_that_of_the_whole_clip_before_it_is_cut():
    sound = np.concatenate([np.zeros(100), np.ones(100)])
    cut = ClipAudio(sample_rate=1000, duration_s=0.1).prepare(sound, 1000)
    assert cut.tolist() == [-0.5] * 100


@pytest.mark.parametrize(
    ("duration_s", "rate", "samples"),
    [(8.0, 16_000, 128_000), (8.03, 16_000, 128_480), (9.975, 32_000, 319_200)],
)
def test_cut_but_never_padded(duration_s, rate, samples):
    policy = ClipAudio(sample_rate=rate, duration_s=duration_s)
    assert policy.num_samples == samples
    assert policy.prepare(np.zeros(samples + 500), rate).shape == (samples,)
    assert policy.prepare(np.zeros(samples - 500), rate).shape == (samples - 500,)


def test_resampling_keeps_a_tone_and_removes_what_would_fold():
    policy = ClipAudio(sample_rate=16_000)
    low = policy.prepare(tone(1000.0, 44_100, 0.5), 44_100).numpy()
    assert len(low) == 8000
    expected = tone(1000.0, 16_000, 0.5)
    assert np.abs(low - expected)[200:-200].max() < 2e-4
    high = policy.prepare(tone(11_000.0, 44_100, 0.5), 44_100).numpy()  # would fold to 5 kHz
    assert np.abs(high[200:-200]).max() < 1e-4


def test_reads_wav_and_flac_alike(tmp_path):
    sound = np.stack([tone(440.0, 22_050, 0.2), tone(880.0, 22_050, 0.2)], axis=1)
    quantised = np.round(sound * 32768).astype(np.int16)
    policy = ClipAudio(sample_rate=16_000, duration_s=0.1)
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, quantised, 22_050)
    wav, flac = (policy.read(tmp_path / name) for name in ("a.wav", "a.flac"))
    assert wav.shape == (1600,)
    assert (wav == flac).all()
    assert np.abs(wav.numpy() - policy.prepare(sound, 22_050).numpy()).max() < 1e-4


def test_what_cannot_be_read_is_named_and_never_replaced(tmp_path):
    policy = ClipAudio(sample_rate=16_000)
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF and nothing more")
    with pytest.raises(ValueError, match=r"bad\.wav cannot be read as sound"):
        policy.read(bad)
    with pytest.raises(ValueError, match=r"absent\.wav cannot be read as sound"):
        policy.read(tmp_path / "absent.wav")
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 1)), 16_000)
    with pytest.raises(ValueError, match=r"none\.wav: sound must be .* with samples in it"):
        policy.read(tmp_path / "none.wav")
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, math.nan]), 16_000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"nan\.wav: sound must be finite"):
        policy.read(tmp_path / "nan.wav")


def test_every_choice_is_in_the_name():
    policies = [
        ClipAudio(sample_rate=16_000),
        ClipAudio(sample_rate=32_000),
        ClipAudio(sample_rate=16_000, duration_s=8.0),
        ClipAudio(sample_rate=16_000, duration_s=8.0, remove_dc=False),
    ]
    assert len({policy.name for policy in policies}) == 4
    assert policies[2].name == "mean-dc-soxrhq-8s@16000"


@pytest.mark.parametrize(
    "wrong",
    [
        {"sample_rate": 0},
        {"sample_rate": 8000, "duration_s": 0.0},
        {"sample_rate": 8000, "duration_s": math.inf},
        {"sample_rate": 8000, "duration_s": -1.0},
    ],
)
def test_refuses_policies_that_mean_nothing(wrong):
    with pytest.raises(ValueError, match="must be"):
        ClipAudio(**wrong)
