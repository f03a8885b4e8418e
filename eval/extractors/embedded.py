"""The embedded audio features: a closed-form description of a sound that needs no weights.

Numbers made with them compare models within one run of this project. They are never comparable with published Frechet
distances, divergences or inception scores, which use pretrained networks.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from eval.extractors.embedded_classifier import EmbeddedClassifier, pseudo_labels
from teacher.audio.mel import hann_window

__all__ = ["EmbeddedAudioFeatures", "EmbeddedClassifier", "pseudo_labels"]

NUM_BANDS = 18
NUM_FINE_BANDS = 60
NUM_GROUPS = 6
MODULATION_EDGES_HZ = (0.7, 3.0, 6.0, 12.0, 24.0)
"""Edges of the four modulation rates: slow swell, hits, fast hits, roughness."""
HOP_S = 0.01
WINDOW_S = 0.032
TEXTURE_FRAMES = 3
"""Analysis frames averaged before texture is measured: 30 ms, about one latent frame."""
MIN_HZ = 60.0
MAX_HZ = 7600.0
POWER_FLOOR = 1e-8
"""Added to the mean power per bin (full scale 1): -80 dB, below any background meant to be heard."""
CHUNK = 64
"""Clips transformed at once, to bound the memory; no result depends on it."""
LENGTH = 2 * NUM_BANDS + (len(MODULATION_EDGES_HZ) - 1 + 2) * NUM_GROUPS + 12


@dataclass(frozen=True, kw_only=True)
class EmbeddedAudioFeatures:
    """Closed-form features of mono waves, 84 numbers per clip.

    In order: mean over time of 18 log band energies; their standard deviation; modulation strength in six band groups
    at four rates; texture in six groups (root mean square of second differences along time and along frequency of the
    fine log spectrogram, which over-smoothed spectrograms lack); 12 statistics of loudness, attack, spectral centroid,
    spread and flatness.
    Every number is scaled by a fixed constant so that ordinary sounds spread over a few units.
    """

    sample_rate: int
    """Sample rate in Hz of the waves."""

    def __post_init__(self) -> None:
        if self.sample_rate < 8000:
            raise ValueError(f"sample_rate must be at least 8000 Hz, got {self.sample_rate}")

    @property
    def name(self) -> str:
        return f"embedded-{LENGTH}-v2@{self.sample_rate}"

    def __call__(self, waves: Tensor) -> Tensor:
        """waves (batch, samples) -> features (batch, 84) float32, on the CPU's float64 arithmetic or the device's.

        Raises:
            ValueError: not (batch, samples), shorter than 0.5 s, or not finite.
        """
        if waves.ndim != 2 or waves.shape[1] < self.sample_rate // 2:
            raise ValueError(f"waves must be (batch, samples) of at least 0.5 s, got {tuple(waves.shape)}")
        if not torch.isfinite(waves).all():
            raise ValueError("waves must be finite, got NaN or infinite samples")
        return torch.cat([self._features(chunk.double()) for chunk in waves.split(CHUNK)]).float()

    def _features(self, waves: Tensor) -> Tensor:
        power = self._power(waves)
        fine = _at_texture_rate(power @ self._bands(NUM_FINE_BANDS, power)).log()
        coarse = torch.log(power @ self._bands(NUM_BANDS, power) + POWER_FLOOR)
        return torch.cat(
            [
                (coarse.mean(dim=1) + 12.0) / 3.0,
                coarse.std(dim=1),
                _modulation(coarse),
                _texture(fine),
                _attack(coarse),
                self._shape(power),
            ],
            dim=1,
        )

    def _power(self, waves: Tensor) -> Tensor:
        """Power spectrogram (batch, frames, bins), a full-scale sine giving about 1 in its bin."""
        window = hann_window(2 * round(WINDOW_S * self.sample_rate / 2), like=waves)
        spectrum = torch.stft(
            waves,
            n_fft=len(window),
            hop_length=round(HOP_S * self.sample_rate),
            window=window,
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        return (spectrum.abs() * (2.0 / window.sum())).square().transpose(1, 2)

    def _frequencies(self, power: Tensor) -> Tensor:
        """Of the bins in Hz, float64."""
        return torch.linspace(0.0, self.sample_rate / 2, power.shape[2], dtype=torch.float64, device=power.device)

    def _bands(self, count: int, power: Tensor) -> Tensor:
        """Triangular mel-spaced weights (bins, count), each column summing to 1, at least two bins wide."""
        top = min(MAX_HZ, 0.48 * self.sample_rate)
        low_mel, top_mel = (2595.0 * math.log10(1.0 + f / 700.0) for f in (MIN_HZ, top))
        mels = torch.linspace(low_mel, top_mel, count + 2, dtype=torch.float64, device=power.device)
        edges = 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
        frequencies = self._frequencies(power)
        width = (edges[2:] - edges[1:-1]).clamp_min(2.0 * float(frequencies[1]))
        weights = (1.0 - (frequencies[:, None] - edges[1:-1]).abs() / width).clamp_min(0.0)
        return (weights / weights.sum(dim=0)).to(power)

    def _shape(self, power: Tensor) -> Tensor:
        """Loudness-weighted centroid (octaves re 1 kHz), its spread over time, bandwidth, flatness: 6 numbers."""
        frequencies = self._frequencies(power)
        inside = (frequencies >= MIN_HZ) & (frequencies <= MAX_HZ)
        octaves = torch.log2(frequencies[inside] / 1000.0).to(power)
        bins = power[:, :, inside] + POWER_FLOOR
        total = bins.sum(dim=2)
        centroid = (bins * octaves).sum(dim=2) / total
        spread = ((bins * (octaves - centroid[:, :, None]).square()).sum(dim=2) / total).sqrt()
        flatness = bins.log().mean(dim=2) - bins.mean(dim=2).log()
        weight = total / total.sum(dim=1, keepdim=True)
        return torch.stack(
            [
                (weight * centroid).sum(dim=1),
                centroid.std(dim=1) * 2.0,
                (weight * spread).sum(dim=1) * 2.0,
                (weight * flatness).sum(dim=1) / 1.5,
                flatness.mean(dim=1) / 1.5,
                flatness.std(dim=1),
            ],
            dim=1,
        )


def _groups(values: Tensor) -> Tensor:
    """Mean over groups of neighbouring bands: (batch, bands) -> (batch, 6)."""
    return values.unflatten(1, (NUM_GROUPS, -1)).mean(dim=2)


def _modulation(level: Tensor) -> Tensor:
    """ln of the modulation power of the log band energies, in 6 groups x 4 rates: (batch, 24)."""
    centred = level - level.mean(dim=1, keepdim=True)
    taper = hann_window(level.shape[1], like=level)[:, None]
    spectrum = torch.fft.rfft(centred * taper, dim=1).abs().square() / taper.square().sum()
    rates = torch.fft.rfftfreq(level.shape[1], HOP_S, dtype=level.dtype, device=level.device)
    parts = []
    for low, high in pairwise(MODULATION_EDGES_HZ):
        inside = (rates >= low) & (rates < high)
        parts.append(torch.log(_groups(spectrum[:, inside].mean(dim=1)) + 0.05))
    return torch.cat(parts, dim=1)


def _at_texture_rate(energies: Tensor) -> Tensor:
    """Band energies (batch, frames, bands) averaged over TEXTURE_FRAMES frames, floored.

    Texture is judged at the time scale that spectrograms of latents resolve; finer structure is the phase's, that is
    the vocoder's, and would tell codecs apart instead of models.
    """
    frames = energies.shape[1] // TEXTURE_FRAMES * TEXTURE_FRAMES
    return energies[:, :frames].unflatten(1, (-1, TEXTURE_FRAMES)).mean(dim=2) + POWER_FLOOR


def _texture(fine: Tensor) -> Tensor:
    """Root mean square of second differences along time and along frequency, 6 groups each: (batch, 12)."""
    along_time = (fine[:, 2:] - 2.0 * fine[:, 1:-1] + fine[:, :-2]).square().mean(dim=1)
    padded = torch.nn.functional.pad(fine, (1, 1), mode="replicate")
    along_frequency = (padded[:, :, 2:] - 2.0 * fine + padded[:, :, :-2]).square().mean(dim=1)
    return torch.cat([_groups(along_time).sqrt(), _groups(along_frequency).sqrt()], dim=1) * 2.0


def _attack(level: Tensor) -> Tensor:
    """Loudness and how suddenly it comes: 6 numbers."""
    loudness = level.exp().mean(dim=2).log()
    rise = (level[:, 2:] - level[:, :-2]).clamp_min(0.0).mean(dim=2)
    fall = (level[:, :-2] - level[:, 2:]).clamp_min(0.0).mean(dim=2)
    peak = loudness.amax(dim=1)
    return torch.stack(
        [
            (peak + 6.0) / 2.0,
            (peak - loudness.quantile(0.5, dim=1)) / 2.0,
            (peak - loudness.quantile(0.1, dim=1)) / 2.0,
            rise.amax(dim=1),
            rise.quantile(0.95, dim=1) * 3.0,
            ((rise.square().mean(dim=1) + 1e-3) / (fall.square().mean(dim=1) + 1e-3)).log(),
        ],
        dim=1,
    )
