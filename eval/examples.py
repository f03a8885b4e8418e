"""The players of the page: a few clips, each as ground truth and as every kept generation, with spectrograms."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile
from torch import Tensor

from eval.plots import spectrogram_png
from eval.rows import Task
from eval.sweep import KeptAudio, safe_name
from teacher.data.dataset import Record
from teacher.data.media import remux, write_audio
from teacher.files import replacing


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One version that stands beside the ground truth."""

    name: str
    """As it stands on the page."""
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
        self, task: Task, records: Sequence[Record], waves: Tensor, keep: KeptAudio
    ) -> list[dict[str, object]]:
        """Entries for the first `keep.count` clips; generations that were not kept are left out."""
        return [
            self._example(task, record, wave, keep)
            for record, wave in list(zip(records, waves, strict=True))[: keep.count]
        ]

    def _example(self, task: Task, record: Record, wave: Tensor, keep: KeptAudio) -> dict[str, object]:
        truth = self.folder / f"{task}-truth-{safe_name(record.id)}.wav"
        write_audio(truth, wave.numpy(), self.sample_rate)
        entries = [self._entry("ground truth", task, truth, record, comment=None)]
        for one in self.shown:
            sound = keep.path(task, one.model, one.steps, one.guidance, record.id)
            if sound.is_file():
                entries.append(self._entry(one.name, task, sound, record, keep.comment))
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
    """examples.json for the page, written under a temporary name and renamed."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(examples, indent=2))
