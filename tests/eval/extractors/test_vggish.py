"""VGGish: front end against closed forms, layout of the published file, rows per clip, independence of the batch."""

import hashlib
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eval.extractors.base import LoadedFile
from eval.extractors.vggish import (
    FRAME,
    HOP,
    NUM_MELS,
    SAMPLE_RATE,
    SHORTEST,
    Vggish,
    VggishNetwork,
    log_mel,
    patches,
)
from eval.metrics.embeddings import Embeddings
from teacher.files.errors import WeightsError

LAYOUT = {
    **{f"features.{i}.weight": (out, width, 3, 3) for i, width, out in
       ((0, 1, 64), (3, 64, 128), (6, 128, 256), (8, 256, 256), (11, 256, 512), (13, 512, 512))},
    **{f"features.{i}.bias": (out,) for i, out in ((0, 64), (3, 128), (6, 256), (8, 256), (11, 512), (13, 512))},
    "embeddings.0.weight": (4096, 12288), "embeddings.0.bias": (4096,),
    "embeddings.2.weight": (4096, 4096), "embeddings.2.bias": (4096,),
    "embeddings.4.weight": (128, 4096), "embeddings.4.bias": (128,),
}  # fmt: skip
"""Names and shapes of vggish-10086976.pth."""


def sine(hz: float, samples: int = SHORTEST) -> Tensor:
    return 0.5 * torch.sin(2 * torch.pi * hz / SAMPLE_RATE * torch.arange(samples, dtype=torch.float64))[None]


def noise(clips: int, samples: int) -> Tensor:
    return 0.3 * torch.randn(clips, samples, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def small() -> Vggish:
    """The network with few channels and random weights."""
    torch.manual_seed(0)
    network = VggishNetwork(channels=(4, 6, 8, 10), hidden=24, dimensions=7).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)  # the default shrinks what differs between clips
    return Vggish(network=network, loaded=LoadedFile(path=Path("small.pth"), digest="0" * 12, published=False))


def write(path: Path, layout: dict[str, tuple[int, ...]], **changes: Tensor | None) -> Path:
    """A checkpoint whose tensors repeat one stored number each, so that full sizes take no space."""
    tensors = {name: torch.full((1,), 0.001).expand(shape) for name, shape in layout.items()}
    for name, tensor in changes.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    torch.save(tensors, path)
    return path


def test_layout_and_parameters_of_the_published_file():
    with torch.device("meta"):
        network = VggishNetwork()
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == LAYOUT
    assert sum(p.numel() for p in network.parameters()) == 72_141_184  # 4.50 M convolutions, 67.64 M linear


def test_loads_a_file_of_the_published_layout_and_records_its_digest(tmp_path):
    path = write(tmp_path / "vggish.pth", LAYOUT)
    model = Vggish.load(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    assert model.loaded == LoadedFile(path=path, digest=digest, published=False)
    assert digest in model.name
    assert "NOT the published file" in str(model.loaded)
    assert not model.network.training
    assert not any(p.requires_grad for p in model.network.parameters())
    assert model.embed(noise(1, SHORTEST)).rows.shape == (1, 128)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings.4.bias": None}, r"1 missing \(embeddings.4.bias\)"),
        ({"pproc.pca_means": torch.zeros(128, 1)}, r"1 unexpected \(pproc.pca_means\)"),
        ({"embeddings.4.bias": torch.zeros(64)}, r"embeddings.4.bias \(64,\) instead of \(128,\)"),
        ({"embeddings.4.bias": torch.zeros(128, dtype=torch.int64)}, r"another kind .*embeddings.4.bias"),
        ({"embeddings.4.bias": torch.full((128,), math.nan)}, r"NaN or infinite values.*embeddings.4.bias"),
    ],
)
def test_refuses_another_layout(tmp_path, changes, message):
    with pytest.raises(WeightsError, match=message) as error:
        Vggish.load(write(tmp_path / "other.pth", LAYOUT, **changes))
    assert "\n" not in str(error.value)


# 1 + (samples - 400) // 160 frames, 96 to a patch: 8 s has 798 frames = 8.3 patches, 10 s has 998 = 10.4.
@pytest.mark.parametrize(
    ("samples", "frames", "count"),
    [(128_000, 798, 8), (160_000, 998, 10), (15_600, 96, 1), (15_599, 95, 0), (30_959, 191, 1), (30_960, 192, 2)],
)
def test_frames_and_patches(samples, frames, count):
    wave = torch.zeros(1, samples)
    assert log_mel(wave).shape == (1, frames, 64)
    assert patches(wave).shape == (1, count, 96, 64)
    assert patches(wave).dtype is torch.float32


def test_clips_below_one_patch_are_refused_in_a_line(small):
    with pytest.raises(ValueError, match=r"VGGish needs clips of at least 0.975 s \(15600 samples\), got 0.974938 s"):
        small.embed(torch.zeros(2, SHORTEST - 1))
    with pytest.raises(ValueError, match="finite waves"):
        small.embed(torch.full((1, SHORTEST), math.inf))
    with pytest.raises(ValueError, match=r"waves \(clips, samples\), got \(16000,\)"):
        small.embed(torch.zeros(16_000))


