"""The interface of all audio codecs, sound <-> normalised latent, and their file codec.safetensors.

The file holds a few tensors, and metadata whose "kind" names the codec that they belong to. "content" in the metadata
is a SHA-256 of everything else, so that damage is noticed wherever the file is read; files of older versions lack it.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from teacher.files.digests import compare_recorded, parts_digest, tensor_parts
from teacher.files.errors import WeightsError
from teacher.files.safetensors import read_content, write_tensors
from teacher.network.sequence import SequenceConfig


class Posterior(NamedTuple):
    """Distribution of a sound's latent, in the codec's own units (not normalised by latent_mean and latent_std)."""

    mean: Float[Tensor, "batch frames channels"]
    std: Float[Tensor, "batch frames channels"] | None
    """Standard deviation of every number, all independent; None for a deterministic codec."""


class Stage(NamedTuple):
    """A named step of decoding; the output of one stage is the input of the next."""

    name: str
    call: Callable[[Tensor], Tensor]


@runtime_checkable
class AudioCodec(Protocol):
    """Encodes sound to a latent of zero mean and unit standard deviation per channel (over the training sounds), and
    decodes it."""

    @property
    def sequence(self) -> SequenceConfig:
        """Sample rate, hop length and mel frames per latent frame."""
        ...

    @property
    def latent_channels(self) -> int:
        """Channels of the latent."""
        ...

    @property
    def latent_mean(self) -> Float[Tensor, " channels"]:
        """Mean of the posterior means over the training sounds; float32, on the CPU."""
        ...

    @property
    def latent_std(self) -> Float[Tensor, " channels"]:
        """Standard deviation of the posterior means over the training sounds; float32, on the CPU."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of everything the latents depend on: two codecs with equal digests give equal latents."""
        ...

    @property
    def facts(self) -> dict[str, float]:
        """Quality of the fit, recorded in features.json beside the digest; empty for a codec that was not fitted."""
        ...

    def posterior(self, wave: Float[Tensor, "batch samples"]) -> Posterior:
        """Distribution of a sound's latent, ceil(samples / samples_per_latent) frames; silence pads the last one."""
        ...

    def encode(self, wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames channels"]:
        """Normalised latent: (posterior mean - latent_mean) / latent_std."""
        ...

    def decode(self, latent: Float[Tensor, "batch frames channels"]) -> Float[Tensor, "batch samples"]:
        """Sound of frames * samples_per_latent samples, within [-1, 1], of a normalised latent."""
        ...

    def decode_stages(self) -> tuple[Stage, ...]:
        """`decode` as stages that are timed one by one; the first takes a normalised latent, the last gives sound."""
        ...

    def decode_mel(self, latent: Float[Tensor, "batch frames channels"]) -> Float[Tensor, "batch mels mel_frames"]:
        """Log-mel spectrogram of a normalised latent, for pictures and for vocoders."""
        ...

    def save(self, path: Path) -> None:
        """Write one safetensors file that `teacher.audio.registry.open_codec` reads."""
        ...

    def with_statistics(self, mean: Float[Tensor, " channels"], std: Float[Tensor, " channels"]) -> Self:
        """The same codec with another latent_mean and latent_std."""
        ...


def check_statistics(mean: Tensor, std: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and std of latents as float32 on the CPU; ValueError unless finite, one per channel, std positive."""
    for name, value in (("latent_mean", mean), ("latent_std", std)):
        if tuple(value.shape) != (channels,) or not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} must hold {channels} finite numbers, one per channel, got {tuple(value.shape)}")
    if not bool((std > 0).all()):
        raise ValueError(f"latent_std must be positive, got a least value of {float(std.min()):g}")
    return mean.detach().float().cpu().clone(), std.detach().float().cpu().clone()


def check_finite(latent: Tensor) -> Tensor:
    """The latent itself; ValueError where it holds NaN or infinity."""
    if not bool(torch.isfinite(latent).all()):
        raise ValueError("latent must be finite, got NaN or infinity")
    return latent


FITTED = "embedded"
"""The "kind" of a fitted codec, assumed for files without one, which older versions wrote."""
CONTENT = "content"


def write_codec_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a codec's file atomically, with a SHA-256 of its content in the metadata; equal codecs give equal bytes."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    described = {name: text for name, text in metadata.items() if name != CONTENT}
    complete = dict(sorted((described | {CONTENT: _content(plain, described)}).items()))  # equal codecs, equal bytes
    write_tensors(path, plain, complete)


def read_codec_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a codec's file.

    Raises WeightsError when the file is missing, or damaged according to its own digest or digests.json beside it.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such codec file")
    try:
        compare_recorded(path)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    try:
        tensors, metadata = read_content(path)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: damaged or not a safetensors file ({error})") from error
    recorded = metadata.pop(CONTENT, None)
    if recorded is not None and recorded != _content(tensors, metadata):
        raise WeightsError(f"{path} is damaged: its content is not what was written; restore it from a copy")
    return tensors, metadata


def _content(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    return parts_digest([*tensor_parts(tensors), ("metadata", json.dumps(dict(metadata), sort_keys=True).encode())])
