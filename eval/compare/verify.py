"""Computes cells of the results again, from the files of a comparison and from the sounds themselves.

Means and pooled counts are computed from clips.jsonl, metrics of features from embeddings/ (`eval.features.cache`), and
totals of real-time factors from the stages. With the feature folder of the comparison the test set is built again:
real sound and the codec round trip are scored anew, and so are the generated files in media/.
"""

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import soundfile
import torch
from torch import Tensor

from eval.compare.reference_rows import reference_rows
from eval.compare.rows import (
    ClipScores,
    Row,
    ScoresKey,
    Task,
    embeddings_path,
    ids_digest,
    read_clip_scores,
    read_rows,
)
from eval.compare.sweep import Origin, SavedAudio
from eval.compare.test_set import TestSet
from eval.compare.training_sounds import TrainingSounds
from eval.features.cache import RowFeatures
from eval.features.sources import FeatureSource
from eval.metrics import (
    COMPANIONS,
    ClipMetric,
    ClipScorer,
    clip_metrics,
    metric,
    model_free_scorers,
    pooled,
    pooled_intervals,
)
from eval.metrics.uncertainty import Estimate
from eval.speed.budget import TOTALS
from teacher.features.codec import load_codec

RELATIVE, ABSOLUTE = 1e-6, 1e-7
"""Two values agree within RELATIVE of the larger or ABSOLUTE, which allows for another order of sums."""
CLIPS, FEATURES, STAGES, OTHERS = "clips.jsonl", "stored features", "its stages", "other rows of the network"
PARTS: Mapping[str, Callable[[Estimate], float]] = {
    "low": lambda estimate: estimate.low,
    "high": lambda estimate: estimate.high,
    "bias": lambda estimate: estimate.bias,
}
"""The parts of an estimate that a report shows; their cells are called "kl low" and the like."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One cell, or one fact about a row, and the value computed the second time."""

    row: Row
    name: str
    """Metric, "<metric> low", "high" or "bias", "rtf <total>", "num_clips", "clips_digest", "params" or "nfe"."""
    expected: float | str
    found: float | str | None
    """The value computed; None where there is nothing to compute it from."""
    source: str
    tolerance: tuple[float, float] = (RELATIVE, ABSOLUTE)

    @property
    def difference(self) -> float | None:
        """found - expected; None for texts and for cells that could not be computed."""
        if isinstance(self.found, float) and isinstance(self.expected, float):
            return self.found - self.expected
        return None

    @property
    def agrees(self) -> bool:
        """Whether the cell was computed again and is the same."""
        if isinstance(self.found, float) and isinstance(self.expected, float):
            return math.isclose(self.found, self.expected, rel_tol=self.tolerance[0], abs_tol=self.tolerance[1])
        return self.found == self.expected

    def __str__(self) -> str:
        where = f"{self.row.title}: {self.name}"
        if self.found is None:
            return f"{where} expected {_text(self.expected)}, not computed: {self.source}"
        change = "" if self.difference is None else f", difference {self.difference:.3g}"
        verdict = "agrees" if self.agrees else "DIFFERS"
        return f"{where} expected {_text(self.expected)}, found {_text(self.found)}{change} ({self.source}): {verdict}"


