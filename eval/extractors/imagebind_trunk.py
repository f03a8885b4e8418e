"""ImageBind-huge's towers for picture and sound (arXiv 2305.05665), named as in the published state dict.

Both are pre-norm vision transformers with a class token: a ViT-H on pairs of frames in patches of 2 x 14 x 14, and a
ViT-B on spectrograms in overlapping patches of 16 x 16, whose attention has one learnt key and value beside those of
the tokens. Of the published 1311 tensors (1200.8 million numbers) 569 (719.1 million) are here: 392 of the picture, 177
of the sound. The towers for text, depth, heat and motion are not. Stochastic depth, a matter of training, is left out.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from eval.extractors.imagebind_front_end import FRAMES, MELS, PIXELS
from teacher.encoders.synchformer import Mlp, attend

EPS = 1e-6
STEM_EPS = 1e-5
"""Epsilon of the norm behind the sound's convolution, which unlike that of the others is torch's default."""
PICTURE_PATCH = (2, 14, 14)
SOUND_PATCH, SOUND_STRIDE = 16, 10
PICTURE_PLACES = 1 + (PIXELS // 14) ** 2
"""Class token and 16 x 16 patches: 257."""
SOUND_PLACES = 1 + ((MELS - SOUND_PATCH) // SOUND_STRIDE + 1) * ((FRAMES - SOUND_PATCH) // SOUND_STRIDE + 1)
"""Class token and 12 x 19 patches: 229."""
HIDDEN = 4
"""Width of the hidden layer of each MLP, as a multiple of the tokens'."""
LOGIT_SCALE = 20.0

Sense = Literal["vision", "audio"]


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Sizes of a transformer."""

    width: int
    depth: int
    heads: int

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width < 1 or self.width % self.heads:
            raise ValueError(f"heads must divide width {self.width}, got {self.heads}")
        if self.depth < 1:
            raise ValueError(f"depth must be at least 1, got {self.depth}")


@dataclass(frozen=True, kw_only=True)
class ImageBindConfig:
    """Sizes of both towers; the defaults are the published ones: 632 829 440 and 86 235 648 parameters."""

    vision: TowerConfig = field(default_factory=lambda: TowerConfig(width=1280, depth=32, heads=16))
    audio: TowerConfig = field(default_factory=lambda: TowerConfig(width=768, depth=12, heads=12))
    dimensions: int = 1024
    """Length of an embedding."""

    def __post_init__(self) -> None:
        if self.dimensions < 1:
            raise ValueError(f"dimensions must be at least 1, got {self.dimensions}")


class Attention(nn.Module):
    """Self-attention named as torch's MultiheadAttention, with one learnt key and value in addition if `extra`.

    The learnt pair is not projected and is the same for all queries: softmax([q k^T, q b_k] / sqrt(d)) [v; b_v].
    """

    def __init__(self, width: int, heads: int, *, extra: bool) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.bias_k = nn.Parameter(torch.zeros(1, 1, width)) if extra else None
        self.bias_v = nn.Parameter(torch.zeros(1, 1, width)) if extra else None
        self.out_proj = nn.Linear(width, width)
        self.heads = heads
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        q, k, v = functional.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat((k, self.bias_k.expand(len(x), -1, -1)), dim=1)
            v = torch.cat((v, self.bias_v.expand(len(x), -1, -1)), dim=1)
        return self.out_proj(attend(q, k, v, self.heads))


class Block(nn.Module):
    """x += attn(norm_1 x); x += mlp(norm_2 x)."""

    def __init__(self, config: TowerConfig, *, extra: bool) -> None:
        super().__init__()
        self.attn = Attention(config.width, config.heads, extra=extra)
        self.norm_1 = nn.LayerNorm(config.width, eps=EPS)
        self.mlp = Mlp(config.width, HIDDEN * config.width)
        self.norm_2 = nn.LayerNorm(config.width, eps=EPS)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        x = x + self.attn(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class _Stem(nn.Module):
    """Patches to tokens: a convolution without bias and, for sound, a norm. Position 0 of the picture's is empty."""

    def __init__(self, width: int, sense: Sense) -> None:
        super().__init__()
        if sense == "vision":
            conv = nn.Conv3d(3, width, PICTURE_PATCH, PICTURE_PATCH, bias=False)
            self.proj: nn.Module = nn.Sequential(nn.Identity(), conv)
            self.norm_layer: nn.Module = nn.Identity()
        else:
            self.proj = nn.Conv2d(1, width, SOUND_PATCH, SOUND_STRIDE, bias=False)
            self.norm_layer = nn.LayerNorm(width, eps=STEM_EPS)

    def forward(self, x: Tensor) -> Float[Tensor, "batch patches width"]:
        return self.norm_layer(self.proj(x).flatten(2).transpose(1, 2))


