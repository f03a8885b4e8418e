"""The complete Synchformer, which predicts the offset in seconds between the sound and the picture of a clip.

The audio encoder takes power mel spectrograms of 0.64 s segments; it is an audio spectrogram transformer (AST, arXiv
2104.01778) whose patches are pooled over frequency, so that six features in order of time are left of each segment.
Visual and audio features of fourteen segments (4.8 s) become one sequence of tokens; a small transformer classifies its
offset (arXiv 2401.16423, section 3). It is used to score synchrony, not to generate.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional

from teacher.audio.mel import hann_window
from teacher.encoders.synchformer import (
    SEGMENTS_AT_ONCE,
    TokenPool,
    VisualConfig,
    VisualEncoder,
    attend,
    encode_segments,
)
from teacher.files.components import count_blocks, shape_of

SAMPLE_RATE = 16_000
SEGMENT_SAMPLES = 10_240
"""Samples of a segment at 16 kHz: 0.64 s, as long as 16 frames at 25 fps."""
SEGMENT_STRIDE_SAMPLES = 5_120
FFT, WINDOW, HOP = 1024, 400, 160
MELS = 128
SPECTRUM_FRAMES = 66
"""Frames of a segment's spectrogram in the encoder's training: 65 frames and one of zeros."""
LOG_FLOOR = 1e-6
MEAN, STD = -4.2677393, 4.5689974
"""Mean and standard deviation of the log-mel values of AudioSet; AST divides by twice the deviation."""
AUDIO = "afeat_extractor."
HEAD_WIDTH = 64


def cut_wave(wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch segments 10240"]:
    """16 kHz samples [5120 i, 5120 i + 10240) as a view: as long and as far apart as the picture's segments.

    Raises ValueError for less than one segment (0.64 s).
    """
    if wave.shape[-1] < SEGMENT_SAMPLES:
        raise ValueError(f"wave must hold at least {SEGMENT_SAMPLES} samples (one segment), got {wave.shape[-1]}")
    return wave.unfold(-1, SEGMENT_SAMPLES, SEGMENT_STRIDE_SAMPLES)


def sync_spectrogram(wave: Float[Tensor, "*batch samples"]) -> Float[Tensor, "*batch 128 66"]:
    """(ln(mel power + 1e-6) - mean) / (2 std) of segments of 10 240 samples at 16 kHz.

    Frames are centred with reflection at both ends; the periodic Hann window of 400 samples sits in the middle of the
    1024-point transform. The 66th frame is zero after the logarithm and before the normalisation, as in training.
    """
    window = hann_window(WINDOW, like=wave)
    spectrum = torch.stft(
        wave.flatten(0, -2), FFT, hop_length=HOP, win_length=WINDOW, window=window, center=True, pad_mode="reflect",
        return_complex=True,
    )  # fmt: skip
    power = torch.view_as_real(spectrum).square().sum(-1)
    log_mel = torch.log(htk_filterbank().to(power) @ power + LOG_FLOOR)
    padded = functional.pad(log_mel, (0, SPECTRUM_FRAMES - log_mel.shape[-1]))
    return ((padded - MEAN) / (2 * STD)).unflatten(0, wave.shape[:-1])


@functools.lru_cache(maxsize=1)
def htk_filterbank() -> Float[Tensor, "128 513"]:
    """Triangles of height 1 between 130 points equally spaced in mel = 2595 log10(1 + f / 700) from 0 to 8000 Hz.

    Computed in float64 and rounded once, so that they are equal on every processor; those of the training were computed
    in float32 and differ by 1e-5 of their height.
    """
    frequencies = torch.linspace(0, SAMPLE_RATE // 2, FFT // 2 + 1, dtype=torch.float64)
    top = 2595.0 * math.log10(1.0 + SAMPLE_RATE / 2 / 700.0)
    edges = 700.0 * (10.0 ** (torch.linspace(0.0, top, MELS + 2, dtype=torch.float64) / 2595.0) - 1.0)
    gaps = edges[1:] - edges[:-1]
    rising = (frequencies - edges[:-2, None]) / gaps[:-1, None]
    falling = (edges[2:, None] - frequencies) / gaps[1:, None]
    return torch.minimum(rising, falling).clamp_min(0.0).float()


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """Sizes of the audio encoder; the defaults are the published ones."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    patch: int = 16
    """Edge of a patch in mel bins and frames."""
    stride: int = 10
    """Distance of neighbouring patches in both directions."""
    tokens: int = 72
    """Patches of a segment, 12 along frequency times 6 along time."""
    eps: float = 1e-12
    """Epsilon of the transformer's LayerNorms."""
    pool_eps: float = 1e-6
    """Epsilon of the LayerNorms that pool over frequency."""

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"heads must divide width {self.width}, got {self.heads}")

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], *, heads: int | None = None) -> Self:
        """Sizes of the model that `afeat_extractor.*` belongs to; heads of 64 channels unless given.

        Raises WeightsError naming a tensor that is not there.
        """
        ast = f"{AUDIO}ast."
        width, _, patch, _ = shape_of(tensors, f"{ast}embeddings.patch_embeddings.projection.weight", 4)
        return cls(
            width=width,
            depth=count_blocks(tensors, f"{ast}encoder.layer."),
            heads=heads or max(1, width // HEAD_WIDTH),
            hidden=shape_of(tensors, f"{ast}encoder.layer.0.intermediate.dense.weight", 2)[0],
            patch=patch,
            tokens=shape_of(tensors, f"{ast}embeddings.position_embeddings", 3)[1] - 2,
        )


class Dense(nn.Module):
    """A linear layer as a submodule `dense`, for the parameter names of the published state dict."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        return self.dense(x)


class QueryKeyValue(nn.Module):
    """The three input projections of an attention layer and the attention itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        return attend(self.query(x), self.key(x), self.value(x), self.heads)


class AudioAttention(nn.Module):
    """Self-attention with an output projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = QueryKeyValue(width, heads)
        self.output = Dense(width, width)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        return self.output(self.attention(x))


class AudioLayer(nn.Module):
    """x += attention(layernorm_before x); x += output(GELU(intermediate(layernorm_after x)))."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        c = config
        self.attention = AudioAttention(c.width, c.heads)
        self.intermediate = Dense(c.width, c.hidden)
        self.output = Dense(c.hidden, c.width)
        self.layernorm_before = nn.LayerNorm(c.width, eps=c.eps)
        self.layernorm_after = nn.LayerNorm(c.width, eps=c.eps)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        x = x + self.attention(self.layernorm_before(x))
        return x + self.output(functional.gelu(self.intermediate(self.layernorm_after(x))))


class Patches(nn.Module):
    """A convolution from patches to tokens, under its name in the published state dict."""

    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, spectrogram: Float[Tensor, "batch mels frames"]) -> Float[Tensor, "batch patches width"]:
        return self.projection(spectrogram[:, None]).flatten(2).transpose(1, 2)


