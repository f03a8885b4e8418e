"""Codecs by name, and from their files: a new codec is its adapter and one entry of `CODECS`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from teacher.audio.codec import FITTED, AudioCodec, read_codec_file
from teacher.audio.embedded_codec import EmbeddedCodec
from teacher.audio.mel import MEL_16K, MEL_44K, MelConfig
from teacher.audio.mmaudio_codec import STACKS, AudioStack, MMAudioCodec, mmaudio_codec
from teacher.files.errors import WeightsError

Fit = Callable[[Iterable[np.ndarray]], AudioCodec]
"""From training sounds, each float32 (samples,)."""
Load = Callable[[Path, str], AudioCodec]
"""From a folder of weights, for a device such as "cpu" or "cuda:0"; latent_mean 0 and latent_std 1."""
Read = Callable[[Path, Path | None, str], AudioCodec]
"""From its codec.safetensors, a folder of weights that replaces the recorded one, and a device."""


@dataclass(frozen=True, kw_only=True)
class CodecEntry:
    """What is known of a codec before it is made, and how it is made: fitted on training sounds, or loaded."""

    kind: str
    """Its "kind" in the metadata of codec.safetensors; codecs that are read alike share one."""
    mel: MelConfig
    latent_channels: int
    read: Read
    fit: Fit | None = None
    """For a codec that is fitted on the training sounds."""
    load: Load | None = None
    """For a codec with published weights."""
    files: tuple[str, ...] = ()
    """Files of weights that it loads."""

    @property
    def fitted(self) -> bool:
        """Whether it is fitted on the training sounds; otherwise published weights are needed."""
        return self.fit is not None


def _fitted(mel: MelConfig, latent_channels: int) -> CodecEntry:
    return CodecEntry(
        kind=FITTED,
        mel=mel,
        latent_channels=latent_channels,
        read=lambda path, _weights_dir, _device: EmbeddedCodec.load(path),
        fit=partial(EmbeddedCodec.fit, mel=mel, latent_channels=latent_channels),
    )


def _published(stack: AudioStack) -> CodecEntry:
    return CodecEntry(
        kind=stack.name,
        mel=stack.mel,
        latent_channels=stack.vae.latent_channels,
        read=lambda path, weights_dir, device: MMAudioCodec.load(path, weights_dir=weights_dir, device=device),
        load=partial(mmaudio_codec, stack.name),
        files=stack.files,
    )


CODECS: dict[str, CodecEntry] = {
    "embedded": _fitted(MEL_16K, 20),
    "embedded_44k": _fitted(MEL_44K, 40),
    **{name: _published(stack) for name, stack in STACKS.items()},
}
"""Every codec, by the name that --codec takes and features.json records."""


def open_codec(path: Path, *, weights_dir: Path | None = None, device: str = "cpu") -> AudioCodec:
    """The codec in a codec.safetensors, by the kind in its metadata; a file without kind is a fitted codec.

    `weights_dir` replaces the folder of component files that the codec was saved with; fitted codecs need none and run
    on the CPU. Raises WeightsError, or ValueError for a damaged fitted codec, naming the file and what is wrong.
    """
    path = Path(path)
    kind = read_codec_file(path)[1].get("kind", FITTED)
    readers = {entry.kind: entry.read for entry in CODECS.values()}
    if kind not in readers:
        raise WeightsError(f"{path}: unknown kind of codec {kind!r}, expected one of {', '.join(readers)}")
    return readers[kind](path, weights_dir, device)
