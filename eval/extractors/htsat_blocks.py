"""Blocks of HTS-AT (arXiv 2202.00874), which are those of Swin (arXiv 2103.14030): attention in shifted windows.

Modules are named as in the published state dicts. Tokens are kept as maps (batch, rows, columns, width) here; the rows
are frequencies, the columns times. There is no dropout: the networks are used, not trained.
"""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from teacher.encoders.synchformer_blocks import Mlp

MASKED = -100.0
"""Added to the scores of pairs that are no neighbours; a finite number, as in the file."""


def relative_positions(window: int) -> Int[Tensor, "tokens tokens"]:
    """Row of the bias table for each pair of places in a window: (dr + w - 1) (2 w - 1) + (dc + w - 1).

    dr and dc are the differences of the rows and columns, the first place minus the second; places are row by row.
    """
    places = torch.arange(window * window)
    rows, columns = places // window, places % window
    return (rows[:, None] - rows + window - 1) * (2 * window - 1) + (columns[:, None] - columns + window - 1)


def shifted_mask(side: int, window: int, shift: int) -> Float[Tensor, "windows tokens tokens"]:
    """0 for pairs of a window that were neighbours before the map was rolled by `shift`, -100 for the others.

    Along either axis the rolled map is made of three runs: what no border crosses, the last window up to the seam, and
    the `shift` places behind the seam, which come from the other end.
    """
    place = torch.arange(side)
    run = (place >= side - window).long() + (place >= side - shift).long()
    regions = to_windows((3 * run[:, None] + run)[None, ..., None], window)[0, ..., 0]
    return (regions[:, None, :] != regions[:, :, None]).float() * MASKED


def to_windows(x: Tensor, window: int) -> Tensor:
    """Map (batch, rows, columns, width) -> (batch, windows, window^2, width), both row by row."""
    return rearrange(x, "b (i r) (j c) d -> b (i j) (r c) d", r=window, c=window)


def from_windows(x: Tensor, side: int, window: int) -> Tensor:
    """Inverse of to_windows for a square map."""
    return rearrange(x, "b (i j) (r c) d -> b (i r) (j c) d", i=side // window, r=window)


class WindowAttention(nn.Module):
    """softmax(q k^T / sqrt(width / heads) + bias + mask) v within each window, bias by relative position and head."""

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_positions(window))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "batch windows tokens width"], mask: Float[Tensor, "windows tokens tokens"] | None
    ) -> Float[Tensor, "batch windows tokens width"]:
        q, k, v = rearrange(self.qkv(x), "b w n (three h d) -> three b w h n d", three=3, h=self.heads)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        scores = scores + self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask is not None:
            scores = scores + mask[:, None]
        return self.proj(rearrange(scores.softmax(dim=-1) @ v, "b w h n d -> b w n (h d)"))


class Block(nn.Module):
    """x += attention in windows of norm1 x, the map rolled by `shift` meanwhile; x += mlp(norm2 x).

    A map that is no larger than the window is one window and is not rolled.
    """

    def __init__(self, width: int, heads: int, side: int, window: int, *, shifted: bool, mlp_ratio: int) -> None:
        super().__init__()
        self.side, self.window = side, min(side, window)
        self.shift = window // 2 if shifted and side > window else 0
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, self.window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_ratio * width)
        # None keeps the name out of the state dict, where blocks that are not shifted have no mask.
        self.register_buffer("attn_mask", shifted_mask(side, window, self.shift) if self.shift else None)

    def forward(self, x: Float[Tensor, "batch side side width"]) -> Float[Tensor, "batch side side width"]:
        rolled = self.norm1(x).roll((-self.shift, -self.shift), dims=(1, 2))
        mixed = from_windows(self.attn(to_windows(rolled, self.window), self.attn_mask), self.side, self.window)
        x = x + mixed.roll((self.shift, self.shift), dims=(1, 2))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Four neighbours become one token of twice the width: reduction(norm(theirs side by side))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, x: Float[Tensor, "batch side side width"]) -> Float[Tensor, "batch half half 2*width"]:
        # The row changes first: (0, 0), (1, 0), (0, 1), (1, 1).
        return self.reduction(self.norm(rearrange(x, "b (i r) (j c) d -> b i j (c r d)", r=2, c=2)))


class Stage(nn.Module):
    """Blocks at one resolution, every second one shifted, and the merging that halves it (none after the last)."""

    def __init__(
        self, width: int, depth: int, heads: int, side: int, window: int, *, mlp_ratio: int, merge: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(width, heads, side, window, shifted=bool(k % 2), mlp_ratio=mlp_ratio) for k in range(depth)
        )
        self.downsample = PatchMerging(width) if merge else None

    def forward(self, x: Float[Tensor, "batch side side width"]) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    """Square patches of an image to a map of tokens, normalised."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, patch, patch)
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Float[Tensor, "batch 1 rows columns"]) -> Float[Tensor, "batch side side width"]:
        return self.norm(self.proj(image).permute(0, 2, 3, 1))
