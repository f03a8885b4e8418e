"""PANNs Cnn14 at 16 kHz (Kong et al., arXiv 1912.10211): embeddings for FD_PANNs, logits for KL_PANNs and IS.

Front end of the published network: Hann window of 512, hop 160, 1 + samples // 160 centred frames with reflected ends,
powers, 64 mel filters of unit area on Slaney's scale from 50 to 8000 Hz, 10 log10 max(x, 1e-10).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from eval.extractors.base import LoadedFile, OfficialFile, check_waves, exact_float32, load_official
from eval.extractors.mel_front_end import (
    centred,
    decibels,
    fourier_weights,
    frames,
    power,
    spectrum,
    triangle_filters,
)
from eval.metrics.embeddings import Embeddings
from teacher.files.errors import WeightsError

CNN14_16K = OfficialFile(
    file="Cnn14_16k_mAP=0.438.pth",
    url="https://zenodo.org/records/3987831/files/Cnn14_16k_mAP=0.438.pth",
    licence="PANNs code: MIT; weights: CC BY 4.0 (Zenodo record 3987831)",
    sha256="e2ee543a27919542c2ea03eabaa70b24dcd4e6c8e05621de6b67a94e4c5058e6",
)
SAMPLE_RATE = 16_000
N_FFT = 512
HOP = 160
NUM_MELS = 64
FMIN_HZ, FMAX_HZ = 50.0, 8000.0
AMIN = 1e-10
CHANNELS = (64, 128, 256, 512, 1024, 2048)
CLASSES = 527
"""AudioSet's classes; their names are not in the file."""
SHORTEST = (2 ** (len(CHANNELS) - 1) - 1) * HOP
"""Samples of 32 frames, of which five halvings leave one: 4,960, which is 0.31 s."""
CLIPS_AT_ONCE = 8
"""Bounds the memory; no result depends on it."""
FRONT_END_TOLERANCE = 1e-4
"""Greatest difference of the file's transform and filters from ours, as a fraction of the greatest entry."""


def mel_filters() -> Float[Tensor, "64 257"]:
    """The filters in float64, one row each."""
    return triangle_filters(
        sample_rate=SAMPLE_RATE,
        n_fft=N_FFT,
        num_mels=NUM_MELS,
        fmin_hz=FMIN_HZ,
        fmax_hz=FMAX_HZ,
        scale="slaney",
        straight_in="hz",
        unit_area=True,
    )


