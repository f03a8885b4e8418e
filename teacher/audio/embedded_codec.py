"""A codec fitted in closed form on the training sounds: principal components of short log-mel patches, and Griffin-Lim.

    patch  p = log_mel of latent_downsample = 2 neighbouring frames                       (2 * num_mels numbers)
    latent z = ((p - mean) basis - component_mean) / component_std                        (latent_channels numbers)
    decode p = mean + (z component_std + component_mean) basis',  sound = griffin_lim(p)

The latent is normalised by construction, so latent_mean is 0 and latent_std is 1 unless `with_statistics` sets
others. Unlike MMAudio's VAE and BigVGAN (teacher/audio/mmaudio_codec.py) it needs no download and is fitted in
seconds, with the same frame rate (31.25 Hz at 16 kHz) and as many channels (20).
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from teacher.audio.codec import (
    FITTED,
    Posterior,
    Stage,
    check_finite,
    check_statistics,
    read_codec_file,
    write_codec_file,
)
from teacher.audio.griffin_lim import griffin_lim
from teacher.audio.mel import MEL_16K, MelConfig, log_mel
from teacher.files import json_digest
from teacher.network.sequence import SequenceConfig, check_whole

KIND = "embedded-pca"
VERSION = 1
PATCH_FRAMES = 2
MOST_ITERATIONS = 1000
LOUDEST_MEL = 100.0
"""`decode_mel` clamps mel magnitudes to at most this; a full-scale sine reaches about 10, full-scale noise 4."""


@dataclass(frozen=True, kw_only=True)
class EmbeddedCodec:
    """Principal components of two-frame log-mel patches. Make one with `fit` or `load`."""

    mel: MelConfig
    patch_mean: Float[Tensor, " patch"]
    basis: Float[Tensor, "patch channels"]
    """Principal components: orthonormal columns, in order of decreasing variance."""
    component_mean: Float[Tensor, " channels"]
    component_std: Float[Tensor, " channels"]
    """Mean and standard deviation of the coefficients over the sounds of the fit; the latent is whitened with them."""
    explained_variance: float
    """Fraction of the patches' variance that the channels explain, on the sounds of the fit."""
    num_iterations: int = 16
    """Griffin-Lim iterations of `decode`; 16 take about a second for 64 clips of 2 s on one core."""
    statistics: tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]] | None = None
    """Mean and standard deviation of the whitened latent over other sounds; None: 0 and 1. See `with_statistics`."""

    def __post_init__(self) -> None:
        patch = PATCH_FRAMES * self.mel.num_mels
        if self.basis.ndim != 2 or self.basis.shape[0] != patch:
            raise ValueError(f"basis must have shape ({patch}, channels), got {tuple(self.basis.shape)}")
        for name, shape in (("patch_mean", (patch,)), ("component_mean", (self.latent_channels,))):
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(getattr(self, name).shape)}")
        if self.component_std.shape != self.component_mean.shape or not bool((self.component_std > 0).all()):
            raise ValueError("component_std must be positive, with one number per channel")
        if self.statistics is not None:
            check_statistics(*self.statistics, self.latent_channels)
        check_whole("num_iterations", self.num_iterations, 0, MOST_ITERATIONS)
        _ = self.sequence  # refuses rates that are out of bounds

    @property
    def sequence(self) -> SequenceConfig:
        """Sample rate, hop length and mel frames per latent frame."""
        return SequenceConfig(
            sample_rate=self.mel.sample_rate, hop_length=self.mel.hop_length, latent_downsample=PATCH_FRAMES
        )

    @property
    def latent_channels(self) -> int:
        """Channels of the latent: the number of principal components."""
        return self.basis.shape[1]

    @property
    def latent_mean(self) -> Float[Tensor, " channels"]:
        """Mean of the whitened latent, (C,): 0 unless `with_statistics` set another."""
        return torch.zeros(self.latent_channels) if self.statistics is None else self.statistics[0]

    @property
    def latent_std(self) -> Float[Tensor, " channels"]:
        """Standard deviation of the whitened latent, (C,): 1 unless `with_statistics` set another."""
        return torch.ones(self.latent_channels) if self.statistics is None else self.statistics[1]

    @property
    def digest(self) -> str:
        """SHA-256 over names, shapes and float32 values of the tensors and the mel configuration."""
        named = sorted(self._tensors().items())
        return json_digest(asdict(self.mel), (f"{n}{tuple(t.shape)}".encode() + t.numpy().tobytes() for n, t in named))

    @property
    def facts(self) -> dict[str, float]:
        """`explained_variance`: the fraction of the patches' variance that the channels explain."""
        return {"explained_variance": self.explained_variance}

    @classmethod
    def fit(
        cls, waves: Iterable[Tensor | np.ndarray], *, mel: MelConfig = MEL_16K, latent_channels: int = 20
    ) -> "EmbeddedCodec":
        """Closed-form fit on sounds of shape (samples,); memory does not grow with their number.

        Mean and covariance of all patches are accumulated in float64; the channels are the leading eigenvectors of the
        covariance. Raises ValueError when there are fewer than 10 patches per channel, or nothing but silence.
        """
        patch = PATCH_FRAMES * mel.num_mels
        if not 1 <= latent_channels <= patch:
            raise ValueError(f"latent_channels must lie in 1..{patch}, got {latent_channels}")
        total = torch.zeros(patch, dtype=torch.float64)
        product = torch.zeros(patch, patch, dtype=torch.float64)
        count = 0
        for wave in waves:
            patches = _patches(torch.as_tensor(wave, dtype=torch.float32)[None], mel)[0].double()
            total += patches.sum(0)
            product += patches.T @ patches
            count += len(patches)
        if count < 10 * latent_channels:
            raise ValueError(
                f"the codec needs at least {10 * latent_channels} latent frames of training sound to be fitted, got "
                f"{count} ({count * PATCH_FRAMES * mel.hop_length / mel.sample_rate:.1f} s): add training audio"
            )
        mean = total / count
        variance, vectors = torch.linalg.eigh(product / count - torch.outer(mean, mean))
        variance, vectors = variance.flip(0).clamp_min(0.0), vectors.flip(1)
        if variance[0] <= 1e-10:
            raise ValueError("the codec cannot be fitted: the training sounds are silent or constant")
        basis = vectors[:, :latent_channels]
        basis = basis * torch.where(basis.sum(0) < 0, -1.0, 1.0)  # eigenvectors come with an arbitrary sign
        largest = variance[:latent_channels]
        return cls(
            mel=mel,
            patch_mean=mean.float(),
            basis=basis.float().contiguous(),
            component_mean=torch.zeros(latent_channels),
            component_std=largest.clamp_min(1e-8 * float(largest[0])).sqrt().float(),
            explained_variance=float(largest.sum() / variance.sum()),
        )

    @torch.no_grad()
    def posterior(self, wave: Float[Tensor, "batch samples"]) -> Posterior:
        """Whitened coefficients (batch, ceil(samples / (2 hop)), channels) as the mean; std is None (deterministic).

        The end of the sound is padded with silence to a whole latent frame.
        """
        if wave.ndim != 2 or wave.shape[1] == 0:
            raise ValueError(f"wave must have shape (batch, samples) with samples > 0, got {tuple(wave.shape)}")
        patches = _patches(wave.detach().float().cpu(), self.mel)
        return Posterior(((patches - self.patch_mean) @ self.basis - self.component_mean) / self.component_std, None)

    def encode(self, wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames channels"]:
        """Normalised latent: (whitened coefficients - latent_mean) / latent_std."""
        mean = self.posterior(wave).mean
        return mean if self.statistics is None else (mean - self.latent_mean) / self.latent_std

    @torch.no_grad()
    def decode_mel(self, latent: Float[Tensor, "batch frames channels"]) -> Float[Tensor, "batch mels mel_frames"]:
        """Log-mel spectrogram of 2 * frames mel frames, clamped between digital silence and log(LOUDEST_MEL)."""
        if latent.ndim != 3 or latent.shape[2] != self.latent_channels:
            raise ValueError(
                f"latent must have shape (batch, frames, {self.latent_channels}), got {tuple(latent.shape)}"
            )
        whitened = latent.detach().float().cpu()
        if self.statistics is not None:
            whitened = whitened * self.latent_std + self.latent_mean
        patches = self.patch_mean + (whitened * self.component_std + self.component_mean) @ self.basis.T
        batch, frames, _ = patches.shape
        mel = patches.view(batch, frames * PATCH_FRAMES, self.mel.num_mels).transpose(1, 2)
        loudest = math.log10(LOUDEST_MEL) if self.mel.log == "log10" else math.log(LOUDEST_MEL)
        return mel.clamp(self.mel.log_floor, loudest)

    @torch.no_grad()
    def decode(self, latent: Float[Tensor, "batch frames channels"]) -> Float[Tensor, "batch samples"]:
        """Sound of frames * 2 hop samples, at most 1 in magnitude: a louder row is scaled down to a peak of 1.

        Raises ValueError for a latent that is not finite.
        """
        value = latent
        for stage in self.decode_stages():
            value = stage.call(value)
        return value

    def decode_stages(self) -> tuple[Stage, ...]:
        """`decode` in two stages: latent to log-mel by the principal components, log-mel to sound by Griffin-Lim."""
        return (Stage("latent decode", self._finite_mel), Stage("vocoder", self._sound))

    def _finite_mel(self, latent: Tensor) -> Tensor:
        return self.decode_mel(check_finite(latent))

    @torch.no_grad()
    def _sound(self, mel: Tensor) -> Tensor:
        wave = griffin_lim(mel, self.mel, num_iterations=self.num_iterations)
        return wave / wave.abs().amax(dim=1, keepdim=True).clamp_min(1.0)

    def save(self, path: Path) -> None:
        """Write tensors and JSON metadata to one safetensors file, which replaces `path` atomically."""
        described = {
            "kind": KIND,
            "version": VERSION,
            "mel": asdict(self.mel),
            "explained_variance": self.explained_variance,
            "num_iterations": self.num_iterations,
        }
        write_codec_file(path, self._tensors(), {"kind": FITTED, "codec": json.dumps(described)})

    @classmethod
    def load(cls, path: Path) -> "EmbeddedCodec":
        """Read a file written by `save`. Raises ValueError naming the file when it is anything else."""
        described, tensors = _read(path)
        try:
            return cls(
                mel=MelConfig(**described["mel"]),
                explained_variance=float(described["explained_variance"]),
                num_iterations=int(described["num_iterations"]),
                statistics=(tensors[_MEAN], tensors[_STD]) if _MEAN in tensors else None,
                **{field: tensors[name] for name, field in _TENSORS.items()},
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise ValueError(f"{path}: not a usable {KIND} codec ({error})") from error

    def with_statistics(self, mean: Float[Tensor, " channels"], std: Float[Tensor, " channels"]) -> "EmbeddedCodec":
        """The same codec whose latent is (whitened - mean) / std; mean 0 and std 1 give the codec as fitted."""
        mean, std = check_statistics(mean, std, self.latent_channels)
        plain = bool((mean == 0).all() and (std == 1).all())
        return replace(self, statistics=None if plain else (mean, std))

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors to save, by their names in the file; `digest` depends on these names."""
        named = {name: getattr(self, field).contiguous() for name, field in _TENSORS.items()}
        return named | dict(zip((_MEAN, _STD), self.statistics or (), strict=False))


_TENSORS = {
    "patch_mean": "patch_mean",
    "basis": "basis",
    "latent_mean": "component_mean",  # the names in files: codecs of existing feature folders keep their digests
    "latent_std": "component_std",
}
_MEAN, _STD = "statistics_mean", "statistics_std"


def _patches(wave: Float[Tensor, "batch samples"], mel: MelConfig) -> Float[Tensor, "batch frames patch"]:
    """Log-mel of every pair of frames, laid out frame by frame; silence fills the last latent frame."""
    step = PATCH_FRAMES * mel.hop_length
    frames = -(-wave.shape[1] // step)
    padded = functional.pad(wave, (0, max(frames * step, mel.pad + 1) - wave.shape[1]))
    spectrogram = log_mel(padded, mel).transpose(1, 2)[:, : frames * PATCH_FRAMES]
    return spectrogram.reshape(len(wave), frames, PATCH_FRAMES * mel.num_mels)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a codec file; ValueError when it is missing, damaged or of another kind or version."""
    tensors, metadata = read_codec_file(path)
    try:
        described = json.loads(metadata.get("codec", "{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged description ({error})") from error
    if not isinstance(described, dict) or described.get("kind") != KIND or described.get("version") != VERSION:
        raise ValueError(
            f"{path}: expected a codec of kind {KIND!r} version {VERSION}, found kind {described.get('kind')!r} "
            f"version {described.get('version')!r}"
        )
    if set(tensors) not in (set(_TENSORS), {*_TENSORS, _MEAN, _STD}):
        raise ValueError(f"{path}: expected tensors {sorted(_TENSORS)}, found {sorted(tensors)}")
    return described, tensors
