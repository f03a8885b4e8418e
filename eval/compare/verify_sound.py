"""Rows checked from the sounds themselves: real ones from the data, generated ones from the kept files."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import soundfile
import torch
from torch import Tensor

from eval.compare.reference_rows import reference_rows
from eval.compare.rows import Row, Task
from eval.compare.sweep import Origin, SavedAudio
from eval.compare.test_set import TestSet
from eval.compare.training_sounds import TrainingSounds
from eval.compare.verify import PARTS, Check, Kept
from eval.features.sources import FeatureSource
from eval.metrics import ClipMetric, ClipScorer, clip_metrics, metric, model_free_scorers
from teacher.features.codec import load_codec

TOLERANCES = {name: metric.tolerance for metric in clip_metrics() for name in metric.names}
"""Of the values of a clip by key, as its file was rounded to 16 bits."""
REAL = "the real sounds of the data"


@dataclass(frozen=True, kw_only=True, eq=False)
class Sounds:
    """The test set of one task, built again from exactly the ids that were scored."""

    kept: Kept
    data: Path
    test: TestSet
    training: TrainingSounds

    @classmethod
    def build(
        cls,
        kept: Kept,
        data: Path,
        task: Task,
        *,
        sources: Sequence[FeatureSource] = (),
        clip_scorers: Sequence[ClipScorer] | None = None,
    ) -> Self:
        """From the feature folder of the comparison; `sources` beside the one that needs no weights, and
        `clip_scorers` (those that need no model unless given).

        Raises:
            ValueError: no scored ids of the task in clips.jsonl, or the folder does not have them.
        """
        ids = next((list(kept.clips[r.scores_key]) for r in kept.rows if _scored(kept, r, task)), None)
        if ids is None:
            raise ValueError(f"{kept.rows_path.with_name('clips.jsonl')} holds no scores of {task}; nothing to rebuild")
        training = TrainingSounds.read(data)
        with tempfile.TemporaryDirectory() as cache:  # nothing that was kept is trusted here
            test = TestSet.build(
                data,
                video=task == "vta",
                max_clips=len(ids),
                sources=(training.source, *sources),
                clip_scorers=model_free_scorers() if clip_scorers is None else clip_scorers,
                cache=Path(cache),
                only=ids,
                costly=any(metric(key).costly for row in kept.rows for key in row.metrics),
            )
        return cls(kept=kept, data=data, test=test, training=training)

    def check_floors(self, task: Task) -> Iterator[Check]:
        """The rows of real sound and of the codec round trip, all cells from the beginning."""
        codec, scorer = load_codec(self.data), self.test.scorer
        with tempfile.TemporaryDirectory() as folder:
            made = reference_rows(
                scorer,
                real=self.test.waves,
                other=lambda: self.training.features_like(
                    scorer.sources, len(self.test.records), video=task == "vta", num_samples=scorer.num_samples
                ),
                roundtrip=lambda waves: codec.decode(codec.encode(waves)),
                task=task,
                rows_path=Path(folder) / "rows.jsonl",
                origin=Origin(config_digest="again", run_id="verify", command="verify"),
            )
            again = {row.key: _cells(row) for row in made}
        for row in (r for r in self.kept.rows if r.key in again):
            for name, value in _cells(row).items():
                yield Check(row=row, name=name, expected=value, found=again[row.key].get(name), source=REAL)

    def check_media(self, task: Task) -> Iterator[Check]:
        """Per-clip scores of the generated files kept in media/, against clips.jsonl.

        Files are kept of one seed of every setting; onset counts must be equal, other scores nearly, and of
        DeSync one window may be a class away.
        """
        for row in (r for r in self.kept.rows if r.task == task and r.steps):
            audio = SavedAudio(folder=self.kept.rows_path.parent / "media", count=len(self.test.records), seed=row.seed)
            for k, record in enumerate(self.test.records):
                path = audio.path(task, row.model, row.steps, row.guidance, record.id)
                if path.is_file():
                    yield from self._check_file(row, k, record.id, path)

    def _check_file(self, row: Row, k: int, clip_id: str, path: Path) -> Iterator[Check]:
        wave, rate = soundfile.read(path, dtype="float32")
        scorer, expected = self.test.scorer, self.kept.clips.get(row.scores_key, {}).get(clip_id, {})
        if rate != scorer.sample_rate or len(wave) < scorer.num_samples:
            raise ValueError(f"{path} has {len(wave)} samples at {rate} Hz, which is not what was scored")
        found = self._scores(torch.from_numpy(wave[: scorer.num_samples]), k, row.task)
        for name in (n for n in expected if n in found):
            yield Check(
                row=row,
                name=f"{name} of {clip_id}",
                expected=expected[name],
                found=found[name],
                source=path.name,
                tolerance=TOLERANCES.get(name, ClipMetric.tolerance),
            )

    def _scores(self, wave: Tensor, k: int, task: Task) -> dict[str, float]:
        return dict(self.test.scorer.features(k, wave[None], task).per_clip[0])


def _cells(row: Row) -> dict[str, float]:
    """Everything that is printed of a row but times."""
    cells = {name: float(value) for name, value in row.metrics.items()}
    for name, estimate in row.estimates.items():
        cells |= {f"{name} {part}": float(of(estimate)) for part, of in PARTS.items()}
    return cells


def _scored(kept: Kept, row: Row, task: Task) -> bool:
    return row.task == task and row.steps > 0 and row.scores_key in kept.clips
