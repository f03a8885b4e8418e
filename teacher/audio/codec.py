"""What every audio codec of this project offers: sound <-> normalised latent."""

from pathlib import Path
from typing import NamedTuple, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from teacher.sequence import SequenceConfig


class Posterior(NamedTuple):
    """What a sound's latent may be, in the codec's own units (not normalised by latent_mean and latent_std)."""

    mean: Float[Tensor, "batch frames channels"]
    std: Float[Tensor, "batch frames channels"] | None
    """Standard deviation, independent per number; None for a deterministic codec."""


@runtime_checkable
class AudioCodec(Protocol):
    """Sound <-> latent with zero mean and unit standard deviation per channel over the training sounds."""

    @property
    def sequence(self) -> SequenceConfig:
        """Sample rate, hop length and mel frames per latent frame."""
        ...

    @property
    def latent_channels(self) -> int: ...

    @property
    def latent_mean(self) -> Float[Tensor, "channels"]:
        """Mean of the posterior means over the training sounds; float32, on the CPU."""
        ...

    @property
    def latent_std(self) -> Float[Tensor, "channels"]:
        """Their standard deviation."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of what the numbers depend on: two codecs with equal digests make equal latents."""
        ...

    def posterior(self, wave: Float[Tensor, "batch samples"]) -> Posterior:
        """Of ceil(samples / samples_per_latent) frames; the tail is padded with silence."""
        ...

    def encode(self, wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames channels"]:
        """Normalised latent: (posterior mean - latent_mean) / latent_std."""
        ...

    def decode(self, latent: Float[Tensor, "batch frames channels"]) -> Float[Tensor, "batch samples"]:
        """Sound of frames * samples_per_latent samples, within [-1, 1], of a normalised latent."""
        ...

    def decode_mel(self, latent: Float[Tensor, "batch frames channels"]) -> Float[Tensor, "batch mels mel_frames"]:
        """Log-mel spectrogram of a normalised latent, for pictures and for vocoders."""
        ...

    def save(self, path: Path) -> None:
        """Write one safetensors file that `teacher.audio.registry.open_codec` reads."""
        ...

    def with_statistics(self, mean: Float[Tensor, "channels"], std: Float[Tensor, "channels"]) -> Self:
        """The same codec with another latent_mean and latent_std."""
        ...


def check_statistics(mean: Tensor, std: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Both as float32 on the CPU; ValueError unless they are finite, one number per channel, std positive."""
    for name, value in (("latent_mean", mean), ("latent_std", std)):
        if tuple(value.shape) != (channels,) or not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} must hold {channels} finite numbers, one per channel, got {tuple(value.shape)}")
    if not bool((std > 0).all()):
        raise ValueError(f"latent_std must be positive, got a least value of {float(std.min()):g}")
    return mean.detach().float().cpu().clone(), std.detach().float().cpu().clone()
