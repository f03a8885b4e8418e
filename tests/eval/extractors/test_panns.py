"""PANNs Cnn14 at 16 kHz: front end, the published file's layout and reading, pooling, independence of the batch."""

import hashlib
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eval.extractors.base import LoadedFile
from eval.extractors.panns import (
    HOP,
    SAMPLE_RATE,
    SHORTEST,
    Cnn14,
    Panns,
    check_front_end,
    front_end_tensors,
    log_mel,
    mel_filters,
)
from teacher.audio.mel import MelConfig, mel_filterbank
from teacher.files.errors import WeightsError

CHANNELS = (1, 64, 128, 256, 512, 1024, 2048)


def layout() -> dict[str, tuple[int, ...]]:
    """Names and shapes of Cnn14_16k_mAP=0.438.pth, 84 tensors."""
    names: dict[str, tuple[int, ...]] = {
        "spectrogram_extractor.stft.conv_real.weight": (257, 1, 512),
        "spectrogram_extractor.stft.conv_imag.weight": (257, 1, 512),
        "logmel_extractor.melW": (257, 64),
        "fc1.weight": (2048, 2048),
        "fc1.bias": (2048,),
        "fc_audioset.weight": (527, 2048),
        "fc_audioset.bias": (527,),
    }
    norms = {"bn0": 64}
    for k in range(1, 7):
        names[f"conv_block{k}.conv1.weight"] = (CHANNELS[k], CHANNELS[k - 1], 3, 3)
        names[f"conv_block{k}.conv2.weight"] = (CHANNELS[k], CHANNELS[k], 3, 3)
        norms |= {f"conv_block{k}.bn1": CHANNELS[k], f"conv_block{k}.bn2": CHANNELS[k]}
    for name, width in norms.items():
        names |= {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
        names[f"{name}.num_batches_tracked"] = ()
    return names


def published(prefix: str = "") -> dict[str, Tensor]:
    """A state of the published layout; each tensor but the front end repeats one stored number."""
    state = {
        name: torch.tensor(1) if name.endswith("tracked") else torch.full((1,), 0.001).expand(shape)
        for name, shape in layout().items()
    } | front_end_tensors()
    return {prefix + name: tensor for name, tensor in state.items()}


def noise(clips: int, samples: int) -> Tensor:
    return 0.3 * torch.randn(clips, samples, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def small() -> Panns:
    """The network with few channels, random weights and random statistics of the normalisations."""
    torch.manual_seed(0)
    network = Cnn14(channels=(4, 4, 6, 6, 8, 12), classes=9).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)  # the default shrinks what differs between clips
    network.bn0.running_mean.fill_(-30.0)
    network.bn0.running_var.fill_(400.0)
    return Panns(network=network, loaded=LoadedFile(path=Path("small.pth"), digest="0" * 12, published=False))


def test_layout_and_parameters_of_the_published_file():
    with torch.device("meta"):
        network = Cnn14()
    state = network.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == layout()
    assert len(state) == 84
    assert sum(p.numel() for p in network.parameters()) == 80_753_615  # the published 80.75 M
    assert sum(tensor.numel() for tensor in state.values()) == 81_049_500  # with front end and statistics: 81.05 M


def test_loads_the_published_file_as_it_is(tmp_path):
    """Older format, weights under "model", and beside them the training sampler's NumPy array, as published."""
    path = tmp_path / "cnn14.pth"
    sampler = {"indexes": np.arange(50), "pointer": np.int64(3), "names": np.array([b"a", b"bc"])}
    torch.save(
        {"iteration": 300_000, "model": published(), "sampler": sampler}, path, _use_new_zipfile_serialization=False
    )
    model = Panns.load(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    assert model.loaded == LoadedFile(path=path, digest=digest, published=False)
    assert digest in model.name
    assert model.dimensions == 2048
    assert not model.network.training
    given = model.embed(noise(1, SHORTEST))
    assert (given.rows.shape, given.logits.shape) == ((1, 2048), (1, 527))


def test_refuses_another_layout_and_names_the_file_it_wants(tmp_path):
    state = published()
    del state["fc1.bias"]
    torch.save({"model": state}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"x\.pth is not Cnn14_16k_mAP=0.438.pth: .*1 missing \(fc1.bias\)"):
        Panns.load(tmp_path / "x.pth")
    state = published()
    state["logmel_extractor.melW"] = state["logmel_extractor.melW"] * 1.01
    torch.save({"model": state}, tmp_path / "x.pth")
    with pytest.raises(
        WeightsError, match=r"x\.pth was trained on another front end: logmel_extractor.melW .* by 0.01 "
    ):
        Panns.load(tmp_path / "x.pth")


# 1 + samples // 160 frames, centred.
@pytest.mark.parametrize(("samples", "frames"), [(128_000, 801), (160_000, 1001), (4_960, 32), (5_119, 32)])
def test_frames(samples, frames):
    assert log_mel(torch.zeros(1, samples)).shape == (1, frames, 64)


def test_silence_is_minus_100_db():
    torch.testing.assert_close(log_mel(torch.zeros(1, 5000)), torch.full((1, 32, 64), -100.0))


def test_filters_are_those_of_the_project_which_are_librosas():
    # The hop plays no part in filters; this configuration asks for one that divides n_fft.
    reference = mel_filterbank(
        MelConfig(sample_rate=16_000, n_fft=512, hop_length=128, num_mels=64, fmin=50.0, fmax=8000.0, log="ln")
    )
    torch.testing.assert_close(mel_filters().float(), reference, atol=1e-8, rtol=0)


def test_an_impulse_in_the_middle_of_a_frame_has_the_sums_of_the_filters():
    # The periodic window is 1 at its middle, so |FFT|^2 = 1 in every bin of frame 10. The one frame that touches the
    # impulse and is 160 samples away has w(96)^2, w = (1 - cos(2 pi 96 / 512)) / 2 = 0.3087.
    wave = torch.zeros(1, 5000, dtype=torch.float64)
    wave[0, 10 * HOP] = 1.0
    mel = log_mel(wave)[0]
    sums = 10.0 * torch.log10(mel_filters().sum(1))
    torch.testing.assert_close(mel[10], sums, atol=1e-9, rtol=0)
    beside = 20.0 * math.log10((1.0 - math.cos(2.0 * math.pi * 96 / 512)) / 2.0)
    torch.testing.assert_close(mel[9], sums + beside, atol=1e-9, rtol=0)
    torch.testing.assert_close(mel[11], sums + beside, atol=1e-9, rtol=0)
    assert float(mel[12].max()) == pytest.approx(-100.0)  # 320 samples away is outside
    # Unit area in Hz at bins of 31.25 Hz: 10 log10(1 / 31.25) = -14.95 dB for wide filters.
    torch.testing.assert_close(mel[10, 40:], torch.full((24,), -14.9485, dtype=torch.float64), atol=0.1, rtol=0)


# Slaney: 50 Hz is 0.75 mel, 8000 Hz is 15 + 27 ln 8 / ln 6.4 = 45.246; 65 steps of 0.68455. Band k is centred on
# 0.75 + 0.68455 (k + 1): 20 on 15.126 mel = 1008.7 Hz, 40 on 28.817 mel = 1000 6.4^(13.817 / 27) = 2585.7 Hz,
# 10 on 8.280 mel = 552.0 Hz.
@pytest.mark.parametrize(("hz", "band"), [(552.0, 10), (1008.7, 20), (2585.7, 40)])
def test_a_sine_peaks_in_its_band_and_doubling_adds_6_db(hz, band):
    wave = 0.3 * torch.sin(2 * torch.pi * hz / SAMPLE_RATE * torch.arange(8000, dtype=torch.float64))[None]
    inner = log_mel(wave)[0, 5:-5]
    assert inner.argmax(dim=1).unique().tolist() == [band]
    twice = log_mel(2 * wave)[0, 5:-5]
    torch.testing.assert_close(
        twice[:, band] - inner[:, band], torch.full((len(inner),), 20 * math.log10(2.0)).double()
    )


def test_ends_are_reflected():
    # A wave mirrored about its first sample has frames mirrored in time: frame k of the mirrored one is frame -k.
    wave = noise(1, 3201).double()
    both = torch.cat((wave.flip(1)[:, :-1], wave), dim=1)
    torch.testing.assert_close(log_mel(both)[0, 20], log_mel(wave)[0, 0], atol=1e-9, rtol=0)


def test_the_files_transform_is_ours():
    """What the published convolution does to a frame is what our transform does."""
    frame = noise(1, 512).double()
    tensors = front_end_tensors()
    real, imag = (frame @ tensors[f"spectrogram_extractor.stft.conv_{p}.weight"][:, 0].double().T
                  for p in ("real", "imag"))  # fmt: skip
    window = torch.from_numpy(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512))
    expected = np.fft.rfft((frame * window).numpy())
    assert np.abs(real.numpy() - expected.real).max() < 1e-5
    assert np.abs(imag.numpy() - expected.imag).max() < 1e-5
    energy = torch.from_numpy(np.abs(expected) ** 2) @ tensors["logmel_extractor.melW"].double()
    padded = torch.cat((torch.zeros(1, 512), frame, torch.zeros(1, 512)), dim=1)
    ours = log_mel(torch.roll(padded, -128, dims=1))  # frame begins at 384 = 4 hops - 256
    torch.testing.assert_close(ours[0, 4], 10 * torch.log10(energy[0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("logmel_extractor.melW", lambda x: x.roll(1, 1)),
        ("spectrogram_extractor.stft.conv_real.weight", lambda x: 1.001 * x),
        ("spectrogram_extractor.stft.conv_imag.weight", lambda x: x.flip(2)),
    ],
)
def test_a_file_with_another_front_end_is_refused(name, change):
    network = Cnn14(channels=(1,) * 6, classes=2)
    buffers = dict(network.named_buffers())
    for key, tensor in front_end_tensors().items():
        buffers[key].copy_(tensor)
    check_front_end(network, Path("x.pth"))
    buffers["spectrogram_extractor.stft.conv_imag.weight"].neg_()  # the power is the same
    check_front_end(network, Path("x.pth"))
    buffers[name].copy_(change(buffers[name].clone()))
    with pytest.raises(WeightsError, match=f"trained on another front end: {name} differs"):
        check_front_end(network, Path("x.pth"))


def test_rows_and_logits_do_not_depend_on_the_batch(small):
    waves = noise(11, 8000)  # more than are embedded at once
    together = small.embed(waves)
    assert together.counts == (1,) * 11
    assert (together.rows.shape, together.logits.shape) == ((11, 12), (11, 9))
    for k in (0, 7, 8, 10):
        alone = small.embed(waves[k : k + 1])
        torch.testing.assert_close(alone.rows[0], together.rows[k], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.logits[0], together.logits[k], atol=1e-5, rtol=1e-5)
    assert together.rows.std(dim=0).max() > 1e-4  # clips do differ


def test_rows_pass_a_relu_and_logits_no_sigmoid(small):
    given = small.embed(noise(3, 8000))
    assert bool((given.rows >= 0).all())
    assert bool((given.logits < 0).any())
    torch.testing.assert_close(small.network.fc_audioset(given.rows), given.logits)


def test_pooling_is_mean_over_mel_then_maximum_plus_mean_over_time(small):
    mel = log_mel(noise(2, 8 * SHORTEST))
    seen: dict[str, Tensor] = {}
    hooks = [
        small.network.get_submodule("conv_block6").register_forward_hook(lambda _, a, out: seen.update(maps=out)),
        small.network.fc1.register_forward_pre_hook(lambda _, args: seen.update(pooled=args[0])),
        small.network.get_submodule("conv_block1").register_forward_pre_hook(
            lambda _, args: seen.update(first=args[0])
        ),
    ]
    small.network(mel)
    for hook in hooks:
        hook.remove()
    maps = seen["maps"]
    assert maps.shape == (2, 12, mel.shape[1] // 32, 2)  # five halvings of time and of 64 mel bands
    over_mel = (maps[..., 0] + maps[..., 1]) / 2
    torch.testing.assert_close(seen["pooled"], over_mel.amax(2) + over_mel.sum(2) / over_mel.shape[2])
    # Normalisation per mel band: (x - mean) / sqrt(var + 1e-5), here with one mean and one variance.
    weight, bias = small.network.bn0.weight, small.network.bn0.bias
    torch.testing.assert_close(seen["first"], ((mel + 30.0) / math.sqrt(400.0 + 1e-5) * weight + bias)[:, None])


def test_normalisation_is_per_mel_band():
    network = Cnn14(channels=(1,) * 6, classes=2).eval()
    network.bn0.running_mean.copy_(torch.arange(64.0))
    seen: list[Tensor] = []
    network.get_submodule("conv_block1").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network(torch.zeros(1, 64, 64))  # as many frames as bands: mixing them up would go unnoticed by shapes
    torch.testing.assert_close(seen[0][0, 0, 7], -torch.arange(64.0), atol=1e-3, rtol=1e-4)


def test_clips_too_short_to_halve_five_times_are_refused_in_a_line(small):
    assert small.embed(noise(1, SHORTEST)).rows.shape == (1, 12)
    with pytest.raises(ValueError, match=r"PANNs Cnn14 needs clips of at least 0.31 s \(4960 samples\), got 0.3099"):
        small.embed(noise(1, SHORTEST - 1))
    with pytest.raises(RuntimeError), warnings.catch_warnings(action="ignore"):
        small.network(log_mel(noise(1, SHORTEST - 1)))  # the network itself could not