class _Positions(nn.Module):
    """A table of positions, one name deeper."""

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(width**-0.5 * torch.randn(1, places, width))


class Preprocessor(nn.Module):
    """[class token, patches] + positions; patches row by row."""

    def __init__(self, width: int, sense: Sense) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(width**-0.5 * torch.randn(1, 1, width))
        self.rgbt_stem = _Stem(width, sense)
        self.pos_embedding_helper = _Positions(PICTURE_PLACES if sense == "vision" else SOUND_PLACES, width)

    def forward(self, x: Tensor) -> Float[Tensor, "batch tokens width"]:
        tokens = torch.cat((self.cls_token.expand(len(x), -1, -1), self.rgbt_stem(x)), dim=1)
        return tokens + self.pos_embedding_helper.pos_embed


class Trunk(nn.Module):
    """The blocks; the picture's tokens go through a norm before."""

    def __init__(self, config: TowerConfig, sense: Sense) -> None:
        super().__init__()
        if sense == "vision":
            self.pre_transformer_layer: nn.Module = nn.Sequential(nn.LayerNorm(config.width, eps=EPS))
        else:
            self.pre_transformer_layer = nn.Identity()
        self.blocks = nn.Sequential(*(Block(config, extra=sense == "audio") for _ in range(config.depth)))

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        return self.blocks(self.pre_transformer_layer(x))


class _First(nn.Module):
    """The class token."""

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch width"]:
        return x[:, 0]


class _LogitScale(nn.Module):
    """The factor, ln 20, that the published sound embeddings are multiplied by after their length is 1.

    A cosine does not depend on it, so it is loaded, as it is in the file, and not applied.
    """

    log_logit_scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("log_logit_scale", torch.tensor(math.log(LOGIT_SCALE)))


def _head(width: int, dimensions: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width, eps=EPS), _First(), nn.Linear(width, dimensions, bias=False))


class ImageBindNetwork(nn.Module):
    """The picture's and the sound's part of the published file."""

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        self.config = config
        senses: tuple[tuple[Sense, TowerConfig], ...] = (("vision", config.vision), ("audio", config.audio))
        self.modality_preprocessors = nn.ModuleDict({s: Preprocessor(c.width, s) for s, c in senses})
        self.modality_trunks = nn.ModuleDict({s: Trunk(c, s) for s, c in senses})
        self.modality_heads = nn.ModuleDict({s: _head(c.width, config.dimensions) for s, c in senses})
        self.modality_postprocessors = nn.ModuleDict(
            {"vision": nn.Identity(), "audio": nn.Sequential(nn.Identity(), _LogitScale())}
        )

    def see(self, clips: Float[Tensor, "batch 3 2 224 224"]) -> Float[Tensor, "batch dimensions"]:
        """Embeddings of length 1 of pairs of frames."""
        return self._embed("vision", clips)

    def hear(self, spectrograms: Float[Tensor, "batch 128 204"]) -> Float[Tensor, "batch dimensions"]:
        """Embeddings of length 1 of pieces of sound; the published ones are 20 times as long."""
        return self._embed("audio", spectrograms[:, None])

    def _embed(self, sense: Sense, x: Tensor) -> Tensor:
        tokens = self.modality_trunks[sense](self.modality_preprocessors[sense](x))
        return functional.normalize(self.modality_heads[sense](tokens), dim=-1)
