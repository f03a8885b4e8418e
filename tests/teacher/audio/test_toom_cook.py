"""Convolutions with fewer products: the sums of the direct form, its memory, its rounding, its refusals."""

import pytest
import torch
from torch import nn

from teacher.audio.toom_cook import LEAST_DEPTH, TILE, ToomCookConv1d, transforms
from teacher.audio.vocoder import BIGVGAN_16K, BigVGAN, with_toom_cook
from tests.teacher.audio.test_vocoder import TINY, tiny


def conv(size: int, dilation: int = 1, channels: tuple[int, int] = (5, 3), bias: bool = True) -> nn.Conv1d:
    made = nn.Conv1d(*channels, size, dilation=dilation, padding=dilation * (size // 2), bias=bias)
    return made.double().requires_grad_(False)


def test_seven_products_make_four_outputs(generator):
    taps, inputs, outputs = transforms()
    g = torch.randn(4, dtype=torch.float64, generator=generator)
    x = torch.randn(7, dtype=torch.float64, generator=generator)
    expected = torch.stack([g @ x[n : n + 4] for n in range(TILE)])
    torch.testing.assert_close(outputs @ ((taps @ g) * (inputs @ x)), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [3, 5, 7, 9, 11])
@pytest.mark.parametrize("dilation", [1, 3, 5])
@pytest.mark.parametrize("length", [1, 4, 19, 40, 61])
def test_it_is_the_direct_convolution(generator, size, dilation, length):
    torch.manual_seed(0)
    direct = conv(size, dilation)
    x = torch.randn(2, 5, length, dtype=torch.float64, generator=generator)
    before = x.clone()
    torch.testing.assert_close(ToomCookConv1d(direct)(x), direct(x), rtol=0, atol=1e-12)
    assert torch.equal(x, before)


def test_without_bias_and_in_float32(generator):
    torch.manual_seed(0)
    direct = conv(11, channels=(192, 64), bias=False)
    x = torch.randn(1, 192, 200, dtype=torch.float64, generator=generator)
    exact = direct(x)
    made = ToomCookConv1d(direct.float())(x.float())
    error = float((made - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    assert 1e-8 < error < 5e-6  # 1.4e-6 with 768 channels; points 3 and -3 in place of 1/2 and -2 lose a digit


def test_whole_generator_with_shared_weights(generator):
    vocoder = BigVGAN.from_folded(tiny(), TINY, dtype=torch.float64)
    mel = torch.randn(2, 6, 9, dtype=torch.float64, generator=generator)
    wanted = vocoder(mel)
    made = with_toom_cook(vocoder, least_depth=1)
    kinds = [type(part) for part in made.modules()]
    assert kinds.count(ToomCookConv1d) == 2 * 4  # of kernels 3 and 5 in two stages, those of 5
    assert not any(isinstance(part, ToomCookConv1d) for part in vocoder.modules())
    torch.testing.assert_close(made(mel), wanted, rtol=0, atol=1e-12)
    assert made.conv_pre.weight.data_ptr() == vocoder.conv_pre.weight.data_ptr()
    assert [type(part) for part in with_toom_cook(vocoder).modules()].count(ToomCookConv1d) == 0  # all too narrow


def test_what_is_replaced_at_the_published_size():
    """Kernels of 11 have 3 pieces: 768, 384 and 192 channels; kernels of 7 have 2: 768 and 384. Six of each."""
    with torch.device("meta"):
        vocoder = BigVGAN(BIGVGAN_16K)
    chosen = [
        (part.in_channels, part.kernel_size[0])
        for part in vocoder.resblocks.modules()
        if isinstance(part, nn.Conv1d)
        and part.kernel_size[0] > TILE
        and part.in_channels * -(-part.kernel_size[0] // TILE) >= LEAST_DEPTH
    ]
    assert {kind: chosen.count(kind) for kind in set(chosen)} == {
        (768, 7): 6,
        (384, 7): 6,
        (768, 11): 6,
        (384, 11): 6,
        (192, 11): 6,
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (nn.Conv1d(4, 4, 7, padding=3, stride=2), "must have stride 1"),
        (nn.Conv1d(4, 4, 7, padding=3, groups=2), "must have stride 1, one group"),
        (nn.Conv1d(4, 4, 7), '"same" padding'),
        (nn.Conv1d(4, 4, 6, padding=3), "odd size"),
        (nn.Conv1d(4, 4, 7, padding=3, padding_mode="reflect"), '"same" padding'),
        (nn.Conv1d(4, 4, 7, padding=3).bfloat16(), "must be float32 or wider here, got torch.bfloat16"),
    ],
)
def test_other_convolutions_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ToomCookConv1d(wrong)
