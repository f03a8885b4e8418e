"""BigVGAN: published names, recorded numbers, the anti-aliased activation against its plain form, folding, lengths."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from teacher.audio.alias_free import (
    CUTOFF,
    HALF_WIDTH,
    TAPS,
    AliasFreeSnake,
    anti_aliased_snake,
    downsample,
    kaiser_sinc_filter,
    upsample,
)
from teacher.audio.vocoder import (
    BIGVGAN_16K,
    BIGVGAN_V2_44K,
    GAIN_AND_DIRECTION,
    BigVGAN,
    VocoderConfig,
    fold_weight_norm,
)
from teacher.files.errors import WeightsError
from tests.golden import audio
from tests.golden.recipe import Recording, vocoder_config
from tests.rounding import UNIT, two_ways

GOLDEN = Path(audio.__file__).parent
TINY = VocoderConfig(
    num_mels=6,
    upsample_rates=(5, 2),
    upsample_kernel_sizes=(11, 4),
    initial_channels=16,
    resblock_kernel_sizes=(3, 5),
    resblock_dilations=((1, 3), (1, 2)),
)


def tiny(seed: int = 0, config: VocoderConfig = TINY) -> dict[str, Tensor]:
    """Folded weights with open activations."""
    torch.manual_seed(seed)
    state = BigVGAN(config).state_dict()
    return {n: 0.5 * torch.randn(t.shape) if ".act." in n else t.clone() for n, t in state.items()}


def plain_activation(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """The definition: pad, transposed convolution per channel, crop, snake, pad, convolution per channel."""
    taps = kaiser_sinc_filter().to(x).expand(x.shape[1], 1, -1)
    padded = functional.pad(x, (5, 5), mode="replicate")
    u = 2 * functional.conv_transpose1d(padded, taps, stride=2, groups=x.shape[1])[..., 15:-15]
    u = u + torch.sin(u * alpha.exp()[:, None]).square() / (beta.exp() + 1e-9)[:, None]
    return functional.conv1d(functional.pad(u, (5, 6), mode="replicate"), taps, stride=2, groups=x.shape[1])


def check(recording: Recording) -> None:
    deviations = list(audio.vocoder(recording))
    assert {d.name for d in deviations} == set(recording.document["outputs"])
    assert [d for d in deviations if not d.value <= d.tolerance] == []


def test_recorded_numbers():
    check(Recording.read(GOLDEN / "recordings", "E1_bigvgan_small"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["E2_bigvgan_16k", "E3_bigvgan_v2_44k"])
def test_recorded_numbers_of_the_published_sizes(recordings, name):
    check(Recording.read(recordings, name))


@pytest.mark.parametrize(
    ("name", "config", "parameters"),
    [("bigvgan_16k", BIGVGAN_16K, 112_199_473), ("bigvgan_v2_44k", BIGVGAN_V2_44K, 122_152_752)],
)
def test_folded_names_and_shapes_are_the_published_ones(name, config, parameters):
    manifest = json.loads((GOLDEN / "manifests" / f"{name}.json").read_text())
    gain, direction = ".parametrizations.weight.original0", ".parametrizations.weight.original1"
    folded = {n.replace(direction, ".weight"): s for n, s in manifest["entries"] if not n.endswith(gain)}
    with torch.device("meta"):
        state = BigVGAN(config).state_dict()
    assert {n: list(t.shape) for n, t in state.items()} == folded
    assert sum(t.numel() for t in state.values()) == parameters == manifest["num_parameters_after_fusing"]
    assert vocoder_config(manifest["config"]) == config
    activations = sum(n.endswith(".act.alpha") for n in state)
    assert manifest["filters"] == 2 * activations  # what the checkpoint stores and this generator computes


def test_the_filter():
    """The formula in float64; the numbers in published generators were computed in float32.

    A tap is window times sinc over a sum: the window's Bessel functions are good to four roundings, the sine's argument
    of at most 8.7 to another 8.7 of sin <= 1, the rest is three products and a quotient. The sum's error is shared.
    """
    taps = kaiser_sinc_filter()
    beta = 0.1102 * (2.285 * (TAPS // 2 - 1) * math.pi * 4 * HALF_WIDTH + 7.95 - 8.7)
    window = torch.kaiser_window(TAPS, periodic=False, beta=beta, dtype=torch.float64)
    time = torch.arange(TAPS, dtype=torch.float64) - TAPS // 2 + 0.5
    exact = 2 * CUTOFF * window * torch.sinc(2 * CUTOFF * time)
    exact = exact / exact.sum()
    largest = 8.7 / (math.pi * 2 * CUTOFF * time.abs()) * 2 * CUTOFF * window + 8 * exact.abs()
    assert bool(((taps.double() - exact).abs() <= UNIT * largest).all())
    assert torch.equal(taps, taps.flip(0))
    assert float(taps.double().sum()) == pytest.approx(1, abs=TAPS * UNIT)
    stored = Recording.read(GOLDEN / "recordings", "E1_bigvgan_small").tensors["const.filter"]
    assert torch.equal(taps, stored.flatten())


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 50])
def test_the_activation_is_its_definition(generator, length):
    x = torch.randn(3, 4, length, generator=generator, dtype=torch.float64)
    alpha, beta = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    expected = plain_activation(x, alpha, beta)
    with torch.no_grad():
        torch.testing.assert_close(anti_aliased_snake(x, alpha, beta), expected, rtol=1e-13, atol=1e-13)
    made = anti_aliased_snake(x, alpha, beta)  # with gradients recorded it takes another route
    torch.testing.assert_close(made, expected, rtol=1e-13, atol=1e-13)


def test_more_rows_than_a_chunk_holds(generator):
    x = torch.randn(2, 3, 40_000, generator=generator)  # 65,536 samples are treated together
    alpha, beta = torch.randn(2, 3, generator=generator)
    with torch.no_grad():
        made = anti_aliased_snake(x, alpha, beta)
        close = {"rtol": 0, "atol": two_ways(2, 24, float(made.abs().max()))}  # two resamplers, 24 numbers a product
        torch.testing.assert_close(made, plain_activation(x, alpha, beta), **close)
        torch.testing.assert_close(made[1:], anti_aliased_snake(x[1:], alpha, beta), **close)


def test_the_activation_differentiates(generator):
    x = torch.randn(2, 2, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    alpha, beta = (torch.randn(2, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(anti_aliased_snake, (x, alpha, beta))


def test_the_received_signal_is_not_modified(generator):
    x = torch.randn(1, 4, 33, generator=generator)
    before = x.clone()
    with torch.no_grad():
        AliasFreeSnake(4)(x)
    assert torch.equal(x, before)


def test_a_constant_passes_as_through_the_plain_snake():
    # The taps are symmetric and sum to one, so those of either phase sum to one half.
    x = torch.tensor([0.3, -1.2])[None, :, None].expand(1, 2, 40)
    zero = torch.zeros(2)
    torch.testing.assert_close(anti_aliased_snake(x, zero, zero), x + torch.sin(x).square(), atol=1e-6, rtol=1e-6)


def response(frequency: float) -> float:
    """Gain of the filter, frequency in cycles per sample of the upsampled rate."""
    offsets = torch.arange(12, dtype=torch.float64) - 5.5
    return float((kaiser_sinc_filter().double() * torch.cos(2 * torch.pi * frequency * offsets)).sum())


@pytest.mark.parametrize("frequency", [0.3, 0.35, 0.4, 0.45])
def test_harmonics_above_nyquist_fold_back_only_as_far_as_the_filter_lets_them(frequency):
    """A faint sine a sin(2 pi f n) makes sin^2 = a^2 / 2 (1 - cos 4 pi f n), and 2 f > 1/2 folds to 1 - 2 f.

    At the upsampled rate the sine lies at f / 2 and leaves an image at 1/2 - f / 2. The harmonic, at f, passes with
    H(f) H(f/2)^2; the product of sine and image, at 1/2 - f, with 2 H(1/2 - f) H(f/2) H(1/2 - f/2). Both end up at
    1 - 2 f.
    """
    n, zero = torch.arange(1000, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    x = 1e-3 * torch.sin(2 * torch.pi * frequency * n)[None, None]

    def at_alias(y: Tensor) -> float:
        spectrum = torch.fft.rfft(y[0, 0] * torch.hann_window(1000, dtype=torch.float64))
        return float(spectrum[round(1000 * (1 - 2 * frequency))].abs())

    with torch.no_grad():
        share = at_alias(anti_aliased_snake(x, zero, zero)) / at_alias(x + torch.sin(x).square())
    half = response(frequency / 2)
    image = response(0.5 - frequency / 2)
    expected = response(frequency) * half**2 + 2 * response(0.5 - frequency) * half * image
    assert share == pytest.approx(expected, rel=0.02)
    assert share < 0.5


def test_harmonics_below_nyquist_are_kept():
    n, zero = torch.arange(1000, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    low = 0.5 * torch.sin(2 * torch.pi * 0.02 * n)[None, None]
    with torch.no_grad():
        kept = anti_aliased_snake(low, zero, zero)[..., 20:-20]
    torch.testing.assert_close(kept, (low + torch.sin(low).square())[..., 20:-20], atol=3e-3, rtol=0)  # ripple 2.5e-3


def test_resampling_there_and_back_keeps_low_frequencies():
    n = torch.arange(400, dtype=torch.float64)
    x = torch.cos(2 * torch.pi * 0.03 * n)[None]
    assert upsample(x).shape == (1, 800)
    torch.testing.assert_close(downsample(upsample(x))[:, 20:-20], x[:, 20:-20], atol=0.02, rtol=0)


@pytest.mark.parametrize(("tanh", "bias"), [(True, True), (False, False)])
def test_lengths_and_bounds(generator, tanh, bias):
    config = replace(TINY, tanh_at_final=tanh, bias_at_final=bias)
    state = tiny(config=config)
    state["conv_post.weight"] *= 100
    assert ("conv_post.bias" in state) == bias
    vocoder = BigVGAN.from_folded(state, config)
    for frames in (1, 7, 12):
        wave = vocoder(torch.randn(2, 6, frames, generator=generator))
        assert wave.shape == (2, 1, 10 * frames)
        assert float(wave.abs().max()) <= 1
    assert config.hop_length == 10
    assert bool((wave.abs() == 1).any())  # clamped, or tanh in its saturation


def test_a_later_spectrogram_gives_a_later_sound(generator):
    # Convolutions see a bounded neighbourhood; away from the edges the sound moves with the spectrogram, hop by hop.
    config = replace(TINY, resblock_kernel_sizes=(3,), resblock_dilations=((1,),))
    vocoder = BigVGAN.from_folded(tiny(config=config), config, dtype=torch.float64)
    mel = torch.randn(1, 6, 60, generator=generator, dtype=torch.float64)
    early, late = vocoder(mel[..., 2:]), vocoder(mel)
    torch.testing.assert_close(early[..., 200:-200], late[..., 220:-200], rtol=1e-10, atol=1e-10)


def test_float32_agrees_with_float64_and_a_row_with_its_batch(generator):
    mel = torch.randn(3, 6, 9, generator=generator)
    single, double = (BigVGAN.from_folded(tiny(), TINY, dtype=d) for d in (torch.float32, torch.float64))
    exact = double(mel.double())
    assert exact.dtype == torch.float64
    assert (single(mel) - exact).abs().max() < 1e-5 * exact.abs().max()
    torch.testing.assert_close(single(mel)[1:2], single(mel[1:2]), rtol=1e-5, atol=1e-6)
    half = BigVGAN.from_folded(tiny(), TINY).bfloat16()(mel.bfloat16())
    assert (half - exact).abs().max() < 0.1 * exact.abs().max()


def wrapped_namings() -> dict[str, dict]:
    """One generator as it may lie on disk."""
    folded = tiny()
    convolutions = [n.removesuffix(".weight") for n in folded if n.endswith(".weight")]
    rest = {n: t for n, t in folded.items() if not n.endswith(".weight")}
    filters = {}
    for activation in [n.removesuffix(".act.alpha") for n in folded if n.endswith(".act.alpha")]:
        for suffix in ("upsample.filter", "downsample.lowpass.filter"):
            filters[f"{activation}.{suffix}"] = kaiser_sinc_filter().view(1, 1, 12)
    pairs = {}
    for gain, direction in GAIN_AND_DIRECTION:
        named = {}
        for module in convolutions:
            w = folded[f"{module}.weight"].double()
            scale = torch.rand(len(w), 1, 1, dtype=torch.float64) + 0.5  # the length of a direction is arbitrary
            named[module + gain] = w.flatten(1).norm(dim=1)[:, None, None]
            named[module + direction] = scale * w
        pairs[gain] = named | rest | filters
    (old, _), (new, _) = GAIN_AND_DIRECTION
    return {"folded": folded, "old": {"generator": pairs[old]}, "new": pairs[new]}


def test_three_namings_give_one_generator():
    mel = torch.randn(1, 6, 5)
    folded, old, new = (fold_weight_norm(state.get("generator", state)) for state in wrapped_namings().values())
    assert set(folded) == set(old) == set(new) == set(tiny())
    reference = BigVGAN.from_folded(folded, TINY)(mel)
    for state in (old, new):
        torch.testing.assert_close(BigVGAN.from_folded(state, TINY)(mel), reference, rtol=1e-6, atol=1e-7)


def test_the_norm_of_a_fold_runs_over_all_but_the_first_dimension():
    # A transposed convolution (in, out, kernel): every input channel's block gets the length that its gain says.
    gain, direction = torch.tensor([2.0, 5.0]).view(2, 1, 1), torch.randn(2, 3, 4)
    folded = fold_weight_norm({"ups.0.0.weight_g": gain, "ups.0.0.weight_v": direction, "ups.0.0.bias": torch.ones(3)})
    assert list(folded) == ["ups.0.0.weight", "ups.0.0.bias"]
    torch.testing.assert_close(folded["ups.0.0.weight"].flatten(1).norm(dim=1), gain.flatten())
    half = fold_weight_norm({"a.weight_g": gain.half(), "a.weight_v": direction.half()})
    assert half["a.weight"].dtype == torch.float32


def test_damaged_checkpoints_list_every_fault():
    state = wrapped_namings()["new"]
    del state["conv_pre.parametrizations.weight.original0"]
    del state["conv_post.parametrizations.weight.original1"]
    state["ups.0.0.weight"] = torch.zeros(1)
    state["ups.1.0.parametrizations.weight.original0"] = torch.ones(4, 1, 1)
    state["resblocks.0.convs1.0.parametrizations.weight.original1"][2] = 0
    state["activation_post.upsample.filter"] = kaiser_sinc_filter() * 1.01
    with pytest.raises(WeightsError) as raised:
        fold_weight_norm(state)
    for fault in (
        "conv_pre.parametrizations.weight.original1 without conv_pre.parametrizations.weight.original0",
        "conv_post.parametrizations.weight.original0 without conv_post.parametrizations.weight.original1",
        "ups.0.0.weight is stored more than once",
        "ups.1.0: gain of shape (4, 1, 1) for a direction of shape (8, 4, 4)",
        "resblocks.0.convs1.0: a direction of length zero",
        "activation_post.upsample.filter is not the 12-tap Kaiser-sinc filter",
    ):
        assert fault in str(raised.value)


def test_filters_in_half_precision_are_recognised():
    assert fold_weight_norm({"a.upsample.filter": kaiser_sinc_filter().half(), "b": torch.ones(1)}).keys() == {"b"}


def test_files(tmp_path):
    path = tmp_path / "bigvgan.safetensors"
    save_file(tiny(), path)
    mel = torch.randn(1, 6, 5)
    vocoder = BigVGAN.from_folded(path, TINY)
    assert torch.equal(vocoder(mel), BigVGAN.from_folded(tiny(), TINY)(mel))
    assert not any(p.requires_grad for p in vocoder.parameters())
    with pytest.raises(WeightsError, match=r"bigvgan\.safetensors does not fit: 1 unexpected \(conv_post\.bias\)"):
        BigVGAN.from_folded(path, replace(TINY, bias_at_final=False))
    with pytest.raises(ValueError, match=r"mel must have shape \(batch, 6, frames\), got \(1, 5, 4\)"):
        vocoder(torch.zeros(1, 5, 4))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"resblock": "2"}, "resblock must be '1', got '2'"),
        ({"activation": "snake"}, "activation must be 'snakebeta', got 'snake'"),
        ({"snake_logscale": False}, "snake_logscale must be True, got False"),
        ({"upsample_rates": [4]}, "as many as upsample_rates"),
        ({"upsample_kernel_sizes": [7, 8, 4, 4, 4, 4]}, "7 must exceed its rate 4 by an even number"),
        ({"resblock_kernel_sizes": [3, 7, 10]}, "resblock_kernel_sizes must be odd"),
        ({"resblock_kernel_sizes": [3, 7]}, "resblock_dilations must be as many"),
        ({"upsample_initial_channel": 100}, "divisible by 2"),
        ({"num_mels": 0}, "must be positive"),
        ({"num_mels": None}, "missing or misshapen entry"),
    ],
)
def test_other_generators_are_refused(changed, message):
    hparams = json.loads((GOLDEN / "manifests" / "bigvgan_16k.json").read_text())["config"]
    with pytest.raises(ValueError, match=message):
        vocoder_config(hparams | changed)
