"""BigVGAN (arXiv 2206.04658), log-mel -> waveform, with the weight normalisation folded into plain weights.

    x = conv_pre(mel);  per stage: x = up(x), x = mean over kernel sizes of block(x);  wave = bound(conv_post(act(x)))
    block: for each dilation d:  x <- x + conv_1(act(conv_d(act(x))))

Parameter names are those of the published generators after folding (`fold_weight_norm`); the resampling filters are
computed, not stored. Runs in float32, float64 and, cast after loading, in bfloat16.

Folding turns published checkpoints into plain convolution weights: w = g v / ||v||, with the norm over all dimensions
but the first (in transposed convolutions the input channel). Checkpoints name them `weight_g`/`weight_v`,
`parametrizations.weight.original0`/`original1`, or `weight` where they are folded already.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from teacher.audio.alias_free import AliasFreeSnake, kaiser_sinc_filter
from teacher.audio.toom_cook import LEAST_DEPTH, TILE, ToomCookConv1d
from teacher.files.components import load_strictly
from teacher.files.errors import WeightsError

EDGE_KERNEL = 7
"""Kernel of the first and the last convolution."""


@dataclass(frozen=True, kw_only=True)
class VocoderConfig:
    """Sizes of one BigVGAN generator. Raises ValueError for sizes that do not fit together."""

    num_mels: int
    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]
    """Kernel of each stage's transposed convolution, one per rate; kernel - rate must be even and not negative."""
    initial_channels: int = 1536
    """Channels before the first stage; every stage halves them."""
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    """Kernel sizes, all odd; every stage has one residual block per kernel size."""
    resblock_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    """Dilations inside each residual block, one tuple per kernel size."""
    tanh_at_final: bool = True
    """Bound the waveform by tanh; otherwise clamp it to [-1, 1]."""
    bias_at_final: bool = True

    def __post_init__(self) -> None:
        numbers = (self.num_mels, self.initial_channels, *self.upsample_rates, *self.resblock_kernel_sizes)
        if min(*numbers, *(d for dilations in self.resblock_dilations for d in dilations)) < 1:
            raise ValueError(f"the numbers of a vocoder must be positive, got {self}")
        if len(self.upsample_rates) != len(self.upsample_kernel_sizes):
            raise ValueError(
                f"upsample_kernel_sizes must be as many as upsample_rates, got {self.upsample_kernel_sizes} "
                f"for {self.upsample_rates}"
            )
        for rate, kernel in zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True):
            if kernel < rate or (kernel - rate) % 2:
                raise ValueError(f"upsample_kernel_sizes: {kernel} must exceed its rate {rate} by an even number")
        if not self.resblock_kernel_sizes or any(kernel % 2 == 0 for kernel in self.resblock_kernel_sizes):
            raise ValueError(f"resblock_kernel_sizes must be odd, got {self.resblock_kernel_sizes}")
        if len(self.resblock_dilations) != len(self.resblock_kernel_sizes):
            raise ValueError(
                f"resblock_dilations must be as many as resblock_kernel_sizes, got {self.resblock_dilations} "
                f"for {self.resblock_kernel_sizes}"
            )
        if self.initial_channels % 2 ** len(self.upsample_rates):
            raise ValueError(f"initial_channels must be divisible by 2^stages, got {self.initial_channels}")

    @property
    def hop_length(self) -> int:
        """Samples per mel frame: the product of the upsampling rates."""
        return math.prod(self.upsample_rates)


BIGVGAN_16K = VocoderConfig(num_mels=80, upsample_rates=(4, 4, 2, 2, 2, 2), upsample_kernel_sizes=(8, 8, 4, 4, 4, 4))
"""The generator of Make-An-Audio 2, for 80 bands of log10-mel at 16 kHz."""
BIGVGAN_V2_44K = VocoderConfig(
    num_mels=128,
    upsample_rates=(8, 4, 2, 2, 2, 2),
    upsample_kernel_sizes=(16, 8, 4, 4, 4, 4),
    tanh_at_final=False,
    bias_at_final=False,
)
"""The published generator nvidia/bigvgan_v2_44khz_128band_512x, for 128 bands of natural log-mel at 44.1 kHz."""


