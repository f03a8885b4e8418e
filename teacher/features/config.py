"""The configuration of an extraction, and its report."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from teacher.audio.registry import CODECS
from teacher.encoders.registry import encoder_set
from teacher.features.windows import WindowReader
from teacher.lists.manifest import SkippedItem
from teacher.network.sequence import check_window

OPERATIONAL = ("workers", "device", "weights_dir", "codec_from")
"""Settings that do not change the features, so a rerun may change them; codec and encoders are compared by digest."""


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Configuration of an extraction; all features of one folder have the same."""

    duration_s: float = 2.0
    """Length of every example in seconds."""
    codec: str = "embedded"
    """`embedded` (16 kHz, 20 channels) or `embedded_44k` (44.1 kHz, 40 channels), fitted on the training sounds;
    `mmaudio_16k` or `mmaudio_44k`, the published autoencoder and vocoder in --weights-dir."""
    codec_from: Path | None = None
    """Feature or run folder whose codec and latent statistics are used instead of fitting or measuring new ones. Sets
    that are trained on together must have the same, and so must a set for fine-tuning a trained network."""
    encoders: str = "embedded"
    """Encoders of image, motion and text: `embedded` needs no weights, `mmaudio` is CLIP and Synchformer in
    --weights-dir. A name that is none of the registered ones is refused with the list of them."""
    weights_dir: Path | None = None
    """Folder of converted weights, for the codecs and encoders that need some."""
    device: str = "auto"
    """Device of the published encoders and codecs: `cpu`, `cuda`, `cuda:1` ...; `auto` uses a GPU if there is one."""
    codec_fit_clips: int = 512
    """Number of training windows, evenly spaced, that the codec is fitted on."""
    shard_size: int = 64
    """Windows, or captions, per file; an interruption loses at most one unfinished file."""
    max_windows_per_item: int = 4
    """Most windows that are taken of a file, from its start."""
    max_windows_video: int | None = None
    """Most windows of a file with a picture; None takes the number above. MMAudio takes 1 of a video, 5 of a sound."""
    spread_windows: bool = False
    """Take only whole windows of sounds without picture, evenly spread over the file, as MMAudio cuts long sounds."""
    peak_normalise: bool = True
    """Scale the sound of every window, in all splits, to a peak of 0.95; otherwise it is only clipped to 1."""
    workers: int = 2
    """Number of processes that read files; 0 reads in the main process."""

    def __post_init__(self) -> None:
        check_window("duration_s", self.duration_s)
        if self.codec not in CODECS:
            raise ValueError(f"codec must be one of {', '.join(CODECS)}, got {self.codec!r}")
        encoder_set(self.encoders)
        for name, count in (
            ("codec_fit_clips", self.codec_fit_clips),
            ("shard_size", self.shard_size),
            ("max_windows_per_item", self.max_windows_per_item),
            ("max_windows_video", self.max_windows_video),
        ):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")

    def settings(self) -> dict[str, Any]:
        """The settings that a rerun must repeat: all but OPERATIONAL."""
        return {name: value for name, value in asdict(self).items() if name not in OPERATIONAL}

    @property
    def fitted(self) -> bool:
        """Whether the codec is fitted on the training sounds; such latents have no std and are normalised."""
        return CODECS[self.codec].fitted

    def reader(self, *, frames_only: bool = False) -> WindowReader:
        """The reader of windows with this configuration; worker processes receive it with every job."""
        return WindowReader(
            encoders=self.encoders,
            duration_s=self.duration_s,
            sample_rate=CODECS[self.codec].mel.sample_rate,
            peak_normalise=self.peak_normalise,
            max_windows=self.max_windows_per_item,
            max_windows_video=self.max_windows_video,
            spread=self.spread_windows,
            frames_only=frames_only,
        )


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """Result of an extraction: windows per split, skipped items with reasons, and padded windows."""

    counts: dict[str, int]
    skipped: list[SkippedItem]
    padded: int
    made_again: list[str] = field(default_factory=list)
    """Files of an earlier run that were damaged or missing and have been rewritten."""

    @classmethod
    def of(cls, info: dict[str, Any]) -> "ExtractReport":
        """The report of a finished folder, read from the content of its features.json."""
        skipped = [(entry["id"], entry["reason"]) for entry in info["skipped"]]
        return cls(counts=info["counts"], skipped=skipped, padded=info["padded"])

    def __str__(self) -> str:
        lines = ["examples: " + ", ".join(f"{split} {count}" for split, count in self.counts.items())]
        if self.made_again:
            lines.append(f"made again: {len(self.made_again)} of an earlier run ({', '.join(self.made_again[:10])})")
        if self.padded:
            lines.append(f"padded at the end: {self.padded}")
        if self.skipped:
            lines.append(f"left out: {len(self.skipped)} ({count_reasons(self.skipped)})")
            lines.extend(f"  {id_}: {reason}" for id_, reason in self.skipped[:10])
            if len(self.skipped) > 10:
                lines.append(f"  ... and {len(self.skipped) - 10} more, all named in features.json")
        return "\n".join(lines)


def count_reasons(skipped: Sequence[SkippedItem]) -> str:
    """The reasons and how often each occurs, the most frequent first; the text after a colon is ignored."""
    kinds = Counter(reason.split(":")[0] for _, reason in skipped)
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common())
