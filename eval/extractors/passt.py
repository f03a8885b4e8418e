"""PaSST, the audio classifier behind FD_PaSST, KL_PaSST and the inception score of 2024-26 papers.

A DeiT-distilled ViT-B/16 on spectrograms with positions split into time and frequency (arXiv 2110.05069); weights
`passt-s-f128-p16-s10-ap.476-swa.pt`, trained on ten-second clips of AudioSet at 32 kHz. Module names are those of the
published state dict.

The network always takes ten seconds: a shorter clip is followed by silence, of which an eight-second clip carries two
seconds, and a longer one is cut. This is what av-benchmark does, and scores of other lengths do not compare with it.
Channels, the mean of the wave and the sample rate are the business of `eval/extractors/clip_audio.py`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from eval.extractors.base import LoadedFile, OfficialFile, check_waves, exact_float32, load_official
from eval.extractors.mel_front_end import PREEMPHASIS, kaldi_filters
from eval.metrics.embeddings import Embeddings
from teacher.audio.mel import hann_window
from teacher.encoders.synchformer import Mlp, attend

PASST_S = OfficialFile(
    file="passt-s-f128-p16-s10-ap.476-swa.pt",
    url="https://github.com/kkoutini/PaSST/releases/download/v0.0.1-audioset/passt-s-f128-p16-s10-ap.476-swa.pt",
    licence="Apache-2.0",
)
SAMPLE_RATE = 32_000
CLIP_SAMPLES = 320_000
"""10 s."""
FFT, WINDOW, HOP = 1024, 800, 320
MELS, TOP_HZ = 128, 15_000.0
LOG_FLOOR = 1e-5
FRAMES = 1000
"""Frames of 319 999 samples, centred."""
HEAD_EPS = 1e-5
"""Epsilon of the LayerNorm before the classifier, which unlike that of the others is torch's default."""
CLIPS_AT_ONCE = 8
"""Clips per forward pass; one needs about 80 MB of activations in float32."""