class ResBlock(nn.Module):
    """For each dilation d: x <- x + conv_1(act(conv_d(act(x)))), with convolutions of one kernel size. (B, C, T)."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * (kernel // 2)) for d in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=kernel // 2) for _ in dilations)
        self.activations = nn.ModuleList(AliasFreeSnake(channels) for _ in range(2 * len(dilations)))

    def forward(self, x: Float[Tensor, "batch channels time"]) -> Float[Tensor, "batch channels time"]:
        for i, (first, second) in enumerate(zip(self.convs1, self.convs2, strict=True)):
            y = first(self.activations[2 * i](x))
            x = x + second(self.activations[2 * i + 1](y))
        return x


class BigVGAN(nn.Module):
    """BigVGAN generator: log-mel (B, mels, frames) -> waveform (B, 1, frames * hop_length) within [-1, 1]."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        channels, kernels = config.initial_channels, config.resblock_kernel_sizes
        self.conv_pre = nn.Conv1d(config.num_mels, channels, EDGE_KERNEL, padding=EDGE_KERNEL // 2)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            up = nn.ConvTranspose1d(channels, channels // 2, kernel, stride=rate, padding=(kernel - rate) // 2)
            self.ups.append(nn.Sequential(up))
            channels //= 2
            self.resblocks.extend(
                ResBlock(channels, size, dilations)
                for size, dilations in zip(kernels, config.resblock_dilations, strict=True)
            )
        self.activation_post = AliasFreeSnake(channels)
        self.conv_post = nn.Conv1d(channels, 1, EDGE_KERNEL, padding=EDGE_KERNEL // 2, bias=config.bias_at_final)

    @classmethod
    def from_folded(
        cls, tensors: Mapping[str, Tensor] | Path, config: VocoderConfig, *, dtype: torch.dtype = torch.float32
    ) -> "BigVGAN":
        """A frozen generator with these folded weights. Raises WeightsError naming tensors that do not fit."""
        with torch.device("meta"):
            vocoder = cls(config).to(dtype)
        load_strictly(vocoder, tensors)
        return vocoder.eval().requires_grad_(False)

    def forward(self, mel: Float[Tensor, "batch mels frames"]) -> Float[Tensor, "batch 1 samples"]:
        if mel.ndim != 3 or mel.shape[1] != self.config.num_mels:
            raise ValueError(f"mel must have shape (batch, {self.config.num_mels}, frames), got {tuple(mel.shape)}")
        kinds = len(self.config.resblock_kernel_sizes)
        x = self.conv_pre(mel)
        for stage, up in enumerate(self.ups):
            x = up(x)
            blocks = self.resblocks[stage * kinds : (stage + 1) * kinds]
            total = blocks[0](x)
            for block in list(blocks)[1:]:
                total = total + block(x)
            x = total / kinds
        wave = self.conv_post(self.activation_post(x))
        return cast(Tensor, torch.tanh(wave) if self.config.tanh_at_final else functional.hardtanh(wave))


def with_toom_cook(vocoder: BigVGAN, *, least_depth: int = LEAST_DEPTH) -> BigVGAN:
    """A generator whose deep convolutions are `ToomCookConv1d`; it uses the other weights of `vocoder` without a copy.

    Takes 0.64 GB more memory for BIGVGAN_16K. Raises ValueError for a generator in half precision.
    """
    made = copy.deepcopy(vocoder, {id(p): p for p in vocoder.parameters()})
    for block in made.resblocks:
        for convolutions in (block.get_submodule("convs1"), block.get_submodule("convs2")):
            assert isinstance(convolutions, nn.ModuleList)
            for i, conv in enumerate(convolutions):
                assert isinstance(conv, nn.Conv1d)
                (size,) = conv.kernel_size
                if size > TILE and conv.in_channels * -(-size // TILE) >= least_depth:
                    convolutions[i] = ToomCookConv1d(conv)
    return made


GAIN_AND_DIRECTION = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)
FILTER_TOLERANCE = 1e-6
"""Largest difference of a tap of a stored resampling filter (float32 rounding); the smallest tap is 2e-3."""


def fold_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold weight normalisation, w = g v / ||v||: a checkpoint with plain weights, in the order of `state`.

    `state` may use any of the three published namings. Half precision is folded in float32, float64 in float64.
    Resampling filters are compared with `alias_free.kaiser_sinc_filter` and dropped. Raises WeightsError listing every
    wrong name: a gain without direction or the reverse, a convolution stored twice, shapes that do not match, a
    direction of length zero, another filter.
    """
    folded: dict[str, Tensor] = {}
    faults: list[str] = []
    for name, tensor in state.items():
        if name.endswith(".filter"):
            if not _is_our_filter(tensor):
                faults.append(f"{name} is not the 12-tap Kaiser-sinc filter of BigVGAN")
            continue
        module, gain_name, direction_name = _pair(name)
        if gain_name is None:
            target, value = name, tensor
        elif gain_name not in state or direction_name not in state:
            faults.append(f"{name} without {direction_name if name == gain_name else gain_name}")
            continue
        elif name == direction_name:
            continue  # made when its gain is met
        else:
            target = f"{module}.weight"
            gain, direction = state[gain_name], state[direction_name]
            fault = _pair_fault(gain, direction)
            if fault:
                faults.append(f"{module}: {fault}")
                continue
            value = _fold(gain, direction)
        if target in folded:
            faults.append(f"{target} is stored more than once")
        folded[target] = value
    if faults:
        raise WeightsError("the vocoder checkpoint cannot be folded: " + "; ".join(faults))
    return folded


def _pair(name: str) -> tuple[str, str | None, str]:
    """Module, name of the gain and name of the direction that `name` belongs to; the gain is None for other tensors."""
    for gain, direction in GAIN_AND_DIRECTION:
        for suffix in (gain, direction):
            if name.endswith(suffix):
                module = name.removesuffix(suffix)
                return module, module + gain, module + direction
    return name, None, ""


def _pair_fault(gain: Tensor, direction: Tensor) -> str | None:
    if gain.shape != (*direction.shape[:1], *(1,) * (direction.ndim - 1)):
        return f"gain of shape {tuple(gain.shape)} for a direction of shape {tuple(direction.shape)}"
    if not bool(direction.flatten(1).any(dim=1).all()):
        return "a direction of length zero"
    return None


def _fold(gain: Tensor, direction: Tensor) -> Tensor:
    dtype = torch.promote_types(direction.dtype, torch.float32)
    v = direction.to(dtype)
    norm = torch.linalg.vector_norm(v, dim=tuple(range(1, v.ndim)), keepdim=True)
    return v * (gain.to(dtype) / norm)


def _is_our_filter(stored: Tensor) -> bool:
    ours = kaiser_sinc_filter().to(stored.dtype).double()  # a file in half precision holds rounded taps
    return stored.numel() == len(ours) and bool(
        torch.allclose(stored.double().cpu().flatten(), ours, rtol=0, atol=FILTER_TOLERANCE)
    )
