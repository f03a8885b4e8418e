"""The complete Synchformer, which predicts the offset in seconds between the sound and the picture of a clip.

Visual and audio features of fourteen segments (4.8 s) become one sequence of tokens; a small transformer classifies its
offset (arXiv 2401.16423, section 3). It is used to score synchrony, not to generate.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from teacher.encoders.synchformer import SEGMENTS_AT_ONCE, VisualConfig, VisualEncoder, attend, encode_segments
from teacher.encoders.synchformer_audio import AudioConfig, AudioEncoder, cut_wave, sync_spectrogram
from teacher.files.components import count_blocks, shape_of

HEAD = "transformer."
LARGEST_OFFSET_S = 2.0
"""The offset classes are equally spaced from minus to plus this many seconds."""


@dataclass(frozen=True, kw_only=True)
class OffsetConfig:
    """Sizes of the offset head; the defaults are the published ones."""

    width: int = 768
    depth: int = 3
    heads: int = 8
    hidden: int = 3072
    tokens: int = 198
    """Length of the sequence: two special tokens, 14 x 8 visual and 14 x 6 audio features."""
    classes: int = 21
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"heads must divide width {self.width}, got {self.heads}")

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], *, heads: int = 8) -> Self:
        """Sizes of the head that `transformer.*` belongs to. Raises WeightsError naming a tensor that is not there."""
        classes, width = shape_of(tensors, f"{HEAD}off_head.weight", 2)
        return cls(
            width=width,
            depth=count_blocks(tensors, f"{HEAD}blocks."),
            heads=heads,
            hidden=shape_of(tensors, f"{HEAD}blocks.0.mlp.0.weight", 2)[0],
            tokens=shape_of(tensors, f"{HEAD}pos_emb_cfg.pos_emb", 3)[1],
            classes=classes,
        )


@dataclass(frozen=True, kw_only=True)
class SynchformerConfig:
    """Sizes of the three parts of Synchformer: visual encoder, audio encoder, offset head."""

    visual: VisualConfig = field(default_factory=VisualConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    head: OffsetConfig = field(default_factory=OffsetConfig)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], *, visual_heads: int | None = None) -> Self:
        """Sizes of a complete state dict. Raises WeightsError naming a tensor that is not there."""
        return cls(
            visual=VisualConfig.from_tensors(tensors, heads=visual_heads),
            audio=AudioConfig.from_tensors(tensors),
            head=OffsetConfig.from_tensors(tensors),
        )


class OffsetAttention(nn.Module):
    """Self-attention with four square projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.key = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        return self.proj(attend(self.query(x), self.key(x), self.value(x), self.heads))


