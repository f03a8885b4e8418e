"""Rows checked from the sounds themselves: real ones from the data, generated ones from the kept files."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import soundfile
import torch
from torch import Tensor

from eval.kl import kl_divergence
from eval.onsets import detect_onsets, match_onsets
from eval.rows import Row, Task
from eval.sweep import KeptAudio, Origin, reference_rows
from eval.testset import TestSet, TrainingSounds
from eval.verify import Check, Kept
from teacher.data.dataset import load_codec

KL_TOLERANCE = (2e-3, 2e-3)
"""Kept files are rounded to 16 bits: over 60 files of the demo that moves the divergence of a clip by 6e-4 at most."""
REAL = "the real sounds of the data"


@dataclass(frozen=True, kw_only=True, eq=False)
class Sounds:
    """The test set of one task, built again from exactly the ids that were scored."""

    kept: Kept
    data: Path
    test: TestSet
    training: TrainingSounds

    @classmethod
    def build(cls, kept: Kept, data: Path, task: Task) -> Self:
        """From the feature folder of the comparison.

        Raises:
            ValueError: no scored ids of the task in clips.jsonl, or the folder does not have them.
        """
        ids = next((list(kept.clips[r.key, r.config_digest]) for r in kept.rows if _scored(kept, r, task)), None)
        if ids is None:
            raise ValueError(f"{kept.rows_path.with_name('clips.jsonl')} holds no scores of {task}; nothing to rebuild")
        training = TrainingSounds.read(data)
        test = TestSet.build(
            data,
            video=task == "vta",
            max_clips=len(ids),
            classifier=training.classifier,
            label_kind=training.label_kind,
            only=ids,
        )
        return cls(kept=kept, data=data, test=test, training=training)

    def check_floors(self, task: Task) -> Iterator[Check]:
        """The rows of real sound and of the codec round trip, all metrics from the beginning."""
        codec = load_codec(self.data)
        with tempfile.TemporaryDirectory() as folder:
            made = reference_rows(
                self.test.scorer,
                reference=self.test.waves,
                other=self.training.like(len(self.test.records), video=task == "vta"),
                reconstruction=torch.cat([codec.decode(codec.encode(part)) for part in self.test.waves.split(32)]),
                tasks=(task,),
                rows_path=Path(folder) / "rows.jsonl",
                origin=Origin(config_digest="again", run_id="verify", command="verify"),
            )
            again = {row.key: row.metrics for row in made}
        for row in (r for r in self.kept.rows if r.key in again):
            for name, value in row.metrics.items():
                found = again[row.key].get(name)
                yield Check(row=row, name=name, expected=float(value), found=found, source=REAL)

    def check_media(self, task: Task) -> Iterator[Check]:
        """Per-clip scores of the generated files kept in media/, against clips.jsonl.

        Files are kept of the first seed of every setting; onset counts must be equal, divergences nearly.
        """
        keep = KeptAudio(folder=self.kept.rows_path.parent / "media", count=len(self.test.records), seed=0)
        seen: set[tuple[str, int]] = set()
        for row in (r for r in self.kept.rows if r.task == task and r.steps):
            if (row.model, row.steps) in seen:
                continue
            seen.add((row.model, row.steps))
            for k, record in enumerate(self.test.records):
                path = keep.path(task, row.model, row.steps, record.id)
                if path.is_file():
                    yield from self._check_file(row, k, record.id, path)

    def _check_file(self, row: Row, k: int, clip_id: str, path: Path) -> Iterator[Check]:
        wave, rate = soundfile.read(path, dtype="float32")
        scorer, expected = self.test.scorer, self.kept.clips[row.key, row.config_digest][clip_id]
        if rate != scorer.extractor.sample_rate or len(wave) < scorer.num_samples:
            raise ValueError(f"{path} has {len(wave)} samples at {rate} Hz, which is not what was scored")
        found = self._scores(torch.from_numpy(wave[: scorer.num_samples]), k)
        for name in (n for n in expected if n in found):
            tolerance = KL_TOLERANCE if name == "kl" else (0.0, 0.0)
            yield Check(
                row=row,
                name=f"{name} of {clip_id}",
                expected=expected[name],
                found=found[name],
                source=path.name,
                tolerance=tolerance,
            )

    def _scores(self, wave: Tensor, k: int) -> dict[str, float]:
        scorer = self.test.scorer
        logits = scorer.classifier.logits(scorer.extractor(wave[None]))
        scores = {"kl": float(kl_divergence(scorer.classifier.logits(scorer.features[k : k + 1]), logits))}
        events = scorer.events[k]
        if events is not None:
            onsets = detect_onsets(wave.numpy(), scorer.extractor.sample_rate)
            counts = match_onsets(events, onsets, scorer.tolerance_s)
            scores |= {
                "hits": float(counts.hits),
                "misses": float(counts.misses),
                "false_alarms": float(counts.false_alarms),
            }
        return scores


def _scored(kept: Kept, row: Row, task: Task) -> bool:
    return row.task == task and (row.key, row.config_digest) in kept.clips
