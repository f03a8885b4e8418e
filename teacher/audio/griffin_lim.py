"""Sound from a log-mel spectrogram without a trained vocoder: fast Griffin-Lim from a phase read off the magnitudes.

1. mel -> linear magnitudes by multiplicative updates, under which every bin stays non-negative.
2. A starting phase in one pass: each bin advances by the frequency of the spectral peak it belongs to (single pass
   spectrogram inversion, Beauregard et al., DAFx 2015); where the magnitude rises sharply it is restarted from the
   group delay that the rise implies (the time half of phase-gradient integration, Prusa et al., arXiv 1609.00291).
3. Projections between "has these magnitudes" and "is the STFT of a sound", extrapolated by
   c_n = p_n + momentum (p_n - p_{n-1})  (Perraudin, Balazs, Sondergaard, WASPAA 2013).
"""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn import functional

from teacher.audio.mel import MEL_FLOOR, MelConfig, mel_filterbank, window

CHUNK = 8
"""Sounds processed together: the spectra of eight 2 s clips fit into the processor's cache."""
ONSET_NEPERS = 1.0
"""Rise of a bin's magnitude between neighbouring frames (factor e) that counts as an attack."""
HANN_GAMMA = 0.25645
"""gamma / n_fft^2 of the Gaussian exp(-pi t^2 / gamma) closest to a Hann window (arXiv 1609.00291, table 1)."""


def mel_to_magnitude(
    log_mel: Float[Tensor, "batch mels frames"], config: MelConfig, *, num_updates: int = 4
) -> Float[Tensor, "batch frames bins"]:
    """Non-negative magnitudes whose mel spectrogram is close to exp(log_mel) (or 10 ** log_mel).

    Multiplicative updates of the Kullback-Leibler divergence (Lee and Seung, 2001): S <- S * W'(M / W S) / W'1.
    """
    mel = (torch.pow(10.0, log_mel) if config.log == "log10" else torch.exp(log_mel)).transpose(1, 2)
    mel = (mel - MEL_FLOOR).clamp_min(0.0)
    basis = mel_filterbank(config).to(log_mel)
    column = basis.sum(0)
    back = basis / column.clamp_min(1e-8)
    magnitude = (mel / basis.sum(1)) @ back
    for _ in range(num_updates):
        magnitude = magnitude * ((mel / (magnitude @ basis.T).clamp_min(1e-9)) @ back)
    return magnitude


def initial_phase(
    magnitude: Float[Tensor, "batch frames bins"], config: MelConfig, *, generator: torch.Generator
) -> Float[Tensor, "batch frames bins"]:
    """Starting phase in radians, referred to the first sample of every frame, from the magnitudes alone.

    A bin advances by the frequency of its spectral peak (Beauregard et al., DAFx 2015); where its log-magnitude rises
    by more than ONSET_NEPERS it restarts from the group delay of the rise (arXiv 1609.00291). Frame 0 starts at random.
    """
    batch, num_frames, num_bins = magnitude.shape
    log_magnitude = torch.log(magnitude + 1e-4)
    before = functional.pad(log_magnitude, (0, 0, 1, 0), mode="replicate")[:, :-1]
    after = functional.pad(log_magnitude, (0, 0, 0, 1), mode="replicate")[:, 1:]
    gamma = HANN_GAMMA * config.n_fft**2
    delay = gamma / (2 * math.pi) * (after - before) / (2 * config.hop_length)
    delay = delay.clamp(-0.45 * config.n_fft, 0.45 * config.n_fft)
    slope = (2 * math.pi / config.n_fft) * (config.n_fft / 2 + delay)
    attack_phase = -torch.cumsum(slope, dim=-1)
    is_attack = (log_magnitude - before) > ONSET_NEPERS
    advance = 2 * math.pi * config.hop_length / config.n_fft * _peak_bins(log_magnitude)
    advance = torch.remainder(advance, 2 * math.pi)
    phase = torch.empty_like(magnitude)
    current = 2 * math.pi * torch.rand(num_bins, generator=generator).expand(batch, -1)  # alike for all rows
    for n in range(num_frames):
        current = torch.where(is_attack[:, n], attack_phase[:, n], current + advance[:, n])
        phase[:, n] = current
    return phase


