"""Log-mel spectrograms, numerically those of MMAudio (arXiv 2412.15322, released front ends at 16 and 44.1 kHz).

magnitude = sqrt(re^2 + im^2 + 1e-9) of a Hann STFT without centring, after (n_fft - hop) / 2 reflected samples a side
log_mel   = log(max(filterbank @ magnitude, 1e-5)),  log10 at 16 kHz and the natural logarithm at 44.1 kHz
"""

import functools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from teacher.network.sequence import MAX_SAMPLE_RATE, check_whole

MAGNITUDE_EPS = 1e-9
MEL_FLOOR = 1e-5
LARGEST = {"sample_rate": MAX_SAMPLE_RATE, "n_fft": 16_384, "hop_length": 16_384, "num_mels": 4096}
LARGEST_OVERLAP = 32
"""Most frames that may cover one sample, n_fft / hop_length; 4 in every published front end."""


@dataclass(frozen=True, kw_only=True)
class MelConfig:
    """Parameters of one log-mel front end; the window is a periodic Hann window of n_fft samples."""

    sample_rate: int
    """Hz."""
    n_fft: int
    hop_length: int
    num_mels: int
    fmin: float
    """Lower edge of the first filter in Hz."""
    fmax: float
    """Upper edge of the last filter in Hz."""
    log: Literal["log10", "ln"]

    def __post_init__(self) -> None:
        for name, most in LARGEST.items():
            check_whole(name, getattr(self, name), 1, most)
        if self.n_fft > LARGEST_OVERLAP * self.hop_length:
            raise ValueError(f"n_fft must be at most {LARGEST_OVERLAP} * hop_length, got {self.n_fft}")
        if self.n_fft % self.hop_length or (self.n_fft - self.hop_length) % 2:
            raise ValueError(f"n_fft must be a multiple of hop_length with an even excess, got {self.n_fft}")
        if not 0 <= self.fmin < self.fmax <= self.sample_rate / 2:
            raise ValueError(f"fmin and fmax must satisfy 0 <= fmin < fmax <= Nyquist, got {self.fmin}, {self.fmax}")
        if self.log not in ("log10", "ln"):
            raise ValueError(f"log must be 'log10' or 'ln', got {self.log!r}")

    @property
    def pad(self) -> int:
        """Samples of reflection padding on each side: (n_fft - hop_length) / 2."""
        return (self.n_fft - self.hop_length) // 2

    @property
    def log_floor(self) -> float:
        """The log-mel value of digital silence, log(1e-5): -5 (log10) or -11.513 (ln)."""
        return math.log10(MEL_FLOOR) if self.log == "log10" else math.log(MEL_FLOOR)


MEL_16K = MelConfig(sample_rate=16_000, n_fft=1024, hop_length=256, num_mels=80, fmin=0.0, fmax=8000.0, log="log10")
MEL_44K = MelConfig(sample_rate=44_100, n_fft=2048, hop_length=512, num_mels=128, fmin=0.0, fmax=22050.0, log="ln")

_LINEAR_HZ = 200.0 / 3.0  # Slaney's scale: 15 mel of 66.7 Hz each up to 1 kHz, then 27 mel per factor of 6.4
_KNEE_HZ = 1000.0
_KNEE_MEL = _KNEE_HZ / _LINEAR_HZ
_LOG_STEP = math.log(6.4) / 27.0


def hz_to_mel(hz: Tensor) -> Tensor:
    """Hz to Slaney's mel scale (Auditory Toolbox, 1998): linear below 1 kHz, logarithmic above."""
    log_part = _KNEE_MEL + torch.log(hz.clamp_min(_KNEE_HZ) / _KNEE_HZ) / _LOG_STEP
    return torch.where(hz < _KNEE_HZ, hz / _LINEAR_HZ, log_part)


def mel_to_hz(mel: Tensor) -> Tensor:
    """Slaney's mel scale to Hz; the inverse of `hz_to_mel`."""
    log_part = _KNEE_HZ * torch.exp(_LOG_STEP * (mel.clamp_min(_KNEE_MEL) - _KNEE_MEL))
    return torch.where(mel < _KNEE_MEL, mel * _LINEAR_HZ, log_part)


@functools.lru_cache(maxsize=8)
def mel_filterbank(config: MelConfig) -> Float[Tensor, "mels bins"]:
    """Triangular filters between neighbouring mel centres, each of area 1 in Hz (height 2 / width); float32.

    Computed in float64: row m rises from edge m to edge m + 1 and falls to edge m + 2 of num_mels + 2 equal mel steps.
    """
    ends = hz_to_mel(torch.tensor([config.fmin, config.fmax], dtype=torch.float64))
    steps = torch.linspace(0.0, 1.0, config.num_mels + 2, dtype=torch.float64)
    edges = mel_to_hz(ends[0] + (ends[1] - ends[0]) * steps)
    bins = torch.linspace(0.0, config.sample_rate / 2, config.n_fft // 2 + 1, dtype=torch.float64)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangle = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp_min(0.0)
    return (triangle * 2.0 / (right - left)).float()


def hann_window(length: int, *, like: Tensor, periodic: bool = True) -> Float[Tensor, " length"]:
    """Hann window, periodic or symmetric, on the device of `like` and in its precision.

    Computed in float64 and rounded once, because the last bit of a float32 cosine depends on the processor.
    """
    return torch.hann_window(length, periodic=periodic, dtype=torch.float64, device="cpu").to(like)


@functools.lru_cache(maxsize=8)
def window(config: MelConfig) -> Float[Tensor, " n_fft"]:
    """The periodic Hann window of n_fft samples that this front end uses; float32."""
    return hann_window(config.n_fft, like=torch.empty(0))


def log_mel(wave: Float[Tensor, "batch samples"], config: MelConfig) -> Float[Tensor, "batch mels frames"]:
    """Log-mel spectrogram of `wave` clamped to [-1, 1]: floor(samples / hop_length) frames, in the precision of `wave`.

    Raises ValueError when `wave` is not (batch, samples) or is not longer than the reflected padding.
    """
    if wave.ndim != 2:
        raise ValueError(f"wave must have shape (batch, samples), got {tuple(wave.shape)}")
    if wave.shape[1] <= config.pad:
        raise ValueError(f"wave must be longer than {config.pad} samples (the reflected padding), got {wave.shape[1]}")
    padded = functional.pad(wave.clamp(-1.0, 1.0)[:, None], (config.pad, config.pad), mode="reflect")[:, 0]
    spectrum = torch.stft(
        padded,
        config.n_fft,
        hop_length=config.hop_length,
        window=window(config).to(wave),
        center=False,
        return_complex=True,
    )
    parts = torch.view_as_real(spectrum)
    magnitude = torch.sqrt(parts.square().sum(-1) + MAGNITUDE_EPS)
    mel = torch.matmul(mel_filterbank(config).to(wave), magnitude).clamp_min(MEL_FLOOR)
    return torch.log10(mel) if config.log == "log10" else torch.log(mel)