def ten_seconds(waves: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch 320000"]:
    """The first 320 000 samples, or all of them and zeros."""
    return functional.pad(waves[:, :CLIP_SAMPLES], (0, max(0, CLIP_SAMPLES - waves.shape[1])))


def passt_spectrogram(waves: Float[Tensor, "batch 320000"]) -> Float[Tensor, "batch 128 1000"]:
    """(ln(mel power + 1e-5) + 4.5) / 5 of ten seconds at 32 kHz, in the precision of `waves`.

    The wave is w[n] - 0.97 w[n - 1] for n >= 1. Frames of a symmetric Hann window of 800 samples in the middle of 1024
    lie every 320 samples, centred with reflection. Kaldi's 128 filters span 0 to 15 000 Hz.
    """
    emphasised = waves[:, 1:] - PREEMPHASIS * waves[:, :-1]
    window = hann_window(WINDOW, like=waves, periodic=False)
    spectrum = torch.stft(
        emphasised, FFT, hop_length=HOP, win_length=WINDOW, window=window, center=True, pad_mode="reflect",
        return_complex=True,
    )  # fmt: skip
    power = torch.view_as_real(spectrum).square().sum(-1)
    filters = kaldi_filters(sample_rate=SAMPLE_RATE, n_fft=FFT, num_mels=MELS, fmin_hz=0.0, fmax_hz=TOP_HZ)
    return (torch.log(filters.to(power) @ power + LOG_FLOOR) + 4.5) / 5.0


@dataclass(frozen=True, kw_only=True)
class PasstConfig:
    """Sizes; the defaults are the published ones, 86 153 758 parameters in 159 tensors."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    """Width of the hidden layer of each MLP."""
    patch: int = 16
    stride: int = 10
    """Distance of neighbouring patches in mel bins and in frames."""
    classes: int = 527
    """Classes of AudioSet."""
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"heads must divide width {self.width}, got {self.heads}")
        if not (self.stride >= 1 and 1 <= self.patch <= MELS):
            raise ValueError(
                f"stride must be at least 1 and patch between 1 and {MELS}, got {self.stride} and {self.patch}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along frequency and along time: 12 x 99."""
        return (MELS - self.patch) // self.stride + 1, (FRAMES - self.patch) // self.stride + 1


class Attention(nn.Module):
    """Self-attention with one matrix for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(attend(q, k, v, self.heads))


class Block(nn.Module):
    """x += attn(norm1 x); x += mlp(norm2 x)."""

    def __init__(self, config: PasstConfig) -> None:
        super().__init__()
        c = config
        self.norm1 = nn.LayerNorm(c.width, eps=c.eps)
        self.attn = Attention(c.width, c.heads)
        self.norm2 = nn.LayerNorm(c.width, eps=c.eps)
        self.mlp = Mlp(c.width, c.hidden)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Patches(nn.Module):
    """The convolution that makes overlapping patches, one name deeper."""

    def __init__(self, width: int, patch: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, patch, stride)

    def forward(self, spectrogram: Float[Tensor, "batch mels frames"]) -> Float[Tensor, "batch width rows columns"]:
        return self.proj(spectrogram[:, None])


class PasstNetwork(nn.Module):
    """Everything in the published file, the classifier of the distillation token included, which nothing uses."""

    def __init__(self, config: PasstConfig) -> None:
        super().__init__()
        c, (rows, columns) = config, config.grid
        self.config = config
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, c.width))
        self.dist_token = nn.Parameter(0.02 * torch.randn(1, 1, c.width))
        self.new_pos_embed = nn.Parameter(0.02 * torch.randn(1, 2, c.width))
        self.freq_new_pos_embed = nn.Parameter(0.02 * torch.randn(1, c.width, rows, 1))
        self.time_new_pos_embed = nn.Parameter(0.02 * torch.randn(1, c.width, 1, columns))
        self.patch_embed = Patches(c.width, c.patch, c.stride)
        self.blocks = nn.Sequential(*(Block(c) for _ in range(c.depth)))
        self.norm = nn.LayerNorm(c.width, eps=c.eps)
        self.head = nn.Sequential(nn.LayerNorm(c.width, eps=HEAD_EPS), nn.Linear(c.width, c.classes))
        self.head_dist = nn.Linear(c.width, c.classes)

    def forward(self, spectrogram: Float[Tensor, "batch 128 1000"]) -> Float[Tensor, "batch width"]:
        """Mean of the class and the distillation token after the last norm.

        Patches follow both tokens, frequency by frequency; a patch's position is that of its row plus its column's.
        """
        patches = self.patch_embed(spectrogram) + self.time_new_pos_embed + self.freq_new_pos_embed
        fronts = torch.cat((self.cls_token, self.dist_token), dim=1) + self.new_pos_embed
        tokens = torch.cat((fronts.expand(len(patches), -1, -1), patches.flatten(2).transpose(1, 2)), dim=1)
        return self.norm(self.blocks(tokens))[:, :2].mean(dim=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Passt:
    """PaSST at 32 kHz as an embedding model: one row of 768 per clip, and logits of AudioSet's 527 classes."""

    network: PasstNetwork
    loaded: LoadedFile

    @classmethod
    def load(cls, path: Path, *, device: torch.device | str = "cpu", config: PasstConfig | None = None) -> Self:
        """The published file by its path, strictly; config None means its sizes.

        Raises WeightsError in one line naming the file and what does not fit.
        """
        with torch.device("meta"):
            network = PasstNetwork(config or PasstConfig())
        loaded = load_official(network, path, PASST_S)
        return cls(network=network.to(device), loaded=loaded)

    @property
    def name(self) -> str:
        return f"passt-s-ap476-swa-v1@{SAMPLE_RATE}:{self.loaded.digest}"

    @property
    def sample_rate(self) -> int:
        return SAMPLE_RATE

    @property
    def dimensions(self) -> int:
        return self.network.config.width

    @torch.no_grad()
    def embed(self, waves: Float[Tensor, "clips samples"]) -> Embeddings:
        """Rows and logits from the first ten seconds, zeros following shorter waves.

        Raises:
            ValueError: not (clips, samples), empty, or not finite.
        """
        check_waves(waves, model="PaSST", sample_rate=SAMPLE_RATE, shortest=1)
        device, parts = self.network.cls_token.device, []
        for some in waves.split(CLIPS_AT_ONCE):
            with exact_float32():
                rows = self.network(passt_spectrogram(ten_seconds(some.to(device).float())))
                logits = self.network.head(rows)
            parts.append(Embeddings(rows=rows.cpu(), counts=(1,) * len(some), logits=logits.cpu()))
        return Embeddings.join(parts)