def _peak_bins(log_magnitude: Float[Tensor, "batch frames bins"]) -> Float[Tensor, "batch frames bins"]:
    """Frequency, in bins, of the peak each bin belongs to (parabolic interpolation; the larger peak within 2 bins)."""
    left = functional.pad(log_magnitude, (1, 0), mode="replicate")[..., :-1]
    right = functional.pad(log_magnitude, (0, 1), mode="replicate")[..., 1:]
    curvature = (left - 2 * log_magnitude + right).clamp_max(-1e-6)
    is_peak = (log_magnitude >= left) & (log_magnitude > right)
    shift = (0.5 * (left - right) / curvature).clamp(-0.5, 0.5)
    bins = torch.arange(log_magnitude.shape[-1], dtype=log_magnitude.dtype)
    height = torch.where(is_peak, log_magnitude, torch.full_like(log_magnitude, -1e4))
    frequency = bins + torch.where(is_peak, shift, torch.zeros_like(shift))
    best_height, best = height, frequency
    for offset in (-2, -1, 1, 2):
        other_height = torch.roll(height, offset, dims=-1)
        other = torch.roll(frequency, offset, dims=-1)
        closer = other_height > best_height
        best_height = torch.where(closer, other_height, best_height)
        best = torch.where(closer, other, best)
    return best


def _stft(wave: Float[Tensor, "batch padded"], config: MelConfig) -> Complex[Tensor, "batch frames bins"]:
    return torch.fft.rfft(wave.unfold(-1, config.n_fft, config.hop_length) * window(config).to(wave))


def _overlap_add(frames: Float[Tensor, "batch frames n_fft"], hop: int) -> Float[Tensor, "batch padded"]:
    """Sum of frames placed hop samples apart; n_fft is a multiple of hop, so this is n_fft / hop shifted additions."""
    batch, num_frames, n_fft = frames.shape
    parts = frames.view(batch, num_frames, n_fft // hop, hop)
    total = frames.new_zeros(batch, num_frames + n_fft // hop - 1, hop)
    for i in range(n_fft // hop):
        total[:, i : i + num_frames] += parts[:, :, i]
    return total.flatten(1)


def _inverse(
    spectrum: Complex[Tensor, "batch frames bins"], norm: Float[Tensor, " padded"], config: MelConfig
) -> Float[Tensor, "batch padded"]:
    """Least-squares sound of a spectrogram (Griffin and Lim, 1984, equation 6)."""
    frames = torch.fft.irfft(spectrum, n=config.n_fft) * window(config)
    return _overlap_add(frames, config.hop_length) / norm


def _invert_chunk(
    magnitude: Tensor, norm: Tensor, config: MelConfig, num_iterations: int, momentum: float, generator: torch.Generator
) -> Tensor:
    spectrum = torch.polar(magnitude, initial_phase(magnitude, config, generator=generator))
    wave = _inverse(spectrum, norm, config)
    previous = torch.view_as_real(spectrum)
    scale = magnitude[..., None]
    for _ in range(num_iterations):
        consistent = torch.view_as_real(_stft(wave, config))
        moved = torch.lerp(previous, consistent, 1.0 + momentum)  # consistent + momentum (consistent - previous)
        previous = consistent
        length = (moved.square().sum(-1, keepdim=True) + 1e-12).rsqrt_()
        wave = _inverse(torch.view_as_complex(moved.mul_(length.mul_(scale))), norm, config)
    return wave


@torch.no_grad()
def griffin_lim(
    log_mel: Float[Tensor, "batch mels frames"],
    config: MelConfig,
    *,
    num_iterations: int = 32,
    momentum: float = 0.99,
    seed: int = 0,
) -> Float[Tensor, "batch samples"]:
    """Sound with approximately this log-mel spectrogram, frames * hop_length samples, float32, on the CPU.

    Deterministic, and a row does not depend on the other rows of its batch: every row starts from the same seed.
    Raises ValueError for a wrong shape, a negative num_iterations or a momentum outside [0, 1).
    """
    if log_mel.ndim != 3 or log_mel.shape[1] != config.num_mels:
        raise ValueError(f"log_mel must have shape (batch, {config.num_mels}, frames), got {tuple(log_mel.shape)}")
    if num_iterations < 0:
        raise ValueError(f"num_iterations must be at least 0, got {num_iterations}")
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
    log_mel = log_mel.detach().float().cpu()
    num_frames = log_mel.shape[2]
    squared = window(config).square().expand(1, num_frames, config.n_fft)
    norm = _overlap_add(squared.contiguous(), config.hop_length)[0].clamp_min(1e-3)
    waves = []
    for part in log_mel.split(CHUNK):
        generator = torch.Generator().manual_seed(seed)
        magnitude = mel_to_magnitude(part, config)
        wave = _invert_chunk(magnitude, norm, config, num_iterations, momentum, generator)
        waves.append(wave[:, config.pad : config.pad + num_frames * config.hop_length])
    return torch.cat(waves)
