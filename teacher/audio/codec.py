"""What every audio codec of this project offers: sound <-> normalised latent."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from teacher.sequence import SequenceConfig


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
    def digest(self) -> str:
        """SHA-256 of the tensors: two codecs with equal digests make equal latents."""
        ...

    def encode(self, wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames channels"]:
        """Normalised latent of ceil(samples / samples_per_latent) frames; the tail is padded with silence."""
        ...

    def decode(self, latent: Float[Tensor, "batch frames channels"]) -> Float[Tensor, "batch samples"]:
        """Sound of frames * samples_per_latent samples, within [-1, 1]."""
        ...

    def decode_mel(self, latent: Float[Tensor, "batch frames channels"]) -> Float[Tensor, "batch mels mel_frames"]:
        """Log-mel spectrogram, for pictures and for vocoders."""
        ...
