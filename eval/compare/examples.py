"""Players for the report's page: a few clips, each as ground truth and as every saved generation, with spectrograms."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from eval.compare.rows import Task, safe_name
from eval.compare.sweep import SavedAudio
from teacher.features.store import Record
from teacher.files import replacing
from teacher.media import remux, write_audio

PICTURE_WIDTH, PICTURE_HEIGHT = 480, 150
RANGE_DB = 75.0
"""Dynamic range shown, down from the loudest point of the clip."""
MIN_HZ = 60.0
EVENT_COLOUR = (120, 255, 190)


def spectrogram_png(
    wave: NDArray[np.float32], sample_rate: int, path: Path, events_s: Sequence[float] | None = None
) -> None:
    """Write the log-frequency spectrogram of a mono wave (samples,) as a PNG without axes; known events as ticks.

    Left to right the whole wave, bottom to top 60 Hz to half the sample rate, colour 75 dB down from the loudest point.
    """
    samples = np.asarray(wave, dtype=np.float64)
    if samples.ndim != 1 or len(samples) < 2 or not np.isfinite(samples).all():
        raise ValueError(f"wave must be a finite (samples,) array, got shape {samples.shape}")
    level = 10.0 * np.log10(_picture_power(samples, sample_rate) + 1e-12)
    shade = np.clip((level - level.max()) / RANGE_DB + 1.0, 0.0, 1.0)
    pixels = (matplotlib.colormaps["magma"](shade[::-1])[:, :, :3] * 255).astype(np.uint8)
    for time_s in () if events_s is None else events_s:
        column = int(time_s * sample_rate / len(samples) * PICTURE_WIDTH)
        if 0 <= column < PICTURE_WIDTH:
            pixels[:12, column : column + 2] = EVENT_COLOUR
            pixels[12::6, column] = EVENT_COLOUR
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _picture_power(samples: NDArray[np.float64], sample_rate: int) -> NDArray[np.float64]:
    """Power (PICTURE_HEIGHT, PICTURE_WIDTH), low frequencies first."""
    window = 2 * round(0.016 * sample_rate)
    padded = np.pad(samples, window // 2)
    starts = np.linspace(0, len(samples) - 1, PICTURE_WIDTH).astype(int)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[starts] * np.hanning(window)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    wanted = np.geomspace(MIN_HZ, sample_rate / 2, PICTURE_HEIGHT)
    bins = np.fft.rfftfreq(window, 1.0 / sample_rate)
    return np.stack([np.interp(wanted, bins, frame) for frame in power], axis=1)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One version of a clip that is shown beside the ground truth."""

    name: str
    """The name of the version on the page."""
    model: str
    steps: int
    guidance: float


@dataclass(frozen=True, kw_only=True)
class ExampleWriter:
    """Writes media files below `folder` and collects the entries of examples.json beside it."""

    folder: Path
    sample_rate: int
    shown: tuple[Shown, ...]

    def examples(
        self, task: Task, records: Sequence[Record], waves: Tensor, audio: SavedAudio
    ) -> list[dict[str, object]]:
        """Entries for the first `audio.count` clips; generations that were not saved are left out."""
        return [
            self._example(task, record, wave, audio)
            for record, wave in list(zip(records, waves, strict=True))[: audio.count]
        ]

    def _example(self, task: Task, record: Record, wave: Tensor, audio: SavedAudio) -> dict[str, object]:
        truth = self.folder / f"{task}-truth-{safe_name(record.id)}.wav"
        write_audio(truth, wave.numpy(), self.sample_rate)
        entries = [self._entry("ground truth", task, truth, record, comment=None)]
        for one in self.shown:
            sound = audio.path(task, one.model, one.steps, one.guidance, record.id)
            if sound.is_file():
                entries.append(self._entry(one.name, task, sound, record, audio.comment))
        return {"task": task, "id": record.id, "caption": record.caption, "entries": entries}

    def _entry(self, name: str, task: Task, sound: Path, record: Record, comment: str | None) -> dict[str, str]:
        wave, rate = soundfile.read(sound, dtype="float32")
        picture = sound.with_suffix(".png")
        spectrogram_png(wave, rate, picture, record.events_s if task == "vta" else None)
        media = sound
        if task == "vta" and record.has_video:
            media = sound.with_suffix(".mp4")
            span = {"start_s": record.start_s, "duration_s": record.duration_s}
            remux(Path(record.path), wave, rate, media, comment=comment, **span)
        root = self.folder.parent
        return {"name": name, "media": str(media.relative_to(root)), "spectrogram": str(picture.relative_to(root))}


def write_examples(path: Path, examples: list[dict[str, object]]) -> None:
    """Write examples.json for the page, under a temporary name first."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(examples, indent=2))