class AudioEmbeddings(nn.Module):
    """Class token, distillation token and overlapping patches, frequency by frequency, each plus its position."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        c = config
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, c.width))
        self.distillation_token = nn.Parameter(0.02 * torch.randn(1, 1, c.width))
        self.position_embeddings = nn.Parameter(0.02 * torch.randn(1, 2 + c.tokens, c.width))
        self.patch_embeddings = Patches(nn.Conv2d(1, c.width, c.patch, c.stride))

    def forward(self, spectrogram: Float[Tensor, "batch mels frames"]) -> Float[Tensor, "batch tokens width"]:
        patches = self.patch_embeddings(spectrogram)
        fronts = (token.expand(len(patches), -1, -1) for token in (self.cls_token, self.distillation_token))
        return torch.cat((*fronts, patches), dim=1) + self.position_embeddings


class AudioLayers(nn.Module):
    """The layers of the audio transformer, one after the other."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(AudioLayer(config) for _ in range(config.depth))

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        for layer in self.layer:
            x = layer(x)
        return x


class SpectrogramTransformer(nn.Module):
    """Audio spectrogram transformer: spectrogram -> all tokens after the last LayerNorm."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.embeddings = AudioEmbeddings(config)
        self.encoder = AudioLayers(config)
        self.layernorm = nn.LayerNorm(config.width, eps=config.eps)

    def forward(self, spectrogram: Float[Tensor, "batch mels frames"]) -> Float[Tensor, "batch tokens width"]:
        return self.layernorm(self.encoder(self.embeddings(spectrogram)))


class AudioEncoder(nn.Module):
    """Spectrograms of segments -> one feature per column of patches."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        self.ast = SpectrogramTransformer(config)
        self.freq_attn_agg = TokenPool(config.width, config.heads, config.hidden, config.pool_eps)

    def forward(
        self, spectrogram: Float[Tensor, "batch segments mels frames"]
    ) -> Float[Tensor, "batch segments columns width"]:
        """(B, S, 128, 66) -> (B, S, 6, 768). The pooling does not include the class and distillation tokens."""
        batch, segments, _, frames = spectrogram.shape
        columns = (frames - self.config.patch) // self.config.stride + 1
        patches = self.ast(spectrogram.flatten(0, 1))[:, 2:]
        pooled = self.freq_attn_agg(rearrange(patches, "n (f t) d -> (n t) f d", t=columns))
        return pooled.unflatten(0, (batch, segments, columns))


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
