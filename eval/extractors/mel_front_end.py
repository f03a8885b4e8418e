"""Mel front ends that embedding models were trained on: framing, spectra, filters, logarithms; and Kaldi's energies.

Each model's own settings stand in its adapter. The scale of Slaney is the one of `teacher.audio.mel`.
"""

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from teacher.audio.mel import hann_window, hz_to_mel, mel_to_hz

MelScale = Literal["htk", "slaney"]
PREEMPHASIS = 0.97
"""Kaldi's pre-emphasis: this fraction of the sample before is subtracted from each sample."""
ENERGY_FLOOR = float(torch.finfo(torch.float32).eps)
"""Kaldi's energies are raised to this before the logarithm, so that silence is ln 2^-23 = -15.9424."""


def hz_to_htk(hz: Tensor) -> Tensor:
    """HTK's mel scale, 1127 ln(1 + f / 700)."""
    return 1127.0 * torch.log1p(hz / 700.0)


def htk_to_hz(mel: Tensor) -> Tensor:
    """Inverse of hz_to_htk."""
    return 700.0 * torch.expm1(mel / 1127.0)


@functools.lru_cache(maxsize=16)
def triangle_filters(
    *,
    sample_rate: int,
    n_fft: int,
    num_mels: int,
    fmin_hz: float,
    fmax_hz: float,
    scale: MelScale,
    straight_in: Literal["hz", "mel"],
    unit_area: bool,
) -> Float[Tensor, "mels bins"]:
    """Triangles between num_mels + 2 equal steps of the mel scale, float64, not to be changed in place.

    Row m rises from edge m to edge m + 1 and falls to edge m + 2, along straight lines in Hz (librosa, torchaudio) or
    in mel (VGGish); its height is 1, or 2 / (edge m + 2 - edge m) in Hz with `unit_area` (Slaney's normalisation).

    Raises:
        ValueError: a size that is not positive, an odd n_fft, or not 0 <= fmin < fmax <= Nyquist.
    """
    check_filters(sample_rate=sample_rate, n_fft=n_fft, num_mels=num_mels, fmin_hz=fmin_hz, fmax_hz=fmax_hz)
    to_mel, to_hz = (hz_to_htk, htk_to_hz) if scale == "htk" else (hz_to_mel, mel_to_hz)
    low, high = to_mel(torch.tensor([fmin_hz, fmax_hz], dtype=torch.float64))
    edges_mel = low + (high - low) * torch.linspace(0.0, 1.0, num_mels + 2, dtype=torch.float64)
    edges_hz = to_hz(edges_mel)
    bins = torch.linspace(0.0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    edges, places = (edges_hz, bins) if straight_in == "hz" else (edges_mel, to_mel(bins))
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = torch.minimum((places - left) / (centre - left), (right - places) / (right - centre)).clamp_min(0.0)
    return triangles * (2.0 / (edges_hz[2:] - edges_hz[:-2]))[:, None] if unit_area else triangles


def check_filters(*, sample_rate: int, n_fft: int, num_mels: int, fmin_hz: float, fmax_hz: float) -> None:
    """ValueError for a size that is not positive, an odd n_fft, or not 0 <= fmin < fmax <= Nyquist."""
    for name, value in (("sample_rate", sample_rate), ("n_fft", n_fft), ("num_mels", num_mels)):
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    if n_fft % 2:
        raise ValueError(f"n_fft must be even, got {n_fft}")
    if not 0.0 <= fmin_hz < fmax_hz <= sample_rate / 2:
        raise ValueError(f"fmin_hz and fmax_hz must satisfy 0 <= fmin < fmax <= Nyquist, got {fmin_hz}, {fmax_hz}")


def num_frames(samples: int, length: int, hop: int) -> int:
    """Frames of `length` that lie wholly inside `samples`: 1 + floor((samples - length) / hop), 0 if there is none."""
    return 0 if samples < length else 1 + (samples - length) // hop


def frames(waves: Float[Tensor, "batch samples"], length: int, hop: int) -> Float[Tensor, "batch frames length"]:
    """Overlapping frames without padding; a tail shorter than a frame is dropped. A view of `waves`."""
    if num_frames(waves.shape[1], length, hop) == 0:
        raise ValueError(f"waves must hold at least one frame of {length} samples, got {waves.shape[1]}")
    return waves.unfold(1, length, hop)


def spectrum(framed: Float[Tensor, "batch frames length"], n_fft: int) -> Float[Tensor, "batch frames bins"]:
    """Complex one-sided spectrum of Hann-windowed frames; frames shorter than n_fft get zeros at their end.

    The window is periodic. Where the zeros stand turns phases only, so powers equal those of centred windows.
    """
    return torch.fft.rfft(framed * hann_window(framed.shape[2], like=framed), n=n_fft)


def centred(waves: Float[Tensor, "batch samples"], n_fft: int) -> Float[Tensor, "batch padded"]:
    """n_fft / 2 reflected samples on each side: frame k is then centred on sample k hop; 1 + samples // hop frames."""
    if waves.shape[1] <= n_fft // 2:
        raise ValueError(f"waves must be longer than the reflected padding of {n_fft // 2}, got {waves.shape[1]}")
    return functional.pad(waves[:, None], (n_fft // 2, n_fft // 2), mode="reflect")[:, 0]


def power(complex_spectrum: Tensor) -> Tensor:
    """re^2 + im^2."""
    return torch.view_as_real(complex_spectrum).square().sum(-1)


def decibels(energy: Tensor, *, amin: float) -> Tensor:
    """10 log10 max(energy, amin): silence is 10 log10 amin, -100 dB for 1e-10."""
    return 10.0 * torch.log10(energy.clamp_min(amin))


def fourier_weights(n_fft: int) -> tuple[Float[Tensor, "bins 1 n_fft"], Float[Tensor, "bins 1 n_fft"]]:
    """The transform as torchlibrosa's networks hold it, the weights of two convolutions: Hann-windowed cosines and
    minus sines, float32. The window is periodic."""
    n = torch.arange(n_fft, dtype=torch.float64)
    # k n modulo the length: the angle stays exact.
    turns = (torch.arange(n_fft // 2 + 1, dtype=torch.float64)[:, None] * n).remainder(n_fft) / n_fft
    window = torch.hann_window(n_fft, periodic=True, dtype=torch.float64)
    real, imag = torch.cos(2 * torch.pi * turns) * window, -torch.sin(2 * torch.pi * turns) * window
    return real.float()[:, None], imag.float()[:, None]


@functools.lru_cache(maxsize=8)
def kaldi_filters(
    *, sample_rate: int, n_fft: int, num_mels: int, fmin_hz: float, fmax_hz: float
) -> Float[Tensor, "mels bins"]:
    """Kaldi's filters (Povey et al., ASRU 2011): triangles that are straight in mel, of height 1, float32; not to be
    changed in place.

    Between the first and the last centre the weights of a bin add up to 1. The column of the Nyquist frequency, which
    Kaldi leaves out, is zero. A filter that lies between two bins is empty. Made in float64 and rounded once, so that
    they are the same on every processor. Those of the trainings were made in float32, where a difference of mels near
    3500 is off by up to 1e-4 of a filter's height.

    Raises:
        ValueError: as `triangle_filters`.
    """
    filters = triangle_filters(
        sample_rate=sample_rate,
        n_fft=n_fft,
        num_mels=num_mels,
        fmin_hz=fmin_hz,
        fmax_hz=fmax_hz,
        scale="htk",
        straight_in="mel",
        unit_area=False,
    )
    return functional.pad(filters[:, :-1], (0, 1)).float()


@dataclass(frozen=True, kw_only=True)
class KaldiFbank:
    """Kaldi's log filter-bank energies with ImageBind's settings as defaults (arXiv 2305.05665): no dither.

    Every frame that lies wholly inside the wave is taken ("snip edges"); from each its own mean is subtracted, then
    0.97 of the sample before is (the first sample stands for the one before it), then a symmetric Hann window, zero at
    both ends, is applied and the frame is padded with zeros to a power of two. Energies are |FFT|^2 weighted by
    `kaldi_filters`.
    """

    sample_rate: int = 16_000
    """Hz."""
    frame_ms: float = 25.0
    shift_ms: float = 10.0
    num_mels: int = 128
    fmin_hz: float = 20.0
    fmax_hz: float = 8000.0

    def __post_init__(self) -> None:
        for name, value in (("frame_ms", self.frame_ms), ("shift_ms", self.shift_ms)):
            if not value * self.sample_rate >= 2000.0:
                raise ValueError(f"{name} must be at least two samples, got {value} at {self.sample_rate} Hz")
        self.filters()

    @property
    def frame_samples(self) -> int:
        """Samples of a frame, 400 by default."""
        return int(self.sample_rate * self.frame_ms / 1000.0)

    @property
    def shift_samples(self) -> int:
        """Samples between the starts of frames, 160 by default."""
        return int(self.sample_rate * self.shift_ms / 1000.0)

    @property
    def n_fft(self) -> int:
        """The smallest power of two that holds a frame, 512 by default."""
        return 1 << (self.frame_samples - 1).bit_length()

    def num_frames(self, samples: int) -> int:
        """1 + floor((samples - frame) / shift): 198 for 2 s."""
        return max(0, 1 + (samples - self.frame_samples) // self.shift_samples)

    def filters(self) -> Float[Tensor, "mels bins"]:
        """`kaldi_filters` of these settings."""
        return kaldi_filters(
            sample_rate=self.sample_rate,
            n_fft=self.n_fft,
            num_mels=self.num_mels,
            fmin_hz=self.fmin_hz,
            fmax_hz=self.fmax_hz,
        )

    def __call__(self, waves: Float[Tensor, "*batch samples"]) -> Float[Tensor, "*batch frames mels"]:
        """ln max(energy, 2^-23) in the precision of `waves`. Raises ValueError for less than one frame."""
        if waves.shape[-1] < self.frame_samples:
            raise ValueError(
                f"waves must hold at least {self.frame_samples} samples (one frame), got {waves.shape[-1]}"
            )
        framed = waves.unfold(-1, self.frame_samples, self.shift_samples)
        level = framed - framed.mean(dim=-1, keepdim=True)
        before = torch.cat((level[..., :1], level[..., :-1]), dim=-1)
        window = hann_window(self.frame_samples, like=waves, periodic=False)
        transformed = torch.fft.rfft((level - PREEMPHASIS * before) * window, n=self.n_fft)
        energies = transformed.abs().square() @ self.filters().to(waves).T
        return energies.clamp_min(ENERGY_FLOOR).log()
