"""PaSST: the published layout, recorded numbers, frames, patches, padding, batches, and files that do not fit."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from eval.extractors.base import EmbeddingModel
from eval.extractors.mel_front_end import kaldi_filters
from eval.extractors.passt import (
    CLIP_SAMPLES,
    PASST_S,
    Passt,
    PasstConfig,
    PasstNetwork,
    passt_spectrogram,
    ten_seconds,
)
from teacher.files import file_digest
from teacher.files.errors import WeightsError
from tests.eval.extractors.test_mel_front_end import PASST, chirps, recorded_rounding
from tests.golden.recipe import recipe_tensor
from tests.rounding import UNIT, log_energy

SMALL = PasstConfig(width=24, depth=2, heads=3, hidden=96, classes=7)
SILENCE = (math.log(1e-5) + 4.5) / 5.0
"""-1.40259: what the spectrogram of zeros is everywhere."""


def small_tensors() -> dict[str, torch.Tensor]:
    """Uniform in [-0.5, 0.5] by name, around one for the gains of norms: wide enough for attention to have its say."""
    with torch.device("meta"):
        shapes = {name: list(tensor.shape) for name, tensor in PasstNetwork(SMALL).state_dict().items()}
    return {n: recipe_tensor("passt", n, s, 0.5, float("norm" in n and "weight" in n)) for n, s in shapes.items()}


def written(folder: Path, tensors: object) -> Path:
    path = folder / PASST_S.file
    torch.save(tensors, path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Passt:
    return Passt.load(written(tmp_path_factory.mktemp("passt"), small_tensors()), config=SMALL)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Layout


def published_layout() -> dict[str, tuple[int, ...]]:
    """159 tensors: six of tokens and positions, two of patches, twelve of each of twelve blocks, eight at the end."""
    w = 768
    layout: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, w), "dist_token": (1, 1, w), "new_pos_embed": (1, 2, w),
        "freq_new_pos_embed": (1, w, 12, 1), "time_new_pos_embed": (1, w, 1, 99),
    }  # fmt: skip

    def affine(name: str, *weight: int) -> None:
        layout.update({f"{name}.weight": weight, f"{name}.bias": weight[:1]})

    affine("patch_embed.proj", w, 1, 16, 16)
    for i in range(12):
        affine(f"blocks.{i}.norm1", w)
        affine(f"blocks.{i}.attn.qkv", 3 * w, w)
        affine(f"blocks.{i}.attn.proj", w, w)
        affine(f"blocks.{i}.norm2", w)
        affine(f"blocks.{i}.mlp.fc1", 4 * w, w)
        affine(f"blocks.{i}.mlp.fc2", w, 4 * w)
    affine("norm", w)
    affine("head.0", w)
    affine("head.1", 527, w)
    affine("head_dist", 527, w)
    return layout


def test_names_shapes_and_order_are_those_of_the_published_file():
    with torch.device("meta"):
        network = PasstNetwork(PasstConfig())
    made = [(name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()]
    assert made == list(published_layout().items())
    assert len(made) == 159
    # Tokens 2 w, their positions 2 w, the grid's 111 w, patches 257 w; a block 12 w^2 + 13 w; norms 4 w; two heads.
    w = 768
    total = (2 + 2 + 12 + 99 + 257) * w + 12 * (12 * w * w + 13 * w) + 4 * w + 2 * 527 * (w + 1)
    assert sum(p.numel() for p in network.parameters()) == total == 86_153_758


def test_file_in_the_published_sizes_loads(tmp_path):
    """Tensors that share one number take a few kilobytes on disk; under a training state's key and prefix as well."""
    tensors = {name: torch.full((1,), 0.5).expand(shape) for name, shape in published_layout().items()}
    made = Passt.load(written(tmp_path, {"state_dict": {f"module.{n}": t for n, t in tensors.items()}}))
    assert made.dimensions == 768
    assert {float(p.mean()) for p in (made.network.cls_token, made.network.blocks[11].mlp.fc2.weight)} == {0.5}
    assert not any(p.requires_grad for p in made.network.parameters())
    assert not made.network.training


# Recorded with hear21passt 0.0.26 on torch 2.13: AugmentMelSTFT and PaSST(embed_dim=24, depth=2, num_heads=3,
# mlp_ratio=4, img_size=(128, 998), stride=(10, 10), num_classes=7, distilled=True) with the weights of
# `small_tensors`. At full size the features agreed to 2e-6.


