"""The audio codecs by name, and reading one from its file. A new codec takes its adapter and one entry of `CODECS`."""

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
"""Fits a codec on training sounds, each float32 (samples,)."""
Load = Callable[[Path, str], AudioCodec]
"""Loads a published codec from (weights folder, device such as "cpu" or "cuda:0"); latent_mean is 0, latent_std 1."""
Read = Callable[[Path, Path | None, str], AudioCodec]
"""Reads a codec from (its codec.safetensors, a weights folder that replaces the recorded one or None, device)."""


@dataclass(frozen=True, kw_only=True)
class CodecEntry:
    """One codec of `CODECS`: its sizes, and how it is made (fitted on training sounds, or from published weights)."""

    kind: str
    """Its "kind" in the metadata of codec.safetensors, which selects `read`; several codecs may have the same kind."""
    mel: MelConfig
    latent_channels: int
    read: Read
    fit: Fit | None = None
    """Makes a codec that is fitted on the training sounds; None for one with published weights."""
    load: Load | None = None
    """Makes a codec with published weights; None for one that is fitted."""
    files: tuple[str, ...] = ()
    """Names of the weight files that `load` reads."""

    @property
    def fitted(self) -> bool:
        """Whether the codec is fitted on the training sounds; otherwise it needs published weights."""
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
    """Read a codec.safetensors; the "kind" in its metadata selects the codec, a file without one is a fitted codec.

    `weights_dir` replaces the folder of component files that is recorded in the file; fitted codecs need none and run
    on the CPU. Raises WeightsError, or ValueError for a damaged fitted codec, naming the file and what is wrong.
    """
    path = Path(path)
    kind = read_codec_file(path)[1].get("kind", FITTED)
    readers = {entry.kind: entry.read for entry in CODECS.values()}
    if kind not in readers:
        raise WeightsError(f"{path}: unknown kind of codec {kind!r}, expected one of {', '.join(readers)}")
    return readers[kind](path, weights_dir, device)
