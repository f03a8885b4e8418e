"""HTS-AT towers of LAION-CLAP and MS-CLAP 2023: layout, front end, windows, lengths, agreement with transformers."""

import math
import re
from pathlib import Path

import pytest
import torch
from einops import rearrange
from torch import Tensor

from eval.extractors.clap_audio import (
    HTSAT_BASE,
    HTSAT_TINY,
    LAION_SAMPLES,
    MS_SAMPLES,
    Htsat,
    HtsatConfig,
    LogMelConfig,
    check_constants,
    front_end_tensors,
    htsat_name,
    laion_length,
    ms_length,
    relative_positions,
    shifted_mask,
)
from mf_mjt_torchvision import guard_torchvision
from teacher.files.errors import WeightsError
from tests.eval.extractors.test_clap_text import recipe
from tests.rounding import two_ways

# Maps of 32, 16, 8 and 4 tokens a side, the last no larger than the window, as in the published sizes.
SMALL = HtsatConfig(
    mel=LogMelConfig(sample_rate=16_000, n_fft=256, hop_length=80, num_mels=32, fmax_hz=(8000.0,)),
    embed_dim=8,
    depths=(2, 2, 3, 2),
    heads=(1, 2, 4, 4),
    image=128,
    window=4,
    classes=9,
)
SAMPLES = 500 * 80
"""501 frames, stretched to 512."""