def test_recorded_spectrogram():
    wave = ten_seconds(chirps(32_000, 8.0))
    made, areas = passt_spectrogram(wave)[0], kaldi_filters(**PASST).sum(1)
    emphasised = functional.pad((wave[:, 1:] - 0.97 * wave[:, :-1])[None], (400, 400), mode="reflect")[0, 0]
    norms = (emphasised.unfold(0, 800, 320) * torch.hann_window(800, periodic=False)).norm(dim=1)
    recorded = [
        (0, 0, 0.5475950241088867), (3, 10, -0.34416037797927856), (20, 100, -1.3955971002578735),
        (60, 400, -1.380384087562561), (90, 600, -0.9141246676445007), (127, 799, 0.4687418043613434),
        (40, 801, -0.9954267740249634), (5, 999, -1.4025850296020508),
    ]  # fmt: skip
    for band, frame, value in recorded:
        # A weight is off by at most recorded_rounding of the last bin, and the energy by twice as much where it lies
        # evenly in a triangle, whose mean is 1 / 2. Quiet bands beside two loud sweeps are the least certain, 3e-4.
        tolerance = log_energy(
            math.exp(5.0 * value - 4.5) - 1e-5, floor=1e-5, frame_norm=float(norms[frame]), n_fft=1024,
            area=float(areas[band]), filters=2 * recorded_rounding(PASST, 479),
        ) / 5.0  # fmt: skip
        assert tolerance < 5e-4
        assert float(made[band, frame]) == pytest.approx(value, abs=tolerance + 2 * UNIT)
    # 128 000 values, whose errors of both signs average out; the recorded sum rounded 17 times on its way.
    assert float(made.double().mean()) == pytest.approx(-1.1664011478424072, abs=17 * UNIT * 1.17)


def test_recorded_embedding_and_logits(small):
    made = small.embed(chirps(32_000, 8.0))
    embedding = [
        -0.583278477191925, 1.6352548599243164, -0.39679068326950073, 0.09963640570640564, 0.026511073112487793,
        0.5617930889129639,
    ]  # fmt: skip
    logits = [
        -0.024926409125328064, 0.31217366456985474, 0.5419918298721313, 0.1351701021194458, -0.9314757585525513,
        -0.11458460986614227, 0.17686676979064941,
    ]  # fmt: skip
    assert made.rows[0, :6].tolist() == pytest.approx(embedding, abs=2e-5)
    assert made.logits is not None
    assert made.logits[0].tolist() == pytest.approx(logits, abs=2e-5)


def test_epsilons_of_the_norms():
    """1e-6 in the body, but torch's own 1e-5 before the classifier: too little to show in the recorded numbers."""
    network = PasstNetwork(SMALL)
    assert {m.eps for m in network.modules() if isinstance(m, nn.LayerNorm)} == {1e-6, 1e-5}
    assert network.head[0].eps == 1e-5


# Front end


