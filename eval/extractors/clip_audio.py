"""How a clip's sound reaches an embedding model: one policy for both sides of every comparison.

The order is av-benchmark's: mean over the channels, minus the clip's own mean (DC), resampling, cut to the duration.
Nothing is padded here; what a model does with a short clip stands in its adapter.

Differences from av-benchmark, and why:
- Resampling is soxr's "HQ" (pass band to 0.91 of Nyquist, linear phase) in place of torchaudio's windowed sinc of
  half-width 6, because torchaudio cannot be relied on. Content close to Nyquist differs; both sides get the same.
- Means and resampling are computed in float64, not float32.
- The duration is floor(duration_s * rate + 1e-6) samples, where av-benchmark's int(duration_s * rate) loses one sample
  for products such as 8.03 * 16000 = 128479.99999999999.
- A file that cannot be read raises; it is not replaced by its neighbour.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ClipAudio:
    """The loading policy of one model; `name` belongs into every cache key and row made with it."""

    sample_rate: int
    """Hz, what the model expects."""
    duration_s: float | None = None
    """Clips are cut to this; None takes them as long as they are."""
    remove_dc: bool = True
    """Off for Synchformer, whose loader in av-benchmark keeps the offset."""

    def __post_init__(self) -> None:
        if self.sample_rate < 1:
            raise ValueError(f"sample_rate must be positive, got {self.sample_rate}")
        if self.duration_s is not None and not 1.0 <= self.duration_s * self.sample_rate < math.inf:
            raise ValueError(f"duration_s must be at least one sample long and finite, got {self.duration_s}")

    @property
    def name(self) -> str:
        """Every choice above as text."""
        length = "whole" if self.duration_s is None else f"{self.duration_s:g}s"
        return f"mean{'-dc' if self.remove_dc else ''}-soxrhq-{length}@{self.sample_rate}"

    @property
    def num_samples(self) -> int | None:
        """Samples that a clip of the full duration has."""
        return None if self.duration_s is None else math.floor(self.duration_s * self.sample_rate + 1e-6)

    def prepare(self, sound: NDArray[np.floating], rate: int) -> Tensor:
        """sound (samples,) or (samples, channels) at `rate` Hz -> (samples,) float32; shorter clips stay short.

        Raises:
            ValueError: no samples, NaN or infinite samples, or a rate that is not positive.
        """
        if sound.ndim not in (1, 2) or sound.size == 0:
            raise ValueError(f"sound must be (samples,) or (samples, channels) with samples in it, got {sound.shape}")
        if not np.isfinite(sound).all():
            raise ValueError("sound must be finite, got NaN or infinite samples")
        if rate < 1:
            raise ValueError(f"rate must be positive, got {rate}")
        mono = sound.astype(np.float64)
        mono = mono if mono.ndim == 1 else mono.mean(axis=1)
        if self.remove_dc:
            mono = mono - mono.mean()
        if rate != self.sample_rate:
            mono = soxr.resample(mono, rate, self.sample_rate, quality="HQ")
        return torch.from_numpy(mono[: self.num_samples].astype(np.float32))

    def read(self, path: Path) -> Tensor:
        """A sound file (WAV, FLAC and what else libsndfile reads) -> (samples,) float32.

        Raises:
            ValueError: the file cannot be read, or as `prepare`; the message names the file.
        """
        try:
            sound, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
        except (OSError, soundfile.LibsndfileError) as error:
            raise ValueError(f"{path} cannot be read as sound: {error}") from error
        try:
            return self.prepare(sound, rate)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