def test_silence_is_the_logarithm_of_the_offset():
    assert log_mel(torch.zeros(1, 1000, dtype=torch.float64)).unique().tolist() == [pytest.approx(math.log(0.01))]


def test_an_impulse_is_the_window_times_the_sums_of_the_filters():
    # |FFT| of an impulse of height a at place n of a frame is a w(n) in every bin, w(n) = (1 - cos(2 pi n / 400)) / 2.
    place, height = 100, 8.0
    wave = torch.zeros(1, FRAME + HOP, dtype=torch.float64)
    wave[0, place] = height
    first, second = log_mel(wave)[0].exp() - 0.01  # the second frame begins after the impulse
    assert second.abs().max() < 1e-12
    window = 0.5 - 0.5 * math.cos(2 * math.pi * place / 400)
    assert window == pytest.approx(0.5)
    # Triangles straight in mel of height 1 in equal steps: a bin between the first and the last centre has weights that
    # add up to 1; one below the first centre or above the last has its share of the one triangle.
    mel = [1127.0 * math.log(1.0 + f * 31.25 / 700.0) for f in range(257)]
    low, high = (1127.0 * math.log(1.0 + f / 700.0) for f in (125.0, 7500.0))
    step = (high - low) / 65
    total = sum(max(0.0, min(1.0, (m - low) / step, (high - m) / step)) for m in mel)
    assert float(first.sum()) == pytest.approx(height * window * total, rel=1e-9)


@pytest.mark.parametrize("band", [10, 30, 50, 62])
def test_a_sine_peaks_in_its_band_and_magnitudes_are_not_powers(band):
    low, high = (1127.0 * math.log(1.0 + f / 700.0) for f in (125.0, 7500.0))
    centre = 700.0 * (math.exp((low + (high - low) * (band + 1) / 65) / 1127.0) - 1.0)
    mel = log_mel(sine(centre))[0].mean(dim=0)
    assert int(mel.argmax()) == band
    twice = log_mel(2.0 * sine(centre))[0].mean(dim=0)
    assert float(twice[band] - mel[band]) == pytest.approx(math.log(2.0), abs=2e-3)  # ln 4 for powers; 0.01 offset


def test_rows_are_the_patches_in_order_and_the_tail_does_not_matter(small):
    wave = noise(1, 3 * SHORTEST)
    whole = small.embed(wave)
    assert whole.counts == (3,)
    for k in range(3):
        start = k * 96 * HOP
        alone = small.embed(wave[:, start : start + SHORTEST])
        torch.testing.assert_close(alone.rows[0], whole.rows[k], atol=1e-5, rtol=1e-5)
    cut = small.embed(wave[:, : 2 * 96 * HOP + SHORTEST])
    torch.testing.assert_close(cut.rows, whole.rows, atol=1e-5, rtol=1e-5)


def test_rows_do_not_depend_on_the_batch(small):
    waves = noise(11, 2 * SHORTEST)  # more than are embedded at once
    together = small.embed(waves)
    assert together.counts == (2,) * 11
    assert together.logits is None
    for k in (0, 7, 8, 10):
        torch.testing.assert_close(
            together.rows.split(together.counts)[k], small.embed(waves[k : k + 1]).rows, atol=1e-5, rtol=1e-5
        )
    assert together.rows.std(dim=0).max() > 1e-2  # rows do differ


def test_the_last_layer_is_linear_and_the_first_counts_time_before_frequency_before_channel(small):
    rows = small.embed(noise(4, SHORTEST)).rows
    assert bool((rows < 0).any())  # a ReLU at the end would leave none
    network = VggishNetwork(channels=(1, 1, 1, 3), hidden=5, dimensions=2).requires_grad_(False)
    seen = []
    network.embeddings[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    patch = torch.randn(1, 96, NUM_MELS, generator=torch.Generator().manual_seed(1))
    network(patch)
    maps = network.features(patch[:, None])
    expected = [float(maps[0, c, t, f]) for t in range(6) for f in range(4) for c in range(3)]
    assert seen[0][0].tolist() == pytest.approx(expected)


def test_embeddings_refuse_what_does_not_add_up():
    rows = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="counts that add up to 2"):
        Embeddings(rows=rows, counts=(1, 1))
    with pytest.raises(ValueError, match="at least one row per clip"):
        Embeddings(rows=rows, counts=(3, 0))
    with pytest.raises(ValueError, match=r"logits must be \(2, classes\)"):
        Embeddings(rows=rows, counts=(1, 2), logits=torch.zeros(3, 4))
    with pytest.raises(ValueError, match="rows must be finite"):
        Embeddings(rows=rows / 0, counts=(1, 2))
    with_logits = Embeddings(rows=rows, counts=(1, 2), logits=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="in all parts or in none, got 1 of 2"):
        Embeddings.join([with_logits, Embeddings(rows=rows, counts=(1, 2))])
    assert Embeddings.join([with_logits, with_logits]).counts == (1, 2, 1, 2)
