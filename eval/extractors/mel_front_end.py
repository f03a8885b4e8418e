"""Pieces of the mel front ends that embedding models were trained on: framing, spectra, filters, logarithms.

Kaldi's filter banks (PaSST, ImageBind) are in `kaldi_fbank`; the scale of Slaney is the one of `teacher.audio.mel`.
"""

import functools
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from teacher.audio.mel import hann_window, hz_to_mel, mel_to_hz

MelScale = Literal["htk", "slaney"]


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
