"""Kaldi's mel filters and log filter-bank energies (Povey et al., ASRU 2011), as PaSST and ImageBind were trained on.

Kaldi's triangles are straight lines in mel, not in Hz, and have height 1. Its bins start at 0 Hz and leave out the
Nyquist frequency, whose weight is zero here.
"""

import functools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from eval.extractors.mel_front_end import check_filters
from teacher.audio.mel import hann_window

PREEMPHASIS = 0.97
ENERGY_FLOOR = float(torch.finfo(torch.float32).eps)
"""Energies are raised to this before the logarithm, so that silence is ln 2^-23 = -15.9424."""


def mel(hz: float) -> float:
    """1127 ln(1 + f / 700)."""
    return 1127.0 * math.log(1.0 + hz / 700.0)


@functools.lru_cache(maxsize=8)
def mel_filters(
    *, sample_rate: int, n_fft: int, num_mels: int, fmin_hz: float, fmax_hz: float
) -> Float[Tensor, "mels bins"]:
    """Weights (num_mels, n_fft / 2 + 1) of the bins of a one-sided transform, float32, not to be changed in place.

    With num_mels + 2 points equally spaced in mel from fmin to fmax, filter m rises in mel from point m to point m + 1
    and falls to point m + 2. Between the first and the last centre the weights of a bin therefore add up to 1. The
    column of the Nyquist frequency is zero. A filter that lies between two bins is empty, as in Kaldi.
    Made in float64 and rounded once, so that they are the same on every processor. Those of the trainings were made in
    float32, where a difference of mels near 3500 is off by up to 1e-4 of a filter's height.

    Raises:
        ValueError: a size that is not positive, an odd n_fft, or not 0 <= fmin < fmax <= sample_rate / 2.
    """
    check_filters(sample_rate=sample_rate, n_fft=n_fft, num_mels=num_mels, fmin_hz=fmin_hz, fmax_hz=fmax_hz)
    low, step = mel(fmin_hz), (mel(fmax_hz) - mel(fmin_hz)) / (num_mels + 1)
    points = low + step * torch.arange(num_mels + 2, dtype=torch.float64)
    hz = torch.arange(n_fft // 2, dtype=torch.float64) * (sample_rate / n_fft)
    bins = 1127.0 * torch.log1p(hz / 700.0)
    left, centre, right = points[:-2, None], points[1:-1, None], points[2:, None]
    triangles = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp_min(0.0)
    return functional.pad(triangles, (0, 1)).float()


@dataclass(frozen=True, kw_only=True)
class KaldiFbank:
    """Kaldi's log filter-bank energies with ImageBind's settings as defaults (arXiv 2305.05665): no dither.

    Every frame that lies wholly inside the wave is taken ("snip edges"); from each its own mean is subtracted, then
    0.97 of the sample before is (the first sample stands for the one before it), then a symmetric Hann window, zero at
    both ends, is applied and the frame is padded with zeros to a power of two. Energies are |FFT|^2 weighted by
    `mel_filters`.
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
        """`mel_filters` of these settings."""
        return mel_filters(
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
        frames = waves.unfold(-1, self.frame_samples, self.shift_samples)
        centred = frames - frames.mean(dim=-1, keepdim=True)
        before = torch.cat((centred[..., :1], centred[..., :-1]), dim=-1)
        window = hann_window(self.frame_samples, like=waves, periodic=False)
        spectrum = torch.fft.rfft((centred - PREEMPHASIS * before) * window, n=self.n_fft)
        energies = spectrum.abs().square() @ self.filters().to(waves).T
        return energies.clamp_min(ENERGY_FLOOR).log()
