"""Magnitude-preserving layers (Karras et al., EDM2, arXiv 2312.02696, equations 47, 66, 81 and 88), one-dimensional.

    pixel_norm(x) = x / (1e-4 + rms over channels)          mp_silu(x) = silu(x) / 0.596
    mp_sum(a, b)  = (0.7 a + 0.3 b) / sqrt(0.7^2 + 0.3^2)   weights: rows of norm one, no bias

so that inputs of unit variance give outputs of unit variance. Everything is (B, channels, frames).
"""

import math
from itertools import pairwise
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

EPS = 1e-4
MIX = 0.3
"""Share of the residual branch."""
LIMIT = 256.0
"""Activations are clamped to +- this after every block; with normalised weights they never get there."""
_MIXED = math.hypot(1 - MIX, MIX)


def normalised_weight(weight: Float[Tensor, "out in kernel"]) -> Float[Tensor, "out in kernel"]:
    """w / (EPS + ||w|| / sqrt(n)) / sqrt(n) per output channel, n = in * kernel; at least float32."""
    root = math.sqrt(weight[0].numel())
    w = weight.to(torch.promote_types(weight.dtype, torch.float32))
    norm = torch.linalg.vector_norm(w, dim=(1, 2), keepdim=True)
    return w / (EPS + norm / root) / root


def pixel_norm(x: Tensor, dim: int = 1) -> Tensor:
    """x / (EPS + root mean square along `dim`); the norm in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=wide)
    return x / (EPS + norm / math.sqrt(x.shape[dim])).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU with unit output for a standard normal input: its root mean square there is 0.596."""
    return functional.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor) -> Tensor:
    """Skip path `a` and branch `b`, independent and of unit variance, mixed to unit variance."""
    return torch.lerp(a, b, MIX) / _MIXED


class MPConv1d(nn.Module):
    """Convolution without bias, "same" padding. Holds raw weights until `normalise_`, and refuses to run on them."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel))
        self.normalised = False

    def _load_from_state_dict(self, *args: Any) -> None:
        """Files hold raw weights, so whatever is loaded has to be normalised."""
        self.normalised = False
        super()._load_from_state_dict(*args)

    @torch.no_grad()
    def normalise_(self) -> None:
        """Replace the raw weight by the normalised one; once."""
        if self.normalised:
            return
        if self.weight.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"weights must be normalised in float32 before they are cast, got {self.weight.dtype}")
        self.weight.copy_(normalised_weight(self.weight))
        self.normalised = True

    def forward(self, x: Float[Tensor, "batch in frames"]) -> Float[Tensor, "batch out frames"]:
        if not self.normalised:
            raise RuntimeError("this VAE holds raw weights: call its normalise_() once after loading")
        return functional.conv1d(x, self.weight, padding=self.weight.shape[2] // 2)


class ResBlock(nn.Module):
    """mp_sum(shortcut(n), conv2(s(conv1(s(n))))) with n = pixel_norm(x): the shortcut sees the normalised x too."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = MPConv1d(in_channels, out_channels, 3)
        self.conv2 = MPConv1d(out_channels, out_channels, 3)
        if in_channels != out_channels:
            self.nin_shortcut = MPConv1d(in_channels, out_channels, 1)
        self.changes_width = in_channels != out_channels

    def forward(self, x: Float[Tensor, "batch in frames"]) -> Float[Tensor, "batch out frames"]:
        x = pixel_norm(x)
        y = self.conv2(mp_silu(self.conv1(mp_silu(x))))
        return mp_sum(self.nin_shortcut(x) if self.changes_width else x, y)


class Attention(nn.Module):
    """Single-head self-attention over frames; q, k and v are pixel-normalised, the skip path is not."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = MPConv1d(channels, 3 * channels, 1)
        self.proj_out = MPConv1d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "batch channels frames"]) -> Float[Tensor, "batch channels frames"]:
        batch, channels, frames = x.shape
        qkv = self.qkv(x).view(batch, channels, 3, frames)  # output channel = 3 c + (0 q, 1 k, 2 v)
        q, k, v = pixel_norm(qkv).permute(2, 0, 3, 1)[:, :, None]
        heard = functional.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return mp_sum(x, self.proj_out(heard))


class Middle(nn.Module):
    """Block, attention, block at the narrowest time resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = Attention(channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: Float[Tensor, "batch channels frames"]) -> Float[Tensor, "batch channels frames"]:
        return cast(Tensor, self.block_2(self.attn_1(self.block_1(x)))).clamp(-LIMIT, LIMIT)


class Downsample(nn.Module):
    """Half as many frames: 1x1 convolution, mean of pairs (an odd last frame is dropped), 1x1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = MPConv1d(channels, channels, 1)
        self.conv2 = MPConv1d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "batch channels frames"]) -> Float[Tensor, "batch channels halved"]:
        return cast(Tensor, self.conv2(functional.avg_pool1d(self.conv1(x), 2)))


class Upsample(nn.Module):
    """Twice as many frames: every frame repeated, then a convolution of kernel 3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = MPConv1d(channels, channels, 3)

    def forward(self, x: Float[Tensor, "batch channels frames"]) -> Float[Tensor, "batch channels doubled"]:
        return cast(Tensor, self.conv(x.repeat_interleave(2, dim=2)))


class Level(nn.Module):
    """Residual blocks of the given widths, then an optional change of the time resolution under its published name."""

    def __init__(self, widths: tuple[int, ...], resample: Downsample | Upsample | None = None) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResBlock(a, b) for a, b in pairwise(widths))
        self.downsample = resample if isinstance(resample, Downsample) else None
        self.upsample = resample if isinstance(resample, Upsample) else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x).clamp(-LIMIT, LIMIT)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x = resample(x)
        return x
