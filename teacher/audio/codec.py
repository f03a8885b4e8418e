"""What every audio codec of this project offers: sound <-> normalised latent.

codec.safetensors: a few tensors, and metadata whose "kind" names the codec they belong to.

"content" in the metadata is a SHA-256 of everything else, so that damage is noticed wherever the file is read; files of
older versions have none.
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
    """What a sound's latent may be, in the codec's own units (not normalised by latent_mean and latent_std)."""

    mean: Float[Tensor, "batch frames channels"]
    std: Float[Tensor, "batch frames channels"] | None
    """Standard deviation, independent per number; None for a deterministic codec."""


class Stage(NamedTuple):
    """A named step on the way to sound; what one returns is what the next one takes."""

    name: str
    call: Callable[[Tensor], Tensor]


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
    def latent_mean(self) -> Float[Tensor, " channels"]:
        """Mean of the posterior means over the training sounds; float32, on the CPU."""
        ...

    @property
    def latent_std(self) -> Float[Tensor, " channels"]:
        """Standard deviation of the posterior means over the training sounds; float32, on the CPU."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of what the numbers depend on: two codecs with equal digests make equal latents."""
        ...

    @property
    def facts(self) -> dict[str, float]:
        """What features.json records about it beside its digest: how well it fits, of a codec that was fitted."""
        ...

    def posterior(self, wave: Float[Tensor, "batch samples"]) -> Posterior:
        """Distribution of the latent of a sound, ceil(samples / samples_per_latent) frames; the tail is silence."""
        ...

    def encode(self, wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames channels"]:
        """Normalised latent: (posterior mean - latent_mean) / latent_std."""
        ...

    def decode(self, latent: Float[Tensor, "batch frames channels"]) -> Float[Tensor, "batch samples"]:
        """Sound of frames * samples_per_latent samples, within [-1, 1], of a normalised latent."""
        ...

    def decode_stages(self) -> tuple[Stage, ...]:
        """`decode` cut where it is timed: the first stage takes a normalised latent, the last one gives the sound."""
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
"""Kind of a fitted codec, and of files written before there were kinds."""
CONTENT = "content"


def write_codec_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Replace a codec's file whole; equal codecs give equal bytes."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    described = {name: text for name, text in metadata.items() if name != CONTENT}
    made = dict(sorted((described | {CONTENT: _content(plain, described)}).items()))  # equal codecs, equal bytes
    write_tensors(path, plain, made)


def read_codec_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata; WeightsError when the file is missing or damaged, by digests.json beside it too."""
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