@dataclass(frozen=True, kw_only=True, eq=False)
class ComparisonFiles:
    """The rows of a comparison and the files beside them from which cells can be computed."""

    rows_path: Path
    rows: tuple[Row, ...]
    clips: Mapping[ScoresKey, ClipScores]

    @classmethod
    def read(cls, rows_path: Path) -> "ComparisonFiles":
        """Rows and per-clip scores; ValueError if there are no rows. Features are opened when a row is checked."""
        rows = tuple(read_rows(rows_path))
        if not rows:
            wrong = "holds no rows of results" if rows_path.is_file() else "does not exist"
            raise ValueError(f"{rows_path} {wrong}; run the comparison first")
        return cls(rows_path=rows_path, rows=rows, clips=read_clip_scores(rows_path.with_name("clips.jsonl")))

    def row(self, task: str, model: str, steps: int, seed: int, guidance: float | None = None) -> Row:
        """The row of a key; ValueError naming the rows, or where several differ in guidance scale and none is given."""
        found = [r for r in self.rows if (r.task, r.model, r.steps, r.seed) == (task, model, steps, seed)]
        if guidance is not None:
            found = [row for row in found if row.guidance == guidance]
        if len(found) == 1:
            return found[0]
        there = "; ".join(r.title for r in (found or self.rows))
        raise ValueError(
            f"{len(found) or 'no'} rows are {task} {model}, {steps} steps, seed {seed}"
            f"{'' if guidance is None else f', guidance {guidance:g}'}; there are: {there}"
            + ("; say which with --guidance" if guidance is None and len(found) > 1 else "")
        )

    def check(self, row: Row, only: str | None = None) -> Iterator[Check]:
        """Compute every cell of a row in every way possible; one that cannot be computed has one check without a value.

        `only` computes the cell of this name alone.
        """
        yield from (check for check in self._facts(row) if only in (None, check.name))
        features = features_of_row(self.rows_path, row)
        entries = list(self.clips.get(row.scores_key, {}).values())
        keys = set(row.metrics) if only is None else _keys_of(only)
        names = [name for name in row.metrics if only in (None, name)]
        if names:
            ways = {CLIPS: pooled(entries, keys), FEATURES: features.metrics(keys) if features else {}}
            for name in names:
                found = {way: values.get(name) for way, values in ways.items()}
                yield from _checks(row, name, float(row.metrics[name]), found)
        parts = [(name, part) for name in row.estimates for part in PARTS if only in (None, f"{name} {part}")]
        if parts:
            again = {CLIPS: pooled_intervals(entries, keys), FEATURES: features.estimates(keys) if features else {}}
            for name, part in parts:
                of = PARTS[part]
                found = {way: of(values[name]) if name in values else None for way, values in again.items()}
                yield from _checks(row, f"{name} {part}", of(row.estimates[name]), found)

    def _facts(self, row: Row) -> Iterator[Check]:
        """The clips, the network and the totals of the times of a row."""
        clips = self.clips.get(row.scores_key, {})
        if clips:
            yield Check(row=row, name="num_clips", expected=float(row.num_clips), found=float(len(clips)), source=CLIPS)
        if clips and row.clips_digest is not None:
            yield Check(row=row, name="clips_digest", expected=row.clips_digest, found=ids_digest(clips), source=CLIPS)
        yield from self._network(row)
        for name, stages in TOTALS.items():
            if name in row.rtf and all(stage in row.rtf for stage in stages):
                total = float(sum(row.rtf[stage] for stage in stages))
                yield Check(row=row, name=f"rtf {name}", expected=float(row.rtf[name]), found=total, source=STAGES)

    def _network(self, row: Row) -> Iterator[Check]:
        """Parameters and evaluations a step against the other rows of the same network: what most of them say."""
        same = [
            r for r in self.rows if (r.model, r.kind, r.guidance) == (row.model, row.kind, row.guidance) and r.steps
        ]
        if row.steps == 0 or len(same) < 3:
            return
        params = Counter(r.params for r in same).most_common(1)[0][0]
        if row.params is not None and params is not None:
            yield Check(row=row, name="params", expected=float(row.params), found=float(params), source=OTHERS)
        each = Counter(r.nfe / r.steps for r in same).most_common(1)[0][0]
        yield Check(row=row, name="nfe", expected=float(row.nfe), found=each * row.steps, source=OTHERS)

    def cell(self, row: Row, name: str) -> list[Check]:
        """The checks of one cell.

        Raises:
            ValueError: the row has no such cell, or there is nothing that it could be computed from.
        """
        chosen = list(self.check(row, only=name))
        if not chosen:
            names = dict.fromkeys(check.name for check in self.check(row))
            raise ValueError(f"the row has no {name}; it has {', '.join(names)}")
        if chosen[0].found is None:
            raise ValueError(str(chosen[0]))
        return chosen


def features_of_row(rows_path: Path, row: Row) -> RowFeatures | None:
    """The features that a row was computed from; None where they are missing. Raises what `RowFeatures.read` raises."""
    path = embeddings_path(rows_path, row)
    return RowFeatures.read(path, config_digest=row.config_digest, of_reference=row.kind == "reference")


