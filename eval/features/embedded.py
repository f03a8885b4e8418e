"""The features that need no weights: a closed-form description of a sound in 84 numbers, and classes on top of it.

The classes are those of a softmax regression fitted to labels of the data, or to k-means clusters where it has none.
Numbers made with them compare models within one run of this project. They are never comparable with published Frechet
distances, divergences or inception scores, which use pretrained networks.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor

from eval.metrics.moments.gaussian import Features, as_matrix
from teacher.audio.mel import hann_window
from teacher.files.safetensors import read_content, write_tensors

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
"""Added to the mean power per bin (full scale 1): -80 dB, below any audible background."""
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
        """Frequencies of the bins in Hz, float64."""
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

    Texture is measured at the time scale that spectrograms of latents resolve; finer structure comes from the vocoder's
    phase and would distinguish codecs instead of models.
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


FORMAT = "embedded-classifier-v1"
MAX_ITERATIONS = 400
KMEANS_ITERATIONS = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddedClassifier:
    """Multinomial logistic regression on standardised features.

    logits = ((x - centre) / scale) weight + bias; centre, scale (d,), weight (d, classes), bias (classes,); float64.
    """

    classes: tuple[str, ...]
    centre: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        d, count = self.centre.numel(), len(self.classes)
        expected = {"centre": (d,), "scale": (d,), "weight": (d, count), "bias": (count,)}
        for name, tensor in self._tensors().items():
            if tuple(tensor.shape) != expected[name]:
                raise ValueError(f"{name} must have shape {expected[name]}, got {tuple(tensor.shape)}")
        if count < 2 or len(set(self.classes)) != count:
            raise ValueError(f"classes must be at least 2 distinct names, got {self.classes}")

    @classmethod
    def fit(cls, features: Features, labels: Sequence[str], *, ridge: float = 1e-2) -> Self:
        """Minimise mean cross-entropy + ridge/2 ||weight||^2 by L-BFGS from zero; deterministic.

        features (n, d), one label per row. Raises ValueError where labels and rows differ in number, a label is empty
        or fewer than two classes occur.
        """
        matrix = as_matrix(features)
        if len(labels) != len(matrix):
            raise ValueError(f"labels must name every row: {len(labels)} labels, {len(matrix)} rows")
        if not all(labels):
            raise ValueError(f"labels must not be empty, {sum(not label for label in labels)} are; use pseudo_labels")
        if not ridge > 0.0:
            raise ValueError(f"ridge must be positive, got {ridge}")
        classes = tuple(sorted(set(labels)))
        if len(classes) < 2:
            raise ValueError(f"labels must hold at least 2 classes, got {classes}; use pseudo_labels")
        centre, scale = matrix.mean(axis=0), np.maximum(matrix.std(axis=0), 1e-3)
        target = np.eye(len(classes))[[classes.index(label) for label in labels]]
        weight, bias = _fit((matrix - centre) / scale, target, ridge)
        return cls(
            classes=classes,
            centre=torch.from_numpy(centre),
            scale=torch.from_numpy(scale),
            weight=torch.from_numpy(weight),
            bias=torch.from_numpy(bias),
        )

    def logits(self, features: Tensor) -> Tensor:
        """features (n, d) -> logits (n, classes), float64."""
        if features.ndim != 2 or features.shape[1] != self.centre.numel():
            raise ValueError(f"features must be (n, {self.centre.numel()}), got {tuple(features.shape)}")
        return ((features.detach().cpu().double() - self.centre) / self.scale) @ self.weight + self.bias

    def accuracy(self, features: Tensor, labels: Sequence[str]) -> float:
        """Fraction of rows whose most likely class is their label."""
        best = self.logits(features).argmax(dim=1).tolist()
        return sum(self.classes[k] == label for k, label in zip(best, labels, strict=True)) / len(labels)

    def save(self, path: Path) -> None:
        """Write tensors and class names to one safetensors file."""
        metadata = {"format": FORMAT, "classes": json.dumps(self.classes)}
        write_tensors(path, self._tensors(), metadata)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` wrote.

        Raises:
            ValueError: not such a file, or tensors missing, superfluous or of the wrong shape.
        """
        try:
            tensors, metadata = read_content(path)
        except ValueError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
        if metadata.get("format") != FORMAT or set(tensors) != {"centre", "scale", "weight", "bias"}:
            raise ValueError(f"{path} is not an {FORMAT} file: format {metadata.get('format')}, {sorted(tensors)}")
        return cls(
            classes=tuple(json.loads(metadata["classes"])),
            centre=tensors["centre"],
            scale=tensors["scale"],
            weight=tensors["weight"],
            bias=tensors["bias"],
        )

    def _tensors(self) -> dict[str, Tensor]:
        return {"centre": self.centre, "scale": self.scale, "weight": self.weight, "bias": self.bias}


def labels_are_useful(labels: Sequence[str]) -> bool:
    """Whether a classifier can learn from labels: none empty, at least two classes, two clips per class on average."""
    classes = set(labels)
    return len(classes) >= 2 and "" not in classes and len(labels) >= 2 * len(classes)


def pseudo_labels(features: Features, num_classes: int, seed: int) -> list[str]:
    """k-means cluster names "cluster-0", ... of standardised features (n, d), for data without useful labels.

    k-means++ start from `seed`, then Lloyd iterations until nothing moves. A cluster is a grouping of the features, not
    a category of sound; the name of the features states that their classes are clusters.
    """
    matrix = as_matrix(features)
    if not 2 <= num_classes <= len(matrix):
        raise ValueError(f"num_classes must be between 2 and the number of clips, {len(matrix)}, got {num_classes}")
    rows = (matrix - matrix.mean(axis=0)) / np.maximum(matrix.std(axis=0), 1e-3)
    rng = np.random.default_rng(seed)
    centres = rows[[int(rng.integers(len(rows)))]]
    while len(centres) < num_classes:
        distance = _squared_distances(rows, centres).min(axis=1)
        weights = distance / distance.sum() if distance.sum() > 0 else np.full(len(rows), 1.0 / len(rows))
        centres = np.vstack([centres, rows[int(rng.choice(len(rows), p=weights))]])
    nearest = _squared_distances(rows, centres).argmin(axis=1)
    for _ in range(KMEANS_ITERATIONS):
        centres = np.stack(
            [rows[nearest == k].mean(axis=0) if (nearest == k).any() else centres[k] for k in range(num_classes)]
        )
        moved = _squared_distances(rows, centres).argmin(axis=1)
        if (moved == nearest).all():
            break
        nearest = moved
    return [f"cluster-{k}" for k in nearest]


def _squared_distances(rows: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((rows[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2)


def _fit(
    rows: NDArray[np.float64], target: NDArray[np.float64], ridge: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    d, count = rows.shape[1], target.shape[1]

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight, bias = flat[: d * count].reshape(d, count), flat[d * count :]
        log_p = log_softmax(rows @ weight + bias, axis=1)
        error = (np.exp(log_p) - target) / len(rows)
        loss = -float((target * log_p).sum()) / len(rows) + 0.5 * ridge * float((weight**2).sum())
        return loss, np.concatenate([(rows.T @ error + ridge * weight).ravel(), error.sum(axis=0)])

    best = minimize(
        objective, np.zeros((d + 1) * count), jac=True, method="L-BFGS-B", options={"maxiter": MAX_ITERATIONS}
    ).x
    return best[: d * count].reshape(d, count).copy(), best[d * count :].copy()
