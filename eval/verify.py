"""Cells of the results, computed again from what a comparison kept.

clips.jsonl gives means and pooled counts, embeddings/ every metric of features (see `eval.kept_embeddings`), the
real-time factors of the stages their totals.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path

from eval.kept_embeddings import Embeddings
from eval.paired import onset_counts
from eval.rows import ClipScores, Row, ids_digest, read_clip_scores, read_rows
from eval.speed import TOTALS

RELATIVE, ABSOLUTE = 1e-6, 1e-7
"""Two values agree within RELATIVE of the larger or ABSOLUTE: sums of another order, never another formula."""
ONSETS = ("onset_precision", "onset_recall", "onset_f1", "onset_clips")
CLIPS, FEATURES, STAGES = "clips.jsonl", "kept features", "its stages"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One cell, or one fact about a row, and what came out the second time."""

    row: Row
    name: str
    """Metric, "rtf <total>", "num_clips" or "clips_digest"."""
    expected: float | str
    found: float | str | None
    """None: nothing was kept to compute it from."""
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
        where = f"{self.row.task} {self.row.model}, {self.row.steps} steps, seed {self.row.seed}: {self.name}"
        if self.found is None:
            return f"{where} expected {_text(self.expected)}, not computed: {self.source}"
        change = "" if self.difference is None else f", difference {self.difference:.3g}"
        verdict = "agrees" if self.agrees else "DIFFERS"
        return f"{where} expected {_text(self.expected)}, found {_text(self.found)}{change} ({self.source}): {verdict}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """Rows and everything beside them that cells can be computed from."""

    rows_path: Path
    rows: tuple[Row, ...]
    clips: Mapping[tuple[tuple[str, str, int, int], str], ClipScores]

    @classmethod
    def read(cls, rows_path: Path) -> "Kept":
        """Rows and per-clip scores; ValueError if there are no rows. Features are opened when a row is checked."""
        rows = tuple(read_rows(rows_path))
        if not rows:
            raise ValueError(f"{rows_path} holds no rows of results; run the comparison first")
        return cls(rows_path=rows_path, rows=rows, clips=read_clip_scores(rows_path.with_name("clips.jsonl")))

    def row(self, task: str, model: str, steps: int, seed: int) -> Row:
        """The row of a key; ValueError naming those there are."""
        for row in self.rows:
            if row.key == (task, model, steps, seed):
                return row
        there = ", ".join(f"{t} {m} {n} {s}" for t, m, n, s in (row.key for row in self.rows))
        raise ValueError(f"no row {task} {model} {steps} {seed} (task, model, steps, seed); there are: {there}")

    def check(self, row: Row) -> Iterator[Check]:
        """Every cell of a row by every way there is; one that cannot be computed comes once, without a found value."""
        clips = self.clips.get((row.key, row.config_digest), {})
        if clips:
            yield Check(row=row, name="num_clips", expected=float(row.num_clips), found=float(len(clips)), source=CLIPS)
        if clips and row.clips_digest is not None:
            yield Check(row=row, name="clips_digest", expected=row.clips_digest, found=ids_digest(clips), source=CLIPS)
        embedded = Embeddings.open(self.rows_path, row)
        for name, expected in row.metrics.items():
            ways = {CLIPS: from_clips(name, clips), FEATURES: embedded.metric(name) if embedded else None}
            done = [
                Check(row=row, name=name, expected=float(expected), found=found, source=source)
                for source, found in ways.items()
                if found is not None
            ]
            reason = "its clips have no score of their own, and its features were not kept"
            yield from done or [Check(row=row, name=name, expected=float(expected), found=None, source=reason)]
        for name, stages in TOTALS.items():
            if name in row.rtf and all(stage in row.rtf for stage in stages):
                total = float(sum(row.rtf[stage] for stage in stages))
                yield Check(row=row, name=f"rtf {name}", expected=float(row.rtf[name]), found=total, source=STAGES)

    def cell(self, row: Row, name: str) -> list[Check]:
        """The checks of one cell.

        Raises:
            ValueError: the row has no such cell, or nothing was kept that it could be computed from.
        """
        checks = list(self.check(row))
        chosen = [c for c in checks if c.name == name]
        if not chosen:
            raise ValueError(f"the row has no {name}; it has {', '.join(dict.fromkeys(c.name for c in checks))}")
        if chosen[0].found is None:
            raise ValueError(str(chosen[0]))
        return chosen


def from_clips(name: str, clips: ClipScores) -> float | None:
    """A metric from the scores of the clips: the mean, or for onsets the ratio of the pooled counts; None without."""
    if name in ONSETS:
        counts = [onset_counts(scores) for scores in clips.values() if "hits" in scores]
        if not counts:
            return None
        total = reduce(add, counts)
        return {
            "onset_precision": total.precision,
            "onset_recall": total.recall,
            "onset_f1": total.f1,
            "onset_clips": float(len(counts)),
        }[name]
    if not clips or any(name not in scores for scores in clips.values()):
        return None
    return math.fsum(scores[name] for scores in clips.values()) / len(clips)


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.10g}"
