"""VGGish embeddings (Hershey et al., arXiv 1609.09430): 128 numbers for every 0.96 s, for FD_VGG, also called FAD.

Embeddings are those before the last ReLU, without PCA and quantisation, and every patch is a row of its own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eval.extractors.base import LoadedFile, OfficialFile, check_waves, exact_float32, load_official
from eval.extractors.mel_front_end import frames, spectrum, triangle_filters
from eval.metrics.embeddings import Embeddings

VGGISH = OfficialFile(
    file="vggish-10086976.pth",
    url="https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth",
    licence="VGGish weights and their PyTorch port: Apache-2.0",
    sha256="10086976",  # the digits in the name, which by torch.hub's custom begin the SHA-256
)
SAMPLE_RATE = 16_000
FRAME = 400
"""Samples of a frame, 25 ms."""
HOP = 160
N_FFT = 512
NUM_MELS = 64
FMIN_HZ, FMAX_HZ = 125.0, 7500.0
LOG_OFFSET = 0.01
PATCH_FRAMES = 96
"""Frames of a patch, 0.96 s; patches do not overlap."""
SHORTEST = (PATCH_FRAMES - 1) * HOP + FRAME
"""Samples that one patch needs: 15,600, which is 0.975 s."""
CLIPS_AT_ONCE = 8
"""Bounds the memory; no result depends on it."""


def log_mel(waves: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames 64"]:
    """ln(mel + 0.01) of magnitudes (not powers), in the precision of `waves`; the last incomplete frame is dropped.

    HTK's mel scale, triangles straight in mel with height 1 (not in Hz, and not normalised).
    """
    filters = triangle_filters(
        sample_rate=SAMPLE_RATE,
        n_fft=N_FFT,
        num_mels=NUM_MELS,
        fmin_hz=FMIN_HZ,
        fmax_hz=FMAX_HZ,
        scale="htk",
        straight_in="mel",
        unit_area=False,
    )
    magnitude = spectrum(frames(waves, FRAME, HOP), N_FFT).abs()
    return torch.log(magnitude @ filters.T.to(waves) + LOG_OFFSET)


def patches(waves: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch patches 96 64"]:
    """Log-mel patches in order of time; frames after the last whole patch are dropped.

    Computed in float64 and returned in float32, as the NumPy front end of the original does.
    """
    mel = log_mel(waves.double())
    count = mel.shape[1] // PATCH_FRAMES
    return mel[:, : count * PATCH_FRAMES].unflatten(1, (count, PATCH_FRAMES)).float()


class VggishNetwork(nn.Module):
    """Six convolutions and three linear layers; names and shapes of the published file with the default sizes."""

    def __init__(
        self, *, channels: tuple[int, int, int, int] = (64, 128, 256, 512), hidden: int = 4096, dimensions: int = 128
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 1
        for stage, out in enumerate(channels):
            for _ in range(1 if stage < 2 else 2):
                layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU()]
                width = out
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        flat = width * (PATCH_FRAMES // 16) * (NUM_MELS // 16)
        self.embeddings = nn.Sequential(
            nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, dimensions)
        )
        self.dimensions = dimensions

    def forward(self, patch: Float[Tensor, "patches 96 64"]) -> Float[Tensor, "patches dimensions"]:
        """Embeddings before the last ReLU. The first linear layer counts time, then frequency, then channel."""
        maps = self.features(patch[:, None])
        return self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))


@dataclass(frozen=True, kw_only=True, eq=False)
class Vggish:
    """VGGish as an embedding model; no logits."""

    network: VggishNetwork
    loaded: LoadedFile

    @classmethod
    def load(cls, path: Path, *, device: torch.device | str = "cpu") -> Self:
        """Load the published file strictly. Raises WeightsError in one line where it is not that layout."""
        with torch.device("meta"):
            network = VggishNetwork()
        loaded = load_official(network, path, VGGISH)
        return cls(network=network.to(device), loaded=loaded)

    @property
    def name(self) -> str:
        return f"vggish-v1@{SAMPLE_RATE}:{self.loaded.digest}"

    @property
    def sample_rate(self) -> int:
        return SAMPLE_RATE

    @property
    def dimensions(self) -> int:
        return self.network.dimensions

    @torch.no_grad()
    def embed(self, waves: Tensor) -> Embeddings:
        """waves (clips, samples) at 16 kHz -> one row for every whole 0.96 s.

        Raises:
            ValueError: not (clips, samples), clips shorter than 0.975 s, or not finite.
        """
        check_waves(waves, model="VGGish", sample_rate=SAMPLE_RATE, shortest=SHORTEST)
        device = self.network.embeddings[0].weight.device
        parts = []
        for chunk in waves.split(CLIPS_AT_ONCE):
            patch = patches(chunk.to(device))
            with exact_float32():
                rows = self.network(patch.flatten(0, 1))
            parts.append(Embeddings(rows=rows.float().cpu(), counts=(patch.shape[1],) * len(chunk)))
        return Embeddings.join(parts)
