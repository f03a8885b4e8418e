"""Duration in seconds -> lengths of the latent, CLIP and synchronisation sequences.

All lengths follow MMAudio (arXiv 2412.15322, section 3 and its released configuration):

    latent frames   N  = ceil(D * sample_rate / hop_length / latent_downsample)
    image features  Tc = int(8 D)
    segments        S  = floor((25 D - 16) / 8) + 1,   sync features  Ts = 8 S
    samples made    N * hop_length * latent_downsample   (never fewer than D * sample_rate)
"""

import math
from dataclasses import dataclass

IMAGE_FPS = 8
SYNC_FPS = 25
SEGMENT_FRAMES = 16
SEGMENT_STRIDE = 8
FEATURES_PER_SEGMENT = 8
TEXT_TOKENS = 77
IMAGE_DIM = 1024
SYNC_DIM = 768
TEXT_DIM = 1024
MIN_DURATION_S = SEGMENT_FRAMES / SYNC_FPS
"""Shortest usable clip: one segment of 16 frames at 25 fps, 0.64 s."""


@dataclass(frozen=True, kw_only=True)
class SequenceConfig:
    """Rates of one latent space; lengths are functions of the duration, never stored state."""

    sample_rate: int
    hop_length: int
    latent_downsample: int = 2

    def __post_init__(self) -> None:
        for name in ("sample_rate", "hop_length", "latent_downsample"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @property
    def samples_per_latent(self) -> int:
        return self.hop_length * self.latent_downsample

    @property
    def latent_rate(self) -> float:
        """Latent frames per second (31.25 Hz at 16 kHz, 43.07 Hz at 44.1 kHz)."""
        return self.sample_rate / self.samples_per_latent

    def latent_frames(self, duration_s: float) -> int:
        _check(duration_s)
        return math.ceil(round(duration_s * self.sample_rate / self.samples_per_latent, 9))

    def num_samples(self, duration_s: float) -> int:
        return self.latent_frames(duration_s) * self.samples_per_latent


SEQUENCE_16K = SequenceConfig(sample_rate=16_000, hop_length=256)
SEQUENCE_44K = SequenceConfig(sample_rate=44_100, hop_length=512)


def image_frames(duration_s: float) -> int:
    """Number of image features, int(8 D); 1e-9 guards against 0.1-like binary fractions."""
    _check(duration_s)
    return int(IMAGE_FPS * duration_s + 1e-9)


def sync_video_frames(duration_s: float) -> int:
    """Number of 25 fps frames that the synchronisation encoder is shown."""
    _check(duration_s)
    return int(SYNC_FPS * duration_s + 1e-9)


def sync_segments(duration_s: float) -> int:
    """Number of 16-frame segments at stride 8."""
    return (sync_video_frames(duration_s) - SEGMENT_FRAMES) // SEGMENT_STRIDE + 1


def sync_frames(duration_s: float) -> int:
    """Number of synchronisation features, 8 per segment (24 a second at 8 s)."""
    return FEATURES_PER_SEGMENT * sync_segments(duration_s)


def _check(duration_s: float) -> None:
    if not duration_s >= MIN_DURATION_S:
        raise ValueError(f"duration_s must be at least {MIN_DURATION_S} s (one 16-frame segment), got {duration_s}")
