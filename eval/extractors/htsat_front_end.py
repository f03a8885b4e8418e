"""What the audio towers of LAION-CLAP and MS-CLAP 2023 hear: clips of one length, and the log-mel front end.

Both networks take one fixed length. What av-benchmark does with other lengths, and what is done here:

- LAION-CLAP, 10 s at 48 kHz: as many whole copies of a shorter clip as fit, then zeros. An eight-second clip is heard
  once and followed by two seconds of silence.
- MS-CLAP 2023, 7 s at 44.1 kHz: a shorter clip is repeated until the seven seconds are full.
- A longer clip is cropped. av-benchmark draws the place from an unseeded generator, so that its scores of eight-second
  clips (MS-CLAP) and of clips above ten seconds (LAION-CLAP) change from run to run. Here it is the middle of the same
  range of places, and `Heard.start` tells it: all models are heard at the same time of the same clip, so that their
  differences stay paired. The mean over clips differs from that of drawn places by what the edges of clips are unlike
  their middle.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from eval.extractors.mel_front_end import centred, check_filters, decibels, frames, triangle_filters

LAION_SAMPLES = 480_000
"""10 s at 48 kHz."""
MS_SAMPLES = 308_700
"""7 s at 44.1 kHz."""
AMIN = 1e-10
"""Least power of a mel band, -100 dB."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Heard:
    """What a network is given of a number of clips."""

    waves: Float[Tensor, "clips samples"]
    """Exactly as many samples as the network takes."""
    start: int
    """The sample at which the crop begins; 0 where nothing was cut."""


def laion_length(waves: Float[Tensor, "clips samples"], *, samples: int = LAION_SAMPLES) -> Heard:
    """Whole copies that fit and zeros; or the middle one of the length - samples + 1 crops there are.

    Raises ValueError unless `waves` are (clips, samples) with at least one sample.
    """
    length = _length(waves, samples)
    if length > samples:
        return _crop(waves, samples, places=length - samples + 1)
    repeated = waves.repeat(1, samples // length)
    return Heard(waves=functional.pad(repeated, (0, samples - repeated.shape[1])), start=0)


def ms_length(waves: Float[Tensor, "clips samples"], *, samples: int = MS_SAMPLES) -> Heard:
    """Copies until the length is full, the last one cut; or the middle one of the first length - samples crops.

    The published code never draws the very last place.

    Raises ValueError unless `waves` are (clips, samples) with at least one sample.
    """
    length = _length(waves, samples)
    if length > samples:
        return _crop(waves, samples, places=length - samples)
    return Heard(waves=waves.repeat(1, -(-samples // length))[:, :samples], start=0)


def _crop(waves: Tensor, samples: int, *, places: int) -> Heard:
    start = places // 2
    return Heard(waves=waves[:, start : start + samples], start=start)


def _length(waves: Tensor, samples: int) -> int:
    if waves.ndim != 2 or len(waves) == 0 or waves.shape[1] == 0:
        raise ValueError(f"waves must be (clips, samples) with at least one of each, got {tuple(waves.shape)}")
    if samples < 1:
        raise ValueError(f"samples must be positive, got {samples}")
    return waves.shape[1]


@dataclass(frozen=True, kw_only=True)
class LogMelConfig:
    """Log-mel of torchlibrosa: periodic Hann window of n_fft, centred with reflection, power, 10 log10, no top_db."""

    sample_rate: int
    """Hz."""
    n_fft: int = 1024
    hop_length: int
    num_mels: int = 64
    fmin_hz: float = 50.0
    fmax_hz: tuple[float, ...] = (14_000.0,)
    """Upper edges that the filters of the file may have. The file's own filters are what runs."""

    def __post_init__(self) -> None:
        if not 1 <= self.hop_length <= self.n_fft:
            raise ValueError(f"hop_length must be between 1 and n_fft {self.n_fft}, got {self.hop_length}")
        if not self.fmax_hz:
            raise ValueError("fmax_hz must name at least one upper edge, got none")
        for fmax in self.fmax_hz:
            check_filters(
                sample_rate=self.sample_rate, n_fft=self.n_fft, num_mels=self.num_mels, fmin_hz=self.fmin_hz,
                fmax_hz=fmax,
            )  # fmt: skip

    @property
    def bins(self) -> int:
        """Frequencies of the transform: n_fft / 2 + 1."""
        return self.n_fft // 2 + 1

    def num_frames(self, samples: int) -> int:
        """Centred frames: 1 + samples // hop_length."""
        return 1 + samples // self.hop_length

    def filters(self, fmax_hz: float) -> Float[Tensor, "bins mels"]:
        """Filters of unit area on Slaney's scale, one column each, float32."""
        rows = triangle_filters(
            sample_rate=self.sample_rate, n_fft=self.n_fft, num_mels=self.num_mels, fmin_hz=self.fmin_hz,
            fmax_hz=fmax_hz, scale="slaney", straight_in="hz", unit_area=True,
        )  # fmt: skip
        return rows.T.float().contiguous()

    def transform(self) -> tuple[Float[Tensor, "bins 1 n_fft"], Float[Tensor, "bins 1 n_fft"]]:
        """Windowed cosines and minus sines, float32."""
        n = torch.arange(self.n_fft, dtype=torch.float64)
        # k n modulo the length: the angle stays exact.
        turns = (torch.arange(self.bins, dtype=torch.float64)[:, None] * n).remainder(self.n_fft) / self.n_fft
        window = torch.hann_window(self.n_fft, periodic=True, dtype=torch.float64)
        real, imag = torch.cos(2 * torch.pi * turns) * window, -torch.sin(2 * torch.pi * turns) * window
        return real.float()[:, None], imag.float()[:, None]


class _Weights(nn.Module):
    """Weights of one of the two convolutions, not to be trained."""

    weight: Tensor

    def __init__(self, config: LogMelConfig) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(config.bins, 1, config.n_fft))

    def forward(self, framed: Float[Tensor, "batch frames n_fft"]) -> Float[Tensor, "batch frames bins"]:
        return framed @ self.weight[:, 0].T


class _Stft(nn.Module):
    """Real and imaginary part."""

    def __init__(self, config: LogMelConfig) -> None:
        super().__init__()
        self.conv_real, self.conv_imag = _Weights(config), _Weights(config)

    def forward(self, framed: Float[Tensor, "batch frames n_fft"]) -> Float[Tensor, "batch frames bins"]:
        return self.conv_real(framed).square() + self.conv_imag(framed).square()


class Spectrogram(nn.Module):
    """Powers of the transform that the file holds as the weights of two convolutions; zeros until they are loaded."""

    def __init__(self, config: LogMelConfig) -> None:
        super().__init__()
        self.n_fft, self.hop_length = config.n_fft, config.hop_length
        self.stft = _Stft(config)

    def forward(self, waves: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames bins"]:
        return self.stft(frames(centred(waves, self.n_fft), self.n_fft, self.hop_length))


class LogMel(nn.Module):
    """Decibels of the mel bands of a power spectrogram, by the filters of the file; zeros until they are loaded."""

    melW: Tensor

    def __init__(self, config: LogMelConfig) -> None:
        super().__init__()
        self.register_buffer("melW", torch.zeros(config.bins, config.num_mels))

    def forward(self, power: Float[Tensor, "batch frames bins"]) -> Float[Tensor, "batch frames mels"]:
        return decibels(power @ self.melW, amin=AMIN)
