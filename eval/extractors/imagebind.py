"""ImageBind-huge (arXiv 2305.05665): picture and sound in one space, for the ImageBind score of video-to-audio papers.

A clip's embedding is the mean of the embeddings, each of length 1, of its three pieces of sound or of its nine clips
of picture; `eval/metrics/alignment.py` takes the cosine of the two. The published sound embeddings are multiplied by 20
before they are averaged, which no cosine depends on; here they are not.

Sound: three pieces of 2 s, evenly spaced from the first to the last; of each, Kaldi's 128 log filter-bank energies of
198 frames, six frames of the value 0 (half a deviation above the mean of the training set; silence would be -15.94),
and then (x + 4.268) / 9.138. A wave shorter than 2 s is taken whole, three times, and followed by more such frames.
Taking the mean of a piece away, as the published code does, changes nothing but rounding: Kaldi takes it from every
frame.

Picture: frames 2 s apart whose short side has 224 pixels, three squares of 224 along the long side (start, middle,
end), and in each square every two successive frames: 4 frames of an 8-s clip are 3 pairs in 3 squares.

Towers: pre-norm vision transformers with a class token, named as in the published state dict: a ViT-H on pairs of
frames in patches of 2 x 14 x 14, and a ViT-B on spectrograms in overlapping patches of 16 x 16, whose attention has one
learnt key and value beside those of the tokens. Of the published 1311 tensors (1200.8 million numbers) 569 (719.1
million) are here: 392 of the picture, 177 of the sound. The towers for text, depth, heat and motion are not. Stochastic
depth, a matter of training, is left out.

Differences from av-benchmark:
- Its decoder's rate filter takes, at 0.5 frames a second, the last frame before each odd second: 0.96, 2.96, 4.96 and
  6.96 s at 25 frames a second. `read_frames` takes the first frame at or after a time; asked for the odd seconds, as
  `imagebind_frames` does, it gives the next frame, one period later.
- Frames are resized by FFmpeg's bicubic filter, not torch's with antialiasing.
- Pieces of sound start at the sample floor(i (n - 32 000) / 2), i = 0, 1, 2; in floating point, some lengths lose one.
- The published code removes means in place, so that pieces that overlap (waves under 6 s) start from each other's
  result. Here each starts from the wave itself.
- Of stereo files it takes the left channel alone; here the mean of the channels, as for every other model.
- It takes the whole sound file, not the scored duration: with `ClipAudio(sample_rate=16_000)` so does this.

**The weights are CC BY-NC-SA 4.0**: not for commercial use, and derived works need the same licence. They are never
downloaded from here.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from eval.extractors.base import LoadedFile, OfficialFile, check_waves, exact_float32, load_official
from eval.extractors.mel_front_end import KaldiFbank
from eval.metrics.embeddings import Embeddings
from teacher.encoders.base import Frames
from teacher.encoders.clip import PIXEL_MEAN, PIXEL_STD
from teacher.encoders.synchformer import Mlp, attend
from teacher.media import FrameRequest, MediaInfo, probe, read_frames

IMAGEBIND_HUGE = OfficialFile(
    file="imagebind_huge.pth",
    url="https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth",
    licence="CC BY-NC-SA 4.0 (not for commercial use)",
    sha256="d6f6c22bedcc90708448d5d2fbb7b2db9c73f505dc89bd0b2e09b23af1b62157",
)
UNUSED = tuple(
    f"modality_{part}.{other}.*"
    for part in ("preprocessors", "trunks", "heads", "postprocessors")
    for other in ("text", "depth", "thermal", "imu")
)
"""The towers of the other modalities: 742 tensors."""
CLIPS_AT_ONCE = 8
"""Pieces of sound times three, or clips of picture, per forward pass; it bounds the memory, no result depends on it."""
SAMPLE_RATE = 16_000
PIECE_SAMPLES = 32_000
"""2 s."""
MELS, FRAMES = 128, 204
MEAN, SPREAD = -4.268, 9.138
SHORTEST = 400
"""Samples of one frame, 25 ms; the published code divides by zero below."""
FPS = 0.5
FIRST_FRAME_S = 1.0
"""Time of the first frame; the others follow every 2 s."""
PIXELS = 224
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

Modality = Literal["vision", "audio"]


def piece_starts(samples: int) -> tuple[int, int, int]:
    """First samples of the three pieces: 0, the middle and the end of the room there is, rounded down."""
    room = max(0, samples - PIECE_SAMPLES)
    return 0, room // 2, room


def sound_pieces(waves: Float[Tensor, "clips samples"]) -> Float[Tensor, "clips 3 128 204"]:
    """Normalised log energies of the three pieces, mel bands by frames, in the precision of `waves`.

    Raises ValueError for waves shorter than one frame (25 ms).
    """
    pieces = torch.stack([waves[:, start : start + PIECE_SAMPLES] for start in piece_starts(waves.shape[1])], dim=1)
    energies = KaldiFbank()(pieces - pieces.mean(dim=-1, keepdim=True)).transpose(-1, -2)
    return (functional.pad(energies, (0, FRAMES - energies.shape[-1])) - MEAN) / SPREAD


def frame_request(info: MediaInfo) -> FrameRequest:
    """Frames of a file with their short side at 224 pixels and nothing cut off, the long side rounded down.

    Raises ValueError for a file without picture.
    """
    if not info.has_video:
        raise ValueError(f"{info.path}: has no picture")
    short = min(info.width, info.height)
    height, width = PIXELS * info.height // short, PIXELS * info.width // short
    return FrameRequest(fps=FPS, height=height, width=width, fit="stretch")


def imagebind_frames(
    path: Path, *, start_s: float = 0.0, duration_s: float
) -> UInt8[np.ndarray, "frames 3 height width"]:
    """The int(duration / 2) frames at 1, 3, 5 ... s after `start_s`, short side 224, for `ImageBind.embed_frames`.

    Raises MediaError as `probe` and `read_frames`, ValueError for a file without picture or less than 2 s.
    """
    request = frame_request(probe(path))
    return read_frames(path, [request], start_s=start_s + FIRST_FRAME_S, duration_s=duration_s)[0]


def crop_offsets(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Top left corners (row, column) of the three squares: start, middle (rounded up) and end of the long side."""
    down, right = height - PIXELS, width - PIXELS
    if height > width:
        return tuple((row, (right + 1) // 2) for row in (0, (down + 1) // 2, down))
    return tuple(((down + 1) // 2, column) for column in (0, (right + 1) // 2, right))


def checked_picture(frames: Frames) -> UInt8[Tensor, "frames 3 height width"]:
    """Frames as a tensor; ValueError unless uint8 of (T, 3, H, W), two frames or more, short side 224 pixels."""
    tensor = torch.as_tensor(frames)
    if (
        tensor.ndim != 4
        or tensor.shape[1] != 3
        or min(tensor.shape[2:], default=0) != PIXELS
        or tensor.dtype != torch.uint8
    ):
        raise ValueError(
            f"frames must be uint8 of shape (T, 3, H, W) with a short side of {PIXELS}, "
            f"got {tensor.dtype} {tuple(tensor.shape)}"
        )
    if len(tensor) < 2:
        raise ValueError(f"ImageBind needs at least 2 frames (4 s of picture), got {len(tensor)}")
    return tensor


def picture_clips(frames: UInt8[Tensor, "frames 3 height width"]) -> Float[Tensor, "clips 3 2 224 224"]:
    """All pairs of successive frames in all three squares, 3 (T - 1) clips, less CLIP's mean and over its deviation.

    Pair by pair, in each the three squares in order; channels come before time, as a convolution over both wants it.
    """
    mean, std = (torch.tensor(x, device=frames.device)[:, None, None] for x in (PIXEL_MEAN, PIXEL_STD))
    squares = torch.stack(
        [frames[:, :, row : row + PIXELS, column : column + PIXELS] for row, column in crop_offsets(*frames.shape[2:])],
        dim=1,
    )
    normal = (squares / 255.0 - mean) / std
    return torch.stack((normal[:-1], normal[1:]), dim=3).flatten(0, 1)


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

    def __init__(self, width: int, modality: Modality) -> None:
        super().__init__()
        if modality == "vision":
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

    def __init__(self, width: int, modality: Modality) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(width**-0.5 * torch.randn(1, 1, width))
        self.rgbt_stem = _Stem(width, modality)
        self.pos_embedding_helper = _Positions(PICTURE_PLACES if modality == "vision" else SOUND_PLACES, width)

    def forward(self, x: Tensor) -> Float[Tensor, "batch tokens width"]:
        tokens = torch.cat((self.cls_token.expand(len(x), -1, -1), self.rgbt_stem(x)), dim=1)
        return tokens + self.pos_embedding_helper.pos_embed


class Trunk(nn.Module):
    """The blocks; the picture's tokens go through a norm before."""

    def __init__(self, config: TowerConfig, modality: Modality) -> None:
        super().__init__()
        if modality == "vision":
            self.pre_transformer_layer: nn.Module = nn.Sequential(nn.LayerNorm(config.width, eps=EPS))
        else:
            self.pre_transformer_layer = nn.Identity()
        self.blocks = nn.Sequential(*(Block(config, extra=modality == "audio") for _ in range(config.depth)))

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
        self.register_buffer("log_logit_scale", torch.tensor(math.log(20.0)))


def _head(width: int, dimensions: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width, eps=EPS), _First(), nn.Linear(width, dimensions, bias=False))


class ImageBindNetwork(nn.Module):
    """The picture's and the sound's part of the published file."""

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        self.config = config
        both: tuple[tuple[Modality, TowerConfig], ...] = (("vision", config.vision), ("audio", config.audio))
        self.modality_preprocessors = nn.ModuleDict({s: Preprocessor(c.width, s) for s, c in both})
        self.modality_trunks = nn.ModuleDict({s: Trunk(c, s) for s, c in both})
        self.modality_heads = nn.ModuleDict({s: _head(c.width, config.dimensions) for s, c in both})
        self.modality_postprocessors = nn.ModuleDict(
            {"vision": nn.Identity(), "audio": nn.Sequential(nn.Identity(), _LogitScale())}
        )

    def embed_picture(self, clips: Float[Tensor, "batch 3 2 224 224"]) -> Float[Tensor, "batch dimensions"]:
        """Embeddings of length 1 of pairs of frames."""
        return self._embed("vision", clips)

    def embed_sound(self, spectrograms: Float[Tensor, "batch 128 204"]) -> Float[Tensor, "batch dimensions"]:
        """Embeddings of length 1 of pieces of sound; the published ones are 20 times as long."""
        return self._embed("audio", spectrograms[:, None])

    def _embed(self, modality: Modality, x: Tensor) -> Tensor:
        tokens = self.modality_trunks[modality](self.modality_preprocessors[modality](x))
        return functional.normalize(self.modality_heads[modality](tokens), dim=-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageBind:
    """ImageBind as an embedding model of sounds, one row of 1024 per clip at 16 kHz; and of pictures."""

    network: ImageBindNetwork
    loaded: LoadedFile

    @classmethod
    def load(cls, path: Path, *, device: torch.device | str = "cpu", config: ImageBindConfig | None = None) -> Self:
        """The published file by its path, strictly but for the towers that are not used; None means its sizes.

        Raises WeightsError in one line naming the file and what does not fit.
        """
        with torch.device("meta"):
            network = ImageBindNetwork(config or ImageBindConfig())
        loaded = load_official(network, path, IMAGEBIND_HUGE, unused=UNUSED)
        return cls(network=network.to(device), loaded=loaded)

    @property
    def name(self) -> str:
        return f"imagebind-huge-v1@{SAMPLE_RATE}:{self.loaded.digest}"

    @property
    def sample_rate(self) -> int:
        """Of the waves, in Hz."""
        return SAMPLE_RATE

    @property
    def dimensions(self) -> int:
        return self.network.config.dimensions

    @torch.no_grad()
    def embed(self, waves: Float[Tensor, "clips samples"]) -> Embeddings:
        """The mean of the three pieces' unit vectors, one row per clip; its own length is at most 1.

        Raises:
            ValueError: not (clips, samples), shorter than 25 ms, or not finite.
        """
        check_waves(waves, model="ImageBind", sample_rate=SAMPLE_RATE, shortest=SHORTEST)
        parts = []
        for some in waves.split(CLIPS_AT_ONCE):
            with exact_float32():
                pieces = sound_pieces(some.to(self._device).float())
                rows = self.network.embed_sound(pieces.flatten(0, 1)).unflatten(0, pieces.shape[:2]).mean(dim=1)
            parts.append(Embeddings(rows=rows.cpu(), counts=(1,) * len(some)))
        return Embeddings.join(parts)

    @torch.no_grad()
    def embed_frames(self, frames: Frames) -> Float[Tensor, "1024"]:
        """uint8 frames (T, 3, H, W) of one clip, 2 s apart, short side 224, as `imagebind_frames` reads them.

        The mean of the unit vectors of 3 (T - 1) clips, float32 on the processor.

        Raises:
            ValueError: other pixels, or fewer than two frames.
        """
        clips = picture_clips(checked_picture(frames).to(self._device))
        with exact_float32():
            return (
                torch.cat([self.network.embed_picture(some) for some in clips.split(CLIPS_AT_ONCE)]).mean(dim=0).cpu()
            )

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device