def log_mel(waves: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames 64"]:
    """Decibels per frame and filter, -100 for silence, in the precision of `waves`."""
    energy = power(spectrum(frames(centred(waves, N_FFT), N_FFT, HOP), N_FFT))
    return decibels(energy @ mel_filters().T.to(waves), amin=AMIN)


class _Stft(nn.Module):
    """The file's transform as convolution weights, (bins, 1, n_fft): window times cosine, window times -sine."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_real, self.conv_imag = nn.Module(), nn.Module()
        for part in (self.conv_real, self.conv_imag):
            part.register_buffer("weight", torch.zeros(N_FFT // 2 + 1, 1, N_FFT))


class _ConvBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation and ReLU, then the mean over 2x2 (or 1x1) places."""

    def __init__(self, width: int, out: int, *, pool: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.pool = pool

    def forward(self, maps: Tensor) -> Tensor:
        maps = torch.relu(self.bn1(self.conv1(maps)))
        maps = torch.relu(self.bn2(self.conv2(maps)))
        return maps if self.pool == 1 else functional.avg_pool2d(maps, self.pool)


class Cnn14(nn.Module):
    """Cnn14 with the names and shapes of the published file (with the default sizes).

    The file carries its transform and mel filters too. They are loaded and compared with ours (`check_front_end`); what
    runs is our own fast transform.
    """

    def __init__(self, *, channels: tuple[int, ...] = CHANNELS, classes: int = CLASSES) -> None:
        super().__init__()
        if len(channels) != len(CHANNELS):
            raise ValueError(f"channels must be {len(CHANNELS)} widths, got {channels}")
        self.spectrogram_extractor, self.logmel_extractor = nn.Module(), nn.Module()
        self.spectrogram_extractor.stft = _Stft()
        self.logmel_extractor.register_buffer("melW", torch.zeros(N_FFT // 2 + 1, NUM_MELS))
        self.bn0 = nn.BatchNorm2d(NUM_MELS)
        for index, (width, out) in enumerate(zip((1, *channels[:-1]), channels, strict=True), start=1):
            self.add_module(f"conv_block{index}", _ConvBlock(width, out, pool=1 if index == len(channels) else 2))
        self.fc1 = nn.Linear(channels[-1], channels[-1])
        self.fc_audioset = nn.Linear(channels[-1], classes)

    def forward(self, mel: Float[Tensor, "batch frames 64"]) -> tuple[Tensor, Tensor]:
        """Log-mel -> embedding ReLU(fc1) (batch, 2048) and logits before the sigmoid (batch, 527)."""
        maps = self.bn0(mel.transpose(1, 2)[..., None]).permute(0, 3, 2, 1)  # (batch, 1, frames, mels)
        for index in range(1, len(CHANNELS) + 1):
            maps = self.get_submodule(f"conv_block{index}")(maps)
        over_time = maps.mean(dim=3)
        embedding = torch.relu(self.fc1(over_time.amax(dim=2) + over_time.mean(dim=2)))
        return embedding, self.fc_audioset(embedding)


def front_end_tensors() -> dict[str, Tensor]:
    """The front end as the file holds it, float32: Hann-windowed cosines and sines, and the filters by column."""
    real, imag = fourier_weights(N_FFT)
    return {
        "spectrogram_extractor.stft.conv_real.weight": real,
        "spectrogram_extractor.stft.conv_imag.weight": imag,
        "logmel_extractor.melW": mel_filters().T.float().contiguous(),
    }


def check_front_end(network: Cnn14, path: Path) -> None:
    """Raises WeightsError unless the file's transform and filters are ours. The sign of the sines does not matter."""
    buffers = dict(network.named_buffers())
    for name, ours in front_end_tensors().items():
        theirs = buffers[name].cpu().float()
        apart = (theirs - ours).abs().max()
        if name.endswith("conv_imag.weight"):
            apart = torch.minimum(apart, (theirs + ours).abs().max())
        relative = float(apart / ours.abs().max())
        if relative > FRONT_END_TOLERANCE:
            raise WeightsError(
                f"{path} was trained on another front end: {name} differs from that of {CNN14_16K.file} "
                f"by {relative:.2g} of its greatest value"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Panns:
    """Cnn14 at 16 kHz as an embedding model: one row of 2048 per clip, and logits of AudioSet's 527 classes."""

    network: Cnn14
    loaded: LoadedFile

    @classmethod
    def load(cls, path: Path, *, device: torch.device | str = "cpu") -> Self:
        """Load the published file strictly. Raises WeightsError in one line where layout or front end differ."""
        with torch.device("meta"):
            network = Cnn14()
        loaded = load_official(network, path, CNN14_16K)
        check_front_end(network, path)
        return cls(network=network.to(device), loaded=loaded)

    @property
    def name(self) -> str:
        return f"panns-cnn14-16k-v1@{SAMPLE_RATE}:{self.loaded.digest}"

    @property
    def sample_rate(self) -> int:
        return SAMPLE_RATE

    @property
    def dimensions(self) -> int:
        return self.network.fc1.out_features

    @torch.no_grad()
    def embed(self, waves: Tensor) -> Embeddings:
        """waves (clips, samples) at 16 kHz -> one row and one line of logits per clip, of whatever length it is.

        Raises:
            ValueError: not (clips, samples), clips shorter than 0.31 s, or not finite.
        """
        check_waves(waves, model="PANNs Cnn14", sample_rate=SAMPLE_RATE, shortest=SHORTEST)
        device = self.network.fc1.weight.device
        parts = []
        for chunk in waves.split(CLIPS_AT_ONCE):
            with exact_float32():
                embedding, logits = self.network(log_mel(chunk.to(device).float()))
            parts.append(Embeddings(rows=embedding.cpu(), counts=(1,) * len(chunk), logits=logits.cpu()))
        return Embeddings.join(parts)