def layout(width: int, depths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published audio tower, written down by stage."""
    names: dict[str, tuple[int, ...]] = {
        "spectrogram_extractor.stft.conv_real.weight": (513, 1, 1024),
        "spectrogram_extractor.stft.conv_imag.weight": (513, 1, 1024),
        "logmel_extractor.melW": (513, 64),
        "bn0.num_batches_tracked": (),
        "patch_embed.proj.weight": (width, 1, 4, 4),
        "tscam_conv.weight": (527, 8 * width, 2, 3),
        "tscam_conv.bias": (527,),
        "head.weight": (527, 527),
        "head.bias": (527,),
    }
    names |= {f"bn0.{part}": (64,) for part in ("weight", "bias", "running_mean", "running_var")}
    names |= dict.fromkeys(("patch_embed.proj.bias", "patch_embed.norm.weight", "patch_embed.norm.bias"), (width,))
    names |= {"norm.weight": (8 * width,), "norm.bias": (8 * width,)}
    for k, (depth, heads) in enumerate(zip(depths, (4, 8, 16, 32), strict=True)):
        w = width * 2**k
        for j in range(depth):
            block = f"layers.{k}.blocks.{j}"
            for name, out, into in (
                ("attn.qkv", 3 * w, w), ("attn.proj", w, w), ("mlp.fc1", 4 * w, w), ("mlp.fc2", w, 4 * w)
            ):  # fmt: skip
                names |= {f"{block}.{name}.weight": (out, into), f"{block}.{name}.bias": (out,)}
            names |= {f"{block}.norm{n}.{part}": (w,) for n in (1, 2) for part in ("weight", "bias")}
            names[f"{block}.attn.relative_position_bias_table"] = (225, heads)  # 15 x 15 differences
            names[f"{block}.attn.relative_position_index"] = (64, 64)
            if j % 2 and k < 3:  # the last map is one window of 8 x 8, which nothing is shifted out of
                names[f"{block}.attn_mask"] = ((8 // 2**k) ** 2, 64, 64)
        if k < 3:
            merge = f"layers.{k}.downsample"
            names |= {f"{merge}.reduction.weight": (2 * w, 4 * w)}
            names |= {f"{merge}.norm.weight": (4 * w,), f"{merge}.norm.bias": (4 * w,)}
    return names


def noise(clips: int, samples: int) -> Tensor:
    return 0.3 * torch.randn(clips, samples, generator=torch.Generator().manual_seed(5))


def sounds(clips: int) -> Tensor:
    """Clips of SAMPLES that differ: clip k is noise of which bursts remain, k + 1 a second, and a tone that rises."""
    time = torch.arange(SAMPLES) / 16_000
    saved = [torch.sin(2 * math.pi * (k + 1) * time).clamp_min(0.0) for k in range(clips)]
    tones = [0.3 * torch.sin(2 * math.pi * (200 + 500 * k + 100 * k * time) * time) for k in range(clips)]
    return noise(clips, SAMPLES) * torch.stack(saved) + torch.stack(tones)


@pytest.fixture(scope="module")
def small() -> Htsat:
    """The network of SMALL with the front end of a file, weights that matter and statistics of a trained bn0."""
    torch.manual_seed(0)
    network = Htsat(SMALL).eval().requires_grad_(False)
    network.load_state_dict(front_end_tensors(SMALL), strict=False)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 1.0 if "table" in name else 1.5 * parameter.flatten(1).shape[1] ** -0.5)
        else:
            parameter.add_(0.2 * torch.randn_like(parameter))
    network.tower.audio_encoder.batch_norm.running_mean.normal_(-30.0, 5.0)
    network.tower.audio_encoder.batch_norm.running_var.uniform_(100.0, 400.0)
    return network


@pytest.mark.parametrize(
    ("config", "width", "depths", "tensors", "numbers", "others", "of_file"),
    [
        # Beside the tower LAION-CLAP's file of 504 tensors, 200.06 M holds RoBERTa (199 tensors), two projections of
        # 1024 and 768 -> 512 -> 512 and two transforms 512 -> 512 -> 512 (16), and two scales.
        (HTSAT_BASE, 128, (2, 2, 12, 2), 287, 72_924_376,
         (199 + 16 + 2, 124_645_632 + (1025 + 769 + 6 * 513) * 512 + 2), (504, 200.06)),
        # MS-CLAP's file of 357 tensors, 159.87 M: GPT-2 (148), two projections of 768 -> 1024 -> 1024 without biases
        # and with a norm (8), and a scale.
        (HTSAT_TINY, 96, (2, 2, 6, 2), 200, 31_751_256,
         (148 + 8 + 1, 124_439_808 + 2 * (768 + 1024 + 2) * 1024 + 1), (357, 159.87)),
    ],
    ids=["laion", "ms-2023"],
)  # fmt: skip
def test_layout_of_the_published_files(config, width, depths, tensors, numbers, others, of_file):
    with torch.device("meta"):
        network = Htsat(config)
    state = network.state_dict()
    shapes: dict[str, tuple[int, ...]] = {}
    for own, tensor in state.items():
        name = htsat_name(own)
        first = tensor.shape[0] + shapes[name][0] if name in shapes else 0  # query, key and value lie in one
        shapes[name] = (first, *tensor.shape[1:]) if first else tuple(tensor.shape)
    assert shapes == layout(width, depths)
    assert len(shapes) == tensors
    assert sum(tensor.numel() for tensor in state.values()) == numbers
    assert (tensors + others[0], round((numbers + others[1]) / 1e6, 2)) == of_file
    integers = {name.rsplit(".", 1)[1] for name, tensor in state.items() if not tensor.dtype.is_floating_point}
    assert integers == {"relative_position_index", "num_batches_tracked"}
    assert config.dimensions == 8 * width


def test_frames_of_the_published_lengths():
    assert 10 * HTSAT_BASE.mel.sample_rate == LAION_SAMPLES
    assert 7 * HTSAT_TINY.mel.sample_rate == MS_SAMPLES
    assert HTSAT_BASE.mel.num_frames(LAION_SAMPLES) == 1001
    assert HTSAT_TINY.mel.num_frames(MS_SAMPLES) == 965  # 308 700 / 320 = 964.7
    assert (HTSAT_BASE.frames, HTSAT_BASE.fold, HTSAT_TINY.frames, HTSAT_TINY.fold) == (1024, 4, 1024, 4)


def test_log_mel_of_silence_and_of_a_tone(small: Htsat):
    """Silence is -100 dB. A tone of 1 kHz is loudest in the band whose triangle is centred next to it."""
    time = torch.arange(SAMPLES) / 16_000
    mel = small.log_mel(torch.stack((torch.zeros(SAMPLES), 0.5 * torch.sin(2 * math.pi * 1000 * time))))
    assert mel.shape == (2, 501, 32)
    assert torch.equal(mel[0], torch.full((501, 32), -100.0))
    # Slaney's scale: 50 Hz is 0.75 mel, 8000 Hz is 15 + 27 ln 8 / ln 6.4 = 45.25 mel; 33 steps of 1.348 mel. 1 kHz is
    # 15 mel, (15 - 0.75) / 1.348 = 10.57 steps up: between the centres of bands 9 (10 steps) and 10 (11 steps).
    assert int(mel[1, 250].argmax()) in (9, 10)


def test_positions_and_masks_by_their_definition():
    index = relative_positions(4)
    for a, b in ((0, 0), (0, 15), (6, 9), (15, 0)):
        assert index[a, b] == (a // 4 - b // 4 + 3) * 7 + (a % 4 - b % 4 + 3)
    # After rolling by 2, two places of a window were neighbours if neither axis jumps from the end to the beginning.
    mask = shifted_mask(8, 4, 2)
    rolled = torch.roll(torch.arange(64).reshape(8, 8), (-2, -2), dims=(0, 1))
    old = rearrange(rolled, "(i r) (j c) -> (i j) (r c)", r=4, c=4)
    rows, columns = old // 8, old % 8
    near = ((rows[:, :, None] - rows[:, None]).abs() < 4) & ((columns[:, :, None] - columns[:, None]).abs() < 4)
    assert torch.equal(mask == 0, near)
    assert mask.min() == -100


def test_masks_and_positions_are_those_that_transformers_uses(small: Htsat):
    """The files hold both; the network makes the masks itself and takes the positions from the file."""
    assert SMALL.shifted == ((0, 1), (1, 1), (2, 1))  # the last map is one window
    small(sounds(1))  # transformers decides which blocks are shifted when it is used
    for k, stage in enumerate(small.tower.audio_encoder.layers):
        for j, block in enumerate(stage.blocks):
            side = SMALL.side(k)
            made = block.get_attn_mask(side, side, torch.float32, torch.device("cpu"))
            assert (made is not None) == ((k, j) in SMALL.shifted)
            if made is not None:
                assert torch.equal(made, small.masks.get_buffer(f"{k}-{j}"))
            assert torch.equal(block.attention.self.relative_position_index, relative_positions(4))


def test_recorded_embeddings():
    """Recorded from an HTS-AT of our own with the published names, in float32 on torch 2.13, its weights by recipe.

    From spectrogram to embedding about 60 layers follow each other, whose sums have some 64 terms of about 1; the two
    clips differ by up to 1.
    """
    made = Htsat(SMALL).eval().requires_grad_(False)
    own: dict[str, list[str]] = {}
    for name in made.state_dict():
        own.setdefault(htsat_name(name), []).append(name)
    state = made.state_dict()
    fixed = ("index", "tracked", "attn_mask", "conv_real.weight", "conv_imag.weight", "melW")
    free = {name: torch.cat([state[part] for part in parts]) if len(parts) > 1 else state[parts[0]]
            for name, parts in own.items() if not name.endswith(fixed)}  # fmt: skip
    for name, tensor in recipe(free).items():
        for part, piece in zip(own[name], tensor.chunk(len(own[name])), strict=True):
            state[part] = piece
    made.load_state_dict(state | front_end_tensors(SMALL))
    recorded = [
        [-1.099179744720459, 0.8332128524780273, -0.5341159105300903, -1.6192972660064697, -1.9525727033615112,
         0.9703198671340942],
        [-1.1613683700561523, 0.7933099865913391, -0.7167985439300537, -1.513805866241455, -1.3961929082870483,
         0.7871264815330505],
    ]  # fmt: skip
    for row, values in zip(made(sounds(2)), recorded, strict=True):
        assert row[:6].tolist() == pytest.approx(values, abs=two_ways(60, 64, 1.0))


def test_laion_front_end_agrees_with_transformers():
    """ClapFeatureExtractor at the published settings: three seconds, repeated and padded, to 1001 frames in decibels.

    It transforms in float64, the file's weights in float32: rounding of 1e-7 of the power is 4e-7 dB, and more in the
    frame across the border to silence (measured: 3e-5 dB).
    """
    guard_torchvision()  # transformers imports it where it is installed
    from transformers import ClapFeatureExtractor

    theirs = ClapFeatureExtractor(
        feature_size=64, sampling_rate=48_000, hop_length=480, fft_window_size=1024, frequency_min=50,
        frequency_max=14_000, truncation="rand_trunc", padding="repeatpad",
    )  # fmt: skip
    wave = noise(1, 3 * 48_000 + 17)
    expected = theirs(wave[0].numpy(), sampling_rate=48_000, return_tensors="pt")["input_features"][0, 0]
    front = Htsat(HtsatConfig(mel=HTSAT_BASE.mel, embed_dim=4, depths=(1,), heads=(1,)))
    front.load_state_dict(front_end_tensors(HTSAT_BASE), strict=False)
    found = front.log_mel(laion_length(wave))[0]
    assert found.shape == expected.shape == (1001, 64)
    assert expected.amax() > 0.0
    assert expected[-1].amax() == -100.0  # three copies end before 10 s
    assert torch.allclose(found, expected, rtol=0, atol=1e-3)


def test_embedding_does_not_depend_on_the_batch(small: Htsat):
    waves = sounds(5)
    together = small(waves)
    assert together.shape == (5, 64)
    alone = torch.cat([small(wave[None]) for wave in waves])
    assert torch.allclose(together, alone, rtol=0, atol=1e-5)
    assert torch.allclose(small(waves.flip(0)).flip(0), together, rtol=0, atol=1e-5)
    assert float((together[0] - together[1]).abs().max()) > 0.1


def test_laion_length_repeats_whole_copies_then_zeros():
    wave = torch.arange(1.0, 5.0)[None]
    assert laion_length(wave, samples=10)[0].tolist() == [1, 2, 3, 4, 1, 2, 3, 4, 0, 0]
    assert torch.equal(laion_length(wave, samples=4), wave)
    eight = noise(1, 8 * 48_000)  # a clip of 8 s: one copy, then two seconds of zeros
    made = laion_length(eight)
    assert made.shape == (1, 480_000)
    assert torch.equal(made[:, : 8 * 48_000], eight)
    assert not made[:, 8 * 48_000 :].any()


def test_ms_length_tiles_until_full():
    wave = torch.arange(1.0, 5.0)[None]
    assert ms_length(wave, samples=10)[0].tolist() == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
    assert torch.equal(ms_length(wave, samples=4), wave)
    assert ms_length(noise(2, 100_000)).shape == (2, 308_700)
    assert ms_length(noise(2, 8 * 44_100)).shape == (2, 308_700)


@pytest.mark.parametrize(("fix", "start"), [(laion_length, 1), (ms_length, 0)])
def test_crop_is_the_middle_of_every_clip(fix, start):
    """Of 24 samples 20 are taken: LAION-CLAP's five places and MS-CLAP's four have the same middle, place 2. With one
    sample too many LAION-CLAP has two places, MS-CLAP one."""
    waves = noise(5, 24)
    assert torch.equal(fix(waves, samples=20), waves[:, 2:22])
    assert torch.equal(fix(waves[:, :21], samples=20), waves[:, start : start + 20])


@pytest.mark.parametrize("fix", [laion_length, ms_length])
@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (5,)])
def test_lengths_refuse_what_is_no_batch_of_clips(fix, shape):
    with pytest.raises(ValueError, match=r"waves must be \(clips, samples\) with at least one of each"):
        fix(torch.zeros(shape))


def test_constants_of_the_file_are_checked(small: Htsat):
    """Transform, filters, positions and masks; the sines may have either sign."""
    path = Path("weights.pt")
    check_constants(small, path)
    saved = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    try:
        small.log_mel.imag.neg_()
        check_constants(small, path)
        for name in (
            "log_mel.real",
            "log_mel.filters",
            "tower.audio_encoder.layers.1.blocks.0.attention.self.relative_position_index",
            "masks.2-1",
        ):
            buffer = small.get_buffer(name)
            buffer[..., 0, 1] += 1
            with pytest.raises(
                WeightsError, match=rf"weights\.pt was made for another network: {re.escape(htsat_name(name))} "
            ):
                check_constants(small, path)
            buffer.copy_(saved[name])
        small.log_mel.filters.fill_(math.nan)
        with pytest.raises(WeightsError, match="melW differs"):
            check_constants(small, path)
    finally:
        small.load_state_dict(saved)


def test_ms_filters_may_end_at_either_edge():
    config = HtsatConfig(mel=HTSAT_TINY.mel, embed_dim=4, depths=(1, 1), heads=(1, 2), image=64, window=4, classes=2)
    network = Htsat(config)
    for edge in (14_000.0, 8000.0):
        network.load_state_dict(front_end_tensors(config, fmax_hz=edge), strict=False)
        check_constants(network, Path("clap.pth"))
    network.load_state_dict(front_end_tensors(config, fmax_hz=11_025.0), strict=False)
    with pytest.raises(WeightsError, match="melW"):
        check_constants(network, Path("clap.pth"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": (2, 2)}, "depths must be positive, one for each of the heads"),
        ({"depths": (2, 2, 0, 2)}, "depths must be positive"),
        ({"heads": (3, 2, 4, 4)}, "heads must divide the widths of their stages, got 3 for 8"),
        ({"image": 100}, "image must be a multiple of num_mels 32 and of"),
        ({"window": 5}, "window must divide the sides of the maps, got 5 for 32"),
        ({"window": 1}, "window must be at least 2, got 1"),
        ({"embed_dim": 0}, "embed_dim must be positive, got 0"),
        ({"classes": 0}, "classes must be positive, got 0"),
    ],
)
def test_wrong_sizes_are_refused(change, message):
    fields = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__}
    with pytest.raises(ValueError, match=message):
        HtsatConfig(**fields | change)


def test_wrong_front_ends_are_refused():
    with pytest.raises(ValueError, match="hop_length must be between 1 and n_fft 1024, got 0"):
        LogMelConfig(sample_rate=48_000, hop_length=0)
    with pytest.raises(ValueError, match="fmax_hz must name at least one"):
        LogMelConfig(sample_rate=48_000, hop_length=480, fmax_hz=())
    with pytest.raises(ValueError, match="Nyquist"):
        LogMelConfig(sample_rate=16_000, hop_length=160)
