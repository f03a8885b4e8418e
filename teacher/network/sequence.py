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
MIN_DURATION_S = SEGMENT_FRAMES / SYNC_FPS
"""Shortest usable clip: one segment of 16 frames at 25 fps, 0.64 s."""
MAX_WINDOW_S = 120.0
"""Longest window of a network. Published ones have 8 s; attention within a window costs its square, and longer sounds
are made of several windows, so a longer one is a mistake or an attack."""
MAX_SAMPLE_RATE = 384_000
MAX_LATENT_RATE = 1000.0
"""Most latent frames a second; published codecs have 31.25 and 43.07."""


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """Check that `value` is a whole number from `least` to `most`; ValueError otherwise. True is no number."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        rule = f"at least {least}" if isinstance(value, int) and value < least else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number, {rule}, got {str(value)[:40]}")


def check_window(name: str, seconds: float) -> None:
    """Check that a network's window may last `seconds`; ValueError otherwise."""
    if not seconds >= MIN_DURATION_S:
        raise ValueError(f"{name} must be at least {MIN_DURATION_S} s, got {seconds:g}")
    if seconds > MAX_WINDOW_S:
        raise ValueError(f"{name} must be at most {MAX_WINDOW_S:g} s, got {seconds:g}")


@dataclass(frozen=True, kw_only=True)
class ConditionWidths:
    """Numbers per condition feature, as an encoder gives them and a network takes them; the defaults are MMAudio's."""

    image: int = 1024
    """Channels of the feature of one picture (CLIP's image embedding)."""
    sync: int = 768
    """Channels of one synchronisation feature (Synchformer's)."""
    text: int = 1024
    """Channels of the feature of one text position (CLIP's text width)."""
    text_tokens: int = 77
    """Positions of a text, padding included."""


MMAUDIO_WIDTHS = ConditionWidths()
"""Widths of CLIP and Synchformer, which the published networks take and the embedded encoders imitate."""


@dataclass(frozen=True, kw_only=True)
class SequenceConfig:
    """Rates of one latent space; lengths are functions of the duration, never stored state."""

    sample_rate: int
    hop_length: int
    latent_downsample: int = 2

    def __post_init__(self) -> None:
        for name, most in (("sample_rate", MAX_SAMPLE_RATE), ("hop_length", 65_536), ("latent_downsample", 1024)):
            check_whole(name, getattr(self, name), 1, most)
        if self.latent_rate > MAX_LATENT_RATE:
            raise ValueError(
                f"at most {MAX_LATENT_RATE:g} latent frames a second are possible, got {self.latent_rate:g}"
            )

    @property
    def samples_per_latent(self) -> int:
        """Samples per latent frame: hop_length * latent_downsample."""
        return self.hop_length * self.latent_downsample

    @property
    def latent_rate(self) -> float:
        """Latent frames per second (31.25 Hz at 16 kHz, 43.07 Hz at 44.1 kHz)."""
        return self.sample_rate / self.samples_per_latent

    def latent_frames(self, duration_s: float) -> int:
        """Latent frames of a sound of `duration_s` seconds, rounded up."""
        _check(duration_s)
        return math.ceil(round(duration_s * self.sample_rate / self.samples_per_latent, 9))

    def num_samples(self, duration_s: float) -> int:
        """Samples that a latent of `duration_s` seconds decodes to: whole latent frames, so at least the duration."""
        return self.latent_frames(duration_s) * self.samples_per_latent


SEQUENCE_16K = SequenceConfig(sample_rate=16_000, hop_length=256)
SEQUENCE_44K = SequenceConfig(sample_rate=44_100, hop_length=512)


def image_frames(duration_s: float) -> int:
    """Number of image features, int(8 D); 1e-9 guards against 0.1-like binary fractions."""
    _check(duration_s)
    return int(IMAGE_FPS * duration_s + 1e-9)


def sync_video_frames(duration_s: float) -> int:
    """Number of 25 fps frames that the synchronisation encoder takes."""
    _check(duration_s)
    return int(SYNC_FPS * duration_s + 1e-9)


def sync_segments(duration_s: float) -> int:
    """Number of 16-frame segments at stride 8."""
    return (sync_video_frames(duration_s) - SEGMENT_FRAMES) // SEGMENT_STRIDE + 1


def sync_frames(duration_s: float) -> int:
    """Number of synchronisation features, 8 per segment (24 a second at 8 s)."""
    return FEATURES_PER_SEGMENT * sync_segments(duration_s)


def _check(duration_s: float) -> None:
    if not MIN_DURATION_S <= duration_s < math.inf:
        raise ValueError(f"duration_s must be at least {MIN_DURATION_S} s (one 16-frame segment), got {duration_s}")