class OffsetBlock(nn.Module):
    """x += attn(ln1 x); x += mlp(ln2 x), exact GELU."""

    def __init__(self, config: OffsetConfig) -> None:
        super().__init__()
        c = config
        self.ln1 = nn.LayerNorm(c.width, eps=c.eps)
        self.ln2 = nn.LayerNorm(c.width, eps=c.eps)
        self.attn = OffsetAttention(c.width, c.heads)
        self.mlp = nn.Sequential(nn.Linear(c.width, c.hidden), nn.GELU(), nn.Linear(c.hidden, c.width))

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class PositionTable(nn.Module):
    """A learned vector for every position in the sequence, under its name in the published state dict."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.pos_emb = nn.Parameter(0.02 * torch.randn(1, tokens, width))


class OffsetTransformer(nn.Module):
    """[OFF, visual tokens, MOD, audio tokens] plus learned positions -> logits of the offset, from the token OFF."""

    def __init__(self, config: OffsetConfig) -> None:
        super().__init__()
        c = config
        self.OFF_tok = nn.Parameter(0.02 * torch.randn(1, 1, c.width))
        self.MOD_tok = nn.Parameter(0.02 * torch.randn(1, 1, c.width))
        self.vis_in_lnorm = nn.LayerNorm(c.width, eps=c.eps)
        self.aud_in_lnorm = nn.LayerNorm(c.width, eps=c.eps)
        self.pos_emb_cfg = PositionTable(c.tokens, c.width)
        self.blocks = nn.ModuleList(OffsetBlock(c) for _ in range(c.depth))
        self.ln_f = nn.LayerNorm(c.width, eps=c.eps)
        self.off_head = nn.Linear(c.width, c.classes)

    def forward(
        self, visual: Float[Tensor, "batch visual_tokens width"], audio: Float[Tensor, "batch audio_tokens width"]
    ) -> Float[Tensor, "batch classes"]:
        """Logits (B, classes). Raises ValueError unless there are as many tokens as positions in the table."""
        positions = self.pos_emb_cfg.pos_emb
        if 2 + visual.shape[1] + audio.shape[1] != positions.shape[1]:
            raise ValueError(
                f"visual and audio tokens must be {positions.shape[1] - 2} together (14 segments, 4.8 s), "
                f"got {visual.shape[1]} and {audio.shape[1]}"
            )
        off, mod = (token.expand(len(visual), -1, -1) for token in (self.OFF_tok, self.MOD_tok))
        x = torch.cat((off, self.vis_in_lnorm(visual), mod, self.aud_in_lnorm(audio)), dim=1) + positions
        for block in self.blocks:
            x = block(x)
        return self.off_head(self.ln_f(x[:, 0]))


class Synchformer(nn.Module):
    """The complete model of the published file: both encoders, their projections and the offset head."""

    def __init__(self, config: SynchformerConfig) -> None:
        super().__init__()
        self.config = config
        self.vfeat_extractor = VisualEncoder(config.visual)
        self.afeat_extractor = AudioEncoder(config.audio)
        self.vproj = nn.Linear(config.visual.width, config.head.width)
        self.aproj = nn.Linear(config.audio.width, config.head.width)
        self.transformer = OffsetTransformer(config.head)

    def visual_features(
        self, segments: Shaped[Tensor, "batch segments 16 3 224 224"], *, chunk: int = SEGMENTS_AT_ONCE
    ) -> Float[Tensor, "batch segments 8 width"]:
        """Visual features of segments in [-1, 1], or uint8; `teacher.encoders.synchformer.cut_segments` cuts a clip."""
        return encode_segments(self.vfeat_extractor, segments, chunk=chunk)

    def audio_features(
        self, wave: Float[Tensor, "batch samples"], *, chunk: int = 4 * SEGMENTS_AT_ONCE
    ) -> Float[Tensor, "batch segments 6 width"]:
        """Audio features of the segments of a wave at 16 kHz."""
        parts = [self.afeat_extractor(sync_spectrogram(some)) for some in cut_wave(wave).split(chunk, dim=1)]
        return torch.cat(parts, dim=1)

    def logits(
        self, visual: Float[Tensor, "batch segments 8 width"], audio: Float[Tensor, "batch segments 6 width"]
    ) -> Float[Tensor, "batch classes"]:
        """Logits of the offset classes of windows of 14 segments. Raises ValueError for another number of them."""
        return self.transformer(self.vproj(visual.flatten(1, 2)), self.aproj(audio.flatten(1, 2)))


def class_offsets_s(classes: int = 21) -> Float[Tensor, " classes"]:
    """Offset in seconds of each class: -2 + 0.2 i for the published 21 classes."""
    return torch.linspace(-LARGEST_OFFSET_S, LARGEST_OFFSET_S, classes, dtype=torch.float64).round(decimals=9)


def offset_s(logits: Float[Tensor, "*batch classes"]) -> Float[Tensor, "*batch"]:
    """Offset in seconds between sound and picture: that of the most likely class."""
    best: Int[Tensor, "*batch"] = logits.argmax(dim=-1)
    return class_offsets_s(logits.shape[-1]).to(logits.device)[best]