def _keys_of(cell: str) -> set[str]:
    """Keys of the metric of a cell: its own name without "low" and the like, and that of the metric it belongs to."""
    key = next((cell.removesuffix(f" {part}") for part in PARTS if cell.endswith(f" {part}")), cell)
    return {key, *(key.removesuffix(suffix) for suffix in COMPANIONS)}


def _checks(row: Row, name: str, expected: float, found: Mapping[str, float | None]) -> list[Check]:
    """One check per way that found a value; if there is none, one without."""
    done = [
        Check(row=row, name=name, expected=expected, found=value, source=way)
        for way, value in found.items()
        if value is not None
    ]
    reason = "its clips have no score of their own, and its features were not stored"
    return done or [Check(row=row, name=name, expected=expected, found=None, source=reason)]


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.10g}"


TOLERANCES = {name: metric.tolerance for metric in clip_metrics() for name in metric.names}
"""Tolerances (relative, absolute) of the values of a clip by key, since its file is rounded to 16 bits."""
REAL = "the real sounds of the data"


@dataclass(frozen=True, kw_only=True, eq=False)
class RebuiltTestSet:
    """The test set of one task, built again from exactly the ids that were scored."""

    files: ComparisonFiles
    data: Path
    test: TestSet
    training: TrainingSounds

    @classmethod
    def build(
        cls,
        files: ComparisonFiles,
        data: Path,
        task: Task,
        *,
        sources: Sequence[FeatureSource] = (),
        clip_scorers: Sequence[ClipScorer] | None = None,
    ) -> Self:
        """Build the test set from the feature folder of the comparison. `sources` are those beside the embedded one,
        and `clip_scorers` are those that need no model unless given.

        Raises:
            ValueError: no scored ids of the task in clips.jsonl, or the folder does not have them.
        """
        ids = next((list(files.clips[r.scores_key]) for r in files.rows if _scored(files, r, task)), None)
        if ids is None:
            raise ValueError(
                f"{files.rows_path.with_name('clips.jsonl')} holds no scores of {task}; nothing to rebuild"
            )
        training = TrainingSounds.read(data)
        with tempfile.TemporaryDirectory() as cache:  # nothing on disk is trusted here
            test = TestSet.build(
                data,
                video=task == "vta",
                max_clips=len(ids),
                sources=(training.source, *sources),
                clip_scorers=model_free_scorers() if clip_scorers is None else clip_scorers,
                cache=Path(cache),
                only=ids,
                costly=any(metric(key).costly for row in files.rows for key in row.metrics),
            )
        return cls(files=files, data=data, test=test, training=training)

    def check_floors(self, task: Task) -> Iterator[Check]:
        """Check all cells of the rows of real sound and of the codec round trip, computed from the sounds."""
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
        for row in (r for r in self.files.rows if r.key in again):
            for name, value in _cells(row).items():
                yield Check(row=row, name=name, expected=value, found=again[row.key].get(name), source=REAL)

    def check_media(self, task: Task) -> Iterator[Check]:
        """Values of the generated files in media/, against clips.jsonl.

        There are files of one seed of every setting; onset counts must be equal, other scores nearly, and of
        DeSync one window may be a class away.
        """
        for row in (r for r in self.files.rows if r.task == task and r.steps):
            audio = SavedAudio(
                folder=self.files.rows_path.parent / "media", count=len(self.test.records), seed=row.seed
            )
            for k, record in enumerate(self.test.records):
                path = audio.path(task, row.model, row.steps, row.guidance, record.id)
                if path.is_file():
                    yield from self._check_file(row, k, record.id, path)

    def _check_file(self, row: Row, k: int, clip_id: str, path: Path) -> Iterator[Check]:
        wave, rate = soundfile.read(path, dtype="float32")
        scorer, expected = self.test.scorer, self.files.clips.get(row.scores_key, {}).get(clip_id, {})
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


def _scored(files: ComparisonFiles, row: Row, task: Task) -> bool:
    return row.task == task and row.steps > 0 and row.scores_key in files.clips
