"""Codecs by name and from their files."""

from dataclasses import dataclass
from pathlib import Path

import torch

from teacher.audio.codec import FITTED, AudioCodec, read_codec_file
from teacher.audio.embedded_codec import EmbeddedCodec
from teacher.audio.mel import MEL_16K, MEL_44K, MelConfig
from teacher.audio.mmaudio_codec import STACKS, MMAudioCodec, Models
from teacher.files.errors import WeightsError


@dataclass(frozen=True, kw_only=True)
class CodecEntry:
    """One codec of this project."""

    mel: MelConfig
    latent_channels: int
    fitted: bool
    """Fitted on the training sounds; otherwise published weights are needed."""


CODECS: dict[str, CodecEntry] = {
    "embedded": CodecEntry(mel=MEL_16K, latent_channels=20, fitted=True),
    "embedded_44k": CodecEntry(mel=MEL_44K, latent_channels=40, fitted=True),
    **{
        name: CodecEntry(mel=stack.mel, latent_channels=stack.vae.latent_channels, fitted=False)
        for name, stack in STACKS.items()
    },
}


def open_codec(path: Path, *, weights_dir: Path | None = None, device: str = "cpu") -> AudioCodec:
    """The codec in a codec.safetensors, by the kind in its metadata; a file without kind is a fitted codec.

    `weights_dir` replaces the folder of component files that the codec was saved with; fitted codecs need none and run
    on the CPU. Raises WeightsError, or ValueError for a damaged fitted codec, naming the file and what is wrong.
    """
    path = Path(path)
    kind = read_codec_file(path)[1].get("kind", FITTED)
    if kind == FITTED:
        return EmbeddedCodec.load(path)
    if kind not in STACKS:
        raise WeightsError(f"{path}: unknown kind of codec {kind!r}, expected {FITTED} or one of {', '.join(STACKS)}")
    return MMAudioCodec.load(path, weights_dir=weights_dir, device=device)


def mmaudio_codec(name: str, weights_dir: Path, device: str = "cpu") -> MMAudioCodec:
    """A published codec whose statistics are not known yet: latent_mean 0, latent_std 1."""
    if name not in STACKS:
        raise ValueError(f"codec must be one of {', '.join(STACKS)}, got {name!r}")
    channels = STACKS[name].vae.latent_channels
    models = Models(stack=STACKS[name], weights_dir=Path(weights_dir), device=device)
    return MMAudioCodec(models=models, latent_mean=torch.zeros(channels), latent_std=torch.ones(channels))