def test_ten_seconds_are_a_thousand_frames_and_12_by_99_patches(small):
    spectrogram = passt_spectrogram(draw(1, CLIP_SAMPLES))
    assert spectrogram.shape == (1, 128, 1000)  # 1 + floor(319 999 / 320)
    assert PasstConfig().grid == SMALL.grid == (12, 99)  # (128 - 16) // 10 + 1 and (1000 - 16) // 10 + 1
    assert small.network.patch_embed(spectrogram).shape == (1, 24, 12, 99)
    seen = []
    hook = small.network.blocks[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    small.embed(draw(1, 1000))
    hook.remove()
    assert seen == [(1, 2 + 12 * 99, 24)]


def test_one_frame_by_the_formula():
    """Frame 10 is centred on sample 3200 of w[n + 1] - 0.97 w[n]: a symmetric Hann window over its 2800 to 3600."""
    wave = draw(1, CLIP_SAMPLES).double()
    emphasised = wave[0, 1:] - 0.97 * wave[0, :-1]
    n = torch.arange(800, dtype=torch.float64)
    windowed = emphasised[2800:3600] * (0.5 - 0.5 * torch.cos(2 * math.pi * n / 799))
    angle = -2j * math.pi / 1024 * torch.outer(n, torch.arange(513).double())
    power = (windowed.to(torch.complex128) @ torch.exp(angle)).abs().square()
    corners = torch.linspace(0.0, 1127.0 * math.log(1 + 15_000 / 700), 130, dtype=torch.float64)
    mels = 1127.0 * torch.log(1.0 + torch.arange(513).double() * 31.25 / 700.0)
    filters = (1.0 - (mels - corners[1:-1, None]).abs() / corners[1]).clamp_min(0.0)
    expected = (torch.log(filters @ power + 1e-5) + 4.5) / 5.0
    # The filters are rounded to float32 once; a fifth of that relative error of the energy remains.
    torch.testing.assert_close(passt_spectrogram(wave)[0, :, 10], expected, atol=UNIT / 5, rtol=0)


@pytest.mark.parametrize("hz", [500.0, 2000.0, 9000.0])
def test_sine_is_loudest_in_its_filter(hz):
    t = torch.arange(CLIP_SAMPLES, dtype=torch.float64) / 32_000
    loudest = int(passt_spectrogram(torch.sin(2 * math.pi * hz * t)[None])[0].mean(1).argmax())
    step = 1127.0 * math.log(1 + 15_000 / 700) / 129
    # These are whole bins of 31.25 Hz, so that the nearest centre, half a step away at most, is the loudest filter.
    assert abs((loudest + 1) * step - 1127.0 * math.log(1 + hz / 700)) <= 0.5 * step + 1e-6


def test_short_clips_are_followed_by_silence_and_long_ones_cut(small):
    eight = draw(1, 256_000)
    padded = passt_spectrogram(ten_seconds(eight))
    # Frame k covers samples 320 k - 512 to 320 k + 512: from 802 on, nothing is left of the clip's 256 000.
    assert float((padded[..., 802:] - SILENCE).abs().max()) < 1e-6
    assert bool((padded[..., 800] > SILENCE + 0.1).any())
    with_zeros = torch.cat((eight, torch.zeros(1, 64_000)), dim=1)
    assert torch.equal(small.embed(eight).rows, small.embed(with_zeros).rows)
    twelve = torch.cat((with_zeros, draw(1, 64_000, seed=5)), dim=1)
    assert torch.equal(small.embed(twelve).rows, small.embed(with_zeros).rows)
    assert (small.embed(twelve[:, 64_000:]).rows - small.embed(with_zeros).rows).abs().max() > 1e-3
    assert torch.equal(
        small.embed(torch.zeros(1, 1)).rows, small.embed(torch.zeros(1, 320_000)).rows
    )  # one sample will do


# Network


def test_time_and_frequency_positions_go_to_their_patches():
    """Without blocks and with identity norms a patch shows its own position; the result is the two tokens' mean."""
    config = PasstConfig(width=24, depth=0, heads=3, hidden=96, classes=7)
    network = PasstNetwork(config).requires_grad_(False)
    network.norm = nn.Identity()
    seen = []
    network.blocks = nn.Sequential(nn.Identity())
    network.blocks.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    spectrogram = torch.zeros(1, 128, 1000)
    made = network(spectrogram)
    first, second = network.cls_token + network.new_pos_embed[:, :1], network.dist_token + network.new_pos_embed[:, 1:]
    torch.testing.assert_close(made, ((first + second) / 2)[:, 0])
    token = seen[0][0, 2 + 5 * 99 + 70]  # row 5, column 70: frequency by frequency
    expected = network.freq_new_pos_embed[0, :, 5, 0] + network.time_new_pos_embed[0, :, 0, 70]
    torch.testing.assert_close(token, expected + network.patch_embed.proj.bias)


def test_a_clip_does_not_depend_on_its_batch(small, monkeypatch):
    waves = draw(5, 256_000)
    monkeypatch.setattr("eval.extractors.passt.CLIPS_AT_ONCE", 2)
    together = small.embed(waves)
    assert together.counts == (1,) * 5
    assert together.rows.shape == (5, 24)
    assert together.logits is not None
    for k in (0, 3):
        alone = small.embed(waves[k : k + 1])
        torch.testing.assert_close(together.rows[k : k + 1], alone.rows, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.logits[k : k + 1], alone.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(small.network.head(together.rows), together.logits, atol=1e-6, rtol=1e-6)
    assert (together.rows[0] - together.rows[1]).abs().max() > 1e-3


def test_waves_that_do_not_fit_are_refused(small):
    with pytest.raises(ValueError, match=r"PaSST needs waves \(clips, samples\)"):
        small.embed(torch.zeros(320_000))
    with pytest.raises(ValueError, match=r"at least .* \(1 samples\)"):
        small.embed(torch.zeros(1, 0))
    with pytest.raises(ValueError, match="finite"):
        small.embed(torch.full((1, 10), float("nan")))


# Files


def test_name_holds_the_digest_of_the_file(small, tmp_path):
    model: EmbeddingModel = small
    assert model.sample_rate == 32_000
    assert model.dimensions == 24
    assert model.name == f"passt-s-ap476-swa-v1@32000:{file_digest(small.loaded.path)}"
    other = Passt.load(written(tmp_path, small_tensors() | {"norm.bias": torch.zeros(24)}), config=SMALL)
    assert other.name != model.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blocks.1.attn.qkv.bias"), r"1 missing \(blocks.1.attn.qkv.bias\)"),
        (lambda t: t.update({"mel.mel_basis": torch.zeros(2)}), r"1 unexpected \(mel.mel_basis\)"),
        (lambda t: t.update({"cls_token": torch.zeros(1, 24)}), r"cls_token \(1, 24\) instead of \(1, 1, 24\)"),
        (lambda t: t.update({"time_new_pos_embed": torch.zeros(1, 24, 1, 199)}), r"\(1, 24, 1, 199\) instead of"),
        (lambda t: t.update({"norm.bias": torch.full((24,), float("nan"))}), "NaN"),
        (lambda t: t.update({"step": 7}), "something else than tensors"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path, change, message):
    tensors = small_tensors()
    change(tensors)
    path = written(tmp_path, tensors)
    with pytest.raises(WeightsError, match=message) as caught:
        Passt.load(path, config=SMALL)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_sizes_and_absent_files_are_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"is not passt-s-f128-p16-s10-ap.476-swa.pt: .* missing"):
        Passt.load(written(tmp_path, small_tensors()))
    with pytest.raises(WeightsError, match=r"absent\.pt is not there"):
        Passt.load(tmp_path / "absent.pt")
    with pytest.raises(ValueError, match="heads must divide width 24, got 5"):
        PasstConfig(width=24, heads=5)
    with pytest.raises(ValueError, match="stride must be at least 1"):
        PasstConfig(stride=0)
