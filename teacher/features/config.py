"""The configuration of an extraction, and the report of what became of its items."""

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
"""Settings that do not change what is extracted; the digests of codec and encoders do."""


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """What an extraction makes of media files; all features of one folder have one configuration."""

    duration_s: float = 2.0
    """Length of every example in seconds."""
    codec: str = "embedded"
    """`embedded` (16 kHz, 20 channels) or `embedded_44k` (44.1 kHz, 40 channels), fitted on the training sounds;
    `mmaudio_16k` or `mmaudio_44k`, the published autoencoder and vocoder in --weights-dir."""
    codec_from: Path | None = None
    """Feature or run folder whose codec, with its latent statistics, is used: sets that are trained on together need
    one, and so does a set that a trained network goes on with."""
    encoders: str = "embedded"
    """Encoders of image, motion and text: `embedded` needs no weights, `mmaudio` is CLIP and Synchformer in
    --weights-dir; another name is answered with all that there are."""
    weights_dir: Path | None = None
    """Folder of converted weights, for the codecs and encoders that need some."""
    device: str = "auto"
    """Where heavy encoders and codecs run: `cpu`, `cuda`, `cuda:1` ..., `auto` for a GPU if there is one."""
    codec_fit_clips: int = 512
    """Training windows that the codec is fitted on, evenly taken from all of them."""
    shard_size: int = 64
    """Windows, or captions, in a file; an interruption loses at most these."""
    max_windows_per_item: int = 4
    """Longer files give at most this many windows, from their start."""
    max_windows_video: int | None = None
    """The same for files with a picture, where it differs. MMAudio takes 1 of a video and 5 of a sound."""
    spread_windows: bool = False
    """Sounds without picture: whole windows only, evenly spread over the file, as MMAudio cuts long sounds."""
    peak_normalise: bool = True
    """Scale every window's sound, of every split, to a peak of 0.95. Off: levels as in the file (clipped to 1)."""
    workers: int = 2
    """Processes that read files; 0 reads in this process."""

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
        """The settings that a rerun must repeat; where and how fast it computes may change."""
        return {name: value for name, value in asdict(self).items() if name not in OPERATIONAL}

    @property
    def fitted(self) -> bool:
        """Whether the codec is fitted on the training sounds; such latents have no std and are normalised."""
        return CODECS[self.codec].fitted

    def reader(self, *, frames_only: bool = False) -> WindowReader:
        """Reads windows of files by this configuration; worker processes receive it with every job."""
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
    """What an extraction made of its items: windows per split, items left out with their reasons, padded windows."""

    counts: dict[str, int]
    skipped: list[SkippedItem]
    padded: int
    made_again: list[str] = field(default_factory=list)
    """Files of an earlier run that were damaged or missing, and are new now."""

    @classmethod
    def of(cls, info: dict[str, Any]) -> "ExtractReport":
        """The report of a finished folder, from the content of its features.json."""
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
    """Reasons with their numbers, the most frequent first; what follows a colon differs from file to file."""
    kinds = Counter(reason.split(":")[0] for _, reason in skipped)
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common())
