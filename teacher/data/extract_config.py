"""What an extraction is asked to do, and what it says it did."""

from collections import Counter
from dataclasses import dataclass

from teacher.audio.mel import MEL_16K, MEL_44K, MelConfig
from teacher.data.windows import WindowReader
from teacher.encoders.registry import load_encoders
from teacher.sequence import MIN_DURATION_S

SPLITS = ("train", "val", "test")
CODECS: dict[str, tuple[MelConfig, int]] = {"embedded": (MEL_16K, 20), "embedded_44k": (MEL_44K, 40)}
"""Mel front end and latent channels of each codec that is fitted here; MMAudio's own numbers."""


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """What is extracted. Features of one folder share one configuration."""

    duration_s: float = 2.0
    """Length of every example in seconds."""
    codec: str = "embedded"
    """`embedded` (16 kHz, 20 channels) or `embedded_44k` (44.1 kHz, 40 channels), fitted on the training sounds."""
    encoders: str = "embedded"
    """Encoders of image, motion and text: `embedded`."""
    codec_fit_clips: int = 512
    """Training windows that the codec is fitted on, evenly taken from all of them."""
    shard_size: int = 64
    """Windows in a file; an interruption loses at most these."""
    max_windows_per_item: int = 4
    """Longer files give at most this many windows, from their start."""
    peak_normalise: bool = True
    """Scale every window's sound, of every split, to a peak of 0.95. Off: levels as in the file (clipped to 1)."""
    workers: int = 2
    """Processes that read files; 0 reads in this process."""

    def __post_init__(self) -> None:
        if not self.duration_s >= MIN_DURATION_S:
            raise ValueError(f"duration_s must be at least {MIN_DURATION_S} s, got {self.duration_s}")
        if self.codec not in CODECS:
            raise ValueError(f"codec must be one of {', '.join(CODECS)}, got {self.codec!r}")
        load_encoders(self.encoders)
        for name in ("codec_fit_clips", "shard_size", "max_windows_per_item"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")

    def reader(self) -> WindowReader:
        """The part of the configuration that worker processes need."""
        return WindowReader(
            encoders=self.encoders,
            duration_s=self.duration_s,
            sample_rate=CODECS[self.codec][0].sample_rate,
            peak_normalise=self.peak_normalise,
            max_windows=self.max_windows_per_item,
        )


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What became of the items: windows per split, what was left out and why, and how many windows were padded."""

    counts: dict[str, int]
    skipped: list[tuple[str, str]]
    padded: int

    def __str__(self) -> str:
        lines = ["examples: " + ", ".join(f"{split} {count}" for split, count in self.counts.items())]
        if self.padded:
            lines.append(f"padded at the end: {self.padded}")
        if self.skipped:
            lines.append(f"left out: {len(self.skipped)} ({count_reasons(self.skipped)})")
            lines.extend(f"  {id_}: {reason}" for id_, reason in self.skipped[:10])
            if len(self.skipped) > 10:
                lines.append(f"  ... and {len(self.skipped) - 10} more, all named in features.json")
        return "\n".join(lines)


def count_reasons(skipped: list[tuple[str, str]]) -> str:
    """Reasons with their numbers, the most frequent first; what follows a colon differs from file to file."""
    kinds = Counter(reason.split(":")[0] for _, reason in skipped)
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common())
